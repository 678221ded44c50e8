//! Sessions: what a token stands for, and for how long.
//!
//! A session ends at its absolute end (`session.ttl`), when it was not used for
//! `session.idle_timeout`, when it is revoked, or when the store is full and it is the one
//! least recently used. Both ends are kept in the session itself and judged at every look,
//! on the [`Clock`]; the store's own expiry only frees memory. Each session that was created
//! is counted as removed exactly once, by its cause. The key is the token's digest; the
//! token is kept nowhere. Where sessions live is decided by the private backend.

mod memory;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::SessionSection;
use crate::identity::Identity;
use crate::metrics::{Metrics, Removal};
use crate::token::{SessionToken, TokenDigest};

/// Uses that come in a stream are counted so often.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);

/// The session store of a process. Clones share it.
#[derive(Clone)]
pub struct Sessions {
    backend: Backend,
    ttl_millis: Arc<AtomicU64>,
    idle_timeout: Duration,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// A closed set: a shared store will be a second variant.
#[derive(Clone)]
enum Backend {
    Memory(memory::Memory),
}

/// The store cannot be asked at the moment. Never taken for "no session".
#[derive(Debug, thiserror::Error)]
#[error("the session store is not available")]
pub struct StoreError;

/// One login's session.
pub struct Session {
    pub identity: Identity,
    /// On the clock, as `last_used`.
    ends_at_millis: u64,
    last_used_millis: AtomicU64,
    is_removed: AtomicBool,
}

#[expect(clippy::unused_async, reason = "a store in another process is waited for")]
impl Sessions {
    pub fn in_memory(section: &SessionSection, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self {
            backend: Backend::Memory(memory::Memory::new(
                section.capacity,
                // Whoever was not used for its whole life is at its end, too.
                section.idle_timeout.min(section.ttl),
                metrics.clone(),
            )),
            ttl_millis: Arc::new(AtomicU64::new(millis(section.ttl))),
            idle_timeout: section.idle_timeout,
            clock,
            metrics,
        }
    }

    /// Gives the sessions that are created from now on another life. Those that are there keep
    /// theirs.
    pub fn set_ttl(&self, ttl: Duration) {
        self.ttl_millis.store(millis(ttl), Ordering::Relaxed);
    }

    /// Starts a session; the token is in nobody's hands but the caller's. Also returns the
    /// time until the session ends if it is not used.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn create(&self, identity: Identity) -> Result<(SessionToken, Duration), StoreError> {
        let token = SessionToken::generate();
        let now = self.clock.now_millis();
        let session = Session {
            identity,
            ends_at_millis: now.saturating_add(self.ttl_millis.load(Ordering::Relaxed)),
            last_used_millis: AtomicU64::new(now),
            is_removed: AtomicBool::new(false),
        };
        let expires_in = self.remaining(&session, now);
        match &self.backend {
            Backend::Memory(memory) => memory.insert(token.digest(), session),
        }
        self.metrics.session_created();
        Ok((token, expires_in))
    }

    /// The live session of a token; looking it up is a use and moves its idle end.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn get(&self, digest: &TokenDigest) -> Result<Option<Arc<Session>>, StoreError> {
        let found = match &self.backend {
            Backend::Memory(memory) => memory.get(digest),
        };
        let Some(session) = found else { return Ok(None) };
        let now = self.clock.now_millis();
        if self.remaining(&session, now).is_zero() {
            self.remove(digest, Removal::Expired);
            return Ok(None);
        }
        session.last_used_millis.store(now, Ordering::Relaxed);
        Ok(Some(session))
    }

    /// Whether a token stands for a live session. Asking is no use of it.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn knows(&self, digest: &TokenDigest) -> Result<bool, StoreError> {
        let found = match &self.backend {
            Backend::Memory(memory) => memory.get(digest),
        };
        Ok(found.is_some_and(|session| self.is_live(&session)))
    }

    /// Ends the session of a token, if there is one.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn revoke(&self, digest: &TokenDigest) -> Result<(), StoreError> {
        self.remove(digest, Removal::Revoked);
        Ok(())
    }

    fn remove(&self, digest: &TokenDigest, cause: Removal) {
        match &self.backend {
            Backend::Memory(memory) => memory.remove(digest, cause),
        }
    }

    fn remaining(&self, session: &Session, now_millis: u64) -> Duration {
        let last_used = session.last_used_millis.load(Ordering::Relaxed);
        let idle_end = last_used.saturating_add(millis(self.idle_timeout));
        Duration::from_millis(session.ends_at_millis.min(idle_end).saturating_sub(now_millis))
    }

    /// Time until `session` ends if it is not used again.
    pub fn expires_in(&self, session: &Session) -> Duration {
        self.remaining(session, self.clock.now_millis())
    }

    /// Whether a session found earlier has not ended since. Asking is no use of it.
    pub fn is_live(&self, session: &Session) -> bool {
        !session.is_removed.load(Ordering::Acquire) && !self.expires_in(session).is_zero()
    }

    /// Counts something that was done under a session found earlier, by its token, as a use of
    /// it, once a minute at most.
    pub fn touch(&self, session: &Session, digest: &TokenDigest) {
        let now = self.clock.now_millis();
        let last = session.last_used_millis.load(Ordering::Relaxed);
        let interval = TOUCH_INTERVAL.min(self.idle_timeout / 4);
        if now.saturating_sub(last) >= millis(interval) && self.is_live(session) {
            session.last_used_millis.store(now, Ordering::Relaxed);
            // The store, too, counts what is looked up as used.
            match &self.backend {
                Backend::Memory(memory) => drop(memory.get(digest)),
            }
        }
    }

    /// Frees what has ended. Called every second and before metrics are read.
    pub fn maintain(&self) {
        match &self.backend {
            Backend::Memory(memory) => memory.maintain(),
        }
    }
}

