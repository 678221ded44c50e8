//! Which of WeChat's addresses is asked first.
//!
//! `wechat.base_url`, as long as a connection to it can be made. Where none could, and there
//! is a fallback, that one goes first, and once a minute one login tries the base: not all of
//! them wait in vain.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::WeChatSection;
use crate::seldom::Seldom;

/// Between two tries of a base that was lost.
const HOLD: Duration = Duration::from_secs(60);

/// Base URLs of WeChat's API.
pub struct Addresses {
    base: String,
    fallback: Option<String>,
    clock: Clock,
    /// When the base is tried again; `None`: it is asked first.
    next_try: Mutex<Option<Duration>>,
    said: Seldom,
}

impl Addresses {
    pub fn new(section: &WeChatSection, clock: Clock) -> Self {
        Self {
            base: section.base_url.clone(),
            fallback: section.fallback_base_url.clone(),
            next_try: Mutex::new(None),
            said: Seldom::new(clock.clone()),
            clock,
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        [Some(&self.base), self.fallback.as_ref()].into_iter().flatten().map(String::as_str)
    }

    /// The one to ask, and the one for when it cannot be connected to.
    pub fn in_order(&self) -> (&str, Option<&str>) {
        let Some(fallback) = &self.fallback else { return (&self.base, None) };
        let now = self.clock.now();
        match &mut *self.next_try() {
            None => (&self.base, Some(fallback)),
            Some(next_try) if now >= *next_try => {
                // This one tries it.
                *next_try = now + HOLD;
                (&self.base, Some(fallback))
            }
            Some(_) => (fallback, Some(&self.base)),
        }
    }

    /// Whether a connection to this one could be made.
    pub fn report(&self, address: &str, is_connected: bool) {
        if self.fallback.is_none() || address != self.base {
            return;
        }
        let mut next_try = self.next_try();
        match (*next_try, is_connected) {
            (Some(_), true) => *next_try = None,
            (None, false) => *next_try = Some(self.clock.now() + HOLD),
            (None, true) | (Some(_), false) => {}
        }
        drop(next_try);
        if !is_connected && let Some(suppressed) = self.said.suppressed() {
            tracing::warn!(
                suppressed,
                "no connection to wechat.base_url; its fallback is asked first"
            );
        }
    }

    /// Nothing panics while it holds the lock.
    fn next_try(&self) -> MutexGuard<'_, Option<Duration>> {
        self.next_try.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
