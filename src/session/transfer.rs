//! All sessions, on their way out of a process and into the next one.
//!
//! They leave by a snapshot or to the other process of an upgrade, while requests go on. On their
//! way in they meet changes that are newer than they are: those of the journal, and those that the
//! other process tells meanwhile. A [`Restoring`] remembers these until everything has come in.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::entry::{BlockEntry, Change, Entry, KeysEntry, SessionEntry};
use super::{Backend, DigestHash, KnownUser, LoginKey, Removal, Session, Sessions};
use crate::identity::User;
use crate::identity::token::TokenDigest;
use crate::telemetry::metrics::RestoredFrom;

/// The most changes of the other process that are remembered while sessions come in.
const MOST: usize = 1 << 20;

/// How many have come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    pub sessions: u64,
    /// Sessions that had ended by time.
    pub expired: u64,
    pub blocks: u64,
    /// Users with session keys.
    pub users_with_keys: u64,
}

/// So many changes came in meanwhile that some were not remembered.
#[derive(Debug, thiserror::Error)]
#[error("too many changes while sessions were taken over")]
pub struct TooManyChanges;

/// Sessions that are coming in. If it is dropped before [`Restoring::finish`], those that have come
/// in remain.
pub struct Restoring {
    sessions: Sessions,
    source: RestoredFrom,
    restored: Restored,
}

/// Changes that are newer than what comes in.
#[derive(Default)]
pub(super) struct Meanwhile {
    revoked: HashSet<TokenDigest, DigestHash>,
    /// Users that were blocked or unblocked.
    users: HashSet<User>,
    /// Keys of users whose sessions may not have come in yet.
    keys: Vec<(User, LoginKey)>,
    /// How many more changes are remembered.
    room: usize,
    has_more: bool,
}

impl Meanwhile {
    fn note(&mut self, change: &Change) {
        let is_needed = matches!(
            change,
            Change::Revoked(_)
                | Change::Blocked(_)
                | Change::Unblocked(_)
                | Change::KeyReplaced { .. }
        );
        let Some(room) = self.room.checked_sub(usize::from(is_needed)) else {
            self.has_more = true;
            return;
        };
        self.room = room;
        match change {
            Change::Revoked(digest) => {
                self.revoked.insert(*digest);
            }
            Change::Blocked(BlockEntry { known: KnownUser { user, .. }, .. })
            | Change::Unblocked(user) => {
                self.users.insert(user.clone());
            }
            Change::KeyReplaced { user, key } => self.keys.push((user.clone(), key.clone())),
            Change::Created { .. } | Change::Used(_) | Change::WipedKeys | Change::Removed(_) => {}
        }
    }
}

/// `None`: nothing is coming in.
pub(super) type MeanwhileState = Arc<Mutex<Option<Meanwhile>>>;

impl Sessions {
    /// Begins to take sessions of another process. Changes that are newer than these, and come in
    /// by [`Sessions::apply`] until the end, have precedence.
    pub fn begin_restoring(&self, source: RestoredFrom) -> Restoring {
        let room = match source {
            // The size of the journal is the limit.
            RestoredFrom::Snapshot => usize::MAX,
            RestoredFrom::Upgrade => MOST,
        };
        *self.meanwhile.lock() = Some(Meanwhile { room, ..Meanwhile::default() });
        Restoring { sessions: self.clone(), source, restored: Restored::default() }
    }

    pub(super) fn note_meanwhile(&self, change: &Change) {
        if let Some(meanwhile) = &mut *self.meanwhile.lock() {
            meanwhile.note(change);
        }
    }

    /// The last uses of the sessions that were used since a time of the clock. Searches all
    /// sessions: a million take about a tenth of a second.
    pub fn used_since(&self, since: u64) -> Vec<(TokenDigest, u64)> {
        let mut found = Vec::new();
        if let Backend::Memory(memory) = &self.backend {
            memory.visit(|sessions| {
                let all = sessions.iter().map(|session| (*session.digest(), session.last_used()));
                found.extend(all.filter(|(_, last_used)| *last_used >= since));
            });
        }
        found
    }

