//! Limits how many exchanges are made for the logins of one app.
//!
//! The limit is the configured rate, with a bucket for the logins of one period. Errcode 45011
//! means that one user made too many calls in a minute, but it also shows that the app calls often.
//! So it halves the rate, which grows back to the full rate within a minute. The rate is never less
//! than half: WeChat does not say whose calls they were, and one user must not stop the others.
//! When the daily quota is used up (45009), WeChat is called only once a minute.
//!
//! During an upgrade, a login that passes in one of the two processes is also taken from the bucket
//! of the other one. What WeChat has answered is not told: each process finds it out by itself.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::config::Rate;
use crate::handover::fields::{Malformed, Writer, read};
use crate::message::rejection::{Rejection, jittered};

/// How long a slowed rate takes to recover.
const RECOVERY: Duration = Duration::from_secs(60);

/// How often WeChat is called while the quota is used up.
const QUOTA_PROBE: Duration = Duration::from_secs(60);

/// The part of the rate that is left after errcode 45011.
const LEFT: f64 = 1.0 / 2.0;

/// Numbers of the fields of a handed-over limit. Times are in nanoseconds of the clock; what is not
/// set is left out.
mod field {
    pub const COUNT: u32 = 1;
    pub const PERIOD: u32 = 2;
    /// As the bits of a number with a fraction.
    pub const BUCKET: u32 = 3;
    pub const FILLED_AT: u32 = 4;
    pub const SLOWED_AT: u32 = 5;
    pub const NEXT_PROBE: u32 = 6;
    /// Logins that have passed since they were last told. In no export.
    pub const USES: u32 = 7;
}

/// The rate limit of one app.
pub struct AppRateLimit {
    rate: Option<Rate>,
    clock: Clock,
    state: Mutex<RateState>,
}

struct RateState {
    /// Logins that could pass at once at `filled_at`.
    bucket: f64,
    filled_at: Duration,
    /// When the last 45011 was received.
    slowed_at: Option<Duration>,
    /// When WeChat may be called next. `None` while there is quota.
    next_probe: Option<Duration>,
    /// Logins that have passed here, and that the other process of an upgrade does not know of.
    /// `None` while there is no other process.
    noted: Option<u64>,
}

impl AppRateLimit {
    /// The limit from before a reload if the rate has not changed, else a new one.
    pub fn carried_over(
        previous: Option<&Arc<Self>>,
        rate: Option<Rate>,
        clock: &Clock,
    ) -> Arc<Self> {
        let same = previous.filter(|previous| previous.rate == rate);
        same.cloned().unwrap_or_else(|| Arc::new(Self::new(rate, clock.clone())))
    }

    fn new(rate: Option<Rate>, clock: Clock) -> Self {
        let state = RateState {
            bucket: rate.map_or(0.0, |rate| f64::from(rate.count.get())),
            filled_at: clock.now(),
            slowed_at: None,
            next_probe: None,
            noted: None,
        };
        Self { rate, clock, state: Mutex::new(state) }
    }

    /// Counts one login.
    ///
    /// # Errors
    /// The rejection. Its retry time is random, because clients that are rejected at the same time
    /// must not come back at the same time.
    pub fn check(&self) -> Result<(), Rejection> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.has_quota(now)?;
        let Some(rate) = self.rate else { return Ok(()) };
        state.take(rate, now).map_err(|wait| {
            let wait = seconds(wait);
            Rejection::RateLimited { retry_after: jittered(wait, wait.saturating_add(2)) }
        })
    }

    /// Checks the quota again right before WeChat is called: it may have been used up while the
    /// login was in the queue.
    ///
    /// # Errors
    /// As [`AppRateLimit::check`].
    pub fn admit_call(&self) -> Result<(), Rejection> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.has_quota(now)?;
        // While the quota is used up, this is the one call of the minute.
        state.next_probe = state.next_probe.map(|_| now + QUOTA_PROBE);
        Ok(())
    }

    /// Halves the rate, because WeChat has limited a user for a while (45011).
    pub fn slow(&self) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        if let Some(rate) = self.rate {
            state.fill(rate, now);
        }
        state.slowed_at = Some(now);
    }

    /// Limits calls to one a minute, because the daily quota is used up (45009).
    pub fn pause(&self) {
        let now = self.clock.now();
        self.state.lock().next_probe = Some(now + QUOTA_PROBE);
    }

    /// Allows calls again, because there is quota.
    pub fn resume(&self) {
        self.state.lock().next_probe = None;
    }
}

impl AppRateLimit {
    /// Gives the limit to another process.
    pub fn export(&self) -> Writer {
        let state = self.state.lock();
        let mut writer = Writer::new();
        if let Some(rate) = self.rate {
            writer
                .u64(field::COUNT, u64::from(rate.count.get()))
                .u64(field::PERIOD, nanos(rate.period));
        }
        writer.u64(field::BUCKET, state.bucket.to_bits());
        writer.u64(field::FILLED_AT, nanos(state.filled_at));
        if let Some(at) = state.slowed_at {
            writer.u64(field::SLOWED_AT, nanos(at));
        }
        if let Some(at) = state.next_probe {
            writer.u64(field::NEXT_PROBE, nanos(at));
        }
        writer
    }

