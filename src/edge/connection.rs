//! One downstream connection, as pingora reads and writes it.
//!
//! pingora may read of a connection no more than the request at hand: what follows it is
//! the next request, and stays here until its head can be judged. So reads end at the
//! bounds of the body, and bytes that come early are held back. Writes are gathered, so
//! that the head and body of a small answer leave together. Closing waits a moment for the
//! client to read what it was sent, when it may still be sending: closing at once would
//! reset the connection and take the answer away from it.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::chunked::{Chunked, Malformed};
use crate::head::Framing;
use crate::progress::Pace;
use crate::proxy::lane::Transport;
use crate::websocket::{State, Tunnel};

/// Answers up to this size leave in one piece.
const WRITE_BUFFER: usize = 4 << 10;

/// Bytes of one read.
const HELD: usize = 4 << 10;

/// Of what comes before its time, so much is taken from the socket.
const MOST_HELD: usize = 64 << 10;

/// Time that a client gets to finish sending after its answer.
const LINGER: Duration = Duration::from_secs(5);

/// A connection, plain or TLS.
pub struct Connection {
    io: BufWriter<Transport>,
    /// Bytes read and not yet given to anybody.
    held: BytesMut,
    /// What is left of the body at hand.
    body: Body,
    digest: Arc<SocketDigest>,
    pace: Pace,
    /// Where the request at hand may become a WebSocket.
    tunnel: Option<Arc<Tunnel>>,
    /// Time spent waiting for the body at hand, and bytes of it that came.
    waited: Duration,
    received: u64,
    waiting_since: Option<Instant>,
    /// Set while the client takes nothing.
    write_stall: Option<Pin<Box<Sleep>>>,
    traffic: Arc<Traffic>,
    /// Set once the connection is closed on our side: until then the client is waited for.
    linger: Option<Pin<Box<Sleep>>>,
}

/// What a connection has passed on, for whoever lets HTTP/2 own it.
#[derive(Default)]
pub struct Traffic(AtomicU64);

