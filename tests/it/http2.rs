//! HTTP/2 without TLS, and the limits of each HTTP/2 connection.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wxgate::server::Command;

use crate::harness::client::Connection;
use crate::harness::upstream::{Received, Reply};
use crate::harness::{PATIENCE, Stack, openid};

/// A connection that begins as HTTP/2.
pub struct Client {
    pub requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    pub async fn open(address: SocketAddr) -> Self {
        Self::open_with(address, &h2::client::Builder::new()).await
    }

    pub async fn open_with(address: SocketAddr, builder: &h2::client::Builder) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), builder).await
    }

    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        builder: &h2::client::Builder,
    ) -> Self {
        let (requests, connection) = builder.handshake(stream).await.unwrap();
        Self { requests, connection: tokio::spawn(connection) }
    }

    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        is_whole: bool,
    ) -> (ResponseFuture, h2::SendStream<Bytes>) {
        let request = Request::builder().method(method).uri(format!("http://gateway.test{path}"));
        let mut ready = timeout(PATIENCE, self.requests.clone().ready()).await.unwrap().unwrap();
        ready.send_request(request.body(()).unwrap(), is_whole).unwrap()
    }

    pub async fn get(&mut self, path: &str) -> ResponseFuture {
        self.send(Method::GET, path, true).await.0
    }

    /// Closes the connection at once.
    pub async fn abort(self) {
        self.connection.abort();
        let _ = self.connection.await;
    }

    /// Whether the gateway ends the connection.
    pub async fn ends(self) -> bool {
        timeout(PATIENCE, self.connection).await.is_ok()
    }
}

pub async fn status(response: ResponseFuture) -> Result<u16, h2::Error> {
    timeout(PATIENCE, response)
        .await
        .expect("an end in time")
        .map(|response| response.status().as_u16())
}

#[tokio::test]
async fn a_plain_listener_speaks_http_2_and_http_1_where_h2c_is_on() {
    let stack = Stack::start_with("server.h2c = true").await;
    let token = stack.login("alice").await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let request = client
        .post(format!("http://{}/orders", stack.gateway))
        .header("X-3rd-Session", &token)
        .header("x_openid", "evil")
        .body("payload");
    let response = request.send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_2));
    let received = stack.upstream.requests();
    assert_eq!(received[0].folded("x-openid"), [openid("alice")]);
    assert_eq!(received[0].all("x-forwarded-proto"), ["http"]);
    assert_eq!(received[0].body, b"payload");
    // A method that begins as the preface does.
    assert_eq!(stack.request("PRI", "/none").send().await.status, 200);
    assert_eq!(stack.post("/orders").token(&token).send().await.status, 200);
}

