//! Records with a short life, each used by one flow: callbacks, tickets, scans.
//!
//! They are kept in the store of the sessions, so that what begins on one gateway can end on
//! another. A record is found by an id that its holder knows; the store gets only the id's digest,
//! and the record sealed for it. Each change is one atomic step: of several requests that take or
//! replace a record at the same time, one succeeds. Limits of the records of one user are counted
//! in one step, too.
//!
//! Changes are not confirmed by the replicas of a shared store, as logouts are. After a failover, a
//! record that was just made may be missing, and one that was just taken or replaced may be back as
//! it was, for the rest of its life. So a ticket could serve a second request within its 30
//! seconds, on the same path and while its session is live. A tombstone would be lost with the same
//! write. If each use waited for all replicas, it would be slow, and would fail while one of them
//! hangs.

pub(super) mod operation;
pub(super) mod owned;

use std::sync::Arc;
use std::time::Duration;

use sha2::Sha256;
use zeroize::Zeroizing;

use self::operation::{Action, Operation, Outcome};
pub use self::owned::Frozen;
use self::owned::OwnedRecords;
use super::StoreError;
use super::redis::Redis;
use crate::clock::Clock;
use crate::handover::fields::{Malformed, Writer};
use crate::handover::peer::Peer;
use crate::identity::User;

/// The longest life of a record that counts towards a limit.
pub const LONGEST_COUNTED: Duration = Duration::from_secs(600);

/// SHA-256 of an id.
pub(super) type Digest = [u8; 32];

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// The outcome of a login by redirect.
    Callback,
    Ticket,
    Scan,
}

impl RecordKind {
    pub(super) const COUNT: usize = 3;

    pub(super) const ALL: [Self; Self::COUNT] = [Self::Callback, Self::Ticket, Self::Scan];

    /// In what is told to another process.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Callback => 1,
            Self::Ticket => 2,
            Self::Scan => 3,
        }
    }

    pub(super) fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// In the names of keys.
    pub(super) fn letter(self) -> char {
        match self {
            Self::Callback => 'c',
            Self::Ticket => 't',
            Self::Scan => 's',
        }
    }
}

/// A record as it was read.
#[derive(Clone)]
pub struct Record {
    pub value: Arc<Zeroizing<Vec<u8>>>,
    pub(super) version: Version,
}

/// Changes with each write.
#[derive(Clone)]
pub(super) enum Version {
    Memory(u64),
    /// What is stored.
    Shared(Arc<[u8]>),
}

/// The records of a process, or of all gateways with a shared store. Clones share them.
#[derive(Clone)]
pub struct Records(Backend);

#[derive(Clone)]
enum Backend {
    Memory(Arc<OwnedRecords>),
    Redis(Redis),
}

impl Records {
    pub(super) fn in_memory(clock: Clock, peer: Peer) -> Self {
        Self(Backend::Memory(Arc::new(OwnedRecords::new(clock, peer))))
    }

    pub(super) fn shared(redis: Redis) -> Self {
        Self(Backend::Redis(redis))
    }

