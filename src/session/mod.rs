//! Sessions: the identity behind a token, and when it ends.
//!
//! A session ends at its absolute end (`session.ttl`), when it was not used for
//! `session.idle_timeout`, when it is revoked, when its user has `session.max_per_user` newer ones,
//! or when the store is full and it is the least recently used. Absolute and idle end are computed
//! from the session itself at every lookup, by the [`Clock`]; the store's own expiry only frees
//! memory. Each session that was created is counted as removed exactly once, by its cause. A user
//! can be blocked for a time: then no session is created. The key is the token's digest; the token
//! itself is not stored. Callers do not know where sessions are kept.
//!
//! The cookies of services with `cookie_jar` are kept beside the session (`jars`), and end with it.
//! `records` are kept where sessions are, and `operator` has what only operators do.
//!
//! Sessions in memory can outlive the process: `durable` joins them with the files in `snapshot`,
//! `relay` and `transfer` with the other process of an upgrade. `entry` is what is written of them.
//!
//! If `[open_data]` is enabled, the newest session keys of a user (`user_keys`) are kept beside its
//! sessions, as long as it has any; otherwise none is stored or looked up.

mod durable;
mod entry;
mod error;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod idle;
mod jar;
mod jars;
mod memory;
mod operator;
mod parallel;
mod records;
mod redis;
mod relay;
mod snapshot;
mod state;
mod transfer;
mod user_keys;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use self::durable::Durable;
pub use self::durable::FilesError;
use self::entry::Change;
pub use self::entry::{AppIds, Entry};
pub use self::error::{BlockError, Blocked, CreateError, StoreError};
use self::idle::IdleTimeout;
pub use self::jar::Jar;
pub use self::jars::JarName;
use self::jars::{Jars, KnownJars};
pub use self::memory::DigestHash;
pub use self::operator::KnownUser;
pub use self::records::{Frozen, Record, RecordKind, Records};
pub use self::redis::{Lease, SharedTokens, TokenRecord};
pub use self::relay::Answer;
use self::state::Removals;
pub use self::state::{Removal, Session};
use self::transfer::MeanwhileState;
pub use self::transfer::{Incoming, Restored, Restoring, TooManyChanges};
pub use self::user_keys::LoginKey;
use crate::clock::{Clock, millis};
use crate::config::SessionSection;
use crate::handover::peer::Peer;
use crate::identity::Identity;
use crate::identity::token::{SessionToken, TokenDigest};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// Maximum number of blocked users, of all apps together.
pub const MAX_BLOCKED: usize = 100_000;

/// The session store of a process. Clones share it.
#[derive(Clone)]
pub struct Sessions {
    backend: Backend,
    ttl_millis: Arc<AtomicU64>,
    idle_timeout: IdleTimeout,
    /// How much later idle sessions expire if not all of their uses are known here.
    slack: Duration,
    keeps_session_keys: Arc<AtomicBool>,
    records: Records,
    known_jars: KnownJars,
    jar_failures: Arc<LogThrottle>,
    /// Limits searches through all sessions to one at a time.
    searches: Arc<Semaphore>,
    /// Set if sessions outlive the process in files.
    durable: Option<Arc<Durable>>,
    /// The other process during an upgrade.
    peer: Peer,
    /// What has changed while sessions of another process come in.
    meanwhile: MeanwhileState,
    clock: Clock,
}

/// Where sessions are kept.
#[derive(Clone)]
enum Backend {
    Memory(memory::Memory),
    Redis(redis::Redis),
}

