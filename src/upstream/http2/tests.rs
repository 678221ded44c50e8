use std::io;

use h2::server::SendResponse;
use h2::{Reason, RecvStream, server};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;

const IDLE: Duration = Duration::from_secs(4);
const GET: &[u8] = b"GET /a?b HTTP/1.1\r\nhost: shop.test\r\nx-a: 1\r\n\r\n";

type Accepted = (Request<RecvStream>, SendResponse<Bytes>);

/// A server, and the requests that it gets.
struct Server {
    key: Arc<()>,
    builder: server::Builder,
    accepted: (mpsc::UnboundedSender<Accepted>, mpsc::UnboundedReceiver<Accepted>),
    /// Number of connections that were opened, and those that have ended.
    opened: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Server {
    fn new() -> Self {
        Self {
            key: Arc::new(()),
            builder: server::Builder::new(),
            accepted: mpsc::unbounded_channel(),
            opened: Arc::default(),
            ended: Arc::default(),
        }
    }

    fn transport(&self) -> DuplexStream {
        let (near, far) = duplex(64 << 10);
        let (builder, accepted) = (self.builder.clone(), self.accepted.0.clone());
        let ended = self.ended.clone();
        self.opened.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let mut connection = builder.handshake(far).await.unwrap();
            while let Some(Ok(request)) = connection.accept().await {
                accepted.send(request).unwrap();
            }
            ended.fetch_add(1, Ordering::Relaxed);
        });
        near
    }

    async fn stream(&self, is_fresh: bool) -> Box<Stream> {
        let open = || Connection::open(self.transport(), false, IDLE, |_| {});
        stream::<_, Fault, _>(&self.key, is_fresh, open).await.unwrap()
    }

    async fn get(&self) -> Box<Stream> {
        let mut stream = self.stream(false).await;
        stream.announce(true, false);
        stream.write_all(GET).await.unwrap();
        stream
    }

    async fn accept(&mut self) -> Accepted {
        self.accepted.1.recv().await.unwrap()
    }
}

fn response(status: u16) -> Response<()> {
    Response::builder().status(status).header("x-b", "2").body(()).unwrap()
}

async fn fault(stream: &mut Stream) -> Fault {
    let error = stream.read_u8().await.unwrap_err();
    Fault::of(&error).unwrap_or_else(|| panic!("{error:?}"))
}

async fn text(stream: &mut Stream) -> io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.map(|_| text)
}

#[tokio::test]
async fn a_request_and_its_response_keep_lines_bodies_and_trailers() {
    let mut server = Server::new();
    let mut stream = server.stream(false).await;
    stream.announce(false, true);
    let header = b"POST /x?y HTTP/1.1\r\nhost: shop.test:80\r\ntransfer-encoding: chunked\r\n\
                   connection: Upgrade\r\ntrailer: x-sum\r\nx-a: 1\r\nx-a: 2\r\n\r\nbo";
    stream.write_all(header).await.unwrap();
    stream.write_all(b"dy").await.unwrap();
    stream.finish(b"x-sum: 9\r\n").unwrap();

    let (request, mut respond) = server.accept().await;
    let (parts, mut body) = request.into_parts();
    assert_eq!(
        (parts.method.as_str(), parts.uri.to_string()),
        ("POST", "http://shop.test:80/x?y".to_owned())
    );
    let lines: Vec<_> = parts
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    assert_eq!(lines, ["trailer: x-sum", "x-a: 1", "x-a: 2", "te: trailers"]);
    let mut received = Vec::new();
    while let Some(data) = body.data().await {
        received.extend_from_slice(&data.unwrap());
    }
    assert_eq!(received, b"body");
    assert_eq!(body.trailers().await.unwrap().unwrap()["x-sum"], "9");

    respond
        .send_informational(
            Response::builder().status(103).header("link", "</a>").body(()).unwrap(),
        )
        .unwrap();
    let mut send = respond.send_response(response(200), false).unwrap();
    send.send_data(Bytes::from_static(b"answer"), false).unwrap();
    let trailers = HeaderMap::from_iter([("x-end".parse().unwrap(), "3".parse().unwrap())]);
    send.send_trailers(trailers).unwrap();
    let expected =
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nx-b: 2\r\n\r\nanswer";
    assert_eq!(text(&mut stream).await.unwrap(), expected);
    assert_eq!(stream.take_trailers(), b"x-end: 3\r\n");
    assert!(!stream.ends_with_header());
}

#[tokio::test]
async fn a_response_that_ends_with_its_header_says_so() {
    let mut server = Server::new();
    let mut stream = server.get().await;
    let (_, mut respond) = server.accept().await;
    respond.send_response(response(204), true).unwrap();
    assert_eq!(text(&mut stream).await.unwrap(), "HTTP/1.1 204 No Content\r\nx-b: 2\r\n\r\n");
    assert!(stream.ends_with_header());
}

