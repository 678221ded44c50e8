//! Which sessions and session keys a user has, when sessions are kept in memory.
//!
//! A hash table of sessions by user, with about 9 to 18 bytes of memory for each session. It is
//! divided into parts, each with its own lock, so that a part that grows delays few requests. No
//! part is locked while moka is called: from within its calls, moka reports the sessions that it
//! drops, and handling a report locks a part.
//!
//! A user's session keys are in the same part as its sessions, and both change under one lock:
//! whenever no thread has the lock, a user with session keys has a listed session. A key is added
//! together with the session of its login. The removal of a session, whatever its cause, also
//! removes the keys of its user if none of its sessions is left. It cannot remove the key of a
//! concurrent login: either that login's session is listed already, and the keys stay, or it is
//! listed later, together with its key. A session that moka evicts before it is listed is removed
//! by the login that listed it, in the same way. So there are never more keys than three for each
//! listed session. A session that has expired is listed until moka drops it (`memory.rs`); until
//! then its user's keys are neither returned nor combined with those of a new login.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::identity::session_key::SessionKey;
use crate::identity::{AppId, Identity, OpenId, User, UserId};
use crate::session::user_keys::UserKeys;
use crate::session::{KnownUser, LoginKey, Session};

const PARTS: usize = 1024;

#[derive(Default)]
struct Part {
    sessions: HashTable<Arc<Session>>,
    keys: HashTable<Box<KeysOfUser>>,
}

struct KeysOfUser {
    user: User,
    keys: UserKeys,
}

pub struct UserIndex {
    parts: Box<[Mutex<Part>]>,
    hashing: RandomState,
    keeps_session_keys: Arc<AtomicBool>,
}

impl UserIndex {
    /// With room for this many sessions.
    pub fn new(keeps_session_keys: Arc<AtomicBool>, expected: usize) -> Self {
        let sessions = || HashTable::with_capacity(expected / PARTS);
        let part = || Part { sessions: sessions(), keys: HashTable::new() };
        let parts = (0..PARTS).map(|_| Mutex::new(part())).collect();
        Self { parts, hashing: RandomState::new(), keeps_session_keys }
    }

    /// Adds a session, and the session key of its login. Returns how many sessions the user now
    /// has.
    pub fn add(
        &self,
        session: Arc<Session>,
        key: Option<LoginKey>,
        is_live: impl Fn(&Session) -> bool,
    ) -> usize {
        let hash = self.hash_of(&session);
        self.in_part(hash, |part| self.add_to(part, hash, session, key, is_live))
    }

    /// Adds a session, unless it is listed already. Returns how many sessions the user now has.
    pub fn add_once(
        &self,
        session: Arc<Session>,
        is_live: impl Fn(&Session) -> bool,
    ) -> Option<usize> {
        let hash = self.hash_of(&session);
        self.in_part(hash, |part| {
            let mut listed = part.sessions.iter_hash(hash);
            let is_listed = listed.any(|other| other.digest() == session.digest());
            (!is_listed).then(|| self.add_to(part, hash, session, None, is_live))
        })
    }

    fn add_to(
        &self,
        part: &mut Part,
        hash: u64,
        session: Arc<Session>,
        key: Option<LoginKey>,
        is_live: impl Fn(&Session) -> bool,
    ) -> usize {
        if key.is_some() || !part.keys.is_empty() {
            let user = session.identity.user();
            if !part.keys.is_empty() && !part.has(hash, &user, is_live) {
                part.wipe(hash, &user);
            }
            if let Some(key) = key
                && let Some(keys) = self.keys(part, hash, &user)
            {
                keys.keep(key);
            }
        }
        let user = &session.identity;
        let is_of_user = |other: &&Arc<Session>| is_of(other, &user.app_id, &user.openid);
        let count = 1 + part.sessions.iter_hash(hash).filter(is_of_user).count();
        part.sessions.insert_unique(hash, session, |session| self.hash_of(session));
        count
    }

    pub fn remove(&self, session: &Arc<Session>) {
        let hash = self.hash_of(session);
        self.in_part(hash, |part| {
            let is_same = |other: &Arc<Session>| Arc::ptr_eq(other, session);
            if let Ok(entry) = part.sessions.find_entry(hash, is_same) {
                entry.remove();
            }
            if !part.keys.is_empty() {
                let user = session.identity.user();
                if !part.has(hash, &user, |_| true) {
                    part.wipe(hash, &user);
                }
            }
            // Frees the memory after a flood of logins.
            if part.sessions.len() < part.sessions.capacity() / 8 {
                let capacity = part.sessions.capacity() / 4;
                part.sessions.shrink_to(capacity, |session| self.hash_of(session));
            }
            if part.keys.len() < part.keys.capacity() / 8 {
                let capacity = part.keys.capacity() / 4;
                part.keys.shrink_to(capacity, |keys| self.hash_of_keys(keys));
            }
        });
    }

    /// The sessions of a user, unordered.
    pub fn sessions(&self, user: &User) -> Vec<Arc<Session>> {
        let hash = self.hash(&user.app_id, &user.openid);
        self.in_part(hash, |part| {
            part.sessions
                .iter_hash(hash)
                .filter(|session| is_of(session, &user.app_id, &user.openid))
                .cloned()
                .collect()
        })
    }

    /// The session keys of a user with a live session, newest login first.
    pub fn session_keys(&self, user: &User, is_live: impl Fn(&Session) -> bool) -> Vec<SessionKey> {
        let hash = self.hash(&user.app_id, &user.openid);
        self.in_part(hash, |part| {
            let found = part.keys.find(hash, |keys| keys.user == *user);
            let found = found.filter(|_| part.has(hash, user, is_live));
            found.map(|found| found.keys.newest_first()).unwrap_or_default()
        })
    }

