//! Metrics of upstreams: the attempts of requests, by outcome, and the state of the servers.
//!
//! A retried request has several attempts. Gauges are set at each scrape, from the upstreams of the
//! current configuration.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use super::{Metrics, counters, duration_opts, forget, gauges, register};

/// Statuses whose series exist from the start for every configured upstream.
const WATCHED_STATUSES: [u16; 5] = [200, 500, 502, 503, 504];

/// The label of statuses outside 100 to 599.
const OTHER: &str = "other";

/// Metrics of the requests to all upstreams.
pub struct UpstreamFamilies {
    requests: IntCounterVec,
    response: HistogramVec,
    servers: IntGaugeVec,
    in_flight: IntGaugeVec,
    connections: IntGaugeVec,
    pending: IntGaugeVec,
    retries: IntCounterVec,
    health_checks: IntCounterVec,
}

impl UpstreamFamilies {
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let response = duration_opts(
            "wxgate_upstream_response_seconds",
            "Time from the begin of an attempt to the first byte of the response",
        );
        Ok(Self {
            requests: counters(
                registry,
                "wxgate_upstream_requests_total",
                "Attempts of requests, by upstream and status of the response or kind of failure",
                &["upstream", "code"],
            )?,
            response: register(registry, HistogramVec::new(response, &["upstream"])?)?,
            servers: gauges(
                registry,
                "wxgate_upstream_servers",
                "Resolved addresses of an upstream, by state",
                &["upstream", "state"],
            )?,
            in_flight: gauges(
                registry,
                "wxgate_upstream_requests_in_flight",
                "Attempts in flight to the servers of an upstream",
                &["upstream"],
            )?,
            connections: gauges(
                registry,
                "wxgate_upstream_connections",
                "Connections to the servers of an upstream, by state",
                &["upstream", "state"],
            )?,
            pending: gauges(
                registry,
                "wxgate_upstream_pending",
                "Requests that wait for a connection to a server of an upstream",
                &["upstream"],
            )?,
            retries: counters(
                registry,
                "wxgate_upstream_retries_total",
                "Retried requests, by how they ended: ok, failed, or no_budget if the budget \
                 refused a retry",
                &["upstream", "outcome"],
            )?,
            health_checks: counters(
                registry,
                "wxgate_upstream_health_checks_total",
                "Health checks of the servers of an upstream, by outcome",
                &["upstream", "outcome"],
            )?,
        })
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// A response with this status has begun.
    Status(u16),
    /// No connection could be opened.
    ConnectFailed,
    /// No connection could be opened, because the gateway has no socket left.
    NoSocket,
    TlsFailed,
    /// The connection was closed before a response.
    Reset,
    TimedOut,
    /// The server violated its protocol.
    ProtocolError,
}

/// How a request that was to be retried ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOutcome {
    Ok,
    Failed,
    /// The budget refused a retry.
    NoBudget,
}

/// The state of an upstream at the time of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpstreamState {
    /// Servers in use.
    pub healthy: usize,
    /// Servers that fail their health checks, ejected or not.
    pub unhealthy: usize,
    /// Servers that are ejected, and healthy otherwise.
    pub ejected: usize,
    /// Attempts in flight.
    pub in_flight: usize,
    /// Connections with a request, upgraded ones included.
    pub active: usize,
    pub idle: usize,
    /// Requests that wait for a connection.
    pub pending: usize,
}

