//! What is logged about requests that fail, and how often.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;

use crate::harness::client::{Connection, Response};
use crate::harness::command::Running;
use crate::harness::redis::RedisServer;
use crate::harness::upstream::Reply;
use crate::harness::{Stack, config_text, process_log};
use crate::shared_store::{gateway, url};

/// The fields of the process's log lines for a request.
fn lines_of(response: &Response) -> Vec<Value> {
    let request_id = response.header("x-request-id").unwrap();
    let log = process_log::text_after(0);
    let lines = log.lines().filter(|line| line.contains(request_id));
    lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["fields"].clone()).collect()
}

fn upstream(servers: &str, more: &str) -> String {
    format!("[[upstream]]\nname = \"recorder\"\nservers = {servers}\n{more}")
}

/// An address that refuses connections, reserved while the socket is there.
fn nobody() -> (std::net::SocketAddr, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    (socket.local_addr().unwrap().as_socket().unwrap(), socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_request_is_logged_with_upstream_server_and_cause() {
    let (nobody, _taken) = nobody();
    let stack = Stack::start_with(&upstream(&format!("[\"{nobody}\"]"), "")).await;
    let response = stack.get("/none").send().await;
    response.assert_error(502, "bad_gateway", "retry");
    let [line] = &lines_of(&response)[..] else { panic!("{:?}", lines_of(&response)) };
    assert_eq!(line["message"], "request failed");
    assert_eq!(line["route"], "/none");
    assert_eq!(line["upstream"], "recorder");
    assert_eq!(line["server"], nobody.to_string());
    assert_eq!(line["cause"], "connection refused");
    assert_eq!(line.get("reused"), None);

    let stack = Stack::start_with(&upstream("[\"no-such-host.invalid:80\"]", "")).await;
    let response = stack.get("/none").send().await;
    response.assert_error(503, "no_upstream", "retry");
    let [line] = &lines_of(&response)[..] else { panic!("{:?}", lines_of(&response)) };
    assert_eq!(line["upstream"], "recorder");
    assert_eq!(line.get("server"), None);
    assert_eq!(line["cause"], "the upstream has no known address");
}

/// Its queue is full, so that the connection is never accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_connect_timeout_is_logged_with_its_length() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    socket.listen(1).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let filling = || {
        let filler =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&address.into());
        filler
    };
    let _fillers: Vec<_> = std::iter::repeat_with(filling).take(4).collect();
    let changes = upstream(&format!("[\"{address}\"]"), "connect_timeout = \"1500ms\"");
    let stack = Stack::start_with(&changes).await;
    let response = stack.get("/none").send().await;
    response.assert_error(504, "gateway_timeout", "retry");
    assert_eq!(lines_of(&response)[0]["cause"], "connect timed out (connect_timeout 1s 500ms)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_response_is_logged_with_the_reason_and_the_header_line() {
    let changes = upstream("[\"{upstream}\"]", "read_timeout = \"300ms\"");
    let secret = "a-secret-in-a-value";
    for (reply, cause) in [
        (Reply::Last(vec![]), "connection closed before a response"),
        (
            Reply::Last(b"HTTP/1.1 200 OK\r\nX-Ha".to_vec()),
            "connection closed within the response header",
        ),
        (Reply::Stall(vec![]), "no response within read_timeout (300ms)"),
        (Reply::Last(b"SSH-2.0-OpenSSH\r\n".to_vec()), "response header malformed: status line"),
        (Reply::Last(b"HTTP/1.1 abc\r\n\r\n".to_vec()), "response header malformed: status line"),
        (
            Reply::Last(
                format!("HTTP/1.1 200 OK\r\nX-One: 1\r\nX-Two: {secret}\0\r\n\r\n").into_bytes(),
            ),
            "response header malformed: X-Two (control character in the value)",
        ),
        (
            Reply::Last(format!("HTTP/1.1 200 OK\r\nX-One: 1\r\n{secret}\r\n\r\n").into_bytes()),
            "response header malformed: line 3 (no colon)",
        ),
        (
            Reply::Last(format!("HTTP/1.1 200 OK\r\nX {secret}: 1\r\n\r\n").into_bytes()),
            "response header malformed: line 2 (not a header name)",
        ),
        (
            Reply::Last(
                format!("HTTP/1.1 200 OK\r\n{}", "X-Many: 1\r\n".repeat(300) + "\r\n").into_bytes(),
            ),
            "response header malformed: too many header lines",
        ),
        (
            Reply::Last(
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".to_vec(),
            ),
            "response header rejected: Content-Length is invalid or has several values",
        ),
        (
            Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabcd".to_vec()),
            "response header rejected: Content-Length is invalid or has several values",
        ),
        (
            Reply::Last(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                  Upgrade: websocket\r\n\r\n"
                    .to_vec(),
            ),
            "response header rejected: Upgrade (101 without a WebSocket handshake)",
        ),
    ] {
        let stack = Stack::start_with(&changes).await;
        stack.upstream.reply(move |_| reply.clone());
        let response = stack.get("/none").send().await;
        assert!(response.status >= 502, "{cause}: {response:?}");
        let [line] = &lines_of(&response)[..] else { panic!("{cause}: {:?}", lines_of(&response)) };
        assert_eq!(line["cause"], cause);
        assert_eq!(line["server"], stack.upstream.address.to_string());
        assert!(!line.to_string().contains(secret), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_off_is_logged_as_begun() {
    let changes = upstream("[\"{upstream}\"]", "read_timeout = \"300ms\"");
    for (reply, cause) in [
        (
            Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec()),
            "connection closed before the end of the response body",
        ),
        (
            Reply::Last(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n".to_vec(),
            ),
            "connection closed before the end of the response body",
        ),
        (
            Reply::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec()),
            "response body stalled for read_timeout (300ms)",
        ),
        (
            Reply::Last(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n".to_vec()),
            "response body malformed: chunked encoding",
        ),
    ] {
        let stack = Stack::start_with(&changes).await;
        stack.upstream.reply(move |_| reply.clone());
        let response = stack.get("/none").send().await;
        assert!(!response.is_whole, "{cause}: {response:?}");
        let [line] = &lines_of(&response)[..] else { panic!("{cause}: {:?}", lines_of(&response)) };
        assert_eq!(line["cause"], cause);
    }
}

/// A POST is not sent again; the service's keep-alive timeout may have closed the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_on_a_reused_connection_is_logged_as_such() {
    let stack = Stack::start().await;
    assert_eq!(stack.get("/none").send().await.status, 200);
    stack.upstream.reply(|_| Reply::Last(vec![]));
    let response = stack.post("/none").body("x").send().await;
    response.assert_error(502, "bad_gateway", "retry");
    let lines = lines_of(&response);
    assert_eq!(lines[0]["cause"], "connection closed before a response");
    assert_eq!(lines[0]["reused"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_upstream_is_down_one_line_a_minute_counts_the_requests() {
    let (nobody, _taken) = nobody();
    let position = process_log::position();
    let stack = Stack::start_with(&upstream(&format!("[\"{nobody}\"]"), "")).await;
    for _ in 0..20 {
        stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    }
    assert_eq!(process_log::logged_about(&nobody, position).len(), 1);
    stack.clock.advance(Duration::from_secs(60));
    stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    let lines = process_log::logged_about(&nobody, position);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["fields"]["suppressed"], 19);
}

/// The service chooses the names in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_ever_other_faults_fills_no_log_and_hides_no_other_upstream() {
    let (nobody, _taken) = nobody();
    let changes = upstream("[\"{upstream}\"]", "")
        + &format!(
            "[[upstream]]\nname = \"gone\"\nservers = [\"{nobody}\"]\n\
             [[route]]\npath = \"/none\"\nupstream = \"recorder\"\nauth = \"none\"\n\
             [[route]]\npath = \"/gone\"\nupstream = \"gone\"\nauth = \"none\"\n"
        );
    let stack = Stack::start_with(&changes).await;
    let position = process_log::position();
    stack.upstream.reply(|_| {
        let name: u64 = rand::random();
        Reply::Last(format!("HTTP/1.1 200 OK\r\nX-{name}: \0\r\n\r\n").into_bytes())
    });
    for _ in 0..1100 {
        stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    }
    stack.get("/gone").send().await.assert_error(502, "bad_gateway", "retry");
    assert_eq!(process_log::logged_about(&nobody, position).len(), 1);
    let lines = process_log::logged_about(&stack.upstream.address, position).len();
    assert!((1..=16).contains(&lines), "{lines}");
}

/// The other servers serve all requests, so that nothing else shows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_passed_over_is_logged_once_a_minute() {
    let (nobody, _taken) = nobody();
    let position = process_log::position();
    let servers = format!("[\"{nobody}\", \"{{upstream}}\"]");
    let stack = Stack::start_with(&upstream(&servers, "")).await;
    for _ in 0..10 {
        assert_eq!(stack.get("/none").send().await.status, 200);
    }
    let mut lines = process_log::logged_about(&nobody, position);
    lines.retain(|line| line["fields"]["message"] == "an attempt failed, trying another server");
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["fields"]["cause"], "connection refused");
}