    /// Makes a key the newest one of a user with a live session.
    pub fn replace_session_key(
        &self,
        user: &User,
        key: LoginKey,
        is_live: impl Fn(&Session) -> bool,
    ) {
        let hash = self.hash(&user.app_id, &user.openid);
        self.in_part(hash, |part| {
            if part.has(hash, user, is_live)
                && let Some(keys) = self.keys(part, hash, user)
            {
                keys.keep_as_newest(key);
            }
        });
    }

    /// Keeps session keys of earlier logins of a user, newest first, if it has a live session.
    pub fn restore_session_keys(
        &self,
        user: &User,
        keys: Vec<LoginKey>,
        is_live: impl Fn(&Session) -> bool,
    ) {
        let hash = self.hash(&user.app_id, &user.openid);
        self.in_part(hash, |part| {
            if part.has(hash, user, is_live)
                && let Some(kept) = self.keys(part, hash, user)
            {
                // Of two with the same time, the later one counts as newer.
                keys.into_iter().rev().for_each(|key| kept.keep(key));
            }
        });
    }

    /// Calls `visit` with all sessions, those of one part at a time, and without a lock.
    pub fn visit(&self, mut visit: impl FnMut(Vec<Arc<Session>>)) {
        for part in &self.parts {
            let sessions: Vec<_> = part.lock().sessions.iter().cloned().collect();
            visit(sessions);
        }
    }

    /// Calls `visit` with each user's session keys, newest login first, without a lock.
    pub fn visit_session_keys(&self, mut visit: impl FnMut(User, Vec<LoginKey>)) {
        for part in &self.parts {
            let copy = |keys: &KeysOfUser| (keys.user.clone(), keys.keys.to_vec());
            let kept: Vec<_> = part.lock().keys.iter().map(|keys| copy(keys)).collect();
            for (user, keys) in kept {
                visit(user, keys);
            }
        }
    }

    /// Removes all session keys, after it was decided that none are kept any more. A login that
    /// does not know of that yet adds its key before its part is locked here, or sees the decision.
    pub fn wipe_session_keys(&self) {
        for part in &self.parts {
            part.lock().keys = HashTable::new();
        }
    }

    /// The kept session keys of a user, to add one; `None` if session keys are not kept.
    fn keys<'a>(&self, part: &'a mut Part, hash: u64, user: &User) -> Option<&'a mut UserKeys> {
        if !self.keeps_session_keys.load(Ordering::Acquire) {
            return None;
        }
        let hash_of = |keys: &_| self.hash_of_keys(keys);
        let entry = part.keys.entry(hash, |keys| keys.user == *user, |keys| hash_of(keys));
        let new = || Box::new(KeysOfUser { user: user.clone(), keys: UserKeys::default() });
        Some(&mut entry.or_insert_with(new).into_mut().keys)
    }

    /// Finds the users of an app for whom `matches` is true, once for each of their sessions that
    /// match. Searches all sessions, one part at a time, and calls `matches` without a lock because
    /// it is slow.
    pub fn find(
        &self,
        app_id: &AppId,
        matches: &impl Fn(&OpenId, Option<&UserId>) -> bool,
    ) -> Vec<KnownUser> {
        let found = self.parts.iter().flat_map(|part| {
            let part = part.lock();
            let is_of_app = |session: &&Arc<Session>| session.identity.app_id == *app_id;
            let sessions: Vec<_> = part.sessions.iter().filter(is_of_app).cloned().collect();
            drop(part);
            sessions.into_iter().filter_map(|session| {
                let Identity { openid, user_id, .. } = &session.identity;
                let user = || session.identity.user();
                matches(openid, user_id.as_ref())
                    .then(|| KnownUser { user: user(), user_id: user_id.clone() })
            })
        });
        found.collect()
    }

    /// Users with session keys.
    #[cfg(test)]
    pub fn users_with_keys(&self) -> usize {
        self.parts.iter().map(|part| part.lock().keys.len()).sum()
    }

    fn hash_of(&self, session: &Session) -> u64 {
        let Identity { app_id, openid, .. } = &session.identity;
        self.hash(app_id, openid)
    }

    fn hash_of_keys(&self, keys: &KeysOfUser) -> u64 {
        self.hash(&keys.user.app_id, &keys.user.openid)
    }

    fn hash(&self, app_id: &AppId, openid: &OpenId) -> u64 {
        self.hashing.hash_one((app_id, openid))
    }

    fn in_part<T: Default>(&self, hash: u64, operation: impl FnOnce(&mut Part) -> T) -> T {
        // The table itself uses the lower bits, and some of the upper ones.
        let index = usize::try_from(hash >> 32).unwrap_or_default() % PARTS;
        let Some(part) = self.parts.get(index) else { return T::default() };
        operation(&mut part.lock())
    }
}

impl Part {
    /// Whether a user has a session that meets a condition.
    fn has(&self, hash: u64, user: &User, condition: impl Fn(&Session) -> bool) -> bool {
        let mut sessions = self.sessions.iter_hash(hash);
        sessions.any(|session| is_of(session, &user.app_id, &user.openid) && condition(session))
    }

    /// Removes the session keys of a user.
    fn wipe(&mut self, hash: u64, user: &User) {
        if let Ok(entry) = self.keys.find_entry(hash, |keys| keys.user == *user) {
            entry.remove();
        }
    }
}

fn is_of(session: &Session, app_id: &AppId, openid: &OpenId) -> bool {
    session.identity.openid == *openid && session.identity.app_id == *app_id
}
