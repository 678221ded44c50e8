//! A recording upstream on a raw socket.
//!
//! Keeps every request as its very bytes, reads them strictly, and answers what it is told
//! to. It is no HTTP library: what the gateway sends is seen as it is, and what no strict
//! reader would take is a fault, bytes that belong to no request among it. A recorder that
//! saw a fault fails its test when it is dropped.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub request_line: String,
    pub lines: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Which connection it came on, counted from 0.
    pub connection: usize,
}

impl Seen {
    /// All values of a header, by its exact name in any case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.lines.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// All values of a header, as a CGI-like server would find them.
    pub fn folded(&self, name: &str) -> Vec<&str> {
        let named = self.lines.iter().filter(|(known, _)| fold(known) == fold(name));
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

/// What the upstream does with a request.
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
    whole: Vec<Seen>,
    begun: Vec<Seen>,
    faults: Vec<String>,
    /// Connections between two requests, by number.
    idle: HashMap<usize, std::net::TcpStream>,
}

type Replies = dyn Fn(&Seen) -> Reply + Send + Sync;

pub struct Upstream {
    pub address: SocketAddr,
    records: Arc<Mutex<Records>>,
    replies: Arc<Mutex<Arc<Replies>>>,
    answers_early: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let records = Arc::new(Mutex::new(Records::default()));
        let replies: Arc<Mutex<Arc<Replies>>> =
            Arc::new(Mutex::new(Arc::new(|_: &Seen| Reply::ok("", "hello"))));
        let answers_early = Arc::new(AtomicBool::new(false));
        let open = Arc::new(AtomicUsize::new(0));
        let counted = open.clone();
        let script = (records.clone(), replies.clone(), answers_early.clone());
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
        Self { address, records, replies, answers_early, open, accepting }
    }

    /// Answers every request from now on by `reply`.
    pub fn reply(&self, reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) {
        *self.replies.lock().unwrap() = Arc::new(reply);
    }

    /// Whether requests are answered as soon as their heads have come.
    pub fn answer_early(&self, early: bool) {
        self.answers_early.store(early, Ordering::Relaxed);
    }

    /// Waits until only so many connections are open.
    pub async fn until_open(&self, count: usize) {
        let reached = async {
            while self.open.load(Ordering::SeqCst) > count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(super::PATIENCE, reached).await.expect("connections are closed");
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.records.lock().unwrap().whole.clone()
    }

    /// Those after so many.
    pub fn seen_after(&self, count: usize) -> Vec<Seen> {
        self.records.lock().unwrap().whole[count..].to_vec()
    }

    /// Requests after so many whose heads have come, with or without a whole body.
    pub fn begun_after(&self, count: usize) -> Vec<Seen> {
        self.records.lock().unwrap().begun[count..].to_vec()
    }

    /// What came that no strict reader would take.
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
            assert_eq!(self.faults(), [""; 0], "the service was sent what it cannot read");
        }
    }
}

/// What waits on a connection between two requests and begins none, read by nobody yet.
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

