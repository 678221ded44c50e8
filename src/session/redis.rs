//! Sessions in a Redis or Valkey store that several gateways share.
//!
//! Decides when the store is called; `key_names` has the layout. A session is a sealed record under
//! the digest of its token, and expires on the server one refresh interval after its end. Its last
//! use is written when the stored one is an interval old: an idle session never expires early, and
//! at most one interval late. Revoking a session replaces it with a tombstone for the rest of the
//! record's lifetime, so that no later write can restore it. Sessions that were read are cached for
//! a moment (`local_cache.rs`). If the store does not respond in time, that is an error, never "no
//! session" and never a session.
//!
//! A login stores its session and lists it, in a cluster one after the other (`users.rs`), before
//! its response is sent. A session is revoked once its tombstone is written; it is removed from the
//! list afterwards. The session key of a login is stored after its session (`user_keys.rs`).

mod access_tokens;
mod address;
mod blocks;
mod connection;
mod jars;
mod key_names;
mod local_cache;
mod notices;
mod primaries;
mod records;
mod revocations;
mod seal;
mod sentinel;
mod stored_times;
mod user_keys;
mod user_search;
mod users;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{ErrorKind, RedisError, Script, cmd};
use tokio::sync::{Semaphore, SemaphorePermit};

pub use self::access_tokens::{Lease, SharedTokens, TokenRecord};
use self::blocks::OwnBlocks;
use self::connection::{StoreConnection, StoreOutcome};
use self::key_names::KeyNames;
use self::local_cache::LocalCache;
use self::primaries::Connection;
use self::seal::{SealError, Seals, StoredValue};
use self::users::UserIndex;
use super::jars::KnownJars;
use super::{Blocked, CreateError, KnownUser, LoginKey, Removal, Removals, Session, StoreError};
use crate::clock::{Clock, millis};
use crate::config::{SessionSection, SharedSection};
use crate::identity::token::TokenDigest;
use crate::identity::{AppId, OpenId, User, UserId};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// The longest time between two writes of a last use.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// Time for an operator's action on one user.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(5);

/// Revocations or blocks of this gateway that are written again in one command.
const REWRITE_BATCH: usize = 1000;

/// KEYS: the session. ARGV: time of last use, record, lifetime. Returns whether the session exists.
static REFRESH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local value = redis.call('GET', KEYS[1])
        if not value or value == 'T' then return 0 end
        if tonumber(string.sub(value, 2, 14)) < tonumber(ARGV[1]) then
            redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
        end
        return 1",
    )
});

#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    connection: StoreConnection,
    local_cache: LocalCache,
    seals: Seals,
    key_names: KeyNames,
    own_blocks: OwnBlocks,
    /// Limits concurrent lookups and revocations, each kind separately.
    lookup_permits: Semaphore,
    revocation_permits: Semaphore,
    max_per_user: Option<NonZeroUsize>,
    keeps_session_keys: Arc<AtomicBool>,
    known_jars: KnownJars,
    timeout: Duration,
    idle_timeout: Duration,
    interval: Duration,
    clock: Clock,
    metrics: Arc<Metrics>,
    removals: Removals,
    was_subscribed: AtomicBool,
    unreadable: LogThrottle,
}

impl Redis {
    pub fn new(
        section: &SessionSection,
        shared: &SharedSection,
        keeps_session_keys: Arc<AtomicBool>,
        known_jars: KnownJars,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let redis = &shared.redis;
        let idle_timeout = section.idle_timeout.min(section.ttl);
        let interval = LONGEST_INTERVAL.min(idle_timeout / 10);
        Self(Arc::new(Inner {
            connection: StoreConnection::new(redis, clock.clone(), metrics.clone()),
            local_cache: LocalCache::new(
                section.capacity,
                redis.near_cache_ttl,
                idle_timeout + interval,
            ),
            seals: Seals::new(&section.seal_keys),
            key_names: KeyNames::new(&redis.key_prefix),
            own_blocks: OwnBlocks::default(),
            lookup_permits: Semaphore::new(redis.max_lookups),
            revocation_permits: Semaphore::new(redis.max_lookups),
            max_per_user: section.max_per_user,
            keeps_session_keys,
            known_jars,
            timeout: redis.timeout,
            idle_timeout,
            interval,
            was_subscribed: AtomicBool::new(false),
            unreadable: LogThrottle::new(clock.clone()),
            clock,
            removals: Removal::counters(&metrics),
            metrics,
        }))
    }