impl Traffic {
    /// Writes that came to an end: more of them means that the client takes something.
    pub fn sent(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What pingora may still read.
enum Body {
    Length(u64),
    Chunked(Chunked),
    /// HTTP/2 frames itself.
    Http2,
    /// Never looked at.
    Refused,
}

fn tcp(transport: &Transport) -> &TcpStream {
    match transport {
        Either::Left(plain) => plain,
        Either::Right(tls) => tls.get_ref().0,
    }
}

impl Connection {
    pub fn plain(stream: TcpStream, peer: SocketAddr, pace: Pace) -> Self {
        Self::new(Either::Left(stream), peer, pace)
    }

    pub fn tls(stream: TlsStream<TcpStream>, peer: SocketAddr, pace: Pace) -> Self {
        Self::new(Either::Right(Box::new(stream)), peer, pace)
    }

    fn new(transport: Transport, peer: SocketAddr, pace: Pace) -> Self {
        let digest = SocketDigest::from_raw_fd(tcp(&transport).as_raw_fd());
        // Known already: pingora need not ask the system.
        let _ = digest.peer_addr.set(Some(PingoraAddr::Inet(peer)));
        Self {
            io: BufWriter::with_capacity(WRITE_BUFFER, transport),
            held: BytesMut::new(),
            body: Body::Length(0),
            digest: Arc::new(digest),
            pace,
            tunnel: None,
            waited: Duration::ZERO,
            received: 0,
            waiting_since: None,
            write_stall: None,
            traffic: Arc::default(),
            linger: None,
        }
    }

    /// The connection itself, and what was read of it.
    pub fn into_parts(self) -> (Transport, Vec<u8>) {
        (self.io.into_inner(), self.held.into())
    }

    /// Whether the handshake of TLS chose HTTP/2.
    pub fn has_agreed_on_http2(&self) -> bool {
        match self.io.get_ref() {
            Either::Left(_) => false,
            Either::Right(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// What has been read of the next request.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Forgets an empty line, if that is all there is.
    pub fn skip_blank_line(&mut self) {
        if &*self.held == b"\r\n" {
            self.held.clear();
        }
    }

    /// Reads more of the next request; 0 at the end of the connection.
    pub async fn read_more(&mut self) -> io::Result<usize> {
        self.held.reserve(HELD);
        self.io.get_mut().read_buf(&mut self.held).await
    }

    /// Lets pingora read the body that follows a head, and takes what was read of both.
    ///
    /// # Errors
    /// When the body is not framed as it must be.
    pub fn begin_request(&mut self, head: usize, framing: Framing) -> io::Result<BytesMut> {
        self.body = match framing {
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunked::new()),
        };
        self.waited = Duration::ZERO;
        self.waiting_since = None;
        self.received = 0;
        let body = self.body.take(self.held.get(head..).unwrap_or_default())?;
        let request = self.held.split_to(head + body);
        if self.held.is_empty() {
            // An idle connection keeps no buffer.
            self.held = BytesMut::new();
        }
        Ok(request)
    }

    /// The switch that lets the proxy make a tunnel of the connection.
    pub fn tunnel(&mut self) -> Arc<Tunnel> {
        self.tunnel.insert(Arc::default()).clone()
    }

    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }

    /// Allows HTTP/2 to read what it likes.
    pub fn begin_http2(&mut self) {
        self.body = Body::Http2;
    }

    /// Sends a last answer and closes.
    pub async fn end_with(mut self, answer: &[u8]) {
        // The client may still be sending a body that was never looked at.
        self.body = Body::Refused;
        if self.io.write_all(answer).await.is_ok() {
            // There is nobody left to tell of a failure.
            let _ = AsyncWriteExt::shutdown(&mut self).await;
        }
    }

    /// Whatever comes, and first what came before the tunnel was open.
    fn poll_tunnel(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Pin::new(self.io.get_mut()).poll_read(cx, buffer);
        }
        self.give_held(buffer)
    }

    fn give_held(&mut self, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let early = self.held.split_to(self.held.len().min(buffer.remaining()));
        buffer.put_slice(&early);
        Poll::Ready(Ok(()))
    }

    /// Whether the body still comes fast enough.
    fn judge_pace(&mut self, read: usize) -> io::Result<()> {
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
        self.received += read as u64;
        // Each stream of HTTP/2 has a pace of its own.
        let is_judged = !matches!(self.body, Body::Http2);
        if is_judged && self.pace.is_too_slow(self.received, self.waited) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the body comes too slowly"));
        }
        Ok(())
    }

    /// Ends a write that the client takes nothing of for too long.
    fn judge_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_stall = None;
            self.traffic.0.fetch_add(1, Ordering::Relaxed);
            return written;
        }
        let time = self.pace.write_timeout;
        let stall = self.write_stall.get_or_insert_with(|| Box::pin(sleep(time)));
        std::task::ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }

    /// What comes before its time is held; the end of the connection is passed on.
    fn poll_early(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held.len() < MOST_HELD {
            let mut early = [MaybeUninit::uninit(); HELD];
            let mut buffer = ReadBuf::uninit(&mut early);
            std::task::ready!(Pin::new(self.io.get_mut()).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.held.extend_from_slice(buffer.filled());
        }
        // The request at hand ends by its answer, not by a read: nothing to wake for.
        Poll::Pending
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.tunnel.as_ref().map(|tunnel| tunnel.poll(cx)) {
            Some(State::Open) => return this.poll_tunnel(cx, buffer),
            // The end of the connection, as far as the proxy can see.
            Some(State::Cut) => return Poll::Ready(Ok(())),
            Some(State::Closed) | None => {}
        }
        if matches!(this.body, Body::Http2) && !this.held.is_empty() {
            return this.give_held(buffer);
        }
        if this.body.is_over() {
            return this.poll_early(cx);
        }
        let before = buffer.filled().len();
        let Poll::Ready(read) = Pin::new(this.io.get_mut()).poll_read(cx, buffer) else {
            this.waiting_since.get_or_insert_with(Instant::now);
            return Poll::Pending;
        };
        read?;
        this.judge_pace(buffer.filled().len() - before)?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        let end = before + this.body.take(read)?;
        this.held.extend_from_slice(buffer.filled().get(end..).unwrap_or_default());
        buffer.set_filled(end);
        Poll::Ready(Ok(()))
    }
}

impl Body {
    fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_over(),
            Self::Http2 | Self::Refused => false,
        }
    }

    /// Passes bytes of the connection; returns how many of them belong to the body.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Length(left) => {
                let taken = (*left).min(bytes.len() as u64);
                *left -= taken;
                Ok(usize::try_from(taken).unwrap_or(bytes.len()))
            }
            Self::Chunked(chunked) => chunked.follow(bytes).map_err(|Malformed| {
                io::Error::new(io::ErrorKind::InvalidData, "a chunked body is malformed")
            }),
            Self::Http2 | Self::Refused => Ok(bytes.len()),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.judge_write(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.judge_write(cx, flushed)
    }

    /// Also waits for a client that may still be sending, until it has read its answer and
    /// closes, or for [`LINGER`].
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            let closed = Pin::new(&mut this.io).poll_shutdown(cx);
            std::task::ready!(this.judge_write(cx, closed))?;
            if this.body.is_over() {
                return Poll::Ready(Ok(()));
            }
        }
        let deadline = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut dropped = [MaybeUninit::uninit(); HELD];
            let mut buffer = ReadBuf::uninit(&mut dropped);
            let read = std::task::ready!(Pin::new(this.io.get_mut()).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.judge_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        // There is nobody left to tell of a failure.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        tcp(self.io.get_ref()).as_raw_fd()
    }
}

impl Ssl for Connection {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        matches!(self.body, Body::Http2).then_some(ALPN::H2)
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }
}

impl Peek for Connection {}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").finish_non_exhaustive()
    }
}
