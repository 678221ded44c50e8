//! Metrics of the login hook.

use std::time::Duration;

use prometheus::{Histogram, IntCounterVec, Registry};

use super::{counters, durations};

/// The logins that need the hook, and the time of its calls.
pub struct LoginHookMetrics {
    requests: IntCounterVec,
    duration: Histogram,
}

impl LoginHookMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            requests: counters(
                registry,
                "wxgate_login_hook_requests_total",
                "Logins that needed the login hook, by outcome",
                &["outcome"],
            )?,
            duration: durations(
                registry,
                "wxgate_login_hook_duration_seconds",
                "Duration of calls of the login hook",
            )?,
        })
    }

    /// Creates the series, as 0.
    pub fn from_start(&self, outcomes: &[&str]) {
        for outcome in outcomes {
            drop(self.requests.with_label_values(&[outcome]));
        }
    }

    /// Counts a login.
    pub fn count(&self, outcome: &str) {
        self.requests.with_label_values(&[outcome]).inc();
    }

    /// Records the time of a call.
    pub fn took(&self, time: Duration) {
        self.duration.observe(time.as_secs_f64());
    }
}
