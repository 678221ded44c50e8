//! Headers that the operator adds to every response.

use crate::caches::assert_cache_headers;
use crate::harness::Stack;
use crate::harness::client::{Connection, Response};
use crate::harness::upstream::Reply;
use crate::tls::https;

/// Routes with every kind of response: the gateway's own and a service's.
const ALL_RESPONSES: &str = r#"
    endpoints.health = "/healthy"
    login.accept = ["json"]
    [[route]]
    path = "/"
    upstream = "recorder"
    websocket = true
    [[route]]
    path = "/own"
    upstream = "recorder"
    auth = "none"
    set_response_headers = { strict-transport-security = "max-age=0" }
    remove_response_headers = ["X-Frame-Options"]
    [[route]]
    path = "/own/required"
    upstream = "recorder"
    set_response_headers = { Strict-Transport-Security = "max-age=0" }
    remove_response_headers = ["X-Frame-Options"]
    [[route]]
    path = "/static"
    auth = "none"
    respond = { body = "hello" }
    [[route]]
    path = "/page"
    auth = "none"
    upstream = "recorder"
    cors = { origins = ["*"] }
"#;

const HEADERS: &str = "server.response_headers = { Strict-Transport-Security = \"max-age=31536000\", \
                       X-Frame-Options = \"DENY\", Access-Control-Allow-Origin = \"https://a.test\" }";

const HSTS: &str = "strict-transport-security";
const FRAMES: &str = "x-frame-options";

#[track_caller]
fn assert_has_headers(response: &Response, status: u16) {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header(HSTS), Some("max-age=31536000"), "{response:?}");
    assert_eq!(response.header(FRAMES), Some("DENY"), "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_of_every_response_is_on_every_response() {
    let stack = Stack::start_with(&format!("{HEADERS}\nserver.h2c = true\n{ALL_RESPONSES}")).await;
    let token = stack.login("alice").await;
    stack.upstream.reply(|_| {
        Reply::ok(
            "Strict-Transport-Security: max-age=1\r\nX-FRAME-OPTIONS: a\r\nx-frame-options: b\r\n",
            "ok",
        )
    });
    assert_has_headers(&stack.get("/").token(&token).send().await, 200);
    assert_has_headers(&stack.request("HEAD", "/").token(&token).send().await, 200);
    assert_has_headers(&stack.get("/").send().await, 401);
    assert_has_headers(&stack.get("/static").send().await, 200);
    assert_has_headers(&stack.get("/login").send().await, 405);
    let login = stack.try_login("user-bob-1").await;
    assert_has_headers(&login, 200);
    assert_cache_headers(&login, None, Some("no-store"));
    assert_has_headers(&stack.post("/logout").send().await, 204);
    assert_has_headers(&stack.get("/healthy").send().await, 200);
    assert_has_headers(&stack.get("/own/../x").send().await, 400);
    // Not a valid request.
    for (header, status) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400),
        (format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(17 << 10)).into_bytes(), 431),
    ] {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&header).await;
        assert_has_headers(&connection.response(false).await, status);
    }
    // A route's own header replaces it, also on responses of the gateway.
    for (response, status) in [
        (stack.get("/own").send().await, 200),
        (stack.get("/own/required").token(&token).send().await, 200),
        (stack.get("/own/required").send().await, 401),
    ] {
        assert_eq!(response.status, status);
        assert_eq!((response.header(HSTS), response.header(FRAMES)), (Some("max-age=0"), None));
    }
    let page = stack.get("/page").header("Origin", "https://b.test").send().await;
    assert_has_headers(&page, 200);
    assert_eq!(page.header("access-control-allow-origin"), Some("*"));
    let preflight = stack.request("OPTIONS", "/page").header("Origin", "https://b.test");
    let preflight = preflight.header("Access-Control-Request-Method", "GET").send().await;
    assert_has_headers(&preflight, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
    let service = stack.get("/").token(&token).header("Origin", "https://b.test").send().await;
    assert_eq!(service.header("access-control-allow-origin"), Some("https://a.test"));

    // HTTP/2, a service that fails, and a WebSocket.
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for (path, status) in [("/", 401), ("/static", 200)] {
        let response = client.get(format!("http://{}{path}", stack.gateway)).send().await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()[HSTS], "max-age=31536000");
    }
    stack.upstream.reply(|_| Reply::Last(Vec::new()));
    assert_has_headers(&stack.get("/").token(&token).send().await, 502);
    stack.upstream.reply(|_| {
        Reply::Echo(
            b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
                .to_vec(),
        )
    });
    let mut socket = Connection::open(stack.gateway).await;
    let handshake = stack.get("/").token(&token).header("Connection", "Upgrade");
    let handshake = handshake.header("Upgrade", "websocket").header("Sec-WebSocket-Version", "13");
    let handshake = handshake.header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    socket.send(&handshake.bytes()).await;
    assert_has_headers(&socket.response(false).await, 101);

    // A reload can change and remove it.
    assert!(stack.reload(ALL_RESPONSES).await);
    let response = stack.get("/").send().await;
    assert_eq!((response.status, response.header(HSTS)), (401, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_of_every_response_is_on_redirects_to_https() {
    let directory = tempfile::tempdir().unwrap();
    let changes = format!("server.redirect = \"127.0.0.1:0\"\n{HEADERS}");
    let stack = Stack::start_with(&https(directory.path(), &changes).0).await;
    for (host, status) in [("Host: a.test\r\n", 308), ("", 400)] {
        let mut connection = Connection::open(stack.public[1]).await;
        connection.send(format!("GET /x HTTP/1.1\r\n{host}\r\n").as_bytes()).await;
        assert_has_headers(&connection.response(false).await, status);
    }
}
