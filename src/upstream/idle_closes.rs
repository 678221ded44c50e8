//! After what time a server closes idle connections.
//!
//! Some servers close them soon, and do not announce it. A request that is sent at that moment is
//! lost, and one that is not idempotent cannot be sent again. So what was seen in the last minute
//! is remembered, and such a request uses no connection that may be closed already.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A restart of the server also closes connections, and must not be remembered for long.
const MEMORY: Duration = Duration::from_secs(60);

/// The idle connections that a server has closed.
#[derive(Default)]
pub struct IdleCloses {
    is_known: AtomicBool,
    /// When the last one was found, and the shortest time after which one was closed.
    last: Mutex<Option<(Instant, Duration)>>,
}

impl IdleCloses {
    /// The server has closed a connection that was idle for `age`, or less.
    pub fn record(&self, age: Duration, now: Instant) {
        let mut last = self.last.lock();
        let known = last.filter(|(at, _)| now.saturating_duration_since(*at) < MEMORY);
        *last = Some((now, known.map_or(age, |(_, shortest)| shortest.min(age))));
        self.is_known.store(true, Ordering::Relaxed);
    }

    /// Whether a connection that was idle for `age` may be closed already.
    pub fn may_be_closed(&self, age: Duration, now: Instant) -> bool {
        if !self.is_known.load(Ordering::Relaxed) {
            return false;
        }
        let mut last = self.last.lock();
        *last = last.filter(|(at, _)| now.saturating_duration_since(*at) < MEMORY);
        self.is_known.store(last.is_some(), Ordering::Relaxed);
        // Half of it, because the request needs time as well.
        last.is_some_and(|(_, shortest)| age >= shortest / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_time_of_the_last_minute_counts() {
        let seconds = Duration::from_secs;
        let (closes, start) = (IdleCloses::default(), Instant::now());
        assert!(!closes.may_be_closed(seconds(100), start));
        closes.record(seconds(10), start);
        closes.record(seconds(20), start + seconds(1));
        assert!(closes.may_be_closed(seconds(5), start + seconds(60)));
        assert!(!closes.may_be_closed(seconds(4), start + seconds(60)));
        closes.record(seconds(2), start + seconds(60));
        assert!(closes.may_be_closed(seconds(1), start + seconds(60)));
        assert!(!closes.may_be_closed(seconds(100), start + seconds(120)));
        closes.record(Duration::ZERO, start + seconds(121));
        assert!(closes.may_be_closed(Duration::ZERO, start + seconds(121)));
    }
}
