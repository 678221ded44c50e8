//! Records with a short life in the memory of a process.
//!
//! Each kind has memory of its own, so that no feature can push out the records of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use zeroize::Zeroizing;

use crate::clock::{Clock, millis};
use crate::handover::fields::{Malformed, Writer, read};
use crate::identity::{AppId, OpenId, User};
use crate::session::records::{Digest, LONGEST_COUNTED, Record, RecordKind, Version};

/// Bytes of all records of a kind: about 100,000 of the usual length. Beyond that the least
/// recently used one is dropped.
const CAPACITY: u64 = 64 << 20;

/// Approximate memory of a record besides its value, in bytes.
const OVERHEAD: usize = 400;

/// Users whose records are counted. Beyond that the least recently used count is dropped.
const MOST_USERS: u64 = 100_000;

/// Numbers of the fields of handed-over records.
mod field {
    pub const RECORD: u32 = 1;
    pub const COUNTED: u32 = 2;

    pub const KIND: u32 = 1;
    pub const DIGEST: u32 = 2;
    pub const VALUE: u32 = 3;
    pub const VERSION: u32 = 4;
    /// In milliseconds of the clock.
    pub const ENDS_AT: u32 = 5;
    pub const APP_ID: u32 = 6;
    pub const OPENID: u32 = 7;
}

/// A handed-over piece has about as many bytes.
const PIECE: usize = 256 << 10;

/// The records of a process.
pub struct MemoryRecords {
    kinds: [Cache<Digest, Kept>; RecordKind::COUNT],
    counts: Cache<(RecordKind, User), Arc<[Counted]>>,
    versions: AtomicU64,
    clock: Clock,
}

#[derive(Clone)]
struct Kept {
    value: Arc<Zeroizing<Vec<u8>>>,
    version: u64,
    life: Duration,
    /// In milliseconds of the clock.
    ends_at: u64,
}

/// A record that counts towards the limit of its user.
#[derive(Clone, Copy)]
struct Counted {
    record: Digest,
    ends_at: u64,
}

/// When memory is freed, in real time.
struct Life;

impl Expiry<Digest, Kept> for Life {
    fn expire_after_create(&self, _: &Digest, kept: &Kept, _: Instant) -> Option<Duration> {
        Some(kept.life)
    }

    fn expire_after_update(
        &self,
        _: &Digest,
        kept: &Kept,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(kept.life)
    }
}

impl MemoryRecords {
    pub fn new(clock: Clock) -> Self {
        Self::with_capacity(CAPACITY, clock)
    }

    fn with_capacity(capacity: u64, clock: Clock) -> Self {
        let weight = |_: &Digest, kept: &Kept| {
            u32::try_from(kept.value.len() + OVERHEAD).unwrap_or(u32::MAX)
        };
        let kind = |_| {
            Cache::builder()
                .max_capacity(capacity)
                .weigher(weight)
                .eviction_policy(EvictionPolicy::lru())
                .expire_after(Life)
                .build()
        };
        let counts = Cache::builder()
            .max_capacity(MOST_USERS)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(LONGEST_COUNTED)
            .build();
        Self { kinds: std::array::from_fn(kind), counts, versions: AtomicU64::new(0), clock }
    }

    /// Adds a record unless there is one. Returns whether there was none.
    pub fn insert(&self, kind: RecordKind, digest: Digest, value: &[u8], life: Duration) -> bool {
        let (now, kept) = (self.clock.now_millis(), self.kept(value, life));
        let result = self.of(kind).entry(digest).and_compute_with(|entry| match entry {
            Some(entry) if now < entry.value().ends_at => Op::Nop,
            _ => Op::Put(kept),
        });
        matches!(result, CompResult::Inserted(_) | CompResult::ReplacedWith(_))
    }

    pub fn get(&self, kind: RecordKind, digest: &Digest) -> Option<Record> {
        self.live(self.of(kind).get(digest))
    }

