//! A client on a raw socket, so that the test chooses every byte of a request.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::canary;
pub use super::response::Response;
use super::strict::{self, StrictResponse};
use super::upstream::Received;
use super::{PATIENCE, Stack};

/// A request that is being built.
pub struct Request<'a> {
    stack: &'a Stack,
    header_lines: String,
    body: Vec<u8>,
    chunked: bool,
}

impl<'a> Request<'a> {
    pub fn new(stack: &'a Stack, method: &str, path: &str) -> Self {
        Self::to_host(stack, "gateway.test", method, path)
    }

    pub fn to_host(stack: &'a Stack, host: &str, method: &str, path: &str) -> Self {
        let header_lines = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
        Self { stack, header_lines, body: Vec::new(), chunked: false }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.header_lines.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Sends the token in the session header.
    pub fn token(self, token: &str) -> Self {
        self.header("X-3rd-Session", token)
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("Content-Type", "application/json").body(body.to_string())
    }

    /// Sends the body in one chunk and without its length.
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// The request's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header_lines.clone().into_bytes();
        if self.chunked {
            bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            bytes.extend_from_slice(format!("{:x}\r\n", self.body.len()).as_bytes());
            bytes.extend_from_slice(&self.body);
            bytes.extend_from_slice(b"\r\n0\r\n\r\n");
        } else {
            if !self.body.is_empty() || self.header_lines.starts_with("POST") {
                let length = format!("Content-Length: {}\r\n", self.body.len());
                bytes.extend_from_slice(length.as_bytes());
            }
            bytes.extend_from_slice(b"\r\n");
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }

    /// Sends the request on a connection of its own.
    pub async fn send(self) -> Response {
        let gateway = self.stack.gateway;
        self.send_to(gateway).await
    }

    /// The same to the admin listener.
    pub async fn send_to_admin(self) -> Response {
        let admin = self.stack.admin;
        self.send_to(admin).await
    }

    /// Sends the request to the internal listener.
    pub async fn send_to_internal(self) -> Response {
        let internal = self.stack.internal.unwrap();
        self.send_to(internal).await
    }

    async fn send_to(self, address: SocketAddr) -> Response {
        let mut connection = Connection::open(address).await;
        connection.send(&self.bytes()).await;
        connection.response(self.header_lines.starts_with("HEAD")).await
    }

    /// Sends the request, which must be forwarded, and returns it as the service received it.
    pub async fn forwarded(self) -> Received {
        let before = self.stack.upstream.requests().len();
        let stack = self.stack;
        let response = self.send().await;
        assert_eq!(response.status, 200, "{}", response.text());
        let received = stack.upstream.requests();
        assert_eq!(received.len(), before + 1, "the request is forwarded once");
        received.last().unwrap().clone()
    }
}

/// A connection to the gateway.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        canary::plant_from(&String::from_utf8_lossy(bytes));
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Closes the sending half.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// The next response; `is_bodyless` for a response to HEAD.
    pub async fn response(&mut self, is_bodyless: bool) -> Response {
        let response = timeout(PATIENCE, self.read_response(is_bodyless)).await;
        response.expect("a response in time").expect("a response")
    }

    /// The next response, or `None` if the connection ends before it has begun.
    pub async fn response_or_end(&mut self) -> Option<Response> {
        timeout(PATIENCE, self.read_response(false)).await.expect("a response or an end in time")
    }

    /// The next response, read strictly; anything malformed is an error.
    pub async fn strict_response(&mut self, is_to_head: bool) -> Result<StrictResponse, String> {
        let response = self.strict_response_or_end(is_to_head).await?;
        response.ok_or_else(|| "the end instead of a response".to_owned())
    }

    /// The same, or `None` if the connection ends before it has begun.
    pub async fn strict_response_or_end(
        &mut self,
        is_to_head: bool,
    ) -> Result<Option<StrictResponse>, String> {
        let reading = strict::read_response(&mut self.stream, &mut self.read, is_to_head);
        strict::within(PATIENCE, reading).await
    }

    /// Sends these bytes in parts of this size, each in a packet of its own if possible.
    pub async fn send_in_parts(&mut self, bytes: &[u8], size: usize) {
        self.stream.set_nodelay(true).unwrap();
        for part in bytes.chunks(size) {
            self.send(part).await;
            tokio::task::yield_now().await;
        }
    }

    /// The next response, read while these bytes are sent for as long as the gateway accepts them.
    pub async fn strict_response_while_sending(
        &mut self,
        bytes: &[u8],
    ) -> Result<StrictResponse, String> {
        let (mut from, mut to) = self.stream.split();
        let reading = strict::read_response(&mut from, &mut self.read, false);
        let sending = async {
            let _ = to.write_all(bytes).await;
            std::future::pending().await
        };
        let response = tokio::select! {
            response = strict::within(PATIENCE, reading) => response?,
            () = sending => None,
        };
        response.ok_or_else(|| "the end instead of a response".to_owned())
    }

