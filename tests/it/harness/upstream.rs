//! A service that records requests, on a raw socket.
//!
//! It keeps the bytes of every request, parses them strictly, and responds as the test tells it. It
//! uses no HTTP library, so that what the gateway sends is seen unchanged. Whatever a strict parser
//! would reject is a fault, including bytes that belong to no request. A recorder that saw a fault
//! fails its test when it is dropped.

mod conversation;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, Notify};
use tokio::task::JoinHandle;

use self::conversation::converse;
use super::process_log;
use super::strict::{Lines, fault, values};

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Received {
    pub request_line: String,
    pub lines: Lines,
    pub body: Vec<u8>,
    pub trailers: Lines,
    /// Which connection it came on, counted from 0.
    pub connection: usize,
}

impl Received {
    /// All values of a header, by its exact name in any case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        values(&self.lines, name)
    }

    /// All values of a header for a CGI-like server, which folds names and merges trailers.
    pub fn folded(&self, name: &str) -> Vec<&str> {
        let lines = self.lines.iter().chain(&self.trailers);
        let named = lines.filter(|(known, _)| fold(known) == fold(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub fn target(&self) -> &str {
        self.request_line.split(' ').nth(1).unwrap()
    }
}

fn fold(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect()
}

/// What the service does with a request.
#[derive(Clone)]
pub enum Reply {
    /// Sends these bytes and keeps the connection.
    Bytes(Vec<u8>),
    /// Sends these bytes and closes the connection.
    Last(Vec<u8>),
    /// Sends these bytes and nothing more.
    Stall(Vec<u8>),
    /// Sends these bytes, and then back whatever comes.
    Echo(Vec<u8>),
    /// Sends the first bytes, then the others for ever, and reads nothing.
    Push(Vec<u8>, Vec<u8>),
    /// Sends these bytes when it is notified.
    When(Arc<Notify>, Vec<u8>),
    /// Sends these bytes when the barrier is reached.
    Meet(Arc<Barrier>, Vec<u8>),
    /// Does these steps, and keeps the connection unless one of them ends it.
    Steps(Vec<Step>),
}

/// A part of a reply.
#[derive(Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// Sends each of these bytes by itself.
    Drip(Vec<u8>),
    /// Reads the rest of the request, if the reply began before it was complete.
    Body,
    /// Waits until these bytes of the body have come.
    Until(Vec<u8>),
    Wait(Arc<Notify>),
    /// Closes the connection, even with unread bytes.
    Close,
    /// Closes the sending half, and reads until the gateway closes its own.
    Finish,
    /// Resets the connection.
    Reset,
}

impl Reply {
    pub fn ok(headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::Bytes(
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{headers}\r\n{body}").into(),
        )
    }
}

#[derive(Default)]
struct Records {
    whole: Vec<Received>,
    begun: Vec<Received>,
    faults: Vec<String>,
    /// Connections between two requests, by number.
    idle: HashMap<usize, std::net::TcpStream>,
}

type Replies = dyn Fn(&Received) -> Reply + Send + Sync;

pub struct Upstream {
    pub address: SocketAddr,
    /// The position of the process log when it was started.
    pub log_position: usize,
    records: Arc<Mutex<Records>>,
    replies: Arc<Mutex<Arc<Replies>>>,
    responds_early: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log_position = process_log::position();
        let records = Arc::new(Mutex::new(Records::default()));
        let replies: Arc<Mutex<Arc<Replies>>> =
            Arc::new(Mutex::new(Arc::new(|_: &Received| Reply::ok("", "hello"))));
        let responds_early = Arc::new(AtomicBool::new(false));
        let open = Arc::new(AtomicUsize::new(0));
        let counted = open.clone();
        let script = (records.clone(), replies.clone(), responds_early.clone());
        let accepting = tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (recorded, scripted, early) = script.clone();
                let open = counted.clone();
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    if let Err(fault) =
                        converse(stream, connection, &recorded, &scripted, &early).await
                    {
                        recorded.lock().unwrap().faults.push(fault);
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, log_position, records, replies, responds_early, open, accepting }
    }

    /// Replies to every request from now on with `reply`.
    pub fn reply(&self, reply: impl Fn(&Received) -> Reply + Send + Sync + 'static) {
        *self.replies.lock().unwrap() = Arc::new(reply);
    }

    /// Whether to reply as soon as a request header has come.
    pub fn respond_early(&self, early: bool) {
        self.responds_early.store(early, Ordering::Relaxed);
    }

    /// Waits until at most so many connections are open.
    pub async fn until_open(&self, count: usize) {
        let reached = async {
            while self.open.load(Ordering::SeqCst) > count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(super::PATIENCE, reached).await.expect("connections are closed");
    }

    /// Waits until so many whole requests have come.
    pub async fn until_requests(&self, count: usize) {
        while self.records.lock().unwrap().whole.len() < count {
            tokio::task::yield_now().await;
        }
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Received> {
        self.records.lock().unwrap().whole.clone()
    }

    /// The requests after the first `count`.
    pub fn requests_after(&self, count: usize) -> Vec<Received> {
        self.records.lock().unwrap().whole[count..].to_vec()
    }

    /// The same, of all requests whose header has come, with or without a complete body.
    pub fn begun_after(&self, count: usize) -> Vec<Received> {
        self.records.lock().unwrap().begun[count..].to_vec()
    }

    /// What a strict reader would reject.
    pub fn faults(&self) -> Vec<String> {
        let mut records = self.records.lock().unwrap();
        let unread: Vec<_> = records.idle.values().filter_map(unread_fault).collect();
        records.faults.extend(unread);
        records.faults.clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
        if !std::thread::panicking() {
            assert_eq!(self.faults(), [""; 0], "the service received malformed bytes");
        }
    }
}

/// Unread bytes on an idle connection that do not begin a request.
fn unread_fault(stream: &std::net::TcpStream) -> Option<String> {
    let mut bytes = [0; 64];
    let count = stream.peek(&mut bytes).unwrap_or(0);
    let begins_a_request = bytes[..count].first().is_none_or(u8::is_ascii_uppercase);
    (!begins_a_request).then(|| fault("bytes between requests", &bytes[..count]))
}

/// Marks a connection as between two requests, until it is dropped.
struct Idle<'a>(&'a Mutex<Records>, usize);

impl<'a> Idle<'a> {
    fn new(stream: &TcpStream, connection: usize, records: &'a Mutex<Records>) -> io::Result<Self> {
        let shared = std::os::fd::AsFd::as_fd(stream).try_clone_to_owned()?;
        records.lock().unwrap().idle.insert(connection, shared.into());
        Ok(Self(records, connection))
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap().idle.remove(&self.1);
    }
}
