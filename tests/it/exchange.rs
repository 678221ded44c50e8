//! HTTP/1 requests and responses that end early: both sides must agree on what follows them.
//!
//! The service is a socket that the test controls, so that each byte is sent when the test says so.

mod websocket;

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::harness::client::{Connection, Response};
use crate::harness::{PATIENCE, Stack};

/// A service, and a gateway in front of it.
struct Pair {
    stack: Stack,
    listener: TcpListener,
}

impl Pair {
    async fn start(changes: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stack = Stack::start_with(&format!(
            "{changes}\n[endpoints]\nhealth = [\"/healthz\"]\n[[upstream]]\nname = \"recorder\"\n\
             servers = [\"{address}\"]"
        ))
        .await;
        Self { stack, listener }
    }

    async fn client(&self) -> Connection {
        Connection::open(self.stack.gateway).await
    }

    /// The next connection that the gateway makes.
    async fn accept(&self) -> Peer {
        let accepted = timeout(PATIENCE, self.listener.accept()).await.expect("a connection");
        Peer { stream: accepted.unwrap().0, read: Vec::new() }
    }

    /// The same, with its first request header read.
    async fn accept_request(&self) -> Peer {
        let mut service = self.accept().await;
        service.read_header().await;
        service
    }

    /// Whether the gateway makes no connection for a while.
    async fn gets_no_connection(&self) -> bool {
        timeout(Duration::from_millis(300), self.listener.accept()).await.is_err()
    }
}

/// The service's end of a connection.
struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Peer {
    /// Reads up to the end of this text; `None` if the connection ends first.
    async fn read_until(&mut self, end: &str) -> Option<String> {
        let read = async {
            loop {
                let found = self.read.windows(end.len()).position(|part| part == end.as_bytes());
                if let Some(at) = found {
                    let text = self.read.drain(..at + end.len()).collect();
                    return Some(String::from_utf8(text).unwrap());
                }
                if !matches!(self.stream.read_buf(&mut self.read).await, Ok(1..)) {
                    return None;
                }
            }
        };
        timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{end:?} in time"))
    }

    async fn read_header(&mut self) -> String {
        self.read_until("\r\n\r\n").await.expect("a request")
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }
}

const CHUNKED: &str =
    "POST /none HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: chunked\r\n\r\n";

const GET: &str = "GET /none HTTP/1.1\r\nHost: gateway.test\r\n\r\n";

const UPLOAD: &str = "POST /none HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 5\r\n\r\n";

