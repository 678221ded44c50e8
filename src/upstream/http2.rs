//! Connections to servers that speak HTTP/2, and who shares them.
//!
//! Each worker keeps its own connections, so that no request waits for another worker. The requests
//! of a worker to one server share a connection, until its limit of streams is reached; then
//! another one is opened. This module decides which connection a new stream is opened on, how much
//! a server may send ahead on it, and when it is closed. [`mod@stream`] is what a request sees of a
//! connection.
//!
//! A connection is not used before the server's SETTINGS were received. From then on it is known
//! that the server speaks HTTP/2 at all, and how many streams it allows: a server that speaks
//! something else fails the connect, not a request.

mod convert;
mod fault;
mod frames;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::client::{Builder, SendRequest};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use self::fault::Fault;
pub use self::frames::Frames;
pub use self::stream::Stream;
use self::wire::Wire;
use crate::clock::deadline::Deadline;

/// Maximum bytes of a request target: that of the `http` crate.
pub const MOST_TARGET: usize = u16::MAX as usize - 1;

/// Maximum number of concurrent streams of a connection, if the server does not set a lower one.
const MOST_STREAMS: usize = 100;

/// Bytes of a response that a server may send ahead.
const WINDOW: u32 = 128 << 10;

/// The same for all responses of a connection: room for all of their windows. With less, clients
/// that stop reading would hold up the responses of others, because unread bytes of a stream count
/// for the connection too.
const CONNECTION_WINDOW: u32 = 100 * WINDOW;

/// Bytes of a request that are buffered while the server's window is full.
const SEND_BUFFER: usize = 16 << 10;

/// Memory for unread frames, per connection. `h2` counts 256 bytes for each small frame. Frames of
/// streams whose client does not read are gathered by [`Stream`], so that they do not count.
const DATA_FRAMES: usize = 1 << 20;

/// Maximum bytes of a response header or of trailers. One above the limit of
/// `message::response_header`, which then reports it.
const HEADER_LIST: u32 = 128 << 10;

/// Streams that the gateway has reset and that `h2` remembers, so that it can tell frames that were
/// on their way from a protocol error.
const RESET_STREAMS: usize = 1000;

/// How long a connection may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The limit of streams of a server that has not sent it yet. No server can set this value.
const UNKNOWN: usize = usize::MAX - 1;

/// What the streams of a connection, its task and the worker's list share.
struct Shared {
    /// Opens streams; `None` once the connection accepts no more. When the last one is dropped,
    /// `h2` closes the connection.
    requests: Mutex<Option<SendRequest<Bytes>>>,
    /// Number of streams, and whether there was one since the task last checked.
    streams: AtomicUsize,
    was_used: AtomicBool,
    /// Number of reads that brought bytes.
    received: AtomicU64,
    /// Whether no more streams are opened on it: a request timed out without a byte from the
    /// server, or the server allows none.
    is_suspect: AtomicBool,
    is_tls: bool,
    task: AtomicWaker,
}

/// A connection to a server.
pub struct Connection(Arc<Shared>);

