//! Connections to services: made by pingora's connector, kept by the worker that made them.
//!
//! A connection is kept only by its own worker, so that no request waits for a lock. It is used
//! again only if it is silent: whatever a service sends between two responses would be taken for
//! the next one.

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

/// How often connections that a service has closed are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// A connection to a service.
pub struct Service {
    pub io: Stream,
    pub address: SocketAddr,
    /// Whether it has served a request before.
    pub is_reused: bool,
    /// Whether anything has come since the current request was sent.
    pub has_spoken: bool,
}

impl Service {
    pub fn new(io: Stream, address: SocketAddr) -> Self {
        Self { io, address, is_reused: false, has_spoken: false }
    }
}

struct Idle {
    io: Stream,
    address: SocketAddr,
    until: Instant,
}

#[derive(Default)]
struct Kept {
    /// The ones that were used last are at the end.
    idle: Vec<Idle>,
    is_swept: bool,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// Takes an idle connection to a server that can serve a request.
pub fn take_idle(address: SocketAddr) -> Option<Service> {
    KEPT.with_borrow_mut(|kept| {
        let mut at = kept.idle.len();
        loop {
            at = kept.idle.get(..at)?.iter().rposition(|idle| idle.address == address)?;
            let Idle { mut io, until, .. } = kept.idle.swap_remove(at);
            if Instant::now() < until && is_silent(&mut io) {
                return Some(Service { io, address, is_reused: true, has_spoken: false });
            }
        }
    })
}

/// Keeps a connection for the next request, for `time`. If the worker has `most` idle connections
/// already, the one whose time ends first is closed.
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
/// left. Runs on the thread of its worker.
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
        sleep_until(next.min(now + LOOK)).await;
    }
}

/// Whether nothing was sent, not even the end of the connection.
fn is_silent(io: &mut Stream) -> bool {
    let mut byte = [0];
    // No system call is made as long as nothing has come.
    let read = poll_fn(|cx| {
        let read = Pin::new(&mut *io).poll_read(cx, &mut ReadBuf::new(&mut byte));
        Poll::Ready(read.is_pending())
    });
    // tokio tells a task that has used up its budget that nothing has come, even if something has.
    tokio::task::unconstrained(read).now_or_never().unwrap_or(false)
}