    /// The same, as long as the gateway accepts them.
    pub async fn try_send_in_parts(&mut self, bytes: &[u8], size: usize) {
        self.stream.set_nodelay(true).unwrap();
        for part in bytes.chunks(size) {
            if self.stream.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Sends these bytes, if the gateway still accepts them.
    pub async fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Whether the next bytes are these.
    pub async fn reads(&mut self, expected: &[u8]) -> bool {
        let read =
            async { while self.read.len() < expected.len() && self.more().await.is_some() {} };
        timeout(PATIENCE, read).await.expect("bytes in time");
        let end = expected.len().min(self.read.len());
        self.read.drain(..end).eq(expected.iter().copied())
    }

    /// Reads until these bytes have come, and returns whether they did.
    pub async fn reads_up_to(&mut self, expected: &[u8]) -> bool {
        let read = async {
            loop {
                let found = self.read.windows(expected.len()).position(|window| window == expected);
                if let Some(at) = found {
                    self.read.drain(..at + expected.len());
                    return true;
                }
                if self.more().await.is_none() {
                    return false;
                }
            }
        };
        timeout(PATIENCE, read).await == Ok(true)
    }

    /// Whether the gateway closes the connection without sending another byte.
    pub async fn is_closed(&mut self) -> bool {
        self.read.is_empty() && timeout(PATIENCE, self.more()).await == Ok(None)
    }

    /// Whether the gateway closes the connection, whatever it sends before.
    pub async fn ends(&mut self) -> bool {
        let end = async {
            while self.more().await.is_some() {
                self.read.clear();
            }
        };
        timeout(PATIENCE, end).await.is_ok()
    }

    /// Whether nothing arrives for this time.
    pub async fn is_silent(&mut self, time: Duration) -> bool {
        self.read.is_empty() && timeout(time, self.more()).await.is_err()
    }

    async fn read_response(&mut self, is_bodyless: bool) -> Option<Response> {
        let response = self.read_next(is_bodyless).await?;
        canary::plant_from(&response.text());
        if response.header("x-wxgate-error").is_some() {
            canary::search("an error", &format!("{:?} {}", response.headers, response.text()));
        }
        Some(response)
    }

    async fn read_next(&mut self, is_bodyless: bool) -> Option<Response> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            self.more().await?;
        };
        let header = String::from_utf8(self.read[..end].to_vec()).unwrap();
        self.read.drain(..end + 4);
        let mut lines = header.split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response = Response { status, headers, body: Vec::new(), is_whole: true };
        if is_bodyless || matches!(status, 100..=199 | 204 | 304) {
            return Some(response);
        }
        if response.header("transfer-encoding").is_some() {
            response.is_whole = self.read_chunks(&mut response.body).await.is_some();
        } else if let Some(length) = response.header("content-length") {
            let length: usize = length.parse().unwrap();
            while self.read.len() < length && response.is_whole {
                response.is_whole = self.more().await.is_some();
            }
            let end = length.min(self.read.len());
            response.body = self.read.drain(..end).collect();
        } else {
            while self.more().await.is_some() {}
            response.body = std::mem::take(&mut self.read);
        }
        Some(response)
    }

    async fn read_chunks(&mut self, body: &mut Vec<u8>) -> Option<()> {
        loop {
            let end = loop {
                if let Some(at) = self.read.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                self.more().await?;
            };
            let size = String::from_utf8(self.read[..end].to_vec()).unwrap();
            let size = usize::from_str_radix(&size, 16).unwrap();
            while self.read.len() < end + 4 + size {
                self.more().await?;
            }
            body.extend_from_slice(&self.read[end + 2..end + 2 + size]);
            self.read.drain(..end + 4 + size);
            if size == 0 {
                return Some(());
            }
        }
    }

    async fn more(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.read).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }
}

/// Sends a GET to any address.
pub async fn get(address: SocketAddr, path: &str) -> Response {
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    let response = exchange(address, &request).await;
    if path == "/metrics" {
        canary::search("the metrics", &response.text());
    }
    response
}

/// Posts JSON to any address.
pub async fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    let body = body.to_string();
    let length = body.len();
    let header = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    exchange(address, &(header + &body)).await
}

async fn exchange(address: SocketAddr, request: &str) -> Response {
    let mut connection = Connection::open(address).await;
    connection.send(request.as_bytes()).await;
    connection.response(false).await
}
