//! The state of one session: when it was last used, and whether it was removed.
//!
//! Several tasks may find that a session has ended; only the first of them counts it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::identity::Identity;
use crate::identity::token::TokenDigest;
use crate::telemetry::metrics::{Counters, Metrics};

/// The session of one login. Times are the clock's, in milliseconds.
pub struct Session {
    pub identity: Identity,
    digest: TokenDigest,
    /// The address that the login came from.
    pub client: IpAddr,
    pub created_at_millis: u64,
    pub ends_at_millis: u64,
    last_used_millis: AtomicU64,
    is_removed: AtomicBool,
}

impl Session {
    pub(super) fn new(
        digest: TokenDigest,
        identity: Identity,
        client: IpAddr,
        created_at_millis: u64,
        ends_at_millis: u64,
        last_used_millis: u64,
    ) -> Self {
        Self {
            identity,
            digest,
            client,
            created_at_millis,
            ends_at_millis,
            last_used_millis: AtomicU64::new(last_used_millis),
            is_removed: AtomicBool::new(false),
        }
    }

    /// The key under which it is stored.
    pub fn digest(&self) -> &TokenDigest {
        &self.digest
    }

    /// When the session was last used, in milliseconds of the clock.
    pub fn last_used(&self) -> u64 {
        self.last_used_millis.load(Ordering::Relaxed)
    }

    pub(super) fn set_last_used(&self, now_millis: u64) {
        self.last_used_millis.store(now_millis, Ordering::Relaxed);
    }

    /// Records a use that another process has seen, unless a later one is known.
    pub(super) fn raise_last_used(&self, used_millis: u64) {
        self.last_used_millis.fetch_max(used_millis, Ordering::Relaxed);
    }

    /// Returns whether this call has changed the last use.
    pub(super) fn replace_last_used(&self, from: u64, to: u64) -> bool {
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        self.last_used_millis.compare_exchange(from, to, success, failure).is_ok()
    }

    pub(super) fn is_removed(&self) -> bool {
        self.is_removed.load(Ordering::Acquire)
    }

    /// Returns whether this call has removed it: later calls must not count it again.
    pub(super) fn mark_removed(&self) -> bool {
        !self.is_removed.swap(true, Ordering::AcqRel)
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Expired,
    Revoked,
    Evicted,
    /// Replaced by newer sessions of its user.
    Replaced,
}

impl Removal {
    const ALL: [Self; 4] = [Self::Expired, Self::Revoked, Self::Evicted, Self::Replaced];

    fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Evicted => "evicted",
            Self::Replaced => "replaced",
        }
    }

    /// Counters of removed sessions by cause.
    pub(super) fn counters(metrics: &Metrics) -> Removals {
        metrics.removals(Self::ALL.map(Self::as_str))
    }
}

/// Counters of removed sessions, by [`Removal`].
pub(super) type Removals = Counters<4>;
