//! Rate limits of users, addresses and apps: none of them can use up the limit of another.

use std::time::Duration;

use serde_json::json;

use crate::harness::client::Response;
use crate::harness::{APP, OTHER_APP, Stack, TWO_APPS};

/// A required, an anonymous and an optional route with limits.
const ROUTES: &str = r#"
    [[route]]
    path = "/"
    upstream = "recorder"
    rate_per_user = "2/10s"
    [[route]]
    path = "/none"
    upstream = "recorder"
    auth = "none"
    rate_per_address = "2/10s"
    [[route]]
    path = "/optional"
    upstream = "recorder"
    auth = "optional"
    rate_per_user = "2/10s"
"#;

fn assert_limited(response: &Response, seconds: &str) {
    response.assert_error(429, "rate_limited", "retry");
    assert_eq!(response.header("retry-after"), Some(seconds));
}

#[tokio::test]
async fn the_rate_of_a_user_counts_all_its_sessions_on_a_route() {
    let stack = Stack::start_with(ROUTES).await;
    let (first, second) = (stack.login("alice").await, stack.login("alice").await);
    let bob = stack.login("bob").await;
    assert_eq!(stack.get("/").token(&first).send().await.status, 200);
    assert_eq!(stack.get("/").token(&second).send().await.status, 200);
    assert_limited(&stack.get("/").token(&first).send().await, "5");
    assert_limited(&stack.get("/").token(&second).send().await, "5");
    assert_eq!(stack.upstream.requests().len(), 2);
    // Neither another user nor another route is affected.
    assert_eq!(stack.get("/").token(&bob).send().await.status, 200);
    assert_eq!(stack.get("/optional").token(&first).send().await.status, 200);

    stack.clock.advance(Duration::from_secs(5));
    assert_eq!(stack.get("/").token(&first).send().await.status, 200);
    assert_limited(&stack.get("/").token(&first).send().await, "5");
}

#[tokio::test]
async fn requests_without_a_session_have_no_user_limit() {
    let stack = Stack::start_with(ROUTES).await;
    for _ in 0..5 {
        assert_eq!(stack.get("/optional").send().await.status, 200);
        let rejected = stack.get("/").token(&"x".repeat(43)).send().await;
        rejected.assert_error(401, "session_expired", "login");
    }
}

#[tokio::test]
async fn the_rate_of_an_address_counts_all_its_requests_on_a_route() {
    let stack = Stack::start_with(ROUTES).await;
    let token = stack.login("alice").await;
    assert_eq!(stack.get("/none").send().await.status, 200);
    assert_eq!(stack.get("/none").token(&token).send().await.status, 200);
    assert_limited(&stack.get("/none").header("X-Forwarded-For", "192.0.2.1").send().await, "5");
    assert_eq!(stack.upstream.requests().len(), 2);
    assert_eq!(stack.get("/").token(&token).send().await.status, 200);
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_has_its_own_limit_and_the_proxy_none() {
    let trusted = format!("[server]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\n{ROUTES}");
    let stack = Stack::start_with(&trusted).await;
    let from = |hops: &str| stack.get("/none").header("X-Forwarded-For", hops).send();
    for _ in 0..2 {
        assert_eq!(from("192.0.2.1").await.status, 200);
        assert_eq!(from("192.0.2.2, 10.0.0.1").await.status, 200);
    }
    // The list left of the client's address may be forged by the client.
    assert_limited(&from("6.6.6.6, 192.0.2.1").await, "5");
    assert_limited(&from("192.0.2.2").await, "5");
    for _ in 0..5 {
        assert_eq!(stack.get("/none").send().await.status, 200);
        assert_eq!(from("10.0.0.1").await.status, 200);
    }
}

#[tokio::test]
async fn the_login_rate_of_an_app_limits_calls_to_wechat() {
    let changes = format!(
        r#"
        [login]
        rate_per_app = "2/10s"
        {TWO_APPS}
        "#
    );
    let stack = Stack::start_with(&changes).await;
    stack.login("alice").await;
    stack.login("bob").await;
    let limited = stack.try_login("user-carol-1").await;
    limited.assert_error(429, "rate_limited", "retry");
    // Clients that were rejected together do not retry together.
    let wait: u32 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((5..=7).contains(&wait), "{wait}");
    // Another app has its own limit, and a malformed login does not count.
    assert_eq!(stack.try_login("").await.status, 400);
    let other = json!({ "code": "user-carol-2", "app_id": OTHER_APP });
    assert_eq!(stack.post("/login").json(&other).send().await.status, 200);
    let calls = format!("wxgate_code2session_requests_total{{app_id=\"{APP}\",errcode=\"ok\"}}");
    stack.until_metric(&calls, 2.0).await;
    let rejected = format!("wxgate_logins_total{{app_id=\"{APP}\",outcome=\"rate_limited\"}}");
    stack.until_metric(&rejected, 1.0).await;

    // The code was not spent.
    stack.clock.advance(Duration::from_secs(5));
    assert_eq!(stack.try_login("user-carol-1").await.status, 200);
}

#[tokio::test]
async fn the_login_rate_of_an_address_counts_failed_logins_too() {
    let stack = Stack::start_with("[login]\nrate_per_address = \"2/10s\"").await;
    stack.login("alice").await;
    assert_eq!(stack.try_login("err-40029-1").await.status, 401);
    assert_limited(&stack.try_login("user-bob-1").await, "5");
    let rejected = "wxgate_logins_total{app_id=\"unknown\",outcome=\"rate_limited\"}";
    stack.until_metric(rejected, 1.0).await;
    stack.clock.advance(Duration::from_secs(5));
    stack.login("bob").await;
}

#[tokio::test]
async fn a_route_has_its_own_limit_on_bodies() {
    let stack = Stack::start_with(
        r#"
        [limits]
        max_body = "100B"
        [[route]]
        path = "/"
        upstream = "recorder"
        auth = "none"
        [[route]]
        path = "/upload"
        upstream = "recorder"
        auth = "none"
        max_body = "200B"
        "#,
    )
    .await;
    for (path, longest) in [("/", 100), ("/upload", 200)] {
        let post = |length: usize| stack.post(path).body(vec![b'x'; length]);
        assert_eq!(post(longest).send().await.status, 200);
        assert_eq!(post(longest).chunked().send().await.status, 200);
        post(longest + 1).send().await.assert_error(413, "body_too_large", "none");
        post(longest + 1).chunked().send().await.assert_error(413, "body_too_large", "none");
    }
}
