//! Forward-auth: another proxy gets the public listener's decision, with the identity.

mod peers;

use std::net::SocketAddr;

use serde_json::Value;
use wxgate::server::Command;

use crate::harness::client::{Connection, Response};
use crate::harness::{APP, OTHER_APP, PATIENCE, Stack, THREE_ROUTES, TWO_APPS, openid};

const ON: &str = "forward_auth.listen = \"127.0.0.1:0\"\nserver.trusted_proxies = [\"127.0.0.1\"]";

async fn start() -> Stack {
    start_with("").await
}

async fn start_with(changes: &str) -> Stack {
    Stack::start_with(&format!("{ON}\n{changes}")).await
}

/// A proxy's request for a decision on a request for `uri`.
fn about(uri: &str) -> DecisionRequest {
    let lines = [
        ("X-Forwarded-Method", "GET"),
        ("X-Forwarded-Uri", uri),
        ("X-Forwarded-Host", "shop.test"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-For", "198.51.100.7"),
    ];
    let lines = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    DecisionRequest { request_line: "GET /auth HTTP/1.1".to_owned(), lines, body: String::new() }
}

#[derive(Clone)]
struct DecisionRequest {
    request_line: String,
    lines: Vec<(String, String)>,
    body: String,
}

impl DecisionRequest {
    fn line(mut self, name: &str, value: &str) -> Self {
        self.lines.push((name.to_owned(), value.to_owned()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.lines.retain(|(known, _)| known != name);
        self
    }

    /// With another value of this header.
    fn told(self, name: &str, value: &str) -> Self {
        self.without(name).line(name, value)
    }

    fn token(self, token: &str) -> Self {
        self.line("X-3rd-Session", token)
    }

    fn by(mut self, method_and_target: &str) -> Self {
        self.request_line = format!("{method_and_target} HTTP/1.1");
        self
    }

    fn body(mut self, body: &str) -> Self {
        self.body = body.to_owned();
        self.line("Content-Length", &body.len().to_string())
    }

    fn bytes(&self) -> Vec<u8> {
        let lines = self.lines.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let lines: String = lines.collect();
        format!("{}\r\nHost: wxgate\r\n{lines}\r\n{}", self.request_line, self.body).into()
    }

    async fn send(&self, stack: &Stack) -> Response {
        let response = self.send_cacheable(stack).await;
        assert_eq!(response.header("cache-control"), Some("no-store"));
        assert_eq!(response.header("vary"), None);
        response
    }

    /// The same where decisions may be cached.
    async fn send_cacheable(&self, stack: &Stack) -> Response {
        let mut connection = Connection::open(stack.forward_auth.unwrap()).await;
        connection.send(&self.bytes()).await;
        let response = connection.response(self.request_line.starts_with("HEAD")).await;
        // It always sets all of them, so that the client's values never survive.
        for name in ["x-openid", "x-appid", "x-unionid"] {
            let value = response.header(name);
            assert!(value.is_some_and(|value| value.is_empty() || response.status == 200));
        }
        assert!(matches!(response.status, 200 | 401 | 403), "{}", response.status);
        assert!(response.header("x-request-id").is_some_and(|id| !id.is_empty()));
        response
    }
}

/// Asserts a 200 with this identity.
#[track_caller]
fn assert_identity(response: &Response, openid: &str) {
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("x-openid"), Some(openid));
    assert_eq!(response.header("x-appid"), Some(if openid.is_empty() { "" } else { APP }));
    assert!(response.body.is_empty());
    assert_eq!(response.header("x-wxgate-error"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_gets_the_identity_of_the_client() {
    let stack = start().await;
    let (alice, openid_of_alice) = (stack.login("alice").await, openid("alice"));
    let header = about("/orders/7?page=2").token(&alice).send(&stack).await;
    assert_identity(&header, &openid_of_alice);
    assert_eq!(header.header("x-unionid"), Some(""));
    let bearer = about("/").line("Authorization", &format!("Bearer {alice}")).send(&stack).await;
    assert_identity(&bearer, &openid_of_alice);
    assert_identity(&about("/optional").token(&alice).send(&stack).await, &openid_of_alice);

    let union = stack.login("unionbob").await;
    let response = about("/").token(&union).send(&stack).await;
    assert_identity(&response, &openid("unionbob"));
    assert!(response.header("x-unionid").is_some_and(|unionid| !unionid.is_empty()));
    assert!(stack.upstream.requests().is_empty(), "the other proxy forwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cacheable_decision_varies_on_everything_that_it_depends_on() {
    const VARY: &str =
        "X-3rd-Session, Authorization, X-Forwarded-Method, X-Forwarded-Uri, X-Forwarded-Host";
    let stack = start_with("forward_auth.cache = \"10s\"").await;
    let token = stack.login("alice").await;
    for allowed in [about("/").token(&token), about("/optional"), about("/none")] {
        let response = allowed.send_cacheable(&stack).await;
        assert_eq!(response.status, 200);
        assert_eq!(response.header("cache-control"), Some("private, max-age=10"));
        assert_eq!(response.header("vary"), Some(VARY));
    }
    // Rejections must not be cached.
    for refused in
        [about("/"), about("/optional").token("x"), about("/").told("X-Forwarded-Uri", "x")]
    {
        assert!(refused.send(&stack).await.status > 400);
    }
    let more = "server.response_headers = { X-Frame-Options = \"DENY\" }\n\
        session.carriers = [\"header\"]\nforward_auth.cache = \"1m\"\n[[route]]\npath = \"/\"\n\
        headers = { X-Version = \"2\" }\n[[route]]\npath = \"/pass\"\nupstream = \"recorder\"\n\
        methods = [\"GET\"]\npreflight = \"pass\"";
    assert!(stack.reload(&format!("{ON}\n{more}")).await);
    let response = about("/").token(&token).line("X-Version", "2").send_cacheable(&stack).await;
    assert_eq!(response.header("cache-control"), Some("private, max-age=60"));
    let vary = "X-3rd-Session, X-Forwarded-Method, X-Forwarded-Uri, X-Forwarded-Host, X-Version, \
        Origin, Access-Control-Request-Method";
    assert_eq!(response.header("vary"), Some(vary));
    assert_eq!(response.header("x-frame-options"), None, "only for public listeners");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_decision_is_the_public_listeners() {
    let stack = start_with(&format!(
        r#"
        {TWO_APPS}
        [endpoints]
        health = "/healthy"
        {THREE_ROUTES}
        [[route]]
        path = "/required/narrow"
        upstream = "recorder"
        methods = ["GET", "POST"]
        apps = ["{OTHER_APP}"]
        "#
    ))
    .await;
    let token = stack.login("alice").await;
    let unknown = "A".repeat(43);
    let (uri, method) = ("X-Forwarded-Uri", "X-Forwarded-Method");
    for (case, status, error) in [
        (about("/required"), 401, "missing_token"),
        (about("/required").token(""), 401, "missing_token"),
        (about("/required").line("Authorization", "Bearer of-the-service"), 401, "missing_token"),
        (about("/required").token(&unknown), 401, "session_expired"),
        (about("/required").token("x"), 401, "session_expired"),
        (about("/optional").token(&unknown), 401, "session_expired"),
        (about("/required").token(&token).token(&token), 403, "bad_request"),
        (about("/required/narrow").token(&token), 403, "wrong_app"),
        (about("/required/narrow").told(method, "PUT"), 403, "method_not_allowed"),
        (about("/required").told(method, "get").token(&token), 403, "bad_request"),
        (about("/required").told(method, "TRACE").token(&token), 403, "bad_request"),
        (about("/nowhere").token(&token), 403, "no_route"),
        (about("/login").token(&token), 403, "bad_request"),
        (about("/logout").token(&token), 403, "bad_request"),
        (about("/session").token(&token), 403, "bad_request"),
        (about("/healthy").token(&token), 403, "bad_request"),
        (about("/none/../required"), 403, "bad_request"),
        (about("/none/%2e%2e/required"), 403, "bad_request"),
        (about("/none/..;/required"), 403, "bad_request"),
        (about("/none%2f..%2frequired"), 403, "bad_request"),
        (about("//none"), 403, "bad_request"),
        (about("/none/%00"), 403, "bad_request"),
        (about("/none#/required"), 403, "bad_request"),
        (about("http://shop.test/none"), 403, "bad_request"),
        (about("none"), 403, "bad_request"),
        (about("*"), 403, "bad_request"),
        (about(""), 403, "bad_request"),
        (
            about("/none").told(uri, &format!("/none/{}", "x".repeat(9000))),
            403,
            "headers_too_large",
        ),
        (about("/none").told("X-Forwarded-Host", "a, b"), 403, "bad_request"),
        (about("/none").told("X-Forwarded-Host", ""), 403, "bad_request"),
    ] {
        let response = case.send(&stack).await;
        let action = if status == 401 { "login" } else { "none" };
        response.assert_error(status, error, action);
        let challenge = response.header("www-authenticate");
        assert_eq!(challenge, (error == "missing_token").then_some("Bearer"));
    }
    assert_identity(&about("/optional").send(&stack).await, "");
    // The token is not looked up.
    assert_identity(&about("/none").token(&token).send(&stack).await, "");
    assert_identity(&about("/none?x=/../required").send(&stack).await, "");
    assert_identity(
        &about("/required").told(method, "DELETE").token(&token).send(&stack).await,
        &openid("alice"),
    );

    stack.post("/logout").token(&token).send().await;
    about("/required").token(&token).send(&stack).await.assert_error(
        401,
        "session_expired",
        "login",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_described_twice_or_not_at_all_is_rejected() {
    let stack = start().await;
    let token = stack.login("alice").await;
    let whole = about("/").token(&token);
    assert_identity(&whole.send(&stack).await, &openid("alice"));
    let told = ["X-Forwarded-Method", "X-Forwarded-Uri", "X-Forwarded-Host"];
    for name in told {
        let missing = whole.clone().without(name);
        missing.send(&stack).await.assert_error(403, "bad_request", "none");
    }
    for name in ["X-Forwarded-Proto", "X-Forwarded-For"] {
        assert_identity(&whole.clone().without(name).send(&stack).await, &openid("alice"));
    }
    for name in told.into_iter().chain(["X-Forwarded-Proto", "X-Forwarded-For"]) {
        let value = whole.lines.iter().find(|(known, _)| known == name).unwrap().1.clone();
        let doubled = whole.clone().line(&name.to_lowercase(), &value);
        doubled.send(&stack).await.assert_error(403, "bad_request", "none");
        for separator in ["_", ".", "!", "~"] {
            let alias = whole.clone().line(&name.replace('-', separator), &value);
            alias.send(&stack).await.assert_error(403, "bad_request", "none");
        }
    }
    // Bytes that are not text.
    let odd = whole.clone().told("X-Forwarded-Uri", "/caf\u{e9}");
    odd.send(&stack).await.assert_error(403, "bad_request", "none");
}

/// The message names what to correct in the proxy's configuration or in the client.
#[tokio::test(flavor = "multi_thread")]
async fn the_rejection_of_a_malformed_description_has_the_reason() {
    let stack = start().await;
    let whole = about("/none");
    for (asked, has) in [
        (
            whole.clone().told("X-Forwarded-Uri", "/caf\u{e9}"),
            "X-Forwarded-Uri: bytes outside ASCII must be percent-encoded",
        ),
        (whole.clone().told("X-Forwarded-Uri", "/none?q=\u{4f60}"), "percent-encoded"),
        (whole.clone().told("X-Forwarded-Uri", "/a\\b"), "X-Forwarded-Uri"),
        (whole.clone().told("X-Forwarded-Uri", "/a b"), "X-Forwarded-Uri"),
        (whole.clone().told("X-Forwarded-Uri", "/a`b"), "X-Forwarded-Uri"),
        (whole.clone().told("X-Forwarded-Uri", "none"), "X-Forwarded-Uri must begin with \"/\""),
        (
            whole.clone().told("X-Forwarded-Uri", "http://h/none"),
            "X-Forwarded-Uri must begin with \"/\"",
        ),
        (whole.clone().told("X-Forwarded-Uri", ""), "X-Forwarded-Uri must begin with \"/\""),
        (whole.clone().told("X-Forwarded-Host", "caf\u{e9}.test"), "X-Forwarded-Host is malformed"),
        (whole.clone().told("X-Forwarded-Host", "a, b"), "X-Forwarded-Host is malformed"),
        (whole.clone().told("X-Forwarded-Method", "g\u{e9}t"), "X-Forwarded-Method"),
        (whole.clone().told("X-Forwarded-Method", "TRACE"), "X-Forwarded-Method"),
        (whole.clone().told("X-Forwarded-Method", ""), "X-Forwarded-Method"),
        (whole.clone().without("X-Forwarded-Uri"), "X-Forwarded-Uri is missing"),
        (whole.clone().without("X-Forwarded-Host"), "X-Forwarded-Host is missing"),
        (whole.clone().without("X-Forwarded-Method"), "X-Forwarded-Method is missing"),
        (whole.clone().line("X-Forwarded-Uri", "/x"), "X-Forwarded-Uri is repeated"),
        (whole.clone().line("X-Forwarded-Proto", "http"), "X-Forwarded-Proto is repeated"),
        (whole.clone().line("X-Forwarded-For", "192.0.2.1"), "X-Forwarded-For is repeated"),
    ] {
        let answer = asked.send(&stack).await;
        answer.assert_error(403, "bad_request", "none");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(has), "{has}: {message}");
    }
    // Headers that decide nothing may be odd.
    let odd =
        whole.clone().told("X-Forwarded-For", "caf\u{e9}").told("X-Forwarded-Host", "shop.test:");
    assert_eq!(odd.send(&stack).await.status, 200);
}

/// Proxies copy the header lines of the client's request.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_header_decides_nothing() {
    let stack = start().await;
    let token = stack.login("alice").await;
    let asked = about("/").token(&token).line("Connection", "Upgrade, HTTP2-Settings");
    let asked = asked.line("Upgrade", "h2c").line("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA");
    let mut connection = Connection::open(stack.forward_auth.unwrap()).await;
    for _ in 0..2 {
        connection.send(&asked.bytes()).await;
        assert_identity(&connection.response(false).await, &openid("alice"));
    }
}

/// The proxy overwrites only the exact names, not spellings that services read as the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_identity_is_overwritten_or_rejected() {
    let stack = start().await;
    let token = stack.login("alice").await;
    let forged = |ask: DecisionRequest| ask.line("X-OpenId", "evil").line("X-AppId", "evil");
    assert_identity(&forged(about("/none")).send(&stack).await, "");
    assert_identity(&forged(about("/optional")).send(&stack).await, "");
    assert_identity(&forged(about("/").token(&token)).send(&stack).await, &openid("alice"));
    for alias in ["X_OpenId", "x.appid", "X_UNIONID", "X_WX_OPENID", "x-wx_unionid"] {
        for path in ["/none", "/optional", "/"] {
            let response = about(path).token(&token).line(alias, "evil").send(&stack).await;
            response.assert_error(403, "bad_request", "none");
        }
    }
}

/// The proxy in front forwards headers that a service may read as another method.
#[tokio::test(flavor = "multi_thread")]
async fn no_header_changes_the_method_where_routes_distinguish_methods() {
    let stack = start_with(
        r#"
        [[route]]
        path = "/orders"
        upstream = "recorder"
        methods = ["GET"]
        auth = "none"
        [[route]]
        name = "deletions"
        path = "/orders"
        upstream = "recorder"
        methods = ["DELETE"]
        "#,
    )
    .await;
    assert_identity(&about("/orders").send(&stack).await, "");
    for name in ["X-HTTP-Method-Override", "x_http_method", "X.Method-Override", "X-HTTP-Method"] {
        let response = about("/orders").line(name, "DELETE").send(&stack).await;
        response.assert_error(403, "bad_request", "none");
    }
    let indifferent = start().await;
    assert_identity(&about("/none").line("X-HTTP-Method", "GET").send(&indifferent).await, "");
}

/// Where the gateway would respond to preflights itself, they do not reach the service.
#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_is_allowed_without_a_session_only_where_it_is_forwarded() {
    for (says, status) in
        [("cors = { origins = [\"https://h5.test\"] }", 401), ("preflight = \"pass\"", 200)]
    {
        let stack =
            start_with(&format!("[[route]]\npath = \"/\"\nupstream = \"recorder\"\n{says}")).await;
        let preflight = about("/orders")
            .told("X-Forwarded-Method", "OPTIONS")
            .line("Origin", "https://h5.test")
            .line("Access-Control-Request-Method", "POST");
        assert_eq!(preflight.send(&stack).await.status, status, "{says}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_trusted_proxies_get_decisions() {
    let stack = Stack::start_with(&ON.replace("127.0.0.1\"]", "192.0.2.1\"]")).await;
    let token = stack.login("alice").await;
    for case in [about("/none"), about("/").token(&token), about("/").by("GET /other")] {
        case.send(&stack).await.assert_error(403, "bad_request", "none");
    }
    let mut connection = Connection::open(stack.forward_auth.unwrap()).await;
    connection.send(&about("/none").bytes()).await;
    assert_eq!(connection.response(false).await.status, 403);
    assert!(connection.is_closed().await);
    let mut silent = Connection::open(stack.forward_auth.unwrap()).await;
    assert!(silent.ends().await);
}

/// The request for the decision decides nothing: some proxies keep the method, body or path.
#[tokio::test(flavor = "multi_thread")]
async fn the_proxys_own_request_decides_nothing() {
    let stack = start().await;
    let token = stack.login("alice").await;
    for way in [
        "POST /auth",
        "HEAD /auth",
        "DELETE /auth?x=1",
        "GET /auth/",
        "PUT /auth/none/../orders?page=2",
        "OPTIONS /auth/login",
        "GET http://wxgate/auth/x",
    ] {
        assert_identity(&about("/").token(&token).by(way).send(&stack).await, &openid("alice"));
        assert_eq!(about("/").by(way).send(&stack).await.status, 401, "{way}");
    }
    for elsewhere in ["GET /", "GET /authority", "GET /login", "POST /login", "GET /metrics"] {
        let response = about("/").token(&token).by(elsewhere).send(&stack).await;
        response.assert_error(403, "bad_request", "none");
    }
    // A body is not read, and its rest is not taken for a request.
    let smuggled = String::from_utf8(about("/").token(&token).bytes()).unwrap();
    let mut connection = Connection::open(stack.forward_auth.unwrap()).await;
    connection.send(&about("/").by("POST /auth").body(&smuggled).bytes()).await;
    let response = connection.response(false).await;
    assert_eq!((response.status, response.header("connection")), (401, Some("close")));
    assert!(connection.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_and_the_header_names_are_the_operators() {
    let stack = start_with(
        r#"
        forward_auth.path = "/internal/decide/"
        identity.openid_header = "X-User"
        "#,
    )
    .await;
    let token = stack.login("alice").await;
    let exchange = async |ask: DecisionRequest| {
        let mut connection = Connection::open(stack.forward_auth.unwrap()).await;
        connection.send(&ask.bytes()).await;
        connection.response(false).await
    };
    let response = exchange(about("/").token(&token).by("GET /internal/decide")).await;
    assert_eq!((response.status, response.header("x-user")), (200, Some(&*openid("alice"))));
    assert_eq!(response.header("x-openid"), None);
    let alias = about("/").token(&token).by("GET /internal/decide").line("X_User", "evil");
    assert_eq!(exchange(alias).await.status, 403);
    assert_eq!(exchange(about("/").token(&token)).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_that_another_proxy_forwards_need_no_upstream() {
    let stack = start_with(
        r#"
        [[route]]
        path = "/"
        [[route]]
        path = "/none"
        auth = "none"
        "#,
    )
    .await;
    let token = stack.login("alice").await;
    assert_identity(&about("/").token(&token).send(&stack).await, &openid("alice"));
    assert_eq!(about("/").send(&stack).await.status, 401);
    assert_identity(&about("/none").send(&stack).await, "");
    for path in ["/", "/none"] {
        let response = stack.get(path).token(&token).send().await;
        response.assert_error(404, "no_route", "none");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_endpoints_are_the_gateways_on_their_hosts_only() {
    let stack = start_with("endpoints.hosts = [\"mini.test\"]").await;
    let own = about("/login").told("X-Forwarded-Host", "MINI.test:443");
    own.send(&stack).await.assert_error(403, "bad_request", "none");
    assert_eq!(about("/login").send(&stack).await.status, 401, "not an endpoint on this host");
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_of_users_and_addresses_count() {
    let stack = start_with(
        r#"
        [[route]]
        path = "/user"
        upstream = "recorder"
        rate_per_user = "2/m"
        [[route]]
        path = "/address"
        upstream = "recorder"
        auth = "none"
        rate_per_address = "2/m"
        "#,
    )
    .await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    for _ in 0..2 {
        assert_identity(&about("/user").token(&alice).send(&stack).await, &openid("alice"));
        assert_identity(&about("/address").send(&stack).await, "");
    }
    for refused in [about("/user").token(&alice), about("/address")] {
        let response = refused.send(&stack).await;
        response.assert_error(403, "rate_limited", "retry");
        assert!(response.header("retry-after").is_some());
    }
    assert_identity(&about("/user").token(&bob).send(&stack).await, &openid("bob"));
    let elsewhere = about("/address").told("X-Forwarded-For", "198.51.100.8");
    assert_identity(&elsewhere.send(&stack).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_of_200_counts_as_use_of_the_session() {
    let stack = start_with("session.ttl = \"10h\"\nsession.idle_timeout = \"1h\"").await;
    let token = stack.login("alice").await;
    for _ in 0..3 {
        stack.clock.advance(std::time::Duration::from_secs(50 * 60));
        assert_identity(&about("/").token(&token).send(&stack).await, &openid("alice"));
    }
    stack.clock.advance(std::time::Duration::from_secs(61 * 60));
    assert_eq!(about("/").token(&token).send(&stack).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_counted_and_logged() {
    let stack = start_with("log.access = \"{dir}/access.log\"").await;
    let token = stack.login("alice").await;
    let id = about("/orders/7?secret=1").token(&token).line("X-Request-Id", "of-the-proxy-1");
    assert_eq!(id.send(&stack).await.header("x-request-id"), Some("of-the-proxy-1"));
    about("/orders").told("X-Forwarded-Method", "POST").send(&stack).await;
    about("/optional").send(&stack).await;
    about("/login").send(&stack).await;
    for (name, value) in [
        ("wxgate_http_requests_total{code=\"200\",route=\"@forward_auth\"}", 2.0),
        ("wxgate_http_requests_total{code=\"401\",route=\"@forward_auth\"}", 1.0),
        ("wxgate_http_requests_total{code=\"403\",route=\"@forward_auth\"}", 1.0),
        ("wxgate_http_request_duration_seconds_count{route=\"@forward_auth\"}", 4.0),
        ("wxgate_auth_decisions_total{decision=\"ok\"}", 1.0),
        ("wxgate_auth_decisions_total{decision=\"missing\"}", 1.0),
        ("wxgate_auth_decisions_total{decision=\"anonymous\"}", 1.0),
        ("wxgate_http_requests_in_flight", 0.0),
    ] {
        stack.until_metric(name, value).await;
    }
    let text = stack.access_log(5).await;
    let lines: Vec<Value> =
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown = |key: &str| lines.iter().map(|line| line[key].clone()).collect::<Vec<_>>();
    assert_eq!(shown("path"), ["/orders/7", "/orders", "/optional", "/login"]);
    assert_eq!(shown("method"), ["GET", "POST", "GET", "GET"]);
    assert_eq!(shown("route"), ["/", "/", "/optional", "@forward_auth"]);
    assert_eq!(shown("status"), [200, 401, 200, 403]);
    assert_eq!(shown("client"), ["198.51.100.7"; 4]);
    assert_eq!(lines[0]["request_id"], "of-the-proxy-1");
    assert_eq!((&lines[0]["decision"], &lines[0]["app_id"]), (&"ok".into(), &APP.into()));
    assert_eq!(lines[0]["user"].as_str().unwrap().len(), 16);
    assert_eq!(lines[1]["error"], "missing_token");
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_keep_their_connections_until_the_gateway_drains() {
    let mut stack = start_with("server.shutdown_delay = \"60s\"").await;
    let token = stack.login("alice").await;
    let address: SocketAddr = stack.forward_auth.unwrap();
    let mut kept = Connection::open(address).await;
    let mut idle = Connection::open(address).await;
    for _ in 0..3 {
        for connection in [&mut kept, &mut idle] {
            connection.send(&about("/").token(&token).bytes()).await;
            assert_identity(&connection.response(false).await, &openid("alice"));
        }
    }
    stack.commands.send(Command::Drain).await.unwrap();
    while crate::harness::client::get(stack.admin, "/readyz").await.status != 503 {
        tokio::task::yield_now().await;
    }
    kept.send(&about("/").token(&token).bytes()).await;
    let response = kept.response(false).await;
    assert_identity(&response, &openid("alice"));
    assert_eq!(response.header("connection"), Some("close"));
    assert!(kept.is_closed().await);
    assert_identity(&about("/").token(&token).send(&stack).await, &openid("alice"));
    stack.commands.send(Command::Drain).await.unwrap();
    assert!(idle.is_closed().await);
    let ended = tokio::time::timeout(PATIENCE, &mut stack.ended).await;
    ended.expect("an end in time").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_of_a_proxy_is_closed() {
    let stack = start_with("limits.idle_timeout = \"50ms\"").await;
    let mut idle = Connection::open(stack.forward_auth.unwrap()).await;
    idle.send(&about("/none").bytes()).await;
    assert_identity(&idle.response(false).await, "");
    assert!(idle.is_closed().await);
    let mut half = Connection::open(stack.forward_auth.unwrap()).await;
    half.send(b"GET /auth HTTP/1.1\r\nX-Forwarded-Uri: /").await;
    assert!(half.ends().await);
}
