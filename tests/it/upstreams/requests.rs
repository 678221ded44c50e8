//! What a server gets: the `Host`, and bodies with a length.

use super::upstream;
use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::upstream::{Reply, Step, Upstream};

async fn start(keys: &str) -> (Stack, Upstream) {
    let server = Upstream::start().await;
    (Stack::start_with(&upstream(&[server.address], keys)).await, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_the_clients_or_the_servers_or_a_fixed_one() {
    for (keys, expected) in [
        ("", Some("client.example")),
        ("host = \"client\"", Some("client.example")),
        ("host = \"server\"", None),
        ("host = \"shop.example.com\"", Some("shop.example.com")),
    ] {
        let (stack, server) = start(keys).await;
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(b"GET /none HTTP/1.1\r\nHost: client.example\r\n\r\n").await;
        assert_eq!(connection.response(false).await.status, 200);
        let received = server.requests().remove(0);
        let address = server.address.to_string();
        assert_eq!(received.all("host"), [expected.unwrap_or(&address)], "{keys}");
        assert_eq!(received.all("x-forwarded-host"), ["client.example"], "{keys}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_has_the_host_of_its_server() {
    let (sick, well) = (Upstream::start().await, Upstream::start().await);
    sick.reply(|_| Reply::Steps(vec![Step::Reset]));
    let keys = "host = \"server\"\nejection = { failures = 0 }";
    let stack = Stack::start_with(&upstream(&[sick.address, well.address], keys)).await;
    for _ in 0..2 {
        let response = stack.request("PUT", "/none").body("hello").send().await;
        assert_eq!(response.status, 200);
    }
    for received in well.requests() {
        assert_eq!(received.all("host"), [well.address.to_string()]);
        assert_eq!(received.body, b"hello");
    }
    for received in sick.begun_after(0) {
        assert_eq!(received.all("host"), [sick.address.to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_unknown_length_is_collected_and_sent_with_its_length() {
    let (stack, server) = start("buffer_body = \"1KiB\"").await;
    for length in [0, 1, 1024] {
        let body = vec![b'x'; length];
        let response = stack.post("/none").body(body.clone()).chunked().send().await;
        assert_eq!(response.status, 200, "{length}");
        let received = server.requests().pop().unwrap();
        assert_eq!(received.all("content-length"), [length.to_string()]);
        assert_eq!(received.all("transfer-encoding"), Vec::<&str>::new());
        assert!(received.body == body);
    }
    let before = server.requests().len();
    let response = stack.post("/none").body(vec![b'x'; 1025]).chunked().send().await;
    assert_eq!(response.status, 411);
    assert_eq!(response.header("x-wxgate-error"), Some("length_required"));
    assert_eq!(server.begun_after(0).len(), before);
    // With a length, nothing is collected.
    let response = stack.post("/none").body(vec![b'x'; 2000]).send().await;
    assert_eq!(response.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn collected_bodies_share_max_buffered() {
    let (stack, server) =
        start("buffer_body = \"1MiB\"\n[limits]\nmax_buffered = \"128KiB\"").await;
    let metric = "wxgate_buffered_bytes";
    let mut waiting = Connection::open(stack.gateway).await;
    let chunk = format!("ffff\r\n{}\r\n", "x".repeat(0xffff));
    let header = "POST /none HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    waiting.send(format!("{header}{chunk}").as_bytes()).await;
    stack.until_metric(metric, 65_536.0).await;
    let response = stack.post("/none").body(vec![b'x'; 100_000]).chunked().send().await;
    response.assert_error(503, "overloaded", "retry");
    let response = stack.post("/none").body(vec![b'x'; 10_000]).chunked().send().await;
    assert_eq!(response.status, 200);
    stack.until_metric(metric, 65_536.0).await;
    waiting.send(b"0\r\n\r\n").await;
    assert_eq!(waiting.response(false).await.status, 200);
    assert_eq!(server.requests().len(), 2);
    stack.until_metric(metric, 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_after_a_collected_body_is_served() {
    let (stack, server) = start("buffer_body = \"1KiB\"").await;
    let mut connection = Connection::open(stack.gateway).await;
    let first = "POST /none/1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3\r\nabc\r\n0\r\n\r\n";
    let second = "GET /none/2 HTTP/1.1\r\nHost: a\r\n\r\n";
    connection.send(format!("{first}{second}").as_bytes()).await;
    for _ in 0..2 {
        assert_eq!(connection.response(false).await.status, 200);
    }
    let targets: Vec<_> =
        server.requests().iter().map(|received| received.target().to_owned()).collect();
    assert_eq!(targets, ["/none/1", "/none/2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_100_is_told_to_send_a_body_that_is_collected() {
    let (stack, server) = start("buffer_body = \"1KiB\"").await;
    let mut connection = Connection::open(stack.gateway).await;
    let header = "POST /none HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
                  Expect: 100-continue\r\n\r\n";
    connection.send(header.as_bytes()).await;
    assert_eq!(connection.strict_response(false).await.unwrap().status, 100);
    connection.send(b"3\r\nabc\r\n0\r\n\r\n").await;
    assert_eq!(connection.strict_response(false).await.unwrap().status, 200);
    assert_eq!(server.requests().remove(0).body, b"abc");
}
