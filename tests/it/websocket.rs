//! WebSockets, on routes that allow them.

use std::time::{Duration, Instant};

use wxgate::server::Command;

use crate::harness::client::{Connection, Request};
use crate::harness::upstream::Reply;
use crate::harness::{Stack, openid};

pub const ROUTES: &str = r#"
    [[route]]
    path = "/"
    upstream = "recorder"
    auth = "required"
    websocket = true
    [[route]]
    path = "/none"
    upstream = "recorder"
    auth = "none"
    websocket = true
    [[route]]
    path = "/plain"
    upstream = "recorder"
    auth = "none"
"#;

/// The response to the example of RFC 6455, section 1.3.
pub const ACCEPTED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

async fn start(changes: &str) -> Stack {
    let stack = Stack::start_with(&format!("{changes}\n{ROUTES}")).await;
    stack.upstream.reply(|_| Reply::Echo(ACCEPTED.to_vec()));
    stack
}

fn handshake(request: Request<'_>) -> Request<'_> {
    request
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
}

pub async fn open(stack: &Stack, path: &str, token: Option<&str>) -> Connection {
    let request = handshake(stack.get(path));
    let request = match token {
        Some(token) => request.token(token),
        None => request,
    };
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&request.bytes()).await;
    let response = connection.response(false).await;
    assert_eq!(response.status, 101);
    assert_eq!(response.header("upgrade"), Some("websocket"));
    assert!(response.header("sec-websocket-accept").is_some());
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_forwards_bytes_in_both_directions_with_a_verified_identity() {
    let stack = start("").await;
    let token = stack.login("alice").await;
    let mut socket = open(&stack, "/chat", Some(&token)).await;
    for size in [1, 100, 200_000] {
        let bytes = vec![b'x'; size];
        let (sent, read) = (bytes.clone(), bytes);
        socket.send(&sent).await;
        assert!(socket.reads(&read).await);
    }
    let received = stack.upstream.requests();
    assert_eq!(received[0].all("x-openid"), [openid("alice")]);
    assert_eq!(received[0].all("upgrade"), ["websocket"]);
    assert_eq!(received[0].folded("x-3rd-session"), [""; 0]);
    drop(socket);
    stack.until_metric("wxgate_http_requests_total{code=\"101\",route=\"/\"}", 1.0).await;
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
}

/// A response that switches protocols has no length (RFC 9110, section 8.6).
#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_handshake_is_not_framed() {
    let stack = start("").await;
    for framing in ["Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n"] {
        let accepted = String::from_utf8_lossy(ACCEPTED)
            .replace("Upgrade: web", &format!("{framing}Upgrade: web"));
        stack.upstream.reply(move |_| Reply::Echo(accepted.clone().into_bytes()));
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&handshake(stack.get("/none")).bytes()).await;
        let response = connection.response(false).await;
        assert_eq!(response.status, 101, "{framing}");
        for name in ["transfer-encoding", "content-length"] {
            assert_eq!(response.header(name), None, "{framing}");
        }
        connection.send(b"more than five bytes").await;
        assert!(connection.reads(b"more than five bytes").await, "{framing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_valid_handshake_on_a_route_that_allows_it_is_forwarded() {
    let stack = start("").await;
    let token = stack.login("alice").await;
    handshake(stack.get("/x")).send().await.assert_error(401, "missing_token", "login");
    for request in [
        handshake(stack.get("/plain")),
        handshake(stack.post("/none")),
        handshake(stack.get("/none")).body("body"),
        handshake(stack.get("/none")).header("Upgrade", "websocket"),
        stack.get("/none").header("Connection", "Upgrade").header("Upgrade", "websocket"),
        handshake(stack.get("/login")),
        handshake(stack.get("/session")).token(&token),
    ] {
        request.send().await.assert_error(400, "bad_request", "none");
    }
    assert!(stack.upstream.requests().is_empty());
}

/// Bytes after a handshake are a request like any other until the service has accepted.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_after_a_handshake_that_is_not_accepted_are_a_request() {
    let stack = start("").await;
    let token = stack.login("alice").await;
    for response in ["200 OK", "403 Forbidden", "426 Upgrade Required"] {
        let header = format!("HTTP/1.1 {response}\r\nContent-Length: 2\r\n\r\nno");
        stack.upstream.reply(move |_| Reply::Bytes(header.clone().into()));
        let before = stack.upstream.requests().len();
        let mut connection = Connection::open(stack.gateway).await;
        let smuggled = stack.get("/admin").bytes();
        let handshake = handshake(stack.get("/chat")).token(&token).bytes();
        connection.send(&[handshake, smuggled].concat()).await;
        assert_eq!(connection.response(false).await.text(), "no");
        if let Some(next) = connection.response_or_end().await {
            next.assert_error(401, "missing_token", "login");
        }
        assert_eq!(stack.upstream.requests().len(), before + 1);
    }
    let wrong = String::from_utf8(ACCEPTED.to_vec()).unwrap().replace("s3pP", "AAAA");
    stack.upstream.reply(move |_| Reply::Echo(wrong.clone().into()));
    let rejected = handshake(stack.get("/chat")).token(&token).send().await;
    rejected.assert_error(502, "bad_gateway", "retry");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_cut_when_its_session_ends() {
    let stack = start("session = { ttl = \"1h\", idle_timeout = \"30m\" }").await;
    let (gone, kept) = (stack.login("alice").await, stack.login("alice").await);
    let mut first = open(&stack, "/chat", Some(&gone)).await;
    let mut second = open(&stack, "/chat", Some(&kept)).await;
    assert_eq!(stack.post("/logout").token(&gone).send().await.status, 204);
    let started = Instant::now();
    assert!(first.is_closed().await);
    assert!(started.elapsed() < Duration::from_secs(5), "soon: {:?}", started.elapsed());
    second.send(b"still there").await;
    assert!(second.reads(b"still there").await);
    stack.clock.advance(Duration::from_secs(30 * 60));
    assert!(second.is_closed().await, "idle for too long");

    let token = stack.login("alice").await;
    let mut third = open(&stack, "/chat", Some(&token)).await;
    stack.clock.advance(Duration::from_secs(29 * 60));
    assert_eq!(stack.get("/session").token(&token).send().await.status, 200);
    stack.clock.advance(Duration::from_secs(29 * 60));
    assert_eq!(stack.get("/session").token(&token).send().await.status, 200);
    third.send(b"alive").await;
    assert!(third.reads(b"alive").await);
    stack.clock.advance(Duration::from_secs(2 * 60));
    assert!(third.is_closed().await, "its absolute end");
}

/// A frame of the client counts as use of its session.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_is_used_keeps_its_session() {
    let stack = start("session = { ttl = \"24h\", idle_timeout = \"30m\" }").await;
    let token = stack.login("alice").await;
    stack.clock.advance(Duration::from_secs(29 * 60));
    let mut socket = open(&stack, "/chat", Some(&token)).await;
    stack.clock.advance(Duration::from_secs(29 * 60));
    socket.send(b"hello").await;
    assert!(socket.reads(b"hello").await);
    // Nothing but the frame has used the session for longer than its idle time.
    stack.clock.advance(Duration::from_secs(29 * 60));
    assert_eq!(stack.get("/session").token(&token).send().await.status, 200);

    // An open socket alone does not count as use.
    let token = stack.login("alice").await;
    let _silent = open(&stack, "/chat", Some(&token)).await;
    stack.clock.advance(Duration::from_secs(31 * 60));
    stack.get("/session").token(&token).send().await.assert_error(401, "session_expired", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_has_an_idle_time_and_a_longest_life() {
    let idle = start("limits.websocket_idle_timeout = \"300ms\"").await;
    let mut socket = open(&idle, "/none", None).await;
    assert!(socket.is_closed().await);
    let short = start("limits.websocket_lifetime = \"400ms\"").await;
    let mut socket = open(&short, "/none", None).await;
    socket.send(b"x").await;
    assert!(socket.reads(b"x").await);
    assert!(socket.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_in_flight_while_draining() {
    let stack = start("server.drain_timeout = \"60s\"").await;
    let mut socket = open(&stack, "/none", None).await;
    stack.commands.send(Command::Drain).await.unwrap();
    while tokio::net::TcpStream::connect(stack.gateway).await.is_ok() {
        tokio::task::yield_now().await;
    }
    socket.send(b"still there").await;
    assert!(socket.reads(b"still there").await);
    assert!(!stack.ended.is_finished());
}

/// A service that reads nothing fills the buffers, and must not delay the close.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_whose_way_is_full_is_cut_all_the_same() {
    let stack = start("").await;
    stack.upstream.reply(|_| Reply::Push(ACCEPTED.to_vec(), b"push".to_vec()));
    let token = stack.login("alice").await;
    let mut socket = open(&stack, "/chat", Some(&token)).await;
    let flood = vec![b'x'; 100 << 20];
    let sent = tokio::time::timeout(Duration::from_secs(1), socket.send(&flood)).await;
    assert!(sent.is_err(), "the buffers are full");
    assert_eq!(stack.post("/logout").token(&token).send().await.status, 204);
    assert!(socket.ends().await);
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    stack.until_metric("wxgate_http_requests_total{code=\"101\",route=\"/\"}", 1.0).await;
}
