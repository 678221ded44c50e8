//! Metrics of sessions and of their shared store.
//!
//! The number of sessions in memory is that of created and restored ones, less the removed ones: it
//! is computed from these counters, so that they always agree. With a shared store, sessions
//! created here may end elsewhere: then the number is that of cached sessions, set by
//! [`Metrics::set_sessions`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{Counters, Metrics, counter, counters, duration_opts, gauge};

/// Where a session comes from that another process has created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoredFrom {
    Snapshot,
    /// From the other process during an upgrade.
    Upgrade,
}

impl RestoredFrom {
    fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Upgrade => "upgrade",
        }
    }
}

/// Metrics of sessions.
pub struct SessionMetrics {
    sessions: IntGauge,
    created: IntCounter,
    restored: [IntCounter; 2],
    removed: IntCounterVec,
    /// The counters of the causes in use.
    removals: OnceLock<Vec<IntCounter>>,
    store: StoreMetrics,
}

impl SessionMetrics {
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let restored = counters(
            registry,
            "wxgate_sessions_restored_total",
            "Sessions of another process: loaded from its snapshot, or received in an upgrade",
            &["source"],
        )?;
        Ok(Self {
            restored: [RestoredFrom::Snapshot, RestoredFrom::Upgrade]
                .map(|source| restored.with_label_values(&[source.as_str()])),
            sessions: gauge(
                registry,
                "wxgate_sessions",
                "Current sessions; with a shared store, those that this gateway has cached",
            )?,
            created: counter(registry, "wxgate_sessions_created_total", "Sessions created")?,
            removed: counters(
                registry,
                "wxgate_sessions_removed_total",
                "Sessions removed, by cause",
                &["cause"],
            )?,
            removals: OnceLock::new(),
            store: StoreMetrics::new()?,
        })
    }

    /// Sets the gauge of sessions. Called at each scrape.
    pub fn update(&self) {
        let removed: u64 = self.removals.get().into_iter().flatten().map(IntCounter::get).sum();
        let count = match self.store.sessions.load(Ordering::Relaxed) {
            NO_STORE => {
                let restored: u64 = self.restored.iter().map(IntCounter::get).sum();
                (self.created.get() + restored).saturating_sub(removed)
            }
            cached => cached,
        };
        self.sessions.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

/// Metrics of a shared store; exported only if there is one.
struct StoreMetrics {
    up: IntGauge,
    outcomes: IntCounterVec,
    duration: Histogram,
    /// Sessions that this gateway has cached; [`NO_STORE`] without a shared store.
    sessions: AtomicU64,
}

const NO_STORE: u64 = u64::MAX;

impl StoreMetrics {
    fn new() -> Result<Self, prometheus::Error> {
        let outcomes = IntCounterVec::new(
            Opts::new("wxgate_store_requests_total", "Requests to the session store, by outcome"),
            &["outcome"],
        )?;
        let duration = duration_opts(
            "wxgate_store_duration_seconds",
            "Duration of requests to the session store",
        );
        Ok(Self {
            up: IntGauge::new("wxgate_store_up", "Whether the session store can be reached")?,
            outcomes,
            duration: Histogram::with_opts(duration)?,
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

impl Metrics {
    pub fn session_created(&self) {
        self.sessions.created.inc();
    }

    /// Counts a session that another process has created.
    pub fn session_restored(&self, source: RestoredFrom) {
        if let Some(counter) = self.sessions.restored.get(source as usize) {
            counter.inc();
        }
    }

    /// Registers the metrics of a shared store. Called once, before they are used.
    ///
    /// # Errors
    /// Only if two metrics had the same name.
    pub fn register_store(&self) -> Result<(), prometheus::Error> {
        self.sessions.store.register(&self.registry)
    }

    pub fn store_up(&self, is_up: bool) {
        self.sessions.store.up.set(i64::from(is_up));
    }

    /// The counters of requests to the store, by outcome, starting at 0.
    pub fn store_outcomes<const N: usize>(&self, values: [&str; N]) -> Counters<N> {
        Counters::new(&self.sessions.store.outcomes, values)
    }

    /// Records how long a request to the store took.
    pub fn store_took(&self, took: Duration) {
        self.sessions.store.duration.observe(took.as_secs_f64());
    }

    /// Sets the number of sessions of a shared store that this gateway has cached.
    pub fn set_sessions(&self, count: u64) {
        self.sessions.store.sessions.store(count, Ordering::Relaxed);
    }

    /// The counters of ended sessions, by cause, starting at 0. All callers use the same causes.
    pub fn removals<const N: usize>(&self, causes: [&str; N]) -> Counters<N> {
        let counters = Counters::new(&self.sessions.removed, causes);
        self.sessions.removals.get_or_init(|| counters.0.to_vec());
        counters
    }
}
