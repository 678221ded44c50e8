//! One connection to the recording service: reads requests, records them, and replies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Idle, Received, Records, Replies, Reply, Step};
use crate::harness::strict::{self, Framing, fault};

/// A connection and the request on it.
struct Conversation<'a> {
    stream: TcpStream,
    read: Vec<u8>,
    request: Received,
    is_body_read: bool,
    records: &'a Mutex<Records>,
}

/// Whether a connection is kept after a request.
#[derive(PartialEq, Eq)]
enum Kept {
    Yes,
    No,
}

pub async fn converse(
    stream: TcpStream,
    connection: usize,
    records: &Mutex<Records>,
    replies: &Mutex<Arc<Replies>>,
    responds_early: &AtomicBool,
) -> Result<(), String> {
    // Bytes that are sent in pieces must arrive in pieces.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let request = Received::default();
    let mut it = Conversation { stream, read: Vec::new(), request, is_body_read: false, records };
    loop {
        let idle = Idle::new(&it.stream, connection, records).map_err(|error| error.to_string())?;
        let Some(header) = strict::read_header(&mut it.stream, &mut it.read).await? else { break };
        drop(idle);
        it.request = Received { connection, ..parse_header(&header)? };
        it.is_body_read = false;
        records.lock().unwrap().begun.push(it.request.clone());
        let is_early = responds_early.load(Ordering::Relaxed);
        if !is_early {
            if it.read_body().await? == Kept::No {
                break;
            }
            // The gateway sends no request before the response to the last one.
            if !it.read.is_empty() && it.request.all("upgrade").is_empty() {
                return Err(fault("bytes after a request", &it.read));
            }
        }
        let reply = replies.lock().unwrap().clone();
        if it.reply(reply(&it.request)).await? == Kept::No || it.read_body().await? == Kept::No {
            break;
        }
    }
    Ok(())
}

impl Conversation<'_> {
    async fn reply(&mut self, reply: Reply) -> Result<Kept, String> {
        let stream = &mut self.stream;
        match reply {
            Reply::Echo(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.write_all(&self.read).await;
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                return Ok(Kept::No);
            }
            Reply::Push(first, more) => {
                let _ = stream.write_all(&first).await;
                while stream.write_all(&more).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                return Ok(Kept::No);
            }
            Reply::When(released, bytes) => {
                released.notified().await;
                let _ = stream.write_all(&bytes).await;
            }
            Reply::Meet(barrier, bytes) => {
                barrier.wait().await;
                let _ = stream.write_all(&bytes).await;
            }
            Reply::Bytes(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return Ok(Kept::No);
                }
            }
            Reply::Last(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                return Ok(Kept::No);
            }
            Reply::Stall(bytes) => {
                let _ = stream.write_all(&bytes).await;
                std::future::pending::<()>().await;
            }
            Reply::Steps(steps) => {
                for step in steps {
                    if self.take(step).await? == Kept::No {
                        return Ok(Kept::No);
                    }
                }
            }
        }
        Ok(Kept::Yes)
    }

    async fn take(&mut self, step: Step) -> Result<Kept, String> {
        let stream = &mut self.stream;
        match step {
            Step::Send(bytes) => {
                let _ = stream.write_all(&bytes).await;
            }
            Step::Drip(bytes) => {
                for byte in bytes {
                    let _ = stream.write_all(&[byte]).await;
                    tokio::task::yield_now().await;
                }
            }
            Step::Body => return self.read_body().await,
            Step::Until(bytes) => {
                while !self.read.windows(bytes.len()).any(|window| window == bytes) {
                    if strict::more(stream, &mut self.read).await.is_none() {
                        return Ok(Kept::No);
                    }
                }
            }
            Step::Wait(released) => released.notified().await,
            Step::Close => return Ok(Kept::No),
            Step::Finish => {
                let _ = stream.shutdown().await;
                while strict::more(stream, &mut self.read).await.is_some() {
                    self.read.clear();
                }
                return Ok(Kept::No);
            }
            Step::Reset => {
                let socket = socket2::SockRef::from(&*stream);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
                return Ok(Kept::No);
            }
        }
        Ok(Kept::Yes)
    }

    /// Reads the body of the request, if that has not been done.
    async fn read_body(&mut self) -> Result<Kept, String> {
        if self.is_body_read {
            return Ok(Kept::Yes);
        }
        let (stream, read) = (&mut self.stream, &mut self.read);
        let mut body = strict::Body::default();
        let lines = &self.request.lines;
        let is_whole = match strict::framing(lines) {
            Some(Framing::Chunked) => strict::read_chunked(stream, read, &mut body).await?,
            _ => strict::read_length(stream, read, lines, &mut body).await,
        };
        if is_whole.is_none() {
            return Ok(Kept::No);
        }
        self.is_body_read = true;
        let strict::Body { bytes, trailers } = body;
        let received = Received { body: bytes, trailers, ..self.request.clone() };
        self.request = received.clone();
        self.records.lock().unwrap().whole.push(received);
        Ok(Kept::Yes)
    }
}

/// RFC 9112, read strictly.
fn parse_header(header: &[u8]) -> Result<Received, String> {
    let (request_line, lines) = strict::split_header(header)?;
    let parts: Vec<&str> = request_line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else {
        return Err(fault("no request line", header));
    };
    if !strict::is_token(method) || !target.starts_with(['/', '*']) {
        return Err(fault("no method or target", header));
    }
    if strict::framing(&lines).is_none() {
        return Err(fault("doubtful framing", header));
    }
    Ok(Received { request_line, lines, ..Received::default() })
}