impl Connection {
    /// Begins HTTP/2 on a new connection, and waits until the server has sent its SETTINGS. The
    /// caller limits the time. `idle_time`: how long the connection is kept without a stream.
    /// `note_idle` is called with whether the connection is idle, and dropped when it has ended.
    ///
    /// # Errors
    /// When the connection ends, or the server does not speak HTTP/2.
    pub async fn open<T>(
        transport: T,
        is_tls: bool,
        idle_time: Duration,
        note_idle: impl FnMut(bool) + Send + Unpin + 'static,
    ) -> Result<Self, Fault>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::new(Shared {
            requests: Mutex::new(None),
            streams: AtomicUsize::new(0),
            was_used: AtomicBool::new(false),
            received: AtomicU64::new(0),
            is_suspect: AtomicBool::new(false),
            is_tls,
            task: AtomicWaker::new(),
        });
        let wire = Wire::new(transport, shared.clone());
        let (requests, mut connection) = options().handshake(wire).await.map_err(Fault::from)?;
        poll_fn(|cx| {
            let ended = Pin::new(&mut connection).poll(cx);
            let is_known = connection.max_concurrent_send_streams() != UNKNOWN;
            match ended {
                Poll::Ready(ended) => {
                    Poll::Ready(Err(ended.map_or_else(Fault::from, |()| Fault::CLOSED)))
                }
                Poll::Pending if is_known => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await?;
        *shared.requests.lock() = Some(requests);
        let task = Task {
            connection,
            shared: shared.clone(),
            idle_time,
            idle_since: None,
            closing_since: None,
            deadline: Deadline::new(),
            note_idle,
        };
        tokio::spawn(task);
        Ok(Self(shared))
    }

    /// A place for one more stream; `None` if there is no room, or the connection is ending.
    fn lease(&self, is_reused: bool) -> Option<Lease> {
        let shared = &self.0;
        if shared.is_suspect.load(Ordering::Relaxed) {
            return None;
        }
        let mut requests = shared.requests.lock().clone()?;
        let most = requests.current_max_send_streams().min(MOST_STREAMS);
        // An error means that the server has sent GOAWAY, or that the connection has ended.
        let is_ready = requests.poll_ready(&mut Context::from_waker(Waker::noop()));
        if !matches!(is_ready, Poll::Ready(Ok(())))
            || shared.streams.load(Ordering::Relaxed) >= most
        {
            return None;
        }
        shared.streams.fetch_add(1, Ordering::Relaxed);
        shared.was_used.store(true, Ordering::Relaxed);
        Some(Lease { shared: shared.clone(), requests, is_reused, received_before: 0 })
    }

    /// The only stream of a connection that is closed after it.
    ///
    /// # Errors
    /// When the server allows no streams, or the connection has ended.
    pub fn only_stream(self) -> Result<Box<Stream>, Fault> {
        let lease = self.lease(false).ok_or(Fault::NotProcessed)?;
        drop(self.0.requests.lock().take());
        Ok(Box::new(Stream::new(lease)))
    }

    /// Opens no more streams, and closes the connection when it has none.
    fn close(&self) {
        self.0.is_suspect.store(true, Ordering::Relaxed);
        self.0.task.wake();
    }

    fn has_ended(&self) -> bool {
        self.0.requests.lock().is_none()
    }
}

/// The place of a stream in the count of its connection.
struct Lease {
    shared: Arc<Shared>,
    requests: SendRequest<Bytes>,
    is_reused: bool,
    /// What `received` was when the request was sent.
    received_before: u64,
}

impl Lease {
    fn begin(&mut self) {
        self.received_before = self.shared.received.load(Ordering::Relaxed);
    }

    /// No more streams are opened on a connection from which nothing came since this stream began.
    fn suspect(&self) {
        if self.shared.received.load(Ordering::Relaxed) == self.received_before {
            self.shared.is_suspect.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.shared.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            // It begins to be idle.
            self.shared.task.wake();
        }
    }
}

/// Runs a connection to its end.
struct Task<T, N> {
    connection: h2::client::Connection<Wire<T>, Bytes>,
    shared: Arc<Shared>,
    idle_time: Duration,
    idle_since: Option<Instant>,
    closing_since: Option<Instant>,
    deadline: Deadline,
    note_idle: N,
}

impl<T, N> Future for Task<T, N>
where
    T: AsyncRead + AsyncWrite + Unpin,
    N: FnMut(bool) + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.shared.task.register(cx.waker());
        loop {
            if Pin::new(&mut this.connection).poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if this.shared.was_used.swap(false, Ordering::Relaxed) {
                this.idle_since = None;
            }
            let is_idle = this.shared.streams.load(Ordering::Relaxed) == 0;
            (this.note_idle)(is_idle);
            if !is_idle {
                return Poll::Pending;
            }
            let now = Instant::now;
            if let Some(since) = this.closing_since {
                this.deadline.set(since + CLOSE_TIMEOUT);
                return this.deadline.poll_over(cx);
            }
            if !this.shared.is_suspect.load(Ordering::Relaxed) {
                this.deadline.set(*this.idle_since.get_or_insert_with(now) + this.idle_time);
                ready!(this.deadline.poll_over(cx));
            }
            // `h2` closes the connection as soon as nothing can open a stream on it any more.
            drop(this.shared.requests.lock().take());
            this.closing_since = Some(now());
        }
    }
}

