//! The clock for the lifetimes of sessions and one-time codes.
//!
//! It is monotonic: a step of the wall clock neither ends sessions nor prolongs them. The process
//! has one clock. Tests replace it with one that they advance, so that no test of a lifetime needs
//! to sleep. Timeouts on sockets use tokio's clock, not this one.

pub(crate) mod deadline;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A monotonic clock. Clones show the same time.
#[derive(Clone, Debug)]
pub struct Clock(TimeSource);

#[derive(Clone, Debug)]
enum TimeSource {
    /// When the clock was made, and the time since 1970 at that moment.
    System(Instant, Duration),
    /// Its time in milliseconds, and the wall clock's time when the clock was made.
    Manual(Arc<AtomicU64>, Duration),
}

impl Clock {
    pub fn system() -> Self {
        Self(TimeSource::System(Instant::now(), unix_time()))
    }

    /// The clock of another process of this machine, by its [`Clock::offset`]: both show the same
    /// time.
    pub fn continuing(offset: Duration) -> Self {
        Self(TimeSource::System(Instant::now(), offset.saturating_add(monotonic_time())))
    }

    /// How much later this clock is than the system's monotonic clock, which all processes share
    /// until the next boot. Zero for a manual clock.
    pub fn offset(&self) -> Duration {
        match &self.0 {
            TimeSource::System(start, then) => {
                (*then + start.elapsed()).saturating_sub(monotonic_time())
            }
            TimeSource::Manual(..) => Duration::ZERO,
        }
    }

    /// A clock that moves only by [`Clock::advance`].
    pub fn manual() -> Self {
        Self(TimeSource::Manual(Arc::new(AtomicU64::new(0)), unix_time()))
    }

    /// In whole milliseconds: what the wall clock showed when this clock was created (as time since
    /// 1970), plus the time since then. A manual clock begins at zero instead.
    pub fn now(&self) -> Duration {
        Duration::from_millis(self.now_millis())
    }

    /// [`Clock::now`] in milliseconds.
    pub fn now_millis(&self) -> u64 {
        match &self.0 {
            TimeSource::System(start, then) => millis(*then + start.elapsed()),
            TimeSource::Manual(time, _) => time.load(Ordering::Acquire),
        }
    }

    /// The wall clock's time, in milliseconds since 1970, for a time of this clock. A manual clock
    /// has a wall clock that moves with it.
    pub fn to_wall(&self, millis: u64) -> u64 {
        self.wall_millis().saturating_add(millis).saturating_sub(self.now_millis())
    }

    /// The reverse of [`Clock::to_wall`]. Times before a manual clock was made become its
    /// beginning.
    pub fn from_wall(&self, millis: u64) -> u64 {
        self.now_millis().saturating_add(millis).saturating_sub(self.wall_millis())
    }

    /// The wall clock, in milliseconds since 1970. That of a manual clock moves with it.
    pub fn wall_millis(&self) -> u64 {
        let wall = match &self.0 {
            TimeSource::System(..) => unix_time(),
            TimeSource::Manual(_, beginning) => *beginning + self.now(),
        };
        millis(wall)
    }

    /// Moves a manual clock; the system's clock moves by itself and ignores this.
    pub fn advance(&self, by: Duration) {
        if let TimeSource::Manual(time, _) = &self.0 {
            time.fetch_add(millis(by), Ordering::AcqRel);
        }
    }
}

/// The wall clock's time since 1970.
pub(crate) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The system's monotonic clock.
fn monotonic_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Neither is ever negative.
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// A duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    // No process runs for 2^64 milliseconds.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clocks_with_one_offset_show_the_same_time() {
        let clock = Clock::system();
        let other = Clock::continuing(clock.offset());
        let (before, between, after) = (clock.now(), other.now(), clock.now());
        let millisecond = Duration::from_millis(1);
        assert!(before.saturating_sub(millisecond) <= between && between <= after + millisecond);
    }
}
