//! Connections to servers: opened by pingora's connector, encrypted by rustls, and kept by the
//! worker that opened them.
//!
//! Each worker keeps its own connections, so that no request waits for a lock. A connection is
//! reused only if nothing was received on it: bytes that a service sends between two responses
//! would be taken for the next response.

mod error;

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use pingora::ErrorType;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use self::error::ConnectError;
use self::error::innermost;
use super::http2;
use super::io::{Io, Transport};
use super::server::{Address, Lease, Server};
use super::tls::ClientTls;
use crate::config::Protocol;

/// How often to check for connections that a service has closed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes for a server that the system buffers before it sends them. By default it would buffer
/// megabytes, and a server that reads nothing would seem to read.
#[cfg(target_os = "linux")]
const MOST_UNSENT: u32 = 16 << 10;

/// A connection to a server, for one request.
pub struct Connection {
    pub io: Io,
    lease: Lease,
    /// Since when it was idle.
    idle_since: Option<Instant>,
    /// Whether it has served a request before.
    pub is_reused: bool,
    /// Whether anything was received since the current request was sent.
    pub has_received: bool,
}

impl Connection {
    pub fn server(&self) -> &Arc<Server> {
        self.lease.server()
    }

    /// How long it was idle before `now`; nothing for a stream of HTTP/2.
    pub fn was_idle_for(&self, now: Instant) -> Duration {
        self.idle_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Whether the server may have closed it while it was idle.
    pub fn may_be_closed(&self, now: Instant) -> bool {
        let age = self.was_idle_for(now);
        self.idle_since.is_some() && self.server().idle_closes.may_be_closed(age, now)
    }

    /// The server has closed it before it responded: probably while it was idle.
    pub fn was_closed(&self, sent_at: Instant) {
        if self.idle_since.is_some() {
            self.server().idle_closes.record(self.was_idle_for(sent_at), sent_at);
        }
    }

    /// Whether nothing was received, not even the end of the connection.
    pub fn is_silent(&mut self) -> bool {
        match &mut self.io {
            Io::Http1(io) => is_silent(io),
            Io::Http2(_) => true,
        }
    }

    /// A new stream on a connection of HTTP/2 that is open.
    ///
    /// # Errors
    /// There is none; the place is returned.
    pub fn share(lease: Lease) -> Result<Self, Lease> {
        match http2::reuse(lease.server()) {
            Some(stream) => Ok(Self::of_stream(stream, lease)),
            None => Err(lease),
        }
    }

    fn of_stream(stream: Box<http2::Stream>, lease: Lease) -> Self {
        let is_reused = stream.is_reused();
        Self { io: Io::Http2(stream), lease, idle_since: None, is_reused, has_received: false }
    }

    /// Keeps the connection for `time` from `now` on for the next request. If the worker already
    /// has `most` idle connections, the one that expires first is closed.
    pub fn keep_idle(self, now: Instant, time: Duration, most: usize) {
        let Some(idle) = Idle::new(self, now, time) else { return };
        let begins = KEPT.with_borrow_mut(|kept| {
            if kept.idle.len() >= most {
                let first = kept.idle.iter().enumerate().min_by_key(|(_, idle)| idle.until);
                if let Some((at, _)) = first {
                    kept.idle.swap_remove(at);
                }
            }
            kept.idle.push(idle);
            !std::mem::replace(&mut kept.is_swept, true)
        });
        if begins {
            tokio::spawn(keep_sweeping());
        }
    }
}

/// Opens connections. One serves the whole process.
pub struct Connector(TransportConnector);

impl Connector {
    pub fn new() -> Self {
        let options = ConnectorOptions::from_server_conf(&ServerConf::default());
        Self(TransportConnector::new(Some(options)))
    }

    /// Opens a connection for a request.
    pub async fn open(
        &self,
        lease: Lease,
        tls: Option<&ClientTls>,
        limit: Duration,
    ) -> Result<Connection, ConnectError> {
        let io = Io::Http1(self.transport(lease.server(), tls, limit).await?);
        Ok(Connection { io, lease, idle_since: None, is_reused: false, has_received: false })
    }

    /// Opens a stream for a request, on a connection that the worker has or on a new one.
    pub async fn open_stream(
        &self,
        lease: Lease,
        tls: Option<&ClientTls>,
        needs_new: bool,
        idle_time: Duration,
        limit: Duration,
    ) -> Result<Connection, ConnectError> {
        let server = lease.server();
        let open = || async {
            let io = self.transport(server, tls, limit).await?;
            let mut counted = Lease::shared(server.clone());
            let is_idle = move |is_idle| counted.set_idle(is_idle);
            let opened = http2::Connection::open(io, tls.is_some(), idle_time, is_idle).await;
            opened.map_err(ConnectError::Http2)
        };
        let opened = timeout(limit, http2::stream(server, needs_new, open)).await;
        let stream = opened.unwrap_or(Err(ConnectError::TimedOut(limit)))?;
        Ok(Connection::of_stream(stream, lease))
    }

    /// Connects to a server for one request. The connection is not counted.
    pub async fn connect(
        &self,
        server: &Server,
        protocol: Protocol,
        tls: Option<&ClientTls>,
        limit: Duration,
    ) -> Result<Io, ConnectError> {
        let io = self.transport(server, tls, limit).await?;
        Ok(match protocol {
            Protocol::Http1 => Io::Http1(io),
            Protocol::Http2 => {
                let opened =
                    http2::Connection::open(io, tls.is_some(), Duration::ZERO, |_| {}).await;
                Io::Http2(opened.and_then(http2::Connection::only_stream)?)
            }
        })
    }