impl<T, N> Drop for Task<T, N> {
    fn drop(&mut self) {
        drop(self.shared.requests.lock().take());
        forget_ended();
    }
}

/// The connections of this worker to one server.
struct Kept {
    /// Keeps the server's address from being used for another one.
    _server: Arc<dyn Any + Send + Sync>,
    connections: Vec<Connection>,
    /// Only one connection is opened at a time: most of those who wait for it can share it.
    opening: Arc<Semaphore>,
}

thread_local! {
    /// By the address of the server in memory.
    static KEPT: RefCell<HashMap<usize, Kept>> = RefCell::default();
}

/// Opens a stream to a server, on a connection of this worker or on a new one from `open`. The
/// caller limits the time. With `is_fresh` it is always on a new one.
///
/// # Errors
/// When no connection can be opened, or the server allows no streams.
pub async fn stream<K, E, F>(
    server: &Arc<K>,
    is_fresh: bool,
    open: impl FnOnce() -> F,
) -> Result<Box<Stream>, E>
where
    K: Send + Sync + 'static,
    E: From<Fault>,
    F: Future<Output = Result<Connection, E>>,
{
    let mut permit = None;
    if !is_fresh {
        if let Some(stream) = reuse(server) {
            return Ok(stream);
        }
        let opening = with_kept(server, |kept| kept.opening.clone());
        // The semaphore is never closed.
        permit = opening.acquire_owned().await.ok();
        if let Some(stream) = reuse(server) {
            return Ok(stream);
        }
    }
    let connection = open().await?;
    let Some(lease) = connection.lease(false) else {
        // If it were kept, every request would add one.
        connection.close();
        return Err(Fault::NotProcessed.into());
    };
    with_kept(server, |kept| {
        kept.connections.retain(|connection| !connection.has_ended());
        kept.connections.push(connection);
    });
    drop(permit);
    Ok(Box::new(Stream::new(lease)))
}

/// A stream on a connection that is open.
pub fn reuse<K: Send + Sync + 'static>(server: &Arc<K>) -> Option<Box<Stream>> {
    KEPT.with_borrow(|all| {
        let kept = all.get(&Arc::as_ptr(server).addr())?;
        let lease = kept.connections.iter().find_map(|connection| connection.lease(true))?;
        Some(Box::new(Stream::new(lease)))
    })
}

fn with_kept<K: Send + Sync + 'static, T>(server: &Arc<K>, done: impl FnOnce(&mut Kept) -> T) -> T {
    KEPT.with_borrow_mut(|all| {
        let new = || Kept {
            _server: server.clone(),
            connections: Vec::new(),
            opening: Arc::new(Semaphore::new(1)),
        };
        done(all.entry(Arc::as_ptr(server).addr()).or_insert_with(new))
    })
}

/// Forgets connections that have ended, and servers without any.
fn forget_ended() {
    let take = |all: &mut HashMap<usize, Kept>| {
        let is_empty = |kept: &mut Kept| {
            kept.connections.retain(|connection| !connection.has_ended());
            kept.connections.is_empty() && Arc::strong_count(&kept.opening) == 1
        };
        all.extract_if(|_, kept| is_empty(kept)).collect::<Vec<_>>()
    };
    // There is no list any more when the thread ends. The servers are dropped after the list is
    // released.
    let forgotten = KEPT.try_with(|all| all.try_borrow_mut().map(|mut all| take(&mut all)));
    drop(forgotten);
}

/// A new builder has none of our limits, so all of them are set here.
fn options() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(UNKNOWN)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAMES)
        .max_header_list_size(HEADER_LIST)
        .max_concurrent_reset_streams(RESET_STREAMS)
        // By default `h2` ends a connection after 1024 malformed streams. Responses of other
        // requests must not end with it.
        .max_local_error_reset_streams(None);
    builder
}