impl Sessions {
    /// Sessions in memory or in a shared store, as configured. The connection to a shared store is
    /// opened by [`Sessions::run`]. In memory, there is room from the start for those of the files,
    /// or for `expected` ones of another process: to make it while they come in takes longer.
    pub fn new(
        section: &SessionSection,
        clock: Clock,
        metrics: Arc<Metrics>,
        peer: Peer,
        expected: u64,
    ) -> Self {
        // An idle timeout longer than the TTL has no effect.
        let idle_timeout = section.idle_timeout.min(section.ttl);
        let keeps_session_keys = Arc::new(AtomicBool::new(false));
        let keeps = keeps_session_keys.clone();
        let known_jars = KnownJars::default();
        let durable = Durable::new(section, &clock, &metrics).map(Arc::new);
        let (backend, slack) = match &section.shared {
            None => {
                let jars = Jars::new(section.jar_capacity, known_jars.clone());
                let ended = durable.as_ref().map(|durable| durable.ended.clone());
                let in_files = durable.as_ref().map_or(0, |durable| durable.expected());
                let memory = memory::Memory::new(
                    section,
                    expected.max(in_files),
                    idle_timeout,
                    keeps,
                    jars,
                    ended,
                    metrics,
                );
                (Backend::Memory(memory), Duration::ZERO)
            }
            Some(shared) => {
                let redis = redis::Redis::new(
                    section,
                    shared,
                    keeps,
                    known_jars.clone(),
                    clock.clone(),
                    metrics,
                );
                let slack = redis.slack();
                (Backend::Redis(redis), slack)
            }
        };
        let records = match &backend {
            Backend::Memory(_) => Records::in_memory(clock.clone(), peer.clone()),
            Backend::Redis(redis) => Records::shared(redis.clone()),
        };
        Self {
            backend,
            ttl_millis: Arc::new(AtomicU64::new(millis(section.ttl))),
            idle_timeout: IdleTimeout::new(idle_timeout),
            slack,
            keeps_session_keys,
            records,
            known_jars,
            jar_failures: Arc::new(LogThrottle::new(clock.clone())),
            searches: Arc::new(Semaphore::new(1)),
            durable,
            peer,
            meanwhile: MeanwhileState::default(),
            clock,
        }
    }

    /// Maintains the connection to a shared store, and never returns; without such a store, returns
    /// at once.
    pub async fn run(&self) {
        match &self.backend {
            Backend::Memory(_) => {}
            Backend::Redis(redis) => redis.run().await,
        }
    }

    /// About how many sessions are in memory.
    pub fn count(&self) -> u64 {
        match &self.backend {
            Backend::Memory(memory) => memory.count(),
            Backend::Redis(_) => 0,
        }
    }

    /// Whether sessions are in a shared store, whose answers take time.
    pub fn are_shared(&self) -> bool {
        matches!(self.backend, Backend::Redis(_))
    }

    /// Whether the store has been reached since the start.
    pub fn was_reached(&self) -> bool {
        match &self.backend {
            Backend::Memory(_) => true,
            Backend::Redis(redis) => redis.was_reached(),
        }
    }

