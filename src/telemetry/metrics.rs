//! The metrics of the gateway, one method per event.
//!
//! Names and labels are stable, because dashboards depend on them. Label values come from closed
//! sets: routes and apps of the configuration, and words in this code. The labels of a route are
//! resolved once, into a [`RouteMetrics`], so that requests need no look-up. The registry belongs
//! to the gateway: several gateways in one process share no metric.

mod wechat;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use self::wechat::{Raised, WeChatMetrics};

/// 1 ms to 10 s.
const DURATION_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Codes whose series exist from the start for every configured route.
const WATCHED_CODES: [u16; 9] = [200, 401, 403, 429, 500, 501, 502, 503, 504];

/// Counters of one metric, one for each value of its label: counting needs no look-up.
#[derive(Clone)]
pub struct Counters<const N: usize>([IntCounter; N]);

impl<const N: usize> Counters<N> {
    fn new(series: &IntCounterVec, values: [&str; N]) -> Self {
        Self(values.map(|value| series.with_label_values(&[value])))
    }

    /// Counts the value at this index of the values given to `Counters::new`.
    pub fn count(&self, index: usize) {
        if let Some(counter) = self.0.get(index) {
            counter.inc();
        }
    }
}

/// Metrics of a shared store; exported only if there is one.
struct StoreMetrics {
    up: IntGauge,
    outcomes: IntCounterVec,
    duration: Histogram,
    /// Sessions known here; [`NO_STORE`] without a shared store.
    sessions: AtomicU64,
}

const NO_STORE: u64 = u64::MAX;

impl StoreMetrics {
    fn new() -> Result<Self, prometheus::Error> {
        let outcomes = IntCounterVec::new(
            Opts::new("wxgate_store_requests_total", "Dealings with the session store by outcome"),
            &["outcome"],
        )?;
        let duration = HistogramOpts::new(
            "wxgate_store_duration_seconds",
            "Time of a request's dealings with the session store",
        );
        Ok(Self {
            up: IntGauge::new("wxgate_store_up", "Whether the session store is within reach")?,
            outcomes,
            duration: Histogram::with_opts(duration.buckets(DURATION_BUCKETS.to_vec()))?,
            sessions: AtomicU64::new(NO_STORE),
        })
    }

    fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        self.sessions.store(0, Ordering::Relaxed);
        registry.register(Box::new(self.up.clone()))?;
        registry.register(Box::new(self.outcomes.clone()))?;
        registry.register(Box::new(self.duration.clone()))
    }
}

/// The number of lines that a log writer has dropped so far.
type LinesLost = Box<dyn Fn() -> usize + Send>;

/// All metrics of one gateway process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    in_flight: IntGauge,
    buffered: IntGauge,
    decisions: IntCounterVec,
    logins: IntCounterVec,
    logins_coalesced: IntCounter,
    exchanges: IntCounterVec,
    exchange_duration: Histogram,
    pub wechat: WeChatMetrics,
    sessions: IntGauge,
    sessions_created: IntCounter,
    sessions_removed: IntCounterVec,
    /// The counters of the causes in use.
    removals: OnceLock<Vec<IntCounter>>,
    store: StoreMetrics,
    reload_successful: IntGauge,
    reload_success_time: Gauge,
    certificate_expiry: IntGaugeVec,
    /// The labels in use.
    certificates: Mutex<Vec<String>>,
    handshakes_failed: IntCounter,
    log_lines_dropped: IntCounter,
    log_writers: Mutex<Vec<LinesLost>>,
}

