//! Metrics of the calls to WeChat.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::{Counters, counters, forget, gauge, gauges};

/// Gauges of exchanges. After a reload they include exchanges of the previous configuration until
/// these end.
pub struct WeChatMetrics {
    queue: IntGauge,
    in_flight: IntGauge,
    breaker_open: IntGauge,
    renewals: IntCounterVec,
    token_expiry: IntGaugeVec,
    api_calls: IntCounterVec,
}

/// The outcomes of renewals of an access token.
const RENEWAL_OUTCOMES: [&str; 4] = ["ok", "rejected", "busy", "timeout"];

/// Metrics of the access token of one app.
pub struct AccessTokenMetrics {
    renewals: Counters<4>,
    app_id: String,
    expiry: IntGaugeVec,
}

impl AccessTokenMetrics {
    /// Counts a renewal by its outcome.
    pub fn renewed(&self, outcome: &str) {
        if let Some(index) = RENEWAL_OUTCOMES.iter().position(|known| *known == outcome) {
            self.renewals.count(index);
        }
    }

    /// Sets when the token expires, in milliseconds since 1970. There is no series before: without
    /// a token, 0 would look like one that has expired.
    pub fn set_expiry(&self, millis: u64) {
        let gauge = self.expiry.with_label_values(&[&self.app_id]);
        gauge.set(i64::try_from(millis / 1000).unwrap_or(i64::MAX));
    }
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
            renewals: counters(
                registry,
                "wxgate_access_token_renewals_total",
                "Renewals of access tokens, by app and outcome",
                &["app_id", "outcome"],
            )?,
            token_expiry: gauges(
                registry,
                "wxgate_access_token_expires_timestamp_seconds",
                "When the access token of an app expires, in seconds since 1970",
                &["app_id"],
            )?,
            api_calls: counters(
                registry,
                "wxgate_wechat_api_requests_total",
                "Calls of WeChat's API with an access token, by app and errcode",
                &["app_id", "errcode"],
            )?,
        })
    }

    /// The metrics of the access token of an app, with counters that start at 0.
    pub fn access_token(&self, app_id: &str) -> AccessTokenMetrics {
        AccessTokenMetrics {
            renewals: Counters::of_app(&self.renewals, app_id, RENEWAL_OUTCOMES),
            app_id: app_id.to_owned(),
            expiry: self.token_expiry.clone(),
        }
    }

    pub(super) fn forget_app(&self, app_id: &str) {
        forget(&self.renewals, "app_id", app_id);
        forget(&self.token_expiry, "app_id", app_id);
        forget(&self.api_calls, "app_id", app_id);
    }

    /// Counts a call with an access token.
    pub fn api_called(&self, app_id: &str, errcode: &str) {
        self.api_calls.with_label_values(&[app_id, errcode]).inc();
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
