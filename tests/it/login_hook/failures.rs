//! Hooks that are wrong, slow, hung or cannot be reached.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use wxgate::server::Command;

use super::fake::{FakeHook, section};
use super::{forwarded_id, logins, requests};
use crate::harness::certificate::Authority;
use crate::harness::client::Response;
use crate::harness::process_log::logged;
use crate::harness::{PATIENCE, Stack, openid, serve_bytes, unused_address};

const SHORT: &str = "login.hook.timeout = \"300ms\"\n";

/// What clients get if the hook fails.
#[track_caller]
fn assert_unavailable(response: &Response) {
    response.assert_error(503, "login_unavailable", "login");
    let seconds: u32 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&seconds), "{seconds}");
}

/// The one error that was logged about a login.
#[track_caller]
fn error(response: &Response) -> String {
    let lines = logged(response);
    let errors: Vec<_> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(errors.len(), 1, "{lines:?}");
    let fields = &errors[0]["fields"];
    for hidden in ["/hook", "key=", "member", &openid("alice")] {
        assert!(!fields.to_string().contains(hidden), "{fields}");
    }
    fields["error"].as_str().unwrap().to_owned()
}

/// Logs in with a hook at a URL, which must fail, and returns what was logged.
async fn failure_at(url: &str, outcome: &str) -> String {
    let stack = Stack::start_with(&section(url, SHORT)).await;
    let response = stack.try_login("user-alice-1").await;
    assert_unavailable(&response);
    assert_eq!(stack.metric(&requests(outcome)).await, 1.0, "{outcome}");
    assert_eq!(stack.metric(&logins("login_unavailable")).await, 1.0);
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);
    error(&response)
}

