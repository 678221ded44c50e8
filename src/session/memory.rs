//! Sessions in this process, in a moka cache.
//!
//! moka is configured as a plain LRU cache. When full, its default admission policy (`TinyLFU`)
//! rejects keys that it has rarely seen, so that the token of a new login would be invalid at once.
//! moka drops sessions that were not looked up for the idle timeout, by its own clock. That only
//! frees memory: `Sessions` judges whether a session has ended. A session past its absolute end
//! that is not looked up again is kept for one more idle timeout; an expiry for each entry would
//! free it at once, but needs 40 bytes per session and moves a timer at every lookup.

mod blocks;
pub mod records;
mod users;

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use self::blocks::Blocks;
use self::users::UserIndex;
use super::durable::Ended;
use super::jars::Jars;
use super::{Blocked, KnownUser, LoginKey, Removal, Removals, Session};
use crate::config::SessionSection;
use crate::identity::session_key::SessionKey;
use crate::identity::token::TokenDigest;
use crate::identity::{AppId, OpenId, User, UserId};
use crate::telemetry::metrics::{Metrics, RestoredFrom};

#[derive(Clone)]
pub struct Memory {
    cache: Cache<CacheKey, Arc<Session>, DigestHash>,
    users: Arc<UserIndex>,
    pub blocks: Arc<Blocks>,
    pub jars: Jars,
    max_per_user: Option<NonZeroUsize>,
    metrics: Arc<Metrics>,
    removals: Removals,
    /// Set if sessions outlive the process.
    ended: Option<Arc<Ended>>,
}

/// Has the same hash and equality as the session's digest, and is smaller.
struct CacheKey(Arc<Session>);

impl Memory {
    /// With room for `expected` sessions, up to the capacity.
    pub fn new(
        section: &SessionSection,
        expected: u64,
        longest_unused: Duration,
        keeps_session_keys: Arc<AtomicBool>,
        jars: Jars,
        ended: Option<Arc<Ended>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let &SessionSection { capacity, max_per_user, .. } = section;
        let expected = usize::try_from(expected.min(capacity)).unwrap_or_default();
        let users = Arc::new(UserIndex::new(keeps_session_keys, expected));
        let removals = Removal::counters(&metrics);
        let (counted, listed, kept) = (removals.clone(), users.clone(), jars.clone());
        let noted = ended.clone();
        let cache = Cache::builder()
            .max_capacity(capacity)
            .initial_capacity(expected)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(longest_unused)
            .eviction_listener(move |_, session: Arc<Session>, cause| {
                let removal = match cause {
                    RemovalCause::Size => Removal::Evicted,
                    RemovalCause::Expired => Removal::Expired,
                    // Removed by us, and counted there. A token never occurs twice.
                    RemovalCause::Explicit | RemovalCause::Replaced => return,
                };
                if session.mark_removed() {
                    if let Some(noted) = &noted {
                        noted.add(session.digest());
                    }
                    counted.count(removal as usize);
                    listed.remove(&session);
                    kept.remove_all(session.digest());
                }
            })
            .build_with_hasher(DigestHash);
        Self { cache, users, blocks: Arc::default(), jars, max_per_user, metrics, removals, ended }
    }

    /// Adds a new session, and removes the oldest sessions of its user above the limit. Keeps the
    /// session key of its login.
    ///
    /// # Errors
    /// When the user is blocked.
    pub fn insert(
        &self,
        session: Session,
        key: Option<LoginKey>,
        is_live: impl Fn(&Session) -> bool,
    ) -> Result<Arc<Session>, Blocked> {
        let (user, now) = (session.identity.user(), session.created_at_millis);
        let is_blocked = || self.blocks.until(&user, now).is_some();
        if is_blocked() {
            return Err(Blocked);
        }
        let session = Arc::new(session);
        self.cache.insert(CacheKey(session.clone()), session.clone());
        self.metrics.session_created();
        let count = self.users.add(session.clone(), key, is_live);
        if session.is_removed() {
            // It was evicted before it was listed.
            self.users.remove(&session);
        }
        self.limit_sessions(&user, count, Some(&session));
        // An operator sets the block before revoking the sessions: either this session is among
        // those, or the block is seen here.
        if is_blocked() {
            self.remove(session.digest(), Removal::Revoked);
            return Err(Blocked);
        }
        Ok(session)
    }

    /// Adds a session that another process has created, unless it is here already: then only its
    /// last use is taken over. Keeps the session key of its login.
    pub fn join(
        &self,
        session: &Arc<Session>,
        key: Option<LoginKey>,
        is_live: impl Fn(&Session) -> bool,
    ) {
        let last_use = session.last_used();
        let entry = self.cache.entry(CacheKey(session.clone())).or_insert(session.clone());
        if !entry.is_fresh() {
            entry.value().raise_last_used(last_use);
            return;
        }
        let count = self.users.add(session.clone(), key, is_live);
        self.metrics.session_restored(RestoredFrom::Upgrade);
        if session.is_removed() {
            // It was evicted before it was listed.
            self.users.remove(session);
        }
        self.limit_sessions(&session.identity.user(), count, None);
    }

    /// Adds a session of another process, unless it is here already. Returns whether it was added.
    /// Faster than [`Memory::join`], because the caller excludes all other changes of this session.
    pub fn restore(
        &self,
        session: &Arc<Session>,
        source: RestoredFrom,
        is_live: impl Fn(&Session) -> bool,
    ) -> bool {
        let Some(count) = self.users.add_once(session.clone(), is_live) else { return false };
        self.cache.insert(CacheKey(session.clone()), session.clone());
        self.metrics.session_restored(source);
        // Either this is seen here, or the session is seen by `replace`.
        fence(Ordering::SeqCst);
        if session.is_removed() {
            self.cache.invalidate(session.digest());
        }
        // Without need, no reference count that all threads share is changed.
        if self.is_above_limit(count) {
            self.limit_sessions(&session.identity.user(), count, None);
        }
        true
    }