    /// Whether a session could be stored at present, as far as is known.
    ///
    /// # Errors
    /// When the store is known to be unavailable.
    pub fn check(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Redis(redis) => redis.check(),
        }
    }

    /// The store of access tokens that gateways share, if there is a shared store.
    pub fn shared_tokens(&self) -> Option<SharedTokens> {
        match &self.backend {
            Backend::Memory(_) => None,
            Backend::Redis(redis) => Some(SharedTokens::new(redis.clone())),
        }
    }

    /// The other process during an upgrade.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Records with a short life, which are kept where the sessions are.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Sets the lifetime of sessions that are created from now on. Existing sessions keep theirs.
    pub fn set_ttl(&self, ttl: Duration) {
        self.ttl_millis.store(millis(ttl), Ordering::Relaxed);
    }

    /// Creates a session; only the caller has its token. Also returns the time until the session
    /// expires if it is not used. The session key of the login is kept with the user's others, or
    /// wiped if none are kept.
    ///
    /// # Errors
    /// When the store is unavailable, or the user is blocked.
    pub async fn create(
        &self,
        identity: Identity,
        client: IpAddr,
        key: Option<LoginKey>,
    ) -> Result<(SessionToken, Duration), CreateError> {
        self.create_until(u64::MAX, identity, client, key).await
    }

    /// Creates another session of the same user, as [`Sessions::create`] does. It ends no later
    /// than `other`: only a login gives a user more time.
    ///
    /// # Errors
    /// When the store is unavailable, or the user is blocked.
    pub async fn create_beside(
        &self,
        other: &Session,
        identity: Identity,
        client: IpAddr,
    ) -> Result<(SessionToken, Duration), CreateError> {
        self.create_until(other.ends_at_millis, identity, client, None).await
    }

    async fn create_until(
        &self,
        latest_end_millis: u64,
        identity: Identity,
        client: IpAddr,
        key: Option<LoginKey>,
    ) -> Result<(SessionToken, Duration), CreateError> {
        let token = SessionToken::generate();
        let now = self.clock.now_millis();
        let ends_at = now.saturating_add(self.ttl_millis.load(Ordering::Relaxed));
        let ends_at = ends_at.min(latest_end_millis);
        let session = Session::new(token.digest(), identity, client, now, ends_at, now);
        let expires_in = self.expires_in(&session);
        match &self.backend {
            Backend::Memory(memory) => {
                let told = key.clone();
                let session = memory.insert(session, key, |session| self.is_live(session))?;
                if let Some(durable) = &self.durable {
                    durable.note_login();
                }
                if !self.tell_created(&session, told).await {
                    memory.remove(session.digest(), Removal::Revoked);
                    return Err(CreateError::Blocked);
                }
            }
            Backend::Redis(redis) => redis.insert(session, key).await?,
        }
        Ok((token, expires_in))
    }

    /// Looks up the live session of a token. This is a use, and restarts its idle timeout.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn get(&self, digest: &TokenDigest) -> Result<Option<Arc<Session>>, StoreError> {
        let found = match &self.backend {
            Backend::Memory(memory) => memory.get(digest),
            // Boxed: it would make the future of every connection larger.
            Backend::Redis(redis) => Box::pin(redis.get(digest)).await?,
        };
        let Some(session) = found else { return Ok(None) };
        let now = self.clock.now_millis();
        if self.remaining(&session, now).is_zero() {
            self.remove(digest, Removal::Expired);
            return Ok(None);
        }
        match &self.backend {
            Backend::Memory(_) => {
                session.set_last_used(now);
                self.note_change();
            }
            Backend::Redis(redis) => redis.record_use(&session, now),
        }
        Ok(Some(session))
    }

    /// Whether a token has a live session. This is not a use of the session.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn contains(&self, digest: &TokenDigest) -> Result<bool, StoreError> {
        let found = match &self.backend {
            Backend::Memory(memory) => memory.get(digest),
            Backend::Redis(redis) => redis.get(digest).await?,
        };
        Ok(found.is_some_and(|session| self.is_live(&session)))
    }

    /// Revokes the session of a token, if there is one. If sessions outlive the process, that is
    /// durable when this returns.
    ///
    /// # Errors
    /// When the store is unavailable. A session in memory has ended all the same.
    pub async fn revoke(&self, digest: &TokenDigest) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(memory) => {
                let must_write = self.end(memory, digest);
                // Boxed: it would make the future of every connection larger.
                Box::pin(self.publish(Change::Revoked(*digest), must_write)).await
            }
            Backend::Redis(redis) => {
                redis.revoke(digest, Removal::Revoked).await?;
                // Sooner than by the store's notice.
                Box::pin(self.tell(&Change::Revoked(*digest))).await;
                Ok(())
            }
        }
    }

    fn remove(&self, digest: &TokenDigest, cause: Removal) {
        match &self.backend {
            Backend::Memory(memory) => memory.remove(digest, cause),
            Backend::Redis(redis) => redis.remove_cached(digest),
        }
    }

    fn remaining(&self, session: &Session, now_millis: u64) -> Duration {
        let idle_end =
            session.last_used().saturating_add(millis(self.idle_timeout.get() + self.slack));
        Duration::from_millis(session.ends_at_millis.min(idle_end).saturating_sub(now_millis))
    }

    /// Time until a session expires if it is used now and not again.
    pub fn expires_in(&self, session: &Session) -> Duration {
        let now = self.clock.now_millis();
        let left = Duration::from_millis(session.ends_at_millis.saturating_sub(now));
        left.min(self.idle_timeout.get())
    }

    /// Whether a session is live, as far as is known here. This is not a use of the session.
    pub fn is_live(&self, session: &Session) -> bool {
        !session.is_removed() && !self.remaining(session, self.clock.now_millis()).is_zero()
    }

    /// Whether a session found earlier is still live. This is not a use of the session. It counts
    /// as ended if the store is unavailable.
    pub async fn is_still_live(&self, session: &Session) -> bool {
        match &self.backend {
            Backend::Memory(_) => self.is_live(session),
            Backend::Redis(_) => self.contains(session.digest()).await.unwrap_or(false),
        }
    }

    /// Frees ended sessions. Called every second and before metrics are read.
    pub fn maintain(&self) {
        match &self.backend {
            Backend::Memory(memory) => memory.maintain(),
            Backend::Redis(redis) => redis.maintain(),
        }
    }
}

#[cfg(test)]
mod tests;
