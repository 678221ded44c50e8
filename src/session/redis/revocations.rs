//! How a session is ended in the store before its time.
//!
//! A tombstone replaces it, replicas confirm the tombstone, other gateways are notified, and the
//! session is removed from its user's list. The tombstones that this gateway has written are
//! written again to a store that replaces another.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script, cmd};
use tokio::time::timeout;

use super::address::DIAL;
use super::connection::Store;
use super::seal::{TOMBSTONE, Value};
use super::{Inner, TOLD_AT_ONCE, failure};
use crate::identity::User;
use crate::identity::token::TokenDigest;
use crate::session::Removal;

/// KEYS: the session. ARGV: channel, digest. Returns the outcome, the rest of the session's
/// lifetime, and the record.
static END: LazyLock<Script> = LazyLock::new(|| {
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
    /// Ends a session. It is counted under `cause` if the store still had it.
    pub async fn end(
        &self,
        store: &Store,
        digest: &TokenDigest,
        cause: Removal,
        patience: Duration,
    ) -> RedisResult<()> {
        let mut connection = store.revocations();
        let key = self.keys.session(digest);
        let mut end = END.key(&key);
        end.arg(&self.keys.channel).arg(digest.as_bytes());
        let (outcome, left, value): (u8, u64, Vec<u8>) = end.invoke_async(&mut connection).await?;
        if outcome == 0 {
            return Ok(());
        }
        self.local_cache.revoke(digest, self.clock.now_millis().saturating_add(left));
        if outcome == 2 {
            self.removals.count(cause as usize);
        }
        store.confirm(&mut connection, key.as_bytes(), patience).await?;
        if let Value::Session(record) = self.seals.open(digest, &value) {
            let user = record.identity.user();
            // If this fails, the next listing removes it.
            let _ = self.users().remove(&mut store.common(), digest, &user).await;
        }
        Ok(())
    }

    /// Ends the oldest sessions of a user until `most` are left. The session of `newest` is kept,
    /// because the clocks of gateways may differ.
    pub async fn trim(
        &self,
        store: &Store,
        newest: &TokenDigest,
        user: &User,
        most: usize,
    ) -> RedisResult<()> {
        let sessions = self.users().sessions(&mut store.common(), user).await?;
        let live: Vec<_> = sessions.iter().filter(|(_, record)| self.is_live(record)).collect();
        let excess = live.len().saturating_sub(most);
        let others = live.iter().filter(|(digest, _)| digest != newest);
        for (digest, _) in others.take(excess) {
            self.end(store, digest, Removal::Replaced, self.timeout).await?;
        }
        Ok(())
    }

    /// Writes this gateway's revocations again, because the store may have lost them.
    ///
    /// # Errors
    /// When one of them was not written.
    pub async fn tell_of_ends(&self, store: &Store) -> RedisResult<()> {
        let ends = self.local_cache.own_revocations(self.clock.now_millis());
        for some in ends.chunks(TOLD_AT_ONCE) {
            let written = some.iter().map(|(digest, left)| {
                let mut connection = store.revocations();
                let key = self.keys.session(digest);
                async move {
                    let mut set = cmd("SET");
                    set.arg(key).arg(TOMBSTONE).arg("PX").arg((*left).max(1));
                    set.exec_async(&mut connection).await
                }
            });
            let written = futures_util::future::try_join_all(written);
            let late = |_| failure("what was ended here is not taken");
            timeout(DIAL, written).await.map_err(late)??;
        }
        if !ends.is_empty() {
            let count = ends.len();
            tracing::info!(count, "sessions that were ended here are ended in the new store");
        }
        Ok(())
    }
}
