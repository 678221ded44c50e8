//! Which of WeChat's addresses is asked first.
//!
//! `wechat.base_url`, as long as a connection to it can be made. Where none could, and there
//! is a fallback, that one goes first for a minute: not every login must wait in vain.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::WeChatSection;

/// How long the fallback goes first.
const HOLD: Duration = Duration::from_secs(60);

/// Base URLs of WeChat's API.
pub struct Addresses {
    base: String,
    fallback: Option<String>,
    clock: Clock,
    /// When no connection to the base could be made, where that still counts.
    lost_at: Mutex<Option<Duration>>,
}

impl Addresses {
    pub fn new(section: &WeChatSection, clock: Clock) -> Self {
        let (base, fallback) = (section.base_url.clone(), section.fallback_base_url.clone());
        Self { base, fallback, clock, lost_at: Mutex::new(None) }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        [Some(&self.base), self.fallback.as_ref()].into_iter().flatten().map(String::as_str)
    }

    /// The one to ask, and the one for when it cannot be connected to.
    pub fn in_order(&self) -> (&str, Option<&str>) {
        let now = self.clock.now();
        match &self.fallback {
            Some(fallback) if self.lost_at().is_some_and(|at| now < at + HOLD) => {
                (fallback, Some(&self.base))
            }
            fallback => (&self.base, fallback.as_deref()),
        }
    }

    /// No connection to this one could be made.
    pub fn lost(&self, address: &str) {
        if self.fallback.is_none() {
            return;
        }
        let now = self.clock.now();
        let mut lost_at = self.lost_at();
        if address != self.base {
            *lost_at = None;
        } else if lost_at.is_none_or(|at| now >= at + HOLD) {
            *lost_at = Some(now);
            drop(lost_at);
            tracing::warn!(
                "no connection to wechat.base_url; wechat.fallback_base_url is asked first for a \
                 minute"
            );
        }
    }

    /// Nothing panics while it holds the lock.
    fn lost_at(&self) -> MutexGuard<'_, Option<Duration>> {
        self.lost_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
