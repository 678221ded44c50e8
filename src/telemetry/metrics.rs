//! The metrics of the gateway, one method per event.
//!
//! Names and labels are stable, because dashboards depend on them. Label values come from closed
//! sets: routes and apps of the configuration, and words in this code. The labels of a route are
//! resolved once, into a [`RouteMetrics`], so that requests need no lookup. The registry belongs to
//! the gateway: several gateways in one process share no metric.

mod login_hook;
mod open_data;
mod requests;
mod sessions;
mod snapshot;
mod upstream;
mod wechat;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

pub use self::login_hook::LoginHookMetrics;
pub use self::open_data::OpenDataMetrics;
use self::requests::RequestMetrics;
pub use self::requests::RouteMetrics;
pub use self::sessions::RestoredFrom;
use self::sessions::SessionMetrics;
pub use self::snapshot::{SnapshotMetrics, Stage};
use self::upstream::UpstreamFamilies;
pub use self::upstream::{AttemptOutcome, RetryOutcome, UpstreamMetrics, UpstreamState};
pub use self::wechat::{AccessTokenMetrics, Raised, WeChatMetrics};

/// 1 ms to 10 s.
const DURATION_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Counters of one metric, one for each value of its label: counting needs no lookup.
#[derive(Clone)]
pub struct Counters<const N: usize>([IntCounter; N]);

impl<const N: usize> Counters<N> {
    fn new(series: &IntCounterVec, values: [&str; N]) -> Self {
        Self(values.map(|value| series.with_label_values(&[value])))
    }

    /// The counters of one app, for a metric with the labels app id and another one.
    fn of_app(series: &IntCounterVec, app_id: &str, values: [&str; N]) -> Self {
        Self(values.map(|value| series.with_label_values(&[app_id, value])))
    }

    /// Counts the value at this index of the values given to `Counters::new`.
    pub fn count(&self, index: usize) {
        if let Some(counter) = self.0.get(index) {
            counter.inc();
        }
    }
}

/// The number of lines that a log writer has dropped so far.
type DroppedLines = Box<dyn Fn() -> usize + Send>;

/// All metrics of one gateway process.
pub struct Metrics {
    registry: Registry,
    requests: RequestMetrics,
    upstreams: UpstreamFamilies,
    decisions: IntCounterVec,
    logins: IntCounterVec,
    logins_coalesced: IntCounter,
    exchanges: IntCounterVec,
    exchange_duration: Histogram,
    pub wechat: WeChatMetrics,
    pub login_hook: LoginHookMetrics,
    pub open_data: OpenDataMetrics,
    sessions: SessionMetrics,
    pub snapshot: SnapshotMetrics,
    reload_successful: IntGauge,
    reload_success_time: Gauge,
    certificate_expiry: IntGaugeVec,
    /// The labels in use.
    certificates: Mutex<Vec<String>>,
    handshakes_failed: IntCounter,
    log_lines_dropped: IntCounter,
    log_writers: Mutex<Vec<DroppedLines>>,
}

impl Metrics {
    /// Registers every metric, so that each exists, as zero, at the first scrape.
    ///
    /// # Errors
    /// Only if two metrics had the same name, which the first start of any build would show.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let build = gauges(
            &registry,
            "wxgate_build_info",
            "Version of wxgate, as a label; the value is always 1",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        // 1 before the first reload, because alerts treat 0 as a failure.
        let reload_successful = gauge(
            &registry,
            "wxgate_config_last_reload_successful",
            "Whether the last load of the configuration succeeded",
        )?;
        reload_successful.set(1);
        let reload_success_time = Gauge::new(
            "wxgate_config_last_reload_success_timestamp_seconds",
            "Time of the last successful load of the configuration",
        )?;
        let reload_success_time = register(&registry, reload_success_time)?;
        reload_success_time.set(unix_seconds());
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;