/// With only one window for all, the second response would wait for the first client.
#[tokio::test]
async fn requests_share_a_connection_and_none_waits_for_one_that_is_not_read() {
    let mut server = Server::new();
    let stalled: Vec<_> = [server.get().await, server.get().await].into();
    for _ in &stalled {
        let (_, mut respond) = server.accept().await;
        let mut send = respond.send_response(response(200), false).unwrap();
        send.send_data(vec![b'x'; 1 << 20].into(), true).unwrap();
    }
    let mut stream = server.get().await;
    assert!(stream.is_reused());
    let (_, mut respond) = server.accept().await;
    let mut send = respond.send_response(response(200), false).unwrap();
    send.send_data(vec![b'y'; 100_000].into(), true).unwrap();
    assert!(text(&mut stream).await.unwrap().ends_with(&"y".repeat(100_000)));
    for mut stream in stalled {
        assert!(text(&mut stream).await.unwrap().ends_with(&"x".repeat(1 << 20)));
    }
    assert_eq!(server.opened.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_server_that_allows_fewer_streams_gets_more_connections() {
    let mut server = Server::new();
    server.builder.max_concurrent_streams(2);
    let (key, opened) = (server.key.clone(), server.opened.clone());
    let first = server.get().await;
    let open = || Connection::open(server.transport(), false, IDLE, |_| {});
    // The third and the fourth come at the same time: one opens, and the other waits for it.
    let second = server.get().await;
    let (third, fourth) = tokio::join!(
        stream::<_, Fault, _>(&key, false, open),
        stream::<_, Fault, _>(&key, false, open),
    );
    assert_eq!(opened.load(Ordering::Relaxed), 2);
    assert!(!first.is_reused() && second.is_reused());
    assert!(!third.unwrap().is_reused() && fourth.unwrap().is_reused());
    drop(second);
    drop(server.get().await);
    assert_eq!(opened.load(Ordering::Relaxed), 2);
    drop(server.stream(true).await);
    assert_eq!(opened.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_request_that_was_not_processed_is_told_from_one_that_failed() {
    let mut server = Server::new();
    for (reason, expected) in [
        (Reason::REFUSED_STREAM, Fault::NotProcessed),
        (Reason::CANCEL, Fault::Reset(Reason::CANCEL)),
        (Reason::INTERNAL_ERROR, Fault::Reset(Reason::INTERNAL_ERROR)),
        (Reason::HTTP_1_1_REQUIRED, Fault::Reset(Reason::HTTP_1_1_REQUIRED)),
    ] {
        let mut stream = server.get().await;
        let (_, mut respond) = server.accept().await;
        respond.send_reset(reason);
        assert_eq!(fault(&mut stream).await, expected);
    }
    assert_eq!(server.opened.load(Ordering::Relaxed), 1);
}

/// Frames of a server, byte by byte: what `h2`'s own server would never send.
fn frame(kind: u8, flags: u8, id: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, id], payload].concat()
}

const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const HEADERS: u8 = 1;
const DATA: u8 = 0;
/// `:status: 200` in HPACK's static table.
const STATUS_200: u8 = 0x88;

/// Reads and discards until the end.
fn discard(mut far: tokio::io::ReadHalf<DuplexStream>) {
    tokio::spawn(async move { tokio::io::copy(&mut far, &mut tokio::io::sink()).await });
}

#[tokio::test]
async fn streams_above_a_goaway_were_not_processed_and_those_below_continue() {
    let (near, far) = duplex(64 << 10);
    let (far_read, mut far) = tokio::io::split(far);
    discard(far_read);
    far.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let key = Arc::new(());
    let mut near = Some(near);
    let mut open = || Connection::open(near.take().unwrap(), false, IDLE, |_| {});
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = stream::<_, Fault, _>(&key, false, &mut open).await.unwrap();
        stream.announce(true, false);
        stream.write_all(GET).await.unwrap();
        streams.push(stream);
    }
    // The last stream that was processed is 1, and the second request is stream 3.
    far.write_all(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).await.unwrap();
    let [first, second] = &mut streams[..] else { unreachable!() };
    assert_eq!(fault(second).await, Fault::NotProcessed);
    let other = Server::new();
    let fresh = stream::<_, Fault, _>(&key, false, || {
        Connection::open(other.transport(), false, IDLE, |_| {})
    });
    assert!(!fresh.await.unwrap().is_reused());
    far.write_all(&frame(HEADERS, 4, 1, &[STATUS_200])).await.unwrap();
    far.write_all(&frame(DATA, 1, 1, b"all")).await.unwrap();
    assert_eq!(text(first).await.unwrap(), "HTTP/1.1 200 OK\r\n\r\nall");
}

#[tokio::test]
async fn a_response_with_another_length_than_it_says_is_a_fault() {
    let mut server = Server::new();
    let sized = |length: u32| {
        Response::builder().status(200).header("content-length", length).body(()).unwrap()
    };
    let mut stream = server.get().await;
    let (_, mut respond) = server.accept().await;
    let mut send = respond.send_response(sized(5), false).unwrap();
    send.send_data(Bytes::from_static(b"four"), true).unwrap();
    let error = text(&mut stream).await.unwrap_err();
    assert_eq!(Fault::of(&error), Some(Fault::Protocol(Reason::PROTOCOL_ERROR)));

    let mut stream = server.stream(false).await;
    stream.announce(true, false);
    stream.write_all(b"HEAD / HTTP/1.1\r\nhost: shop.test\r\n\r\n").await.unwrap();
    let (_, mut respond) = server.accept().await;
    respond.send_response(sized(5), true).unwrap();
    assert_eq!(text(&mut stream).await.unwrap(), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(server.opened.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_server_that_speaks_something_else_fails_the_connect() {
    let (near, mut far) = duplex(1 << 10);
    let open = Connection::open(near, false, IDLE, |_| {});
    far.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let fault = open.await.err().unwrap();
    assert!(matches!(fault, Fault::Protocol(_)), "{fault:?}");
    let (near, far) = duplex(1 << 10);
    drop(far);
    let fault = Connection::open(near, false, IDLE, |_| {}).await.err().unwrap();
    assert!(matches!(fault, Fault::Closed(_)), "{fault:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_streams_is_closed_after_its_idle_time() {
    let server = Server::new();
    let stream = server.get().await;
    // As long as it has a stream, it is kept.
    tokio::time::sleep(10 * IDLE).await;
    assert_eq!(server.ended.load(Ordering::Relaxed), 0);
    drop(stream);
    tokio::time::sleep(IDLE.saturating_sub(Duration::from_millis(10))).await;
    assert!(server.stream(false).await.is_reused());
    tokio::time::sleep(IDLE.saturating_sub(Duration::from_millis(10))).await;
    assert_eq!(server.ended.load(Ordering::Relaxed), 0);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(server.ended.load(Ordering::Relaxed), 1);
    assert!(!server.stream(false).await.is_reused());
}

#[tokio::test]
async fn a_connection_on_which_nothing_came_is_not_used_after_a_timeout() {
    let mut server = Server::new();
    let stream = server.get().await;
    let first = server.accept().await;
    let mut other = server.get().await;
    let (_, mut respond) = server.accept().await;
    drop((respond.send_response(response(200), true), other.read_u8().await));
    drop((other, first));
    // The server is slow, but there.
    stream.timed_out();
    let silent = server.get().await;
    assert!(silent.is_reused());
    silent.timed_out();
    assert!(!server.stream(false).await.is_reused());
    drop((stream, silent));
    while server.ended.load(Ordering::Relaxed) < 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_is_reset() {
    let mut server = Server::new();
    let stream = server.get().await;
    let (_, mut respond) = server.accept().await;
    drop(stream);
    let reset = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
    assert_eq!(reset, Reason::CANCEL);
}

/// `h2` needs more memory for a small frame than for its bytes, and ends a connection that uses too
/// much of it.
#[tokio::test]
async fn a_thousand_small_messages_for_a_client_that_does_not_read_harm_nobody() {
    let mut server = Server::new();
    let mut streams = Vec::new();
    let mut sending = Vec::new();
    for _ in 0..4 {
        let mut stream = server.get().await;
        let (_, mut respond) = server.accept().await;
        let mut send = respond.send_response(response(200), false).unwrap();
        let header = stream.read(&mut [0; 1000]).await.unwrap();
        assert_eq!(header, b"HTTP/1.1 200 OK\r\nx-b: 2\r\n\r\n".len());
        sending.push(tokio::spawn(async move {
            for _ in 0..10_000 {
                send.send_data(Bytes::from_static(b"message"), false).unwrap();
                tokio::task::yield_now().await;
            }
            send.send_data(Bytes::new(), true).unwrap();
        }));
        streams.push(stream);
    }
    while !sending.iter().all(JoinHandle::is_finished) {
        poll_fn(|cx| {
            for stream in &mut streams {
                stream.gather(cx);
            }
            Poll::Ready(())
        })
        .await;
        tokio::task::yield_now().await;
    }
    for mut stream in streams {
        assert_eq!(text(&mut stream).await.unwrap(), "message".repeat(10_000));
    }
    assert_eq!(server.opened.load(Ordering::Relaxed), 1);
}
