//! Who may reach a route.

use crate::harness::{OTHER_APP, Stack, TWO_APPS, openid};

#[tokio::test(flavor = "multi_thread")]
async fn a_required_route_needs_a_session() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;

    let rejected = stack.get("/orders").send().await;
    rejected.assert_error(401, "missing_token", "login");
    assert_eq!(rejected.header("www-authenticate"), Some("Bearer"));
    let rejected = stack.get("/orders").token(&"A".repeat(43)).send().await;
    rejected.assert_error(401, "session_expired", "login");
    assert_eq!(rejected.header("www-authenticate"), None);
    assert!(stack.upstream.requests().is_empty());

    let received = stack.get("/orders").token(&token).forwarded().await;
    assert_eq!(received.all("x-openid"), [openid("alice")]);
    let received = stack.get("/orders").bearer(&token).forwarded().await;
    assert_eq!(received.all("x-openid"), [openid("alice")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_route_allows_no_token_but_not_an_invalid_one() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;

    let received = stack.get("/optional/x").forwarded().await;
    assert_eq!(received.folded("x-openid"), [""; 0]);
    let received = stack.get("/optional/x").token("").forwarded().await;
    assert_eq!(received.folded("x-openid"), [""; 0]);
    let received = stack.get("/optional/x").token(&token).forwarded().await;
    assert_eq!(received.all("x-openid"), [openid("alice")]);
    let rejected = stack.get("/optional/x").token(&"A".repeat(43)).send().await;
    rejected.assert_error(401, "session_expired", "login");
    let rejected = stack.get("/optional/x").token("malformed").send().await;
    rejected.assert_error(401, "session_expired", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_none_route_never_looks_at_a_token_and_never_forwards_one() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    for request in [
        stack.get("/none/x"),
        stack.get("/none/x").token(&token),
        stack.get("/none/x").bearer(&token),
        stack.get("/none/x").token("malformed"),
        stack.get("/none/x").token(&"A".repeat(43)),
    ] {
        let received = request.forwarded().await;
        assert_eq!(received.folded("x-openid"), [""; 0]);
        assert_eq!(received.folded("x-3rd-session"), [""; 0]);
        assert_eq!(received.all("authorization"), [""; 0]);
    }
    assert_eq!(stack.metric("wxgate_auth_decisions_total{decision=\"ok\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicting_tokens_are_rejected() {
    let stack = Stack::start().await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    for request in [
        stack.get("/").token(&alice).bearer(&bob),
        stack.get("/").token(&alice).token(&alice),
        stack.get("/").bearer(&alice).bearer(&bob),
    ] {
        request.send().await.assert_error(400, "bad_request", "none");
    }
    assert!(stack.upstream.requests().is_empty());
    stack.get("/").token(&alice).bearer(&alice).forwarded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_in_the_url_are_never_read() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    for path in [format!("/?token={token}"), format!("/?access_token={token}")] {
        stack.get(&path).send().await.assert_error(401, "missing_token", "login");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_keeps_its_own_authorization() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    for own in ["Basic dXNlcjpwYXNz", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "Digest a=b"] {
        let received = stack.get("/").token(&token).header("Authorization", own).forwarded().await;
        assert_eq!(received.all("authorization"), [own]);
    }
    let received = stack.get("/").bearer(&token).forwarded().await;
    assert_eq!(received.all("authorization"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_bearer_carrier_authorization_is_not_touched() {
    let stack = Stack::start_with(r#"session.carriers = ["header"]"#).await;
    let token = stack.login("alice").await;
    stack.get("/").bearer(&token).send().await.assert_error(401, "missing_token", "login");
    let own = format!("Bearer {}", "A".repeat(43));
    let received = stack.get("/").token(&token).header("Authorization", &own).forwarded().await;
    assert_eq!(received.all("authorization"), [own]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_without_a_route_is_not_found() {
    let stack = Stack::start_with(
        r#"
        [[route]]
        path = "/api"
        upstream = "recorder"
        auth = "none"
        "#,
    )
    .await;
    stack.get("/").send().await.assert_error(404, "no_route", "none");
    stack.get("/apis").send().await.assert_error(404, "no_route", "none");
    stack.get("/api/x").forwarded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_may_list_its_methods() {
    let stack = Stack::start_with(
        r#"
        [[route]]
        path = "/"
        upstream = "recorder"
        auth = "none"
        methods = ["GET", "HEAD"]
        "#,
    )
    .await;
    let rejected = stack.post("/").send().await;
    rejected.assert_error(405, "method_not_allowed", "none");
    assert_eq!(rejected.header("allow"), Some("GET, HEAD"));
    stack.get("/").forwarded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_may_list_its_apps() {
    let changes = format!(
        r#"
        {TWO_APPS}
        [[route]]
        path = "/"
        upstream = "recorder"
        auth = "required"
        apps = ["{OTHER_APP}"]
        "#
    );
    let stack = Stack::start_with(&changes).await;
    let token = stack.login("alice").await;
    stack.get("/").token(&token).send().await.assert_error(403, "wrong_app", "none");
    let body = serde_json::json!({ "code": "user-alice-2", "app_id": OTHER_APP });
    let response = stack.post("/login").json(&body).send().await;
    let token = response.json()["token"].as_str().unwrap().to_owned();
    let received = stack.get("/").token(&token).forwarded().await;
    assert_eq!(received.all("x-appid"), [OTHER_APP]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_reads_as_two_routes_is_rejected_and_any_other_is_forwarded_unchanged() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    for path in [
        "/none/../admin",
        "/none/..;/admin",
        "/none/%2e%2e/admin",
        "/none/%252e%252e/admin",
        "/none%2fx",
        "//login",
        "/%6cogin",
        "/login;x",
        "/none/x/%2e%2e%2f..",
        "/x%00",
        "/x%c0%af",
        "/x%2",
        "/none/..%5cadmin",
    ] {
        stack.get(path).token(&token).send().await.assert_error(400, "bad_request", "none");
    }
    assert!(stack.upstream.requests().is_empty());
    for path in
        ["/a%2Fb", "/a;jsessionid=1", "//a", "/a/../b", "/none/%E4%BD%A0?x=/../%00", "/a/./b"]
    {
        let received = stack.get(path).token(&token).forwarded().await;
        assert_eq!(received.target(), path);
    }
}
