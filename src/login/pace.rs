//! How fast the codes of one app are traded.
//!
//! By its configured rate, which a sign of WeChat's displeasure halves: errcode 45011 is
//! about one user's calls in a minute, but says that the app asks a lot. The rate recovers
//! over a minute and never falls below a sixteenth. When the quota of the day is used up
//! (45009) nothing is asked but once a minute.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::Rate;
use crate::rate_limit::RateLimit;
use crate::rejection::{Rejection, jittered};

/// A slowed rate is whole again after so long.
const RECOVERY: Duration = Duration::from_secs(60);

/// Complaints that come together are one.
const ONE_COMPLAINT: Duration = Duration::from_secs(1);

/// How often WeChat is asked whether there is quota again.
const QUOTA_PROBE: Duration = Duration::from_secs(60);

/// The least part of the rate.
const LEAST: f64 = 1.0 / 16.0;

/// The pace of one app.
pub struct Pace {
    rate: Option<RateLimit>,
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    /// What part of the rate was left at the last complaint, and when that was.
    left: f64,
    slowed_at: Option<Duration>,
    /// The next question where there is no quota.
    next_probe: Option<Duration>,
}

impl Pace {
    pub fn new(rate: Option<Rate>, clock: Clock) -> Self {
        let state = State { left: 1.0, slowed_at: None, next_probe: None };
        let rate = rate.map(|rate| RateLimit::new(rate, 1, clock.clone()));
        Self { rate, clock, state: Mutex::new(state) }
    }

    /// Takes leave to trade one code.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn check(&self) -> Result<(), Rejection> {
        let now = self.clock.now();
        let mut state = self.state();
        if let Some(next_probe) = &mut state.next_probe {
            if now < *next_probe {
                let wait = seconds(next_probe.saturating_sub(now));
                return Err(Rejection::WeChatBusy { retry_after: jittered(wait, wait + 30) });
            }
            *next_probe = now + QUOTA_PROBE;
        }
        let cost = state.cost(now);
        drop(state);
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.check_for(&(), cost).map_err(|rejection| match rejection {
            // Those who are refused together are strangers, and must not come back together.
            Rejection::RateLimited { retry_after } => Rejection::RateLimited {
                retry_after: jittered(retry_after, retry_after.saturating_add(2)),
            },
            other => other,
        })
    }

    /// WeChat has had enough for a while (45011).
    pub fn slow(&self) {
        let now = self.clock.now();
        let mut state = self.state();
        if state.slowed_at.is_some_and(|at| now < at + ONE_COMPLAINT) {
            return;
        }
        state.left = (state.left_at(now) / 2.0).max(LEAST);
        state.slowed_at = Some(now);
    }

    /// There is no quota left today (45009).
    pub fn pause(&self) {
        let now = self.clock.now();
        self.state().next_probe = Some(now + QUOTA_PROBE);
    }

    /// The question was not asked after all: the next login may ask it.
    pub fn give_back(&self) {
        let now = self.clock.now();
        let mut state = self.state();
        state.next_probe = state.next_probe.map(|_| now);
    }

    /// There is quota.
    pub fn resume(&self) {
        self.state().next_probe = None;
    }

    /// Nothing panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn left_at(&self, now: Duration) -> f64 {
        let Some(at) = self.slowed_at else { return 1.0 };
        let recovered = now.saturating_sub(at).as_secs_f64() / RECOVERY.as_secs_f64();
        (self.left + (1.0 - self.left) * recovered).min(1.0)
    }

    /// What one login takes of the rate.
    fn cost(&self, now: Duration) -> NonZeroU32 {
        let left = self.left_at(now);
        (1..16u32)
            .find(|cost| f64::from(*cost) * left >= 1.0)
            .and_then(NonZeroU32::new)
            .unwrap_or(NonZeroU32::MIN.saturating_add(15))
    }
}

fn seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(count: u32) -> (Pace, Clock) {
        let clock = Clock::manual();
        let rate = Rate { count: NonZeroU32::new(count).unwrap(), period: Duration::from_secs(1) };
        (Pace::new(Some(rate), clock.clone()), clock)
    }

    /// Logins that pass in a second, after one in which everything was used up.
    fn passes(pace: &Pace, clock: &Clock) -> usize {
        while pace.check().is_ok() {}
        let mut passed = 0;
        for _ in 0..1000 {
            clock.advance(Duration::from_millis(1));
            passed += usize::from(pace.check().is_ok());
        }
        passed
    }

    #[test]
    fn a_complaint_halves_the_rate_which_recovers_over_a_minute() {
        let (pace, clock) = pace(160);
        assert!((159..=161).contains(&passes(&pace, &clock)));
        pace.slow();
        pace.slow();
        let slowed = passes(&pace, &clock);
        assert!((75..=81).contains(&slowed), "{slowed}");
        clock.advance(Duration::from_secs(60));
        assert!((159..=161).contains(&passes(&pace, &clock)));
    }

    #[test]
    fn the_rate_never_falls_to_nothing() {
        let (pace, clock) = pace(160);
        for _ in 0..20 {
            pace.slow();
            clock.advance(Duration::from_secs(1));
        }
        let slowed = passes(&pace, &clock);
        assert!((9..=14).contains(&slowed), "{slowed}");
        let (pace, clock) = self::pace(2);
        for _ in 0..20 {
            pace.slow();
            clock.advance(Duration::from_secs(1));
        }
        assert!(passes(&pace, &clock) >= 1);
    }

    #[test]
    fn without_quota_one_login_a_minute_asks() {
        let (pace, clock) = pace(1000);
        pace.check().unwrap();
        pace.pause();
        let assert_busy = |least: u32| match pace.check() {
            // Spread, so that phones do not all come back for the one question.
            Err(Rejection::WeChatBusy { retry_after }) => {
                assert!((least..=least + 30).contains(&retry_after), "{retry_after}");
            }
            other => panic!("{other:?}"),
        };
        assert_busy(60);
        clock.advance(Duration::from_millis(59_500));
        assert_busy(1);
        clock.advance(Duration::from_millis(500));
        assert_eq!(pace.check(), Ok(()));
        assert_busy(60);
        pace.give_back();
        assert_eq!(pace.check(), Ok(()));
        assert_busy(60);
        pace.resume();
        assert_eq!(pace.check(), Ok(()));
    }

    #[test]
    fn an_app_without_a_rate_is_not_limited() {
        let pace = Pace::new(None, Clock::manual());
        pace.slow();
        for _ in 0..10_000 {
            pace.check().unwrap();
        }
    }
}