    pub fn take(&self, kind: RecordKind, digest: &Digest) -> Option<Record> {
        self.live(self.of(kind).remove(digest))
    }

    /// Replaces a record if it still has the version `read`. Returns whether it had.
    pub fn replace(
        &self,
        kind: RecordKind,
        digest: Digest,
        read: u64,
        value: &[u8],
        life: Duration,
    ) -> bool {
        let (now, kept) = (self.clock.now_millis(), self.kept(value, life));
        let result = self.of(kind).entry(digest).and_compute_with(|entry| match entry {
            Some(entry) if now < entry.value().ends_at && entry.value().version == read => {
                Op::Put(kept)
            }
            _ => Op::Nop,
        });
        matches!(result, CompResult::ReplacedWith(_))
    }

    /// Counts a record of a user. If the user has `most` already: the time until one of them ends.
    pub fn count(
        &self,
        kind: RecordKind,
        user: &User,
        most: usize,
        record: Digest,
        life: Duration,
    ) -> Result<(), Duration> {
        let now = self.clock.now_millis();
        let ends_at = now.saturating_add(millis(life));
        let mut counted = Ok(());
        self.counts.entry((kind, user.clone())).and_compute_with(|entry| {
            let before = entry.as_ref().map_or(&[][..], |entry| entry.value());
            let mut valid: Vec<_> =
                before.iter().filter(|one| now < one.ends_at).copied().collect();
            if valid.len() >= most {
                let next = valid.iter().map(|one| one.ends_at).min().unwrap_or(now);
                counted = Err(Duration::from_millis(next.saturating_sub(now)));
                return Op::Nop;
            }
            valid.push(Counted { record, ends_at });
            Op::Put(valid.into())
        });
        counted
    }

    /// The record of a user no longer counts.
    pub fn uncount(&self, kind: RecordKind, user: &User, record: &Digest) {
        self.counts.entry((kind, user.clone())).and_compute_with(|entry| {
            let Some(entry) = entry else { return Op::Nop };
            let others = entry.value().iter().filter(|one| one.record != *record).copied();
            let others: Arc<[Counted]> = others.collect();
            if others.is_empty() { Op::Remove } else { Op::Put(others) }
        });
    }

    /// Gives all records and counts to another process, in pieces of about 256 KiB.
    pub fn export(&self, mut give: impl FnMut(&mut Writer)) {
        let now = self.clock.now_millis();
        let mut piece = Writer::new();
        let mut add = |number, one: &Writer| {
            piece.list(number, one);
            if piece.as_bytes().len() >= PIECE {
                give(&mut piece);
                piece.clear();
            }
        };
        for kind in RecordKind::ALL {
            let live = self.of(kind).iter().filter(|(_, kept)| now < kept.ends_at);
            for (digest, kept) in live {
                let mut record = Writer::new();
                record
                    .bytes(field::KIND, &[kind.number()])
                    .bytes(field::DIGEST, &*digest)
                    .bytes(field::VALUE, &kept.value)
                    .u64(field::VERSION, kept.version)
                    .u64(field::ENDS_AT, kept.ends_at);
                add(field::RECORD, &record);
            }
        }
        for (key, counted) in &self.counts {
            let (kind, user) = &*key;
            for one in counted.iter().filter(|one| now < one.ends_at) {
                let mut count = Writer::new();
                count
                    .bytes(field::KIND, &[kind.number()])
                    .bytes(field::DIGEST, &one.record)
                    .u64(field::ENDS_AT, one.ends_at)
                    .text(field::APP_ID, user.app_id.as_str())
                    .text(field::OPENID, user.openid.as_str());
                add(field::COUNTED, &count);
            }
        }
        if !piece.as_bytes().is_empty() {
            give(&mut piece);
        }
    }

