//! Tests that nothing is left of a request when its connection is dropped.
//!
//! Each request is served repeatedly, and dropped at its first poll, at its second poll, and so on,
//! until it completes. This file is longer than others because it needs a client and a strict
//! service of its own: only here can a connection be polled one step at a time.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use super::Server;
use super::listeners::into_tokio;
use crate::clock::Clock;
use crate::config::{Config, Loaded, Secrets};
use crate::edge::{Edge, ListenerKind};
use crate::policy::{Policies, Process};
use crate::server::reload;
use crate::telemetry::metrics::Metrics;

const MAX_CONNECTIONS: usize = 16;

/// Longer than any successful operation takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Separates the parts of a request.
const PAUSE: Duration = Duration::from_millis(1);

/// A future that is dropped after this many polls. `true`: it completed before.
struct Cut<F> {
    future: Pin<Box<F>>,
    polls: usize,
}

impl<F: Future<Output = ()>> Future for Cut<F> {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        if self.future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        self.polls -= 1;
        if self.polls == 0 { Poll::Ready(false) } else { Poll::Pending }
    }
}

/// What the service has received.
#[derive(Default)]
struct Records {
    /// The connection number and the target of each request.
    served: Vec<(usize, String)>,
    faults: Vec<String>,
}

/// A gateway that serves a connection on request of the test, and a service.
struct Bench {
    listener: TcpListener,
    edge: Arc<Edge>,
    process: Arc<Process>,
    policies: Arc<Policies>,
    records: Arc<Mutex<Records>>,
    /// Keeps resolving the servers.
    _resolving: JoinSet<()>,
    _directory: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let records = Arc::new(Mutex::new(Records::default()));
        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = service.local_addr().unwrap();
        let recorded = records.clone();
        tokio::spawn(async move {
            for number in 0.. {
                let (stream, _) = service.accept().await.unwrap();
                tokio::spawn(respond(stream, number, recorded.clone()));
            }
        });
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
        let secret = secret.display();
        let text = format!(
            r#"
            [server]
            listen = "127.0.0.1:0"
            threads = 1
            h2c = true
            [admin]
            listen = "127.0.0.1:0"
            [limits]
            max_connections = {MAX_CONNECTIONS}
            max_connections_per_address = 8
            [[app]]
            app_id = "wx0123456789abcdef"
            app_secret = {{ file = "{secret}" }}
            [[upstream]]
            name = "service"
            servers = ["{address}"]
            [[upstream]]
            name = "limited"
            servers = ["{address}"]
            max_connections = 1
            retry = {{ budget = "100%" }}
            [[upstream]]
            name = "dead"
            servers = ["{dead}"]
            [[route]]
            path = "/"
            upstream = "service"
            auth = "none"
            websocket = true
            [[route]]
            path = "/limited"
            upstream = "limited"
            auth = "none"
            [[route]]
            path = "/dead"
            upstream = "dead"
            auth = "none"
            "#
        );
        let path = directory.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        let Loaded { config, .. } = Config::read(&path, Secrets::Load, None);
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        let server = Server::bind(&config, Clock::manual(), Metrics::new().unwrap()).unwrap();
        let Server { mut listeners, edge, process, policies, .. } = server;
        let listener = into_tokio(listeners.public.remove(0).0).unwrap();
        let mut resolving = JoinSet::new();
        reload::resolve(&policies.current().pools, &mut resolving).await;
        Self {
            listener,
            edge,
            process,
            policies,
            records,
            _resolving: resolving,
            _directory: directory,
        }
    }

    /// Serves the connection of this client, and drops it after this many polls. Returns whether it
    /// completed before, and what the client received.
    async fn serve(&self, client: Script, polls: usize) -> (bool, Vec<u8>) {
        let address = self.listener.local_addr().unwrap();
        let client: JoinHandle<Vec<u8>> = tokio::spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            match client {
                Script::Http1(parts) => send(stream, &parts).await,
                Script::Http2(length) => upload(stream, length).await,
            }
        });
        let (stream, peer) = self.listener.accept().await.unwrap();
        let served = self.edge.serve(stream, peer, ListenerKind::Client);
        let cut = Cut { future: Box::pin(served), polls };
        let has_completed = timeout(TIMEOUT, cut).await.expect("the connection ends in time");
        let got = timeout(TIMEOUT, client).await.expect("the client ends in time").unwrap();
        (has_completed, got)
    }

    /// Asserts that nothing is left of a connection.
    async fn assert_nothing_is_left(&self, what: &str) {
        // HTTP/2 streams are separate tasks, and end a moment later.
        for _ in 0..1000 {
            if self.process.metrics.requests_in_flight() == 0 {
                break;
            }
            yield_now().await;
        }
        assert_eq!(self.process.metrics.requests_in_flight(), 0, "{what}");
        assert_eq!(self.edge.held(), (MAX_CONNECTIONS, 0), "{what}");
        self.policies.current().pools.iter().for_each(|pool| pool.update_metrics());
        let metrics = String::from_utf8(self.process.metrics.render().unwrap()).unwrap();
        for gauge in ["wxgate_upstream_requests_in_flight{", "wxgate_upstream_pending{"] {
            let mut lines = metrics.lines().filter(|line| line.starts_with(gauge)).peekable();
            assert!(lines.peek().is_some(), "{gauge}");
            assert!(lines.all(|line| line.ends_with(" 0")), "{what}: {metrics}");
        }
        for gauge in ["wxgate_http_requests_in_flight 0\n", "wxgate_buffered_bytes 0\n"] {
            assert!(metrics.contains(gauge), "{what}: {metrics}");
        }
        assert_eq!(self.records.lock().unwrap().faults, [""; 0], "{what}");
    }

    fn served(&self) -> Vec<(usize, String)> {
        self.records.lock().unwrap().served.clone()
    }
}