#[tokio::test]
async fn http_2_is_no_request_where_h2c_is_off() {
    let stack = Stack::start().await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    connection.response(false).await.assert_error(400, "bad_request", "none");
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn a_body_that_stops_coming_ends_its_request_and_no_other() {
    let log = "log.access = \"{dir}/access.log\"";
    let stack = Stack::start_with(&format!(
        "server.h2c = true\nlimits.body_timeout = \"300ms\"\nserver.drain_timeout = \"5s\"\n{log}"
    ))
    .await;
    let mut client = Client::open(stack.gateway).await;
    let (response, mut body) = client.send(Method::POST, "/none/stops", false).await;
    body.send_data(Bytes::from_static(b"begin"), false).unwrap();
    assert_eq!(status(response).await.unwrap(), 408);
    assert_eq!(status(client.get("/none").await).await.unwrap(), 200);
    stack.until_metric("wxgate_http_requests_total{code=\"408\",route=\"/none\"}", 1.0).await;
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;

    let Stack { commands, ended, directory, .. } = &stack;
    commands.send(Command::Drain).await.unwrap();
    drop(client);
    while !ended.is_finished() {
        tokio::task::yield_now().await;
    }
    let log = std::fs::read_to_string(directory.path().join("access.log")).unwrap();
    let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!((&line["path"], &line["error"]), (&"/none/stops".into(), &"request_timeout".into()));
    assert_eq!((&line["method"], &line["bytes_in"]), (&"POST".into(), &5.into()));
}

#[tokio::test]
async fn a_body_that_comes_in_time_may_take_longer_than_one_wait() {
    let stack = Stack::start_with("server.h2c = true\nlimits.body_timeout = \"600ms\"").await;
    let mut client = Client::open(stack.gateway).await;
    let (response, mut body) = client.send(Method::POST, "/none", false).await;
    for _ in 0..6 {
        body.send_data(Bytes::from_static(b"piece"), false).unwrap();
        // This is the client's pace, not a wait for something.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(status(response).await.unwrap(), 200);
    assert_eq!(stack.upstream.requests()[0].body.len(), 30);
}

/// A service would read bytes after the end as the beginning of another user's request.
#[tokio::test]
async fn a_chunked_body_ends_once_however_the_client_ends_it() {
    let stack = Stack::start_with("server.h2c = true").await;
    let mut client = Client::open(stack.gateway).await;
    let empty = || (Bytes::new(), false);
    let data = || (Bytes::from_static(b"abc"), false);
    let end = || (Bytes::new(), true);
    let bodies = [
        vec![end()],
        vec![empty(), end()],
        vec![data(), end()],
        vec![data(), empty(), data(), empty(), empty(), end()],
        vec![(Bytes::from_static(b"abc"), true)],
    ];
    for frames in &bodies {
        let (response, mut body) = client.send(Method::POST, "/none", false).await;
        for (bytes, is_end) in frames {
            body.send_data(bytes.clone(), *is_end).unwrap();
        }
        assert_eq!(status(response).await.unwrap(), 200);
        assert_eq!(status(client.get("/none").await).await.unwrap(), 200);
    }
    let (response, mut body) = client.send(Method::POST, "/none", false).await;
    body.send_data(Bytes::from_static(b"abc"), false).unwrap();
    body.send_trailers([("x-sum".parse().unwrap(), "1".parse().unwrap())].into_iter().collect())
        .unwrap();
    assert_eq!(status(response).await.unwrap(), 200);
    assert_eq!(status(client.get("/none").await).await.unwrap(), 200);
    let seen = stack.upstream.requests();
    let posts = seen.iter().filter(|seen| seen.request_line.starts_with("POST"));
    let received: Vec<&[u8]> = posts.map(|seen| &*seen.body).collect();
    assert_eq!(received, [&b""[..], b"", b"abc", b"abcabc", b"abc", b"abc"]);
    // All on the first connection: none was closed.
    assert!(seen.iter().all(|seen| seen.connection == 0), "{seen:?}");
}

#[tokio::test]
async fn a_service_that_is_slow_to_respond_to_a_complete_body_is_waited_for() {
    let stack = Stack::start_with("server.h2c = true\nlimits.body_timeout = \"100ms\"").await;
    let released = std::sync::Arc::new(tokio::sync::Notify::new());
    let reply = released.clone();
    stack.upstream.reply(move |_: &Received| {
        Reply::When(reply.clone(), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())
    });
    let mut client = Client::open(stack.gateway).await;
    let (response, mut body) = client.send(Method::POST, "/none", false).await;
    body.send_data(Bytes::from_static(b"all"), true).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    released.notify_one();
    assert_eq!(status(response).await.unwrap(), 204);
}

#[tokio::test]
async fn a_client_that_reads_nothing_of_a_response_is_cut_off() {
    let stack = Stack::start_with("server.h2c = true\nlimits.write_timeout = \"300ms\"").await;
    stack.upstream.reply(|_: &Received| Reply::ok("", &"x".repeat(100_000)));
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(10);
    let mut client = Client::open_with(stack.gateway, &builder).await;
    let response = timeout(PATIENCE, client.get("/none").await).await.unwrap().unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let mut body = response.into_body();
    let mut received = 0;
    let end = loop {
        match timeout(PATIENCE, body.data()).await.unwrap() {
            Some(Ok(data)) => received += data.len(),
            Some(Err(error)) => break error,
            None => panic!("a response of {received} bytes was complete"),
        }
    };
    assert!(received <= 10 && end.is_reset(), "{received} bytes, {end}");
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
}

#[tokio::test]
async fn a_client_that_keeps_giving_up_loses_its_connection() {
    let stack = Stack::start_with("server.h2c = true\nlimits.max_early_resets = 10").await;
    stack.upstream.reply(|_: &Received| Reply::Stall(Vec::new()));
    let mut client = Client::open(stack.gateway).await;
    for number in 1..=11 {
        let response = client.get("/none").await;
        stack.upstream.until_requests(number).await;
        drop(response);
    }
    assert!(client.ends().await);
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
}

#[tokio::test]
async fn a_client_that_mostly_waits_for_responses_may_reset_a_stream_now_and_then() {
    let stack = Stack::start_with("server.h2c = true\nlimits.max_early_resets = 3").await;
    stack.upstream.reply(|received: &Received| match received.target() {
        "/none/slow" => Reply::Stall(Vec::new()),
        _ => Reply::ok("", "hello"),
    });
    let mut client = Client::open(stack.gateway).await;
    for number in 1..=10 {
        let response = client.get("/none/slow").await;
        stack.upstream.until_requests(number * 3 - 2).await;
        drop(response);
        for _ in 0..2 {
            assert_eq!(status(client.get("/none").await).await.unwrap(), 200);
        }
    }
}

#[tokio::test]
async fn no_more_streams_are_served_at_once_than_the_limit() {
    let stack = Stack::start_with("server.h2c = true\nlimits.max_streams = 3").await;
    let mut client = Client::open(stack.gateway).await;
    assert_eq!(status(client.get("/none").await).await.unwrap(), 200);
    assert_eq!(client.requests.current_max_send_streams(), 3);
}

#[tokio::test]
async fn a_changed_limit_of_requests_at_once_is_for_new_connections() {
    let changes = "server.h2c = true\nlimits.max_streams =";
    let stack = Stack::start_with(&format!("{changes} 3")).await;
    let mut old = Client::open(stack.gateway).await;
    assert_eq!(status(old.get("/none").await).await.unwrap(), 200);
    assert!(stack.reload(&format!("{changes} 5")).await);
    let mut new = Client::open(stack.gateway).await;
    assert_eq!(status(new.get("/none").await).await.unwrap(), 200);
    assert_eq!(status(old.get("/none").await).await.unwrap(), 200);
    assert_eq!(old.requests.current_max_send_streams(), 3);
    assert_eq!(new.requests.current_max_send_streams(), 5);
}

#[tokio::test]
async fn a_connection_without_requests_gets_goaway() {
    let limits = "limits.idle_timeout = \"200ms\"\nlimits.header_timeout = \"200ms\"";
    let stack = Stack::start_with(&format!("server.h2c = true\n{limits}")).await;
    let silent = Client::open(stack.gateway).await;
    assert!(silent.ends().await);
    let mut used = Client::open(stack.gateway).await;
    assert_eq!(status(used.get("/none").await).await.unwrap(), 200);
    assert!(used.ends().await);
    // Nor is one that never sends a byte.
    let mut half = Connection::open(stack.gateway).await;
    half.send(b"PRI * HT").await;
    assert!(half.is_closed().await);
}

#[tokio::test]
async fn draining_lets_requests_finish_and_accepts_no_new_connection() {
    let stack = Stack::start_with("server.h2c = true").await;
    let released = std::sync::Arc::new(tokio::sync::Notify::new());
    let reply = released.clone();
    stack.upstream.reply(move |_: &Received| {
        Reply::When(reply.clone(), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())
    });
    let mut client = Client::open(stack.gateway).await;
    let response = client.get("/none").await;
    stack.upstream.until_requests(1).await;
    stack.commands.send(Command::Drain).await.unwrap();
    while TcpStream::connect(stack.gateway).await.is_ok() {
        tokio::task::yield_now().await;
    }
    released.notify_one();
    assert_eq!(status(response).await.unwrap(), 204);
    assert!(client.ends().await);
    let Stack { ended, .. } = &stack;
    while !ended.is_finished() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_before_the_end_of_its_request_is_counted_with_its_status() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    // Unlike the recorder, it responds as soon as anything comes.
    let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = service.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = service.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").await.unwrap();
        while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {}
    });
    let stack = Stack::start_with(&format!(
        "server.h2c = true\nlimits.body_timeout = \"300ms\"\n\
         [[upstream]]\nname = \"recorder\"\nservers = [\"{address}\"]"
    ))
    .await;
    let mut client = Client::open(stack.gateway).await;
    let (response, mut body) = client.send(Method::POST, "/none", false).await;
    body.send_data(Bytes::from_static(b"begin"), false).unwrap();
    assert_eq!(status(response).await.unwrap(), 200);
    stack.until_metric("wxgate_http_requests_total{code=\"200\",route=\"/none\"}", 1.0).await;
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    assert_eq!(stack.metric("wxgate_http_requests_total{code=\"408\",route=\"/none\"}").await, 0.0);
}

