//! All sessions, on their way out of a process and into the next one.
//!
//! They leave by a snapshot or to the other process of an upgrade, while requests go on. On their
//! way in they meet changes that are newer than they are: those of the journal, and those that the
//! other process tells meanwhile. A [`Restoring`] remembers these until everything has come in.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::entry::{BlockEntry, Change, Entry, KeysEntry, SessionEntry};
use super::memory::Memory;
use super::parallel::in_parallel;
use super::{Backend, DigestHash, KnownUser, LoginKey, Session, Sessions};
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
    /// They come in last, because their users must have sessions.
    keys: Mutex<Vec<KeysEntry>>,
    restored: Mutex<Restored>,
}

/// Some entries on their way in, with sessions as they will be kept.
#[derive(Default)]
pub struct Incoming {
    sessions: Vec<Arc<Session>>,
    /// Blocks and session keys.
    others: Vec<Entry>,
}

/// Changes that are newer than what comes in.
#[derive(Default)]
pub(super) struct Meanwhile {
    ended: HashSet<TokenDigest, DigestHash>,
    /// Sessions that the other process has told of, so that they do not come in twice.
    created: HashSet<TokenDigest, DigestHash>,
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
        let is_needed = !matches!(change, Change::Used(_) | Change::WipedKeys);
        let Some(room) = self.room.checked_sub(usize::from(is_needed)) else {
            self.has_more = true;
            return;
        };
        self.room = room;
        match change {
            Change::Revoked(digest) | Change::Removed(digest) => {
                self.ended.insert(*digest);
            }
            Change::Created { session, .. } => {
                self.created.insert(session.digest);
            }
            Change::Blocked(BlockEntry { known: KnownUser { user, .. }, .. })
            | Change::Unblocked(user) => {
                self.users.insert(user.clone());
            }
            Change::KeyReplaced { user, key } => self.keys.push((user.clone(), key.clone())),
            Change::Used(_) | Change::WipedKeys => {}
        }
    }
}

/// `None`: nothing is coming in.
pub(super) type MeanwhileState = Arc<RwLock<Option<Meanwhile>>>;

impl Sessions {
    /// Begins to take sessions of another process. Changes that are newer than these, and come in
    /// by [`Sessions::apply`] until the end, have precedence.
    pub fn begin_restoring(&self, source: RestoredFrom) -> Restoring {
        let room = match source {
            // The size of the journal is the limit.
            RestoredFrom::Snapshot => usize::MAX,
            RestoredFrom::Upgrade => MOST,
        };
        *self.meanwhile.write() = Some(Meanwhile { room, ..Meanwhile::default() });
        Restoring {
            sessions: self.clone(),
            source,
            keys: Mutex::default(),
            restored: Mutex::default(),
        }
    }

    /// Called before a change of the other process is applied.
    pub(super) fn note_meanwhile(&self, change: &Change) {
        if let Some(meanwhile) = &mut *self.meanwhile.write() {
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
    pub fn export<E>(&self, give: impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
        self.export_live(give, |_| {})
    }

    /// The same, to the process that takes over. Sessions that have ended by time are not given,
    /// but the last snapshot may have them: they are remembered as ended.
    ///
    /// # Errors
    /// As [`Sessions::export`].
    pub fn hand_over<E>(&self, give: impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
        self.export_live(give, |ended| {
            if let Some(durable) = &self.durable {
                durable.ended.add(ended.digest());
            }
        })
    }

    fn export_live<E>(
        &self,
        mut give: impl FnMut(Entry) -> Result<(), E>,
        has_ended: impl Fn(&Session),
    ) -> Result<(), E> {
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
            } else {
                has_ended(&session);
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

impl Incoming {
    pub fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Session(session) => self.sessions.push(Arc::new(restored_session(session))),
            other => self.others.push(other),
        }
    }
}

impl Restoring {
    /// Takes all that `next` gives, in several threads: some thousand entries at a time, because
    /// changes of the other process wait until they are here. Times are this process's clock's. With
    /// a shared store there is nothing to insert, but all of it is taken.
    ///
    /// # Errors
    /// An error of `next`, which ends the call.
    pub fn insert_all<E: Send>(
        &self,
        next: impl Fn() -> Result<Option<Incoming>, E> + Sync,
    ) -> Result<(), E> {
        in_parallel(|| {
            let Some(incoming) = next()? else { return Ok(false) };
            if let Backend::Memory(memory) = &self.sessions.backend {
                self.insert(memory, incoming);
            }
            Ok(true)
        })
    }

    fn insert(&self, memory: &Memory, incoming: Incoming) {
        let Incoming { sessions, others } = incoming;
        let (clock, mut restored) = (&self.sessions.clock, Restored::default());
        // A change comes before these entries and is noted, or after them and is applied to them.
        let meanwhile = self.sessions.meanwhile.read();
        let Some(meanwhile) = &*meanwhile else { return };
        for session in sessions {
            self.insert_session(memory, meanwhile, &session, &mut restored);
        }
        for entry in others {
            match entry {
                Entry::Block(BlockEntry { known, until }) => {
                    let now = clock.now_millis();
                    if now < until
                        && !meanwhile.users.contains(&known.user)
                        && memory.blocks.set(known, until, now)
                    {
                        restored.blocks += 1;
                    }
                }
                Entry::Keys(keys) => self.keys.lock().push(keys),
                // `Incoming::add` puts them elsewhere.
                Entry::Session(_) => {}
            }
        }
        self.restored.lock().add(restored);
    }

    fn insert_session(
        &self,
        memory: &Memory,
        meanwhile: &Meanwhile,
        session: &Arc<Session>,
        restored: &mut Restored,
    ) {
        let (sessions, digest) = (&self.sessions, session.digest());
        if meanwhile.ended.contains(digest) || meanwhile.created.contains(digest) {
            return;
        }
        if !sessions.is_live(session) {
            if let Some(durable) = &sessions.durable {
                durable.ended.add(digest);
            }
            restored.expired += 1;
        } else if memory.restore(session, self.source, |session| sessions.is_live(session)) {
            restored.sessions += 1;
        }
    }

    /// Everything has come in.
    ///
    /// # Errors
    /// When ended sessions may have come back.
    pub fn finish(self) -> Result<Restored, TooManyChanges> {
        let Self { sessions, keys, restored, .. } = self;
        let mut restored = restored.into_inner();
        let Backend::Memory(memory) = &sessions.backend else { return Ok(restored) };
        for KeysEntry { user, keys } in keys.into_inner() {
            memory.restore_session_keys(&user, keys, |session| sessions.is_live(session));
            restored.users_with_keys += 1;
        }
        // Held, so that a key that is told now comes after these.
        let mut state = sessions.meanwhile.write();
        let meanwhile = state.take().unwrap_or_default();
        for (user, key) in meanwhile.keys {
            memory.replace_session_key(&user, key, |session| sessions.is_live(session));
        }
        drop(state);
        if meanwhile.has_more { Err(TooManyChanges) } else { Ok(restored) }
    }
}

impl Restored {
    fn add(&mut self, other: Self) {
        let Self { sessions, expired, blocks, users_with_keys } = other;
        self.sessions += sessions;
        self.expired += expired;
        self.blocks += blocks;
        self.users_with_keys += users_with_keys;
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
pub(super) fn restored_session(entry: SessionEntry) -> Session {
    let SessionEntry { digest, identity, client, created, ends, used } = entry;
    Session::new(digest, identity, client, created, ends, used)
}
