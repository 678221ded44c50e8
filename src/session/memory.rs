//! Sessions in this process, in a moka cache.
//!
//! moka is told to be a plain LRU: its default admission policy (`TinyLFU`) refuses keys
//! that it has rarely seen when it is full, so that a new login would get a token that is
//! already gone. Its clock is real time and only frees memory; whether a session has ended
//! is judged by its owner.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::Session;
use crate::clock::Clock;
use crate::metrics::{Metrics, Removal};
use crate::token::TokenDigest;

#[derive(Clone)]
pub struct Memory {
    cache: Cache<TokenDigest, Arc<Session>, DigestHash>,
    metrics: Arc<Metrics>,
}

impl Memory {
    pub fn new(capacity: u64, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let counted = metrics.clone();
        let cache = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(Remaining(clock))
            .eviction_listener(move |_, session: Arc<Session>, cause| {
                let removal = match cause {
                    RemovalCause::Size => Removal::Evicted,
                    RemovalCause::Expired => Removal::Expired,
                    // Ours, and counted where we decided it. A token never repeats.
                    RemovalCause::Explicit | RemovalCause::Replaced => return,
                };
                if session.mark_removed() {
                    counted.session_removed(removal);
                }
            })
            .build_with_hasher(DigestHash);
        Self { cache, metrics }
    }

    pub fn insert(&self, digest: TokenDigest, session: Session) {
        self.cache.insert(digest, Arc::new(session));
    }

    pub fn get(&self, digest: &TokenDigest) -> Option<Arc<Session>> {
        self.cache.get(digest)
    }

    pub fn remove(&self, digest: &TokenDigest, cause: Removal) {
        if let Some(session) = self.cache.remove(digest)
            && session.mark_removed()
        {
            self.metrics.session_removed(cause);
        }
    }

    pub fn maintain(&self) {
        self.cache.run_pending_tasks();
    }

    #[cfg(test)]
    pub fn len(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.cache.entry_count()
    }
}

/// Tells moka how long a session may stay in memory at most.
struct Remaining(Clock);

impl Expiry<TokenDigest, Arc<Session>> for Remaining {
    fn expire_after_create(
        &self,
        _: &TokenDigest,
        session: &Arc<Session>,
        _: Instant,
    ) -> Option<Duration> {
        Some(session.remaining(self.0.now_millis()))
    }

    fn expire_after_read(
        &self,
        _: &TokenDigest,
        session: &Arc<Session>,
        now: Instant,
        left: Option<Duration>,
        _: Instant,
    ) -> Option<Duration> {
        // The read that is under way is a use, but is noted only after it: what is left
        // after it is the idle timeout, or less where the absolute end is nearer. One that
        // has ended already stays as it is, for its owner to find and count.
        let now = self.0.millis_at(now);
        if session.remaining(now).is_zero() {
            return left;
        }
        let until_end = session.ends_at_millis.saturating_sub(now);
        Some(Duration::from_millis(session.idle_millis.min(until_end)))
    }
}

/// A digest is as good as random, so a part of it is its hash.
#[derive(Clone, Copy)]
struct DigestHash;

impl BuildHasher for DigestHash {
    type Hasher = DigestHasher;

    fn build_hasher(&self) -> DigestHasher {
        DigestHasher(0)
    }
}

struct DigestHasher(u64);

impl Hasher for DigestHasher {
    /// Digests write one word; this is here because the trait asks for it.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
