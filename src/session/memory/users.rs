//! Which sessions a user has, when sessions are kept in memory.
//!
//! A hash table of sessions by user, with about 9 to 18 bytes of memory for each session. It is
//! divided into shards, each with its own lock, so that a shard that grows delays few requests. No
//! shard is locked while moka is called: from within its calls, moka reports the sessions that it
//! drops, and handling a report locks a shard.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::identity::{AppId, OpenId, User};
use crate::session::Session;

const PARTS: u64 = 1024;

type Part = HashTable<Arc<Session>>;

pub struct UserIndex {
    parts: Box<[Mutex<Part>]>,
    hashing: RandomState,
}

impl UserIndex {
    pub fn new() -> Self {
        let parts = (0..PARTS).map(|_| Mutex::default()).collect();
        Self { parts, hashing: RandomState::new() }
    }

    /// Adds a session. Returns how many sessions the user now has.
    pub fn add(&self, session: Arc<Session>) -> usize {
        let user = session.identity.user();
        let hash = self.hash(&user.app_id, &user.openid);
        self.in_part(hash, |part| {
            part.insert_unique(hash, session, |session| self.hash_of(session));
            part.iter_hash(hash).filter(|session| is_of(session, &user)).count()
        })
    }

    pub fn remove(&self, session: &Arc<Session>) {
        let hash = self.hash_of(session);
        self.in_part(hash, |part| {
            if let Ok(entry) = part.find_entry(hash, |other| Arc::ptr_eq(other, session)) {
                entry.remove();
            }
            // Frees the memory after a flood of logins.
            if part.len() < part.capacity() / 8 {
                part.shrink_to(part.capacity() / 4, |session| self.hash_of(session));
            }
        });
    }

    /// The sessions of a user, unordered.
    pub fn sessions(&self, user: &User) -> Vec<Arc<Session>> {
        let hash = self.hash(&user.app_id, &user.openid);
        self.in_part(hash, |part| {
            part.iter_hash(hash).filter(|session| is_of(session, user)).cloned().collect()
        })
    }

    /// Finds the user of an app for whom `matches` is true, among those with a session. Searches
    /// all sessions, one part at a time, and calls `matches` without a lock because it is slow.
    pub fn find(&self, app_id: &AppId, matches: &impl Fn(&OpenId) -> bool) -> Option<User> {
        self.parts.iter().find_map(|part| {
            let part = part.lock();
            let is_of_app = |session: &&Arc<Session>| session.identity.app_id == *app_id;
            let sessions: Vec<_> = part.iter().filter(is_of_app).cloned().collect();
            drop(part);
            let found = sessions.iter().find(|session| matches(&session.identity.openid));
            found.map(|session| session.identity.user())
        })
    }

    fn hash_of(&self, session: &Session) -> u64 {
        self.hash(&session.identity.app_id, &session.identity.openid)
    }

    fn hash(&self, app_id: &AppId, openid: &OpenId) -> u64 {
        self.hashing.hash_one((app_id, openid))
    }

    fn in_part<T: Default>(&self, hash: u64, operation: impl FnOnce(&mut Part) -> T) -> T {
        // The table itself uses the lower bits, and some of the upper ones.
        let index = usize::try_from((hash >> 32) % PARTS).unwrap_or_default();
        let Some(part) = self.parts.get(index) else { return T::default() };
        operation(&mut part.lock())
    }
}

fn is_of(session: &Session, user: &User) -> bool {
    session.identity.openid == user.openid && session.identity.app_id == user.app_id
}
