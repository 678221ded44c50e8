//! A rate limit in two processes during an upgrade.
//!
//! The new process gets the buckets of the old one. From then on both may let requests pass: the
//! old one those of connections that it still has. Each notes these uses and tells the other one,
//! which takes them from its own bucket, even if that is empty already: then the client waits
//! longer. So a client that uses both at once may be ahead for some tens of milliseconds, but has
//! no second quota. A request that passes while the buckets are copied may be counted twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use siphasher::sip::SipHasher13;

use super::{RateLimit, nanos, random_hash_key};
use crate::handover::fields::{Malformed, Writer, read};
use crate::session::DigestHash;

/// Numbers of the fields of a handed-over limit.
mod field {
    pub const COUNT: u32 = 1;
    /// In nanoseconds.
    pub const PERIOD: u32 = 2;
    pub const CAPACITY: u32 = 3;
    pub const HASH_KEY: u32 = 4;
    /// Pairs of eight bytes: a hash, and the time at which the bucket is full, in nanoseconds.
    pub const BUCKETS: u32 = 5;
    /// Pairs of eight bytes: a hash, and how many requests have passed since they were last told.
    pub const USES: u32 = 6;
}

/// Pairs in one piece, of 16 bytes each.
const PAIRS_IN_A_PIECE: usize = 16_384;

/// The most buckets whose uses wait to be told. More are not used in the second that this may take;
/// if they are, the other process does not count their uses.
const MOST_NOTED: usize = 1 << 18;

/// Uses that the other process does not know of: requests that have passed here.
#[derive(Default)]
pub(super) struct Noted {
    is_on: AtomicBool,
    /// By the hash of the bucket.
    uses: Mutex<HashMap<u64, u64, DigestHash>>,
}

impl Noted {
    /// Notes a request that has passed. Without another process it costs one read.
    pub fn note(&self, hash: u64) {
        if !self.is_on.load(Ordering::SeqCst) {
            return;
        }
        let mut uses = self.uses.lock();
        if uses.len() < MOST_NOTED || uses.contains_key(&hash) {
            *uses.entry(hash).or_default() += 1;
        }
    }
}

impl RateLimit {
    /// From now on uses are noted, or not any more. While they are, each use is noted, or is in a
    /// later export, or both.
    pub fn note_uses(&self, is_on: bool) {
        self.noted.is_on.store(is_on, Ordering::SeqCst);
        if !is_on {
            *self.noted.uses.lock() = HashMap::default();
        }
    }

    /// Gives the uses that were noted since the last call, in pieces of at most 256 KiB.
    pub fn take_uses(&self, give: impl FnMut(&mut Writer)) {
        let uses = std::mem::take(&mut *self.noted.uses.lock());
        if !uses.is_empty() {
            self.give(field::USES, uses.into_iter(), give);
        }
    }

    /// Gives the limit to another process, in pieces of at most 256 KiB. Full buckets are left out.
    /// There is at least one piece, because the hash key is needed for the uses that follow.
    pub fn export(&self, give: impl FnMut(&mut Writer)) {
        let now = self.now();
        let buckets = self.buckets.iter();
        let buckets = buckets.map(|(hash, full_at)| (*hash, full_at.load(Ordering::SeqCst)));
        self.give(field::BUCKETS, buckets.filter(|(_, full_at)| *full_at > now), give);
    }

    fn give(
        &self,
        number: u32,
        pairs: impl Iterator<Item = (u64, u64)>,
        mut give: impl FnMut(&mut Writer),
    ) {
        let (key0, key1) = self.hash_key.get_or_init(random_hash_key).keys();
        let hash_key = (u128::from(key0) << 64 | u128::from(key1)).to_be_bytes();
        let (mut piece, mut is_given) = (Vec::new(), false);
        let mut finish = |pairs: &mut Vec<u8>| {
            let mut writer = Writer::new();
            writer
                .u64(field::COUNT, u64::from(self.rate.count.get()))
                .u64(field::PERIOD, nanos(self.rate.period))
                .u64(field::CAPACITY, self.capacity)
                .bytes(field::HASH_KEY, &hash_key)
                .bytes(number, pairs);
            pairs.clear();
            give(&mut writer);
        };
        for (hash, value) in pairs {
            piece.extend(hash.to_be_bytes());
            piece.extend(value.to_be_bytes());
            if piece.len() >= PAIRS_IN_A_PIECE * 16 {
                finish(&mut piece);
                is_given = true;
            }
        }
        if !piece.is_empty() || !is_given {
            finish(&mut piece);
        }
    }