/// A connection that the first response does not announce as closed serves a second request,
/// after what the client still had to send.
async fn assert_goes_on_unless_closed(client: &mut Connection, first: &Response, rest: &str) {
    if first.header("connection") != Some("close") {
        let health = "GET /healthz HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
        client.send(format!("{rest}{health}").as_bytes()).await;
        let second = client.response_or_end().await;
        assert_eq!(second.map(|response| response.status), Some(200), "the connection was kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_body_over_its_limit_is_not_a_request() {
    let pair = Pair::start("[limits]\nmax_body = \"1KiB\"").await;
    let mut client = pair.client().await;
    // A chunk of 8 KiB, 2 KiB of it at once.
    client.send(format!("{CHUNKED}2000\r\n{}", "x".repeat(2048)).as_bytes()).await;
    let first = client.response(false).await;
    first.assert_error(413, "body_too_large", "none");
    // All of this is inside of the chunk.
    client.send(format!("0\r\n\r\n{GET}").as_bytes()).await;
    if let Ok(accepted) = timeout(Duration::from_millis(300), pair.listener.accept()).await {
        let mut service = Peer { stream: accepted.unwrap().0, read: Vec::new() };
        let came = service.read_until("\r\n\r\n").await.unwrap_or_default();
        assert!(!came.starts_with("GET"), "a part of a body was forwarded as a request: {came}");
    }
    assert_eq!(first.header("connection"), Some("close"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_after_a_body_over_its_limit_is_served_or_the_connection_announced_closed() {
    let pair = Pair::start("[limits]\nmax_body = \"1KiB\"").await;
    let mut client = pair.client().await;
    let data = "x".repeat(2048);
    client.send(format!("{CHUNKED}800\r\n{data}\r\n0\r\n\r\n").as_bytes()).await;
    let first = client.response(false).await;
    first.assert_error(413, "body_too_large", "none");
    assert_goes_on_unless_closed(&mut client, &first, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_after_a_malformed_trailer_is_served_or_the_connection_announced_closed() {
    let pair = Pair::start("").await;
    let mut client = pair.client().await;
    client.send(format!("{CHUNKED}1\r\nx\r\n0\r\nno colon\r\n\r\n").as_bytes()).await;
    let first = client.response(false).await;
    first.assert_error(400, "bad_request", "none");
    assert_goes_on_unless_closed(&mut client, &first, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_before_the_body_announces_whether_the_connection_is_kept() {
    let pair = Pair::start("").await;
    let mut client = pair.client().await;
    client.send(UPLOAD.as_bytes()).await;
    let mut service = pair.accept_request().await;
    service.send("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno").await;
    let first = client.response(false).await;
    assert_eq!(first.status, 404);
    assert_goes_on_unless_closed(&mut client, &first, "hello").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_continues_after_a_complete_response() {
    let pair = Pair::start("").await;
    let mut client = pair.client().await;
    client.send(UPLOAD.as_bytes()).await;
    let mut service = pair.accept_request().await;
    service.send("HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.response(false).await.status, 202);
    client.send(b"hello").await;
    assert_eq!(service.read_until("hello").await.as_deref(), Some("hello"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_sending_is_cut_while_a_response_runs() {
    let pair = Pair::start("[limits]\nbody_timeout = \"300ms\"").await;
    let mut client = pair.client().await;
    client.send(b"POST /none HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 5\r\n\r\nh").await;
    let mut service = pair.accept().await;
    service.read_until("\r\n\r\nh").await.unwrap();
    service.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh").await;
    assert!(client.reads(b"HTTP/1.1 200 OK\r\n").await);
    // The rest of the response would follow the rest of the body.
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(5), service.stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the service still waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_of_unknown_length_that_breaks_off_does_not_look_complete() {
    let pair = Pair::start("").await;
    let mut client = TcpStream::connect(pair.stack.gateway).await.unwrap();
    let header = b"POST /none HTTP/1.0\r\nHost: gateway.test\r\nContent-Length: 100\r\n\r\nh";
    client.write_all(header).await.unwrap();
    let mut service = pair.accept().await;
    service.read_until("\r\n\r\nh").await.unwrap();
    service.send("HTTP/1.1 200 OK\r\n\r\nhalf").await;
    let mut read = Vec::new();
    while !read.ends_with(b"half") {
        assert!(client.read_buf(&mut read).await.unwrap() > 0);
    }
    // The rest of the request will never come.
    client.shutdown().await.unwrap();
    let end = timeout(PATIENCE, client.read_to_end(&mut read)).await.expect("an end in time");
    assert!(end.is_err(), "the response looks complete");
}
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_trailer_breaks_off_the_response_whether_or_not_it_is_forwarded() {
    for te in ["TE: trailers\r\n", ""] {
        let pair = Pair::start("").await;
        let mut client = pair.client().await;
        let request = format!("GET /none HTTP/1.1\r\nHost: gateway.test\r\n{te}\r\n");
        client.send(request.as_bytes()).await;
        let mut service = pair.accept_request().await;
        // The header of a next response, where the end of this one should be.
        let bad = "1\r\nx\r\n0\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        service.send(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{bad}")).await;
        assert!(!client.response(false).await.is_whole, "{te:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_last_chunk_is_sent_before_the_trailers_are_validated() {
    let pair = Pair::start("").await;
    let mut client = TcpStream::connect(pair.stack.gateway).await.unwrap();
    let request = b"GET /none HTTP/1.1\r\nHost: gateway.test\r\nTE: trailers\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut service = pair.accept_request().await;
    let bad = "1\r\nx\r\n0\r\nA: b\r\nno colon\r\n\r\n";
    service.send(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{bad}")).await;
    let mut read = Vec::new();
    let _ = timeout(PATIENCE, client.read_to_end(&mut read)).await.expect("an end in time");
    let text = String::from_utf8(read).unwrap();
    assert!(text.contains("\r\n\r\n1\r\nx\r\n"), "{text}");
    assert!(!text.contains("\r\n0\r\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_not_sent_again_after_an_informational_response() {
    let pair = Pair::start("").await;
    let mut client = pair.client().await;
    client.send(GET.as_bytes()).await;
    let mut service = pair.accept_request().await;
    service.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.response(false).await.status, 200);
    client.send(GET.as_bytes()).await;
    service.read_header().await;
    service.send("HTTP/1.1 103 Early Hints\r\n\r\n").await;
    assert_eq!(client.response(true).await.status, 103);
    drop(service);
    assert!(pair.gets_no_connection().await, "it was sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_request_that_expects_100_gets_connection_close() {
    let pair = Pair::start("").await;
    let mut client = pair.client().await;
    let line = "Expect: 100-continue\r\nContent-Length: 44\r\n";
    client.send(format!("POST / HTTP/1.1\r\nHost: gateway.test\r\n{line}\r\n").as_bytes()).await;
    let first = client.response(false).await;
    first.assert_error(401, "missing_token", "login");
    // Such a client does not send its body; its next bytes may be the next request.
    assert_eq!(first.header("connection"), Some("close"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trailer_that_connection_names_is_not_forwarded() {
    let pair = Pair::start("").await;
    let mut client = TcpStream::connect(pair.stack.gateway).await.unwrap();
    let request = b"GET /none HTTP/1.1\r\nHost: gateway.test\r\nTE: trailers\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut service = pair.accept_request().await;
    let lines = "Transfer-Encoding: chunked\r\nConnection: X-Hop\r\nTrailer: X-Hop, X-End";
    service
        .send(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n0\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n"))
        .await;
    let mut read = Vec::new();
    while !read.ends_with(b"X-End: 2\r\n\r\n") {
        assert!(timeout(PATIENCE, client.read_buf(&mut read)).await.unwrap().unwrap() > 0);
    }
    let text = String::from_utf8(read).unwrap();
    assert!(!text.contains("X-Hop: 1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_a_path_is_rewritten_as_the_path_that_was_checked() {
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"none\"\n\
                 add_prefix = \"/v2\"\n";
    let pair = Pair::start(route).await;
    for target in ["http://gateway.test", "http://gateway.test?a=b"] {
        let mut client = pair.client().await;
        let lines = "Host: gateway.test\r\nConnection: close";
        client.send(format!("GET {target} HTTP/1.1\r\n{lines}\r\n\r\n").as_bytes()).await;
        let mut service = pair.accept().await;
        let header = service.read_header().await;
        assert!(header.starts_with("GET /v2/"), "{header}");
    }
}

/// What a service sends after its response is never taken for the response to another request,
/// however many requests a client has in flight.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_unread_bytes_serves_no_request() {
    let pair = Pair::start("").await;
    for before in 90..140 {
        let mut kept = Vec::new();
        for _ in 0..3 {
            let mut client = pair.client().await;
            client.send(b"HEAD /none HTTP/1.1\r\nHost: gateway.test\r\n\r\n").await;
            let service = pair.accept_request().await;
            kept.push((client, service));
        }
        for (client, service) in &mut kept {
            service.send("HTTP/1.1 200 OK\r\nContent-Length: 39\r\n\r\n").await;
            assert_eq!(client.response(true).await.status, 200);
        }
        for (_, service) in &mut kept {
            // The body, which a response to HEAD must not have.
            service.send("HTTP/1.1 418 No\r\nContent-Length: 0\r\n\r\n").await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut client = pair.client().await;
        let health = "GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n".repeat(before);
        client.send(format!("{health}{GET}").as_bytes()).await;
        for _ in 0..before {
            assert_eq!(client.response(false).await.status, 200);
        }
        let served = async {
            let mut second = pair.accept().await;
            second.read_header().await;
            second.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        };
        let response = tokio::select! {
            response = client.response(false) => response,
            () = served => client.response(false).await,
        };
        assert_eq!(response.status, 204, "after {before} others");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_0_client_with_keep_alive_keeps_its_connection() {
    let pair = Pair::start("").await;
    let mut client = pair.client().await;
    let header = "GET /none HTTP/1.0\r\nHost: gateway.test\r\nConnection: keep-alive\r\n\r\n";
    client.send(header.as_bytes()).await;
    let mut service = pair.accept_request().await;
    service.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let first = client.response(false).await;
    assert_eq!(first.header("connection"), Some("keep-alive"));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_move_at_once() {
    let pair = Pair::start("[limits]\nmax_body = \"64MiB\"").await;
    let mut client = TcpStream::connect(pair.stack.gateway).await.unwrap();
    let size = 24 << 20;
    let header = format!("POST /none HTTP/1.1\r\nHost: g\r\nContent-Length: {size}\r\n\r\n");
    client.write_all(header.as_bytes()).await.unwrap();
    let mut service = pair.accept_request().await;
    service.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await;
    let echo = tokio::spawn(async move {
        let (mut from, mut to) = service.stream.split();
        tokio::io::copy(&mut from, &mut to).await
    });
    let (mut from, mut to) = client.split();
    let send = async {
        for _ in 0..size >> 16 {
            to.write_all(&[b'x'; 1 << 16]).await.unwrap();
        }
    };
    let read = async {
        let (mut read, mut piece) = (0, vec![0; 1 << 16]);
        while read < size {
            match from.read(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(length) => read += length,
            }
        }
        read
    };
    let both = async { tokio::join!(send, read).1 };
    let read = timeout(PATIENCE, both).await.expect("both in time");
    assert!(read >= size, "{read} of {size}");
    drop(echo);
}