/// A response is complete when the client has it, not when the protocol layer has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_gets_its_whole_response_when_the_connection_ends() {
    for changes in ["limits.idle_timeout = \"200ms\"", ""] {
        let stack = Stack::start_with(&format!("server.h2c = true\n{changes}")).await;
        stack.upstream.reply(|_: &Received| Reply::ok("", &"x".repeat(2_000_000)));
        let mut client = Client::open(stack.gateway).await;
        let response = timeout(PATIENCE, client.get("/none").await).await.unwrap().unwrap();
        if changes.is_empty() {
            stack.commands.send(Command::Drain).await.unwrap();
        }
        let mut body = response.into_body();
        let mut received = 0;
        while let Some(data) = timeout(PATIENCE, body.data()).await.unwrap() {
            let length = data.unwrap_or_else(|error| panic!("{received}: {error}")).len();
            received += length;
            body.flow_control().release_capacity(length).unwrap();
            // This is the client's pace, not a wait for something.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(received, 2_000_000);
        assert!(client.ends().await);
    }
}

/// As over HTTP/1.1: the service receives what was sent.
#[tokio::test]
async fn an_authority_with_an_empty_port_is_legal() {
    let stack = Stack::start_with("server.h2c = true").await;
    let client = Client::open(stack.gateway).await;
    let request = Request::builder().method(Method::GET).uri("http://gateway.test:/none");
    let mut ready = timeout(PATIENCE, client.requests.clone().ready()).await.unwrap().unwrap();
    let response = ready.send_request(request.body(()).unwrap(), true).unwrap().0;
    assert_eq!(status(response).await.unwrap(), 200);
    let received = stack.upstream.requests();
    assert_eq!(received[0].all("host"), ["gateway.test:"]);
    assert_eq!(received[0].all("x-forwarded-host"), ["gateway.test:"]);
}

/// As over HTTP/1.1: services differ in how they read two lines, even equal ones.
#[tokio::test]
async fn a_repeated_length_is_rejected() {
    let stack = Stack::start_with("server.h2c = true").await;
    let client = Client::open(stack.gateway).await;
    for path in ["/none", "/login"] {
        for (length, body) in [("3", "abc"), ("0", "")] {
            let request = Request::builder()
                .method(Method::POST)
                .uri(format!("http://gateway.test{path}"))
                .header("Content-Length", length)
                .header("Content-Length", length);
            let mut ready =
                timeout(PATIENCE, client.requests.clone().ready()).await.unwrap().unwrap();
            let (response, mut sent) =
                ready.send_request(request.body(()).unwrap(), false).unwrap();
            sent.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
            assert_eq!(status(response).await.unwrap(), 400, "{path} {length}");
        }
    }
    assert!(stack.upstream.requests().is_empty());
}