    /// Takes a piece from another process: its buckets, or its uses. Returns whether it was taken:
    /// not if the rate or the capacity is another one, or if this limit has a hash key of its own,
    /// because it has counted requests before. A bucket that is here as well lacks both what it
    /// lacked before and what is taken.
    ///
    /// # Errors
    /// When the piece is malformed.
    pub fn import(&self, piece: &[u8]) -> Result<bool, Malformed> {
        let (mut count, mut period, mut capacity, mut key) = (None, None, None, None);
        let (mut buckets, mut uses) = (None, None);
        for field in read(piece) {
            let field = field?;
            match field.number {
                field::COUNT => count = field.u64(),
                field::PERIOD => period = field.u64(),
                field::CAPACITY => capacity = field.u64(),
                field::HASH_KEY => key = field.array().map(u128::from_be_bytes),
                field::BUCKETS => buckets = Some(pairs(field.value)?),
                field::USES => uses = Some(pairs(field.value)?),
                _ => {}
            }
        }
        let (Some(count), Some(period), Some(capacity), Some(key)) = (count, period, capacity, key)
        else {
            return Err(Malformed);
        };
        if buckets.is_none() && uses.is_none() {
            return Err(Malformed);
        }
        let own = (u64::from(self.rate.count.get()), nanos(self.rate.period), self.capacity);
        if own != (count, period, capacity) {
            return Ok(false);
        }
        let (high, low) = split(key.to_be_bytes());
        let given = SipHasher13::new_with_keys(high, low);
        if self.hash_key.get_or_init(|| given).keys() != given.keys() {
            return Ok(false);
        }
        let now = self.now();
        for (hash, full_at) in buckets.into_iter().flatten() {
            // No request has made it later: a wrong clock must not lock a client out.
            let missing = full_at.saturating_sub(now).min(self.whole);
            self.fill_later(hash, missing, now);
        }
        for (hash, uses) in uses.into_iter().flatten() {
            self.fill_later(hash, uses.saturating_mul(self.step).min(self.whole), now);
        }
        Ok(true)
    }

    /// Makes a bucket full later. It lacks at most two whole buckets: what two processes may let
    /// pass.
    fn fill_later(&self, hash: u64, missing: u64, now: u64) {
        if missing == 0 {
            return;
        }
        let latest = now.saturating_add(self.whole).saturating_add(self.whole);
        let bucket = self.buckets.get_with(hash, Arc::default);
        let later = |full_at: u64| Some(full_at.max(now).saturating_add(missing).min(latest));
        let _ = bucket.fetch_update(Ordering::SeqCst, Ordering::Relaxed, later);
    }
}

/// The pairs of a field.
fn pairs(value: &[u8]) -> Result<impl Iterator<Item = (u64, u64)>, Malformed> {
    match value.as_chunks::<16>() {
        (pairs, []) => Ok(pairs.iter().map(|pair| split(*pair))),
        _ => Err(Malformed),
    }
}

