//! The limits on a body: its length, and how long each side may take.
//!
//! Only the time spent waiting for a side counts against it. Minimum rates apply after [`GRACE`],
//! because connections start slowly.

use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::buffers;

/// Waiting time before a minimum rate applies.
const GRACE: Duration = Duration::from_secs(5);

/// Services have no reason to give up on a sender for which they waited less than this.
const STALL: Duration = Duration::from_secs(1);

/// Limits on a body.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Maximum bytes of the whole body.
    pub bytes: u64,
    /// The longest wait for bytes from the sender.
    pub read_timeout: Duration,
    /// The longest time in which the receiver may accept nothing.
    pub write_timeout: Duration,
    /// Bytes per second that the sender must send, after [`GRACE`]; 0: no minimum.
    pub min_send_rate: u64,
    /// Bytes per second that the receiver must accept, after [`GRACE`]; 0: no minimum.
    pub min_accept_rate: u64,
    /// Maximum bytes of one read; not more than [`buffers::LARGE`].
    pub read: usize,
}

impl Limits {
    pub const NONE: Self = Self {
        bytes: u64::MAX,
        read_timeout: Duration::MAX,
        write_timeout: Duration::MAX,
        min_send_rate: 0,
        min_accept_rate: 0,
        read: buffers::LARGE,
    };
}

/// What a body waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Sender,
    Receiver,
}

/// The waiting times of one body.
pub struct Pace {
    waits_for: Wait,
    /// When the current wait began; `None` while there is none.
    waiting_since: Option<Instant>,
    /// Time spent waiting for the sender.
    waited_for_sender: Duration,
    /// Time spent waiting for the receiver, and bytes that it accepted.
    waited_for_receiver: Duration,
    accepted: u64,
}

impl Pace {
    pub fn new() -> Self {
        Self {
            waits_for: Wait::Sender,
            waiting_since: None,
            waited_for_sender: Duration::ZERO,
            waited_for_receiver: Duration::ZERO,
            accepted: 0,
        }
    }

    /// Which side is waited for, and the deadline.
    pub fn due(&self, limits: &Limits) -> Option<(Wait, Instant)> {
        let limit = match self.waits_for {
            Wait::Sender => limits.read_timeout,
            Wait::Receiver => limits.write_timeout,
        };
        Some((self.waits_for, self.waiting_since?.checked_add(limit)?))
    }

    pub fn wait_for<T>(&mut self, wait: Wait) -> Poll<T> {
        if self.waits_for != wait {
            self.waiting_since = None;
            self.waits_for = wait;
        }
        self.waiting_since.get_or_insert_with(Instant::now);
        Poll::Pending
    }

    pub fn stop_waiting(&mut self) {
        self.waiting_since = None;
    }

    /// Counts bytes that the receiver accepted. Returns whether it accepts them too slowly.
    pub fn is_receiver_too_slow(&mut self, length: usize, limits: &Limits) -> bool {
        self.accepted += length as u64;
        if let Some(since) = self.waiting_since.take()
            && self.waits_for == Wait::Receiver
        {
            self.waited_for_receiver += since.elapsed();
            return is_too_slow(self.accepted, self.waited_for_receiver, limits.min_accept_rate);
        }
        false
    }

    /// Ends a wait for the sender.
    pub fn sender_sent(&mut self) {
        if let Some(since) = self.waiting_since.take()
            && self.waits_for == Wait::Sender
        {
            self.waited_for_sender += since.elapsed();
        }
    }

    /// Whether the sender was waited for, for [`STALL`] or longer in all.
    pub fn has_sender_stalled(&self) -> bool {
        let current = self.waiting_since.filter(|_| self.waits_for == Wait::Sender);
        self.waited_for_sender + current.map(|since| since.elapsed()).unwrap_or_default() >= STALL
    }

    /// Whether the sender is too slow, given that it has sent this many bytes so far.
    pub fn is_sender_too_slow(&self, bytes: u64, limits: &Limits) -> bool {
        is_too_slow(bytes, self.waited_for_sender, limits.min_send_rate)
    }
}

/// Whether `bytes` are too few after waiting for `waited`.
fn is_too_slow(bytes: u64, waited: Duration, least_a_second: u64) -> bool {
    waited > GRACE && bytes < least_a_second.saturating_mul(waited.as_secs())
}
