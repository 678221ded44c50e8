//! What is believed of sessions without asking the store.
//!
//! A session that was read is believed for `session.redis.near_cache_ttl`, whatever happens: that
//! is the bound on how long a logout elsewhere can go unseen. One that is known to have ended is
//! believed to have ended, until it would have ended by itself. Both are bounded, and the least
//! recently used goes.

use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::identity::token::TokenDigest;
use crate::session::{DigestHash, Session};

/// Ends remembered of this gateway's own, and again as many of the others'.
const REVOCATIONS: u64 = 100_000;

pub struct LocalCache {
    sessions: Cache<TokenDigest, CachedSession, DigestHash>,
    /// Of this gateway's own, until when they have to be remembered, on the clock.
    own_revocations: Cache<TokenDigest, u64, DigestHash>,
    /// Of others, for as long as a question from before may still be under way.
    other_revocations: Cache<TokenDigest, u64, DigestHash>,
    ttl: u64,
}

#[derive(Clone)]
struct CachedSession {
    session: Arc<Session>,
    /// On the clock.
    cached_until: u64,
}

impl LocalCache {
    /// `longest` is how long a session can still have after it was ended.
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
            ttl: super::millis(ttl),
        }
    }

    /// A session that is still believed.
    pub fn get(&self, digest: &TokenDigest, now: u64) -> Option<Arc<Session>> {
        let known = self.sessions.get(digest)?;
        (now < known.cached_until).then_some(known.session)
    }

    /// Whether a token's session is known to have ended.
    pub fn is_revoked(&self, digest: &TokenDigest, now: u64) -> bool {
        let is_in =
            |known: &Cache<_, _, _>| known.get(digest).is_some_and(|until: u64| now < until);
        is_in(&self.own_revocations) || is_in(&self.other_revocations)
    }

    /// Takes in what the store said to a question of the time `asked`. `None` where word of its
    /// end has come meanwhile.
    pub fn insert(&self, session: Session, asked: u64) -> Option<Arc<Session>> {
        let session = Arc::new(session);
        let digest = session.digest();
        let cached_until = asked.saturating_add(self.ttl);
        self.sessions.insert(*digest, CachedSession { session: session.clone(), cached_until });
        // In this order, as `end` has the other: one of the two sees what the other did.
        if self.is_revoked(digest, asked) {
            self.sessions.invalidate(digest);
            return None;
        }
        Some(session)
    }

    /// Forgets a session. What was known is returned.
    pub fn forget(&self, digest: &TokenDigest) -> Option<Arc<Session>> {
        let known = self.sessions.remove(digest)?;
        known.session.mark_removed();
        Some(known.session)
    }

    /// This gateway has ended a session, that could have lived until then.
    pub fn revoke(&self, digest: &TokenDigest, until: u64) {
        self.own_revocations.insert(*digest, until);
        self.forget(digest);
    }

    /// Some gateway says that it has ended a session.
    pub fn revoked_elsewhere(&self, digest: &TokenDigest, now: u64) {
        self.other_revocations.insert(*digest, now.saturating_add(self.ttl));
        self.forget(digest);
    }

    /// The sessions that this gateway has ended itself, and what was left of their lives.
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
