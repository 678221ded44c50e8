//! Logs frequent events at most once a minute.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;

/// Time between two lines about the same event.
const INTERVAL: Duration = Duration::from_secs(60);

/// Maximum number of kinds of events that one [`LogThrottles`] distinguishes.
const MAX_KINDS: usize = 1000;

/// When an event was last logged, and how often it has happened since.
#[derive(Default)]
struct Logged(Option<(Duration, u64)>);

impl Logged {
    fn suppressed(&mut self, now: Duration) -> Option<u64> {
        match &mut self.0 {
            Some((at, suppressed)) if now < *at + INTERVAL => {
                *suppressed += 1;
                None
            }
            last => Some(last.replace((now, 0)).map_or(0, |(_, suppressed)| suppressed)),
        }
    }

    fn is_old(&self, now: Duration) -> bool {
        self.0.is_none_or(|(at, _)| now >= at + INTERVAL)
    }
}

/// Decides whether one kind of event is logged now.
pub struct LogThrottle {
    clock: Clock,
    last: Mutex<Logged>,
}

impl LogThrottle {
    pub fn new(clock: Clock) -> Self {
        Self { clock, last: Mutex::default() }
    }

    /// Counts an event. If it is to be logged now, returns how many were suppressed since the last
    /// line.
    pub fn suppressed(&self) -> Option<u64> {
        let mut last = self.last.lock();
        last.suppressed(self.clock.now())
    }
}

/// A [`LogThrottle`] for each kind of event. Beyond a thousand kinds in a minute, all new ones
/// count as one kind.
pub struct LogThrottles<K> {
    clock: Clock,
    each: Mutex<HashMap<K, Logged>>,
    rest: LogThrottle,
}

impl<K: Eq + Hash> LogThrottles<K> {
    pub fn new(clock: Clock) -> Self {
        Self { rest: LogThrottle::new(clock.clone()), each: Mutex::default(), clock }
    }

    /// Counts an event of this kind; see [`LogThrottle::suppressed`].
    pub fn suppressed(&self, kind: K) -> Option<u64> {
        let now = self.clock.now();
        let mut each = self.each.lock();
        if each.len() >= MAX_KINDS && !each.contains_key(&kind) {
            each.retain(|_, logged| !logged.is_old(now));
            if each.len() >= MAX_KINDS {
                drop(each);
                return self.rest.suppressed();
            }
        }
        each.entry(kind).or_default().suppressed(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_logged_once_a_minute_with_the_suppressed_count() {
        let clock = Clock::manual();
        let throttle = LogThrottle::new(clock.clone());
        assert_eq!(throttle.suppressed(), Some(0));
        assert_eq!(throttle.suppressed(), None);
        clock.advance(Duration::from_millis(59_999));
        assert_eq!(throttle.suppressed(), None);
        clock.advance(Duration::from_millis(1));
        assert_eq!(throttle.suppressed(), Some(2));
        assert_eq!(throttle.suppressed(), None);
    }

    #[test]
    fn the_number_of_distinguished_kinds_is_limited() {
        let clock = Clock::manual();
        let throttle = LogThrottles::new(clock.clone());
        assert_eq!(throttle.suppressed(0), Some(0));
        assert_eq!(throttle.suppressed(0), None);
        assert_eq!((1..10_000).filter_map(|kind| throttle.suppressed(kind)).count(), MAX_KINDS);
        assert_eq!(throttle.suppressed(0), None);
        clock.advance(INTERVAL);
        assert_eq!(throttle.suppressed(5_000), Some(0), "old kinds make room");
        assert_eq!(throttle.suppressed(1), Some(0));
    }
}
