//! Access tokens of WeChat's API in the shared store, and the right to renew one.
//!
//! A token is sealed for its app. The right to renew it is a key with a random value that expires
//! by itself: a gateway that dies while it renews delays the others only until then. Both are only
//! a convenience: without them each gateway gets its token from WeChat itself.

use std::sync::LazyLock;
use std::time::Duration;

use rand::Rng;
use redis::{Script, cmd};
use zeroize::Zeroizing;

use super::seal::MAX_TIME;
use super::{Redis, unsealable};
use crate::clock::millis;
use crate::identity::AppId;
use crate::identity::secret::Secret;
use crate::session::StoreError;

/// Format version of records. Records of other versions are not read.
const VERSION: u8 = 1;

/// KEYS: a lease. ARGV: its holder. Ends the lease if it is still the holder's. Expiry works
/// without permission to delete.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], 0) end",
    )
});

/// An access token as it is stored. Times are the clock's, in milliseconds.
#[derive(Clone)]
pub struct TokenRecord {
    pub token: Secret,
    pub expires_at_millis: u64,
    pub renewed_at_millis: u64,
}

/// The right to renew the token of one app, with its random holder.
pub struct Lease([u8; 16]);

/// Access tokens in a shared store. Clones share it. Each operation takes at most
/// `session.redis.timeout`.
#[derive(Clone)]
pub struct SharedTokens(Redis);

impl SharedTokens {
    pub(in crate::session) fn new(redis: Redis) -> Self {
        Self(redis)
    }

    /// The stored token of an app. A record that cannot be opened is none.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn get(&self, app_id: &AppId) -> Result<Option<TokenRecord>, StoreError> {
        let this = &*self.0.0;
        let store = this.connection.store()?;
        let read = async {
            let key = this.key_names.access_token(app_id);
            cmd("GET").arg(key).query_async::<Option<Vec<u8>>>(&mut store.common()).await
        };
        let value = this.connection.within(this.timeout, read).await?;
        let Some(value) = value else { return Ok(None) };
        let record = this.seals.open_access_token(app_id, &value).and_then(|plain| decode(&plain));
        if record.is_none()
            && let Some(suppressed) = this.unreadable.suppressed()
        {
            tracing::warn!(
                suppressed,
                "cannot open a stored access_token: check session.seal_key and previous_seal_keys"
            );
        }
        Ok(record.map(|record| TokenRecord {
            expires_at_millis: this.clock.from_wall(record.expires_at_millis),
            renewed_at_millis: this.clock.from_wall(record.renewed_at_millis),
            ..record
        }))
    }

    /// Stores a token until it expires.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn put(&self, app_id: &AppId, record: &TokenRecord) -> Result<(), StoreError> {
        let this = &*self.0.0;
        let store = this.connection.store()?;
        let life = record.expires_at_millis.saturating_sub(this.clock.now_millis()).max(1);
        let plain = encode(&TokenRecord {
            token: record.token.clone(),
            expires_at_millis: this.clock.to_wall(record.expires_at_millis),
            renewed_at_millis: this.clock.to_wall(record.renewed_at_millis),
        });
        let written = async {
            let value = this.seals.seal_access_token(app_id, &plain).map_err(unsealable)?;
            let mut set = cmd("SET");
            set.arg(this.key_names.access_token(app_id)).arg(value).arg("PX").arg(life);
            set.exec_async(&mut store.common()).await
        };
        this.connection.within(this.timeout, written).await
    }

    /// The right to renew the token of an app for a time; `None` if another gateway has it.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn try_lease(
        &self,
        app_id: &AppId,
        time: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        let this = &*self.0.0;
        let store = this.connection.store()?;
        let mut holder = [0; 16];
        rand::rng().fill_bytes(&mut holder);
        let written = async {
            let mut set = cmd("SET");
            set.arg(this.key_names.renewal(app_id)).arg(&holder[..]).arg("NX");
            set.arg("PX").arg(millis(time).max(1));
            set.query_async::<Option<String>>(&mut store.common()).await
        };
        let is_mine = this.connection.within(this.timeout, written).await?.is_some();
        Ok(is_mine.then_some(Lease(holder)))
    }

    /// Gives up a lease, unless it has ended.
    ///
    /// # Errors
    /// When the store is unavailable. Then the lease ends by itself.
    pub async fn release(&self, app_id: &AppId, lease: Lease) -> Result<(), StoreError> {
        let this = &*self.0.0;
        let store = this.connection.store()?;
        let released = async {
            let mut release = RELEASE.key(this.key_names.renewal(app_id));
            release.arg(&lease.0[..]);
            release.invoke_async::<()>(&mut store.common()).await
        };
        this.connection.within(this.timeout, released).await
    }
}

/// With times since 1970.
fn encode(record: &TokenRecord) -> Zeroizing<Vec<u8>> {
    let token = record.token.expose().as_bytes();
    // Never grows, which would leave a copy of the token behind.
    let mut plain = Zeroizing::new(Vec::with_capacity(17 + token.len()));
    plain.push(VERSION);
    plain.extend(record.expires_at_millis.to_be_bytes());
    plain.extend(record.renewed_at_millis.to_be_bytes());
    plain.extend_from_slice(token);
    plain
}

fn decode(plain: &[u8]) -> Option<TokenRecord> {
    let (&[VERSION], rest) = plain.split_first_chunk()? else { return None };
    let (expires, rest) = rest.split_first_chunk()?;
    let (renewed, token) = rest.split_first_chunk()?;
    Some(TokenRecord {
        token: Secret::new(std::str::from_utf8(token).ok()?.to_owned()),
        expires_at_millis: u64::from_be_bytes(*expires).min(MAX_TIME),
        renewed_at_millis: u64::from_be_bytes(*renewed).min(MAX_TIME),
    })
}
