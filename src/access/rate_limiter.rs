//! How often a user or an address may send requests.
//!
//! A [`RateLimit`] has one bucket for each user or address. One client may use many addresses, and
//! there may be many users, so the number of buckets is limited: at the limit the least recently
//! used bucket is dropped. A user or an address whose bucket was dropped starts with a full one, as
//! if it had sent nothing for a whole period.
//!
//! A bucket is one number (GCRA): the time at which it is full again. A request moves this time by
//! one step, the period divided by the count, and is rejected if the bucket would then be full
//! later than a whole bucket from now. Buckets are found by a keyed hash (SipHash-1-3, as
//! `std::collections::HashMap`), so that no client can choose whose bucket it shares. The key is
//! given to the process that takes over, with the buckets: users and addresses are not stored.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use siphasher::sip::SipHasher13;

use crate::clock::Clock;
use crate::config::Rate;
use crate::handover::fields::{Malformed, Writer, read};
use crate::message::rejection::Rejection;
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
}

/// Buckets in one piece, of 16 bytes each.
const BUCKETS_IN_A_PIECE: usize = 16_384;

/// The buckets of one rate, by user or by address.
pub struct RateLimit {
    rate: Rate,
    capacity: u64,
    /// How much later a bucket is full after a request, in nanoseconds.
    step: u64,
    /// How long an empty bucket takes to be full, in nanoseconds.
    whole: u64,
    clock: Clock,
    /// Drawn for the first request, unless another process has given it before.
    hash_key: OnceLock<SipHasher13>,
    /// When each bucket is full, in nanoseconds of the clock. The keys are hashes already.
    buckets: Cache<u64, Arc<AtomicU64>, DigestHash>,
}

impl RateLimit {
    /// Keeps at most `capacity` buckets.
    pub fn new(rate: Rate, capacity: u64, clock: Clock) -> Self {
        // At least a nanosecond: a large count must not make the step zero.
        let step = nanos(rate.period / rate.count.get()).max(1);
        Self {
            rate,
            capacity,
            step,
            whole: step.saturating_mul(u64::from(rate.count.get())),
            clock,
            hash_key: OnceLock::new(),
            buckets: Cache::builder()
                .max_capacity(capacity)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_idle(rate.period)
                .build_with_hasher(DigestHash),
        }
    }

    /// The limit from before a reload if nothing has changed, else a new one.
    pub fn carried_over(
        previous: Option<&Arc<Self>>,
        rate: Rate,
        capacity: u64,
        clock: &Clock,
    ) -> Arc<Self> {
        let same = previous.filter(|limit| (limit.rate, limit.capacity) == (rate, capacity));
        same.cloned().unwrap_or_else(|| Arc::new(Self::new(rate, capacity, clock.clone())))
    }

    /// Counts one request of `key`.
    ///
    /// # Errors
    /// [`Rejection::RateLimited`] if the limit is reached, with the time until a request is allowed
    /// again.
    pub fn check(&self, key: &impl Hash) -> Result<(), Rejection> {
        let mut hasher = *self.hash_key.get_or_init(random_hash_key);
        key.hash(&mut hasher);
        let bucket = self.buckets.get_with(hasher.finish(), Arc::default);
        self.take(&bucket).map_err(|wait| {
            let seconds = wait.div_ceil(1_000_000_000).max(1);
            Rejection::RateLimited { retry_after: u32::try_from(seconds).unwrap_or(u32::MAX) }
        })
    }

    /// Takes one request from a bucket.
    ///
    /// # Errors
    /// The nanoseconds until there is one.
    fn take(&self, bucket: &AtomicU64) -> Result<(), u64> {
        let now = self.now();
        let latest = now.saturating_add(self.whole);
        let mut full_at = bucket.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now).saturating_add(self.step);
            if next > latest {
                return Err(next - latest);
            }
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            match bucket.compare_exchange_weak(full_at, next, success, failure) {
                Ok(_) => return Ok(()),
                Err(changed) => full_at = changed,
            }
        }
    }

    /// [`RateLimit::check`] by address. For IPv6 the /64 counts, because one client has a whole /64
    /// (RFC 6177).
    pub fn check_address(&self, address: IpAddr) -> Result<(), Rejection> {
        self.check(&network(address))
    }

    /// Gives the limit to another process, in pieces of at most 256 KiB. Full buckets are left out.
    pub fn export(&self, mut give: impl FnMut(&mut Writer)) {
        let now = self.now();
        let (key0, key1) = self.hash_key.get_or_init(random_hash_key).keys();
        let hash_key = (u128::from(key0) << 64 | u128::from(key1)).to_be_bytes();
        let mut piece = Vec::new();
        let mut finish = |buckets: &mut Vec<u8>| {
            let mut writer = Writer::new();
            writer
                .u64(field::COUNT, u64::from(self.rate.count.get()))
                .u64(field::PERIOD, nanos(self.rate.period))
                .u64(field::CAPACITY, self.capacity)
                .bytes(field::HASH_KEY, &hash_key)
                .bytes(field::BUCKETS, buckets);
            buckets.clear();
            give(&mut writer);
        };
        for (hash, full_at) in &self.buckets {
            let full_at = full_at.load(Ordering::Relaxed);
            if full_at > now {
                piece.extend(hash.to_be_bytes());
                piece.extend(full_at.to_be_bytes());
            }
            if piece.len() >= BUCKETS_IN_A_PIECE * 16 {
                finish(&mut piece);
            }
        }
        if !piece.is_empty() {
            finish(&mut piece);
        }
    }

    /// Takes a piece from another process. Returns whether it was used: not if the rate or the
    /// capacity is another one, or if this limit has a hash key of its own, because it has counted
    /// requests before. A bucket that is here as well keeps what it lacks.
    ///
    /// # Errors
    /// When the piece is malformed.
    pub fn import(&self, piece: &[u8]) -> Result<bool, Malformed> {
        let (mut count, mut period, mut capacity, mut key, mut buckets) =
            (None, None, None, None, None);
        for field in read(piece) {
            let field = field?;
            match field.number {
                field::COUNT => count = field.u64(),
                field::PERIOD => period = field.u64(),
                field::CAPACITY => capacity = field.u64(),
                field::HASH_KEY => key = field.array().map(u128::from_be_bytes),
                field::BUCKETS => buckets = Some(field.value.as_chunks::<16>()),
                _ => {}
            }
        }
        let (Some(count), Some(period), Some(capacity), Some(key), Some((buckets, []))) =
            (count, period, capacity, key, buckets)
        else {
            return Err(Malformed);
        };
        let own = (u64::from(self.rate.count.get()), nanos(self.rate.period), self.capacity);
        if own != (count, period, capacity) {
            return Ok(false);
        }
        let halves = key.to_be_bytes();
        let (high, low) = split(halves);
        let given = SipHasher13::new_with_keys(high, low);
        if self.hash_key.get_or_init(|| given).keys() != given.keys() {
            return Ok(false);
        }
        let now = self.now();
        for bucket in buckets {
            let (hash, full_at) = split(*bucket);
            // No request has made it later: a wrong clock must not lock a client out.
            let full_at = full_at.min(now.saturating_add(self.whole));
            if full_at > now {
                let bucket = self.buckets.get_with(hash, Arc::default);
                let missing = full_at - now;
                let add = |here: u64| Some(here.max(now).saturating_add(missing));
                let _ = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
            }
        }
        Ok(true)
    }

    fn now(&self) -> u64 {
        self.clock.now_millis().saturating_mul(1_000_000)
    }
}

