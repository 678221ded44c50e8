//! Listeners that redirect clients to HTTPS.

use std::net::SocketAddr;

use crate::harness::client::{Connection, Response};
use crate::harness::{PATIENCE, Stack};
use crate::tls::https;

/// A stack with such a listener, and where it is.
async fn start(changes: &str) -> (Stack, SocketAddr) {
    let directory = tempfile::tempdir().unwrap();
    let changes = format!("server.redirect = \"127.0.0.1:0\"\n{changes}");
    let stack = Stack::start_with(&https(directory.path(), &changes).0).await;
    let redirect = stack.public[1];
    (stack, redirect)
}

async fn send(redirect: SocketAddr, request: &str) -> Response {
    let mut connection = Connection::open(redirect).await;
    connection.send(request.as_bytes()).await;
    let response = connection.response(request.starts_with("HEAD")).await;
    assert_eq!(response.header("connection"), Some("close"));
    connection.finish().await;
    assert!(connection.is_closed().await, "{request:?}");
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_redirected_to_https_unchanged() {
    let (stack, redirect) = start("").await;
    for (target, host, location) in [
        ("/", "a.test", "https://a.test/"),
        ("/x/../y?q=1&r=/%2e?", "a.test", "https://a.test/x/../y?q=1&r=/%2e?"),
        ("/x", "a.test:8080", "https://a.test/x"),
        ("/x", "a.test:", "https://a.test/x"),
        ("/x", "[::1]:", "https://[::1]/x"),
        ("/x", "10.0.0.1:80", "https://10.0.0.1/x"),
        ("/x", "[2001:db8::1]", "https://[2001:db8::1]/x"),
        ("/x", "[2001:db8::1]:80", "https://[2001:db8::1]/x"),
        ("//evil.test/x", "a.test", "https://a.test//evil.test/x"),
        ("/http://evil.test/", "a.test", "https://a.test/http://evil.test/"),
        ("/?u=http://evil.test/", "a.test", "https://a.test/?u=http://evil.test/"),
        ("http://a.test/x?y", "a.test", "https://a.test/x?y"),
        ("http://a.test:80/x", "a.test:80", "https://a.test/x"),
        ("http://a.test", "a.test", "https://a.test/"),
        ("http://a.test?y", "a.test", "https://a.test/?y"),
        ("https://a.test/x", "a.test", "https://a.test/x"),
        ("HTTP://a.test/x", "a.test", "https://a.test/x"),
        ("HttpS://a.test:?y", "a.test:", "https://a.test/?y"),
        ("/login", "a.test", "https://a.test/login"),
    ] {
        for method in ["GET", "HEAD", "DELETE"] {
            let request = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let response = send(redirect, &request).await;
            assert_eq!(response.status, 308, "{request:?}");
            assert_eq!(response.header("location"), Some(location));
            assert_eq!(response.header("content-length"), Some("0"));
            assert_eq!(response.header("cache-control"), Some("no-store"));
            assert!(response.header("x-request-id").is_some());
        }
    }
    let old = send(redirect, "GET /x HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(old.header("location"), Some("https://a.test/x"));
    let offer = "Connection: Upgrade\r\nUpgrade: h2c\r\n";
    let offer = send(redirect, &format!("GET /x HTTP/1.1\r\nHost: a.test\r\n{offer}\r\n")).await;
    assert_eq!(offer.header("location"), Some("https://a.test/x"));
    assert!(stack.upstream.requests().is_empty());
    let metric = "wxgate_http_requests_total{code=\"308\",route=\"@none\"}";
    stack.until_metric(metric, 19.0 * 3.0 + 2.0).await;
}

/// A client's `Host` can neither inject a header nor redirect to a host of its choice.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_usable_host_is_400() {
    let (stack, redirect) = start("").await;
    for header in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET http://a.test/ HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user:password@a.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\\@b.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test/x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test?x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test%0d%0aX-Evil: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\rX-Evil: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\nX-Evil: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test::\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test:80x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test:99999\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [evil]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \u{540d}.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
        "GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET http://user@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET /x#y HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET evil HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 80\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    ] {
        let response = send(redirect, header).await;
        response.assert_error(400, "bad_request", "none");
        assert_eq!(response.header("location"), None);
        assert_eq!(response.header("x-evil"), None);
    }
    stack.until_metric("wxgate_http_requests_total{code=\"400\",route=\"@none\"}", 26.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_https_port_is_in_the_redirect_and_health_is_served() {
    let changes = "server.redirect_port = 8443\nendpoints.health = \"/health\"\n\
                   log.access = \"{dir}/access.log\"";
    let (stack, redirect) = start(changes).await;
    let response = send(redirect, "POST /x?secret HTTP/1.1\r\nHost: a.test:80\r\n\r\n").await;
    assert_eq!(response.header("location"), Some("https://a.test:8443/x?secret"));
    assert_eq!(send(redirect, "GET /health HTTP/1.0\r\n\r\n").await.text(), "ok\n");
    let head = send(redirect, "HEAD /health?x HTTP/1.1\r\n\r\n").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("3")));
    let post = send(redirect, "POST /health HTTP/1.1\r\n\r\n").await;
    post.assert_error(405, "method_not_allowed", "none");
    assert_eq!(post.header("allow"), Some("GET, HEAD"));
    stack.until_metric("wxgate_http_requests_total{code=\"200\",route=\"@health\"}", 2.0).await;

    let text = stack.access_log(4).await;
    let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&line["method"], &line["path"]), (&"POST".into(), &"/x".into()));
    assert_eq!((&line["route"], &line["status"]), (&"@none".into(), &308.into()));
    assert_eq!(line["error"], serde_json::Value::Null);
}

/// A client in the middle of an upload gets the redirect, not a reset.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_still_sending_gets_the_redirect() {
    let (_stack, redirect) = start("").await;
    let mut connection = Connection::open(redirect).await;
    let header = "POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3000000\r\n\r\n";
    connection.send(&[header.as_bytes(), &vec![b'x'; 3_000_000]].concat()).await;
    assert_eq!(connection.response(false).await.status, 308);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_are_those_of_all_public_listeners() {
    let (stack, redirect) = start("limits.header_timeout = \"300ms\"").await;
    let mut slow = Connection::open(redirect).await;
    slow.send(b"GET / HTTP/1.1\r\nHost: ").await;
    slow.response(false).await.assert_error(408, "request_timeout", "none");
    let mut silent = Connection::open(redirect).await;
    assert!(silent.is_closed().await);
    let long = format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n", "x".repeat(9 << 10));
    send(redirect, &long).await.assert_error(431, "headers_too_large", "none");
    drop(stack);

    let (_stack, redirect) = start("limits.max_connections = 1").await;
    let mut held = Connection::open(redirect).await;
    held.send(b"GET /").await;
    let turned_away = async {
        loop {
            let response = send(redirect, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            if response.status == 503 {
                return response;
            }
        }
    };
    let turned_away = tokio::time::timeout(PATIENCE, turned_away).await.unwrap();
    turned_away.assert_error(503, "overloaded", "retry");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_handshake_fails_on_a_redirect_listener() {
    let (stack, redirect) = start("").await;
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let config = crate::harness::certificate::credulous();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = tokio::net::TcpStream::connect(redirect).await.unwrap();
    assert!(connector.connect(name, stream).await.is_err());
    assert!(stack.upstream.requests().is_empty());
}
