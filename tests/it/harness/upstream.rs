//! A recording upstream on a raw socket.
//!
//! Keeps every request as its very bytes, reads them strictly, and answers what it is told
//! to. It is no HTTP library: what the gateway sends is seen as it is.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

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

type Replies = dyn Fn(&Seen) -> Reply + Send + Sync;

pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    replies: Arc<Mutex<Arc<Replies>>>,
    accepting: JoinHandle<()>,
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let replies: Arc<Mutex<Arc<Replies>>> =
            Arc::new(Mutex::new(Arc::new(|_: &Seen| Reply::ok("", "hello"))));
        let (recorded, scripted) = (seen.clone(), replies.clone());
        let accepting = tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(converse(stream, connection, recorded.clone(), scripted.clone()));
            }
        });
        Self { address, seen, replies, accepting }
    }

    /// Answers every request from now on by `reply`.
    pub fn reply(&self, reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) {
        *self.replies.lock().unwrap() = Arc::new(reply);
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn converse(
    mut stream: TcpStream,
    connection: usize,
    seen: Arc<Mutex<Vec<Seen>>>,
    replies: Arc<Mutex<Arc<Replies>>>,
) {
    let mut read = Vec::new();
    while let Some(mut request) = read_request(&mut stream, &mut read).await {
        request.connection = connection;
        seen.lock().unwrap().push(request.clone());
        let reply = replies.lock().unwrap().clone();
        match reply(&request) {
            Reply::Echo(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.write_all(&read).await;
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                return;
            }
            Reply::When(released, bytes) => {
                released.notified().await;
                let _ = stream.write_all(&bytes).await;
            }
            Reply::Bytes(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Reply::Last(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                return;
            }
            Reply::Stall(bytes) => {
                let _ = stream.write_all(&bytes).await;
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Reads one request; `None` when the connection ends, also within one.
async fn read_request(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<Seen> {
    let end = loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        more(stream, read).await?;
    };
    let head = String::from_utf8(read[..end].to_vec()).expect("a head of ASCII");
    read.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let request_line = lines.next()?.to_owned();
    let lines: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("a header line: {line:?}")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let find = |wanted: &str| {
        lines.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
    };
    let body = if find("transfer-encoding").is_some() {
        read_chunked(stream, read).await?
    } else {
        let length = find("content-length").map_or(0, |value| value.parse().unwrap());
        while read.len() < length {
            more(stream, read).await?;
        }
        read.drain(..length).collect()
    };
    Some(Seen { request_line, lines, body, connection: 0 })
}

async fn read_chunked(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = read.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            more(stream, read).await?;
        };
        let size = String::from_utf8(read[..end].to_vec()).unwrap();
        let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("size {size:?}"));
        while read.len() < end + 2 + size + 2 {
            more(stream, read).await?;
        }
        body.extend_from_slice(&read[end + 2..end + 2 + size]);
        assert_eq!(&read[end + 2 + size..end + 4 + size], b"\r\n");
        read.drain(..end + 4 + size);
        if size == 0 {
            return Some(body);
        }
    }
}

async fn more(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(read).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}
