//! Services whose cookies are kept in the gateway (`cookie_jar`).

mod attack;
mod store;

use std::time::Duration;

use http::Request as HttpRequest;
use tokio::net::TcpStream;

use crate::harness::client::{Connection, Request, Response};
use crate::harness::http2_service::{Http2Service, send_all};
use crate::harness::upstream::{Received, Reply, Step, Upstream};
use crate::harness::{Stack, openid};

/// Changes with jars for the one service.
pub const JAR: &str = r#"
    [[upstream]]
    name = "recorder"
    servers = ["{upstream}"]
    cookie_jar = true
"#;

const ROUTES: &str = r#"
    [[route]]
    path = "/"
    upstream = "recorder"
    auth = "required"
    websocket = true
    [[route]]
    path = "/optional"
    upstream = "recorder"
    auth = "optional"
    [[route]]
    path = "/none"
    upstream = "recorder"
    auth = "none"
    [[route]]
    path = "/api/shop"
    strip_prefix = "/api"
    add_prefix = "/v2"
    upstream = "recorder"
    auth = "required"
    [[route]]
    path = "/fixed"
    upstream = "recorder"
    auth = "required"
    set_request_headers = { Cookie = "fixed=1" }
    [[route]]
    path = "/ours-only"
    upstream = "recorder"
    auth = "required"
    remove_request_headers = ["Cookie"]
"#;

async fn start(changes: &str) -> Stack {
    let stack = Stack::start_with(&format!("{changes}\n{JAR}\n{ROUTES}")).await;
    echo(&stack.upstream);
    stack
}

/// The service sets what the header `X-Set` says, one cookie a line.
fn echo(service: &Upstream) {
    service.reply(|received| Reply::ok(&set_cookies(received), ""));
}

fn set_cookies(received: &Received) -> String {
    let lines = received.all("x-set").into_iter();
    lines.map(|line| format!("Set-Cookie: {line}\r\n")).collect()
}

/// A request that makes the service set cookies.
fn setting<'a>(stack: &'a Stack, path: &str, token: &str, lines: &[&str]) -> Request<'a> {
    let request = stack.get(path).token(token);
    lines.iter().fold(request, |request, line| request.header("X-Set", line))
}

/// Makes the service set cookies, of which the client must see nothing.
async fn set(stack: &Stack, path: &str, token: &str, lines: &[&str]) {
    let response = setting(stack, path, token, lines).send().await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_unseen(&response);
}

#[track_caller]
fn assert_unseen(response: &Response) {
    assert_eq!(response.header("set-cookie"), None, "{response:?}");
}

/// The `Cookie` lines that the service receives.
async fn cookies(request: Request<'_>) -> String {
    request.forwarded().await.all("cookie").join(" | ")
}

