//! A panic fails only one request.
//!
//! The tests cause it where a failure is logged: see [`PANICS`].

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::harness::client::Connection;
use crate::harness::process_log::{self, PANICS};
use crate::harness::upstream::{Received, Reply};
use crate::harness::{PATIENCE, Stack, unused_address};
use crate::http2::{Client, status};

/// A stack with the service `/panics`, whose failures make requests panic.
async fn stack(panics: std::net::SocketAddr) -> Stack {
    Stack::start_with(&format!(
        r#"
        server.h2c = true
        [[upstream]]
        name = "recorder"
        servers = ["{{upstream}}"]
        [[upstream]]
        name = "{PANICS}"
        servers = ["{panics}"]
        [[route]]
        path = "/none"
        upstream = "recorder"
        auth = "none"
        [[route]]
        path = "/panics"
        upstream = "{PANICS}"
        auth = "none"
        "#
    ))
    .await
}

/// A service that breaks off its only response.
async fn breaks_off() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut header = Vec::new();
        while !header.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut header).await.unwrap();
        }
        let half = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
        stream.write_all(half).await.unwrap();
    });
    address
}

/// Makes the recorder wait for this notice before it replies.
fn waits(stack: &Stack) -> Arc<Notify> {
    let released = Arc::new(Notify::new());
    let reply = released.clone();
    stack.upstream.reply(move |received: &Received| match received.target() {
        "/none/waits" => Reply::When(reply.clone(), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        _ => Reply::ok("", "hello"),
    });
    released
}

const COUNTED: &str = "wxgate_http_requests_total{code=\"500\",route=\"/panics\"}";

#[tokio::test]
async fn a_panic_is_a_500_to_its_client_and_nothing_to_others() {
    let position = process_log::position();
    let stack = stack(unused_address().await).await;
    let released = waits(&stack);
    let mut other = Connection::open(stack.gateway).await;
    other.send(&stack.get("/none/waits").bytes()).await;
    stack.upstream.until_requests(1).await;
    let mut client = Connection::open(stack.gateway).await;
    client.send(&stack.post("/panics").body("body").bytes()).await;
    let response = client.response(false).await;
    response.assert_error(500, "internal_error", "none");
    assert_eq!(response.header("connection"), Some("close"));
    assert!(client.is_closed().await);
    stack.until_metric(COUNTED, 1.0).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    released.notify_one();
    assert_eq!(other.response(false).await.status, 204);
    assert_eq!(stack.get("/none").send().await.status, 200);
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    let request_id = response.header("x-request-id").unwrap();
    let log = process_log::text_after(position);
    let mut lines = log.lines().filter(|line| line.contains(request_id));
    assert!(
        lines.any(|line| line.contains("a request panicked") && line.contains("ERROR")),
        "{log}"
    );
}

#[tokio::test]
async fn a_panic_is_a_500_to_its_stream_and_nothing_to_others() {
    let stack = stack(unused_address().await).await;
    let released = waits(&stack);
    let mut client = Client::open(stack.gateway).await;
    let other = client.get("/none/waits").await;
    stack.upstream.until_requests(1).await;
    assert_eq!(status(client.get("/panics").await).await.unwrap(), 500);
    stack.until_metric(COUNTED, 1.0).await;
    released.notify_one();
    assert_eq!(status(other).await.unwrap(), 204);
    assert_eq!(status(client.get("/none").await).await.unwrap(), 200);
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
}

#[tokio::test]
async fn a_panic_within_a_response_breaks_it_off() {
    let stack = stack(breaks_off().await).await;
    let mut client = Connection::open(stack.gateway).await;
    client.send(&stack.get("/panics").bytes()).await;
    let response = client.response_or_end().await;
    assert!(response.is_none_or(|response| !response.is_whole), "the response looks complete");
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    let log = stack.directory.path().join("access.log");
    let written = async {
        while !std::fs::read_to_string(&log).unwrap().contains("\"error\":\"internal_error\"") {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, written).await.expect("a line in time");
    assert_eq!(stack.get("/none").send().await.status, 200);
}

#[tokio::test]
async fn a_panic_within_a_response_resets_its_stream() {
    let stack = stack(breaks_off().await).await;
    let mut client = Client::open(stack.gateway).await;
    let end = async {
        // Also the header is lost where the reset comes soon after it.
        let mut body = client.get("/panics").await.await?.into_body();
        while body.data().await.transpose()?.is_some() {}
        Ok::<_, h2::Error>(())
    };
    let end = timeout(PATIENCE, end).await.expect("an end in time");
    assert!(end.is_err_and(|error| error.is_reset()), "the response looks complete");
    assert_eq!(status(client.get("/none").await).await.unwrap(), 200);
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
}
