//! What a route changes in a request and its response: path, headers, timeouts.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::harness::upstream::Reply;
use crate::harness::{Stack, openid};

#[tokio::test(flavor = "multi_thread")]
async fn a_route_can_rewrite_the_path_for_its_service() {
    let stack = Stack::start_with(
        r#"
        [[route]]
        path = "/"
        upstream = "recorder"
        auth = "none"
        [[route]]
        path = "/api"
        upstream = "recorder"
        auth = "none"
        strip_prefix = "/api"
        [[route]]
        path = "/api/v1/shop"
        upstream = "recorder"
        auth = "none"
        strip_prefix = "/api/v1"
        add_prefix = "/internal/"
        "#,
    )
    .await;
    for (path, target) in [
        ("/api", "/"),
        ("/api/", "/"),
        ("/api?x=/../y", "/?x=/../y"),
        ("/api/orders/1?x=%2e%2e", "/orders/1?x=%2e%2e"),
        ("/api/%E5%95%86%E5%93%81/a%20b", "/%E5%95%86%E5%93%81/a%20b"),
        ("/api/.well-known/x", "/.well-known/x"),
        ("/api/login", "/login"),
        ("/api/v1/shop/x/", "/internal/shop/x/"),
        ("/apis", "/apis"),
    ] {
        assert_eq!(stack.get(path).forwarded().await.target(), target, "{path}");
        let absolute = format!("http://gateway.test{path}");
        assert_eq!(stack.get(&absolute).forwarded().await.target(), target, "{absolute}");
    }
    // Each would be forwarded on a route that does not rewrite paths.
    let before = stack.upstream.requests().len();
    for rest in [
        "/a/../b", "/./b", "//b", "/a;v=1", "/a%2Fb", "/a%5Cb", "/a%2Eb", "/a%25", "/a%3Bb",
        "/a%3Fb", "/a%23b",
    ] {
        let rejected = stack.get(&format!("/api{rest}")).send().await;
        rejected.assert_error(400, "bad_request", "none");
        stack.get(&format!("/x{rest}")).forwarded().await;
    }
    assert_eq!(stack.upstream.requests().len(), before + 11);
    stack.until_metric("wxgate_http_requests_total{code=\"200\",route=\"/api\"}", 14.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_path_reaches_the_service_over_http2_too() {
    let stack = Stack::start_with(
        "[server]\nh2c = true\n[[route]]\npath = \"/api\"\nupstream = \"recorder\"\nauth = \"none\"\n\
         strip_prefix = \"/api\"\nhost = \"127.0.0.1\"",
    )
    .await;
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let url = format!("http://{}/api/x?y=1", stack.gateway);
    assert_eq!(client.get(url).send().await.unwrap().status(), 200);
    let received = stack.upstream.requests();
    assert_eq!(received[0].target(), "/x?y=1");
    assert_eq!(received[0].all("host"), [stack.gateway.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_sets_and_removes_headers_but_identity_stays_the_gateways() {
    let stack = Stack::start_with(
        r#"
        [[route]]
        path = "/"
        upstream = "recorder"
        set_request_headers = { X-Api-Version = "2", Authorization = "Bearer aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }
        remove_request_headers = ["X-Admin", "Cookie"]
        set_response_headers = { Strict-Transport-Security = "max-age=1", Server = "shop" }
        remove_response_headers = ["X-Powered-By", "Set-Cookie"]
        "#,
    )
    .await;
    let token = stack.login("alice").await;
    stack.upstream.reply(|_| {
        Reply::ok("Server: x\r\nX-Powered-By: y\r\nSet-Cookie: a=b\r\nX-Kept: 1\r\n", "hello")
    });
    let received = stack
        .get("/")
        .token(&token)
        .header("X_Api_Version", "9")
        .header("x-api-version", "8")
        .header("X-Admin", "1")
        .header("X_ADMIN", "1")
        .header("Cookie", "a=b")
        .header("X-OpenId", "forged")
        .header("X-Kept", "1")
        .forwarded()
        .await;
    assert_eq!(received.folded("x-api-version"), ["2"]);
    assert_eq!(received.folded("x-admin"), [""; 0]);
    assert_eq!(received.folded("cookie"), [""; 0]);
    assert_eq!(received.folded("authorization"), [format!("Bearer {}", "a".repeat(43))]);
    assert_eq!(received.folded("x-openid"), [openid("alice")]);
    assert_eq!(received.all("x-kept"), ["1"]);
    let response = stack.get("/").token(&token).send().await;
    assert_eq!(response.header("server"), Some("shop"));
    assert_eq!(response.header("strict-transport-security"), Some("max-age=1"));
    assert_eq!(response.header("x-kept"), Some("1"));
    assert_eq!((response.header("x-powered-by"), response.header("set-cookie")), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_of_a_route_override_those_of_its_upstream() {
    let stack = Stack::start_with(
        r#"
        [[upstream]]
        name = "recorder"
        servers = ["{upstream}"]
        read_timeout = "1h"
        [[route]]
        path = "/"
        upstream = "recorder"
        auth = "none"
        [[route]]
        path = "/quick"
        upstream = "recorder"
        auth = "none"
        read_timeout = "50ms"
        "#,
    )
    .await;
    let released = Arc::new(Notify::new());
    let waits = released.clone();
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec();
    stack.upstream.reply(move |received| match received.target() {
        "/quick" => Reply::Stall(Vec::new()),
        _ => Reply::When(waits.clone(), ok.clone()),
    });
    let slow = stack.get("/slow").send();
    let quick = async {
        let response = stack.get("/quick").send().await;
        response.assert_error(504, "gateway_timeout", "retry");
        released.notify_one();
    };
    let (slow, ()) = tokio::join!(slow, quick);
    assert_eq!(slow.status, 200);
}
