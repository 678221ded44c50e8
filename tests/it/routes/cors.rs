//! CORS: preflights, and the headers of responses.

use crate::harness::Stack;
use crate::harness::upstream::Reply;

const PREFLIGHT: &str = "Access-Control-Request-Method";
const PAGE: &str = "https://h5.example.com";

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_gets_a_response_without_a_session_and_responses_have_cors_headers() {
    let stack = Stack::start_with(
        r#"
        [[route]]
        path = "/"
        upstream = "recorder"
        [[route]]
        path = "/api"
        upstream = "recorder"
        methods = ["GET", "PUT"]
        cors = { origins = ["https://h5.example.com", "http://localhost:8080"], credentials = true, max_age = "1h" }
        "#,
    )
    .await;
    let token = stack.login("alice").await;
    let preflight = |path: &str, origin: &str, method: &str| {
        stack.request("OPTIONS", path).header("Origin", origin).header(PREFLIGHT, method).send()
    };
    let response = preflight("/api/x", PAGE, "PUT").await;
    assert_eq!((response.status, response.body.len()), (204, 0));
    assert_eq!(response.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(response.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(response.header("access-control-allow-methods"), Some("GET, PUT"));
    let headers = response.header("access-control-allow-headers");
    assert_eq!(headers, Some("content-type, authorization, x-3rd-session"));
    assert_eq!(response.header("access-control-max-age"), Some("3600"));
    assert_eq!(response.header("access-control-expose-headers"), None);
    let vary = Some("Origin, X-3rd-Session, Authorization");
    assert_eq!(response.header("vary"), vary);
    // An origin that is not allowed gets no CORS headers.
    for origin in ["https://evil.example", "null", "https://h5.example.com.evil.example"] {
        let response = preflight("/api/x", origin, "PUT").await;
        assert_eq!((response.status, response.header("vary")), (204, vary));
        assert_eq!(response.header("access-control-allow-origin"), None);
        assert_eq!(response.header("access-control-allow-methods"), None);
    }
    assert_eq!(preflight("/api/x", PAGE, "DELETE").await.status, 204);
    assert!(stack.upstream.requests().is_empty());
    // Without `cors` it is a request like any other.
    preflight("/x", PAGE, "PUT").await.assert_error(401, "missing_token", "login");
    let options = stack.request("OPTIONS", "/api/x").header("Origin", PAGE).token(&token);
    options.send().await.assert_error(405, "method_not_allowed", "none");

    stack.upstream.reply(|_| {
        Reply::ok(
            "Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Methods: DELETE\r\nX-Kept: 1\r\n",
            "hello",
        )
    });
    let response = stack.get("/api/x").token(&token).header("Origin", PAGE).send().await;
    assert_eq!(response.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(response.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(response.header("access-control-allow-methods"), None);
    let exposed = response.header("access-control-expose-headers");
    assert_eq!(exposed, Some("retry-after, x-request-id, x-wxgate-error"));
    assert_eq!((response.header("vary"), response.header("x-kept")), (vary, Some("1")));
    let response = stack.get("/api/x").token(&token).send().await;
    assert_eq!(response.header("access-control-allow-origin"), None);
    assert_eq!(response.header("vary"), vary);
    let rejected = stack.get("/api/x").header("Origin", PAGE).send().await;
    rejected.assert_error(401, "missing_token", "login");
    assert_eq!(rejected.header("access-control-allow-origin"), Some(PAGE));
    stack.upstream.reply(|_| Reply::Last(Vec::new()));
    let rejected = stack.get("/api/x").token(&token).header("Origin", PAGE).send().await;
    rejected.assert_error(502, "bad_gateway", "retry");
    assert_eq!(rejected.header("access-control-allow-origin"), Some(PAGE));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_origin_is_allowed_where_the_configuration_says_so() {
    let stack = Stack::start_with(
        r#"
        [[route]]
        path = "/"
        auth = "none"
        respond = { body = "hello" }
        cors = { origins = ["*"], methods = ["GET"], headers = [], expose = [] }
        "#,
    )
    .await;
    let response = stack.get("/").header("Origin", "null").send().await;
    assert_eq!(response.header("access-control-allow-origin"), Some("*"));
    assert_eq!((response.header("vary"), response.text().as_str()), (None, "hello"));
    let preflight = stack.request("OPTIONS", "/").header("Origin", PAGE).header(PREFLIGHT, "GET");
    let response = preflight.send().await;
    assert_eq!(response.header("access-control-allow-origin"), Some("*"));
    assert_eq!(response.header("access-control-allow-methods"), Some("GET"));
    assert_eq!(response.header("access-control-allow-headers"), None);
    assert_eq!(response.header("access-control-max-age"), Some("600"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_may_be_forwarded_without_a_session_and_nothing_else() {
    let stack = Stack::start_with(
        r#"
        [[route]]
        path = "/"
        upstream = "recorder"
        methods = ["GET", "PUT"]
        preflight = "pass"
        "#,
    )
    .await;
    let token = stack.login("alice").await;
    let preflight = |method: &str| {
        stack.request("OPTIONS", "/x").header("Origin", PAGE).header(PREFLIGHT, method)
    };
    let override_name = "X-HTTP-Method-Override";
    let received = preflight("PUT").token(&token).header(override_name, "PUT").forwarded().await;
    assert_eq!(received.request_line, "OPTIONS /x HTTP/1.1");
    assert_eq!((received.folded("x-openid"), received.folded("x-3rd-session")), (vec![], vec![]));
    assert_eq!(received.folded(override_name), [""; 0]);
    assert_eq!(received.all("origin"), [PAGE]);
    for request in [
        preflight("DELETE"),
        stack.request("OPTIONS", "/x").header("Origin", PAGE),
        stack.request("OPTIONS", "/x").header(PREFLIGHT, "PUT"),
        preflight("PUT").header(PREFLIGHT, "GET"),
        // The service would not take it for a preflight.
        preflight("PUT").header("Connection", "Origin"),
        preflight("PUT").header("Connection", "close, access-control-request-method"),
    ] {
        request.send().await.assert_error(405, "method_not_allowed", "none");
    }
    let put = stack.request("PUT", "/x").header("Origin", PAGE).header(PREFLIGHT, "PUT");
    put.send().await.assert_error(401, "missing_token", "login");
    assert_eq!(stack.upstream.requests().len(), 1);
}
