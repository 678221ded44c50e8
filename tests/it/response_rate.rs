//! Clients that accept their responses too slowly.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::upstream::{Received, Reply};
use crate::harness::{PATIENCE, Stack};
use crate::http2::Client;

/// Longer than the grace, in which nobody is judged, by some seconds.
const JUDGED: Duration = Duration::from_secs(9);

const LARGE: usize = 60_000_000;

/// Reads so many bytes of a response every so often over HTTP/2, and returns whether it was
/// cut off within [`JUDGED`].
async fn is_cut_off(rate: &str, piece: usize, pause: Duration) -> bool {
    let stack =
        Stack::start_with(&format!("server.h2c = true\nlimits.min_response_rate = \"{rate}\""))
            .await;
    stack.upstream.reply(|_: &Received| Reply::ok("", &"x".repeat(1_000_000)));
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(u32::try_from(piece).unwrap());
    let mut client = Client::open_with(stack.gateway, &builder).await;
    let start = Instant::now();
    let response = timeout(PATIENCE, client.get("/none").await).await.unwrap().unwrap();
    let mut body = response.into_body();
    while start.elapsed() < JUDGED {
        match timeout(PATIENCE, body.data()).await.unwrap() {
            Some(Ok(data)) => body.flow_control().release_capacity(data.len()).unwrap(),
            Some(Err(error)) => {
                assert!(error.is_reset(), "{error}");
                assert!(start.elapsed() > Duration::from_secs(4), "{:?}", start.elapsed());
                stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
                return true;
            }
            None => panic!("the response ended"),
        }
        // This is the client's pace, not a wait for something.
        sleep(pause).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_client_that_reads_too_slowly_is_cut_off() {
    let pause = Duration::from_millis(200);
    let (drips, takes_enough, any) = tokio::join!(
        is_cut_off("1KiB", 20, pause),
        is_cut_off("1KiB", 1000, pause),
        is_cut_off("0B", 20, pause),
    );
    assert_eq!((drips, takes_enough, any), (true, false, false));
}

/// Over HTTP/1.1 the system buffers a part of the response that the client has not read yet.
async fn is_cut_off_in_time(rate: usize) -> bool {
    let stack = Stack::start_with("limits.min_response_rate = \"1MiB\"").await;
    stack.upstream.reply(|_: &Received| Reply::ok("", &"x".repeat(LARGE)));
    let mut stream = slow_reader(&stack).await;
    let reading = tokio::spawn(async move {
        let mut piece = vec![0; rate / 20];
        while stream.read_exact(&mut piece).await.is_ok() {
            // As above.
            sleep(Duration::from_millis(50)).await;
        }
    });
    sleep(Duration::from_secs(2)).await;
    let log = stack.directory.path().join("access.log");
    let end = async {
        while std::fs::read_to_string(&log).unwrap_or_default().is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let is_cut = timeout(JUDGED, end).await.is_ok();
    reading.abort();
    is_cut
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_the_system_buffers_do_not_count_as_read() {
    let (slow, fast) = tokio::join!(is_cut_off_in_time(200_000), is_cut_off_in_time(2_600_000));
    assert_eq!((slow, fast), (true, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_reading_is_not_cut_off() {
    let limits = "limits.min_response_rate = \"0B\"\nlimits.write_timeout = \"3s\"";
    let stack = Stack::start_with(limits).await;
    stack.upstream.reply(|_: &Received| Reply::ok("", &"x".repeat(LARGE)));
    let mut stream = slow_reader(&stack).await;
    let mut piece = vec![0; 10_000];
    let start = Instant::now();
    while start.elapsed() < JUDGED {
        timeout(PATIENCE, stream.read_exact(&mut piece)).await.unwrap().unwrap();
        // As above.
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(stack.metric("wxgate_http_requests_in_flight").await, 1.0, "it was cut off");
}

/// A client with a small receive buffer, which has sent its request.
async fn slow_reader(stack: &Stack) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut stream = socket.connect(stack.gateway).await.unwrap();
    stream.write_all(&stack.get("/none").bytes()).await.unwrap();
    stream
}
