//! Which failed requests are sent again, to which server, and how often.

use std::collections::HashSet;
use std::sync::Mutex;

use super::{nobody, upstream};
use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::upstream::{Received, Reply, Step, Upstream};

/// No server is ejected while a test counts requests.
const NO_EJECTION: &str = "ejection = { failures = 0 }\n";

const METHODS: [(&str, bool); 6] = [
    ("GET", true),
    ("OPTIONS", true),
    ("PUT", true),
    ("DELETE", true),
    ("POST", false),
    ("PATCH", false),
];

async fn start(keys: &str) -> (Stack, Upstream, Upstream) {
    let (sick, well) = (Upstream::start().await, Upstream::start().await);
    well.reply(|_| Reply::ok("", "well"));
    let keys = format!("{NO_EJECTION}{keys}");
    let stack = Stack::start_with(&upstream(&[sick.address, well.address], &keys)).await;
    (stack, sick, well)
}

fn reset(server: &Upstream) {
    server.reply(|_| Reply::Steps(vec![Step::Reset]));
}

fn status(server: &Upstream, status: u16) {
    let response = format!("HTTP/1.1 {status} x\r\nContent-Length: 4\r\n\r\nsick");
    server.reply(move |_| Reply::Bytes(response.clone().into()));
}

/// Two requests in turn: at least one of them meets the first server first.
async fn two(stack: &Stack, method: &str) -> Vec<(u16, String)> {
    let mut responses = Vec::new();
    for _ in 0..2 {
        let response = stack.request(method, "/none").send().await;
        responses.push((response.status, response.text()));
    }
    responses.sort();
    responses
}