    /// Gives all blocks, sessions and session keys: the sessions that were used last come last, so
    /// that a full store evicts the same ones later. Takes no lock for long. What begins or ends
    /// meanwhile may or may not be given.
    ///
    /// # Errors
    /// The first error of `give`, which ends the call.
    pub fn export<E>(&self, mut give: impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
        let Backend::Memory(memory) = &self.backend else { return Ok(()) };
        for (known, until) in memory.blocks.all(self.clock.now_millis()) {
            give(Entry::Block(BlockEntry { known, until }))?;
        }
        let mut listed: Vec<(u64, Arc<Session>)> = Vec::new();
        memory.visit(|sessions| {
            listed.extend(sessions.into_iter().map(|session| (session.last_used(), session)));
        });
        listed.sort_unstable_by_key(|(last_used, _)| *last_used);
        for (_, session) in listed {
            if self.is_live(&session) {
                give(Entry::Session(entry_of(&session)))?;
            }
        }
        let mut outcome = Ok(());
        memory.visit_session_keys(|user, keys| {
            if outcome.is_ok() {
                outcome = give(Entry::Keys(KeysEntry { user, keys }));
            }
        });
        outcome
    }
}

impl Restoring {
    /// Takes an entry, whose times are this process's clock's. Session keys must come after the
    /// sessions of their user.
    pub fn insert(&mut self, entry: Entry) {
        let sessions = self.sessions.clone();
        let Backend::Memory(memory) = &sessions.backend else { return };
        match entry {
            Entry::Session(entry) => self.insert_session(&Arc::new(restored(entry))),
            Entry::Block(BlockEntry { known, until }) => {
                let now = sessions.clock.now_millis();
                // The lock is held, so that a change of this block comes before or after.
                let meanwhile = sessions.meanwhile.lock();
                let is_newer = |all: &Meanwhile| all.users.contains(&known.user);
                if now < until
                    && !meanwhile.as_ref().is_some_and(is_newer)
                    && memory.blocks.set(known, until, now)
                {
                    self.restored.blocks += 1;
                }
            }
            Entry::Keys(KeysEntry { user, keys }) => {
                memory.restore_session_keys(&user, keys, |session| sessions.is_live(session));
                self.restored.users_with_keys += 1;
            }
        }
    }

    pub(super) fn insert_session(&mut self, session: &Arc<Session>) {
        let sessions = &self.sessions;
        let Backend::Memory(memory) = &sessions.backend else { return };
        let digest = *session.digest();
        let is_revoked = || {
            let meanwhile = sessions.meanwhile.lock();
            meanwhile.as_ref().is_some_and(|all| all.revoked.contains(&digest))
        };
        if is_revoked() {
            return;
        }
        if !sessions.is_live(session) {
            if let Some(durable) = &sessions.durable {
                durable.ended.add(&digest);
            }
            self.restored.expired += 1;
            return;
        }
        if memory.restore(session, None, self.source, |session| sessions.is_live(session)) {
            self.restored.sessions += 1;
        }
        if is_revoked() {
            memory.remove(&digest, Removal::Revoked);
        }
    }

    /// Everything has come in.
    ///
    /// # Errors
    /// When ended sessions may have come back.
    pub fn finish(self) -> Result<Restored, TooManyChanges> {
        let meanwhile = self.sessions.meanwhile.lock().take().unwrap_or_default();
        let Backend::Memory(memory) = &self.sessions.backend else { return Ok(self.restored) };
        for (user, key) in meanwhile.keys {
            memory.replace_session_key(&user, key, |session| self.sessions.is_live(session));
        }
        if meanwhile.has_more { Err(TooManyChanges) } else { Ok(self.restored) }
    }
}

/// A session as it is written.
pub(super) fn entry_of(session: &Session) -> SessionEntry {
    SessionEntry {
        digest: *session.digest(),
        identity: session.identity.clone(),
        client: session.client,
        created: session.created_at_millis,
        ends: session.ends_at_millis,
        used: session.last_used(),
    }
}

/// A session that was written.
pub(super) fn restored(entry: SessionEntry) -> Session {
    let SessionEntry { digest, identity, client, created, ends, used } = entry;
    Session::new(digest, identity, client, created, ends, used)
}
