//! Which route a request matches, and what the route does with it.

mod cors;
mod edits;

use crate::harness::Stack;
use crate::harness::client::{Connection, Response};
use crate::harness::upstream::{Reply, Upstream};

/// Sends this request line and these header lines, `Host` included.
async fn send(stack: &Stack, header: &str) -> Response {
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(format!("{header}\r\nConnection: close\r\n\r\n").as_bytes()).await;
    connection.response(header.starts_with("HEAD")).await
}

/// The name of the route that responds.
async fn route_of(stack: &Stack, header: &str) -> String {
    let response = send(stack, header).await;
    assert_eq!(response.status, 200, "{header}: {}", response.text());
    response.header("x-route").unwrap_or_default().to_owned()
}

/// Routes that respond with their own names.
fn named(routes: &[(&str, &str)]) -> String {
    let route = |(name, matches): &(&str, &str)| {
        format!(
            "[[route]]\nname = \"{name}\"\nauth = \"none\"\n{matches}\nrespond = {{}}\n\
             set_response_headers = {{ X-Route = \"{name}\" }}\n"
        )
    };
    routes.iter().map(route).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_specific_host_is_matched_first_and_then_the_less_specific() {
    let stack = Stack::start_with(&named(&[
        ("all", r#"path = "/""#),
        ("all-deep", r#"path = "/deep/er""#),
        ("exact", "host = \"api.example.com\"\npath = \"/deep\""),
        ("wild", "host = [\"*.example.com\", \"example.net\"]\npath = \"/\""),
        ("wilder", "host = \"*.api.example.com\"\npath = \"/\""),
    ]))
    .await;
    for (path, host, route) in [
        ("/", "other.test", "all"),
        ("/deep/er/x", "other.test", "all-deep"),
        ("/deep/er/x", "api.example.com", "exact"),
        ("/deep/er/x", "API.Example.COM.:8080", "exact"),
        ("/elsewhere", "api.example.com", "wild"),
        ("/", "a.b.example.com", "wild"),
        ("/", "example.net:1", "wild"),
        ("/", "sub.example.net", "all"),
        ("/", "v1.api.example.com", "wilder"),
        ("/", "example.com", "all"),
        ("/", "badexample.com", "all"),
        ("/", "api.example.com.evil.test", "all"),
    ] {
        let found = route_of(&stack, &format!("GET {path} HTTP/1.1\r\nHost: {host}")).await;
        assert_eq!(found, route, "{host}{path}");
    }
    // In absolute form the target names the host.
    let header = "GET http://api.example.com/deep HTTP/1.1\r\nHost: api.example.com";
    assert_eq!(route_of(&stack, header).await, "exact");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_path_comes_before_prefixes_and_does_not_cover_what_is_below_it() {
    let stack = Stack::start_with(&named(&[
        ("prefix", r#"path = "/""#),
        ("file", "path = \"/MP_verify_abc.txt\"\nmatch = \"exact\""),
        ("root", "path = \"/\"\nmatch = \"exact\""),
    ]))
    .await;
    for (path, route) in [
        ("/", "root"),
        ("/?x=1", "root"),
        ("/MP_verify_abc.txt", "file"),
        ("/MP_verify_abc.txt?x", "file"),
        ("/MP_verify_abc.txt/", "prefix"),
        ("/mp_verify_abc.txt", "prefix"),
    ] {
        let found = route_of(&stack, &format!("GET {path} HTTP/1.1\r\nHost: h")).await;
        assert_eq!(found, route, "{path}");
    }
    // A path that another server may read as the file is not forwarded as another path.
    for path in ["/MP_verify%5fabc.txt", "/x/../MP_verify_abc.txt", "//MP_verify_abc.txt"] {
        stack.get(path).send().await.assert_error(400, "bad_request", "none");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_with_headers_matches_only_requests_that_have_them() {
    let stack = Stack::start_with(&named(&[
        ("any", r#"path = "/""#),
        ("two", "path = \"/\"\nheaders = { X-Api-Version = \"2\" }"),
        ("both", "path = \"/\"\nheaders = { X-Api-Version = \"2\", X-Beta = \"yes\" }"),
        ("deep", "path = \"/deep\"\nheaders = { X-Api-Version = \"2\" }"),
    ]))
    .await;
    for (path, headers, route) in [
        ("/", "", "any"),
        ("/", "X-Api-Version: 2\r\n", "two"),
        ("/", "x-api-version: 2\r\n", "two"),
        ("/", "X-Api-Version: 1\r\n", "any"),
        ("/", "X-Api-Version: 2\r\nX-Beta: yes\r\n", "both"),
        ("/", "X-Beta: yes\r\n", "any"),
        ("/deep", "X-Api-Version: 2\r\n", "deep"),
        ("/deep", "X-Api-Version: 1\r\n", "any"),
    ] {
        let header = format!("GET {path} HTTP/1.1\r\n{headers}Host: h");
        assert_eq!(route_of(&stack, &header).await, route, "{header}");
    }
}

/// A service may read another line or spelling of the header than the gateway did.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_selects_a_route_can_be_read_in_one_way_only() {
    let stack = Stack::start_with(
        r#"
        [[route]]
        name = "staff"
        path = "/"
        upstream = "recorder"
        headers = { X-Staff = "1" }
        [[route]]
        name = "all"
        path = "/"
        upstream = "recorder"
        auth = "none"
        "#,
    )
    .await;
    stack.get("/").header("X-Staff", "1").send().await.assert_error(401, "missing_token", "login");
    for lines in [
        [("X-Staff", "1"), ("X-Staff", "1")],
        [("X-Staff", "1"), ("X-Staff", "0")],
        [("X_Staff", "1"), ("X-Other", "1")],
        [("X-Staff", "0"), ("x.staff", "1")],
    ] {
        let request =
            lines.iter().fold(stack.get("/"), |request, (name, value)| request.header(name, value));
        request.send().await.assert_error(400, "bad_request", "none");
    }
    assert_eq!(stack.upstream.requests().len(), 0);
    assert_eq!(stack.get("/").header("X-Staff", "0").send().await.status, 200);
}

/// Headers that `Connection` names are removed, and the service would get another request than
/// the route matched.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_selects_a_route_cannot_be_removed_by_connection() {
    let stack = Stack::start_with(
        r#"
        [[route]]
        path = "/"
        upstream = "recorder"
        [[route]]
        name = "open"
        path = "/"
        upstream = "recorder"
        auth = "none"
        headers = { X-Api-Version = "2" }
        "#,
    )
    .await;
    let request = |connection: &str| {
        stack.get("/").header("X-Api-Version", "2").header("Connection", connection)
    };
    for connection in ["X-Api-Version", "close, x-api-version", "x_api_version,keep-alive"] {
        request(connection).send().await.assert_error(400, "bad_request", "none");
    }
    let twice = request("keep-alive").header("Connection", "X-Api-Version");
    twice.send().await.assert_error(400, "bad_request", "none");
    assert!(stack.upstream.requests().is_empty());
    for connection in ["keep-alive", "X-Other, X-Api-Versions"] {
        assert_eq!(request(connection).forwarded().await.all("x-api-version"), ["2"]);
    }
}

/// A shorter path with less protection must not match what a longer one rejects.
#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_no_route_of_the_best_path_allows_is_405_with_all_allowed_methods() {
    let stack = Stack::start_with(&named(&[
        ("all", r#"path = "/""#),
        ("read", "path = \"/orders\"\nmethods = [\"GET\", \"HEAD\"]"),
        ("write", "path = \"/orders\"\nmethods = [\"POST\"]"),
        ("beta", "path = \"/orders\"\nmethods = [\"PUT\"]\nheaders = { X-Beta = \"1\" }"),
    ]))
    .await;
    assert_eq!(route_of(&stack, "GET /orders/1 HTTP/1.1\r\nHost: h").await, "read");
    let post = "POST /orders HTTP/1.1\r\nContent-Length: 0\r\nHost: h";
    assert_eq!(route_of(&stack, post).await, "write");
    let rejected = stack.request("PUT", "/orders").send().await;
    rejected.assert_error(405, "method_not_allowed", "none");
    assert_eq!(rejected.header("allow"), Some("GET, HEAD, POST"));
    let rejected = stack.request("DELETE", "/orders").header("X-Beta", "1").send().await;
    rejected.assert_error(405, "method_not_allowed", "none");
    assert_eq!(rejected.header("allow"), Some("PUT, GET, HEAD, POST"));
    let put = "PUT /orders HTTP/1.1\r\nX-Beta: 1\r\nHost: h";
    assert_eq!(route_of(&stack, put).await, "beta");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_may_respond_without_a_service() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("answer.html");
    std::fs::write(&file, "<p>\n商品</p>\n").unwrap();
    let changes = format!(
        r#"
        [[route]]
        path = "/"
        upstream = "recorder"
        [[route]]
        path = "/MP_verify_Ab1.txt"
        match = "exact"
        auth = "none"
        methods = ["GET", "HEAD"]
        respond = {{ body = "Ab1" }}
        [[route]]
        path = "/gone"
        auth = "none"
        respond = {{ status = 410, content_type = "text/html; charset=utf-8", file = {file:?} }}
        set_response_headers = {{ Cache-Control = "max-age=60" }}
        [[route]]
        path = "/old"
        auth = "none"
        respond = {{ status = 301 }}
        set_response_headers = {{ Location = "/new" }}
        [[route]]
        path = "/private"
        respond = {{ body = "yours" }}
        "#
    );
    let stack = Stack::start_with(&changes).await;
    let response = stack.get("/MP_verify_Ab1.txt?x=1").send().await;
    assert_eq!((response.status, response.text().as_str()), (200, "Ab1"));
    assert_eq!(response.header("content-type"), Some("text/plain"));
    assert_eq!(response.header("content-length"), Some("3"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert!(response.header("x-request-id").is_some());
    assert_eq!(response.header("x-wxgate-error"), None);
    let response = stack.request("HEAD", "/MP_verify_Ab1.txt").send().await;
    assert_eq!((response.header("content-length"), response.body.len()), (Some("3"), 0));
    let rejected = stack.post("/MP_verify_Ab1.txt").body("x").send().await;
    rejected.assert_error(405, "method_not_allowed", "none");

    let response = stack.post("/gone/x").body("a body that nobody reads").send().await;
    assert_eq!((response.status, response.text().as_str()), (410, "<p>\n商品</p>\n"));
    assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(response.header("cache-control"), Some("max-age=60"));
    let response = stack.get("/old").send().await;
    assert_eq!((response.status, response.header("location")), (301, Some("/new")));
    assert_eq!(response.header("content-type"), None);

    stack.get("/private").send().await.assert_error(401, "missing_token", "login");
    let token = stack.login("alice").await;
    assert_eq!(stack.get("/private").token(&token).send().await.text(), "yours");
    assert!(stack.upstream.requests().is_empty());
    stack.until_metric("wxgate_http_requests_total{code=\"410\",route=\"/gone\"}", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_the_users_goes_to_another_upstream_and_each_always_to_the_same() {
    let canary = Upstream::start().await;
    let changes = format!(
        r#"
        [[upstream]]
        name = "recorder"
        servers = ["{{upstream}}"]
        [[upstream]]
        name = "canary"
        servers = ["{}"]
        [[route]]
        path = "/"
        upstream = "recorder"
        auth = "optional"
        split = [{{ upstream = "canary", percent = 37.5 }}]
        "#,
        canary.address
    );
    let where_they_go = async || {
        let stack = Stack::start_with(&changes).await;
        let mut went = Vec::new();
        for user in 0..24 {
            let token = stack.login(&format!("user{user}")).await;
            let before = canary.requests().len();
            for _ in 0..2 {
                assert_eq!(stack.get("/").token(&token).send().await.status, 200);
            }
            let more = canary.requests().len() - before;
            assert!(more % 2 == 0, "one user of two services");
            went.push(more == 2);
        }
        let before = canary.requests().len();
        for _ in 0..8 {
            stack.get("/").forwarded().await;
        }
        assert_eq!(canary.requests().len(), before, "requests without a session stay");
        went
    };
    let went = where_they_go().await;
    let count = went.iter().filter(|went| **went).count();
    assert!((2..20).contains(&count), "{count}");
    assert_eq!(where_they_go().await, went, "after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_header_changes_the_method_where_routes_distinguish_methods() {
    let names = ["X-HTTP-Method-Override", "x_http_method", "X.Method-Override", "X-HTTP-Method"];
    for (methods, expected) in [("methods = [\"GET\"]", 0), ("", 4)] {
        let stack = Stack::start_with(&format!(
            "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"none\"\n[[route]]\n\
             path = \"/other\"\nupstream = \"recorder\"\n{methods}"
        ))
        .await;
        let request =
            names.iter().fold(stack.get("/"), |request, name| request.header(name, "DELETE"));
        let received = request.forwarded().await;
        let left: usize = received.lines.iter().filter(|(_, value)| value == "DELETE").count();
        assert_eq!(left, expected, "{methods}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_shape_that_clients_expect_and_keep_status_and_header() {
    let stack = Stack::start_with(
        r#"
        [errors]
        template = '{"code":${code},"msg":"${message}","data":{"id":"${request_id}","do":"${action}","error":"${error}","status":${status}}}'
        content_type = "application/json; charset=utf-8"
        codes = { missing_token = 40100, bad_request = -1 }
        "#,
    )
    .await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"GET / HTTP/1.1\r\n\r\n").await;
    let no_host = connection.response(false).await;
    for (response, status, error, code, action) in [
        (stack.get("/").send().await, 401, "missing_token", 40100, "login"),
        (stack.get("/").token("x").send().await, 401, "session_expired", 401, "login"),
        (stack.post("/login").send().await, 400, "bad_request", -1, "none"),
        (stack.get("/login").send().await, 405, "method_not_allowed", 405, "none"),
        // From the edge, before there is a request.
        (no_host, 400, "bad_request", -1, "none"),
    ] {
        assert_eq!(response.status, status);
        assert_eq!(response.header("x-wxgate-error"), Some(error));
        assert_eq!(response.header("content-type"), Some("application/json; charset=utf-8"));
        assert_eq!(response.header("cache-control"), Some("no-store"));
        let body = response.json();
        assert_eq!(body["code"], code);
        assert!(body["msg"].as_str().is_some_and(|message| !message.is_empty()));
        let id = response.header("x-request-id").unwrap();
        let data = serde_json::json!({ "id": id, "do": action, "error": error, "status": status });
        assert_eq!(body["data"], data);
    }
    stack.upstream.reply(|_| Reply::Last(Vec::new()));
    let response = stack.get("/none").send().await;
    assert_eq!((response.status, response.json()["code"].as_i64()), (502, Some(502)));
}
