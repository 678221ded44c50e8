//! Which of WeChat's addresses is called first.
//!
//! It is `wechat.base_url`, as long as it can be connected to. If that fails and there is a
//! fallback, the fallback is called first, and once a minute one login tries `wechat.base_url`
//! again, so that not every login waits for the failing connection.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::call_error::{CallError, Destination};

use crate::clock::Clock;
use crate::config::WeChatSection;
use crate::telemetry::log_throttle::LogThrottle;

/// Time between two attempts to connect to a base URL that could not be connected to.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// A base URL of WeChat's API.
pub struct Address {
    /// Without a trailing slash.
    pub url: String,
    pub destination: Arc<Destination>,
}

/// Base URLs of WeChat's API.
pub struct Addresses {
    base: Address,
    fallback: Option<Address>,
    clock: Clock,
    /// When the base is tried again; `None`: it is called first.
    next_try: Mutex<Option<Duration>>,
    throttle: LogThrottle,
}

impl Addresses {
    pub fn new(section: &WeChatSection, clock: Clock) -> Self {
        let address = |url: &String| Address {
            url: url.clone(),
            destination: Arc::new(Destination::new(url, section.proxy.as_ref())),
        };
        Self {
            base: address(&section.base_url),
            fallback: section.fallback_base_url.as_ref().map(address),
            next_try: Mutex::new(None),
            throttle: LogThrottle::new(clock.clone()),
            clock,
        }
    }

    /// All base URLs.
    pub fn all(&self) -> impl Iterator<Item = &Address> {
        [Some(&self.base), self.fallback.as_ref()].into_iter().flatten()
    }

    /// The address to call, and the one to call if it cannot be connected to.
    pub fn in_order(&self) -> (&Address, Option<&Address>) {
        let Some(fallback) = &self.fallback else { return (&self.base, None) };
        let now = self.clock.now();
        match &mut *self.next_try.lock() {
            None => (&self.base, Some(fallback)),
            Some(next_try) if now >= *next_try => {
                // This login tries the base.
                *next_try = now + RETRY_INTERVAL;
                (&self.base, Some(fallback))
            }
            Some(_) => (fallback, Some(&self.base)),
        }
    }

    /// Reports whether an address could be connected to; `call_error` is the reason if not.
    pub fn report(&self, address: &Address, call_error: Option<&CallError>) {
        if self.fallback.is_none() || address.url != self.base.url {
            return;
        }
        let mut next_try = self.next_try.lock();
        match (*next_try, call_error) {
            (Some(_), None) => *next_try = None,
            (None, Some(_)) => *next_try = Some(self.clock.now() + RETRY_INTERVAL),
            (None, None) | (Some(_), Some(_)) => {}
        }
        drop(next_try);
        if let Some(error) = call_error
            && let Some(suppressed) = self.throttle.suppressed()
        {
            tracing::warn!(
                %error,
                suppressed,
                "cannot connect to wechat.base_url: calling wechat.fallback_base_url first"
            );
        }
    }
}
