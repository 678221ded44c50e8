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

use std::sync::Arc;
use std::time::Duration;

use sha2::Sha256;
use zeroize::Zeroizing;

use super::StoreError;
use super::memory::records::MemoryRecords;
use super::redis::Redis;
use crate::clock::Clock;
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
    Memory(Arc<MemoryRecords>),
    Redis(Redis),
}

impl Records {
    pub(super) fn in_memory(clock: Clock) -> Self {
        Self(Backend::Memory(Arc::new(MemoryRecords::new(clock))))
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
            Backend::Memory(memory) => Ok(memory.insert(kind, digest, value, life)),
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
            Backend::Memory(memory) => Ok(memory.get(kind, &digest)),
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
            Backend::Memory(memory) => Ok(memory.take(kind, &digest)),
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
                Ok(memory.replace(kind, digest, *version, value, life))
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
            Backend::Memory(memory) => Ok(memory.count(kind, user, most, digest, life)),
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
                memory.uncount(kind, user, &digest);
                Ok(())
            }
            Backend::Redis(redis) => redis.uncount_record(kind, user, &digest).await,
        }
    }
}

fn digest(id: &str) -> Digest {
    <Sha256 as sha2::Digest>::digest(id).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{AppId, OpenId};

    const KIND: RecordKind = RecordKind::Ticket;
    const LIFE: Duration = Duration::from_secs(30);

    fn user(openid: &str) -> User {
        User { app_id: AppId::parse("wx1").unwrap(), openid: OpenId::parse(openid).unwrap() }
    }

    #[tokio::test]
    async fn a_record_lives_by_the_clock_of_the_process() {
        let clock = Clock::manual();
        let records = Records::in_memory(clock.clone());
        assert!(records.insert(KIND, "id", b"one", LIFE).await.unwrap());
        assert!(!records.insert(KIND, "id", b"other", LIFE).await.unwrap());
        assert!(records.get(RecordKind::Scan, "id").await.unwrap().is_none());
        clock.advance(LIFE.checked_sub(Duration::from_millis(1)).unwrap());
        let read = records.get(KIND, "id").await.unwrap().unwrap();
        assert_eq!(read.value.as_slice(), b"one");
        clock.advance(Duration::from_millis(1));
        assert!(records.get(KIND, "id").await.unwrap().is_none());
        assert!(!records.replace(KIND, "id", &read, b"two", LIFE).await.unwrap());
        assert!(records.take(KIND, "id").await.unwrap().is_none());
        assert!(records.insert(KIND, "id", b"other", LIFE).await.unwrap());
    }

    #[tokio::test]
    async fn a_record_is_replaced_only_as_it_was_read_and_taken_once() {
        let records = Records::in_memory(Clock::manual());
        assert!(records.insert(KIND, "id", b"one", LIFE).await.unwrap());
        let read = records.get(KIND, "id").await.unwrap().unwrap();
        assert!(records.replace(KIND, "id", &read, b"two", LIFE).await.unwrap());
        // Equal values, but another write.
        assert!(!records.replace(KIND, "id", &read, b"one", LIFE).await.unwrap());
        assert_eq!(records.take(KIND, "id").await.unwrap().unwrap().value.as_slice(), b"two");
        assert!(records.take(KIND, "id").await.unwrap().is_none());
        assert!(!records.replace(KIND, "id", &read, b"three", LIFE).await.unwrap());
    }

    #[tokio::test]
    async fn the_records_of_a_user_are_counted_while_they_live() {
        let clock = Clock::manual();
        let records = Records::in_memory(clock.clone());
        let count = async |openid: &str, id: &str| {
            records.count(KIND, &user(openid), 2, id, LIFE).await.unwrap()
        };
        assert_eq!(count("o1", "a").await, Ok(()));
        clock.advance(Duration::from_secs(10));
        assert_eq!(count("o1", "b").await, Ok(()));
        assert_eq!(count("o1", "c").await, Err(Duration::from_secs(20)));
        assert_eq!(count("o2", "c").await, Ok(()));
        records.uncount(KIND, &user("o1"), "b").await.unwrap();
        assert_eq!(count("o1", "c").await, Ok(()));
        assert_eq!(count("o1", "d").await, Err(Duration::from_secs(20)));
        clock.advance(Duration::from_secs(20));
        assert_eq!(count("o1", "d").await, Ok(()));
    }
}
