//! What clients cannot change about a decision, nor the way in which the proxy requests it.

use super::{DecisionRequest, ON, about, assert_identity, start, start_with};
use crate::harness::client::Connection;
use crate::harness::{Stack, openid};

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
            .with("X-Forwarded-Method", "OPTIONS")
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
