//! Connections to services: opened by pingora's connector, and kept by the worker that opened them.
//!
//! Each worker keeps its own connections, so that no request waits for a lock. A connection is
//! reused only if nothing was received on it: bytes that a service sends between two responses
//! would be taken for the next response.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// How often to check for connections that a service has closed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A connection to a service.
pub struct Service {
    pub io: Stream,
    pub address: SocketAddr,
    /// Whether it has served a request before.
    pub is_reused: bool,
    /// Whether anything was received since the current request was sent.
    pub has_received: bool,
}

impl Service {
    pub fn new(io: Stream, address: SocketAddr) -> Self {
        Self { io, address, is_reused: false, has_received: false }
    }
}

struct Idle {
    io: Stream,
    address: SocketAddr,
    until: Instant,
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
pub fn take_idle(address: SocketAddr) -> Option<Service> {
    KEPT.with_borrow_mut(|kept| {
        let mut at = kept.idle.len();
        loop {
            at = kept.idle.get(..at)?.iter().rposition(|idle| idle.address == address)?;
            let Idle { mut io, until, .. } = kept.idle.swap_remove(at);
            if Instant::now() < until && is_silent(&mut io) {
                return Some(Service { io, address, is_reused: true, has_received: false });
            }
        }
    })
}

/// Keeps a connection for `time` for the next request. If the worker already has `most` idle
/// connections, the one that expires first is closed.
pub fn keep_idle(service: Service, time: Duration, most: usize) {
    let Service { io, address, .. } = service;
    let until = Instant::now() + time;
    let begins = KEPT.with_borrow_mut(|kept| {
        if kept.idle.len() >= most {
            let first = kept.idle.iter().enumerate().min_by_key(|(_, idle)| idle.until);
            if let Some((at, _)) = first {
                kept.idle.swap_remove(at);
            }
        }
        kept.idle.push(Idle { io, address, until });
        !std::mem::replace(&mut kept.is_swept, true)
    });
    if begins {
        tokio::spawn(keep_sweeping());
    }
}

/// Closes connections that were idle for too long or that the service has closed, until none is
/// left. Runs on the worker's own thread.
async fn keep_sweeping() {
    loop {
        let now = Instant::now();
        let next = KEPT.with_borrow_mut(|kept| {
            kept.idle.retain_mut(|idle| idle.until > now && is_silent(&mut idle.io));
            let next = kept.idle.iter().map(|idle| idle.until).min();
            kept.is_swept = next.is_some();
            next
        });
        let Some(next) = next else { return };
        sleep_until(next.min(now + CHECK_INTERVAL)).await;
    }
}

/// Whether nothing was received, not even the end of the connection.
fn is_silent(io: &mut Stream) -> bool {
    let mut byte = [0];
    // There is no system call unless something has arrived.
    let read = poll_fn(|cx| {
        let read = Pin::new(&mut *io).poll_read(cx, &mut ReadBuf::new(&mut byte));
        Poll::Ready(read.is_pending())
    });
    // tokio reports `Pending` to a task that has used up its budget, even if bytes have arrived.
    tokio::task::unconstrained(read).now_or_never().unwrap_or(false)
}
