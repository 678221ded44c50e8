//! Sessions in this process, in a moka cache.
//!
//! moka is told to be a plain LRU: its default admission policy (`TinyLFU`) refuses keys
//! that it has rarely seen when it is full, so that a new login would get a token that is
//! already gone. It drops what was not looked up for the idle timeout, by a clock of its own,
//! and so only frees memory: whether a session has ended is judged by its owner. What has come
//! to its absolute end and is not asked for again is held for an idle timeout more; an expiry of
//! each entry would free it at once, for 40 bytes a session and a timer moved by every look-up.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::Session;
use crate::metrics::{Metrics, Removal};
use crate::token::TokenDigest;

#[derive(Clone)]
pub struct Memory {
    cache: Cache<TokenDigest, Arc<Session>, DigestHash>,
    metrics: Arc<Metrics>,
}

impl Memory {
    pub fn new(capacity: u64, longest_unused: Duration, metrics: Arc<Metrics>) -> Self {
        let counted = metrics.clone();
        let cache = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(longest_unused)
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

/// A digest is as good as random, so a part of it is its hash.
#[derive(Clone, Copy)]
pub struct DigestHash;

impl BuildHasher for DigestHash {
    type Hasher = DigestHasher;

    fn build_hasher(&self) -> DigestHasher {
        DigestHasher(0)
    }
}

pub struct DigestHasher(u64);

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