impl Metrics {
    /// The metrics of one upstream, by its name. The series that operators watch exist from now
    /// on, with the value 0, so that `rate()` sees their first increase.
    pub fn upstream(&self, name: &str) -> UpstreamMetrics {
        let UpstreamFamilies { requests, .. } = &self.upstreams;
        let counter = |series: &IntCounterVec, value| series.with_label_values(&[name, value]);
        let gauge = |series: &IntGaugeVec, value| series.with_label_values(&[name, value]);
        let families = &self.upstreams;
        let upstream = UpstreamMetrics {
            name: name.into(),
            requests: requests.clone(),
            by_status: std::array::from_fn(|_| OnceLock::new()),
            connect_error: counter(requests, "connect_error"),
            reset: counter(requests, "reset"),
            timeout: counter(requests, "timeout"),
            tls_error: counter(requests, "tls_error"),
            protocol_error: counter(requests, "protocol_error"),
            response: families.response.with_label_values(&[name]),
            servers: ["healthy", "unhealthy", "ejected"].map(|of| gauge(&families.servers, of)),
            in_flight: families.in_flight.with_label_values(&[name]),
            connections: ["active", "idle"].map(|of| gauge(&families.connections, of)),
            pending: families.pending.with_label_values(&[name]),
            retries_ok: counter(&families.retries, "ok"),
            retries_failed: counter(&families.retries, "failed"),
            retries_no_budget: counter(&families.retries, "no_budget"),
            checks_ok: counter(&families.health_checks, "ok"),
            checks_failed: counter(&families.health_checks, "failed"),
        };
        for status in WATCHED_STATUSES {
            let _ = upstream.counter(status);
        }
        upstream
    }

    /// Removes the series of an upstream that is no longer configured, by its name. Requests in
    /// flight may create some of them again.
    pub fn forget_upstream(&self, name: &str) {
        let of = &self.upstreams;
        for counters in [&of.requests, &of.retries, &of.health_checks] {
            forget(counters, "upstream", name);
        }
        for gauges in [&of.servers, &of.in_flight, &of.connections, &of.pending] {
            forget(gauges, "upstream", name);
        }
        forget(&of.response, "upstream", name);
    }
}

/// The metrics of one upstream. Its labels are resolved once.
pub struct UpstreamMetrics {
    name: Box<str>,
    requests: IntCounterVec,
    /// Index 0 is status 100. Except for the watched ones, a counter is created on first use, so
    /// that unused statuses have no series.
    by_status: [OnceLock<IntCounter>; 500],
    connect_error: IntCounter,
    reset: IntCounter,
    timeout: IntCounter,
    tls_error: IntCounter,
    protocol_error: IntCounter,
    response: Histogram,
    servers: [IntGauge; 3],
    in_flight: IntGauge,
    connections: [IntGauge; 2],
    pending: IntGauge,
    retries_ok: IntCounter,
    retries_failed: IntCounter,
    retries_no_budget: IntCounter,
    checks_ok: IntCounter,
    checks_failed: IntCounter,
}

impl UpstreamMetrics {
    /// Counts an attempt that got no response.
    pub fn attempted(&self, outcome: AttemptOutcome) {
        match outcome {
            AttemptOutcome::Status(status) => match self.counter(status) {
                Some(counter) => counter.inc(),
                None => self.requests.with_label_values(&[&*self.name, OTHER]).inc(),
            },
            AttemptOutcome::ConnectFailed | AttemptOutcome::NoSocket => self.connect_error.inc(),
            AttemptOutcome::Reset => self.reset.inc(),
            AttemptOutcome::TimedOut => self.timeout.inc(),
            AttemptOutcome::TlsFailed => self.tls_error.inc(),
            AttemptOutcome::ProtocolError => self.protocol_error.inc(),
        }
    }

    /// Counts an attempt whose response has begun. `took` is the time to its first byte.
    pub fn responded(&self, status: u16, took: Duration) {
        self.attempted(AttemptOutcome::Status(status));
        self.response.observe(took.as_secs_f64());
    }

    /// Counts a request that was retried, or to which the budget refused it.
    pub fn retried(&self, outcome: RetryOutcome) {
        match outcome {
            RetryOutcome::Ok => self.retries_ok.inc(),
            RetryOutcome::Failed => self.retries_failed.inc(),
            RetryOutcome::NoBudget => self.retries_no_budget.inc(),
        }
    }

    /// Counts a health check.
    pub fn health_checked(&self, is_ok: bool) {
        if is_ok { &self.checks_ok } else { &self.checks_failed }.inc();
    }

    /// Sets the gauges. Called at each scrape.
    pub fn set(&self, state: &UpstreamState) {
        let set = |gauge: &IntGauge, count| gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        let [healthy, unhealthy, ejected] = &self.servers;
        set(healthy, state.healthy);
        set(unhealthy, state.unhealthy);
        set(ejected, state.ejected);
        set(&self.in_flight, state.in_flight);
        let [active, idle] = &self.connections;
        set(active, state.active);
        set(idle, state.idle);
        set(&self.pending, state.pending);
    }

