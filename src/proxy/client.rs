//! The connection of a client, or one of its HTTP/2 streams.
//!
//! Reads request headers and sends responses, always with a deadline. Bytes of later requests that
//! arrive early are held, up to a limit, and never become part of the current request. Before a
//! connection is closed, a client that may still be sending gets a moment to finish: closing at
//! once would reset the connection, and the response could be lost.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::body::Incoming;
use super::buffers;
use super::stream::Stream;
use crate::access::trusted_proxies::address_value;
use crate::clock::deadline::Deadline;
use crate::message::header::lines::Line;
use crate::message::rejection::Rejection;
use crate::message::request_header::{self, RequestHeader};
use crate::policy::{Policies, Policy};

/// A connection, plain or TLS.
pub type Transport = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Maximum bytes of later requests that are held while one is served.
const MOST_HELD: usize = 64 << 10;

/// How long a client may continue sending after its response.
const LINGER: Duration = Duration::from_secs(5);

/// Where bytes are read from and written to.
pub enum Io {
    Http1(Transport),
    Http2(Stream),
}

/// A client's connection, or its stream.
pub struct ClientConnection {
    pub io: Io,
    /// Bytes that were read and belong to no request yet.
    pub held: Vec<u8>,
    pub deadline: Deadline,
    /// When the last response ended, if that is known.
    pub idle_since: Option<Instant>,
    pub peer: SocketAddr,
    pub address: IpAddr,
    /// The client's address, as it is written to services.
    pub address_value: HeaderValue,
    /// The lists of header lines of the last request and response, reused for the next.
    pub spare: Vec<Line>,
    pub spare_of_response: Vec<Line>,
}

/// The result of waiting for a request header.
pub enum NextRequest {
    /// The header was checked against the limits of this policy; the request keeps the policy.
    Header(RequestHeader, Arc<Policy>),
    Rejected(Rejection),
    /// The client disconnected, or was idle for too long.
    Ended,
}

/// The client has closed its connection.
pub struct Disconnected;

impl ClientConnection {
    pub fn plain(stream: TcpStream, peer: SocketAddr) -> Self {
        Self::new(Io::Http1(Either::Left(stream)), Vec::new(), peer)
    }

    pub fn tls(stream: TlsStream<TcpStream>, peer: SocketAddr) -> Self {
        Self::new(Io::Http1(Either::Right(Box::new(stream))), Vec::new(), peer)
    }

    /// `held` are the bytes already read from it.
    pub(super) fn new(io: Io, held: Vec<u8>, peer: SocketAddr) -> Self {
        let address = peer.ip().to_canonical();
        Self {
            io,
            peer,
            held,
            deadline: Deadline::new(),
            idle_since: None,
            address,
            address_value: address_value(address),
            spare: Vec::new(),
            spare_of_response: Vec::new(),
        }
    }

    /// Waits for a whole, valid request header. An idle connection may wait for
    /// `limits.idle_timeout`. A header must be complete `limits.header_timeout` after its first
    /// byte; for the first header of a connection that time begins with the connection. `begun` is
    /// the deadline of a header whose first bytes have already been received. Afterwards the header
    /// is at the start of `held`, and its lines are in `spare`.
    pub async fn next_request(
        &mut self,
        policies: &Policies,
        is_first: bool,
        begun: Option<Instant>,
    ) -> NextRequest {
        let mut policy = None;
        for _ in 0..2 {
            // Some old clients send an empty line after a request. It is not the start of the next
            // one.
            if self.held == b"\r\n" {
                self.held.clear();
            }
            if !self.held.is_empty() {
                break;
            }
            let is_idle = !is_first && policy.is_none();
            let time = policies.read(|policy| {
                let limits = &policy.limits;
                if is_idle { limits.idle_timeout } else { limits.header_timeout }
            });
            let since = self.idle_since.take().unwrap_or_else(Instant::now);
            self.deadline.set(since + time);
            if !matches!(self.read_more().await, Some(Ok(1..))) {
                return NextRequest::Ended;
            }
            policy = Some(policies.current());
        }
        let policy = policy.unwrap_or_else(|| policies.current());
        let mut end = begun;
        loop {
            let is_health = |path: &[u8]| policy.routes.is_health(path);
            let list = &mut self.spare;
            list.clear();
            match request_header::read(&self.held, policy.header_limits, is_health, |line| {
                list.push(line);
            }) {
                Ok(Some(header)) => return NextRequest::Header(header, policy),
                Ok(None) => {}
                Err(rejection) => return NextRequest::Rejected(rejection),
            }
            let end = *end.get_or_insert_with(|| Instant::now() + policy.limits.header_timeout);
            self.deadline.set(end);
            match self.read_more().await {
                Some(Ok(1..)) => {}
                Some(_) => return NextRequest::Ended,
                None => return NextRequest::Rejected(Rejection::RequestTimeout),
            }
        }
    }

