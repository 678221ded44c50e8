//! Bodies over HTTP/2: windows that grow, trailers, and informational responses.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use http::{HeaderMap, Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::harness::upstream::{Received, Reply};
use crate::harness::{PATIENCE, Stack};
use crate::http2::{Client, status};

const WINDOW: usize = 64 << 10;

const BUFFERED: &str = "wxgate_buffered_bytes";

/// A client without limits of its own.
async fn client(stack: &Stack) -> Client {
    let mut builder = h2::client::Builder::new();
    builder.max_send_buffer_size(16 << 20);
    Client::open_with(stack.gateway, &builder).await
}

/// Sends so many bytes as the windows allow. Returns the most that could be sent at once, as soon
/// as this is more than `enough`.
async fn fill(body: &mut SendStream<Bytes>, length: usize, enough: usize) -> usize {
    let mut largest = 0;
    let mut left = length;
    while left > 0 && largest <= enough {
        body.reserve_capacity(left);
        let capacity = timeout(PATIENCE, poll_fn(|cx| body.poll_capacity(cx)));
        let capacity = capacity.await.expect("a window in time").unwrap().unwrap();
        largest = largest.max(capacity);
        body.send_data(Bytes::from(vec![b'x'; capacity]), false).unwrap();
        left -= capacity;
    }
    largest
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_grow_while_the_service_takes_the_body() {
    let stack = Stack::start_with("server.h2c = true\nlimits.max_body = \"1GiB\"").await;
    let mut client = client(&stack).await;
    for _ in 0..2 {
        let (response, mut body) = client.send(Method::POST, "/none", false).await;
        // Every request begins with the same window.
        let first = fill(&mut body, 1 << 20, 0).await;
        assert!(first <= WINDOW, "{first}");
        let largest = fill(&mut body, 20 << 20, WINDOW).await;
        assert!(largest > WINDOW, "{largest}");
        stack.until_metric(BUFFERED, f64::from(2 << 20)).await;
        body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(status(response).await.unwrap(), 200);
        stack.until_metric(BUFFERED, 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_do_not_grow_without_room_for_larger_ones() {
    for limit in ["0B", "1MiB"] {
        let limits = format!("limits.max_body = \"1GiB\"\nlimits.max_buffered = \"{limit}\"");
        let stack = Stack::start_with(&format!("server.h2c = true\n{limits}")).await;
        let mut client = client(&stack).await;
        let (response, mut body) = client.send(Method::POST, "/none", false).await;
        let largest = fill(&mut body, 4 << 20, usize::MAX).await;
        body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(status(response).await.unwrap(), 200);
        assert!(largest <= WINDOW, "{limit}: {largest}");
        assert_eq!(stack.metric(BUFFERED).await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_grow_as_soon_as_there_is_room_again() {
    let limits = "limits.max_body = \"1GiB\"\nlimits.max_buffered = \"3MiB\"";
    let stack = Stack::start_with(&format!("server.h2c = true\n{limits}")).await;
    let (mut first, mut second) = (client(&stack).await, client(&stack).await);
    let (first_response, mut first_body) = first.send(Method::POST, "/none", false).await;
    assert!(fill(&mut first_body, 20 << 20, WINDOW).await > WINDOW);
    // There is no room for both.
    let (second_response, mut second_body) = second.send(Method::POST, "/none", false).await;
    let largest = fill(&mut second_body, 4 << 20, usize::MAX).await;
    assert!(largest <= WINDOW, "{largest}");
    for (response, mut body) in [(first_response, first_body), (second_response, second_body)] {
        body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(status(response).await.unwrap(), 200);
    }
    stack.until_metric(BUFFERED, 0.0).await;
    let (response, mut body) = second.send(Method::POST, "/none", false).await;
    let largest = fill(&mut body, 20 << 20, WINDOW).await;
    assert!(largest > WINDOW, "{largest}");
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(status(response).await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_is_given_back_when_its_connection_is_lost() {
    let stack = Stack::start_with("server.h2c = true\nlimits.max_body = \"1GiB\"").await;
    let mut client = client(&stack).await;
    let (response, mut body) = client.send(Method::POST, "/none", false).await;
    fill(&mut body, 20 << 20, WINDOW).await;
    stack.until_metric(BUFFERED, f64::from(2 << 20)).await;
    drop((response, body));
    client.abort().await;
    stack.until_metric(BUFFERED, 0.0).await;
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_reads_nothing_makes_no_window_grow() {
    let socket = TcpSocket::new_v4().unwrap();
    // Bytes that the system buffers look as if the service had read them.
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(16).unwrap();
    let address = listener.local_addr().unwrap();
    let limits = "limits.max_body = \"1GiB\"";
    let stack = Stack::start_with(&format!(
        "server.h2c = true\n{limits}\n[[upstream]]\nname = \"recorder\"\nservers = [\"{address}\"]"
    ))
    .await;
    let mut client = client(&stack).await;
    let (_response, mut body) = client.send(Method::POST, "/none", false).await;
    let (_service, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let (mut sent, mut largest) = (0, 0);
    loop {
        body.reserve_capacity(16 << 20);
        let capacity = poll_fn(|cx| body.poll_capacity(cx));
        let Ok(capacity) = timeout(Duration::from_millis(500), capacity).await else { break };
        let capacity = capacity.unwrap().unwrap();
        largest = largest.max(capacity);
        sent += capacity;
        body.send_data(Bytes::from(vec![b'x'; capacity]), false).unwrap();
    }
    let grown = stack.metric(BUFFERED).await;
    assert!(grown == 0.0 && largest <= WINDOW, "{grown}, {largest} at once, {sent} in all");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tiny_frames_are_a_body_like_any_other() {
    let stack = Stack::start_with("server.h2c = true").await;
    let mut client = client(&stack).await;
    for number in 1..=2 {
        let (response, mut body) = client.send(Method::POST, "/none", false).await;
        // So many before the service reads, and more when it does.
        for count in [4000, 20_000] {
            for _ in 0..count {
                body.send_data(Bytes::from_static(b"x"), false).unwrap();
            }
            let begun = async {
                while stack.upstream.begun_after(0).len() < number {
                    tokio::task::yield_now().await;
                }
            };
            timeout(PATIENCE, begun).await.expect("a request in time");
        }
        body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(status(response).await.unwrap(), 200);
    }
    let received = stack.upstream.requests();
    assert!(received.iter().all(|received| received.body.len() == 24_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_are_forwarded_but_not_reserved_ones() {
    let stack = Stack::start_with("server.h2c = true").await;
    stack.upstream.reply(|_: &Received| {
        let trailers = "Grpc-Status: 0\r\nX-Request-Id: evil\r\nSet-Cookie: a=b\r\n\
                        X-OpenId: evil\r\n";
        let header = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n";
        Reply::Bytes(format!("{header}{trailers}\r\n").into())
    });
    let mut client = client(&stack).await;
    let (response, mut body) = client.send(Method::POST, "/none", false).await;
    body.send_data(Bytes::from_static(b"data"), false).unwrap();
    let mut trailers = HeaderMap::new();
    for (name, value) in [("x-sum", "1"), ("x-openid", "evil"), ("x_openid", "evil")] {
        trailers.insert(name, value.parse().unwrap());
    }
    body.send_trailers(trailers).unwrap();
    let response = timeout(PATIENCE, response).await.unwrap().unwrap();
    let mut response = response.into_body();
    let mut data = Vec::new();
    while let Some(piece) = timeout(PATIENCE, response.data()).await.unwrap() {
        data.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(data, b"ok");
    let trailers = timeout(PATIENCE, response.trailers()).await.unwrap().unwrap().unwrap();
    let names: Vec<&str> = trailers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["grpc-status"]);
    let received = stack.upstream.requests();
    assert_eq!(received[0].body, b"data");
    assert_eq!(received[0].trailers, [("x-sum".to_owned(), "1".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_100_gets_the_one_of_the_service() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stack = Stack::start_with(&format!(
        "server.h2c = true\n[[upstream]]\nname = \"recorder\"\nservers = [\"{address}\"]"
    ))
    .await;
    let client = Client::open(stack.gateway).await;
    let request = Request::builder().method(Method::POST).uri("http://gateway.test/none");
    let request = request.header("expect", "100-continue").header("content-length", "4");
    let mut ready = timeout(PATIENCE, client.requests.clone().ready()).await.unwrap().unwrap();
    let (mut response, mut body) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    let (mut service, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        assert!(timeout(PATIENCE, service.read_buf(&mut read)).await.unwrap().unwrap() > 0);
    }
    let header = String::from_utf8(read).unwrap().to_ascii_lowercase();
    assert!(header.contains("expect: 100-continue\r\n"), "{header}");
    service.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    let announced = timeout(PATIENCE, poll_fn(|cx| response.poll_informational(cx))).await;
    assert_eq!(announced.unwrap().unwrap().unwrap().status(), 100);
    body.send_data(Bytes::from_static(b"data"), true).unwrap();
    let mut data = [0; 4];
    timeout(PATIENCE, service.read_exact(&mut data)).await.unwrap().unwrap();
    assert_eq!(&data, b"data");
    service.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert_eq!(status(response).await.unwrap(), 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_100_gets_one_if_the_service_sends_none() {
    let stack = Stack::start_with("server.h2c = true").await;
    let client = Client::open(stack.gateway).await;
    let request = Request::builder().method(Method::POST).uri("http://gateway.test/none");
    let request = request.header("expect", "100-continue").header("content-length", "4");
    let mut ready = timeout(PATIENCE, client.requests.clone().ready()).await.unwrap().unwrap();
    let (mut response, mut body) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    let announced = timeout(PATIENCE, poll_fn(|cx| response.poll_informational(cx))).await;
    assert_eq!(announced.unwrap().unwrap().unwrap().status(), 100);
    body.send_data(Bytes::from_static(b"data"), true).unwrap();
    assert_eq!(status(response).await.unwrap(), 200);
    assert_eq!(stack.upstream.requests()[0].body, b"data");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads frames up to one of this type that begins with these bytes.
async fn until_frame(stream: &mut TcpStream, kind: u8, begin: &[u8]) {
    let reading = async {
        loop {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await.unwrap();
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await.unwrap();
            if [&header[5..], &payload].concat().starts_with(begin) && header[3] == kind {
                return;
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("a frame in time");
}

/// A setting can only be changed again after the client has confirmed the last change.
#[tokio::test(flavor = "multi_thread")]
async fn windows_grow_for_a_client_that_is_late_to_confirm_settings() {
    let (data, headers, settings, window_update) = (0, 1, 4, 8);
    let stack = Stack::start_with("server.h2c = true").await;
    let mut stream = TcpStream::connect(stack.gateway).await.unwrap();
    let block = b"\x83\x86\x04\x05/none\x01\x01g";
    let full = frame(data, 0, 1, &[b'x'; 16_384]);
    let rest = frame(data, 0, 1, &[b'x'; 16_383]);
    let opening = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &*frame(settings, 0, 0, b""),
        &frame(headers, 4, 1, block),
        &full.repeat(3),
        &rest,
    ];
    stream.write_all(&opening.concat()).await.unwrap();
    until_frame(&mut stream, window_update, &[0, 0, 0, 1]).await;
    let again = [frame(settings, 1, 0, b""), full.clone()].concat();
    stream.write_all(&again).await.unwrap();
    // The initial window is 1 MiB.
    until_frame(&mut stream, settings, &[0, 0, 0, 0, 0, 4, 0, 16, 0, 0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_frees_its_window_once_it_is_used_up_gets_the_rest_of_it_at_once() {
    const ROUNDS: usize = 64;
    for window in [65_535, 5_000] {
        let stack = Stack::start_with("server.h2c = true").await;
        let length = ROUNDS * window;
        stack.upstream.reply(move |_: &Received| Reply::ok("", &"x".repeat(length)));
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(u32::try_from(window).unwrap());
        let mut client = Client::open_with(stack.gateway, &builder).await;
        let response = timeout(PATIENCE, client.get("/none").await).await.unwrap().unwrap();
        let mut body = response.into_body();
        let (began, mut received, mut used) = (Instant::now(), 0, 0);
        while let Some(data) = timeout(PATIENCE, body.data()).await.unwrap() {
            let count = data.unwrap().len();
            received += count;
            used += count;
            if used == window {
                body.flow_control().release_capacity(std::mem::take(&mut used)).unwrap();
            }
        }
        assert_eq!(received, length);
        let took = began.elapsed();
        // A wait takes 200 ms.
        assert!(took < Duration::from_secs(4), "{took:?} for windows of {window} bytes");
    }
}