    /// Continues the limit of another process, if it has the same rate.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn import(&self, given: &[u8]) -> Result<(), Malformed> {
        let (mut count, mut period, mut bucket, mut filled_at) = (None, None, None, None);
        let (mut slowed_at, mut next_probe) = (None, None);
        for field in read(given) {
            let field = field?;
            let number = || field.u64().ok_or(Malformed);
            let time = || number().map(Duration::from_nanos);
            match field.number {
                field::COUNT => count = Some(number()?),
                field::PERIOD => period = Some(time()?),
                field::BUCKET => bucket = Some(f64::from_bits(number()?)),
                field::FILLED_AT => filled_at = Some(time()?),
                field::SLOWED_AT => slowed_at = Some(time()?),
                field::NEXT_PROBE => next_probe = Some(time()?),
                _ => {}
            }
        }
        let (Some(bucket), Some(filled_at)) = (bucket, filled_at) else { return Err(Malformed) };
        let whole = u32::try_from(count.unwrap_or(1)).map_err(|_| Malformed)?.max(1);
        let whole = f64::from(whole);
        // It may owe as much as it can hold.
        if !(-whole..=whole).contains(&bucket) {
            return Err(Malformed);
        }
        let own = self.rate.map(|rate| (u64::from(rate.count.get()), rate.period));
        if own == count.zip(period) {
            // A wrong clock must not lock an app out.
            let now = self.clock.now();
            let filled_at = filled_at.min(now);
            let slowed_at = slowed_at.map(|at| at.min(now));
            let next_probe = next_probe.map(|at| at.min(now + QUOTA_PROBE));
            let mut state = self.state.lock();
            let noted = state.noted;
            *state = RateState { bucket, filled_at, slowed_at, next_probe, noted };
        }
        Ok(())
    }

    /// From now on uses are noted, or not any more: logins that pass. While they are, each use is
    /// noted, or is in a later export, or both.
    pub fn note_uses(&self, is_on: bool) {
        let mut state = self.state.lock();
        state.noted = is_on.then(|| state.noted.unwrap_or_default());
    }

    /// The uses that were noted since the last call; `None` if there are none.
    pub fn take_uses(&self) -> Option<Writer> {
        let mut state = self.state.lock();
        let uses = state.noted.as_mut().map(std::mem::take).filter(|uses| *uses > 0)?;
        let mut writer = Writer::new();
        writer.u64(field::USES, uses);
        Some(writer)
    }

    /// Takes the uses of the other process from the bucket.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn add_uses(&self, told: &[u8]) -> Result<(), Malformed> {
        for field in read(told) {
            let field = field?;
            if field.number == field::USES {
                let uses = field.u64().ok_or(Malformed)?;
                if let Some(rate) = self.rate {
                    self.state.lock().owe(uses, rate, self.clock.now());
                }
            }
        }
        Ok(())
    }
}

impl RateState {
    /// Whether there may be quota.
    fn has_quota(&self, now: Duration) -> Result<(), Rejection> {
        match self.next_probe {
            Some(next_probe) if now < next_probe => {
                let wait = seconds(next_probe.saturating_sub(now));
                Err(Rejection::WeChatBusy { retry_after: jittered(wait, wait + 30) })
            }
            _ => Ok(()),
        }
    }

    /// The part of the rate that applies at `now`.
    fn left_at(&self, now: Duration) -> f64 {
        let Some(at) = self.slowed_at else { return 1.0 };
        let recovered = now.saturating_sub(at).div_duration_f64(RECOVERY);
        (LEFT + (1.0 - LEFT) * recovered).min(1.0)
    }

    /// Adds what has accumulated since the last time. A slowed rate has a smaller bucket, but one
    /// that holds at least one login.
    fn fill(&mut self, rate: Rate, now: Duration) {
        let in_a_period = f64::from(rate.count.get()) * self.left_at(now);
        let periods = now.saturating_sub(self.filled_at).div_duration_f64(rate.period);
        self.bucket = (self.bucket + periods * in_a_period).min(in_a_period.max(1.0));
        self.filled_at = now;
    }

    /// Takes one login from the bucket.
    ///
    /// # Errors
    /// The time until there is one.
    fn take(&mut self, rate: Rate, now: Duration) -> Result<(), Duration> {
        self.fill(rate, now);
        if self.bucket >= 1.0 {
            self.bucket -= 1.0;
            if let Some(noted) = &mut self.noted {
                *noted += 1;
            }
            return Ok(());
        }
        let one = rate.period.div_f64(f64::from(rate.count.get()) * self.left_at(now));
        Err(one.mul_f64(1.0 - self.bucket))
    }

    /// Takes uses of the other process from the bucket, even if it is empty: then the next login
    /// waits longer. The bucket owes at most as many logins as it holds.
    fn owe(&mut self, uses: u64, rate: Rate, now: Duration) {
        self.fill(rate, now);
        let whole = f64::from(rate.count.get());
        let uses = u32::try_from(uses).map_or(whole, f64::from);
        self.bucket = (self.bucket - uses).max(-whole);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests;
