//! Metrics of requests, by route.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry};

use super::{Metrics, counters, duration_opts, forget, gauge, register};

/// Codes whose series exist from the start for every configured route.
const WATCHED_CODES: [u16; 9] = [200, 401, 403, 429, 500, 501, 502, 503, 504];

/// Metrics of the requests to all routes.
pub struct RequestMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    in_flight: IntGauge,
    buffered: IntGauge,
}

impl RequestMetrics {
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let duration = duration_opts(
            "wxgate_http_request_duration_seconds",
            "Time from the end of the request header to the end of the response",
        );
        Ok(Self {
            requests: counters(
                registry,
                "wxgate_http_requests_total",
                "Requests, by route and status of the response; 499 if the client disconnected",
                &["route", "code"],
            )?,
            duration: register(registry, HistogramVec::new(duration, &["route"])?)?,
            in_flight: gauge(registry, "wxgate_http_requests_in_flight", "Requests in flight")?,
            buffered: gauge(
                registry,
                "wxgate_buffered_bytes",
                "Bytes of limits.max_buffered in use",
            )?,
        })
    }
}

impl Metrics {
    /// The handles of one route, by its label.
    pub fn route(&self, label: &str) -> RouteMetrics {
        RouteMetrics {
            label: label.into(),
            requests: self.requests.requests.clone(),
            by_code: std::array::from_fn(|_| OnceLock::new()),
            duration: self.requests.duration.with_label_values(&[label]),
        }
    }

    /// Like [`Metrics::route`], but creates the series of the codes that operators watch as 0, so
    /// that `rate()` sees their first increase.
    pub fn route_from_start(&self, label: &str) -> RouteMetrics {
        let route = self.route(label);
        for code in WATCHED_CODES {
            let _ = route.counter(code);
        }
        route
    }

    /// Removes the series of a route that is no longer configured, by its label.
    pub fn forget_route(&self, label: &str) {
        forget(&self.requests.requests, "route", label);
        forget(&self.requests.duration, "route", label);
    }

    /// Counts a request in flight, until [`Metrics::request_ended`].
    pub fn request_started(&self) {
        self.requests.in_flight.inc();
    }

    pub fn request_ended(&self) {
        self.requests.in_flight.dec();
    }

    /// Sets how many bytes of `limits.max_buffered` are in use.
    pub fn set_buffered(&self, bytes: u64) {
        self.requests.buffered.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub fn requests_in_flight(&self) -> i64 {
        self.requests.in_flight.get()
    }
}

/// The metrics of one route.
pub struct RouteMetrics {
    label: Box<str>,
    requests: IntCounterVec,
    /// Index 0 is status 100. Except for the watched codes, a counter is created on first use, so
    /// that unused codes have no series.
    by_code: [OnceLock<IntCounter>; 500],
    duration: Histogram,
}

impl RouteMetrics {
    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn observe(&self, code: u16, took: Duration) {
        match self.counter(code) {
            Some(counter) => counter.inc(),
            // Services may send codes outside 100 to 599; with three digits they end at 999.
            None => self.series(code).inc(),
        }
        self.duration.observe(took.as_secs_f64());
    }

    fn counter(&self, code: u16) -> Option<&IntCounter> {
        let slot = self.by_code.get(usize::from(code.wrapping_sub(100)))?;
        Some(slot.get_or_init(|| self.series(code)))
    }

    fn series(&self, code: u16) -> IntCounter {
        self.requests.with_label_values(&[&*self.label, &code.to_string()])
    }
}
