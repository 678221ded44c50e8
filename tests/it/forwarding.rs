//! How requests are forwarded to a service, and what happens when the service misbehaves.

mod servers;

use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::upstream::Reply;

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_responses_are_forwarded_unchanged() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    stack
        .upstream
        .reply(|_| Reply::ok("X-Own: a\r\nSet-Cookie: c=d\r\nSet-Cookie: e=f\r\n", "body"));
    let request = stack.post("/none/a%20b?c=d&e").header("Cookie", "x=y").header("X-Custom", "é");
    let response = request.body("payload").send().await;
    assert_eq!((response.status, response.text().as_str()), (200, "body"));
    assert_eq!(response.header("x-own"), Some("a"));
    let received = stack.upstream.requests();
    assert_eq!(received[0].request_line, "POST /none/a%20b?c=d&e HTTP/1.1");
    assert_eq!(received[0].body, b"payload");
    assert_eq!(received[0].all("host"), ["gateway.test"]);
    assert_eq!(received[0].all("cookie"), ["x=y"]);
    assert_eq!(received[0].all("content-length"), ["7"]);

    stack.upstream.reply(|_| Reply::ok("", "hello"));
    let received =
        stack.post("/").token(&token).body(vec![b'x'; 300_000]).chunked().forwarded().await;
    assert_eq!(received.body.len(), 300_000);
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "M-SEARCH"] {
        let received = stack.request(method, "/none").forwarded().await;
        assert!(received.request_line.starts_with(method));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_to_head_has_no_body_and_the_connection_is_kept() {
    let stack = Stack::start().await;
    let mut connection = Connection::open(stack.gateway).await;
    for _ in 0..2 {
        connection.send(&stack.request("HEAD", "/none").bytes()).await;
        let response = connection.response(true).await;
        assert_eq!((response.status, response.header("content-length")), (200, Some("5")));
    }
    stack.request("HEAD", "/x").send().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_on_both_sides() {
    let stack = Stack::start().await;
    let mut connection = Connection::open(stack.gateway).await;
    for _ in 0..5 {
        connection.send(&stack.get("/none").bytes()).await;
        assert_eq!(connection.response(false).await.status, 200);
        // Rejections keep the connection, too.
        connection.send(&stack.get("/").bytes()).await;
        assert_eq!(connection.response(false).await.status, 401);
    }
    let received = stack.upstream.requests();
    assert_eq!(received.len(), 5);
    assert!(received.iter().all(|received| received.connection == 0), "one connection upstream");
    connection.send(&stack.get("/none").header("Connection", "close").bytes()).await;
    assert_eq!(connection.response(false).await.header("connection"), Some("close"));
    assert!(connection.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_target_reaches_the_service_in_its_own_form() {
    let stack = Stack::start().await;
    let mut connection = Connection::open(stack.gateway).await;
    connection
        .send(b"GET http://gateway.test/none/x?y HTTP/1.1\r\nHost: gateway.test\r\n\r\n")
        .await;
    assert_eq!(connection.response(false).await.status, 200);
    let received = stack.upstream.requests();
    assert_eq!(received[0].target(), "/none/x?y");
    assert_eq!(received[0].all("host"), ["gateway.test"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_rejected() {
    let stack = Stack::start_with(r#"limits.max_body = "1KiB""#).await;
    let token = stack.login("alice").await;
    stack.post("/none").body(vec![b'x'; 1024]).forwarded().await;
    stack.post("/none").body(vec![b'x'; 1024]).chunked().forwarded().await;
    for request in [
        stack.post("/none").body(vec![b'x'; 1025]),
        stack.post("/none").body(vec![b'x'; 1025]).chunked(),
        stack.post("/").token(&token).body(vec![b'x'; 2_000_000]),
        stack.post("/").token(&token).body(vec![b'x'; 2_000_000]).chunked(),
    ] {
        request.send().await.assert_error(413, "body_too_large", "none");
    }
    assert_eq!(stack.upstream.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_coming_is_a_timeout() {
    let stack = Stack::start_with(r#"limits.body_timeout = "200ms""#).await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"POST /none HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc").await;
    connection.response(false).await.assert_error(408, "request_timeout", "none");
    assert!(connection.is_closed().await);
}

/// RFC 3986: a port may be empty, and a scheme is the same in upper case. The service sees the
/// host as it was sent; routes match it without its port.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_an_empty_port_and_a_scheme_in_upper_case_are_legal() {
    let stack = Stack::start_with(
        "[[route]]\npath = \"/\"\nhost = \"shop.test\"\nupstream = \"recorder\"\nauth = \"none\"\n",
    )
    .await;
    for (target, host) in [
        ("/x?y", "shop.test"),
        ("/x?y", "shop.test:"),
        ("/x?y", "SHOP.test.:"),
        ("/x?y", "shop.test:80"),
        ("HTTP://shop.test/x?y", "shop.test"),
        ("hTTp://shop.test/x?y", "shop.test"),
        ("HTTPS://shop.test/x?y", "shop.test"),
        ("http://shop.test:/x?y", "shop.test:"),
        ("HTTP://shop.test:80/x?y", "shop.test:80"),
    ] {
        let before = stack.upstream.requests().len();
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        let response = connection.response(false).await;
        assert_eq!(response.status, 200, "{target} {host} {}", response.text());
        let received = stack.upstream.requests_after(before);
        assert_eq!(received[0].request_line, "GET /x?y HTTP/1.1", "{target} {host}");
        assert_eq!(received[0].all("host"), [host], "{target}");
        assert_eq!(received[0].all("x-forwarded-host"), [host], "{target}");
    }
    for (target, host) in [
        ("/", "shop.test::"),
        ("/", ":"),
        ("/", ":80"),
        ("/", "[]:"),
        ("HTTP://", "shop.test"),
        ("HTTP:///x", "shop.test"),
        ("HTTP:/shop.test/", "shop.test"),
        ("HTTPX://shop.test/", "shop.test"),
        ("HTTP://other.test/", "shop.test"),
        ("http://shop.test:/", "shop.test"),
    ] {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        connection.response(false).await.assert_error(400, "bad_request", "none");
    }
}

/// The message names what to correct in the client.
#[tokio::test(flavor = "multi_thread")]
async fn the_rejection_of_a_target_names_the_forbidden_byte() {
    let stack = Stack::start().await;
    for (target, has) in [
        ("/caf\u{e9}", "outside ASCII must be percent-encoded"),
        ("/none?q=\u{4f60}", "outside ASCII must be percent-encoded"),
        ("/a\\b", "\\"),
        ("/none?a\\b", "\\"),
        ("/a#b", "#"),
        ("/none?a<b", "<"),
        ("/a`b", "`"),
        ("/a\u{7f}b", "control"),
    ] {
        let answer = stack.get(target).send().await;
        answer.assert_error(400, "bad_request", "none");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(has), "{target}: {message}");
    }
    assert_eq!(stack.get("/none?q=`{|}^[]").send().await.status, 200);
}

/// A response that breaks off never looks complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_off_does_not_look_complete() {
    let stack = Stack::start().await;
    for half in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        stack.upstream.reply(move |_| Reply::Last(half.into()));
        let response = stack.get("/none").send().await;
        assert_eq!(response.status, 200);
        assert!(!response.is_whole, "{response:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_disconnects_is_counted_as_such() {
    let stack = Stack::start().await;
    stack.upstream.reply(|_| Reply::Stall(Vec::new()));
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&stack.get("/none").bytes()).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    drop(connection);
    let counted = "wxgate_http_requests_total{code=\"499\",route=\"/none\"}";
    stack.until_metric(counted, 1.0).await;
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
}

fn upstream(servers: &str) -> String {
    format!("[[upstream]]\nname = \"recorder\"\nservers = {servers}")
}

/// An informational response is not the response: errors after it are still sent.
#[tokio::test(flavor = "multi_thread")]
async fn errors_after_an_informational_response_are_sent_and_counted() {
    let changes = "limits = { max_body = \"1KiB\", body_timeout = \"300ms\" }\n\
                   [[upstream]]\nname = \"recorder\"\nservers = [\"{upstream}\"]\nread_timeout = \"300ms\"";
    let stack = Stack::start_with(changes).await;
    for (reply, status, error, action) in [
        (Reply::Last(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec()), 502, "bad_gateway", "retry"),
        (Reply::Stall(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()), 504, "gateway_timeout", "retry"),
    ] {
        stack.upstream.reply(move |_| reply.clone());
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&stack.post("/none").body("x").bytes()).await;
        let mut response = connection.response(false).await;
        while response.status < 200 {
            response = connection.response(false).await;
        }
        response.assert_error(status, error, action);
        let counted = format!("wxgate_http_requests_total{{code=\"{status}\",route=\"/none\"}}");
        stack.until_metric(&counted, 1.0).await;
    }
    // A service that asks for a body which is then too large, stops, or is malformed.
    let eager = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = eager.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (mut stream, _) = eager.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
                let mut sink = vec![0; 4096];
                while matches!(stream.read(&mut sink).await, Ok(1..)) {}
            });
        }
    });
    let changes = format!(
        "limits = {{ max_body = \"1KiB\", body_timeout = \"300ms\" }}\n{}",
        upstream(&format!("[\"{address}\"]"))
    );
    let stack = Stack::start_with(&changes).await;
    let large = format!("7d0\r\n{}\r\n", "x".repeat(2000));
    for (body, status, error) in [
        (large.as_str(), 413, "body_too_large"),
        ("zz\r\n", 400, "bad_request"),
        ("5\r\nhe", 408, "request_timeout"),
    ] {
        let mut connection = Connection::open(stack.gateway).await;
        connection
            .send(b"POST /none HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        assert_eq!(connection.response(false).await.status, 100);
        connection.send(body.as_bytes()).await;
        connection.response(false).await.assert_error(status, error, "none");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_was_not_requested_is_a_bad_gateway() {
    let stack = Stack::start().await;
    let switching =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nRAW";
    stack.upstream.reply(move |_| Reply::Last(switching.to_vec()));
    stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_about_the_connection_to_the_service_are_not_forwarded() {
    let stack = Stack::start().await;
    stack.upstream.reply(|_| {
        Reply::ok(
            "Keep-Alive: timeout=5\r\nConnection: X-Hop, keep-alive\r\nX-Hop: a\r\nX-End: b\r\n",
            "hello",
        )
    });
    let response = stack.get("/none").send().await;
    assert_eq!((response.header("keep-alive"), response.header("x-hop")), (None, None));
    assert_eq!((response.header("x-end"), response.text().as_str()), (Some("b"), "hello"));
    stack
        .upstream
        .reply(|_| Reply::Last(b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n".to_vec()));
    let response = stack.get("/none").send().await;
    assert_eq!((response.status, response.header("content-length")), (204, None));
}

/// RFC 9112, section 6.1, and RFC 9110, section 8.6: a client would wait for a body.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_never_has_a_body_is_not_framed() {
    let stack = Stack::start().await;
    for framing in [
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\n",
        "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ] {
        let response = format!("HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n{framing}\r\n");
        let response = format!("{response}HTTP/1.1 204 No Content\r\n{framing}\r\n");
        stack.upstream.reply(move |_| Reply::Last(response.clone().into_bytes()));
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&stack.get("/none").bytes()).await;
        for status in [103, 204] {
            let answer = connection.response(false).await;
            assert_eq!(answer.status, status, "{framing}");
            for name in ["transfer-encoding", "content-length"] {
                assert_eq!(answer.header(name), None, "{status} {framing}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_is_none_is_counted_all_the_same() {
    let stack = Stack::start().await;
    stack
        .upstream
        .reply(|_| Reply::Last(b"HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n".to_vec()));
    assert_eq!(stack.get("/none").send().await.status, 799);
    stack.until_metric("wxgate_http_requests_total{code=\"799\",route=\"/none\"}", 1.0).await;
}

/// Sending more does not hide that the client has disconnected.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_after_sending_early_is_noticed() {
    let stack = Stack::start().await;
    stack.upstream.reply(|_| Reply::Stall(Vec::new()));
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&[stack.get("/none").bytes(), b"GET /next".to_vec()].concat()).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    drop(connection);
    stack.until_metric("wxgate_http_requests_total{code=\"499\",route=\"/none\"}", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_disconnects_after_an_informational_response_is_counted_as_such() {
    let stack = Stack::start().await;
    stack.upstream.reply(|_| Reply::Stall(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec()));
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&stack.get("/none").bytes()).await;
    assert_eq!(connection.response(false).await.status, 103);
    drop(connection);
    stack.until_metric("wxgate_http_requests_total{code=\"499\",route=\"/none\"}", 1.0).await;
}