    /// Adds a record unless there is one with this id. Returns whether there was none.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn insert(
        &self,
        kind: RecordKind,
        id: &str,
        value: &[u8],
        life: Duration,
    ) -> Result<bool, StoreError> {
        let digest = digest(id);
        match &self.0 {
            Backend::Memory(memory) => {
                let action = Action::Insert { value, life };
                Ok(run(memory, kind, digest, action).await?.is_done)
            }
            Backend::Redis(redis) => redis.insert_record(kind, &digest, value, life).await,
        }
    }

    /// The record with this id.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn get(&self, kind: RecordKind, id: &str) -> Result<Option<Record>, StoreError> {
        let digest = digest(id);
        match &self.0 {
            Backend::Memory(memory) => Ok(run(memory, kind, digest, Action::Get).await?.record),
            Backend::Redis(redis) => redis.get_record(kind, &digest).await,
        }
    }

    /// Removes the record with this id, and returns it.
    ///
    /// # Errors
    /// When the store is unavailable. The record may be removed nevertheless.
    pub async fn take(&self, kind: RecordKind, id: &str) -> Result<Option<Record>, StoreError> {
        let digest = digest(id);
        match &self.0 {
            Backend::Memory(memory) => Ok(run(memory, kind, digest, Action::Take).await?.record),
            Backend::Redis(redis) => redis.take_record(kind, &digest).await,
        }
    }

    /// Replaces a record that was read, unless it has changed since. Returns whether it was
    /// replaced. It lives for `life` from now on.
    ///
    /// # Errors
    /// When the store is unavailable. The record may be replaced nevertheless.
    pub async fn replace(
        &self,
        kind: RecordKind,
        id: &str,
        read: &Record,
        value: &[u8],
        life: Duration,
    ) -> Result<bool, StoreError> {
        let digest = digest(id);
        match (&self.0, &read.version) {
            (Backend::Memory(memory), Version::Memory(version)) => {
                let action = Action::Replace { read: *version, value, life };
                Ok(run(memory, kind, digest, action).await?.is_done)
            }
            (Backend::Redis(redis), Version::Shared(stored)) => {
                redis.replace_record(kind, &digest, stored, value, life).await
            }
            // It was read from another store.
            _ => Ok(false),
        }
    }

    /// Removes the record with this id.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn remove(&self, kind: RecordKind, id: &str) -> Result<(), StoreError> {
        self.take(kind, id).await.map(|_| ())
    }

    /// Counts the record with this id for its user, before it is inserted, for its `life`, at
    /// most `LONGEST_COUNTED`. If the user has `most` of the kind already, the inner error is the
    /// time until one of them ends.
    ///
    /// # Errors
    /// When the store is unavailable. The record may be counted nevertheless.
    pub async fn count(
        &self,
        kind: RecordKind,
        user: &User,
        most: usize,
        id: &str,
        life: Duration,
    ) -> Result<Result<(), Duration>, StoreError> {
        let (digest, life) = (digest(id), life.min(LONGEST_COUNTED));
        match &self.0 {
            Backend::Memory(memory) => {
                let action = Action::Count { user: user.clone(), most, life };
                let Outcome { is_done, wait, .. } = run(memory, kind, digest, action).await?;
                Ok(if is_done { Ok(()) } else { Err(wait) })
            }
            Backend::Redis(redis) => redis.count_record(kind, user, most, &digest, life).await,
        }
    }

    /// The record with this id no longer counts for its user.
    ///
    /// # Errors
    /// When the store is unavailable. Then it counts to the end of its life.
    pub async fn uncount(&self, kind: RecordKind, user: &User, id: &str) -> Result<(), StoreError> {
        let digest = digest(id);
        match &self.0 {
            Backend::Memory(memory) => {
                let action = Action::Uncount { user: user.clone() };
                run(memory, kind, digest, action).await.map(|_| ())
            }
            Backend::Redis(redis) => redis.uncount_record(kind, user, &digest).await,
        }
    }
}

impl Records {
    /// From now on operations wait, until this is dropped or another process has the records. With
    /// a shared store nothing waits: the store has the records.
    pub fn freeze(&self) -> Frozen<'_> {
        match &self.0 {
            Backend::Memory(memory) => memory.freeze(),
            Backend::Redis(_) => Frozen::nothing(),
        }
    }

    /// Gives the records in memory to another process, in pieces of about 256 KiB. They must be
    /// frozen.
    pub fn export(&self, give: impl FnMut(&mut Writer)) {
        if let Backend::Memory(memory) = &self.0 {
            memory.export(give);
        }
    }

    /// Takes records of another process.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn import(&self, piece: &[u8]) -> Result<(), Malformed> {
        match &self.0 {
            Backend::Memory(memory) => memory.import(piece),
            Backend::Redis(_) => Ok(()),
        }
    }

    /// Runs an operation for the other process, once this one has the records, and returns the
    /// answer. Empty if the question cannot be read.
    pub async fn answer(&self, question: &[u8]) -> Vec<u8> {
        match &self.0 {
            Backend::Memory(memory) => memory.answer(question).await,
            Backend::Redis(_) => Vec::new(),
        }
    }
}

async fn run(
    memory: &OwnedRecords,
    kind: RecordKind,
    digest: Digest,
    action: Action<'_>,
) -> Result<Outcome, StoreError> {
    memory.run(Operation { kind, digest, action }).await
}

fn digest(id: &str) -> Digest {
    <Sha256 as sha2::Digest>::digest(id).into()
}

#[cfg(test)]
mod tests;