/// Otherwise clients could fill the log.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_clients_get_wrong_are_no_warnings() {
    let stack = Stack::start_with("limits.max_body = \"1KiB\"").await;
    let response = stack.post("/none").body(vec![b'x'; 5000]).chunked().send().await;
    response.assert_error(413, "body_too_large", "none");
    assert_eq!(lines_of(&response), [Value::Null; 0]);
    let mut connection = Connection::open(stack.gateway).await;
    let request = "GET /none HTTP/1.1\r\nHost: h\r\nConnection: close, cookie\r\n\r\n";
    connection.send(request.as_bytes()).await;
    if let Some(response) = connection.response_or_end().await {
        assert_eq!(lines_of(&response), [Value::Null; 0], "{response:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_while_the_store_is_down_are_one_line_a_minute() {
    let mut store = RedisServer::start();
    let stack = gateway(&url(&store), "").await;
    store.kill();
    let mut logged = Vec::new();
    for number in 0..20 {
        let response = stack.try_login(&format!("user-anna-{number}")).await;
        response.assert_error(503, "store_unavailable", "retry");
        logged.extend(lines_of(&response));
    }
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert_eq!(logged[0]["message"], "cannot store a session");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_system_refuses_are_logged_and_not_each() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let config = config_text(directory.path(), "http://127.0.0.1:1", nowhere, "");
    let file = directory.path().join("gateway.toml");
    std::fs::write(&file, config).unwrap();
    let script = format!("ulimit -n 48; exec {:?} run -c {file:?}", env!("CARGO_BIN_EXE_wxgate"));
    let mut gateway = Running::start(Command::new("sh").args(["-c", &script]), true);
    let (_, address) = gateway.started();
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    let line = gateway.line_with("cannot accept connections");
    assert!(line.contains("Too many open files"), "{line}");
    drop(held);
    gateway.signal("TERM");
    gateway.line_with("stopped");
    assert_eq!(gateway.transcript.matches("cannot accept connections").count(), 1);
}
