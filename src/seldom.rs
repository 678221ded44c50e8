//! What may happen at any rate, and is said at most once a minute.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;

/// Between two lines about the same.
const INTERVAL: Duration = Duration::from_secs(60);

/// Whether to say one thing.
pub struct Seldom {
    clock: Clock,
    /// When it was said, and how often it has happened since.
    last: Mutex<Option<(Duration, u64)>>,
}

impl Seldom {
    pub fn new(clock: Clock) -> Self {
        Self { clock, last: Mutex::default() }
    }

    /// It has happened. How often it did since it was last said, if it is to be said now.
    pub fn others(&self) -> Option<u64> {
        let now = self.clock.now();
        // Nothing panics while it holds the lock.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *last {
            Some((at, others)) if now < *at + INTERVAL => {
                *others += 1;
                None
            }
            last => Some(last.replace((now, 0)).map_or(0, |(_, others)| others)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_with_the_number_of_others() {
        let clock = Clock::manual();
        let seldom = Seldom::new(clock.clone());
        assert_eq!(seldom.others(), Some(0));
        assert_eq!(seldom.others(), None);
        clock.advance(Duration::from_millis(59_999));
        assert_eq!(seldom.others(), None);
        clock.advance(Duration::from_millis(1));
        assert_eq!(seldom.others(), Some(2));
        assert_eq!(seldom.others(), None);
    }
}
