//! How a gateway shuts down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wxgate::server::Command;

use crate::harness::client::{self, Connection};
use crate::harness::command::{Running, write_config, wxgate};
use crate::harness::upstream::Reply;
use crate::harness::{PATIENCE, Stack};

async fn ended(stack: &mut Stack) {
    let ended = tokio::time::timeout(PATIENCE, &mut stack.ended).await;
    ended.expect("an end in time").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_requests_in_flight_and_then_ends() {
    let mut stack = Stack::start().await;
    let release = Arc::new(Notify::new());
    let released = release.clone();
    let late = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate";
    stack.upstream.reply(move |_| Reply::When(released.clone(), late.to_vec()));
    let mut busy = Connection::open(stack.gateway).await;
    busy.send(&stack.get("/none").bytes()).await;
    let mut idle = Connection::open(stack.gateway).await;
    idle.send(&stack.get("/").bytes()).await;
    assert_eq!(idle.response(false).await.status, 401);
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;

    stack.commands.send(Command::Drain).await.unwrap();
    assert!(idle.is_closed().await, "an idle connection ends");
    while tokio::net::TcpStream::connect(stack.gateway).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let readiness = client::get(stack.admin, "/readyz").await;
    assert_eq!(readiness.status, 503, "the admin listener responds until the end");
    assert_eq!(client::get(stack.admin, "/healthz").await.status, 200);
    release.notify_one();
    let response = busy.response(false).await;
    assert_eq!((response.status, response.text().as_str()), (200, "late"));
    assert_eq!(response.header("connection"), Some("close"));
    ended(&mut stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_are_served_during_the_shutdown_delay() {
    let changes = "server.shutdown_delay = \"60s\"\nendpoints.health = \"/health\"";
    let mut stack = Stack::start_with(changes).await;
    let mut kept = Connection::open(stack.gateway).await;
    kept.send(&stack.get("/none").bytes()).await;
    assert_eq!(kept.response(false).await.header("connection"), Some("keep-alive"));

    stack.commands.send(Command::Drain).await.unwrap();
    while client::get(stack.admin, "/readyz").await.status != 503 {
        tokio::task::yield_now().await;
    }
    assert_eq!(stack.get("/health").send().await.status, 503);
    for response in [stack.get("/none").send().await, stack.get("/").send().await] {
        assert_eq!(response.header("connection"), Some("close"));
    }
    kept.send(&stack.get("/none").bytes()).await;
    let response = kept.response(false).await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    assert!(kept.is_closed().await);
    // A second signal to drain stops it at once.
    stack.commands.send(Command::Drain).await.unwrap();
    ended(&mut stack).await;
}

/// Whether a connection that was open before the listeners were closed is served afterwards.
async fn serves_a_last_request() -> bool {
    let mut stack = Stack::start().await;
    let mut new = Connection::open(stack.gateway).await;
    let mut kept = Connection::open(stack.gateway).await;
    kept.send(&stack.get("/none").bytes()).await;
    assert_eq!(kept.response(false).await.header("connection"), Some("keep-alive"));
    let last = stack.get("/none").bytes();
    stack.commands.send(Command::Drain).await.unwrap();
    while tokio::net::TcpStream::connect(stack.gateway).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // Long enough that a connection without a request would be closed by now.
    for _ in 0..50 {
        assert_eq!(client::get(stack.admin, "/readyz").await.status, 503);
    }
    for connection in [&mut new, &mut kept] {
        connection.send(&last).await;
        let Some(response) = connection.response_or_end().await else { return false };
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    }
    ended(&mut stack).await;
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn open_connections_may_begin_a_last_request() {
    // A machine that is busy for a second takes too long.
    let mut is_served = false;
    for _ in 0..3 {
        // A request on a connection that is closed fails in the task.
        is_served = is_served || tokio::spawn(serves_a_last_request()).await.unwrap_or(false);
    }
    assert!(is_served);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_cut_at_its_end() {
    let mut stack = Stack::start_with("server.drain_timeout = \"300ms\"").await;
    stack.upstream.reply(|_| Reply::Stall(Vec::new()));
    let mut busy = Connection::open(stack.gateway).await;
    busy.send(&stack.get("/none").bytes()).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    let started = Instant::now();
    stack.commands.send(Command::Drain).await.unwrap();
    ended(&mut stack).await;
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(busy.response_or_end().await.is_none());
}

/// Even if it is shorter than the time in which connections may begin a last request.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_does_not_use_up_a_short_drain() {
    let directory = tempfile::tempdir().unwrap();
    let changes = "server.drain_timeout = \"800ms\"\nendpoints.health = \"/health\"\n";
    let file = write_config(directory.path(), changes);
    let mut gateway = Running::start(wxgate().args(["run", "-c"]).arg(&file), true);
    let (_, address) = gateway.started();
    let mut idle = Connection::open(address).await;
    idle.send(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(idle.response(false).await.status, 200);
    gateway.signal("TERM");
    assert!(idle.is_closed().await);
    assert_eq!(gateway.code(), 0);
    let log = gateway.read_to_end();
    assert!(log.contains("stopped") && !log.contains("drain ended early"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immediate_stop_waits_for_no_request() {
    let mut stack = Stack::start().await;
    stack.upstream.reply(|_| Reply::Stall(Vec::new()));
    let mut busy = Connection::open(stack.gateway).await;
    busy.send(&stack.get("/none").bytes()).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    stack.commands.send(Command::Stop).await.unwrap();
    ended(&mut stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_without_effect_change_nothing() {
    let stack = Stack::start().await;
    stack.commands.send(Command::Reload).await.unwrap();
    stack.commands.send(Command::HandOver).await.unwrap();
    assert_eq!(stack.get("/none").send().await.status, 200);
    assert_eq!(client::get(stack.admin, "/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incomplete_request_header_does_not_delay_a_drain() {
    let mut stack = Stack::start_with("limits.header_timeout = \"600s\"").await;
    let mut half = Connection::open(stack.gateway).await;
    half.send(&stack.get("/none").bytes()).await;
    assert_eq!(half.response(false).await.status, 200);
    half.send(b"GET /none HTTP/1.1\r\n").await;
    stack.commands.send(Command::Drain).await.unwrap();
    ended(&mut stack).await;
}
