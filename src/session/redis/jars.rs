//! The cookies of services in the shared store.
//!
//! A jar is sealed for the name of its key. It is changed by compare-and-set, so that of several
//! responses at the same time, on any gateway, each one's cookies are kept. It expires with its
//! session: each refresh of the session prolongs its jars. A jar that is stored while its session
//! is revoked is removed again: the tombstone is written first, so one of the two sees the other.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redis::{RedisResult, Script, cmd};

use super::primaries::Connection;
use super::seal::TOMBSTONE;
use super::{Inner, Redis};
use crate::identity::token::TokenDigest;
use crate::session::jars::JarName;
use crate::session::{Jar, Session, StoreError};

/// How often a change is tried. Of concurrent changes of one jar, one succeeds each time.
const MOST_TRIES: usize = 64;

/// No further try begins after this time.
const LONGEST_CHANGE: Duration = Duration::from_secs(5);

/// KEYS: a jar. ARGV: what was read, the new value, its lifetime; an empty value means that there
/// is no jar. Returns nothing if it was replaced, else what is stored.
static REPLACE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local value = redis.call('GET', KEYS[1]) or ''
        if value ~= ARGV[1] then return value end
        if ARGV[2] == '' then
            redis.call('PEXPIRE', KEYS[1], 0)
        else
            redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
        end
        return false",
    )
});

impl Redis {
    /// The jar of a session at an upstream. One that cannot be opened is empty.
    ///
    /// # Errors
    /// When the store does not respond in time.
    pub async fn jar(&self, session: &Session, upstream: JarName) -> Result<Jar, StoreError> {
        let this = &*self.0;
        let key = this.key_names.jar(session.digest(), upstream);
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let read = async { stored(&mut store.common(), &key).await };
        let value = this.connection.within(this.timeout, read).await?;
        Ok(this.open_jar(&key, &value))
    }

    /// Replaces the jar of a session at an upstream by what `change` makes of it.
    ///
    /// # Errors
    /// When the store does not respond in time, or too many others change the jar.
    pub async fn change_jar(
        &self,
        session: &Session,
        upstream: JarName,
        change: impl Fn(&Jar) -> Jar,
    ) -> Result<(), StoreError> {
        let this = &*self.0;
        let key = this.key_names.jar(session.digest(), upstream);
        // The request is a use of the session, whether or not that has been written yet.
        let life = this.life(&this.record(session, this.clock.now_millis()));
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let mut connection = store.common();
        let began = Instant::now();
        // Each command has the time limit: what takes long is that others were faster.
        let read = stored(&mut connection, &key);
        let mut value = this.connection.within(this.timeout, read).await?;
        for _ in 0..MOST_TRIES {
            let jar = this.open_jar(&key, &value);
            let next = change(&jar);
            if next == jar {
                return Ok(());
            }
            let sealed = if next.is_empty() {
                Vec::new()
            } else {
                this.seals.seal_jar(&key, &next.encode()).map_err(|_| StoreError)?
            };
            let mut replace = REPLACE.key(&key);
            replace.arg(&value).arg(&sealed).arg(life);
            let replaced = replace.invoke_async::<Option<Vec<u8>>>(&mut connection);
            let Some(other) = this.connection.within(this.timeout, replaced).await? else {
                let removed = this.remove_jars_of_ended(&mut connection, session.digest());
                return this.connection.within(this.timeout, removed).await;
            };
            if began.elapsed() >= LONGEST_CHANGE {
                break;
            }
            value = other;
        }
        tracing::debug!("too many concurrent changes of one cookie jar");
        Err(StoreError)
    }
}

impl Inner {
    fn open_jar(&self, key: &str, value: &[u8]) -> Jar {
        if value.is_empty() {
            return Jar::default();
        }
        let jar = self.seals.open_jar(key, value).and_then(|plain| Jar::decode(&plain));
        if jar.is_none()
            && let Some(suppressed) = self.unreadable.suppressed()
        {
            tracing::warn!(
                suppressed,
                "cannot open stored cookies: check session.seal_key and previous_seal_keys"
            );
        }
        jar.unwrap_or_default()
    }

    /// Lets the jars of a session live for `life` milliseconds from now on.
    pub async fn prolong_jars(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
        life: u64,
    ) -> RedisResult<()> {
        for name in self.known_jars.names() {
            let key = self.key_names.jar(digest, name);
            cmd("PEXPIRE").arg(key).arg(life).query_async::<()>(connection).await?;
        }
        Ok(())
    }

    /// Removes the jars of a session. Expiry works without permission to delete.
    pub async fn remove_jars(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
    ) -> RedisResult<()> {
        self.prolong_jars(connection, digest, 0).await
    }

    async fn remove_jars_of_ended(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
    ) -> RedisResult<()> {
        let session = stored(connection, &self.key_names.session(digest)).await?;
        if session.is_empty() || session == TOMBSTONE {
            self.remove_jars(connection, digest).await?;
        }
        Ok(())
    }
}

/// What is stored under a key; empty if there is nothing.
async fn stored(connection: &mut Connection, key: &str) -> RedisResult<Vec<u8>> {
    let value: Option<Vec<u8>> = cmd("GET").arg(key).query_async(connection).await?;
    Ok(value.unwrap_or_default())
}
