//! One HTTP/2 connection, from its preface to its end.
//!
//! `h2` does the framing, and each request is served like an HTTP/1 request. This module decides
//! how long the connection may be idle, how its end is announced (GOAWAY), how much of a body a
//! client may send ahead (its windows), and when a client that resets its requests is disconnected.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use http::Request as Http2Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::buffered::BufferShare;
use super::client::{ClientConnection, Io, Transport};
use super::grpc::is_grpc;
use super::request::Request;
use super::stream::{Stream, header_text};
use super::{Gateway, closed};
use crate::clock::deadline::Deadline;
use crate::config::LimitsSection;
use crate::message::rejection::Rejection;
use crate::message::request_header::{self, Framing};

/// A request that the client resets within this time counts towards `limits.max_early_resets`.
const EARLY_RESET: Duration = Duration::from_secs(1);

/// How long a client may take to read what is left, and to close, when its connection ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to check whether everything has been sent.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Bytes of a response that are buffered while the client's window is full.
const SEND_BUFFER: usize = 16 << 10;

/// Memory for unread frames of bodies, per connection. `h2` counts 256 bytes for each small frame.
const DATA_FRAMES: usize = 1 << 20;

/// Bytes that are read before streams get a turn to process them. Even as frames of one byte, they
/// need less than half of [`DATA_FRAMES`].
const TURN: usize = 16 << 10;

/// Bytes that a client may send ahead, for one request and for all requests of its connection.
const WINDOW: u32 = 64 << 10;

/// The same, while services read the bytes as fast as they arrive.
const GROWN: u32 = 1 << 20;
const GROWN_CONNECTION: u32 = 2 << 20;

/// With this, streams ask their connection for larger windows.
#[derive(Default)]
pub struct Growth {
    is_wanted: AtomicBool,
    requested: Notify,
}

impl Growth {
    pub fn request(&self) {
        if !self.is_wanted.swap(true, Ordering::Relaxed) {
            self.requested.notify_one();
        }
    }
}

/// The connection that `h2` reads from and writes to.
struct Wire {
    transport: Transport,
    /// Bytes that were read before HTTP/2 began.
    held: Bytes,
    /// Bytes read in a row, and whether it is the streams' turn.
    read_at_once: usize,
    is_others_turn: bool,
    /// The deadline of a write of which the client accepts nothing.
    stall: Deadline,
    is_stalled: bool,
    patience: Duration,
    /// Number of completed writes. While it increases, the client is reading.
    sent: Arc<AtomicU64>,
}

impl Wire {
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_stalled = false;
            self.sent.fetch_add(1, Ordering::Relaxed);
            return written;
        }
        if !std::mem::replace(&mut self.is_stalled, true) {
            self.stall.set(tokio::time::Instant::now() + self.patience);
        }
        self.stall.poll_over(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            if std::mem::take(&mut self.is_others_turn) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let before = buffer.filled().len();
            let read = Pin::new(&mut self.transport).poll_read(cx, buffer);
            self.read_at_once += buffer.filled().len() - before;
            if read.is_pending() || self.read_at_once >= TURN {
                self.is_others_turn = read.is_ready();
                self.read_at_once = 0;
            }
            return read;
        }
        let early = self.held.len().min(buffer.remaining());
        buffer.put_slice(&self.held.split_to(early));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write_vectored(cx, slices);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.transport).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.transport).poll_shutdown(cx);
        self.judge(cx, closed)
    }
}

