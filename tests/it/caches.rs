//! What responses say to caches between the gateway and its clients.

mod peers;

use bytes::Bytes;
use http::Request as HttpRequest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::client::{Connection, Request, Response};
use crate::harness::upstream::Reply;
use crate::harness::{PATIENCE, Stack, openid};
use crate::tls::https;

const CARRIERS: &str = "X-3rd-Session, Authorization";

/// A request, with or without a session.
fn with_token<'a>(request: Request<'a>, token: Option<&str>) -> Request<'a> {
    match token {
        Some(token) => request.token(token),
        None => request,
    }
}

#[track_caller]
fn assert_cacheable(response: &Response, vary: Option<&str>, cache_control: Option<&str>) {
    assert_eq!(response.header("vary"), vary, "{response:?}");
    assert_eq!(response.header("cache-control"), cache_control, "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_varies_on_the_carriers_and_is_private_to_a_user_unless_the_service_decides() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    let with_carriers = |names: &str| format!("{names}, {CARRIERS}");
    for (sent, vary, cache_control, private) in [
        ("", CARRIERS.to_owned(), None, Some("private")),
        ("Expires: Thu, 31 Dec 2099 23:59:59 GMT\r\n", CARRIERS.to_owned(), None, Some("private")),
        (
            "Cache-Control: max-age=60\r\nVary: Accept\r\n",
            with_carriers("Accept"),
            Some("max-age=60"),
            Some("private, max-age=60"),
        ),
        (
            "Cache-Control: max-age=60, private=\"x, y\"\r\nVary: Accept\r\nVary: Origin\r\n",
            with_carriers("Accept, Origin"),
            Some("max-age=60, private=\"x, y\""),
            Some("private, max-age=60, private=\"x, y\""),
        ),
        (
            "Cache-Control: Public\r\nVary: x-3rd-session\r\n",
            "x-3rd-session, Authorization".to_owned(),
            Some("Public"),
            Some("Public"),
        ),
        (
            "Cache-Control: s-maxage=60\r\nVary: authorization,X-3RD-Session\r\n",
            "authorization,X-3RD-Session".to_owned(),
            Some("s-maxage=60"),
            Some("s-maxage=60"),
        ),
        (
            "Cache-Control: no-store\r\nVary: *\r\n",
            "*".to_owned(),
            Some("no-store"),
            Some("no-store"),
        ),
        ("Connection: vary\r\nVary: Accept\r\n", CARRIERS.to_owned(), None, Some("private")),
    ] {
        let status = |code: &str| format!("HTTP/1.1 {code} X\r\n{sent}");
        for (reply, code) in [
            (format!("{}Content-Length: 2\r\n\r\nok", status("200")), 200),
            (format!("{}Content-Length: 2\r\n\r\nok", status("206")), 206),
            (format!("{}\r\n", status("204")), 204),
            (format!("{}ETag: \"x\"\r\n\r\n", status("304")), 304),
            (format!("{}Content-Length: 2\r\n\r\nok", status("404")), 404),
            (format!("{}Content-Length: 2\r\n\r\nok", status("500")), 500),
        ] {
            let bytes = reply.into_bytes();
            stack.upstream.reply(move |_| Reply::Bytes(bytes.clone()));
            for (path, token) in
                [("/", Some(&*token)), ("/optional", Some(&token)), ("/optional", None)]
            {
                let response = with_token(stack.get(path), token).send().await;
                assert_eq!(response.status, code);
                let expected = if token.is_some() { private } else { cache_control };
                assert_cacheable(&response, Some(&vary), expected);
            }
        }
        // And without a body, and with the other carrier.
        let bytes = format!("{}Content-Length: 2\r\n\r\n", status("200")).into_bytes();
        stack.upstream.reply(move |_| Reply::Bytes(bytes.clone()));
        let response = stack.request("HEAD", "/").bearer(&token).send().await;
        assert_cacheable(&response, Some(&vary), private);
    }
    // Where no token is looked up, the service's headers are forwarded unchanged.
    for (sent, vary, cache_control) in [
        ("", None, None),
        ("Vary: Accept\r\nCache-Control: max-age=60\r\n", Some("Accept"), Some("max-age=60")),
    ] {
        stack.upstream.reply(move |_| Reply::ok(sent, "ok"));
        assert_cacheable(&stack.get("/none").token(&token).send().await, vary, cache_control);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_own_responses_on_such_routes_vary_and_are_not_stored() {
    let stack = Stack::start_with(
        r#"
        [[upstream]]
        name = "recorder"
        servers = ["{upstream}"]
        [[upstream]]
        name = "nobody"
        servers = ["127.0.0.1:1"]
        [[route]]
        path = "/"
        upstream = "recorder"
        methods = ["GET", "POST"]
        max_body = "1B"
        rate_per_user = "1/h"
        [[route]]
        path = "/down"
        upstream = "nobody"
        [[route]]
        path = "/static"
        auth = "optional"
        respond = { body = "hello" }
        [[route]]
        path = "/kept"
        auth = "optional"
        respond = { body = "hello" }
        set_response_headers = { Cache-Control = "max-age=60", Vary = "Accept" }
        [[route]]
        path = "/open"
        auth = "none"
        respond = { body = "hello" }
        [[route]]
        path = "/page"
        upstream = "recorder"
        cors = { origins = ["https://h5.example.com"] }
        "#,
    )
    .await;
    let token = stack.login("alice").await;
    for (request, status) in [
        (stack.get("/"), 401),
        (stack.get("/").token("x"), 401),
        (stack.get("/").token(&token).token(&token), 400),
        (stack.request("DELETE", "/"), 405),
        (stack.post("/").token(&token).body("xx"), 413),
        (stack.get("/down").token(&token), 502),
        (stack.get("/static"), 200),
        (stack.get("/static").token(&token), 200),
        (stack.request("HEAD", "/static").token(&token), 200),
    ] {
        let response = request.send().await;
        assert_eq!(response.status, status, "{}", response.text());
        assert_cacheable(&response, Some(CARRIERS), Some("no-store"));
    }
    assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    let limited = stack.get("/").token(&token).send().await;
    assert_eq!(limited.status, 429);
    assert_cacheable(&limited, Some(CARRIERS), Some("no-store"));

    let vary = format!("Accept, {CARRIERS}");
    assert_cacheable(&stack.get("/kept").send().await, Some(&vary), Some("max-age=60"));
    let kept = stack.get("/kept").token(&token).send().await;
    assert_cacheable(&kept, Some(&vary), Some("private, max-age=60"));
    assert_cacheable(&stack.get("/open").token(&token).send().await, None, Some("no-store"));

    // With CORS a response depends on the origin as well.
    let vary = format!("Origin, {CARRIERS}");
    let origin = "https://h5.example.com";
    assert_cacheable(
        &stack.get("/page").header("Origin", origin).send().await,
        Some(&vary),
        Some("no-store"),
    );
    let preflight = stack.request("OPTIONS", "/page").header("Origin", origin);
    let preflight = preflight.header("Access-Control-Request-Method", "GET").send().await;
    assert_eq!(preflight.status, 204);
    assert_cacheable(&preflight, Some(&vary), Some("no-store"));
    for (sent, vary) in [
        ("", vary.clone()),
        ("Vary: origin\r\n", format!("origin, {CARRIERS}")),
        ("Vary: *\r\n", "*".to_owned()),
    ] {
        stack.upstream.reply(move |_| Reply::ok(sent, "ok"));
        let response = stack.get("/page").token(&token).send().await;
        assert_cacheable(&response, Some(&vary), Some("private"));
    }

    // Endpoints must never be cached.
    let session = stack.get("/session").token(&token).send().await;
    assert_cacheable(&session, None, Some("no-store"));
    assert_cacheable(&stack.try_login("user-bob-1").await, None, Some("no-store"));
    let out = stack.post("/logout").token(&token).send().await;
    assert_eq!(out.status, 204);
    assert_cacheable(&out, None, Some("no-store"));
}

#[tokio::test(flavor = "multi_thread")]
async fn vary_names_the_carriers_that_are_enabled() {
    for (session, vary) in [
        ("carriers = [\"header\"]", "X-3rd-Session"),
        ("carriers = [\"bearer\"]", "Authorization"),
        ("carriers = [\"header\"]\nheader = \"x-my-token\"", "X-My-Token"),
        ("header = \"TOKEN\"", "Token, Authorization"),
    ] {
        let stack = Stack::start_with(&format!("[session]\n{session}")).await;
        let token = stack.login("alice").await;
        let name = if session.contains("header = ") {
            vary.split(',').next().unwrap()
        } else {
            "X-3rd-Session"
        };
        let request = match session.contains("bearer") {
            true => stack.get("/").bearer(&token),
            false => stack.get("/").header(name, &token),
        };
        assert_cacheable(&request.send().await, Some(vary), Some("private"));
        let refused = stack.get("/").send().await;
        assert_eq!(refused.status, 401);
        assert_cacheable(&refused, Some(vary), Some("no-store"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_may_leave_caches_to_its_service() {
    let routes = |cache: &str| {
        format!(
            r#"
            [[route]]
            path = "/"
            upstream = "recorder"
            cache = "{cache}"
            set_response_headers = {{ X-Set = "1" }}
            [[route]]
            path = "/optional"
            upstream = "recorder"
            auth = "optional"
            cache = "{cache}"
            remove_response_headers = ["Vary", "Cache-Control"]
            "#
        )
    };
    let stack = Stack::start_with(&routes("as_sent")).await;
    let token = stack.login("alice").await;
    stack.upstream.reply(|_| Reply::ok("Cache-Control: max-age=60\r\nVary: Accept\r\n", "ok"));
    let (as_sent, removed) = (
        stack.get("/").token(&token).send().await,
        stack.get("/optional").token(&token).send().await,
    );
    assert_cacheable(&as_sent, Some("Accept"), Some("max-age=60"));
    assert_cacheable(&removed, None, None);
    assert_cacheable(&stack.get("/").send().await, None, Some("no-store"));
    assert!(stack.reload(&routes("private")).await);
    let (marked, removed) = (
        stack.get("/").token(&token).send().await,
        stack.get("/optional").token(&token).send().await,
    );
    assert_cacheable(&marked, Some(&format!("Accept, {CARRIERS}")), Some("private, max-age=60"));
    // A route removes the service's header, not the one that the gateway adds.
    assert_cacheable(&removed, Some(CARRIERS), Some("private"));
}

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
    assert_cacheable(&login, None, Some("no-store"));
    assert_has_headers(&stack.post("/logout").send().await, 204);
    assert_has_headers(&stack.get("/healthy").send().await, 200);
    assert_has_headers(&stack.get("/own/../x").send().await, 400);
    // Not a valid request.
    for (head, status) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400),
        (format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(17 << 10)).into_bytes(), 431),
    ] {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&head).await;
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

/// A browser may send requests for two hosts of one certificate on one connection.
#[tokio::test(flavor = "multi_thread")]
async fn requests_for_two_hosts_on_one_connection_are_each_judged_alone() {
    let stack = Stack::start_with(
        r#"
        server.h2c = true
        [[route]]
        host = "a.test"
        path = "/"
        upstream = "recorder"
        auth = "optional"
        [[route]]
        host = "b.test"
        path = "/"
        upstream = "recorder"
        "#,
    )
    .await;
    let token = stack.login("alice").await;
    let stream = TcpStream::connect(stack.gateway).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let send = async |host: &str, token: Option<&str>| {
        let request = HttpRequest::builder().uri(format!("http://{host}/x"));
        let request = match token {
            Some(token) => request.header("X-3rd-Session", token),
            None => request,
        };
        let mut ready = requests.clone().ready().await.unwrap();
        let (response, _) = ready.send_request(request.body(()).unwrap(), true).unwrap();
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        let status = response.status().as_u16();
        let mut body = response.into_body();
        while body.data().await.is_some_and(|data: Result<Bytes, _>| data.is_ok()) {}
        status
    };
    for (host, token, status, whose) in [
        ("a.test", Some(&*token), 200, Some(openid("alice"))),
        ("b.test", None, 401, None),
        ("a.test", None, 200, Some(String::new())),
        ("b.test", Some(&token), 200, Some(openid("alice"))),
        ("c.test", Some(&token), 404, None),
    ] {
        let before = stack.upstream.requests().len();
        assert_eq!(send(host, token).await, status, "{host}");
        let received = stack.upstream.requests_after(before);
        let received: Vec<_> = received
            .iter()
            .map(|received| (received.all("host"), received.all("x-openid")))
            .collect();
        let id = whose.as_deref().filter(|id| !id.is_empty());
        let expected = whose.is_some().then(|| (vec![host], Vec::from_iter(id)));
        assert_eq!(received, Vec::from_iter(expected), "{host}");
    }
    connection.abort();
}
