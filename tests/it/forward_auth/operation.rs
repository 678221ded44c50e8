//! Forward-auth for operators: configuration, rates, metrics, logs and connections.

use std::net::SocketAddr;

use serde_json::Value;
use wxgate::server::Command;

use super::{DecisionRequest, about, assert_identity, start_with};
use crate::harness::client::Connection;
use crate::harness::{APP, PATIENCE, openid};

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
    let exchange = async |request: DecisionRequest| {
        let mut connection = Connection::open(stack.forward_auth.unwrap()).await;
        connection.send(&request.bytes()).await;
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
    let own = about("/login").with("X-Forwarded-Host", "MINI.test:443");
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
    for rejected in [about("/user").token(&alice), about("/address")] {
        let response = rejected.send(&stack).await;
        response.assert_error(403, "rate_limited", "retry");
        assert!(response.header("retry-after").is_some());
    }
    assert_identity(&about("/user").token(&bob).send(&stack).await, &openid("bob"));
    let elsewhere = about("/address").with("X-Forwarded-For", "198.51.100.8");
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
    about("/orders").with("X-Forwarded-Method", "POST").send(&stack).await;
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