    fn counter(&self, status: u16) -> Option<&IntCounter> {
        let slot = self.by_status.get(usize::from(status.wrapping_sub(100)))?;
        Some(
            slot.get_or_init(|| {
                self.requests.with_label_values(&[&*self.name, &status.to_string()])
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(metrics: &Metrics, upstream: &str) -> Vec<String> {
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let label = format!("upstream=\"{upstream}\"");
        text.lines().filter(|line| line.contains(&label)).map(str::to_owned).collect()
    }

    #[test]
    fn series_exist_from_the_start_and_go_with_the_upstream() {
        let metrics = Metrics::new().unwrap();
        let shop = metrics.upstream("shop");
        let other = metrics.upstream("other");
        let lines = lines_of(&metrics, "shop");
        for series in [
            "wxgate_upstream_requests_total{code=\"200\",upstream=\"shop\"} 0",
            "wxgate_upstream_requests_total{code=\"503\",upstream=\"shop\"} 0",
            "wxgate_upstream_requests_total{code=\"connect_error\",upstream=\"shop\"} 0",
            "wxgate_upstream_requests_total{code=\"reset\",upstream=\"shop\"} 0",
            "wxgate_upstream_requests_total{code=\"timeout\",upstream=\"shop\"} 0",
            "wxgate_upstream_requests_total{code=\"tls_error\",upstream=\"shop\"} 0",
            "wxgate_upstream_requests_total{code=\"protocol_error\",upstream=\"shop\"} 0",
            "wxgate_upstream_response_seconds_count{upstream=\"shop\"} 0",
            "wxgate_upstream_servers{state=\"healthy\",upstream=\"shop\"} 0",
            "wxgate_upstream_servers{state=\"unhealthy\",upstream=\"shop\"} 0",
            "wxgate_upstream_servers{state=\"ejected\",upstream=\"shop\"} 0",
            "wxgate_upstream_requests_in_flight{upstream=\"shop\"} 0",
            "wxgate_upstream_connections{state=\"active\",upstream=\"shop\"} 0",
            "wxgate_upstream_connections{state=\"idle\",upstream=\"shop\"} 0",
            "wxgate_upstream_pending{upstream=\"shop\"} 0",
            "wxgate_upstream_retries_total{outcome=\"ok\",upstream=\"shop\"} 0",
            "wxgate_upstream_retries_total{outcome=\"failed\",upstream=\"shop\"} 0",
            "wxgate_upstream_retries_total{outcome=\"no_budget\",upstream=\"shop\"} 0",
            "wxgate_upstream_health_checks_total{outcome=\"ok\",upstream=\"shop\"} 0",
            "wxgate_upstream_health_checks_total{outcome=\"failed\",upstream=\"shop\"} 0",
        ] {
            assert!(lines.iter().any(|line| line == series), "{series} in {lines:#?}");
        }
        shop.responded(299, Duration::ZERO);
        other.responded(200, Duration::ZERO);
        metrics.forget_upstream("shop");
        assert_eq!(lines_of(&metrics, "shop"), [""; 0]);
        let counted = "wxgate_upstream_requests_total{code=\"200\",upstream=\"other\"} 1";
        assert!(lines_of(&metrics, "other").iter().any(|line| line == counted));
    }

    #[test]
    fn statuses_that_do_not_exist_share_one_series() {
        let metrics = Metrics::new().unwrap();
        let shop = metrics.upstream("shop");
        for status in [0, 99, 600, 999] {
            shop.responded(status, Duration::ZERO);
        }
        shop.responded(599, Duration::from_millis(3));
        let lines = lines_of(&metrics, "shop");
        for series in [
            "wxgate_upstream_requests_total{code=\"other\",upstream=\"shop\"} 4",
            "wxgate_upstream_requests_total{code=\"599\",upstream=\"shop\"} 1",
            "wxgate_upstream_response_seconds_count{upstream=\"shop\"} 5",
        ] {
            assert!(lines.iter().any(|line| line == series), "{series} in {lines:#?}");
        }
    }
}