impl Metrics {
    /// Registers every metric, so that each exists, as zero, at the first scrape.
    ///
    /// # Errors
    /// Only if two metrics had the same name, which the first start of any build would show.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            register(&registry, counter)
        };
        let single = |name: &str, help: &str| register(&registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help)?);
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };

        let build = gauges("wxgate_build_info", "Version of wxgate, always 1", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        // 1 before the first reload, because alerts treat 0 as a failure.
        let reload_successful =
            gauge("wxgate_config_last_reload_successful", "Whether the last (re)load succeeded")?;
        reload_successful.set(1);
        let reload_success_time = Gauge::new(
            "wxgate_config_last_reload_success_timestamp_seconds",
            "Time of the last successful (re)load",
        )?;
        let reload_success_time = register(&registry, reload_success_time)?;
        reload_success_time.set(unix_seconds());
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;

        Ok(Arc::new(Self {
            requests: counter(
                "wxgate_http_requests_total",
                "Requests by route and status code as sent; 499 when the client left",
                &["route", "code"],
            )?,
            request_duration: register(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "wxgate_http_request_duration_seconds",
                        "Time from the end of the request head to the end of the answer",
                    )
                    .buckets(DURATION_BUCKETS.to_vec()),
                    &["route"],
                )?,
            )?,
            in_flight: gauge("wxgate_http_requests_in_flight", "Requests being served")?,
            buffered: gauge("wxgate_buffered_bytes", "Bytes that grown HTTP/2 windows may take")?,
            decisions: counter(
                "wxgate_auth_decisions_total",
                "Requests by the verdict on their session",
                &["decision"],
            )?,
            logins: counter(
                "wxgate_logins_total",
                "Logins by app and outcome: ok or the error of the answer",
                &["app_id", "outcome"],
            )?,
            logins_coalesced: single(
                "wxgate_login_coalesced_total",
                "Logins that shared the exchange of another with the same code, or got its answer again",
            )?,
            exchanges: counter(
                "wxgate_code2session_requests_total",
                "Calls of WeChat's code2Session by app and errcode",
                &["app_id", "errcode"],
            )?,
            exchange_duration: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "wxgate_code2session_duration_seconds",
                        "Time of a code2Session call",
                    )
                    .buckets(DURATION_BUCKETS.to_vec()),
                )?,
            )?,
            wechat: WeChatMetrics::new(&registry)?,
            sessions: gauge("wxgate_sessions", "Sessions held")?,
            sessions_created: single("wxgate_sessions_created_total", "Sessions created")?,
            sessions_removed: counter(
                "wxgate_sessions_removed_total",
                "Sessions that ended, by cause",
                &["cause"],
            )?,
            removals: OnceLock::new(),
            store: StoreMetrics::new()?,
            certificate_expiry: gauges(
                "wxgate_tls_certificate_expiry_timestamp_seconds",
                "When the first certificate of a file in use expires",
                &["certificate"],
            )?,
            certificates: Mutex::default(),
            handshakes_failed: single(
                "wxgate_tls_handshakes_failed_total",
                "TLS handshakes that failed or were not over in time; who just left is not counted",
            )?,
            log_lines_dropped: single(
                "wxgate_log_lines_dropped_total",
                "Log lines given up because their destination was full",
            )?,
            log_writers: Mutex::new(Vec::new()),
            reload_successful,
            reload_success_time,
            registry,
        }))
    }

    /// The handles of one route, by its label.
    pub fn route(&self, label: &str) -> RouteMetrics {
        RouteMetrics {
            label: label.into(),
            requests: self.requests.clone(),
            by_code: std::array::from_fn(|_| OnceLock::new()),
            duration: self.request_duration.with_label_values(&[label]),
        }
    }

    /// The same, but series of the codes that operators watch are created as 0, so that `rate()`
    /// sees their first increase.
    pub fn route_from_start(&self, label: &str) -> RouteMetrics {
        let route = self.route(label);
        for code in WATCHED_CODES {
            let _ = route.counter(code);
        }
        route
    }

    /// Creates the series of an app, or of `unknown`, as 0, as [`Metrics::route_from_start`] does.
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
    }

    /// The same for a route, by its label.
    pub fn forget_route(&self, label: &str) {
        forget(&self.requests, "route", label);
        forget(&self.request_duration, "route", label);
    }

    /// Records the outcome of the last reload.
    pub fn reloaded(&self, is_successful: bool) {
        self.reload_successful.set(i64::from(is_successful));
        if is_successful {
            self.reload_success_time.set(unix_seconds());
        }
    }

    /// Counts a request in flight, until [`Metrics::request_ended`].
    pub fn request_started(&self) {
        self.in_flight.inc();
    }

    pub fn request_ended(&self) {
        self.in_flight.dec();
    }

    /// Sets how many bytes of `limits.max_buffered` are in use.
    pub fn set_buffered(&self, bytes: u64) {
        self.buffered.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub fn requests_in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// The counters of decisions, starting at 0.
    pub fn decisions<const N: usize>(&self, values: [&str; N]) -> Counters<N> {
        Counters::new(&self.decisions, values)
    }

    /// `app_id` is from the configuration, or `unknown`; `outcome` is `ok` or a rejection's word.
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

    pub fn session_created(&self) {
        self.sessions_created.inc();
    }

    /// Also exports the metrics of a shared store. Called once, before they are used.
    ///
    /// # Errors
    /// Only if two metrics had the same name.
    pub fn with_store(&self) -> Result<(), prometheus::Error> {
        self.store.register(&self.registry)
    }

    pub fn store_up(&self, is_up: bool) {
        self.store.up.set(i64::from(is_up));
    }

    /// The counters of requests to the store, by outcome, starting at 0.
    pub fn store_outcomes<const N: usize>(&self, values: [&str; N]) -> Counters<N> {
        Counters::new(&self.store.outcomes, values)
    }

    /// Records how long a request to the store took.
    pub fn store_took(&self, took: Duration) {
        self.store.duration.observe(took.as_secs_f64());
    }

    /// Sets the number of sessions of a shared store that are known here. It cannot be computed
    /// from counters, because sessions created here may end elsewhere.
    pub fn sessions_known(&self, known: u64) {
        self.store.sessions.store(known, Ordering::Relaxed);
    }

    /// The counters of ended sessions, by cause, starting at 0. All callers use the same causes.
    pub fn removals<const N: usize>(&self, causes: [&str; N]) -> Counters<N> {
        let counters = Counters::new(&self.sessions_removed, causes);
        self.removals.get_or_init(|| counters.0.to_vec());
        counters
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
        for gone in before.iter().filter(|file| !certificates.contains(file)) {
            // A file that was listed twice is already removed.
            let _ = self.certificate_expiry.remove_label_values(&[gone]);
        }
    }

    pub fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// Counts the lines that a log writer has dropped, at each scrape.
    pub fn watch_log(&self, lost: impl Fn() -> usize + Send + 'static) {
        self.log_writers.lock().push(Box::new(lost));
    }

    /// The Prometheus text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let removed: u64 = self.removals.get().into_iter().flatten().map(IntCounter::get).sum();
        let held = match self.store.sessions.load(Ordering::Relaxed) {
            NO_STORE => self.sessions_created.get().saturating_sub(removed),
            known => known,
        };
        self.sessions.set(i64::try_from(held).unwrap_or(i64::MAX));
        {
            let writers = self.log_writers.lock();
            let dropped: usize = writers.iter().map(|lost| lost()).sum();
            let counted = self.log_lines_dropped.get();
            self.log_lines_dropped.inc_by((dropped as u64).saturating_sub(counted));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
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
