//! The idle timeout, and uses by activity without a request.
//!
//! A configuration with a longer timeout must not bring back sessions that have ended already.
//! Those in a file are judged when it is loaded (`snapshot::facts`). While two processes run, the
//! shorter of their timeouts counts in the new one, until it knows all uses of the old one. Then
//! sessions that have ended by the shorter timeout are removed, and the longer one counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Backend, Removal, Session, Sessions};
use crate::clock::millis;

/// How often a continuous stream of uses is recorded.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);

/// The idle timeout. Clones share it.
#[derive(Clone)]
pub struct IdleTimeout {
    configured: Duration,
    /// What counts, in milliseconds.
    counts: Arc<AtomicU64>,
}

impl IdleTimeout {
    pub fn new(configured: Duration) -> Self {
        Self { configured, counts: Arc::new(AtomicU64::new(millis(configured))) }
    }

    /// The timeout that counts now.
    pub fn get(&self) -> Duration {
        Duration::from_millis(self.counts.load(Ordering::Relaxed))
    }
}

impl Sessions {
    /// The idle timeout that counts now.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout.get()
    }

    /// From now on the timeout of the process that this one replaces counts, if it is shorter.
    pub fn share_idle_timeout(&self, other: Duration) {
        self.idle_timeout.counts.fetch_min(millis(other), Ordering::Relaxed);
    }

    /// From now on the timeout of this process counts. Before that, removes the sessions that have
    /// ended by the other one, for which it searches all sessions.
    pub fn use_own_idle_timeout(&self) {
        let own = millis(self.idle_timeout.configured);
        if self.idle_timeout.counts.load(Ordering::Relaxed) == own {
            return;
        }
        if let Backend::Memory(memory) = &self.backend {
            memory.visit(|sessions| {
                for session in sessions.iter().filter(|session| !self.is_live(session)) {
                    memory.remove(session.digest(), Removal::Expired);
                }
            });
        }
        self.idle_timeout.counts.store(own, Ordering::Relaxed);
    }

    /// Counts activity under a session found earlier as a use of it, at most once a minute.
    pub fn touch(&self, session: &Arc<Session>) {
        let now = self.clock.now_millis();
        match &self.backend {
            Backend::Memory(memory) => {
                let interval = TOUCH_INTERVAL.min(self.idle_timeout.get() / 4);
                let is_due = now.saturating_sub(session.last_used()) >= millis(interval);
                if is_due && self.is_live(session) {
                    session.set_last_used(now);
                    self.note_change();
                    // A lookup also restarts moka's idle time.
                    drop(memory.get(session.digest()));
                }
            }
            Backend::Redis(redis) => redis.record_use(session, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::Store;

    #[tokio::test]
    async fn the_shorter_timeout_of_two_processes_counts_and_nothing_that_ended_by_it_comes_back() {
        let store = Store::new(100);
        let (seen, unseen, used) = (store.login().await, store.login().await, store.login().await);
        store.sessions.share_idle_timeout(Duration::from_secs(20));
        assert_eq!(store.sessions.idle_timeout(), Duration::from_secs(10), "it is longer");
        store.sessions.share_idle_timeout(Duration::from_secs(4));
        store.clock.advance(Duration::from_secs(3));
        let used = store.sessions.get(&used).await.unwrap().unwrap();
        assert_eq!(store.sessions.expires_in(&used), Duration::from_secs(4));
        store.clock.advance(Duration::from_secs(1));
        assert!(store.sessions.get(&seen).await.unwrap().is_none());
        store.sessions.use_own_idle_timeout();
        for ended in [&seen, &unseen] {
            assert!(store.sessions.get(ended).await.unwrap().is_none());
        }
        store.clock.advance(Duration::from_secs(8));
        assert!(store.sessions.is_live(&used));
        store.clock.advance(Duration::from_secs(1));
        assert!(!store.sessions.is_live(&used));
    }
}