async fn sent(stack: &Stack, path: &str, token: &str) -> String {
    cookies(stack.get(path).token(token)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jar_is_sent_with_the_cookies_of_the_client_in_one_line() {
    let stack = start("").await;
    let token = stack.login("alice").await;
    assert_eq!(sent(&stack, "/", &token).await, "");
    let from_client = |lines: &[&str]| {
        let request = stack.get("/").token(&token);
        lines.iter().fold(request, |request, line| request.header("Cookie", line))
    };
    assert_eq!(cookies(from_client(&["a=1; b", "c=3"])).await, "a=1; b; c=3");
    set(&stack, "/", &token, &["sid=one; HttpOnly; SameSite=Strict; Domain=x.example", "b=2"])
        .await;
    assert_eq!(cookies(from_client(&[])).await, "sid=one; b=2");
    assert_eq!(cookies(from_client(&["a=1; sid=evil; B=3;b"])).await, "sid=one; b=2; a=1; B=3");
    assert_eq!(cookies(from_client(&["sid=evil", " b = 7 "])).await, "sid=one; b=2");
    let line = "x=\"y; sid=evil; z\"; sid ";
    assert_eq!(cookies(from_client(&[line])).await, "sid=one; b=2; x=\"y; z\"");
    set(&stack, "/", &token, &["sid=two"]).await;
    set(&stack, "/", &token, &["b=; Max-Age=0"]).await;
    assert_eq!(cookies(from_client(&[])).await, "sid=two");
    // What a route does with `Cookie` concerns those of clients.
    let ours = stack.get("/ours-only").token(&token).header("Cookie", "a=1");
    assert_eq!(cookies(ours).await, "sid=two");
    assert_eq!(sent(&stack, "/fixed", &token).await, "fixed=1");
    let response = setting(&stack, "/", &token, &["x=1"]).send().await;
    assert_eq!(response.header("cache-control"), Some("private"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_session_cookies_are_dropped() {
    let stack = start("").await;
    let token = stack.login("alice").await;
    set(&stack, "/", &token, &["sid=one"]).await;
    for request in [
        stack.get("/optional").header("X-Set", "x=1"),
        stack.get("/none").header("X-Set", "x=1"),
        stack.get("/none").token(&token).header("X-Set", "x=1"),
    ] {
        let response = request.header("Cookie", "a=1").send().await;
        assert_eq!(response.status, 200);
        assert_unseen(&response);
        assert_eq!(stack.upstream.requests().last().unwrap().all("cookie"), ["a=1"]);
    }
    assert_eq!(sent(&stack, "/optional", &token).await, "sid=one");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_without_a_jar_keep_their_cookies() {
    let stack = Stack::start().await;
    echo(&stack.upstream);
    let token = stack.login("alice").await;
    let response = setting(&stack, "/", &token, &["sid=one"]).send().await;
    assert_eq!(response.header("set-cookie"), Some("sid=one"));
    let request = stack.get("/").token(&token).header("Cookie", "a=1").header("Cookie", "b=2");
    assert_eq!(cookies(request).await, "a=1 | b=2");
    // A reload turns it on, and off again.
    assert!(stack.reload(JAR).await);
    set(&stack, "/", &token, &["sid=two"]).await;
    assert_eq!(sent(&stack, "/", &token).await, "sid=two");
    assert!(stack.reload("").await);
    assert_eq!(sent(&stack, "/", &token).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_those_that_the_service_sees() {
    let stack = start("").await;
    let token = stack.login("alice").await;
    set(
        &stack,
        "/api/shop/cart/add?x=/y",
        &token,
        &["cart=1", "all=1; Path=/", "not=1; Path=/api"],
    )
    .await;
    for (path, expected) in [
        ("/api/shop/cart", "cart=1; all=1"),
        ("/api/shop/cart/x?a=b", "cart=1; all=1"),
        ("/api/shop/carts", "all=1"),
        ("/v2/shop/cart", "cart=1; all=1"),
        ("/", "all=1"),
        ("/api", "not=1; all=1"),
    ] {
        assert_eq!(sent(&stack, path, &token).await, expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secure_cookies_need_a_client_with_https() {
    let stack = start("server.trusted_proxies = [\"127.0.0.1\"]").await;
    let token = stack.login("alice").await;
    set(&stack, "/", &token, &["sid=one; Secure", "__Host-a=1; Secure; Path=/", "b=2"]).await;
    let via = |proto: &str| stack.get("/").token(&token).header("X-Forwarded-Proto", proto);
    assert_eq!(cookies(via("https")).await, "sid=one; __Host-a=1; b=2");
    assert_eq!(cookies(via("http")).await, "b=2");
    assert_eq!(sent(&stack, "/", &token).await, "b=2");
    // Only a trusted proxy can set the scheme.
    let stack = start("").await;
    let token = stack.login("alice").await;
    set(&stack, "/", &token, &["sid=one; Secure", "b=2"]).await;
    let via = stack.get("/").token(&token).header("X-Forwarded-Proto", "https");
    assert_eq!(cookies(via).await, "b=2");
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_are_taken_out_of_every_kind_of_response() {
    let stack = start("server.h2c = true").await;
    let token = stack.login("alice").await;
    let mut expected = String::new();
    for (name, method, reply) in [
        ("head", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"),
        ("unchanged", "GET", "HTTP/1.1 304 Not Modified\r\n"),
        ("empty", "GET", "HTTP/1.1 204 No Content\r\n"),
        ("error", "GET", "HTTP/1.1 500 x\r\nContent-Length: 0\r\n"),
        ("redirect", "GET", "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n"),
    ] {
        let reply = format!("{reply}SET-COOKIE: {name}=1\r\nset-cookie: x=1; Path=/x\r\n\r\n");
        stack.upstream.reply(move |_| Reply::Bytes(reply.clone().into()));
        let response = stack.request(method, "/").token(&token).send().await;
        assert_unseen(&response);
        echo(&stack.upstream);
        expected = format!("{expected}{}{name}=1", if expected.is_empty() { "" } else { "; " });
        assert_eq!(sent(&stack, "/", &token).await, expected);
    }
    // Informational responses; the last one that sets a cookie decides.
    stack.upstream.reply(|_| {
        Reply::Steps(vec![
            Step::Send("HTTP/1.1 103 Early Hints\r\nSet-Cookie: early=1\r\nX-A: b\r\n\r\n".into()),
            Step::Send("HTTP/1.1 103 Early Hints\r\nSet-Cookie: late=1\r\n\r\n".into()),
            Step::Send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: late=2\r\n\r\n".into()),
        ])
    });
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&stack.get("/").token(&token).bytes()).await;
    for status in [103, 103, 200] {
        let response = connection.strict_response(false).await.unwrap();
        assert_eq!((response.status, response.all("set-cookie").len()), (status, 0));
    }
    echo(&stack.upstream);
    assert_eq!(sent(&stack, "/", &token).await, format!("{expected}; early=1; late=2"));
    // Over HTTP/2.
    let socket = TcpStream::connect(stack.gateway).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = HttpRequest::get("http://gateway.test/")
        .header("x-3rd-session", &token)
        .header("cookie", "a=1")
        .header("cookie", "head=evil")
        .header("x-set", "two=1")
        .body(())
        .unwrap();
    let response = client.send_request(request, true).unwrap().0.await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers().get("set-cookie")), (200, None));
    let line = stack.upstream.requests().last().unwrap().all("cookie").join(" | ");
    assert_eq!(line, format!("{expected}; early=1; late=2; a=1"));
    assert_eq!(sent(&stack, "/", &token).await, format!("{expected}; early=1; late=2; two=1"));
    connection.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_begins_with_the_jar_and_fills_it() {
    let stack = start("").await;
    let token = stack.login("alice").await;
    set(&stack, "/", &token, &["sid=one"]).await;
    stack.upstream.reply(|_| {
        let accepted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
            Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
            Set-Cookie: socket=1\r\n\r\n";
        Reply::Echo(accepted.into())
    });
    let request = stack
        .get("/chat")
        .token(&token)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let mut socket = Connection::open(stack.gateway).await;
    socket.send(&request.bytes()).await;
    let response = socket.response(false).await;
    assert_eq!(response.status, 101);
    assert_unseen(&response);
    assert_eq!(stack.upstream.requests().last().unwrap().all("cookie"), ["sid=one"]);
    socket.send(b"hello").await;
    assert!(socket.reads(b"hello").await);
    drop(socket);
    echo(&stack.upstream);
    assert_eq!(sent(&stack, "/", &token).await, "sid=one; socket=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_sends_the_same_cookies_and_the_last_one_fills_the_jar() {
    let servers = [Upstream::start().await, Upstream::start().await];
    let addresses = servers.each_ref().map(|server| server.address.to_string());
    let stack = Stack::start_with(&format!(
        "[[upstream]]\nname = \"recorder\"\nservers = {addresses:?}\ncookie_jar = true\n\
         retry = {{ attempts = 1, on = [\"502\"] }}\nejection = {{ failures = 0 }}\n"
    ))
    .await;
    let token = stack.login("alice").await;
    servers.iter().for_each(echo);
    set(&stack, "/", &token, &["sid=one"]).await;
    let begun = servers.each_ref().map(|server| server.requests().len());
    // The first attempt fails at one server, and the other one responds.
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for server in &servers {
        let asked = asked.clone();
        server.reply(move |_| {
            let is_second = asked.swap(true, std::sync::atomic::Ordering::AcqRel);
            let (status, name) = if is_second { ("200 OK", "second") } else { ("502 x", "first") };
            let header = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n");
            Reply::Bytes(format!("{header}Set-Cookie: {name}=1\r\n\r\n").into())
        });
    }
    let response = stack.get("/").token(&token).send().await;
    assert_eq!(response.status, 200);
    assert_unseen(&response);
    for (server, before) in servers.iter().zip(begun) {
        let received = server.requests_after(before);
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].all("cookie"), ["sid=one"]);
    }
    servers.iter().for_each(echo);
    assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    let lines: Vec<String> = servers
        .iter()
        .flat_map(|server| server.requests().last().map(|last| last.all("cookie").join(" | ")))
        .collect();
    assert!(lines.contains(&"sid=one; second=1".to_owned()), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_speaks_http_2_has_a_jar_too() {
    let mut service = Http2Service::start().await;
    let stack = Stack::start_with(&service.section("cookie_jar = true")).await;
    let token = stack.login("alice").await;
    for expected in [None, Some("sid=one")] {
        let serve = async {
            let mut call = service.call().await;
            let mut send = call.begin(&[("set-cookie", "sid=one"), ("set-cookie", "x=1; Path=/y")]);
            send_all(&mut send, bytes::Bytes::from_static(b"ok")).await.unwrap();
            send.send_trailers([("set-cookie", "trailer=1")].map(pair).into_iter().collect())
                .unwrap();
            call.request.headers().clone()
        };
        let (headers, response) = tokio::join!(serve, stack.get("/").token(&token).send());
        let line = headers.get("cookie").map(|value| value.to_str().unwrap());
        assert_eq!(line, expected);
        assert_eq!(headers.get("x-openid").unwrap(), openid("alice").as_str());
        assert_eq!(response.status, 200);
        assert_unseen(&response);
    }
}

fn pair((name, value): (&'static str, &'static str)) -> (http::HeaderName, http::HeaderValue) {
    (name.parse().unwrap(), value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_expire_by_the_clock() {
    let stack = start("").await;
    let token = stack.login("alice").await;
    let lines = ["a=1; Max-Age=60", "b=2; Expires=Thu, 31-Dec-2099 23:59:59 GMT", "c=3"];
    set(&stack, "/", &token, &lines).await;
    stack.clock.advance(Duration::from_secs(59));
    assert_eq!(sent(&stack, "/", &token).await, "a=1; b=2; c=3");
    stack.clock.advance(Duration::from_secs(1));
    assert_eq!(sent(&stack, "/", &token).await, "b=2; c=3");
    set(&stack, "/", &token, &["b=; Expires=Thu, 01 Jan 1970 00:00:00 GMT"]).await;
    assert_eq!(sent(&stack, "/", &token).await, "c=3");
}