/// What a client does.
#[derive(Clone)]
enum Script {
    /// Sends these parts.
    Http1(Vec<String>),
    /// Sends a body of this length, and trailers.
    Http2(usize),
}

/// Sends each of the parts separately, and reads until the end.
async fn send(stream: TcpStream, parts: &[String]) -> Vec<u8> {
    let (mut from, mut to) = stream.into_split();
    let sending = async {
        for part in parts {
            if to.write_all(part.as_bytes()).await.is_err() {
                break;
            }
            sleep(PAUSE).await;
        }
    };
    let reading = async {
        let mut got = Vec::new();
        while from.read_buf(&mut got).await.is_ok_and(|length| length > 0) {}
        got
    };
    tokio::join!(sending, reading).1
}

async fn upload(stream: TcpStream, length: usize) -> Vec<u8> {
    let Ok((requests, connection)) = h2::client::handshake(stream).await else { return Vec::new() };
    let connection = tokio::spawn(connection);
    let request = async {
        let request = Request::post("http://g/length?h2").body(()).unwrap();
        let mut requests = requests.ready().await?;
        let (response, mut body) = requests.send_request(request, false)?;
        let mut left = length;
        while left > 0 {
            body.reserve_capacity(left);
            let capacity = std::future::poll_fn(|cx| body.poll_capacity(cx)).await;
            let Some(capacity) = capacity.transpose()? else { break };
            body.send_data(Bytes::from(vec![b'x'; capacity]), false)?;
            left -= capacity;
        }
        body.send_trailers(
            [("x-sum".parse().unwrap(), "1".parse().unwrap())].into_iter().collect(),
        )?;
        let mut response = response.await?.into_body();
        let mut got = Vec::new();
        while let Some(data) = response.data().await.transpose()? {
            got.extend_from_slice(&data);
        }
        Ok::<_, h2::Error>(got)
    };
    let got = request.await.unwrap_or_default();
    connection.abort();
    let _ = connection.await;
    got
}