fn random_hash_key() -> SipHasher13 {
    SipHasher13::new_with_keys(rand::random(), rand::random())
}

/// The two numbers in 16 bytes.
fn split(bytes: [u8; 16]) -> (u64, u64) {
    let both = u128::from_be_bytes(bytes);
    let low = both & u128::from(u64::MAX);
    (u64::try_from(both >> 64).unwrap_or(0), u64::try_from(low).unwrap_or(0))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The part of an address that identifies a client: for IPv6 its /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::from((v6.to_bits() >> 64 << 64).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn rate(count: u32, seconds: u64) -> Rate {
        Rate { count: NonZeroU32::new(count).unwrap(), period: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_burst_passes_and_then_one_for_each_part_of_the_period() {
        let clock = Clock::manual();
        let limit = RateLimit::new(rate(3, 6), 10, clock.clone());
        for _ in 0..3 {
            limit.check(&"a").unwrap();
        }
        let rejection = limit.check(&"a").unwrap_err();
        assert!(matches!(rejection, Rejection::RateLimited { retry_after: 2 }), "{rejection:?}");
        limit.check(&"b").unwrap();
        clock.advance(Duration::from_millis(1500));
        let rejection = limit.check(&"a").unwrap_err();
        assert!(matches!(rejection, Rejection::RateLimited { retry_after: 1 }), "{rejection:?}");
        clock.advance(Duration::from_millis(500));
        limit.check(&"a").unwrap();
        limit.check(&"a").unwrap_err();
    }

    #[test]
    fn the_number_of_buckets_is_limited() {
        let limit = RateLimit::new(rate(1, 3600), 1000, Clock::manual());
        for key in 0..10_000u32 {
            limit.check(&key).unwrap();
        }
        limit.buckets.run_pending_tasks();
        assert_eq!(limit.buckets.entry_count(), 1000);
        limit.check(&9_999u32).unwrap_err();
        limit.check(&0u32).unwrap();
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_a_bucket() {
        let limit = RateLimit::new(rate(1, 60), 10, Clock::manual());
        let check = |address: &str| limit.check_address(address.parse().unwrap());
        check("2001:db8:1:2::1").unwrap();
        check("2001:db8:1:2:ffff::9").unwrap_err();
        check("2001:db8:1:3::1").unwrap();
        check("192.0.2.1").unwrap();
        check("192.0.2.2").unwrap();
        check("192.0.2.1").unwrap_err();
    }

    /// What an export gives, as a receiver gets it.
    fn exported(limit: &RateLimit) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        limit.export(|piece| pieces.push(piece.as_bytes().to_vec()));
        pieces
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
        old.check(&"a").unwrap();
        let mut piece = exported(&old).remove(0);
        let new = || RateLimit::new(rate(1, 60), 10, clock.clone());
        for length in 0..piece.len() {
            assert_eq!(new().import(&piece[..length]), Err(Malformed), "{length}");
        }
        piece.extend(Writer::new().text(99, "of a newer program").as_bytes());
        assert_eq!(new().import(&piece), Ok(true));
    }

    #[test]
    fn the_fastest_and_the_slowest_rate_work() {
        let clock = Clock::manual();
        let fast = Rate { count: NonZeroU32::MAX, period: Duration::from_millis(1) };
        RateLimit::new(fast, 10, clock.clone()).check(&0).unwrap();
        let slow = RateLimit::new(rate(1, 24 * 3600), 10, clock.clone());
        slow.check(&0).unwrap();
        let rejection = slow.check(&0).unwrap_err();
        assert!(
            matches!(rejection, Rejection::RateLimited { retry_after: 86_400 }),
            "{rejection:?}"
        );
    }
}
