//! Metrics of the internal API's calls for session keys and phone numbers.

use prometheus::{IntCounterVec, Registry};

use super::counters;

/// Calls, by operation and outcome.
pub struct OpenDataMetrics(IntCounterVec);

impl OpenDataMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self(counters(
            registry,
            "wxgate_open_data_requests_total",
            "Calls for session keys and phone numbers, by operation and outcome: ok or the error \
             of the response",
            &["operation", "outcome"],
        )?))
    }

    /// Creates the series of an operation, as 0.
    pub fn from_start(&self, operation: &str, outcomes: impl IntoIterator<Item = &'static str>) {
        for outcome in outcomes {
            drop(self.0.with_label_values(&[operation, outcome]));
        }
    }

    /// Counts a call. `outcome` is `ok` or the `error` word of the response.
    pub fn count(&self, operation: &str, outcome: &str) {
        self.0.with_label_values(&[operation, outcome]).inc();
    }
}
