//! What outlives a reload that changes an upstream: found again by the upstream's name.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::connection::SharedIdle;
use super::pending::Pending;
use super::retry_budget::RetryBudget;
use crate::clock::Clock;
use crate::telemetry::log_throttle::LogThrottles;
use crate::telemetry::metrics::{Metrics, UpstreamMetrics};

/// The state of an upstream that belongs to no configuration.
pub struct Lasting {
    pub metrics: UpstreamMetrics,
    pub pending: Arc<Pending>,
    pub budget: RetryBudget,
    /// Idle connections, while their number is limited.
    pub idle: SharedIdle,
    /// Limits the log lines about servers that leave and return, by server and event.
    pub log: LogThrottles<(String, &'static str)>,
    /// The number of the pool whose health checks run; those of the pools before it end.
    pub checking: AtomicU64,
}

impl Lasting {
    pub fn new(name: &str, clock: Clock, metrics: &Metrics) -> Self {
        Self {
            metrics: metrics.upstream(name),
            pending: Arc::default(),
            budget: RetryBudget::default(),
            idle: SharedIdle::default(),
            log: LogThrottles::new(clock),
            checking: AtomicU64::new(0),
        }
    }
}
