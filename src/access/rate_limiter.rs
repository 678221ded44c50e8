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

mod handover;

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use siphasher::sip::SipHasher13;

use self::handover::Noted;
use crate::clock::Clock;
use crate::config::Rate;
use crate::message::rejection::Rejection;
use crate::session::DigestHash;

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
    /// What the other process of an upgrade must count as well.
    noted: Noted,
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
            noted: Noted::default(),
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
        let hash = hasher.finish();
        let bucket = self.buckets.get_with(hash, Arc::default);
        self.take(&bucket).map_err(|wait| {
            let seconds = wait.div_ceil(1_000_000_000).max(1);
            Rejection::RateLimited { retry_after: u32::try_from(seconds).unwrap_or(u32::MAX) }
        })?;
        self.noted.note(hash);
        Ok(())
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
            // Before it is decided whether this is noted; see `note_uses`.
            let (success, failure) = (Ordering::SeqCst, Ordering::Relaxed);
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

    fn now(&self) -> u64 {
        self.clock.now_millis().saturating_mul(1_000_000)
    }
}

fn random_hash_key() -> SipHasher13 {
    SipHasher13::new_with_keys(rand::random(), rand::random())
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
pub(super) mod tests {
    use std::num::NonZeroU32;

    use super::*;

    pub(super) fn rate(count: u32, seconds: u64) -> Rate {
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
