//! Many logins at once: one exchange for each code, and a slow, failing or unreachable WeChat.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use wxgate::wechat::sandbox::Sandbox;

use crate::harness::client::{Connection, Response};
use crate::harness::{APP, Stack, process_log, unused_address};

fn login_bytes(code: &str) -> Vec<u8> {
    let body = json!({ "code": code }).to_string();
    let length = body.len();
    format!("POST /login HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}").into()
}

/// Sends a login without waiting for its response.
async fn begin_login(stack: &Stack, code: &str) -> Connection {
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&login_bytes(code)).await;
    connection
}

async fn until_exchanges(sandbox: &Sandbox, count: u64) {
    while sandbox.exchanges() < count {
        tokio::task::yield_now().await;
    }
}

fn token(response: &Response) -> String {
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_logins_of_one_code_make_one_call_and_get_one_response() {
    let stack = Stack::start().await;
    let mut logins = JoinSet::new();
    for _ in 0..50 {
        let mut login = begin_login(&stack, "slow-500ms-alice").await;
        logins.spawn(async move { login.response(false).await });
    }
    let responses = logins.join_all().await;
    let first = responses[0].text();
    assert!(responses.iter().all(|response| response.status == 200 && response.text() == first));
    assert_eq!(stack.sandbox.exchanges(), 1);
    assert_eq!(stack.metric("wxgate_login_coalesced_total").await, 49.0);
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 1.0);
    let counted = format!("wxgate_logins_total{{app_id=\"{APP}\",outcome=\"ok\"}}");
    assert_eq!(stack.metric(&counted).await, 50.0);
    let received = stack.get("/").token(&token(&responses[7])).forwarded().await;
    assert_eq!(received.all("x-openid"), [crate::harness::openid("alice")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_within_the_window_gets_the_same_response() {
    let stack = Stack::start().await;
    let first = stack.try_login("user-alice-1").await;
    stack.clock.advance(Duration::from_secs(9));
    let second = stack.try_login("user-alice-1").await;
    assert_eq!(second.text(), first.text());
    assert_eq!(stack.sandbox.exchanges(), 1);
    stack.clock.advance(Duration::from_secs(1));
    stack.try_login("user-alice-1").await.assert_error(401, "invalid_code", "login");
    assert_eq!(stack.sandbox.exchanges(), 2);
    // So is a rejection that would not change.
    stack.try_login("user-alice-1").await.assert_error(401, "invalid_code", "login");
    assert_eq!(stack.sandbox.exchanges(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_does_not_bring_back_a_session_that_was_ended() {
    let stack = Stack::start().await;
    let token = token(&stack.try_login("user-alice-1").await);
    assert_eq!(stack.post("/logout").token(&token).send().await.status, 204);
    stack.try_login("user-alice-1").await.assert_error(401, "invalid_code", "login");
    assert_eq!(stack.sandbox.exchanges(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_that_lost_the_response_gets_it_when_it_sends_the_code_again() {
    let stack = Stack::start().await;
    let lost = begin_login(&stack, "slow-300ms-alice").await;
    until_exchanges(&stack.sandbox, 1).await;
    drop(lost);
    token(&stack.try_login("slow-300ms-alice").await);
    assert_eq!(stack.sandbox.exchanges(), 1);
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_temporary_failure_the_code_is_exchanged_again() {
    let stack = Stack::start().await;
    stack.try_login("err--1-x").await.assert_error(503, "wechat_busy", "retry");
    stack.try_login("err--1-x").await.assert_error(503, "wechat_busy", "retry");
    assert_eq!(stack.sandbox.exchanges(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_over_the_concurrency_limit_wait_and_those_over_the_queue_are_rejected_at_once() {
    let stack = Stack::start_with(
        "[wechat]\nmax_in_flight = 2\nqueue = 2\nqueue_timeout = \"500ms\"\ntimeout = \"30s\"",
    )
    .await;
    let mut held = Vec::new();
    for number in 0..2 {
        held.push(begin_login(&stack, &format!("hang-{number}")).await);
    }
    until_exchanges(&stack.sandbox, 2).await;
    let began = Instant::now();
    let mut waiting = Vec::new();
    for number in 0..3 {
        waiting.push(begin_login(&stack, &format!("user-u{number}-1")).await);
    }
    let mut responses = Vec::new();
    for connection in &mut waiting {
        let response = connection.response(false).await;
        response.assert_error(503, "wechat_busy", "retry");
        assert!(response.header("retry-after").is_some());
        responses.push(response);
    }
    assert!(began.elapsed() >= Duration::from_millis(500), "two of them were queued");
    // WeChat was not called for rejected logins, and other requests are not affected.
    assert_eq!(stack.sandbox.exchanges(), 2);
    assert_eq!(stack.get("/none").send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_login_runs_when_another_one_ends() {
    let stack = Stack::start_with("wechat.max_in_flight = 1").await;
    let mut logins = JoinSet::new();
    for number in 0..10 {
        let mut login = begin_login(&stack, &format!("slow-20ms-u{number}")).await;
        logins.spawn(async move { login.response(false).await });
    }
    for response in logins.join_all().await {
        token(&response);
    }
    assert_eq!(stack.sandbox.most_in_flight(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wechat_that_keeps_failing_opens_the_circuit_breaker() {
    let stack = Stack::start_with("[wechat]\nbreaker_failures = 3\nbreaker_pause = \"10s\"").await;
    for number in 0..3 {
        let lost = stack.try_login(&format!("drop-{number}")).await;
        lost.assert_error(504, "wechat_timeout", "login");
    }
    for number in 0..5 {
        let rejected = stack.try_login(&format!("user-alice-{number}")).await;
        rejected.assert_error(503, "wechat_busy", "retry");
        let wait: u32 = rejected.header("retry-after").unwrap().parse().unwrap();
        assert!((10..=15).contains(&wait), "{wait}");
    }
    assert_eq!(stack.sandbox.exchanges(), 3);
    stack.clock.advance(Duration::from_secs(10));
    stack.try_login("drop-3").await.assert_error(504, "wechat_timeout", "login");
    stack.try_login("user-alice-0").await.assert_error(503, "wechat_busy", "retry");
    stack.clock.advance(Duration::from_secs(10));
    token(&stack.try_login("user-alice-0").await);
    token(&stack.try_login("user-alice-1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_codes_do_not_count_as_failures_of_wechat() {
    let stack = Stack::start_with("wechat.breaker_failures = 3").await;
    for number in 0..10 {
        let rejected = stack.try_login(&format!("err-40029-{number}")).await;
        rejected.assert_error(401, "invalid_code", "login");
    }
    token(&stack.try_login("user-alice-1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_quota_one_login_a_minute_calls_wechat() {
    let stack = Stack::start().await;
    let spent = stack.try_login("err-45009-1").await;
    spent.assert_error(503, "wechat_busy", "retry");
    for number in 0..5 {
        let rejected = stack.try_login(&format!("user-alice-{number}")).await;
        rejected.assert_error(503, "wechat_busy", "retry");
    }
    assert_eq!(stack.sandbox.exchanges(), 1);
    stack.clock.advance(Duration::from_secs(60));
    stack.try_login("err-45009-2").await.assert_error(503, "wechat_busy", "retry");
    stack.try_login("user-alice-0").await.assert_error(503, "wechat_busy", "retry");
    assert_eq!(stack.sandbox.exchanges(), 2);
    stack.clock.advance(Duration::from_secs(60));
    token(&stack.try_login("user-alice-0").await);
    token(&stack.try_login("user-alice-1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_logins_do_not_call_wechat_after_the_quota_has_ended() {
    let stack = Stack::start_with("wechat.max_in_flight = 1").await;
    let mut logins = Vec::new();
    for number in 0..20 {
        logins.push(begin_login(&stack, &format!("err-45009-{number}")).await);
    }
    for login in &mut logins {
        login.response(false).await.assert_error(503, "wechat_busy", "retry");
    }
    assert_eq!(stack.sandbox.exchanges(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_limit_halves_the_rate_of_the_app_for_a_while() {
    let stack = Stack::start_with("login.rate_per_app = \"4/s\"").await;
    let limited = stack.try_login("err-45011-1").await;
    limited.assert_error(429, "rate_limited", "retry");
    let wait: u32 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((60..=75).contains(&wait), "{wait}");
    stack.clock.advance(Duration::from_secs(2));
    let passed = async |from: usize| {
        let mut passed = 0;
        for number in from..from + 10 {
            let response = stack.try_login(&format!("user-u{number}-1")).await;
            passed += usize::from(response.status == 200);
        }
        passed
    };
    assert_eq!(passed(0).await, 2);
    stack.clock.advance(Duration::from_secs(60));
    assert_eq!(passed(20).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fallback_is_called_only_if_nothing_was_sent() {
    let unused = unused_address().await;
    let sandbox = Sandbox::new(
        vec![(APP.to_owned(), crate::harness::SECRET.to_owned())],
        wxgate::clock::Clock::system(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let fallback = listener.local_addr().unwrap();
    tokio::spawn(sandbox.clone().serve(listener));

    let before = process_log::position();
    let stack = Stack::start_with(&format!(
        "[wechat]\nbase_url = \"http://{unused}\"\nfallback_base_url = \"http://{fallback}\""
    ))
    .await;
    token(&stack.try_login("user-alice-1").await);
    assert_eq!(sandbox.exchanges(), 1);
    assert!(process_log::text_after(before).contains("calling wechat.fallback_base_url first"));
    // The first is not tried again within a minute.
    let back = TcpListener::bind(unused).await.unwrap();
    token(&stack.try_login("user-alice-2").await);
    assert_eq!(sandbox.exchanges(), 2);
    stack.clock.advance(Duration::from_secs(60));
    let (_, asked) = tokio::join!(stack.try_login("user-alice-3"), back.accept());
    drop(asked.unwrap());
    assert_eq!(sandbox.exchanges(), 2);

    let stack =
        Stack::start_with(&format!("wechat.fallback_base_url = \"http://{fallback}\"")).await;
    stack.try_login("drop-1").await.assert_error(504, "wechat_timeout", "login");
    stack.try_login("status-500-1").await.assert_error(504, "wechat_timeout", "login");
    assert_eq!((stack.sandbox.exchanges(), sandbox.exchanges()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_was_sent_nowhere_may_be_retried() {
    let unused = unused_address().await;
    // Accepts connections, but never responds: TLS fails.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (silent, _held) = (silent.local_addr().unwrap(), silent);
    let stack = Stack::start_with(&format!(
        "[wechat]\nbase_url = \"http://{unused}\"\nfallback_base_url = \"https://{silent}\"\n\
         timeout = \"3s\""
    ))
    .await;
    stack.try_login("user-alice-1").await.assert_error(503, "wechat_busy", "retry");
}
