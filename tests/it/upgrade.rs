//! `Upgrade`: every protocol except WebSocket is ignored.

use http::{Method, Request as Http2Request};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::client::{Connection, Request};
use crate::harness::upstream::Reply;
use crate::harness::{PATIENCE, Stack};

const SETTINGS: &str = "AAMAAABkAAQCAAAAAAIAAAAA";

const CHAT: &str = r#"
    [[route]]
    path = "/"
    upstream = "recorder"
    auth = "required"
    [[route]]
    path = "/none"
    upstream = "recorder"
    auth = "none"
    [[route]]
    path = "/chat"
    upstream = "recorder"
    auth = "required"
    websocket = true
"#;

fn handshake<'a>(request: Request<'a>, version: &str) -> Request<'a> {
    request
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", version)
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_to_another_protocol_is_declined_and_the_request_is_served() {
    let stack = Stack::start_with(CHAT).await;
    let token = stack.login("alice").await;
    for lines in [
        &["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: {settings}"][..],
        &["Upgrade: TLS/1.2", "Connection: Upgrade"],
        &["Upgrade: TLS/1.0"],
        &["Upgrade: foo"],
        &["Upgrade:"],
        &["Connection: Upgrade", "Upgrade: h2c/1, TLS/1.2,, foo/2.0"],
        &["Connection: keep-alive, Upgrade", "Upgrade: h2c", "upgrade: TLS/1.3, foo"],
        &["Connection: upgrade", "Upgrade: web socket; x=\"websockets\""],
        &["HTTP2_Settings: {settings}", "http2.settings: {settings}"],
    ] {
        let lines = lines.join("\r\n").replace("{settings}", SETTINGS);
        let mut connection = Connection::open(stack.gateway).await;
        for path in ["/x", "/none", "/chat"] {
            for body in [
                "Content-Length: 7\r\n\r\npayload",
                "Transfer-Encoding: chunked\r\n\r\n7\r\npayload\r\n0\r\n\r\n",
            ] {
                let before = stack.upstream.requests().len();
                let header = format!(
                    "POST {path} HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\n{lines}\r\n{body}"
                );
                connection.send(header.as_bytes()).await;
                let response = connection.response(false).await;
                assert_eq!(response.status, 200, "{lines} {}", response.text());
                assert_eq!(response.header("connection"), Some("keep-alive"), "{lines}");
                let received = stack.upstream.requests_after(before);
                assert_eq!(received.len(), 1);
                assert_eq!(received[0].body, b"payload");
                for name in ["upgrade", "http2-settings", "connection"] {
                    assert_eq!(received[0].folded(name), [""; 0], "{lines}");
                }
            }
        }
    }
    assert!(stack.upstream.faults().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_decline_an_upgrade_too() {
    let stack = Stack::start_with("endpoints.health = \"/health\"").await;
    let offer = |request: Request<'_>| {
        let request = request.header("Connection", "Upgrade, HTTP2-Settings");
        request.header("Upgrade", "h2c").header("HTTP2-Settings", SETTINGS).bytes()
    };
    let mut connection = Connection::open(stack.gateway).await;
    let login = stack.post("/login").json(&serde_json::json!({ "code": "user-alice-1" }));
    connection.send(&offer(login)).await;
    let response = connection.response(false).await;
    assert_eq!(response.status, 200, "{}", response.text());
    let token = response.json()["token"].as_str().unwrap().to_owned();
    for (request, status) in [
        (stack.get("/session").token(&token), 200),
        (stack.get("/health"), 200),
        (stack.get("/none"), 200),
        (stack.get("/x"), 401),
        (stack.post("/logout").token(&token), 204),
        (stack.get("/session").token(&token), 401),
    ] {
        connection.send(&offer(request)).await;
        assert_eq!(connection.response(false).await.status, status);
    }
}

/// HTTP/1.0 has no upgrade (RFC 9110, section 7.8).
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_in_http_1_0_is_ignored() {
    let stack = Stack::start_with(CHAT).await;
    let token = stack.login("alice").await;
    for offer in ["h2c", "websocket", "websocket, h2c", "websocket\r\nUpgrade: websocket"] {
        for path in ["/none", "/chat"] {
            let mut connection = Connection::open(stack.gateway).await;
            let request = format!(
                "GET {path} HTTP/1.0\r\nHost: h\r\nX-3rd-Session: {token}\r\nConnection: Upgrade\r\n\
                 Upgrade: {offer}\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            connection.send(request.as_bytes()).await;
            assert_eq!(connection.response(false).await.status, 200, "{offer}");
        }
    }
    assert!(stack.upstream.requests().iter().all(|received| received.all("upgrade").is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_beside_another_protocol_or_twice_is_400() {
    let stack = Stack::start_with(CHAT).await;
    let token = stack.login("alice").await;
    for offers in [
        &["websocket, h2c"][..],
        &["h2c,websocket"],
        &["websocket, websocket"],
        &["websocket", "websocket"],
        &["websocket", "h2c"],
        &["h2c", "WebSocket"],
        &["foo", "websocket/13"],
        &["websocket/13"],
    ] {
        for path in ["/chat", "/none", "/login"] {
            let mut request = stack.get(path).token(&token).header("Connection", "Upgrade");
            for offer in offers {
                request = request.header("Upgrade", offer);
            }
            let request = request
                .header("Sec-WebSocket-Version", "13")
                .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
            request.send().await.assert_error(400, "bad_request", "none");
        }
    }
    assert!(stack.upstream.requests().is_empty());
}

/// A client with another version can never be served, so the session does not matter;
/// a route without WebSockets allows no version.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_of_another_version_is_426_with_the_supported_one() {
    let stack = Stack::start_with(CHAT).await;
    let token = stack.login("alice").await;
    for version in ["8", "7", "0", "14", "255"] {
        for request in [stack.get("/chat").token(&token), stack.get("/chat")] {
            let response = handshake(request, version).send().await;
            response.assert_error(426, "upgrade_required", "none");
            assert_eq!(response.header("sec-websocket-version"), Some("13"));
            assert_eq!(response.header("upgrade"), Some("websocket"));
        }
        let elsewhere = handshake(stack.get("/none"), version).send().await;
        elsewhere.assert_error(400, "bad_request", "none");
    }
    for version in
        ["", "x", "013", "13, 8", "8, 13", "-1", "1000", "13\r\nSec-WebSocket-Version: 8"]
    {
        let response = handshake(stack.get("/chat").token(&token), version).send().await;
        response.assert_error(400, "bad_request", "none");
        assert_eq!(response.header("sec-websocket-version"), None);
    }
    let with_body = handshake(stack.get("/chat").token(&token), "8").body("body").send().await;
    with_body.assert_error(400, "bad_request", "none");
    handshake(stack.get("/chat"), "13").send().await.assert_error(401, "missing_token", "login");
    assert!(stack.upstream.requests().is_empty());
    let counted = "wxgate_http_requests_total{code=\"426\",route=\"/chat\"}";
    stack.until_metric(counted, 10.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_settings_are_removed_over_http_2() {
    let stack = Stack::start_with("server.h2c = true").await;
    let stream = TcpStream::connect(stack.gateway).await.unwrap();
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Http2Request::builder().method(Method::GET).uri("http://h/none");
    let request = request.header("http2-settings", SETTINGS).header("http2_settings", SETTINGS);
    let (response, _) = requests.send_request(request.body(()).unwrap(), true).unwrap();
    assert_eq!(timeout(PATIENCE, response).await.unwrap().unwrap().status(), 200);
    assert_eq!(stack.upstream.requests()[0].folded("http2-settings"), [""; 0]);
}

/// Apache with its HTTP/2 module offers HTTP/2 in every response.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_offer_of_the_service_is_not_forwarded() {
    let stack = Stack::start_with(CHAT).await;
    for (status, lines) in [
        ("200 OK", "Upgrade: h2,h2c\r\nConnection: Upgrade, Keep-Alive\r\n"),
        ("200 OK", "Upgrade: websocket\r\n"),
        ("404 Not Found", "upgrade: h2c\r\nUpgrade: TLS/1.2\r\nConnection: upgrade\r\n"),
        ("426 Upgrade Required", "Upgrade: h2c\r\nConnection: Upgrade\r\n"),
        ("103 Early Hints", "Upgrade: h2c\r\nConnection: Upgrade\r\n"),
    ] {
        let mut response = format!("HTTP/1.1 {status}\r\n{lines}");
        if status.starts_with('1') {
            response += "\r\nHTTP/1.1 200 OK\r\n";
        }
        response += "Content-Length: 2\r\n\r\nok";
        stack.upstream.reply(move |_| Reply::Bytes(response.clone().into_bytes()));
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&stack.get("/none").bytes()).await;
        let mut received = connection.response(false).await;
        assert_eq!(received.header("upgrade"), None, "{status} {lines}");
        if received.status < 200 {
            received = connection.response(false).await;
        }
        assert_eq!(received.text(), "ok", "{status}");
    }
}