/// The service: parses requests strictly, and repeats the target in each response.
async fn respond(mut stream: TcpStream, number: usize, records: Arc<Mutex<Records>>) {
    stream.set_nodelay(true).unwrap();
    let mut read = Vec::new();
    let fault = |what: &str, read: &[u8]| {
        let text = format!("{what}: {}", String::from_utf8_lossy(read));
        records.lock().unwrap().faults.push(text);
    };
    loop {
        let Some(header) = until(&mut stream, &mut read, b"\r\n\r\n").await else { return };
        let header = String::from_utf8(header).unwrap();
        let target = header.split(' ').nth(1).unwrap_or_default().to_owned();
        if !(header.starts_with("GET /") || header.starts_with("POST /")) {
            return fault("no request", header.as_bytes());
        }
        records.lock().unwrap().served.push((number, target.clone()));
        if target == "/limited?closed" {
            let records = records.lock().unwrap();
            let times = records.served.iter().filter(|(_, other)| *other == target).count();
            if times % 2 == 1 {
                return;
            }
        }
        let lower = header.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
        if let Some(length) = length {
            let length: usize = length.parse().unwrap();
            while read.len() < length {
                if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
                    return;
                }
            }
            let body: Vec<u8> = read.drain(..length).collect();
            if body.iter().any(|byte| *byte != b'x') {
                return fault("no body", &body);
            }
        } else if lower.contains("transfer-encoding") {
            loop {
                let Some(line) = until(&mut stream, &mut read, b"\r\n").await else { return };
                let size = std::str::from_utf8(&line[..line.len() - 2]).unwrap();
                let Ok(size) = usize::from_str_radix(size, 16) else {
                    return fault("no chunk", &line);
                };
                if size == 0 {
                    break;
                }
                while read.len() < size + 2 {
                    if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
                        return;
                    }
                }
                let data: Vec<u8> = read.drain(..size + 2).collect();
                if data[..size].iter().any(|byte| *byte != b'x') {
                    return fault("no data", &data);
                }
            }
            while let Some(line) = until(&mut stream, &mut read, b"\r\n").await {
                if line == b"\r\n" {
                    break;
                }
            }
        }
        let length = target.len();
        let parts = match target.split('?').next().unwrap_or_default() {
            "/chunked" => vec![
                "HTTP/1.1 200 OK\r\nTransfer-Enc".to_owned(),
                "oding: chunked\r\nTrailer: X-End\r\n\r\n".to_owned(),
                format!("{length:x}\r\n{target}"),
                "\r\n1\r\n!\r".to_owned(),
                "\n0\r\nX-End: 1\r\n".to_owned(),
                "\r\n".to_owned(),
            ],
            "/websocket" => vec![
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
                    .to_owned(),
                "/websocket".to_owned(),
                "!".to_owned(),
            ],
            _ => vec![
                "HTTP/1.1 100 Continue\r\n\r\n".to_owned(),
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"),
                target[..1].to_owned(),
                target[1..].to_owned(),
            ],
        };
        for part in parts {
            if stream.write_all(part.as_bytes()).await.is_err() {
                return;
            }
            sleep(PAUSE).await;
        }
        if target.starts_with("/websocket") {
            let _ = until(&mut stream, &mut read, b"bye").await;
            return;
        }
    }
}

/// Reads up to and including these bytes; `None` at the end of the connection.
async fn until(stream: &mut TcpStream, read: &mut Vec<u8>, end: &[u8]) -> Option<Vec<u8>> {
    loop {
        if let Some(at) = memchr::memmem::find(read, end) {
            return Some(read.drain(..at + end.len()).collect());
        }
        if !matches!(stream.read_buf(read).await, Ok(1..)) {
            return None;
        }
    }
}