impl Session {
    /// Whether this call is the one that removed it: later ones must not count it again.
    fn mark_removed(&self) -> bool {
        !self.is_removed.swap(true, Ordering::AcqRel)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Carriers;
    use crate::identity::{AppId, OpenId};

    struct Store {
        sessions: Sessions,
        clock: Clock,
        metrics: Arc<Metrics>,
    }

    impl Store {
        fn new(capacity: u64) -> Self {
            let section = SessionSection {
                ttl: Duration::from_secs(100),
                idle_timeout: Duration::from_secs(10),
                capacity,
                carriers: Carriers { header: true, bearer: true },
                header: http::HeaderName::from_static("x-3rd-session"),
            };
            let clock = Clock::manual();
            let metrics = Metrics::new().unwrap();
            let sessions = Sessions::in_memory(&section, clock.clone(), metrics.clone());
            Self { sessions, clock, metrics }
        }

        async fn login(&self) -> TokenDigest {
            let identity = Identity {
                app_id: AppId::parse("wx1").unwrap(),
                openid: OpenId::parse("o1").unwrap(),
                unionid: None,
            };
            self.sessions.create(identity).await.unwrap().0.digest()
        }

        async fn is_live(&self, digest: &TokenDigest) -> bool {
            self.sessions.get(digest).await.unwrap().is_some()
        }

        fn metric(&self, line: &str) -> u64 {
            self.sessions.maintain();
            let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
            let value =
                text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("{line}"));
            value.trim().parse().unwrap()
        }
    }

    #[tokio::test]
    async fn a_session_that_is_used_lives_until_its_absolute_end() {
        let store = Store::new(100);
        let digest = store.login().await;
        for _ in 0..11 {
            store.clock.advance(Duration::from_secs(9));
            assert!(store.is_live(&digest).await);
        }
        store.clock.advance(Duration::from_millis(999));
        assert!(store.is_live(&digest).await);
        store.clock.advance(Duration::from_millis(1));
        assert!(!store.is_live(&digest).await);
        assert_eq!(store.metric("wxgate_sessions_removed_total{cause=\"expired\"}"), 1);
    }

    #[tokio::test]
    async fn a_session_that_is_not_used_ends_after_the_idle_timeout() {
        let store = Store::new(100);
        let digest = store.login().await;
        store.clock.advance(Duration::from_secs(10));
        assert!(!store.is_live(&digest).await);
    }

    #[tokio::test]
    async fn a_revoked_session_is_gone_and_counted_once() {
        let store = Store::new(100);
        let digest = store.login().await;
        store.sessions.revoke(&digest).await.unwrap();
        store.sessions.revoke(&digest).await.unwrap();
        assert!(!store.is_live(&digest).await);
        assert_eq!(store.metric("wxgate_sessions_removed_total{cause=\"revoked\"}"), 1);
        assert_eq!(store.metric("wxgate_sessions "), 0);
    }

    #[tokio::test]
    async fn a_full_store_takes_new_logins_and_lets_the_least_recently_used_go() {
        let store = Store::new(100);
        let first = store.login().await;
        let mut others = Vec::new();
        for _ in 0..99 {
            others.push(store.login().await);
        }
        store.sessions.maintain();
        // Used again, so that the second oldest is the one to go.
        assert!(store.is_live(&first).await);
        store.sessions.maintain();
        let newest = store.login().await;
        store.sessions.maintain();
        assert!(store.is_live(&newest).await);
        assert!(store.is_live(&first).await);
        assert!(!store.is_live(&others[0]).await);
        assert_eq!(store.metric("wxgate_sessions_removed_total{cause=\"evicted\"}"), 1);
        assert_eq!(store.metric("wxgate_sessions "), 100);
    }

    #[tokio::test]
    async fn created_less_removed_is_what_is_held() {
        let store = Store::new(50);
        for round in 0..500u64 {
            let digest = store.login().await;
            match round % 3 {
                0 => store.sessions.revoke(&digest).await.unwrap(),
                1 => store.clock.advance(Duration::from_secs(1)),
                _ => {}
            }
        }
        store.sessions.maintain();
        let created = store.metric("wxgate_sessions_created_total");
        let removed: u64 = ["expired", "revoked", "evicted", "replaced"]
            .iter()
            .map(|cause| {
                store.metric(&format!("wxgate_sessions_removed_total{{cause=\"{cause}\"}}"))
            })
            .sum();
        let Backend::Memory(memory) = &store.sessions.backend;
        assert_eq!(created, 500);
        assert_eq!(created - removed, memory.len());
    }

    /// As the frames of a WebSocket do.
    #[tokio::test]
    async fn what_is_done_under_a_session_keeps_it_like_a_look_up() {
        let store = Store::new(3);
        let held = store.login().await;
        let session = store.sessions.get(&held).await.unwrap().unwrap();
        for _ in 0..8 {
            // Ten seconds without a use would end it.
            store.clock.advance(Duration::from_secs(4));
            store.sessions.touch(&session, &held);
            store.login().await;
            store.sessions.maintain();
        }
        assert!(store.sessions.is_live(&session));
        assert!(store.is_live(&held).await, "others were pushed out, this one was not");
    }
}
