//! How many may ask WeChat at once, and whether anybody may.
//!
//! Calls beyond `wechat.max_in_flight` wait, `wechat.queue` of them for
//! `wechat.queue_timeout` at most; what is beyond that is refused at once, and everything
//! is while the [`Breaker`] is open. What waits holds neither a connection to WeChat nor a
//! byte of its answer.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::WeChatError;
use super::breaker::Breaker;
use crate::clock::Clock;
use crate::config::WeChatSection;
use crate::telemetry::log_throttle::Seldom;
use crate::telemetry::metrics::{Metrics, Raised};

/// The way to WeChat.
pub struct Gate {
    in_flight: Semaphore,
    waiting: Semaphore,
    queue_timeout: Duration,
    breaker: Mutex<Breaker>,
    said_open: Seldom,
    said_closed: Seldom,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// Nobody may ask now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// As many wait as may, or this one has waited long enough.
    Full,
    /// WeChat is left alone for so long.
    Open(Duration),
}

/// Leave to make one call.
pub struct Pass<'a> {
    gate: &'a Gate,
    _permit: SemaphorePermit<'a>,
    _counted: Raised<'a>,
}

impl Gate {
    pub fn new(section: &WeChatSection, clock: Clock, metrics: Arc<Metrics>) -> Self {
        metrics.wechat.breaker(false);
        Self {
            in_flight: Semaphore::new(section.max_in_flight),
            waiting: Semaphore::new(section.queue),
            queue_timeout: section.queue_timeout,
            breaker: Mutex::new(Breaker::new(
                section.breaker_failures,
                section.breaker_pause,
                // A little more than an exchange: its report comes first.
                section.timeout + Duration::from_secs(1),
            )),
            said_open: Seldom::new(clock.clone()),
            said_closed: Seldom::new(clock.clone()),
            clock,
            metrics,
        }
    }

    /// Waits for leave to make a call.
    ///
    /// # Errors
    /// When there is none to be had.
    pub async fn enter(&self) -> Result<Pass<'_>, Closed> {
        let permit = match self.in_flight.try_acquire() {
            Ok(permit) => permit,
            Err(_) => self.wait().await?,
        };
        // After the wait: what it waited for may have shown that nothing works.
        self.breaker.lock().admit(self.clock.now()).map_err(Closed::Open)?;
        let counted = self.metrics.wechat.in_flight();
        Ok(Pass { gate: self, _permit: permit, _counted: counted })
    }

    async fn wait(&self) -> Result<SemaphorePermit<'_>, Closed> {
        let _place = self.waiting.try_acquire().map_err(|_| Closed::Full)?;
        let _counted = self.metrics.wechat.queued();
        match timeout(self.queue_timeout, self.in_flight.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            // It is never closed; if it were, nobody could pass.
            Ok(Err(_)) | Err(_) => Err(Closed::Full),
        }
    }
}

impl Pass<'_> {
    /// Reports how WeChat failed, unless its response shows that it works.
    pub fn report(self, failure: Option<&WeChatError>) {
        let is_success = failure.is_none();
        let now = self.gate.clock.now();
        let mut breaker = self.gate.breaker.lock();
        let was_open = breaker.is_open();
        let has_opened = breaker.report(is_success, now);
        // Each time, not on a change alone: one of an earlier configuration may report late.
        self.gate.metrics.wechat.breaker(breaker.is_open());
        drop(breaker);
        if has_opened
            && let Some(error) = failure
            && let Some(suppressed) = self.gate.said_open.suppressed()
        {
            tracing::error!(
                %error,
                suppressed,
                "circuit breaker open after exchanges that failed in a row: logins are rejected \
                 until one succeeds"
            );
        }
        if was_open
            && is_success
            && let Some(suppressed) = self.gate.said_closed.suppressed()
        {
            tracing::info!(suppressed, "circuit breaker closed: WeChat works again");
        }
    }
}