    /// Connects to a server, and does the TLS handshake, within `limit`.
    async fn transport(
        &self,
        server: &Server,
        tls: Option<&ClientTls>,
        limit: Duration,
    ) -> Result<Transport, ConnectError> {
        let end = Instant::now() + limit;
        let mut peer = match &server.address {
            Address::Inet(address) => HttpPeer::new(address, false, String::new()),
            Address::Unix(path) => HttpPeer::new_uds(&path.to_string_lossy(), false, String::new())
                .map_err(ConnectError::Tcp)?,
        };
        peer.options.connection_timeout = Some(limit);
        peer.options.total_connection_timeout = Some(limit);
        #[cfg(target_os = "linux")]
        {
            let hold_back = |socket: &tokio::net::TcpSocket| {
                // If this fails, the system buffers more than necessary.
                let _ = socket2::SockRef::from(socket).set_tcp_notsent_lowat(MOST_UNSENT);
                Ok(())
            };
            peer.options.upstream_tcp_sock_tweak_hook.replace(Arc::new(hold_back));
        }
        let opened = self.0.new_stream(&peer).await;
        let io = opened.map_err(|error| match innermost(&error).etype() {
            ErrorType::ConnectTimedout => ConnectError::TimedOut(limit),
            _ => ConnectError::Tcp(error),
        })?;
        let Some(tls) = tls else { return Ok(Transport::Left(io)) };
        match timeout_at(end, tls.connect(io, server.name.as_deref())).await {
            Ok(Ok(io)) => Ok(Transport::Right(Box::new(io))),
            Ok(Err(fault)) => Err(ConnectError::Tls(fault)),
            Err(_) => Err(ConnectError::TlsTimedOut(limit)),
        }
    }
}

struct Idle {
    io: Transport,
    lease: Lease,
    since: Instant,
    until: Instant,
}

impl Idle {
    /// `None`: a stream of HTTP/2, whose connection is kept by `http2`.
    fn new(connection: Connection, now: Instant, time: Duration) -> Option<Self> {
        let Io::Http1(io) = connection.io else { return None };
        let mut lease = connection.lease;
        lease.set_idle(true);
        Some(Self { io, lease, since: now, until: now + time })
    }

    /// Whether it can serve a request.
    fn is_usable(&mut self, now: Instant) -> bool {
        if now >= self.until {
            return false;
        }
        let is_open = is_silent(&mut self.io);
        if !is_open {
            let age = now.saturating_duration_since(self.since);
            self.lease.server().idle_closes.record(age, now);
        }
        is_open
    }

    /// `None`: it can serve no request, and is closed.
    fn reuse(mut self, now: Instant) -> Option<Connection> {
        if !self.is_usable(now) {
            return None;
        }
        let Self { io, mut lease, since, .. } = self;
        lease.set_idle(false);
        Some(Connection {
            io: Io::Http1(io),
            lease,
            idle_since: Some(since),
            is_reused: true,
            has_received: false,
        })
    }
}

/// Idle connections that all workers share. If connections are limited, a request must not wait
/// because another worker has an idle one.
#[derive(Default)]
pub struct SharedIdle(Mutex<Vec<Idle>>);

impl SharedIdle {
    /// Takes an idle connection to a server, one that can serve a request.
    pub fn take(&self, server: &Arc<Server>, now: Instant) -> Option<Connection> {
        loop {
            let mut kept = self.0.lock();
            let of_server = |idle: &Idle| Arc::ptr_eq(idle.lease.server(), server);
            let at = kept.iter().rposition(of_server)?;
            let idle = kept.swap_remove(at);
            drop(kept);
            if let Some(connection) = idle.reuse(now) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for `time` for the next request.
    pub fn keep(&self, connection: Connection, now: Instant, time: Duration) {
        self.0.lock().extend(Idle::new(connection, now, time));
    }

    /// Closes connections that were idle for too long or that the service has closed.
    pub fn sweep(&self) {
        let now = Instant::now();
        let is_over = |idle: &mut Idle| !idle.is_usable(now);
        let closed: Vec<_> = self.0.lock().extract_if(.., is_over).collect();
        drop(closed);
    }
}

#[derive(Default)]
struct Kept {
    /// The most recently used are at the end.
    idle: Vec<Idle>,
    is_swept: bool,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// Takes an idle connection to a server, one that can serve a request.
pub fn take_idle(server: &Arc<Server>, now: Instant) -> Option<Connection> {
    KEPT.with_borrow_mut(|kept| {
        let mut at = kept.idle.len();
        loop {
            let of_server = |idle: &Idle| Arc::ptr_eq(idle.lease.server(), server);
            at = kept.idle.get(..at)?.iter().rposition(of_server)?;
            if let Some(connection) = kept.idle.swap_remove(at).reuse(now) {
                return Some(connection);
            }
        }
    })
}

/// Closes connections that were idle for too long or that the service has closed, until none is
/// left. Runs on the worker's own thread.
async fn keep_sweeping() {
    loop {
        let now = Instant::now();
        let next = KEPT.with_borrow_mut(|kept| {
            kept.idle.retain_mut(|idle| idle.is_usable(now));
            let next = kept.idle.iter().map(|idle| idle.until).min();
            kept.is_swept = next.is_some();
            next
        });
        let Some(next) = next else { return };
        sleep_until(next.min(now + CHECK_INTERVAL)).await;
    }
}

/// Whether nothing was received, not even the end of the connection.
fn is_silent(io: &mut Transport) -> bool {
    let mut byte = [0];
    // There is no system call unless something has arrived.
    let read = poll_fn(|cx| {
        let read = Pin::new(&mut *io).poll_read(cx, &mut ReadBuf::new(&mut byte));
        Poll::Ready(read.is_pending())
    });
    // tokio reports `Pending` to a task that has used up its budget, even if bytes have arrived.
    tokio::task::unconstrained(read).now_or_never().unwrap_or(false)
}
