//! Metrics of the snapshot; exported only if there is one.

use std::time::Duration;

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{Metrics, unix_seconds};

/// What has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Save,
    Load,
}

/// The last snapshot that was written, and failures.
pub struct SnapshotMetrics {
    sessions: IntGauge,
    bytes: IntGauge,
    duration: Gauge,
    last_success: Gauge,
    failed: IntCounterVec,
    /// The counters of `failed`, by [`Stage`].
    failures: [IntCounter; 2],
}

impl Metrics {
    /// Registers the metrics of the snapshot. Called once, before they are used.
    ///
    /// # Errors
    /// Only if two metrics had the same name.
    pub fn register_snapshot(&self) -> Result<(), prometheus::Error> {
        self.snapshot.register(&self.registry)
    }
}

impl SnapshotMetrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let failed = IntCounterVec::new(
            Opts::new(
                "wxgate_snapshot_failures_total",
                "Failures to write, or to load, the snapshot or its journal",
            ),
            &["stage"],
        )?;
        Ok(Self {
            sessions: IntGauge::new(
                "wxgate_snapshot_sessions",
                "Sessions in the last snapshot that was written",
            )?,
            bytes: IntGauge::new(
                "wxgate_snapshot_bytes",
                "Size of the last snapshot that was written",
            )?,
            duration: Gauge::new(
                "wxgate_snapshot_duration_seconds",
                "How long it took to write the last snapshot",
            )?,
            last_success: Gauge::new(
                "wxgate_snapshot_last_success_timestamp_seconds",
                "Time at which a snapshot was last written or loaded, or at which none was found",
            )?,
            failures: ["save", "load"].map(|stage| failed.with_label_values(&[stage])),
            failed,
        })
    }

    fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        for gauge in [&self.sessions, &self.bytes] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for gauge in [&self.duration, &self.last_success] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(self.failed.clone()))
    }

    /// Records a snapshot that was written.
    pub fn saved(&self, sessions: u64, bytes: u64, took: Duration) {
        self.sessions.set(i64::try_from(sessions).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.duration.set(took.as_secs_f64());
        self.last_success.set(unix_seconds());
    }

    /// Records that sessions were loaded, or that there were none to load.
    pub fn loaded(&self) {
        self.last_success.set(unix_seconds());
    }

    pub fn failed(&self, stage: Stage) {
        if let Some(counter) = self.failures.get(stage as usize) {
            counter.inc();
        }
    }
}