    /// Takes records and counts of another process.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn import(&self, piece: &[u8]) -> Result<(), Malformed> {
        for field in read(piece) {
            let field = field?;
            if matches!(field.number, field::RECORD | field::COUNTED) {
                self.import_one(field.number == field::COUNTED, field.value)?;
            }
        }
        Ok(())
    }

    fn import_one(&self, is_count: bool, list: &[u8]) -> Result<(), Malformed> {
        let (mut kind, mut digest, mut value, mut version) = (None, None, None, None);
        let (mut ends_at, mut app_id, mut openid) = (None, None, None);
        for field in read(list) {
            let field = field?;
            match field.number {
                field::KIND => kind = field.array().map(|[kind]| kind),
                field::DIGEST => digest = field.array(),
                field::VALUE => value = Some(Arc::new(Zeroizing::new(field.value.to_vec()))),
                field::VERSION => version = field.u64(),
                field::ENDS_AT => ends_at = field.u64(),
                field::APP_ID => app_id = field.text().and_then(AppId::parse),
                field::OPENID => openid = field.text().and_then(OpenId::parse),
                _ => {}
            }
        }
        let (Some(kind), Some(digest), Some(ends_at)) = (kind, digest, ends_at) else {
            return Err(Malformed);
        };
        // A kind of a newer program has no use here.
        let Some(kind) = RecordKind::numbered(kind) else { return Ok(()) };
        let life = ends_at.saturating_sub(self.clock.now_millis());
        let life = Duration::from_millis(life);
        if is_count {
            let (Some(app_id), Some(openid)) = (app_id, openid) else { return Err(Malformed) };
            let user = User { app_id, openid };
            // The limit was checked there.
            let _ = self.count(kind, &user, usize::MAX, digest, life);
        } else {
            let (Some(value), Some(version)) = (value, version) else { return Err(Malformed) };
            // Versions that are given here from now on are others.
            self.versions.fetch_max(version.saturating_add(1), Ordering::Relaxed);
            self.of(kind).insert(digest, Kept { value, version, life, ends_at });
        }
        Ok(())
    }

    /// Drops all records and counts.
    pub fn clear(&self) {
        // One by one: moka invalidates all by the time at which they were written, roughly.
        for kind in &self.kinds {
            kind.iter().for_each(|(digest, _)| kind.invalidate(&*digest));
        }
        self.counts.iter().for_each(|(key, _)| self.counts.invalidate(&*key));
    }

    fn of(&self, kind: RecordKind) -> &Cache<Digest, Kept> {
        let [callbacks, tickets, scans] = &self.kinds;
        match kind {
            RecordKind::Callback => callbacks,
            RecordKind::Ticket => tickets,
            RecordKind::Scan => scans,
        }
    }

    fn kept(&self, value: &[u8], life: Duration) -> Kept {
        let version = self.versions.fetch_add(1, Ordering::Relaxed);
        let value = Arc::new(Zeroizing::new(value.to_vec()));
        let ends_at = self.clock.now_millis().saturating_add(millis(life));
        Kept { value, version, life, ends_at }
    }

    fn live(&self, kept: Option<Kept>) -> Option<Record> {
        let kept = kept.filter(|kept| self.clock.now_millis() < kept.ends_at)?;
        Some(Record { value: kept.value, version: Version::Memory(kept.version) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(30);

    /// A full kind drops its own records, and no others.
    #[test]
    fn kinds_do_not_push_out_each_other() {
        let records = MemoryRecords::with_capacity(10_000, Clock::manual());
        assert!(records.insert(RecordKind::Callback, [0; 32], b"kept", LIFE));
        for number in 0..100 {
            assert!(records.insert(RecordKind::Ticket, [number; 32], &[0; 600], LIFE));
            records.of(RecordKind::Ticket).run_pending_tasks();
        }
        let tickets = (0..100).filter(|n| records.get(RecordKind::Ticket, &[*n; 32]).is_some());
        assert_eq!(tickets.count(), 10);
        assert!(records.get(RecordKind::Ticket, &[99; 32]).is_some());
        let callback = records.get(RecordKind::Callback, &[0; 32]).unwrap();
        assert_eq!(callback.value.as_slice(), b"kept");
    }
}