/// The two numbers in 16 bytes.
fn split(bytes: [u8; 16]) -> (u64, u64) {
    let both = u128::from_be_bytes(bytes);
    let low = both & u128::from(u64::MAX);
    (u64::try_from(both >> 64).unwrap_or(0), u64::try_from(low).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::rate;
    use super::*;
    use crate::clock::Clock;

    /// What is given, as a receiver gets it.
    fn given(give: impl FnOnce(&mut dyn FnMut(&mut Writer))) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        give(&mut |piece| pieces.push(piece.as_bytes().to_vec()));
        pieces
    }

    fn exported(limit: &RateLimit) -> Vec<Vec<u8>> {
        given(|give| limit.export(give))
    }

    /// Tells one process what the other has let pass.
    fn tell(from: &RateLimit, to: &RateLimit) {
        for piece in given(|give| from.take_uses(give)) {
            assert_eq!(to.import(&piece), Ok(true));
        }
    }

    /// How many requests pass.
    fn passes(limit: &RateLimit, key: &str) -> usize {
        (0..100).take_while(|_| limit.check(&key).is_ok()).count()
    }

    /// An old process, and a new one that has its buckets.
    fn two(used: usize) -> (RateLimit, RateLimit, Clock) {
        let clock = Clock::manual();
        clock.advance(Duration::from_secs(1000));
        let [old, new] = [0, 1].map(|_| RateLimit::new(rate(4, 8), 10, clock.clone()));
        (0..used).for_each(|_| old.check(&"a").unwrap());
        old.note_uses(true);
        assert!(exported(&old).iter().all(|piece| new.import(piece) == Ok(true)));
        new.note_uses(true);
        (old, new, clock)
    }

    #[test]
    fn what_passes_in_one_of_two_processes_is_used_in_the_other() {
        for to_new in [true, false] {
            let (old, new, clock) = two(1);
            let (here, there) = if to_new { (&old, &new) } else { (&new, &old) };
            assert!(here.check(&"a").is_ok() && here.check(&"a").is_ok());
            tell(here, there);
            // Once.
            tell(here, there);
            assert_eq!(passes(there, "a"), 1);
            tell(there, here);
            assert_eq!((passes(here, "a"), passes(here, "b")), (0, 4));
            clock.advance(Duration::from_secs(2));
            assert_eq!(passes(here, "a"), 1);
            tell(here, there);
            assert_eq!(passes(there, "a"), 0);
        }
    }

    #[test]
    fn a_client_that_was_ahead_for_a_moment_waits_longer() {
        let (old, new, clock) = two(0);
        assert_eq!((passes(&old, "a"), passes(&new, "a")), (4, 4));
        tell(&old, &new);
        tell(&new, &old);
        for limit in [&old, &new] {
            let rejection = limit.check(&"a").unwrap_err();
            let retry_after = crate::message::rejection::Rejection::RateLimited { retry_after: 10 };
            assert_eq!(rejection, retry_after);
        }
        clock.advance(Duration::from_secs(8));
        assert_eq!((passes(&old, "a"), passes(&new, "a")), (0, 0));
        clock.advance(Duration::from_secs(2));
        assert_eq!(passes(&new, "a"), 1);
    }

    #[test]
    fn nothing_is_noted_without_another_process() {
        let (old, new, _) = two(0);
        old.note_uses(false);
        assert_eq!(passes(&old, "a"), 4);
        old.note_uses(true);
        tell(&old, &new);
        assert_eq!(passes(&new, "a"), 4);
        (0..20_000u32).for_each(|key| drop(old.check(&key)));
        let pieces = given(|give| old.take_uses(give));
        assert!(pieces.len() == 2 && pieces.iter().all(|piece| piece.len() < 300_000));
    }

    #[test]
    fn what_was_used_in_one_process_is_used_in_the_next() {
        let clock = Clock::manual();
        clock.advance(Duration::from_secs(1000));
        let old = RateLimit::new(rate(3, 6), 10, clock.clone());
        for (key, used) in [("empty", 3), ("one left", 2), ("full again", 1)] {
            (0..used).for_each(|_| old.check(&key).unwrap());
            clock.advance(Duration::from_millis(if used == 1 { 0 } else { 100 }));
        }
        clock.advance(Duration::from_millis(900));
        let new = RateLimit::new(rate(3, 6), 10, clock.clone());
        for piece in exported(&old) {
            assert_eq!(new.import(&piece), Ok(true));
        }
        for key in ["empty", "one left", "full again", "unknown"] {
            // Until both reject, both answer the same.
            loop {
                let (here, there) = (old.check(&key), new.check(&key));
                assert_eq!(here, there, "{key}");
                if there.is_err() {
                    break;
                }
            }
        }
        clock.advance(Duration::from_millis(899));
        new.check(&"empty").unwrap_err();
        clock.advance(Duration::from_millis(1));
        new.check(&"empty").unwrap();
        new.check(&"empty").unwrap_err();
    }

    #[test]
    fn all_buckets_are_handed_over_and_no_more_than_the_capacity() {
        let clock = Clock::manual();
        let old = RateLimit::new(rate(1, 3600), 20_000, clock.clone());
        (0..20_000u32).for_each(|key| old.check(&key).unwrap());
        old.buckets.run_pending_tasks();
        let pieces = exported(&old);
        assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() < 300_000));
        let new = RateLimit::new(rate(1, 3600), 20_000, clock.clone());
        assert!(pieces.iter().all(|piece| new.import(piece) == Ok(true)));
        new.buckets.run_pending_tasks();
        assert_eq!(new.buckets.entry_count(), 20_000);
        assert!((0..20_000u32).all(|key| new.check(&key).is_err()));
    }

    #[test]
    fn another_rate_or_capacity_begins_anew_as_after_a_reload() {
        let clock = Clock::manual();
        let old = RateLimit::new(rate(1, 60), 10, clock.clone());
        old.check(&"a").unwrap();
        let piece = &exported(&old)[0];
        for (rate, capacity) in [(rate(2, 60), 10), (rate(1, 61), 10), (rate(1, 60), 11)] {
            let new = RateLimit::new(rate, capacity, clock.clone());
            assert_eq!(new.import(piece), Ok(false));
            new.check(&"a").unwrap();
        }
        let used = RateLimit::new(rate(1, 60), 10, clock.clone());
        used.check(&"b").unwrap();
        assert_eq!(used.import(piece), Ok(false));
        used.check(&"b").unwrap_err();
    }

    #[test]
    fn a_malformed_limit_is_refused_and_an_unknown_field_is_not() {
        let clock = Clock::manual();
        let old = RateLimit::new(rate(1, 60), 10, clock.clone());
        old.note_uses(true);
        old.check(&"a").unwrap();
        let new = || RateLimit::new(rate(1, 60), 10, clock.clone());
        for mut piece in [exported(&old).remove(0), given(|give| old.take_uses(give)).remove(0)] {
            for length in 0..piece.len() {
                assert_eq!(new().import(&piece[..length]), Err(Malformed), "{length}");
            }
            piece.extend(Writer::new().text(99, "of a newer program").as_bytes());
            assert_eq!(new().import(&piece), Ok(true));
        }
    }
}