    /// Reads more bytes into `held`. Returns 0 at the end of the connection, `None` at the
    /// deadline.
    pub async fn read_more(&mut self) -> Option<io::Result<usize>> {
        poll_fn(|cx| match self.poll_read(cx) {
            Poll::Ready(read) => Poll::Ready(Some(read)),
            Poll::Pending => self.deadline.poll_over(cx).map(|()| None),
        })
        .await
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.held.capacity() == 0 {
            // Usually nothing has arrived, and then no buffer is needed.
            if let Io::Http1(Either::Left(stream)) = &self.io {
                ready!(stream.poll_read_ready(cx))?;
            }
            self.held = buffers::take();
        }
        let read = buffers::poll_read(&mut self.io, cx, &mut self.held, buffers::SMALL);
        if self.held.is_empty() {
            buffers::give(std::mem::take(&mut self.held));
        }
        read
    }

    /// Ready when the client has closed its connection. Bytes that it sends early are held.
    pub fn poll_disconnect(&mut self, cx: &mut Context<'_>) -> Poll<Disconnected> {
        if let Io::Http2(stream) = &mut self.io {
            return stream.poll_disconnect(cx).map(|()| Disconnected);
        }
        while self.held.len() < MOST_HELD {
            match self.poll_read(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(Disconnected),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// Sends all of `bytes`. Gives up when the client accepts nothing for `patience`.
    ///
    /// # Errors
    /// When the client has disconnected, or accepts nothing.
    pub async fn send(&mut self, bytes: &[u8], patience: Duration) -> io::Result<()> {
        let mut sent = 0;
        let mut is_late = Some(Instant::now() + patience);
        poll_fn(|cx| {
            while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
                match Pin::new(&mut self.io).poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(length)) => (sent, is_late) = (sent + length, None),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return self.poll_stalled(cx, &mut is_late, patience),
                }
            }
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(flushed) => Poll::Ready(flushed),
                Poll::Pending => self.poll_stalled(cx, &mut is_late, patience),
            }
        })
        .await
    }

    fn poll_stalled(
        &mut self,
        cx: &mut Context<'_>,
        late: &mut Option<Instant>,
        patience: Duration,
    ) -> Poll<io::Result<()>> {
        self.deadline.set(*late.get_or_insert_with(|| Instant::now() + patience));
        self.deadline.poll_over(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Sends a whole response; `header` is the length of its header.
    ///
    /// # Errors
    /// As [`ClientConnection::send`].
    pub async fn respond(
        &mut self,
        message: &[u8],
        header: usize,
        patience: Duration,
    ) -> io::Result<()> {
        let Some((header, body)) = message.split_at_checked(header) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if let Io::Http2(stream) = &mut self.io {
            stream.send_header(header, body.is_empty())?;
            self.send(body, patience).await?;
            return self.io.finish(&[]);
        }
        self.send(message, patience).await
    }

    /// Sends an informational response (1xx).
    ///
    /// # Errors
    /// As [`ClientConnection::send`].
    pub async fn send_informational(
        &mut self,
        header: &[u8],
        patience: Duration,
    ) -> io::Result<()> {
        match &mut self.io {
            Io::Http2(stream) => stream.send_header(header, false),
            Io::Http1(_) => self.send(header, patience).await,
        }
    }

    /// Closes the connection. A client that may still be sending gets at most [`LINGER`] to close
    /// its side.
    pub async fn close(&mut self, may_be_sending: bool) {
        let end = Instant::now() + LINGER;
        self.deadline.set(end);
        let closing = self.deadline.limit(self.io.shutdown()).await;
        if !may_be_sending || !matches!(closing, Some(Ok(()))) {
            return;
        }
        self.held.clear();
        // The time is also checked here, because `read_more` checks the deadline only when there is
        // nothing to read.
        while Instant::now() < end && matches!(self.read_more().await, Some(Ok(1..))) {
            self.held.clear();
        }
    }

    /// Makes the connection end with a reset when it is dropped, so that the client does not take
    /// an incomplete response for a complete one.
    pub fn reset(&self) {
        let stream = match &self.io {
            Io::Http1(Either::Left(stream)) => stream,
            Io::Http1(Either::Right(tls)) => tls.get_ref().0,
            Io::Http2(_) => return,
        };
        // If this fails, the connection is closed normally.
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
}

impl Io {
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Begins a response on an HTTP/2 stream, and empties `header`. On HTTP/1 the header is kept,
    /// and sent together with the body.
    ///
    /// # Errors
    /// When the HTTP/2 stream is closed.
    pub fn begin(&mut self, header: &mut Vec<u8>, is_bodyless: bool) -> io::Result<()> {
        if let Self::Http2(stream) = self {
            stream.send_header(header, is_bodyless)?;
            header.clear();
        }
        Ok(())
    }

    /// Ends a response after its body.
    ///
    /// # Errors
    /// When the HTTP/2 stream is closed.
    pub fn finish(&mut self, trailers: &[u8]) -> io::Result<()> {
        match self {
            Self::Http1(_) => Ok(()),
            Self::Http2(stream) => stream.finish(trailers),
        }
    }
}

impl Incoming for Io {
    fn take_trailers(&mut self) -> Vec<u8> {
        match self {
            Self::Http1(_) => Vec::new(),
            Self::Http2(stream) => stream.take_trailers(),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(transport) => Pin::new(transport).poll_read(cx, buffer),
            Self::Http2(stream) => stream.poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Http1(transport) => Pin::new(transport).poll_write(cx, bytes),
            Self::Http2(stream) => stream.poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(transport) => Pin::new(transport).poll_flush(cx),
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(transport) => Pin::new(transport).poll_shutdown(cx),
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }
}
