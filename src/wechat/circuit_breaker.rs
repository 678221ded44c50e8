//! When calls to WeChat stop after failures, and when they start again.
//!
//! The circuit breaker opens after a number of consecutive failures, and then rejects calls. After
//! a pause it admits one call at a time as a probe; a success closes it, a failure opens it again.
//! It has no clock and makes no calls: the caller passes the time.

use std::time::Duration;

/// The circuit breaker of one service.
pub struct CircuitBreaker {
    /// Consecutive failures after which it opens; 0: never.
    failure_threshold: u32,
    pause: Duration,
    /// The longest time that a probe may take.
    probe_timeout: Duration,
    state: CircuitState,
}

enum CircuitState {
    Closed {
        failures: u32,
    },
    /// Rejects calls until this time; then admits a probe.
    Open {
        until: Duration,
    },
}

impl CircuitBreaker {
    pub fn new(failure_threshold: u32, pause: Duration, probe_timeout: Duration) -> Self {
        let probe_timeout = probe_timeout.max(pause);
        Self {
            failure_threshold,
            pause,
            probe_timeout,
            state: CircuitState::Closed { failures: 0 },
        }
    }

    /// Whether a call is allowed now.
    ///
    /// # Errors
    /// How long to wait.
    pub fn admit(&mut self, now: Duration) -> Result<(), Duration> {
        let CircuitState::Open { until } = &mut self.state else { return Ok(()) };
        if now < *until {
            return Err(until.saturating_sub(now));
        }
        // This call is the probe. If it never reports, another call becomes the probe later.
        *until = now + self.probe_timeout;
        Ok(())
    }

    /// Reports the outcome of a call. Returns whether the breaker has just opened.
    pub fn report(&mut self, is_success: bool, now: Duration) -> bool {
        match &mut self.state {
            _ if is_success => self.state = CircuitState::Closed { failures: 0 },
            CircuitState::Closed { failures } => {
                *failures += 1;
                if *failures == self.failure_threshold {
                    self.state = CircuitState::Open { until: now + self.pause };
                    return true;
                }
            }
            // The probe, or a call that began before the breaker opened.
            CircuitState::Open { until } => *until = now + self.pause,
        }
        false
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, CircuitState::Open { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn open() -> CircuitBreaker {
        let mut breaker = CircuitBreaker::new(3, PAUSE, PAUSE);
        assert!(!breaker.report(false, at(0)));
        assert!(!breaker.report(false, at(0)));
        assert!(breaker.report(false, at(0)));
        breaker
    }

    #[test]
    fn only_consecutive_failures_open_it() {
        let mut breaker = CircuitBreaker::new(3, PAUSE, PAUSE);
        for _ in 0..10 {
            breaker.report(false, at(0));
            breaker.report(false, at(0));
            breaker.report(true, at(0));
            assert_eq!(breaker.admit(at(0)), Ok(()));
        }
        assert_eq!(open().admit(at(1)), Err(at(4)));
    }

    #[test]
    fn after_the_pause_one_probe_is_admitted_at_a_time() {
        let mut breaker = open();
        assert_eq!(breaker.admit(at(5)), Ok(()));
        assert_eq!(breaker.admit(at(5)), Err(PAUSE));
        // The probe never reported.
        assert_eq!(breaker.admit(at(10)), Ok(()));
        assert_eq!(breaker.admit(at(10)), Err(PAUSE));
    }

    #[test]
    fn the_probe_decides() {
        let mut breaker = open();
        breaker.admit(at(5)).unwrap();
        assert!(!breaker.report(false, at(7)));
        assert_eq!(breaker.admit(at(11)), Err(at(1)));
        breaker.admit(at(12)).unwrap();
        breaker.report(true, at(12));
        assert!(!breaker.is_open());
        assert_eq!(breaker.admit(at(12)), Ok(()));
        assert_eq!(breaker.admit(at(12)), Ok(()));
    }

    #[test]
    fn a_threshold_of_zero_never_opens_it() {
        let mut breaker = CircuitBreaker::new(0, PAUSE, PAUSE);
        for _ in 0..1000 {
            assert!(!breaker.report(false, at(0)));
        }
        assert_eq!(breaker.admit(at(0)), Ok(()));
    }
}
