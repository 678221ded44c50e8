//! How often a user or an address may send requests.
//!
//! A [`RateLimit`] has one bucket for each user or address (GCRA, by `governor`). Clients can
//! choose their addresses, and there may be many users, so the number of buckets is limited: at the
//! limit the least recently used bucket is dropped. A user or an address whose bucket was dropped
//! starts with a full one, as if it had sent nothing for a whole period.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use governor::clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::clock::Clock;
use crate::config::Rate;
use crate::message::rejection::Rejection;

/// The buckets of one rate, by user or by address.
pub struct RateLimit {
    rate: Rate,
    capacity: u64,
    quota: Quota,
    clock: Ticks,
    hasher: RandomState,
    buckets: Cache<u64, Arc<Bucket>>,
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Nanos>>;

/// The process's clock, as `governor` reads it.
#[derive(Clone)]
struct Ticks(Clock);

impl clock::Clock for Ticks {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.now())
    }
}

impl RateLimit {
    /// Keeps at most `capacity` buckets.
    pub fn new(rate: Rate, capacity: u64, clock: Clock) -> Self {
        // At least a nanosecond: a large count must not make the step zero.
        let step = (rate.period / rate.count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(step).unwrap_or(Quota::per_second(rate.count));
        Self {
            rate,
            capacity,
            quota: quota.allow_burst(rate.count),
            clock: Ticks(clock),
            hasher: RandomState::new(),
            buckets: Cache::builder()
                .max_capacity(capacity)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_idle(rate.period)
                .build(),
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
    /// [`Rejection::RateLimited`] if the limit is reached, with the time until the next request.
    pub fn check(&self, key: &impl Hash) -> Result<(), Rejection> {
        let key = self.hasher.hash_one(key);
        let bucket = self.buckets.get_with(key, || {
            Arc::new(RateLimiter::direct_with_clock(self.quota, self.clock.clone()))
        });
        bucket.check().map_err(|until| {
            let wait = until.wait_time_from(clock::Clock::now(&self.clock));
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            Rejection::RateLimited {
                retry_after: u32::try_from(seconds.max(1)).unwrap_or(u32::MAX),
            }
        })
    }

    /// [`RateLimit::check`] by address. For IPv6 the /64 counts, because one client has a whole /64
    /// (RFC 6177).
    pub fn check_address(&self, address: IpAddr) -> Result<(), Rejection> {
        self.check(&network(address))
    }
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