/// Drops a request at each of its polls. The response of the completed one must end with `end`.
async fn drop_after_each_poll(name: &str, script: Script, end: &str) {
    let bench = Bench::start().await;
    for polls in 1.. {
        let what = format!("{name}, dropped after {polls} polls");
        let (has_completed, got) = bench.serve(script.clone(), polls).await;
        bench.assert_nothing_is_left(&what).await;
        let target = format!("/length?probe={polls}");
        let header = format!("GET {target} HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n");
        let (_, probe) = bench.serve(Script::Http1(vec![header]), usize::MAX).await;
        let probe = String::from_utf8(probe).unwrap();
        assert!(probe.contains("HTTP/1.1 200 OK\r\n"), "{what}: {probe}");
        assert!(probe.ends_with(&format!("\r\n\r\n{target}")), "{what}: {probe}");
        bench.assert_nothing_is_left(&what).await;
        let served = bench.served();
        assert_eq!(served.iter().filter(|(_, of)| *of == target).count(), 1, "{what}");
        if has_completed {
            let got = String::from_utf8(got).unwrap();
            assert!(got.ends_with(end), "{what}: {got}");
            assert!(polls > 2, "{name} has completed after {polls} polls");
            // Connections are reused; otherwise correct responses would prove nothing.
            let connections: BTreeSet<usize> = served.iter().map(|(number, _)| *number).collect();
            assert!(connections.len() < served.len(), "{name}: {connections:?}");
            return;
        }
        assert!(polls < 2000, "{name} does not complete");
    }
}

/// Parts of an HTTP/1 request.
fn parts(parts: &[&str]) -> Script {
    Script::Http1(parts.iter().map(|part| (*part).to_owned()).collect())
}

#[tokio::test]
async fn a_request_without_a_body() {
    let script = parts(&["GET /length?get HT", "TP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"]);
    drop_after_each_poll("GET", script, "\r\n\r\n/length?get").await;
}

#[tokio::test]
async fn a_second_request_of_a_connection() {
    let script = parts(&[
        "GET /length?first HTTP/1.1\r\nHost: g\r\n\r\n",
        "GET /chunked?second HTTP/1.1\r\nHost: g\r\n",
        "TE: trailers\r\nConnection: close, TE\r\n\r\n",
    ]);
    drop_after_each_poll("two requests", script, "1\r\n!\r\n0\r\nX-End: 1\r\n\r\n").await;
}

#[tokio::test]
async fn a_request_with_a_length() {
    let script = parts(&[
        "POST /length?post HTTP/1.1\r\nHost: g\r\nContent-Length: 6\r\n",
        "Connection: close\r\n\r\nx",
        "xx",
        "xxx",
    ]);
    drop_after_each_poll("POST with a length", script, "\r\n\r\n/length?post").await;
}

/// If a place were left taken, the next request would wait in vain.
#[tokio::test]
async fn a_request_for_the_only_place_of_a_server() {
    let script = parts(&[
        "POST /limited?post HTTP/1.1\r\nHost: g\r\nContent-Length: 3\r\n",
        "Connection: close\r\n\r\nx",
        "xx",
    ]);
    drop_after_each_poll("the only place", script, "\r\n\r\n/limited?post").await;
}

#[tokio::test]
async fn a_request_that_is_sent_again() {
    let script = parts(&["GET /limited?closed HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"]);
    drop_after_each_poll("a retry", script, "\r\n\r\n/limited?closed").await;
}

#[tokio::test]
async fn a_request_in_chunks() {
    let script = parts(&[
        "POST /length?chunks HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n",
        "Connection: close\r\n\r\n1\r\nx\r\n",
        "2\r",
        "\nxx\r\n0\r\nX-Sum: 1",
        "\r\n\r\n",
    ]);
    drop_after_each_poll("POST in chunks", script, "\r\n\r\n/length?chunks").await;
}

#[tokio::test]
async fn a_response_in_chunks() {
    let script = parts(&["GET /chunked HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"]);
    drop_after_each_poll("a response in chunks", script, "1\r\n!\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_websocket() {
    let script = parts(&[
        "GET /websocket HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        "he",
        "llo",
        "bye",
    ]);
    drop_after_each_poll("a WebSocket", script, "\r\n\r\n/websocket!").await;
}

#[tokio::test]
async fn a_request_for_a_dead_server() {
    let script = parts(&[
        "POST /dead HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 3\r\n\r\nx",
        "x",
        "x",
    ]);
    drop_after_each_poll("a dead server", script, "}\n").await;
}

#[tokio::test]
async fn an_upload_over_http_2() {
    drop_after_each_poll("HTTP/2", Script::Http2(300_000), "/length?h2").await;
}
