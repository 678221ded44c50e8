//! How one request of an HTTP/2 connection comes along.
//!
//! pingora bounds neither the waiting for a body on HTTP/2 nor how often a client gives up.
//! The edge makes one of these with each request there, the proxy tells it what comes, and
//! the edge ends what does not.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use http::uri::PathAndQuery;
use tokio::time::sleep;

/// How often a body is looked at, at least.
const LOOK: Duration = Duration::from_secs(1);

/// How slow a client may be.
#[derive(Clone, Copy)]
pub struct Pace {
    /// Between two pieces of a body.
    pub body_timeout: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_timeout: Duration,
    /// Bytes of body a second; 0: any.
    pub min_body_rate: u64,
}

impl Pace {
    /// Waiting for a body that is not judged: connections are slow to start.
    const GRACE: Duration = Duration::from_secs(5);

    /// Whether so much of a body is too little for so long a wait.
    pub fn is_too_slow(&self, received: u64, waited: Duration) -> bool {
        waited > Self::GRACE && received < self.min_body_rate.saturating_mul(waited.as_secs())
    }
}

/// The progress of one request.
pub struct Progress {
    pub method: Method,
    pub target: Option<PathAndQuery>,
    state: AtomicU8,
    received: AtomicU64,
    /// Status of the answer; 0 before there is one.
    answered: AtomicU16,
    sent: AtomicU64,
}

/// States of a request.
mod state {
    /// Nobody waits for its body.
    pub const HELD: u8 = 0;
    /// Its body is on its way to a service.
    pub const FORWARDED: u8 = 1;
    /// All of its body has come.
    pub const WHOLE: u8 = 2;
    /// Its body did not come in time.
    pub const STALLED: u8 = 3;
    /// The client left it.
    pub const LEFT: u8 = 4;
    /// It is answered to the end: nobody needs the rest of its body.
    pub const ANSWERED: u8 = 5;
}

impl Progress {
    pub fn new(method: Method, target: Option<PathAndQuery>) -> Self {
        Self {
            method,
            target,
            state: AtomicU8::new(state::HELD),
            received: AtomicU64::new(0),
            answered: AtomicU16::new(0),
            sent: AtomicU64::new(0),
        }
    }

    /// The body goes to a service from now on, and has to come.
    pub fn forward(&self) {
        self.state.store(state::FORWARDED, Ordering::Relaxed);
    }

    /// More of the body has come.
    pub fn receive(&self, bytes: usize, is_end: bool) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        if is_end {
            self.state.store(state::WHOLE, Ordering::Relaxed);
        }
    }

    /// The client left before its answer.
    pub fn leave(&self) {
        self.state.store(state::LEFT, Ordering::Relaxed);
    }

    /// The answer has begun.
    pub fn answer(&self, status: u16) {
        self.answered.store(status, Ordering::Relaxed);
    }

    /// More of the answer has come.
    pub fn send(&self, bytes: usize, is_end: bool) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        if is_end {
            self.state.store(state::ANSWERED, Ordering::Relaxed);
        }
    }

    /// Status and bytes of the answer, if there is one.
    pub fn answered(&self) -> Option<(u16, u64)> {
        let status = self.answered.load(Ordering::Relaxed);
        (status != 0).then(|| (status, self.sent.load(Ordering::Relaxed)))
    }

    /// Whether the edge has ended it.
    pub fn is_ended(&self) -> bool {
        matches!(self.state.load(Ordering::Relaxed), state::STALLED | state::ANSWERED)
    }

    pub fn is_stalled(&self) -> bool {
        self.state.load(Ordering::Relaxed) == state::STALLED
    }

    pub fn is_left(&self) -> bool {
        self.state.load(Ordering::Relaxed) == state::LEFT
    }

    /// Resolves when a body that is forwarded comes too slowly, stops coming, or still comes
    /// when everything is answered. The time
    /// that the service takes to accept what came counts too: it cannot be told apart here.
    pub async fn stalls(&self, pace: Pace) {
        let (mut known, mut since, mut began) = (0, Instant::now(), Instant::now());
        loop {
            sleep(LOOK.min(pace.body_timeout)).await;
            let received = self.received.load(Ordering::Relaxed);
            match self.state.load(Ordering::Relaxed) {
                state::HELD => (since, began) = (Instant::now(), Instant::now()),
                state::FORWARDED if received > known => (known, since) = (received, Instant::now()),
                state::FORWARDED => {}
                // The rest of its body would be waited for in vain.
                state::ANSWERED => return,
                _ => std::future::pending().await,
            }
            let is_stalled = since.elapsed() >= pace.body_timeout;
            if is_stalled || pace.is_too_slow(received, began.elapsed()) {
                self.state.store(state::STALLED, Ordering::Relaxed);
                return;
            }
        }
    }
}