        Ok(Arc::new(Self {
            requests: RequestMetrics::new(&registry)?,
            upstreams: UpstreamFamilies::new(&registry)?,
            decisions: counters(
                &registry,
                "wxgate_auth_decisions_total",
                "Requests to routes that check the session, by decision",
                &["decision"],
            )?,
            logins: counters(
                &registry,
                "wxgate_logins_total",
                "Logins, by app and outcome: ok or the error of the response",
                &["app_id", "outcome"],
            )?,
            logins_coalesced: counter(
                &registry,
                "wxgate_login_coalesced_total",
                "Logins that got the response of another login with the same code",
            )?,
            exchanges: counters(
                &registry,
                "wxgate_code2session_requests_total",
                "Calls of code2Session, by app and errcode",
                &["app_id", "errcode"],
            )?,
            exchange_duration: durations(
                &registry,
                "wxgate_code2session_duration_seconds",
                "Duration of code2Session calls",
            )?,
            wechat: WeChatMetrics::new(&registry)?,
            login_hook: LoginHookMetrics::new(&registry)?,
            open_data: OpenDataMetrics::new(&registry)?,
            sessions: SessionMetrics::new(&registry)?,
            snapshot: SnapshotMetrics::new()?,
            certificate_expiry: gauges(
                &registry,
                "wxgate_tls_certificate_expiry_timestamp_seconds",
                "Expiry of a certificate file: of its certificate that expires first",
                &["certificate"],
            )?,
            certificates: Mutex::default(),
            handshakes_failed: counter(
                &registry,
                "wxgate_tls_handshakes_failed_total",
                "TLS handshakes that failed or timed out, except those that the client aborted",
            )?,
            log_lines_dropped: counter(
                &registry,
                "wxgate_log_lines_dropped_total",
                "Log lines dropped because they could not be written, or not in time",
            )?,
            log_writers: Mutex::new(Vec::new()),
            reload_successful,
            reload_success_time,
            registry,
        }))
    }

    /// Creates the series of an app, or of `unknown`, as 0, so that `rate()` sees their first
    /// increase.
    pub fn app_from_start(&self, app_id: &str, outcomes: &[&str], errcodes: &[&str]) {
        for outcome in outcomes {
            drop(self.logins.with_label_values(&[app_id, outcome]));
        }
        for errcode in errcodes {
            drop(self.exchanges.with_label_values(&[app_id, errcode]));
        }
    }

    /// Removes the series of an app that is no longer configured. Requests in flight may create
    /// some of them again.
    pub fn forget_app(&self, app_id: &str) {
        for counters in [&self.logins, &self.exchanges] {
            forget(counters, "app_id", app_id);
        }
        self.wechat.forget_app(app_id);
    }

    /// Records the outcome of the last reload.
    pub fn reloaded(&self, is_successful: bool) {
        self.reload_successful.set(i64::from(is_successful));
        if is_successful {
            self.reload_success_time.set(unix_seconds());
        }
    }

    /// The counters of decisions, starting at 0.
    pub fn decisions<const N: usize>(&self, values: [&str; N]) -> Counters<N> {
        Counters::new(&self.decisions, values)
    }

    /// Counts a login. `app_id` is from the configuration, or `unknown`; `outcome` is `ok` or the
    /// `error` word of a rejection.
    pub fn login(&self, app_id: &str, outcome: &'static str) {
        self.logins.with_label_values(&[app_id, outcome]).inc();
    }

    /// Counts a login that got the outcome of another.
    pub fn login_coalesced(&self) {
        self.logins_coalesced.inc();
    }

    pub fn exchanged(&self, app_id: &str, errcode: &str, took: Duration) {
        self.exchanges.with_label_values(&[app_id, errcode]).inc();
        self.exchange_duration.observe(took.as_secs_f64());
    }

    /// Sets the certificate files and when they expire; files that are no longer used are removed.
    pub fn set_certificates(&self, in_use: impl Iterator<Item = (String, SystemTime)>) {
        let mut certificates = self.certificates.lock();
        let before = std::mem::take(&mut *certificates);
        for (file, expires) in in_use {
            let expires = expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let gauge = self.certificate_expiry.with_label_values(&[&file]);
            gauge.set(i64::try_from(expires).unwrap_or(i64::MAX));
            certificates.push(file);
        }
        for removed in before.iter().filter(|file| !certificates.contains(file)) {
            // A file that was listed twice is already removed.
            let _ = self.certificate_expiry.remove_label_values(&[removed]);
        }
    }

    pub fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// Counts the lines that a log writer has dropped, at each scrape.
    pub fn watch_log(&self, dropped: impl Fn() -> usize + Send + 'static) {
        self.log_writers.lock().push(Box::new(dropped));
    }

    /// The Prometheus text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        {
            let writers = self.log_writers.lock();
            let dropped: usize = writers.iter().map(|dropped| dropped()).sum();
            let counted = self.log_lines_dropped.get();
            self.log_lines_dropped.inc_by((dropped as u64).saturating_sub(counted));
        }
        self.sessions.update();
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    register(registry, IntCounter::new(name, help)?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    register(registry, IntGauge::new(name, help)?)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn durations(registry: &Registry, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
    register(registry, Histogram::with_opts(duration_opts(name, help))?)
}

fn duration_opts(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec())
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// Removes all series in which a label has a value.
fn forget<B: MetricVecBuilder>(series: &MetricVec<B>, label: &str, value: &str) {
    for family in series.collect() {
        for metric in family.get_metric() {
            let labels = metric.get_label().iter().map(|pair| (pair.name(), pair.value()));
            let labels: HashMap<_, _> = labels.collect();
            if labels.get(label) == Some(&value) {
                // An error means that another caller has just removed it.
                let _ = series.remove(&labels);
            }
        }
    }
}

fn unix_seconds() -> f64 {
    crate::clock::unix_time().as_secs_f64()
}
