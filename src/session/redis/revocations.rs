//! How a session is revoked in the store.
//!
//! A tombstone replaces it, replicas confirm the tombstone, other gateways are notified, and the
//! session is removed from its user's list. The tombstones that this gateway has written are
//! written again to a store that replaces another.

use std::sync::LazyLock;
use std::time::Duration;

use futures_util::future::try_join_all;
use redis::{RedisResult, Script, cmd};
use tokio::time::timeout;

use super::address::DIAL_TIMEOUT;
use super::connection::Store;
use super::seal::{StoredValue, TOMBSTONE};
use super::{Inner, REWRITE_BATCH, failure};
use crate::identity::User;
use crate::identity::token::TokenDigest;
use crate::session::Removal;

/// KEYS: the session. ARGV: channel, digest. Returns the outcome, the rest of the session's
/// lifetime, and the record.
static REVOKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local value = redis.call('GET', KEYS[1])
        if not value then return {0, 0, ''} end
        local left = math.max(redis.call('PTTL', KEYS[1]), 1)
        redis.call('SET', KEYS[1], 'T', 'PX', left)
        redis.call('PUBLISH', ARGV[1], ARGV[2])
        if value == 'T' then return {1, left, ''} end
        return {2, left, value}",
    )
});

impl Inner {
    /// Revokes a session. It is counted under `cause` if the store still had it. Returns its user,
    /// if it was revoked now.
    pub async fn revoke(
        &self,
        store: &Store,
        digest: &TokenDigest,
        cause: Removal,
        time_limit: Duration,
    ) -> RedisResult<Option<User>> {
        let mut connection = store.revocations();
        let key = self.key_names.session(digest);
        let mut revoke = REVOKE.key(&key);
        revoke.arg(&self.key_names.channel).arg(digest.as_bytes());
        let (outcome, left, value): (u8, u64, Vec<u8>) =
            revoke.invoke_async(&mut connection).await?;
        if outcome == 0 {
            return Ok(None);
        }
        self.local_cache.revoke(digest, self.clock.now_millis().saturating_add(left));
        if outcome == 2 {
            self.removals.count(cause as usize);
        }
        store.confirm(&mut connection, key.as_bytes(), time_limit).await?;
        // If this fails, they expire: no other session has this digest.
        let _ = self.remove_jars(&mut store.common(), digest).await;
        let StoredValue::Session(record) = self.seals.open(digest, &value) else {
            return Ok(None);
        };
        let user = record.identity.user();
        // If this fails, the next listing removes it.
        let _ = self.users().remove(&mut store.common(), digest, &user).await;
        Ok(Some(user))
    }

    /// Revokes the oldest sessions of a user until `limit` are left. The session of `newest` is
    /// kept, because the clocks of gateways may differ.
    pub async fn trim(
        &self,
        store: &Store,
        newest: &TokenDigest,
        user: &User,
        limit: usize,
    ) -> RedisResult<()> {
        let sessions = self.users().sessions(&mut store.common(), user).await?;
        let live: Vec<_> = sessions.iter().filter(|(_, record)| self.is_live(record)).collect();
        let excess = live.len().saturating_sub(limit);
        let others = live.iter().filter(|(digest, _)| digest != newest);
        for (digest, _) in others.take(excess) {
            self.revoke(store, digest, Removal::Replaced, self.timeout).await?;
        }
        Ok(())
    }

    /// Writes this gateway's revocations again, because the store may have lost them.
    ///
    /// # Errors
    /// When one of them was not written.
    pub async fn rewrite_revocations(&self, store: &Store) -> RedisResult<()> {
        let revocations = self.local_cache.own_revocations(self.clock.now_millis());
        for batch in revocations.chunks(REWRITE_BATCH) {
            let writes = batch.iter().map(|(digest, left)| {
                let mut connection = store.revocations();
                let key = self.key_names.session(digest);
                async move {
                    let mut set = cmd("SET");
                    set.arg(key).arg(TOMBSTONE).arg("PX").arg((*left).max(1));
                    set.exec_async(&mut connection).await
                }
            });
            let writes = try_join_all(writes);
            let timed_out = |_| failure("timed out writing revocations");
            timeout(DIAL_TIMEOUT, writes).await.map_err(timed_out)??;
        }
        if !revocations.is_empty() {
            let count = revocations.len();
            tracing::info!(count, "wrote the revocations of this gateway to the new session store");
        }
        Ok(())
    }
}