fn count(server: &Upstream) -> usize {
    server.begun_after(0).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_idempotent_requests_are_sent_again_after_a_reset() {
    for (method, is_idempotent) in METHODS {
        let (stack, sick, well) = start("").await;
        reset(&sick);
        let responses = two(&stack, method).await;
        if is_idempotent {
            assert!(count(&sick) > 0, "{method}");
            assert!(responses.iter().all(|(status, _)| *status == 200), "{method} {responses:?}");
            assert_eq!(count(&well), 2, "{method}");
        } else {
            assert_eq!((responses[0].0, responses[1].0), (200, 502), "{method}");
            assert_eq!((count(&sick), count(&well)), (1, 1), "{method}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_every_method_go_to_another_server_after_a_failed_connect() {
    for (method, _) in METHODS {
        let (dead, _socket) = nobody();
        let well = Upstream::start().await;
        let stack = Stack::start_with(&upstream(&[dead, well.address], NO_EJECTION)).await;
        let responses = two(&stack, method).await;
        assert!(responses.iter().all(|(status, _)| *status == 200), "{method} {responses:?}");
        assert_eq!(count(&well), 2, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_another_server_the_same_one_is_tried_on_new_connections() {
    let server = Upstream::start().await;
    server.reply(|received: &Received| match received.connection {
        0 | 1 => Reply::Steps(vec![Step::Reset]),
        _ => Reply::ok("", "third"),
    });
    let stack = Stack::start_with(&upstream(&[server.address], NO_EJECTION)).await;
    let response = stack.get("/none").send().await;
    assert_eq!((response.status, response.text().as_str()), (200, "third"));
    reset(&server);
    let before = count(&server);
    assert_eq!(stack.get("/none").send().await.status, 502);
    assert_eq!(count(&server) - before, 3, "three attempts");
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_can_be_turned_off_for_an_upstream_and_for_a_route() {
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"none\"\n";
    for (keys, route_keys, attempts) in [
        ("retry = { attempts = 0 }\n", "", 1),
        ("", "retry = { attempts = 0 }\n", 1),
        ("retry = { attempts = 0 }\n", "retry = { attempts = 4 }\n", 5),
        ("retry = { on = [\"connect\"] }\n", "", 1),
        ("retry = { on = [\"connect\"] }\n", "retry = { on = [\"reset\"], attempts = 1 }\n", 2),
    ] {
        let server = Upstream::start().await;
        reset(&server);
        let upstream = upstream(&[server.address], &format!("{NO_EJECTION}{keys}"));
        let stack = Stack::start_with(&format!("{upstream}{route}{route_keys}")).await;
        assert_eq!(stack.get("/").send().await.status, 502);
        assert_eq!(count(&server), attempts, "{keys} {route_keys}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_status_is_retried_and_the_last_response_is_forwarded() {
    for code in [502, 503, 504] {
        let on = format!("retry = {{ on = [\"{code}\"] }}\n");
        let (stack, sick, well) = start(&on).await;
        status(&sick, code);
        let ok = (200, "well".to_owned());
        assert_eq!(two(&stack, "GET").await, [ok.clone(), ok.clone()]);
        let posts = two(&stack, "POST").await;
        assert_eq!(posts, [ok, (code, "sick".to_owned())]);

        status(&well, code);
        let before = count(&sick) + count(&well);
        let response = stack.get("/none").send().await;
        assert_eq!((response.status, response.text().as_str()), (code, "sick"));
        assert_eq!(count(&sick) + count(&well) - before, 3);
        let other = if code == 503 { 502 } else { 503 };
        status(&sick, other);
        status(&well, other);
        let before = count(&sick) + count(&well);
        assert_eq!(stack.get("/none").send().await.status, other);
        assert_eq!(count(&sick) + count(&well) - before, 1, "{other} is not listed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_to_be_retried_is_forwarded_if_no_server_can_be_reached() {
    let (dead, _socket) = nobody();
    let sick = Upstream::start().await;
    status(&sick, 503);
    let keys = format!("{NO_EJECTION}retry = {{ on = [\"503\", \"connect\"], attempts = 1 }}\n");
    let stack = Stack::start_with(&upstream(&[sick.address, dead], &keys)).await;
    assert_eq!(two(&stack, "GET").await, [(503, "sick".to_owned()), (503, "sick".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_sends_nothing_within_per_try_timeout_is_given_up() {
    let (stack, sick, well) = start("retry = { per_try_timeout = \"100ms\" }\n").await;
    sick.reply(|_| Reply::Stall(Vec::new()));
    let ok = (200, "well".to_owned());
    assert_eq!(two(&stack, "GET").await, [ok.clone(), ok]);
    let posts = two(&stack, "POST").await;
    assert_eq!((posts[0].0, posts[1].0), (200, 504));
    assert_eq!(count(&well), 3);
    // Once a byte has come, only read_timeout applies.
    sick.reply(|_| {
        let rest = b"TP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate".to_vec();
        Reply::Steps(vec![Step::Send(b"HT".to_vec()), Step::Drip(rest)])
    });
    assert!(two(&stack, "GET").await.iter().all(|(status, _)| *status == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_sent_again_whole_up_to_its_limit() {
    for (length, is_repeated) in [(0, true), (1, true), (65_536, true), (200_000, false)] {
        for is_chunked in [false, true] {
            let (stack, sick, well) = start("").await;
            reset(&sick);
            for number in 0..2 {
                let body: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
                let request = stack.request("PUT", "/none").body(body.clone());
                let request = if is_chunked { request.chunked() } else { request };
                let before = well.requests().len();
                let response = request.send().await;
                let row = format!("{length} {is_chunked} {number}");
                let requests = well.requests_after(before);
                match &requests[..] {
                    [received] => {
                        assert_eq!(response.status, 200, "{row}");
                        assert!(received.body == body, "{row}");
                    }
                    _ => {
                        assert!(!is_repeated, "{row}");
                        assert_eq!(response.status, 502, "{row}");
                    }
                }
            }
            assert!(count(&sick) > 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_still_arriving_is_sent_again_and_continued() {
    let (stack, sick, well) = start("").await;
    sick.respond_early(true);
    sick.reply(|_| Reply::Steps(vec![Step::Until(b"first".to_vec()), Step::Reset]));
    for _ in 0..2 {
        let mut connection = Connection::open(stack.gateway).await;
        let header = "PUT /none HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nfirst";
        let (from_sick, from_well) = (count(&sick), count(&well));
        connection.send(header.as_bytes()).await;
        let begun = async || count(&sick) > from_sick || count(&well) > from_well;
        crate::harness::until("the request is forwarded", begun).await;
        connection.send(b" second").await;
        let response = connection.response(false).await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let bodies: Vec<_> = well.requests().into_iter().map(|received| received.body).collect();
    assert_eq!(bodies, [b"first second", b"first second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_after_resets_are_limited_to_a_share_of_the_requests() {
    let server = Upstream::start().await;
    reset(&server);
    let keys = format!("{NO_EJECTION}retry = {{ budget = \"0%\", attempts = 1 }}\n");
    let stack = Stack::start_with(&upstream(&[server.address], &keys)).await;
    for _ in 0..15 {
        assert_eq!(stack.get("/none").send().await.status, 502);
    }
    assert_eq!(count(&server), 15 + 10, "ten retries are always allowed");
    let refused = "wxgate_upstream_retries_total{outcome=\"no_budget\",upstream=\"recorder\"}";
    assert_eq!(stack.metric(refused).await, 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_limits_the_time_of_the_whole_exchange() {
    let server = Upstream::start().await;
    server.reply(|received| match received.target() {
        "/none/silent" => Reply::Stall(Vec::new()),
        _ => Reply::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart".to_vec()),
    });
    let route = "[[route]]\npath = \"/none\"\nupstream = \"recorder\"\nauth = \"none\"\n\
                 timeout = \"200ms\"\n";
    let upstream = upstream(&[server.address], "");
    let stack = Stack::start_with(&format!("{upstream}{route}")).await;
    let response = stack.get("/none/silent").send().await;
    assert_eq!(response.status, 504);
    assert_eq!(response.header("x-wxgate-error"), Some("gateway_timeout"));
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"GET /none/part HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let response = connection.strict_response(false).await;
    assert!(!response.unwrap().is_whole, "the response is broken off");
    assert_eq!(count(&server), 2, "it is not retried");
}

/// It serves one request on a connection, and closes it without a response when the next one comes.
/// Without memory of that, every second POST would fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_not_sent_on_a_connection_that_its_server_may_have_closed() {
    let server = Upstream::start().await;
    let used = Mutex::new(HashSet::new());
    server.reply(move |received: &Received| {
        match used.lock().unwrap().insert(received.connection) {
            true => Reply::ok("", "first"),
            false => Reply::Steps(vec![Step::Close]),
        }
    });
    let stack = Stack::start_with(&upstream(&[server.address], NO_EJECTION)).await;
    let mut connection = Connection::open(stack.gateway).await;
    let mut failed = 0;
    for _ in 0..100 {
        let post = "POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        connection.send(post.as_bytes()).await;
        failed += usize::from(connection.response(false).await.status != 200);
    }
    // Each failure at least halves the time for which a connection is used.
    assert!((1..20).contains(&failed), "{failed}");
}
