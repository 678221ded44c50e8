//! Logins of native apps, whose codes are exchanged by another API, and of apps whose codes come by
//! redirects.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::harness::client::Response;
use crate::harness::{APP, OTHER_APP, SECRET, Stack, process_log, until};

/// Changes with a native app, and others.
fn with_kinds(kinds: &[(&str, &str)], rest: &str) -> String {
    let apps = kinds.iter().map(|(app_id, lines)| {
        format!(
            "[[app]]\napp_id = \"{app_id}\"\napp_secret = {{ file = \"{{dir}}/wechat-secret\" }}\n{lines}\n"
        )
    });
    format!("{rest}\n{}", apps.collect::<String>())
}

const MOBILE: &str = "kind = \"mobile\"";

async fn mobile(rest: &str) -> Stack {
    Stack::start_with(&with_kinds(&[(APP, MOBILE)], rest)).await
}

async fn log_in(stack: &Stack, app_id: &str, code: &str) -> Response {
    stack.post("/login").json(&json!({ "code": code, "app_id": app_id })).send().await
}

fn exchanges(app_id: &str, errcode: &str) -> String {
    format!("wxgate_code2session_requests_total{{app_id=\"{app_id}\",errcode=\"{errcode}\"}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_of_a_native_app_becomes_a_session_like_one_of_a_mini_program() {
    let stack = mobile("").await;
    let response = stack.try_login("user-unionalice-1").await;
    assert_eq!(response.status, 200, "{}", response.text());
    let body = response.json();
    assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
    let received = stack.get("/").token(body["token"].as_str().unwrap()).forwarded().await;
    assert_eq!(received.all("x-openid"), [wxgate::wechat::sandbox::openid(APP, "unionalice")]);
    assert_eq!(received.all("x-unionid").len(), 1);
    assert_eq!(received.all("x-appid"), [APP]);
    assert_eq!(stack.sandbox.exchanges(), 1);
    assert_eq!(stack.sandbox.calls()["/sns/oauth2/access_token"], 1);
    assert_eq!(stack.metric(&exchanges(APP, "ok")).await, 1.0);
    // The same code again gets the same session.
    let again = stack.try_login("user-unionalice-1").await;
    assert_eq!(again.json()["token"], body["token"]);
    assert_eq!(stack.sandbox.exchanges(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_app_gets_the_same_errors_as_a_mini_program() {
    let stack = mobile("wechat.timeout = \"400ms\"").await;
    for (code, status, error) in [
        ("err-40029-x", 401, "invalid_code"),
        ("err-40163-x", 401, "invalid_code"),
        ("err-41008-x", 401, "invalid_code"),
        ("err-42003-x", 401, "invalid_code"),
        ("err-45011-x", 429, "rate_limited"),
        ("err--1-x", 503, "wechat_busy"),
        ("err-40125-x", 502, "wechat_rejected"),
        ("err-10004-x", 502, "wechat_rejected"),
        ("garbage-x", 502, "wechat_rejected"),
        ("hang-x", 504, "wechat_timeout"),
        ("drop-x", 504, "wechat_timeout"),
    ] {
        let response = stack.try_login(code).await;
        assert_eq!(
            (response.status, response.header("x-wxgate-error")),
            (status, Some(error)),
            "{code}"
        );
    }
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);
    assert_eq!(stack.metric(&exchanges(APP, "timeout")).await, 1.0);
}

/// The request that WeChat gets is exactly the documented one.
#[tokio::test(flavor = "multi_thread")]
async fn wechat_is_called_with_the_parameters_of_its_other_api() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; 4096];
        let count = stream.read(&mut bytes).await.unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    });
    let stack = mobile(&format!("wechat.base_url = \"http://{address}\"")).await;
    stack.try_login("0a1b2c").await.assert_error(504, "wechat_timeout", "login");
    let request = asked.await.unwrap();
    let expected = format!(
        "GET /sns/oauth2/access_token?appid={APP}&secret={SECRET}&code=0a1b2c&grant_type=authorization_code HTTP/1.1\r\n"
    );
    assert!(request.starts_with(&expected), "{request}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_of_a_snapshot_gets_no_session_and_the_code_is_spent() {
    let stack = mobile("").await;
    for _ in 0..2 {
        let response = stack.try_login("snapshot-alice-1").await;
        response.assert_error(403, "snapshot_user", "none");
    }
    assert_eq!(stack.sandbox.exchanges(), 1, "the outcome is final");
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);
    assert_eq!(stack.metric(&exchanges(APP, "snapshot_user")).await, 1.0);
    let logins = format!("wxgate_logins_total{{app_id=\"{APP}\",outcome=\"snapshot_user\"}}");
    assert_eq!(stack.metric(&logins).await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_show_that_wechat_works_and_never_open_the_circuit_breaker() {
    let stack = mobile("wechat.breaker_failures = 2").await;
    for number in 0..4 {
        let response = stack.try_login(&format!("snapshot-alice-{number}")).await;
        response.assert_error(403, "snapshot_user", "none");
        // A failure between them: the two in a row are never reached.
        let failed = stack.try_login(&format!("drop-{number}")).await;
        failed.assert_error(504, "wechat_timeout", "login");
    }
    assert_eq!(stack.metric("wxgate_wechat_breaker_open").await, 0.0);
    assert_eq!(stack.try_login("user-alice-1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_of_apps_with_redirects_are_not_taken_in_a_login() {
    for kind in ["official_account", "website"] {
        let kind = format!("kind = \"{kind}\"");
        let kinds = [(APP, ""), (OTHER_APP, kind.as_str())];
        let stack = Stack::start_with(&with_kinds(&kinds, "")).await;
        let rejected = log_in(&stack, OTHER_APP, "user-alice-1").await;
        rejected.assert_error(400, "bad_request", "none");
        assert!(
            rejected.text().contains("users of this app log in by a redirect"),
            "{}",
            rejected.text()
        );
        assert_eq!(stack.sandbox.exchanges(), 0);
        // The only app whose clients send codes is the default one.
        let token = stack.login("alice").await;
        assert_eq!(stack.get("/").token(&token).forwarded().await.all("x-appid"), [APP]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_apps_that_send_codes_none_is_the_default() {
    let stack = Stack::start_with(&with_kinds(&[(APP, ""), (OTHER_APP, MOBILE)], "")).await;
    let rejected = stack.try_login("user-alice-1").await;
    rejected.assert_error(400, "bad_request", "none");
    assert!(rejected.text().contains("app_id is missing"), "{}", rejected.text());
    for (app_id, calls) in [(APP, 0), (OTHER_APP, 1)] {
        assert_eq!(log_in(&stack, app_id, &format!("user-{app_id}")).await.status, 200);
        let counted = stack.sandbox.calls().get("/sns/oauth2/access_token").copied();
        assert_eq!(counted.unwrap_or_default(), calls);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_app_has_no_session_key_and_none_is_missed() {
    let stack = mobile(
        "[open_data]\nenabled = true\n[internal]\nlisten = \"127.0.0.1:0\"\ntoken = { file = \"{dir}/any\" }",
    )
    .await;
    let response = stack.try_login("user-alice-1").await;
    assert_eq!(response.status, 200, "{}", response.text());
    let log = process_log::logged(&response);
    assert!(!log.iter().any(|line| line.to_string().contains("session_key")), "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_of_a_native_app_expires_like_one_of_a_mini_program() {
    let stack = mobile("").await;
    let fresh = async || {
        let body = json!({ "user": "alice" });
        let given =
            crate::harness::client::post(stack.wechat_address, "/sandbox/codes", &body).await;
        given.json()["code"].as_str().unwrap().to_owned()
    };
    let (used, old) = (fresh().await, fresh().await);
    stack.clock.advance(Duration::from_secs(299));
    assert_eq!(stack.try_login(&used).await.status, 200);
    stack.clock.advance(Duration::from_secs(1));
    stack.try_login(&old).await.assert_error(401, "invalid_code", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_of_native_apps_wait_in_the_same_queue() {
    let stack = mobile("[wechat]\nmax_in_flight = 1\nqueue_timeout = \"10ms\"").await;
    let held = stack.try_login("hang-1");
    let other = async {
        until("the exchange is in flight", async || stack.sandbox.exchanges() == 1).await;
        stack.try_login("user-alice-1").await.assert_error(503, "wechat_busy", "retry");
    };
    tokio::select! {
        _ = held => panic!("it hangs"),
        () = other => {}
    }
}