async fn converse(
    mut stream: TcpStream,
    connection: usize,
    records: &Mutex<Records>,
    replies: &Mutex<Arc<Replies>>,
    answers_early: &AtomicBool,
) -> Result<(), String> {
    let mut read = Vec::new();
    loop {
        let idle = Idle::new(&stream, connection, records).map_err(|error| error.to_string())?;
        let Some(mut request) = read_head(&mut stream, &mut read).await? else { break };
        drop(idle);
        request.connection = connection;
        records.lock().unwrap().begun.push(request.clone());
        let is_early = answers_early.load(Ordering::Relaxed);
        if !is_early {
            let Some(body) = read_body(&request, &mut stream, &mut read).await? else { break };
            request.body = body;
            // The gateway sends no request before the response to the last one.
            if !read.is_empty() && request.all("upgrade").is_empty() {
                return Err(fault("bytes after a request", &read));
            }
            records.lock().unwrap().whole.push(request.clone());
        }
        let reply = replies.lock().unwrap().clone();
        match reply(&request) {
            Reply::Echo(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.write_all(&read).await;
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                break;
            }
            Reply::Push(first, more) => {
                let _ = stream.write_all(&first).await;
                while stream.write_all(&more).await.is_ok() {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
                return Ok(());
            }
            Reply::When(released, bytes) => {
                released.notified().await;
                let _ = stream.write_all(&bytes).await;
            }
            Reply::Bytes(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            Reply::Last(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                break;
            }
            Reply::Stall(bytes) => {
                let _ = stream.write_all(&bytes).await;
                std::future::pending::<()>().await;
            }
        }
        if is_early {
            let Some(body) = read_body(&request, &mut stream, &mut read).await? else { break };
            request.body = body;
            records.lock().unwrap().whole.push(request);
        }
    }
    Ok(())
}

/// Reads a head; `None` when the connection ends before one begins.
async fn read_head(stream: &mut TcpStream, read: &mut Vec<u8>) -> Result<Option<Seen>, String> {
    let end = loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if more(stream, read).await.is_none() {
            let is_clean = read.is_empty();
            return if is_clean { Ok(None) } else { Err(fault("half a head", read)) };
        }
    };
    let head: Vec<u8> = read.drain(..end + 4).take(end).collect();
    parse_head(&head).map(Some)
}

/// RFC 9112, without any of its leniencies.
fn parse_head(head: &[u8]) -> Result<Seen, String> {
    let text = String::from_utf8_lossy(head);
    if text.replace("\r\n", "").contains(|c: char| c.is_control() && c != '\t') {
        return Err(fault("control bytes", head));
    }
    let mut lines = text.split("\r\n");
    let request_line = lines.next().unwrap_or_default().to_owned();
    let parts: Vec<&str> = request_line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else {
        return Err(fault("no request line", head));
    };
    if !is_token(method) || !target.starts_with(['/', '*']) {
        return Err(fault("no method or target", head));
    }
    let lines: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").filter(|(name, _)| is_token(name)))
        .map(|line| line.map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect::<Option<_>>()
        .ok_or_else(|| fault("no header line", head))?;
    let seen = Seen { request_line, lines, body: Vec::new(), connection: 0 };
    let is_framed = match (&seen.all("content-length")[..], &seen.all("transfer-encoding")[..]) {
        ([], [] | ["chunked"]) => true,
        ([length], []) => length.bytes().all(|b| b.is_ascii_digit()) && length.len() < 19,
        _ => false,
    };
    if is_framed { Ok(seen) } else { Err(fault("doubtful framing", head)) }
}

fn is_token(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(legal)
}

fn fault(what: &str, bytes: &[u8]) -> String {
    format!("{what}: {}", bytes.escape_ascii())
}

/// Reads the body of a request; `None` when the connection ends within it.
async fn read_body(
    request: &Seen,
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
) -> Result<Option<Vec<u8>>, String> {
    if !request.all("transfer-encoding").is_empty() {
        return read_chunked(stream, read).await;
    }
    let length = request.all("content-length").first().map_or(0, |value| value.parse().unwrap());
    while read.len() < length {
        if more(stream, read).await.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(read.drain(..length).collect()))
}

async fn read_chunked(
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = read.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            if more(stream, read).await.is_none() {
                return Ok(None);
            }
        };
        let size = std::str::from_utf8(&read[..end]).ok();
        let is_plain = |size: &&str| size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = size.filter(is_plain).and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.ok_or_else(|| fault("no size of a chunk", read))?;
        while read.len() < end + 2 + size + 2 {
            if more(stream, read).await.is_none() {
                return Ok(None);
            }
        }
        body.extend_from_slice(&read[end + 2..end + 2 + size]);
        // After the last chunk that is a trailer.
        if &read[end + 2 + size..end + 4 + size] != b"\r\n" {
            return Err(fault("no end of a chunk", read));
        }
        read.drain(..end + 4 + size);
        if size == 0 {
            return Ok(Some(body));
        }
    }
}

async fn more(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(read).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}