    /// How much later than its idle end a session may expire.
    pub fn slack(&self) -> Duration {
        self.0.interval
    }

    /// Maintains the connection to the store, and receives notices from other gateways. Never
    /// returns.
    pub async fn run(&self) {
        let this = &*self.0;
        let on_notice = |notice: &[u8]| match notice.try_into() {
            Ok(digest) => {
                let digest = TokenDigest::from_bytes(digest);
                this.local_cache.revoked_elsewhere(&digest, this.clock.now_millis());
            }
            // A digest never has the length of a name.
            Err(_) => this.unblocked_elsewhere(notice),
        };
        let on_subscribed = || this.was_subscribed.store(true, Ordering::Release);
        tokio::join!(
            this.connection.run(|store| async move {
                this.rewrite_revocations(&store).await?;
                this.rewrite_blocks(&store).await
            }),
            notices::listen(&this.connection, &this.key_names.channel, on_subscribed, on_notice),
        );
    }

    /// Whether the store and its channel have been reached since the start.
    pub fn was_reached(&self) -> bool {
        self.0.connection.was_reached() && self.0.was_subscribed.load(Ordering::Acquire)
    }

    /// Whether the store is available at present.
    pub fn check(&self) -> Result<(), StoreError> {
        self.0.connection.store().map(|_| ())
    }

    /// Stores a new session and the session key of its login, and revokes the oldest sessions of
    /// its user above the limit.
    ///
    /// # Errors
    /// When the store does not respond in time, or the user is blocked.
    pub async fn insert(&self, session: Session, key: Option<LoginKey>) -> Result<(), CreateError> {
        let this = &*self.0;
        let store = this.connection.store()?;
        let digest = *session.digest();
        let record = this.record(&session, this.clock.now_millis());
        let started = this.clock.now_millis();
        let stored = async {
            let (life, interval) = (this.life(&record), millis(this.interval));
            let mut connection = store.common();
            let listed =
                this.users().insert(&mut connection, &digest, &record, life, interval).await?;
            let Some(listed) = listed else { return Ok(Err(Blocked)) };
            if this.keeps_session_keys() {
                this.keep_login_key(&mut connection, &digest, &record, key.as_ref()).await?;
            }
            if let Some(limit) = this.max_per_user.map(NonZeroUsize::get)
                && listed > limit
            {
                this.trim(&store, &digest, &record.identity.user(), limit).await?;
            }
            Ok(Ok(()))
        };
        this.connection.within(this.timeout, stored).await??;
        this.local_cache.insert(session, started);
        this.metrics.session_created();
        Ok(())
    }

    /// The session of a token.
    pub async fn get(&self, digest: &TokenDigest) -> Result<Option<Arc<Session>>, StoreError> {
        let this = &*self.0;
        let now = this.clock.now_millis();
        if let Some(session) = this.local_cache.get(digest, now) {
            return Ok(Some(session));
        }
        if this.local_cache.is_revoked(digest, now) {
            return Ok(None);
        }
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let read = async {
            let key = this.key_names.session(digest);
            cmd("GET").arg(key).query_async::<Option<Vec<u8>>>(&mut store.common()).await
        };
        let value = this.connection.within(this.timeout, read).await?;
        Ok(match value.map(|value| this.seals.open(digest, &value)) {
            Some(StoredValue::Session(record)) => {
                this.local_cache.insert(this.session(*digest, record), now)
            }
            Some(StoredValue::Unreadable) => {
                if let Some(suppressed) = this.unreadable.suppressed() {
                    tracing::warn!(
                        suppressed,
                        "cannot open a stored session: check session.seal_key and previous_seal_keys"
                    );
                }
                None
            }
            Some(StoredValue::Tombstone) | None => None,
        })
    }

    /// Records a use of a session; writes it to the store if that is due.
    pub fn record_use(&self, session: &Arc<Session>, now: u64) {
        let written = session.last_used();
        if now.saturating_sub(written) < millis(self.0.interval)
            || !session.replace_last_used(written, now)
        {
            return;
        }
        let (this, session) = (self.clone(), session.clone());
        tokio::spawn(async move {
            if this.refresh(&session, now).await.is_err() {
                // The next use retries.
                session.replace_last_used(now, written);
            }
        });
    }

