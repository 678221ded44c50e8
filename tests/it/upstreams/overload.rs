//! Limits on what the servers of an upstream are given, and the queue before them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::{get_all, upstream};
use crate::harness::client::{Connection, get};
use crate::harness::upstream::{Reply, Step, Upstream};
use crate::harness::{Stack, until};

const PENDING: &str = "wxgate_upstream_pending{upstream=\"recorder\"}";

const PATIENT: &str = "pending_timeout = \"20s\"";

/// A stack whose service serves `/none/slow` when it is notified, and the rest at once.
async fn start(keys: &str) -> (Stack, Arc<Notify>) {
    let keys = format!("[[upstream]]\nname = \"recorder\"\nservers = [\"{{upstream}}\"]\n{keys}\n");
    let stack = Stack::start_with(&keys).await;
    let released = Arc::new(Notify::new());
    let slow = released.clone();
    let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow";
    stack.upstream.reply(move |request| match request.target() {
        "/none/slow" => Reply::When(slow.clone(), reply.to_vec()),
        _ => Reply::ok("", "fast"),
    });
    (stack, released)
}

async fn begin(stack: &Stack, path: &str) -> Connection {
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&stack.get(path).bytes()).await;
    connection
}

/// Begins a request that takes a place.
async fn take_place(stack: &Stack) -> Connection {
    let before = stack.upstream.begun_after(0).len();
    let held = begin(stack, "/none/slow").await;
    until("the request", async || stack.upstream.begun_after(0).len() > before).await;
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_max_connections_wait_in_order() {
    let (stack, released) = start(&format!("max_connections = 1\n{PATIENT}")).await;
    let mut held = take_place(&stack).await;
    let mut waiting = Vec::new();
    for number in 0..5 {
        waiting.push(begin(&stack, &format!("/none/{number}")).await);
        stack.until_metric(PENDING, f64::from(number + 1)).await;
    }
    assert_eq!(stack.upstream.begun_after(0).len(), 1);
    released.notify_one();
    assert_eq!(held.response(false).await.text(), "slow");
    for connection in &mut waiting {
        assert_eq!(connection.response(false).await.text(), "fast");
    }
    let requests = stack.upstream.requests();
    let targets: Vec<_> = requests.iter().map(|request| request.target()).collect();
    let expected = ["/none/slow", "/none/0", "/none/1", "/none/2", "/none/3", "/none/4"];
    assert_eq!(targets, expected);
    assert!(requests.iter().all(|request| request.connection == 0), "one connection is enough");
    stack.until_metric(PENDING, 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_too_long_or_finds_the_queue_full_is_overloaded() {
    let keys = "max_connections = 1\nmax_pending = 1\npending_timeout = \"300ms\"";
    let (stack, released) = start(keys).await;
    let mut held = take_place(&stack).await;
    let started = Instant::now();
    let mut waiting = begin(&stack, "/none/waits").await;
    stack.until_metric(PENDING, 1.0).await;
    let response = stack.get("/none/full").send().await;
    response.assert_error(503, "overloaded", "retry");
    assert!(response.header("retry-after").is_some());
    let response = waiting.response(false).await;
    response.assert_error(503, "overloaded", "retry");
    assert!(started.elapsed() >= Duration::from_millis(300));
    stack.until_metric(PENDING, 0.0).await;
    released.notify_one();
    assert_eq!(held.response(false).await.status, 200);
    get_all(&stack, 2).await;
    assert_eq!(stack.upstream.requests().len(), 3, "nothing else was forwarded");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_queue_requests_are_rejected_at_once() {
    let (stack, _released) = start("max_connections = 1\nmax_pending = 0").await;
    let _held = take_place(&stack).await;
    stack.get("/none").send().await.assert_error(503, "overloaded", "retry");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_place_in_the_queue_at_once() {
    let (stack, released) = start(&format!("max_connections = 1\n{PATIENT}")).await;
    let mut held = take_place(&stack).await;
    let leaving = begin(&stack, "/none/leaves").await;
    stack.until_metric(PENDING, 1.0).await;
    let mut staying = begin(&stack, "/none/stays").await;
    stack.until_metric(PENDING, 2.0).await;
    drop(leaving);
    stack.until_metric(PENDING, 1.0).await;
    released.notify_one();
    assert_eq!(held.response(false).await.status, 200);
    assert_eq!(staying.response(false).await.status, 200);
    assert!(stack.upstream.requests().iter().all(|one| one.target() != "/none/leaves"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_freed_by_a_client_that_leaves_and_by_a_connection_that_closes() {
    let (stack, _released) = start(&format!("max_connections = 1\n{PATIENT}")).await;
    let held = take_place(&stack).await;
    let mut waiting = begin(&stack, "/none/next").await;
    stack.until_metric(PENDING, 1.0).await;
    drop(held);
    assert_eq!(waiting.response(false).await.status, 200);
    // A connection that serves no other request.
    stack.upstream.reply(|_| Reply::Last(b"HTTP/1.1 200 OK\r\n\r\nlast".to_vec()));
    get_all(&stack, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_takes_a_place_until_it_ends() {
    let route = "[[route]]\npath = \"/none\"\nupstream = \"recorder\"\nauth = \"none\"\n\
                 websocket = true\n";
    let keys = format!("max_connections = 1\n{PATIENT}\n{route}");
    let (stack, _released) = start(&keys).await;
    stack.upstream.reply(|request| match request.target() {
        "/none/ws" => Reply::Echo(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
                .to_vec(),
        ),
        _ => Reply::ok("", ""),
    });
    let handshake = stack.get("/none/ws").header("Connection", "Upgrade");
    let handshake = handshake.header("Upgrade", "websocket").header("Sec-WebSocket-Version", "13");
    let handshake = handshake.header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let mut socket = Connection::open(stack.gateway).await;
    socket.send(&handshake.bytes()).await;
    assert_eq!(socket.response(false).await.status, 101);
    let mut waiting = begin(&stack, "/none").await;
    stack.until_metric(PENDING, 1.0).await;
    drop(socket);
    assert_eq!(waiting.response(false).await.status, 200);
}

/// Its own first connection must not stand in its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_has_the_place_of_the_attempt_before() {
    let (stack, _released) = start("max_connections = 1\nmax_pending = 0").await;
    stack.upstream.reply(|request| match request.connection {
        0 => Reply::Steps(vec![Step::Reset]),
        _ => Reply::ok("", ""),
    });
    get_all(&stack, 2).await;
    assert_eq!(stack.upstream.begun_after(0).len(), 3);
}

/// The response is there already; a better one is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_a_status_does_not_wait_for_a_place() {
    let keys = format!("max_connections = 1\n{PATIENT}\n[upstream.retry]\non = [\"503\"]\n");
    let (stack, _released) = start(&keys).await;
    let reply = b"HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nbusy";
    stack.upstream.reply(|_| Reply::Bytes(reply.to_vec()));
    let response = stack.get("/none").send().await;
    assert_eq!((response.status, response.text().as_str()), (503, "busy"));
    assert_eq!(stack.upstream.requests().len(), 1);
    let other = Upstream::start().await;
    let servers = [stack.upstream.address, other.address];
    assert!(stack.reload(&upstream(&servers, &keys)).await);
    get_all(&stack, 4).await;
    assert_eq!(other.requests().len(), 4);
}

/// Serves requests, and returns its address and the largest number of its connections.
async fn counting_service() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = most.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let open = open.clone();
            tokio::spawn(async move {
                let mut read = vec![0; 4096];
                while matches!(stream.read(&mut read).await, Ok(1..)) {
                    // Requests of several clients come together.
                    for _ in 0..20 {
                        tokio::task::yield_now().await;
                    }
                    let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    if stream.write_all(reply).await.is_err() {
                        break;
                    }
                }
                // Before the gateway can notice that it is closed.
                open.fetch_sub(1, Ordering::SeqCst);
                drop(stream);
            });
        }
    });
    (address, most)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_is_for_all_workers_together() {
    let (one, most_of_one) = counting_service().await;
    let (other, most_of_other) = counting_service().await;
    let changes = upstream(&[one, other], &format!("max_connections = 2\n{PATIENT}"));
    let stack = Stack::start_with(&format!("server.threads = 4\n{changes}")).await;
    let clients: Vec<_> = (0..24)
        .map(|_| {
            let gateway = stack.gateway;
            tokio::spawn(async move {
                for _ in 0..20 {
                    assert_eq!(get(gateway, "/none").await.status, 200);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(most_of_one.load(Ordering::SeqCst), 2);
    assert_eq!(most_of_other.load(Ordering::SeqCst), 2);
    stack.until_metric(PENDING, 0.0).await;
}

/// Requests that wait do so behind the limit of the new configuration, but are not forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_requests_survive_a_reload() {
    let (stack, released) = start(&format!("max_connections = 1\n{PATIENT}")).await;
    let mut held = take_place(&stack).await;
    let mut waiting = begin(&stack, "/none/before").await;
    stack.until_metric(PENDING, 1.0).await;
    let servers = [stack.upstream.address];
    let keys = format!("max_connections = 1\nread_timeout = \"50s\"\n{PATIENT}");
    assert!(stack.reload(&upstream(&servers, &keys)).await);
    let mut after = begin(&stack, "/none/after").await;
    stack.until_metric(PENDING, 2.0).await;
    released.notify_one();
    for connection in [&mut held, &mut waiting, &mut after] {
        assert_eq!(connection.response(false).await.status, 200);
    }
    let requests = stack.upstream.requests();
    let targets: Vec<_> = requests.iter().map(|request| request.target()).collect();
    assert_eq!(targets, ["/none/slow", "/none/before", "/none/after"]);
}