    fn is_above_limit(&self, count: usize) -> bool {
        self.max_per_user.is_some_and(|limit| count > limit.get())
    }

    /// Removes the oldest sessions of a user that has `count` of them, if that is above the limit,
    /// but not the session `kept`.
    fn limit_sessions(&self, user: &User, count: usize, kept: Option<&Arc<Session>>) {
        let Some(limit) = self.max_per_user.map(NonZeroUsize::get) else { return };
        if !self.is_above_limit(count) {
            return;
        }
        let mut others = self.of_user(user);
        let excess = others.len().saturating_sub(limit);
        others.retain(|other| kept.is_none_or(|kept| !Arc::ptr_eq(other, kept)));
        others.sort_by_key(|other| other.created_at_millis);
        others.iter().take(excess).for_each(|other| self.replace(other));
    }

    /// Removes a session that newer ones of its user have replaced. If it is still coming in in
    /// another thread, it is listed, but not in the cache: so it is marked first.
    fn replace(&self, session: &Arc<Session>) {
        if session.mark_removed() {
            fence(Ordering::SeqCst);
            self.cache.invalidate(session.digest());
            self.forget(session, Removal::Replaced);
        }
    }

    /// Calls `visit` with all sessions, some at a time and without a lock.
    pub fn visit(&self, visit: impl FnMut(Vec<Arc<Session>>)) {
        self.users.visit(visit);
    }

    /// Calls `visit` with the kept session keys of every user, newest login first.
    pub fn visit_session_keys(&self, visit: impl FnMut(User, Vec<LoginKey>)) {
        self.users.visit_session_keys(visit);
    }

    /// Keeps session keys that another process has kept, if their user has a live session.
    pub fn restore_session_keys(
        &self,
        user: &User,
        keys: Vec<LoginKey>,
        is_live: impl Fn(&Session) -> bool,
    ) {
        self.users.restore_session_keys(user, keys, is_live);
    }

    /// Finds the users of an app for whom `matches` is true, among those with a session or a
    /// block. Takes about a second for a million sessions.
    pub fn find_users(
        &self,
        app_id: &AppId,
        matches: &impl Fn(&OpenId, Option<&UserId>) -> bool,
    ) -> Vec<KnownUser> {
        let mut found = self.blocks.find(app_id, matches);
        let mut users: HashSet<User> = found.iter().map(|known| known.user.clone()).collect();
        let of_sessions = self.users.find(app_id, matches);
        found.extend(of_sessions.into_iter().filter(|known| users.insert(known.user.clone())));
        found
    }

    /// The sessions of a user, unordered.
    pub fn of_user(&self, user: &User) -> Vec<Arc<Session>> {
        self.users.sessions(user)
    }

    /// The kept session keys of a user with a live session, newest login first.
    pub fn session_keys(&self, user: &User, is_live: impl Fn(&Session) -> bool) -> Vec<SessionKey> {
        self.users.session_keys(user, is_live)
    }

    /// Makes a key the newest one of a user with a live session.
    pub fn replace_session_key(
        &self,
        user: &User,
        key: LoginKey,
        is_live: impl Fn(&Session) -> bool,
    ) {
        self.users.replace_session_key(user, key, is_live);
    }

    pub fn wipe_session_keys(&self) {
        self.users.wipe_session_keys();
    }

    pub fn get(&self, digest: &TokenDigest) -> Option<Arc<Session>> {
        self.cache.get(digest)
    }

    pub fn contains(&self, digest: &TokenDigest) -> bool {
        self.cache.contains_key(digest)
    }

    pub fn remove(&self, digest: &TokenDigest, cause: Removal) {
        if let Some(session) = self.cache.remove(digest)
            && session.mark_removed()
        {
            self.forget(&session, cause);
        }
    }

    /// To be called by what has marked the session as removed.
    fn forget(&self, session: &Arc<Session>, cause: Removal) {
        if let Some(ended) = &self.ended {
            ended.add(session.digest());
        }
        self.removals.count(cause as usize);
        self.users.remove(session);
        self.jars.remove_all(session.digest());
    }

    pub fn maintain(&self) {
        self.cache.run_pending_tasks();
        self.jars.maintain();
    }

    /// Users with session keys.
    #[cfg(test)]
    pub fn users_with_keys(&self) -> usize {
        self.users.users_with_keys()
    }

    /// About how many sessions there are.
    pub fn count(&self) -> u64 {
        self.cache.entry_count()
    }

    #[cfg(test)]
    pub fn len(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.count()
    }
}

impl Borrow<TokenDigest> for CacheKey {
    fn borrow(&self) -> &TokenDigest {
        self.0.digest()
    }
}

impl PartialEq for CacheKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.digest() == other.0.digest()
    }
}

impl Eq for CacheKey {}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.digest().hash(state);
    }
}

/// A digest is effectively random, so a part of it is its hash.
#[derive(Clone, Copy, Default)]
pub struct DigestHash;

impl BuildHasher for DigestHash {
    type Hasher = DigestHasher;

    fn build_hasher(&self) -> DigestHasher {
        DigestHasher(0)
    }
}

pub struct DigestHasher(u64);

impl Hasher for DigestHasher {
    /// Digests write one word; the trait requires this method.
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
