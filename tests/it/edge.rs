//! Limits and deadlines of connections and request headers, and their rejections.

use std::time::Duration;

use crate::harness::client::Connection;
use crate::harness::{Stack, openid};

#[tokio::test(flavor = "multi_thread")]
async fn a_doubtful_request_header_is_rejected_and_its_connection_closed() {
    let stack = Stack::start().await;
    for header in [
        "GET /none HTTP/1.1\r\n\r\n",
        "GET /none HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        "GET /none HTTP/1.1\nHost: h\n\n",
        "GET /none HTTP/1.1\r\nHost: h\r\nX-OpenId : evil\r\n\r\n",
        "GET /none HTTP/1.1\r\nHost: h\r\nX: a\r\n X-OpenId: evil\r\n\r\n",
        "GET /none HTTP/1.1\r\nHost: h\r\nX: a\nX-OpenId: evil\r\n\r\n",
        "POST /none HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /none HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        "POST /none HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\nhello",
        "CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n",
        "TRACE /none HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /none#x HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET http://other/none HTTP/1.1\r\nHost: h\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{0}\u{5}hello\r\n\r\n",
    ] {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(header.as_bytes()).await;
        let response = connection.response(false).await;
        response.assert_error(400, "bad_request", "none");
        assert_eq!(response.header("connection"), Some("close"));
        connection.finish().await;
        assert!(connection.is_closed().await, "{header:?}");
    }
    assert!(stack.upstream.requests().is_empty());
    stack.until_metric("wxgate_http_requests_total{code=\"400\",route=\"@none\"}", 15.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_header_over_its_limits_is_rejected() {
    let stack = Stack::start().await;
    let long_value = "x".repeat(17 << 10);
    let long_path = format!("/none/{}", "x".repeat(9 << 10));
    let mut many = stack.get("/none");
    for number in 0..100 {
        many = many.header(&format!("X-{number}"), "x");
    }
    for request in [stack.get("/none").header("X-Long", &long_value), stack.get(&long_path), many] {
        request.send().await.assert_error(431, "headers_too_large", "none");
    }
    // One that never ends is rejected when it exceeds the limit.
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(format!("GET / HTTP/1.1\r\nX: {long_value}").as_bytes()).await;
    connection.response(false).await.assert_error(431, "headers_too_large", "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_header_has_a_deadline_and_so_has_an_idle_connection() {
    let stack =
        Stack::start_with("limits = { header_timeout = \"300ms\", idle_timeout = \"600ms\" }")
            .await;
    // Bytes keep coming, but the request header does not end.
    let mut connection = Connection::open(stack.gateway).await;
    for byte in b"GET / H" {
        connection.send(&[*byte]).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    connection.response(false).await.assert_error(408, "request_timeout", "none");
    // No request, so no response.
    let mut silent = Connection::open(stack.gateway).await;
    assert!(silent.is_closed().await);
    let mut idle = Connection::open(stack.gateway).await;
    idle.send(&stack.get("/none").bytes()).await;
    assert_eq!(idle.response(false).await.status, 200);
    assert!(idle.is_silent(Duration::from_millis(400)).await, "idle is not slow");
    assert!(idle.is_closed().await);
}

/// Each is a request of its own, checked by itself, in order.
#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_served_in_order() {
    let stack = Stack::start().await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    let mut bytes = Vec::new();
    bytes.extend(stack.get("/").token(&alice).bytes());
    bytes.extend(stack.post("/").token(&bob).body("payload").bytes());
    bytes.extend(stack.get("/").bytes());
    bytes.extend(stack.get("/").token(&alice).bytes());
    // All at once, and cut at the worst places.
    for size in [bytes.len(), 7, 100] {
        let before = stack.upstream.requests().len();
        let mut connection = Connection::open(stack.gateway).await;
        for part in bytes.chunks(size) {
            connection.send(part).await;
            tokio::task::yield_now().await;
        }
        for status in [200, 200, 401, 200] {
            assert_eq!(connection.response(false).await.status, status);
        }
        let received = stack.upstream.requests();
        let users: Vec<_> =
            received[before..].iter().flat_map(|received| received.all("x-openid")).collect();
        assert_eq!(users, [openid("alice"), openid("bob"), openid("alice")]);
        assert_eq!(received[before + 1].body, b"payload");
    }
}

/// A client in the middle of an upload gets the rejection, not a reset.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_reaches_a_client_that_is_still_sending() {
    let stack = Stack::start_with(r#"limits.max_body = "100MiB""#).await;
    let mut connection = Connection::open(stack.gateway).await;
    // More than the buffers of a connection hold.
    connection.send(&stack.post("/").body(vec![b'x'; 30_000_000]).bytes()).await;
    connection.response(false).await.assert_error(401, "missing_token", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_served_and_its_connection_closed() {
    let stack = Stack::start().await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"GET /none HTTP/1.0\r\nHost: h\r\n\r\n").await;
    assert_eq!(connection.response(false).await.text(), "hello");
    assert!(connection.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_endpoint_exists_if_it_is_configured() {
    let stack = Stack::start().await;
    stack.get("/lb-health").send().await.assert_error(401, "missing_token", "login");

    let stack = Stack::start_with(r#"endpoints.health = "/lb-health""#).await;
    for request in [
        "GET /lb-health HTTP/1.0\r\n\r\n",
        "GET /lb-health HTTP/1.1\r\n\r\n",
        "GET /lb-health HTTP/1.1\r\nHost: h\r\nUser-Agent: \r\n\r\n",
    ] {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(request.as_bytes()).await;
        assert_eq!(connection.response(false).await.status, 200, "{request:?}");
    }
    assert_eq!(stack.request("HEAD", "/lb-health").send().await.status, 200);
    stack.post("/lb-health").send().await.assert_error(405, "method_not_allowed", "none");
    stack.get("/lb-health/").send().await.assert_error(401, "missing_token", "login");
    stack.until_metric("wxgate_http_requests_total{code=\"200\",route=\"@health\"}", 4.0).await;
}

/// A body whose end is in doubt is rejected by service and endpoint, and nothing after it is served.
#[tokio::test(flavor = "multi_thread")]
async fn doubtful_chunks_are_rejected() {
    let stack = Stack::start().await;
    for path in ["/none", "/login"] {
        for body in
            ["5;\nhello\r\n0\r\n\r\n", ";a\r\n", "+5\r\nhello\r\n", "5\r\nhelloXX", "5 \r\nhello"]
        {
            for part in [1000, 4] {
                let mut connection = Connection::open(stack.gateway).await;
                let header = format!(
                    "POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                );
                let bytes = [header.as_bytes(), body.as_bytes()].concat();
                let (first, rest) = bytes.split_at(bytes.len().min(header.len() + part));
                connection.send(first).await;
                tokio::task::yield_now().await;
                connection.send(rest).await;
                connection.response(false).await.assert_error(400, "bad_request", "none");
            }
        }
    }
    assert!(stack.upstream.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_after_a_chunked_one_is_served_and_trailers_go_nowhere() {
    let stack = Stack::start().await;
    let mut connection = Connection::open(stack.gateway).await;
    let trailers = "5\r\nhello\r\n0\r\nX-OpenId: evil\r\nX_OpenId: evil\r\n\r\n";
    let header =
        "POST /none HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-OpenId\r\n\r\n";
    let next = String::from_utf8(stack.get("/none").bytes()).unwrap();
    for part in [9, 1000] {
        for bytes in format!("{header}{trailers}{header}{trailers}{next}").as_bytes().chunks(part) {
            connection.send(bytes).await;
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            assert_eq!(connection.response(false).await.status, 200);
        }
    }
    let received = stack.upstream.requests();
    assert_eq!(received.len(), 6);
    assert_eq!(received[0].body, b"hello");
    assert!(received.iter().all(|received| received.folded("x-openid").is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_cap_are_turned_away_until_one_ends() {
    let stack = Stack::start_with("limits.max_connections = 2").await;
    let mut first = Connection::open(stack.gateway).await;
    let mut second = Connection::open(stack.gateway).await;
    for connection in [&mut first, &mut second] {
        connection.send(&stack.get("/none").bytes()).await;
        assert_eq!(connection.response(false).await.status, 200);
    }
    let turned_away = stack.get("/none").send().await;
    turned_away.assert_error(503, "overloaded", "retry");
    assert_eq!(turned_away.header("retry-after"), Some("1"));
    drop(first);
    let again = async { while stack.get("/none").send().await.status != 200 {} };
    tokio::time::timeout(crate::harness::PATIENCE, again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_line_after_a_request_is_no_request() {
    let stack =
        Stack::start_with("limits = { header_timeout = \"300ms\", idle_timeout = \"60s\" }").await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&stack.post("/none").body("payload").bytes()).await;
    assert_eq!(connection.response(false).await.status, 200);
    connection.send(b"\r\n").await;
    assert!(connection.is_closed().await, "closed in the end, without a response");
    let mut connection = Connection::open(stack.gateway).await;
    connection
        .send(&[stack.get("/none").bytes(), b"\r\n".to_vec(), stack.get("/none").bytes()].concat())
        .await;
    for _ in 0..2 {
        assert_eq!(connection.response(false).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_may_be_limited_and_a_trusted_proxy_is_not() {
    let limit = "limits.max_connections_per_address = 1";
    let stack = Stack::start_with(limit).await;
    let mut first = Connection::open(stack.gateway).await;
    first.send(&stack.get("/none").bytes()).await;
    assert_eq!(first.response(false).await.status, 200);
    stack.get("/none").send().await.assert_error(503, "overloaded", "retry");
    drop(first);
    let again = async { while stack.get("/none").send().await.status != 200 {} };
    tokio::time::timeout(crate::harness::PATIENCE, again).await.unwrap();

    let trusted = format!("{limit}\nserver.trusted_proxies = [\"127.0.0.1\"]");
    let stack = Stack::start_with(&trusted).await;
    let _first = Connection::open(stack.gateway).await;
    assert_eq!(stack.get("/none").send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_after_so_many_requests() {
    let stack = Stack::start_with("limits.max_requests_per_connection = 3").await;
    let mut connection = Connection::open(stack.gateway).await;
    for kept in ["keep-alive", "keep-alive", "close"] {
        connection.send(&stack.get("/none").bytes()).await;
        assert_eq!(connection.response(false).await.header("connection"), Some(kept));
    }
    assert!(connection.is_closed().await);
}

/// Each byte comes in time, but the body never ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_drips_is_cut_off() {
    let stack = Stack::start_with("limits.min_body_rate = \"1KiB\"").await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"POST /none HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n").await;
    let dripped = async {
        loop {
            if !connection.is_silent(Duration::from_millis(300)).await {
                return;
            }
            connection.send(b"x").await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, dripped).await.unwrap();
    connection.response(false).await.assert_error(408, "request_timeout", "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_is_cut_off() {
    let stack = Stack::start_with("limits.write_timeout = \"300ms\"").await;
    stack.upstream.reply(|_| crate::harness::upstream::Reply::ok("", &"x".repeat(30_000_000)));
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&stack.get("/none").bytes()).await;
    stack.until_metric("wxgate_http_requests_total{code=\"200\",route=\"/none\"}", 1.0).await;
    assert!(!connection.response(false).await.is_whole);
}