/// Sends these bytes to each client and keeps the connection open.
async fn stall_after(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = [0; 4096];
            let _ = stream.read(&mut read).await;
            let _ = stream.write_all(bytes).await;
            kept.push(stream);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_that_is_not_documented_is_a_failure() {
    let elsewhere = FakeHook::start().await;
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section("")).await;
    let location = format!("http://{}/", elsewhere.address);
    let large = format!("{{\"user_id\":\"1\",\"x\":\"{}\"}}", "x".repeat(16 << 10));
    let mut number = 0;
    for (status, body, cause) in [
        (201, "{\"user_id\":\"1\"}", "HTTP status 201"),
        (301, "", "HTTP status 301; redirects are not followed"),
        (307, "", "HTTP status 307; redirects are not followed"),
        (400, "", "HTTP status 400"),
        (401, "{\"message\":\"no\"}", "HTTP status 401"),
        (404, "", "HTTP status 404"),
        (500, "{\"user_id\":\"1\"}", "HTTP status 500"),
        (503, "", "HTTP status 503"),
        (200, "", "the response is not"),
        (200, "<html>", "the response is not"),
        (200, "[]", "the response is not"),
        (200, "{\"user_id\":7}", "the response is not"),
        (200, "{\"user_id\":\"a b\"}", "user_id is not"),
        (200, "{\"user_id\":\"\"}", "user_id is not"),
        (200, "{\"user_id\":\"名\"}", "user_id is not"),
        (200, &large, "larger than 16 KiB"),
    ] {
        let headers = vec![("location", location.clone())];
        hook.answers_with(status, headers, body);
        let code = format!("user-alice-{number}");
        number += 1;
        let response = stack.try_login(&code).await;
        assert_unavailable(&response);
        assert!(error(&response).contains(cause), "{}", error(&response));
        // The next one is logged again.
        stack.clock.advance(Duration::from_secs(60));
    }
    assert_eq!(hook.calls().len(), number);
    assert_eq!(elsewhere.calls().len(), 0, "redirects are not followed");
    assert_eq!(stack.metric(&requests("malformed")).await, number as f64);
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);
    let count = stack.metric("wxgate_login_hook_duration_seconds_count").await;
    assert_eq!(count, number as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_is_spent_by_a_failure_which_is_not_repeated_as_an_outcome() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section("")).await;
    hook.answers(500, "");
    assert_unavailable(&stack.try_login("user-alice-1").await);
    hook.answers(200, "{}");
    stack.try_login("user-alice-1").await.assert_error(401, "invalid_code", "login");
    assert_eq!(stack.try_login("user-alice-2").await.status, 200);
    assert_eq!(hook.calls().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_hook_delays_a_login_by_its_timeout_only() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section(SHORT)).await;
    hook.hold();
    let begun = Instant::now();
    let response = stack.try_login("user-alice-1").await;
    let took = begun.elapsed();
    assert_unavailable(&response);
    assert!(took >= Duration::from_millis(300) && took < PATIENCE, "{took:?}");
    assert!(error(&response).contains("login.hook.timeout"), "{}", error(&response));
    assert_eq!(stack.metric(&requests("timeout")).await, 1.0);
    hook.release();
    assert_eq!(stack.try_login("user-alice-2").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_stalls_is_a_timeout_and_a_refusal_that_stalls_is_a_refusal() {
    let header = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"user_id\"";
    let stalled = stall_after(header).await;
    failure_at(&format!("http://{stalled}"), "timeout").await;

    let refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 20\r\n\r\n{\"message\"";
    let stalled = stall_after(refusal).await;
    let changes = format!("{SHORT}login.hook.on_failure = \"allow\"\n");
    let stack = Stack::start_with(&section(&format!("http://{stalled}"), &changes)).await;
    let response = stack.try_login("user-alice-1").await;
    response.assert_error(403, "login_refused", "none");
    assert_eq!(stack.metric(&requests("refused")).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_hook_fits_in_the_time_of_a_login() {
    // Longer than all other times of a login together.
    let times = "wechat.timeout = \"200ms\"\nwechat.connect_timeout = \"90ms\"\n\
                 wechat.queue_timeout = \"50ms\"\nlogin.hook.timeout = \"20s\"\n";
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section(times)).await;
    hook.hold();
    let late = tokio::sync::Notify::new();
    let (first, second, ()) = tokio::join!(
        stack.try_login("user-alice-1"),
        async {
            late.notified().await;
            stack.try_login("user-alice-1").await
        },
        async {
            hook.until_calls(1).await;
            // Without the time of the hook, the login would be forgotten by now.
            tokio::time::sleep(Duration::from_millis(700)).await;
            late.notify_one();
            stack.until_metric("wxgate_http_requests_in_flight", 2.0).await;
            hook.release();
        }
    );
    assert_eq!((first.status, second.status), (200, 200), "{}", first.text());
    assert_eq!((hook.calls().len(), stack.sandbox.exchanges()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_waits_for_the_hook_is_finished_while_draining() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section("")).await;
    hook.hold();
    let (response, ()) = tokio::join!(stack.try_login("user-alice-1"), async {
        hook.until_calls(1).await;
        stack.commands.send(Command::Drain).await.unwrap();
        while tokio::net::TcpStream::connect(stack.gateway).await.is_ok() {
            tokio::task::yield_now().await;
        }
        hook.release();
    });
    assert_eq!(response.status, 200, "{}", response.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_cannot_be_reached_or_closes_is_a_failure_of_the_transport() {
    let nowhere = unused_address().await;
    let refused = failure_at(&format!("http://{nowhere}"), "transport").await;
    assert_eq!(refused, "connection refused");
    for bytes in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"user_id\":\"1\"}"] {
        let closes = serve_bytes(bytes).await;
        let closed = failure_at(&format!("http://{closes}"), "transport").await;
        assert_eq!(closed, "connection closed");
    }
    let other = serve_bytes(b"SSH-2.0-x\r\n\r\n").await;
    let malformed = failure_at(&format!("http://{other}"), "malformed").await;
    assert_eq!(malformed, "the response is not HTTP");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_whose_certificate_is_not_trusted_is_not_called() {
    let issued = Authority::root("not of this machine").issue(&["localhost", "127.0.0.1"]);
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(issued.key.serialize_der()));
    crate::harness::install_provider();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![issued.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let received = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = received.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let mut read = [0; 4096];
                let bytes = stream.read(&mut read).await.unwrap_or_default();
                count.fetch_add(bytes, std::sync::atomic::Ordering::SeqCst);
            }
        }
    });
    let error = failure_at(&format!("https://localhost:{port}"), "transport").await;
    assert!(error.contains("certificate: unknown issuer"), "{error}");
    assert_eq!(received.load(std::sync::atomic::Ordering::SeqCst), 0);
    // A server without TLS.
    let plain = FakeHook::start().await;
    let url = format!("https://localhost:{}", plain.address.port());
    let error = failure_at(&url, "transport").await;
    assert!(error.contains("TLS"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_allow_a_failure_makes_a_session_without_an_id_and_a_refusal_none() {
    let hook = FakeHook::start().await;
    let changes = "login.hook.on_failure = \"allow\"\nlogin.hook.timeout = \"300ms\"\n";
    let stack = Stack::start_with(&hook.section(changes)).await;
    hook.answers(200, "{\"user_id\":\"a b\"}");
    let response = stack.try_login("user-alice-1").await;
    assert_eq!(response.status, 200, "{}", response.text());
    let token = response.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(forwarded_id(&stack, &token).await, [""; 0]);
    let lines = logged(&response);
    let warned: Vec<_> = lines.iter().filter(|line| line["level"] == "WARN").collect();
    assert_eq!(warned.len(), 1, "{lines:?}");
    hook.hold();
    assert_eq!(stack.try_login("user-alice-2").await.status, 200);
    hook.release();
    hook.answers(403, &json!({ "message": "no" }).to_string());
    stack.try_login("user-alice-3").await.assert_error(403, "login_refused", "none");
    hook.answers(200, "{\"user_id\":\"member-9\"}");
    let token = stack.login("alice").await;
    assert_eq!(forwarded_id(&stack, &token).await, ["member-9"]);
    for (outcome, count) in [("malformed", 1.0), ("timeout", 1.0), ("refused", 1.0), ("ok", 1.0)] {
        assert_eq!(stack.metric(&requests(outcome)).await, count, "{outcome}");
    }
    assert_eq!(stack.metric(&logins("ok")).await, 3.0);
}