impl Gateway {
    /// Serves an HTTP/2 connection to its end.
    pub async fn serve_http2(
        self: &Arc<Self>,
        client: ClientConnection,
        mut closing: watch::Receiver<bool>,
        limits: LimitsSection,
    ) {
        let ClientConnection { io: Io::Http1(transport), held, peer, .. } = client else { return };
        let traffic = Arc::new(AtomicU64::new(0));
        let wire = Wire {
            transport,
            held: held.into(),
            read_at_once: 0,
            is_others_turn: false,
            stall: Deadline::new(),
            is_stalled: false,
            patience: limits.write_timeout,
            sent: traffic.clone(),
        };
        let handshake = options(&limits).handshake::<_, Bytes>(wire);
        let handshaken = tokio::select! {
            handshaken = timeout(limits.header_timeout, handshake) => handshaken,
            () = closed(&mut closing) => return,
        };
        let Ok(Ok(mut connection)) = handshaken else { return };
        let mut streams = JoinSet::new();
        let (mut early, mut total) = (0, 0);
        let mut patience = limits.header_timeout;
        let mut ending = None;
        let (mut sent, mut sent_at) = (0, Instant::now());
        let growth = Arc::new(Growth::default());
        let mut grown: Option<BufferShare<'_>> = None;
        loop {
            if streams.is_empty() && grown.take().is_some() {
                growth.is_wanted.store(false, Ordering::Relaxed);
                connection.set_target_window_size(WINDOW);
                // If the connection has failed, `accept` reports the error.
                let _ = connection.set_initial_window_size(WINDOW);
            }
            // Completed responses may still be on their way to the client.
            let is_sending = streams.is_empty() && connection.has_streams();
            let now_sent = traffic.load(Ordering::Relaxed);
            if !is_sending || now_sent > sent {
                (sent, sent_at) = (now_sent, Instant::now());
            }
            let time = match (is_sending, ending) {
                (true, _) => CHECK_INTERVAL,
                (false, Some(_)) => CLOSE_TIMEOUT,
                (false, None) => patience,
            };
            tokio::select! {
                biased;
                () = closed(&mut closing), if ending.is_none() => {
                    connection.graceful_shutdown();
                    ending = Some(Instant::now());
                }
                () = growth.requested.notified(), if grown.is_none() && !streams.is_empty() => {
                    let mut share = BufferShare::new(self);
                    grown = share.grow_to(u64::from(GROWN_CONNECTION)).then_some(share);
                    if grown.is_some() {
                        if connection.set_initial_window_size(GROWN).is_ok() {
                            connection.set_target_window_size(GROWN_CONNECTION);
                        } else {
                            // The client has not acknowledged the last change yet.
                            grown = None;
                            growth.is_wanted.store(false, Ordering::Relaxed);
                        }
                    }
                }
                Some(was_left_early) = streams.join_next() => {
                    early += usize::from(was_left_early.unwrap_or(false));
                    if early > limits.max_early_resets && early > total / 2 {
                        break;
                    }
                }
                accepted = connection.accept() => {
                    let Some(Ok((request, respond))) = accepted else { break };
                    // Dropped, which resets it: the client was notified long ago that the
                    // connection ends.
                    if ending.is_some_and(|since: Instant| since.elapsed() > CLOSE_TIMEOUT) {
                        continue;
                    }
                    patience = limits.idle_timeout;
                    total += 1;
                    if grown.is_none() {
                        // The request may have come too early, while there was no room.
                        growth.is_wanted.store(false, Ordering::Relaxed);
                    }
                    streams.spawn(self.clone().serve_stream(request, respond, peer, growth.clone()));
                }
                () = sleep(time), if streams.is_empty() => {
                    if is_sending && sent_at.elapsed() < limits.write_timeout {
                        continue;
                    }
                    if ending.is_some() || is_sending {
                        break;
                    }
                    connection.graceful_shutdown();
                    ending = Some(Instant::now());
                }
            }
        }
        // Closed before waiting, so that requests in flight see that their client has disconnected.
        drop(connection);
        while streams.join_next().await.is_some() {}
    }

    /// Serves a request to its end. Returns whether the client reset it early.
    async fn serve_stream(
        self: Arc<Self>,
        request: Http2Request<RecvStream>,
        respond: SendResponse<Bytes>,
        peer: SocketAddr,
        growth: Arc<Growth>,
    ) -> bool {
        let began = Instant::now();
        let (mut client, request) = self.read_stream(request, respond, peer, growth);
        match request {
            Ok(mut request) => {
                self.serve_request(&mut client, &mut request).await;
                request.status.is_none() && began.elapsed() < EARLY_RESET
            }
            Err((rejection, is_grpc)) => {
                self.reject_stream(&mut client, rejection, is_grpc).await;
                false
            }
        }
    }

    /// Parses the header of a request. A rejection comes with whether the request is gRPC. Not
    /// `async`: its variables would make the future of every stream larger.
    fn read_stream(
        &self,
        request: Http2Request<RecvStream>,
        respond: SendResponse<Bytes>,
        peer: SocketAddr,
        growth: Arc<Growth>,
    ) -> (ClientConnection, Result<Request, (Rejection, bool)>) {
        let (parts, body) = request.into_parts();
        let mut text = super::buffers::take();
        header_text(&parts, &mut text);
        let stream = Stream::new(body, respond, growth);
        let is_bodyless = stream.is_bodyless();
        let mut client = ClientConnection::new(Io::Http2(stream), text, peer);
        let policy = self.policies.current();
        let is_health = |path: &[u8]| policy.routes.is_health(path);
        let list = &mut client.spare;
        let read = request_header::read(&client.held, policy.header_limits, is_health, |line| {
            list.push(line);
        });
        let mut header = match read {
            Ok(Some(header)) => header,
            Ok(None) => return (client, Err((Rejection::InternalError, is_grpc(&parts.headers)))),
            Err(rejection) => return (client, Err((rejection, is_grpc(&parts.headers)))),
        };
        if !is_bodyless && header.content_length.is_none() {
            // The length of the body is unknown.
            header.framing = Framing::Chunked;
        }
        header.nominates = false;
        let request = Request::new(policy, self.process.clone(), header, &mut client);
        (client, Ok(request))
    }

    /// Rejects a request header that cannot be parsed. Other streams continue.
    async fn reject_stream(
        &self,
        client: &mut ClientConnection,
        rejection: Rejection,
        is_grpc: bool,
    ) {
        let policy = self.policies.current();
        let request = super::UnroutedRequest { is_grpc, ..super::UnroutedRequest::UNPARSED };
        let message = request.respond(&self.process, &policy, client.address, Err(rejection));
        let header = memchr::memmem::find(&message, b"\r\n\r\n").map_or(0, |at| at + 4);
        client.held.clear();
        // An error means that the client has disconnected.
        let _ = client.respond(&message, header, policy.limits.write_timeout).await;
    }
}

/// A new builder has none of our limits, so all of them are set here.
fn options(limits: &LimitsSection) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(limits.max_streams)
        .data_frame_budget(DATA_FRAMES)
        // For each stream whose client does not read.
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(limits.max_early_resets)
        .max_header_list_size(u32::try_from(limits.max_header).unwrap_or(u32::MAX));
    builder
}
