//! Which server of an upstream gets a request, and servers that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Barrier;

use super::upstream;
use crate::harness::client::Connection;
use crate::harness::upstream::Reply;
use crate::harness::{Stack, unused_address};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_connections_is_a_bad_gateway() {
    let unused = unused_address().await;
    let stack = Stack::start_with(&upstream(&format!("[\"{unused}\"]"))).await;
    let response = stack.get("/none").send().await;
    response.assert_error(502, "bad_gateway", "retry");
    let counted = "wxgate_http_requests_total{code=\"502\",route=\"/none\"}";
    stack.until_metric(counted, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_connect_tries_the_next_server_also_for_a_post() {
    let unused = unused_address().await;
    let stack = Stack::start_with(&upstream(&format!("[\"{unused}\", \"{{upstream}}\"]"))).await;
    for _ in 0..6 {
        let received = stack.post("/none").body("payload").forwarded().await;
        assert_eq!(received.body, b"payload");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_used_in_turn() {
    let second = crate::harness::upstream::Upstream::start().await;
    let stack =
        Stack::start_with(&upstream(&format!("[\"{}\", \"{{upstream}}\"]", second.address))).await;
    for _ in 0..10 {
        assert_eq!(stack.get("/none").send().await.status, 200);
    }
    assert_eq!((stack.upstream.requests().len(), second.requests().len()), (5, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn host_names_are_resolved_and_one_that_cannot_be_has_no_server() {
    let stack = Stack::start_with(&upstream("[\"no-such-host.invalid:80\"]")).await;
    let response = stack.get("/none").send().await;
    response.assert_error(503, "no_upstream", "retry");
    assert_eq!(response.header("retry-after"), Some("1"));

    let recorder = crate::harness::upstream::Upstream::start().await;
    let port = recorder.address.port();
    let stack = Stack::start_with(&upstream(&format!("[\"localhost:{port}\"]"))).await;
    assert_eq!(stack.get("/none").send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_a_gateway_timeout() {
    let changes =
        "[[upstream]]\nname = \"recorder\"\nservers = [\"{upstream}\"]\nread_timeout = \"200ms\"";
    let stack = Stack::start_with(changes).await;
    stack.upstream.reply(|_| Reply::Stall(Vec::new()));
    let started = Instant::now();
    stack.get("/none").send().await.assert_error(504, "gateway_timeout", "retry");
    assert!(started.elapsed() >= Duration::from_millis(200));
    stack.post("/none").body("x").send().await.assert_error(504, "gateway_timeout", "retry");
    assert_eq!(stack.upstream.requests().len(), 2, "neither was sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_breaks_off_or_does_not_speak_http_is_a_bad_gateway() {
    let stack = Stack::start().await;
    for garbage in
        ["", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nX-Half: "]
    {
        stack.upstream.reply(move |_| Reply::Last(garbage.into()));
        let response = stack.post("/none").body("x").send().await;
        response.assert_error(502, "bad_gateway", "retry");
    }
    assert_eq!(stack.upstream.requests().len(), 4, "none was sent again");
}

/// As many requests as there are at once, twice.
#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_service_are_kept_for_the_next_many_requests() {
    const AT_ONCE: usize = 200;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let servers = format!("[\"{}\"]", service.local_addr().unwrap());
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    tokio::spawn(async move {
        let all_are_here = Arc::new(Barrier::new(AT_ONCE));
        loop {
            let (mut stream, _) = service.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let all_are_here = all_are_here.clone();
            tokio::spawn(async move {
                let mut read = Vec::new();
                while stream.read_buf(&mut read).await.unwrap() > 0 {
                    if read.ends_with(b"\r\n\r\n") {
                        read.clear();
                        all_are_here.wait().await;
                        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        stream.write_all(response).await.unwrap();
                    }
                }
            });
        }
    });
    let stack = Stack::start_with(&upstream(&servers)).await;
    for _ in 0..2 {
        let mut clients = Vec::new();
        for _ in 0..AT_ONCE {
            let mut client = Connection::open(stack.gateway).await;
            client.send(&stack.get("/none").bytes()).await;
            clients.push(client);
        }
        for client in &mut clients {
            assert_eq!(client.response(false).await.status, 200);
        }
    }
    assert_eq!(opened.load(Ordering::Relaxed), AT_ONCE);
}
