//! How long a session lives, and the session endpoint.

use std::time::Duration;

use crate::harness::{APP, Stack};

#[tokio::test(flavor = "multi_thread")]
async fn the_session_endpoint_returns_the_remaining_time_and_counts_as_use() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    stack.get("/session").send().await.assert_error(401, "missing_token", "login");
    stack.get("/session").token("x").send().await.assert_error(401, "session_expired", "login");

    stack.clock.advance(Duration::from_secs(7199));
    let response = stack.get("/session").token(&token).send().await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(response.json(), serde_json::json!({ "expires_in": 7200, "app_id": APP }));
    stack.clock.advance(Duration::from_secs(7199));
    assert_eq!(stack.get("/session").token(&token).send().await.status, 200);

    let rejected = stack.post("/session").token(&token).send().await;
    rejected.assert_error(405, "method_not_allowed", "none");
    assert_eq!(rejected.header("allow"), Some("GET, HEAD"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_expires_after_its_idle_timeout_and_at_its_absolute_end() {
    let stack = Stack::start_with("session = { ttl = \"1h\", idle_timeout = \"30m\" }").await;
    let idle = stack.login("alice").await;
    let busy = stack.login("alice").await;
    for _ in 0..3 {
        stack.clock.advance(Duration::from_secs(19 * 60));
        assert_eq!(stack.get("/").token(&busy).send().await.status, 200);
    }
    stack.get("/").token(&idle).send().await.assert_error(401, "session_expired", "login");
    let left = stack.get("/session").token(&busy).send().await.json();
    assert_eq!(left["expires_in"], 180);
    stack.clock.advance(Duration::from_secs(180));
    stack.get("/").token(&busy).send().await.assert_error(401, "session_expired", "login");
    let expired = "wxgate_sessions_removed_total{cause=\"expired\"}";
    assert_eq!(stack.metric(expired).await, 2.0);
    assert_eq!(stack.metric("wxgate_sessions").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_still_takes_logins() {
    let stack = Stack::start_with("session.capacity = 3").await;
    let mut tokens = Vec::new();
    for _ in 0..10 {
        tokens.push(stack.login("alice").await);
        let newest = tokens.last().unwrap();
        assert_eq!(stack.get("/").token(newest).send().await.status, 200);
    }
    assert_eq!(stack.metric("wxgate_sessions").await, 3.0);
    stack.get("/").token(&tokens[0]).send().await.assert_error(401, "session_expired", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_may_have_other_paths_and_be_on_some_hosts_only() {
    let stack = Stack::start_with(
        r#"
        [endpoints]
        login = ["/auth/login", "/wx/login"]
        logout = []
        hosts = ["gateway.test"]
        "#,
    )
    .await;
    let body = serde_json::json!({ "code": "user-a-1" });
    assert_eq!(stack.post("/wx/login").json(&body).send().await.status, 200);
    let token = stack.post("/auth/login").json(&serde_json::json!({ "code": "user-a-2" }));
    let token = token.send().await.json()["token"].as_str().unwrap().to_owned();
    // The default paths are no longer endpoints: these are forwarded.
    assert_eq!(stack.post("/login").token(&token).forwarded().await.target(), "/login");
    assert_eq!(stack.post("/logout").token(&token).forwarded().await.target(), "/logout");

    let mut connection = crate::harness::client::Connection::open(stack.gateway).await;
    let request = format!(
        "POST /auth/login HTTP/1.1\r\nHost: other.test\r\nX-3rd-Session: {token}\r\nContent-Length: 0\r\n\r\n"
    );
    connection.send(request.as_bytes()).await;
    assert_eq!(connection.response(false).await.text(), "hello");
    assert_eq!(stack.upstream.requests().last().unwrap().target(), "/auth/login");
}
