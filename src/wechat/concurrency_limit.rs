//! Decides whether a call to WeChat may be made now, must wait, or is rejected.
//!
//! Calls beyond `wechat.max_in_flight` wait in a queue of `wechat.queue` calls, for at most
//! `wechat.queue_timeout`. Further calls are rejected at once, and so are all calls while the
//! [`CircuitBreaker`] is open. A waiting call holds neither a connection to WeChat nor any part of
//! a response.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::WeChatError;
use super::circuit_breaker::CircuitBreaker;
use crate::clock::Clock;
use crate::config::WeChatSection;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::{Metrics, Raised};

/// The limit on calls to WeChat.
pub struct ConcurrencyLimit {
    in_flight: Semaphore,
    waiting: Semaphore,
    queue_timeout: Duration,
    breaker: Mutex<CircuitBreaker>,
    open_throttle: LogThrottle,
    closed_throttle: LogThrottle,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// Why a call is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPermit {
    /// The queue is full, or this call has waited too long.
    QueueFull,
    /// The circuit breaker stays open for this time.
    BreakerOpen(Duration),
}

/// Permission to make one call.
pub struct CallPermit<'a> {
    limit: &'a ConcurrencyLimit,
    _permit: SemaphorePermit<'a>,
    _counted: Raised<'a>,
}

impl ConcurrencyLimit {
    pub fn new(section: &WeChatSection, clock: Clock, metrics: Arc<Metrics>) -> Self {
        metrics.wechat.breaker(false);
        Self {
            in_flight: Semaphore::new(section.max_in_flight),
            waiting: Semaphore::new(section.queue),
            queue_timeout: section.queue_timeout,
            breaker: Mutex::new(CircuitBreaker::new(
                section.breaker_failures,
                section.breaker_pause,
                // Slightly more than an exchange, so that its report comes first.
                section.timeout + Duration::from_secs(1),
            )),
            open_throttle: LogThrottle::new(clock.clone()),
            closed_throttle: LogThrottle::new(clock.clone()),
            clock,
            metrics,
        }
    }

    /// Waits for permission to make a call.
    ///
    /// # Errors
    /// When the call is not allowed.
    pub async fn acquire(&self) -> Result<CallPermit<'_>, NoPermit> {
        let permit = match self.in_flight.try_acquire() {
            Ok(permit) => permit,
            Err(_) => self.wait().await?,
        };
        // Checked after the wait, because calls may have failed meanwhile.
        self.breaker.lock().admit(self.clock.now()).map_err(NoPermit::BreakerOpen)?;
        let counted = self.metrics.wechat.in_flight();
        Ok(CallPermit { limit: self, _permit: permit, _counted: counted })
    }

    async fn wait(&self) -> Result<SemaphorePermit<'_>, NoPermit> {
        let _place = self.waiting.try_acquire().map_err(|_| NoPermit::QueueFull)?;
        let _counted = self.metrics.wechat.queued();
        match timeout(self.queue_timeout, self.in_flight.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed; if it were, no call would be allowed.
            Ok(Err(_)) | Err(_) => Err(NoPermit::QueueFull),
        }
    }
}

impl CallPermit<'_> {
    /// Reports how WeChat failed; `None` if its response shows that it works.
    pub fn report(self, failure: Option<&WeChatError>) {
        let is_success = failure.is_none();
        let now = self.limit.clock.now();
        let mut breaker = self.limit.breaker.lock();
        let was_open = breaker.is_open();
        let has_opened = breaker.report(is_success, now);
        // Set each time, not only on a change: a call of an earlier configuration may report late.
        self.limit.metrics.wechat.breaker(breaker.is_open());
        drop(breaker);
        if has_opened
            && let Some(error) = failure
            && let Some(suppressed) = self.limit.open_throttle.suppressed()
        {
            tracing::error!(
                %error,
                suppressed,
                "circuit breaker open after consecutive failed exchanges: logins are rejected until \
                 an exchange succeeds"
            );
        }
        if was_open
            && is_success
            && let Some(suppressed) = self.limit.closed_throttle.suppressed()
        {
            tracing::info!(suppressed, "circuit breaker closed: an exchange succeeded");
        }
    }
}
