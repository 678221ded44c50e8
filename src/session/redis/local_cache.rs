//! Which sessions of a shared store need not be looked up there, because they are cached here or
//! known to be revoked.
//!
//! A session that was read is cached for at most `session.redis.near_cache_ttl`: this limits how
//! long a logout on another gateway can go unnoticed. A revocation by this gateway is remembered
//! until the session would have expired, and one by another gateway while an earlier lookup may
//! still be in flight. The size of each cache is limited; the least recently used entries are
//! evicted.

use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::clock::millis;
use crate::identity::token::TokenDigest;
use crate::session::{DigestHash, Session};

/// Maximum number of remembered revocations by this gateway, and again of those by other gateways.
const REVOCATIONS: u64 = 100_000;

pub struct LocalCache {
    sessions: Cache<TokenDigest, CachedSession, DigestHash>,
    /// Revocations by this gateway, and until when they must be remembered, in the clock's time.
    own_revocations: Cache<TokenDigest, u64, DigestHash>,
    /// Revocations by other gateways, remembered while an earlier lookup may still be in flight.
    other_revocations: Cache<TokenDigest, u64, DigestHash>,
    ttl: u64,
}

#[derive(Clone)]
struct CachedSession {
    session: Arc<Session>,
    /// In the clock's time.
    cached_until: u64,
}

impl LocalCache {
    /// `longest` is the longest remaining lifetime of a revoked session.
    pub fn new(capacity: u64, ttl: Duration, longest: Duration) -> Self {
        let sessions = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(ttl)
            .build_with_hasher(DigestHash);
        let revocations = |life| {
            Cache::builder()
                .max_capacity(REVOCATIONS)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(life)
                .build_with_hasher(DigestHash)
        };
        Self {
            sessions,
            own_revocations: revocations(longest),
            other_revocations: revocations(ttl),
            ttl: millis(ttl),
        }
    }

    /// A session that is still cached.
    pub fn get(&self, digest: &TokenDigest, now: u64) -> Option<Arc<Session>> {
        let cached = self.sessions.get(digest)?;
        (now < cached.cached_until).then_some(cached.session)
    }

    /// Whether a token's session is known to be revoked.
    pub fn is_revoked(&self, digest: &TokenDigest, now: u64) -> bool {
        let contains =
            |cache: &Cache<_, _, _>| cache.get(digest).is_some_and(|until: u64| now < until);
        contains(&self.own_revocations) || contains(&self.other_revocations)
    }

    /// Caches the store's response to a lookup that began at `started`. `None` if the session was
    /// revoked in the meantime.
    pub fn insert(&self, session: Session, started: u64) -> Option<Arc<Session>> {
        let session = Arc::new(session);
        let digest = session.digest();
        let cached_until = started.saturating_add(self.ttl);
        self.sessions.insert(*digest, CachedSession { session: session.clone(), cached_until });
        // Inserted before it is checked, while `revoke` records before it removes: one of the two
        // sees the other's change.
        if self.is_revoked(digest, started) {
            self.sessions.invalidate(digest);
            return None;
        }
        Some(session)
    }

    /// Removes a session from the cache, and returns it.
    pub fn remove(&self, digest: &TokenDigest) -> Option<Arc<Session>> {
        let cached = self.sessions.remove(digest)?;
        cached.session.mark_removed();
        Some(cached.session)
    }

    /// Records a revocation by this gateway. It is kept until `until`, when the session would have
    /// expired.
    pub fn revoke(&self, digest: &TokenDigest, until: u64) {
        self.own_revocations.insert(*digest, until);
        self.remove(digest);
    }

    /// Records a revocation by some gateway.
    pub fn revoked_elsewhere(&self, digest: &TokenDigest, now: u64) {
        self.other_revocations.insert(*digest, now.saturating_add(self.ttl));
        self.remove(digest);
    }

    /// The revocations by this gateway, and the rest of each session's lifetime.
    pub fn own_revocations(&self, now: u64) -> Vec<(TokenDigest, u64)> {
        let own = self.own_revocations.iter().filter(|(_, until)| now < *until);
        own.map(|(digest, until)| (*digest, until - now)).collect()
    }

    pub fn maintain(&self) {
        self.sessions.run_pending_tasks();
        self.own_revocations.run_pending_tasks();
        self.other_revocations.run_pending_tasks();
    }

    pub fn len(&self) -> u64 {
        self.sessions.entry_count()
    }
}