    async fn refresh(&self, session: &Session, now: u64) -> Result<(), StoreError> {
        let this = &*self.0;
        let digest = session.digest();
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let record = this.record(session, now);
        let written = async {
            let value = this.seals.seal(digest, &record).map_err(unsealable)?;
            let mut refresh = REFRESH.key(this.key_names.session(digest));
            refresh.arg(record.used).arg(value).arg(this.life(&record));
            let mut connection = store.common();
            let exists = refresh.invoke_async::<bool>(&mut connection).await?;
            if exists {
                this.prolong_jars(&mut connection, digest, this.life(&record)).await?;
            }
            if exists && matches!(connection, Connection::Cluster(_)) {
                let interval = millis(this.interval);
                this.users().list(&mut connection, digest, &record, interval).await?;
            }
            Ok(exists)
        };
        if !this.connection.within(this.timeout, written).await? {
            this.local_cache.remove(digest);
        }
        Ok(())
    }

    /// The stored sessions of a user, unordered.
    pub async fn of_user(&self, user: &User) -> Result<Vec<Arc<Session>>, StoreError> {
        let this = &*self.0;
        let store = this.connection.store()?;
        let read = async { this.users().sessions(&mut store.common(), user).await };
        let sessions = this.connection.within(OPERATOR_TIMEOUT, read).await?;
        let session = |(digest, record)| Arc::new(this.session(digest, record));
        Ok(sessions.into_iter().map(session).collect())
    }

    /// Blocks a user until `until`, in the time of the clock. Returns whether there was room.
    pub async fn block(&self, known: &KnownUser, until: u64) -> Result<bool, StoreError> {
        self.0.block(known, until).await
    }

    pub async fn unblock(&self, user: &User) -> Result<(), StoreError> {
        self.0.unblock(user).await
    }

    /// When the block of a user ends, in the time of the clock.
    pub async fn blocked_until(&self, user: &User) -> Result<Option<u64>, StoreError> {
        self.0.blocked_until(user).await
    }

    /// Finds the users of an app for whom `matches` is true, among those with a session or a
    /// block.
    pub async fn find_users(
        &self,
        app_id: &AppId,
        matches: &(impl Fn(&OpenId, Option<&UserId>) -> bool + Sync),
    ) -> Result<Vec<KnownUser>, StoreError> {
        self.0.find_users(app_id, matches).await
    }

    /// Revokes a session. It is counted under `cause` if the store still had it.
    pub async fn revoke(&self, digest: &TokenDigest, cause: Removal) -> Result<(), StoreError> {
        let this = &*self.0;
        // Whatever the store responds: here it is no longer cached.
        this.local_cache.remove(digest);
        let store = this.connection.store()?;
        let _permit = this.permit(&this.revocation_permits)?;
        let revoked = this.revoke(&store, digest, cause, this.timeout);
        let user = this.connection.within(this.timeout, revoked).await?;
        if let Some(user) = user.filter(|_| this.keeps_session_keys()) {
            // The session is revoked. If this fails, its user's session keys expire.
            let removed = this.remove_keys_of_ended(&store, &user);
            let _ = this.connection.within(this.timeout, removed).await;
        }
        Ok(())
    }

    /// Removes an expired session from the cache.
    pub fn remove_cached(&self, digest: &TokenDigest) {
        self.0.local_cache.remove(digest);
    }

    pub fn maintain(&self) {
        self.0.local_cache.maintain();
        self.0.metrics.set_sessions(self.0.local_cache.len());
    }
}

impl Inner {
    fn users(&self) -> UserIndex<'_> {
        UserIndex { seals: &self.seals, key_names: &self.key_names }
    }

    /// # Errors
    /// When the limit of concurrent operations of this kind is reached: random tokens must not
    /// overload the store.
    fn permit<'a>(&self, kind: &'a Semaphore) -> Result<SemaphorePermit<'a>, StoreError> {
        kind.try_acquire().map_err(|_| {
            self.connection.count(StoreOutcome::Refused);
            StoreError
        })
    }
}

fn failure(reason: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Io, reason))
}

fn unsealable(_: SealError) -> RedisError {
    RedisError::from((ErrorKind::Client, "no seal key configured"))
}
