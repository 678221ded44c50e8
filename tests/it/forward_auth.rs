//! Forward-auth: another proxy gets the decision that the public listener would make, with the
//! identity.

mod forgery;
mod more_identity;
mod operation;
mod peers;

use crate::harness::client::{Connection, Response};
use crate::harness::{APP, OTHER_APP, Stack, THREE_ROUTES, TWO_APPS, openid};

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
    fn with(self, name: &str, value: &str) -> Self {
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
    for rejected in
        [about("/"), about("/optional").token("x"), about("/").with("X-Forwarded-Uri", "x")]
    {
        assert!(rejected.send(&stack).await.status > 400);
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
        (about("/required/narrow").with(method, "PUT"), 403, "method_not_allowed"),
        (about("/required").with(method, "get").token(&token), 403, "bad_request"),
        (about("/required").with(method, "TRACE").token(&token), 403, "bad_request"),
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
            about("/none").with(uri, &format!("/none/{}", "x".repeat(9000))),
            403,
            "headers_too_large",
        ),
        (about("/none").with("X-Forwarded-Host", "a, b"), 403, "bad_request"),
        (about("/none").with("X-Forwarded-Host", ""), 403, "bad_request"),
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
        &about("/required").with(method, "DELETE").token(&token).send(&stack).await,
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
    let required = ["X-Forwarded-Method", "X-Forwarded-Uri", "X-Forwarded-Host"];
    for name in required {
        let missing = whole.clone().without(name);
        missing.send(&stack).await.assert_error(403, "bad_request", "none");
    }
    for name in ["X-Forwarded-Proto", "X-Forwarded-For"] {
        assert_identity(&whole.clone().without(name).send(&stack).await, &openid("alice"));
    }
    for name in required.into_iter().chain(["X-Forwarded-Proto", "X-Forwarded-For"]) {
        let value = whole.lines.iter().find(|(known, _)| known == name).unwrap().1.clone();
        let doubled = whole.clone().line(&name.to_lowercase(), &value);
        doubled.send(&stack).await.assert_error(403, "bad_request", "none");
        for separator in ["_", ".", "!", "~"] {
            let alias = whole.clone().line(&name.replace('-', separator), &value);
            alias.send(&stack).await.assert_error(403, "bad_request", "none");
        }
    }
    // Bytes that are not text.
    let odd = whole.clone().with("X-Forwarded-Uri", "/caf\u{e9}");
    odd.send(&stack).await.assert_error(403, "bad_request", "none");
}

/// The message names what to correct in the proxy's configuration or in the client.
#[tokio::test(flavor = "multi_thread")]
async fn the_rejection_of_a_malformed_description_has_the_reason() {
    let stack = start().await;
    let whole = about("/none");
    for (asked, has) in [
        (
            whole.clone().with("X-Forwarded-Uri", "/caf\u{e9}"),
            "X-Forwarded-Uri: bytes outside ASCII must be percent-encoded",
        ),
        (whole.clone().with("X-Forwarded-Uri", "/none?q=\u{4f60}"), "percent-encoded"),
        (whole.clone().with("X-Forwarded-Uri", "/a\\b"), "X-Forwarded-Uri"),
        (whole.clone().with("X-Forwarded-Uri", "/a b"), "X-Forwarded-Uri"),
        (whole.clone().with("X-Forwarded-Uri", "/a`b"), "X-Forwarded-Uri"),
        (whole.clone().with("X-Forwarded-Uri", "none"), "X-Forwarded-Uri must begin with \"/\""),
        (
            whole.clone().with("X-Forwarded-Uri", "http://h/none"),
            "X-Forwarded-Uri must begin with \"/\"",
        ),
        (whole.clone().with("X-Forwarded-Uri", ""), "X-Forwarded-Uri must begin with \"/\""),
        (whole.clone().with("X-Forwarded-Host", "caf\u{e9}.test"), "X-Forwarded-Host is malformed"),
        (whole.clone().with("X-Forwarded-Host", "a, b"), "X-Forwarded-Host is malformed"),
        (whole.clone().with("X-Forwarded-Method", "g\u{e9}t"), "X-Forwarded-Method"),
        (whole.clone().with("X-Forwarded-Method", "TRACE"), "X-Forwarded-Method"),
        (whole.clone().with("X-Forwarded-Method", ""), "X-Forwarded-Method"),
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
        whole.clone().with("X-Forwarded-For", "caf\u{e9}").with("X-Forwarded-Host", "shop.test:");
    assert_eq!(odd.send(&stack).await.status, 200);
}
