//! Sessions in this process, in a moka cache.
//!
//! moka is told to be a plain LRU: its default admission policy (`TinyLFU`) refuses keys
//! that it has rarely seen when it is full, so that a new login would get a token that is
//! already gone. It drops what was not looked up for the idle timeout, by a clock of its own,
//! and so only frees memory: whether a session has ended is judged by its owner. What has come
//! to its absolute end and is not asked for again is held for an idle timeout more; an expiry of
//! each entry would free it at once, for 40 bytes a session and a timer moved by every look-up.

mod blocks;
mod users;

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use self::blocks::Blocks;
use self::users::Users;
use super::{Blocked, Removal, Removals, Session};
use crate::identity::token::TokenDigest;
use crate::identity::{AppId, OpenId, User};
use crate::telemetry::metrics::Metrics;

#[derive(Clone)]
pub struct Memory {
    cache: Cache<Key, Arc<Session>, DigestHash>,
    users: Arc<Users>,
    pub blocks: Arc<Blocks>,
    max_per_user: Option<NonZeroUsize>,
    metrics: Arc<Metrics>,
    removals: Removals,
}

/// Is as good as the session's digest, and smaller.
struct Key(Arc<Session>);

impl Memory {
    pub fn new(
        capacity: u64,
        max_per_user: Option<NonZeroUsize>,
        longest_unused: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let users = Arc::new(Users::new());
        let removals = Removal::counters(&metrics);
        let (counted, listed) = (removals.clone(), users.clone());
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
                    counted.count(removal as usize);
                    listed.remove(&session);
                }
            })
            .build_with_hasher(DigestHash);
        Self { cache, users, blocks: Arc::default(), max_per_user, metrics, removals }
    }

    /// Keeps a new session, and ends the oldest ones of its user that are too many with it.
    ///
    /// # Errors
    /// When its user is blocked.
    pub fn insert(&self, session: Session) -> Result<(), Blocked> {
        let (user, now) = (session.identity.user(), session.created_at_millis);
        let is_blocked = || self.blocks.until(&user, now).is_some();
        if is_blocked() {
            return Err(Blocked);
        }
        let session = Arc::new(session);
        self.cache.insert(Key(session.clone()), session.clone());
        self.metrics.session_created();
        let held = self.users.add(session.clone());
        if session.is_removed() {
            // It was pushed out before it was listed.
            self.users.remove(&session);
        }
        if let Some(most) = self.max_per_user.map(NonZeroUsize::get)
            && held > most
        {
            let mut others = self.of_user(&user);
            others.retain(|other| !Arc::ptr_eq(other, &session));
            others.sort_by_key(|other| other.created_at_millis);
            let excess = (others.len() + 1).saturating_sub(most);
            for other in others.iter().take(excess) {
                self.remove(&other.digest, Removal::Replaced);
            }
        }
        // Sessions of a blocked user are ended after the block is set: either they include this
        // one, or the block is seen here.
        if is_blocked() {
            self.remove(&session.digest, Removal::Revoked);
            return Err(Blocked);
        }
        Ok(())
    }

    /// Finds the user of an app that `is_sought` recognises among those with a session or a block.
    /// Takes about a second for a million sessions.
    pub fn find_user(&self, app_id: &AppId, is_sought: &impl Fn(&OpenId) -> bool) -> Option<User> {
        self.blocks.find(app_id, is_sought).or_else(|| self.users.find(app_id, is_sought))
    }

    /// In no order.
    pub fn of_user(&self, user: &User) -> Vec<Arc<Session>> {
        self.users.sessions(user)
    }

    pub fn get(&self, digest: &TokenDigest) -> Option<Arc<Session>> {
        self.cache.get(digest)
    }

    pub fn remove(&self, digest: &TokenDigest, cause: Removal) {
        if let Some(session) = self.cache.remove(digest)
            && session.mark_removed()
        {
            self.removals.count(cause as usize);
            self.users.remove(&session);
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

impl Borrow<TokenDigest> for Key {
    fn borrow(&self) -> &TokenDigest {
        &self.0.digest
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.digest == other.0.digest
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.digest.hash(state);
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
