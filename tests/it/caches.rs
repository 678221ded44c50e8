//! The cache headers of responses, for caches between the gateway and its clients.

mod peers;

use bytes::Bytes;
use http::Request as HttpRequest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::client::{Request, Response};
use crate::harness::upstream::Reply;
use crate::harness::{PATIENCE, Stack, openid};

const CARRIERS: &str = "X-3rd-Session, Authorization";

/// A request, with or without a session.
fn with_token<'a>(request: Request<'a>, token: Option<&str>) -> Request<'a> {
    match token {
        Some(token) => request.token(token),
        None => request,
    }
}

#[track_caller]
pub fn assert_cache_headers(response: &Response, vary: Option<&str>, cache_control: Option<&str>) {
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
                assert_cache_headers(&response, Some(&vary), expected);
            }
        }
        // And without a body, and with the other carrier.
        let bytes = format!("{}Content-Length: 2\r\n\r\n", status("200")).into_bytes();
        stack.upstream.reply(move |_| Reply::Bytes(bytes.clone()));
        let response = stack.request("HEAD", "/").bearer(&token).send().await;
        assert_cache_headers(&response, Some(&vary), private);
    }
    // Where no token is looked up, the service's headers are forwarded unchanged.
    for (sent, vary, cache_control) in [
        ("", None, None),
        ("Vary: Accept\r\nCache-Control: max-age=60\r\n", Some("Accept"), Some("max-age=60")),
    ] {
        stack.upstream.reply(move |_| Reply::ok(sent, "ok"));
        assert_cache_headers(&stack.get("/none").token(&token).send().await, vary, cache_control);
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
        assert_cache_headers(&response, Some(CARRIERS), Some("no-store"));
    }
    assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    let limited = stack.get("/").token(&token).send().await;
    assert_eq!(limited.status, 429);
    assert_cache_headers(&limited, Some(CARRIERS), Some("no-store"));

    let vary = format!("Accept, {CARRIERS}");
    assert_cache_headers(&stack.get("/kept").send().await, Some(&vary), Some("max-age=60"));
    let kept = stack.get("/kept").token(&token).send().await;
    assert_cache_headers(&kept, Some(&vary), Some("private, max-age=60"));
    assert_cache_headers(&stack.get("/open").token(&token).send().await, None, Some("no-store"));

    // With CORS a response depends on the origin as well.
    let vary = format!("Origin, {CARRIERS}");
    let origin = "https://h5.example.com";
    assert_cache_headers(
        &stack.get("/page").header("Origin", origin).send().await,
        Some(&vary),
        Some("no-store"),
    );
    let preflight = stack.request("OPTIONS", "/page").header("Origin", origin);
    let preflight = preflight.header("Access-Control-Request-Method", "GET").send().await;
    assert_eq!(preflight.status, 204);
    assert_cache_headers(&preflight, Some(&vary), Some("no-store"));
    for (sent, vary) in [
        ("", vary.clone()),
        ("Vary: origin\r\n", format!("origin, {CARRIERS}")),
        ("Vary: *\r\n", "*".to_owned()),
    ] {
        stack.upstream.reply(move |_| Reply::ok(sent, "ok"));
        let response = stack.get("/page").token(&token).send().await;
        assert_cache_headers(&response, Some(&vary), Some("private"));
    }

    // Endpoints must never be cached.
    let session = stack.get("/session").token(&token).send().await;
    assert_cache_headers(&session, None, Some("no-store"));
    assert_cache_headers(&stack.try_login("user-bob-1").await, None, Some("no-store"));
    let out = stack.post("/logout").token(&token).send().await;
    assert_eq!(out.status, 204);
    assert_cache_headers(&out, None, Some("no-store"));
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
        assert_cache_headers(&request.send().await, Some(vary), Some("private"));
        let rejected = stack.get("/").send().await;
        assert_eq!(rejected.status, 401);
        assert_cache_headers(&rejected, Some(vary), Some("no-store"));
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
    assert_cache_headers(&as_sent, Some("Accept"), Some("max-age=60"));
    assert_cache_headers(&removed, None, None);
    assert_cache_headers(&stack.get("/").send().await, None, Some("no-store"));
    assert!(stack.reload(&routes("private")).await);
    let (marked, removed) = (
        stack.get("/").token(&token).send().await,
        stack.get("/optional").token(&token).send().await,
    );
    assert_cache_headers(
        &marked,
        Some(&format!("Accept, {CARRIERS}")),
        Some("private, max-age=60"),
    );
    // A route removes the service's header, not the one that the gateway adds.
    assert_cache_headers(&removed, Some(CARRIERS), Some("private"));
}

/// A browser may send requests for two hosts of one certificate on one connection.
#[tokio::test(flavor = "multi_thread")]
async fn requests_for_two_hosts_on_one_connection_are_each_checked_alone() {
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
