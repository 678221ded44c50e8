//! Metrics of the calls to WeChat.

use prometheus::{IntGauge, Registry};

use super::gauge;

/// Gauges of exchanges. After a reload they include exchanges of the previous configuration until
/// these end.
pub struct WeChatMetrics {
    queue: IntGauge,
    in_flight: IntGauge,
    breaker_open: IntGauge,
}

/// Increments a gauge until it is dropped.
pub struct Raised<'a>(&'a IntGauge);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl WeChatMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            queue: gauge(registry, "wxgate_wechat_queue", "Logins that wait for an exchange")?,
            in_flight: gauge(
                registry,
                "wxgate_wechat_in_flight",
                "Exchanges with WeChat in flight",
            )?,
            breaker_open: gauge(
                registry,
                "wxgate_wechat_breaker_open",
                "Whether the circuit breaker is open: WeChat is not called",
            )?,
        })
    }

    /// Counts a waiting login until the result is dropped.
    pub fn queued(&self) -> Raised<'_> {
        self.queue.inc();
        Raised(&self.queue)
    }

    /// Counts an exchange until the result is dropped.
    pub fn in_flight(&self) -> Raised<'_> {
        self.in_flight.inc();
        Raised(&self.in_flight)
    }

    /// Sets whether the circuit breaker is open.
    pub fn breaker(&self, is_open: bool) {
        self.breaker_open.set(i64::from(is_open));
    }
}
