//! Users whose logins are rejected for a time.
//!
//! A block is stored like a session: its end, and a record of the user, sealed for the store's key
//! under which it is stored. It is stored once for each seal key, because the name of the user in
//! the store's key depends on the seal key. All of these are read, so that gateways see a block
//! while their seal keys are being changed. The ends of all blocks are listed, only in order to
//! count them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use redis::{RedisResult, Script, cmd};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::address::DIAL_TIMEOUT;
use super::connection::Store;
use super::primaries::Connection;
use super::seal::{MAX_TIME, Record, SealError, stamp, stamped_time};
use super::{Inner, OPERATOR_TIMEOUT, REWRITE_BATCH, failure, unsealable};
use crate::identity::token::TokenDigest;
use crate::identity::{Identity, User, UserId};
use crate::session::{KnownUser, MAX_BLOCKED, StoreError};

/// KEYS: the list of blocks. ARGV: the user, the block's end, now, its lifetime, the limit of
/// blocks. Returns whether there was room.
static COUNT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
        local is_new = redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
        if is_new == 1 and redis.call('ZCARD', KEYS[1]) > tonumber(ARGV[5]) then
            redis.call('ZREM', KEYS[1], ARGV[1])
            return 0
        end
        if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
            redis.call('PEXPIRE', KEYS[1], ARGV[4])
        end
        return 1",
    )
});

/// KEYS: a block. ARGV: its value, its lifetime, its end. Keeps an existing block that ends later,
/// or that cannot be read and so has no end.
static LENGTHEN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local block = redis.call('GET', KEYS[1])
        if block then
            local ends = tonumber(string.sub(block, 2, 14))
            if not ends or ends > tonumber(ARGV[3]) then return end
        end
        redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])",
    )
});

/// What happens to an existing block of the same user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Replace,
    /// Replaced, unless it ends later.
    Lengthen,
}

/// The blocks that this gateway has set, and their ends in the time of the clock. They are written
/// again to a store that replaces another.
#[derive(Default)]
pub struct OwnBlocks(Mutex<HashMap<User, OwnBlock>>);

#[derive(Clone)]
struct OwnBlock {
    until: u64,
    user_id: Option<UserId>,
}

impl OwnBlocks {
    fn set(&self, known: &KnownUser, until: u64, now: u64) {
        let mut blocks = self.0.lock();
        // The store does not keep more of them either.
        if blocks.len() >= MAX_BLOCKED {
            blocks.retain(|_, block| now < block.until);
        }
        let user_id = known.user_id.clone();
        blocks.insert(known.user.clone(), OwnBlock { until, user_id });
    }

    fn live(&self, now: u64) -> Vec<(KnownUser, u64)> {
        let blocks = self.0.lock();
        let live = blocks.iter().filter(|(_, block)| now < block.until);
        let known = |(user, block): (&User, &OwnBlock)| {
            let OwnBlock { until, user_id } = block.clone();
            (KnownUser { user: user.clone(), user_id }, until)
        };
        live.map(known).collect()
    }
}

impl Inner {
    /// Blocks a user until `until`, in the time of the clock. Returns whether there was room.
    pub async fn block(&self, known: &KnownUser, until: u64) -> Result<bool, StoreError> {
        let store = self.connection.store()?;
        let written = async {
            let mut connection = store.revocations();
            if !self.put_block(&mut connection, known, until, Existing::Replace).await? {
                return Ok(false);
            }
            self.confirm_block(&store, &mut connection, &known.user).await?;
            Ok(true)
        };
        let has_room = self.connection.within(OPERATOR_TIMEOUT, written).await?;
        if has_room {
            self.own_blocks.set(known, until, self.clock.now_millis());
        }
        Ok(has_room)
    }

    /// Removes the block of a user.
    pub async fn unblock(&self, user: &User) -> Result<(), StoreError> {
        let store = self.connection.store()?;
        self.own_blocks.0.lock().remove(user);
        let written = async {
            let mut connection = store.revocations();
            for name in self.seals.user_names(user) {
                let mut publish = cmd("PUBLISH");
                publish.arg(&self.key_names.channel).arg(&name.name);
                publish.exec_async(&mut connection).await?;
                // Expiry works without permission to delete.
                let mut set = cmd("SET");
                set.arg(self.key_names.block(&name.name)).arg(stamp(0)).arg("PX").arg(1);
                set.exec_async(&mut connection).await?;
                let mut remove = cmd("ZREM");
                remove.arg(self.key_names.blocks()).arg(&name.name);
                remove.exec_async(&mut connection).await?;
            }
            self.confirm_block(&store, &mut connection, user).await
        };
        self.connection.within(OPERATOR_TIMEOUT, written).await
    }

    /// Forgets this gateway's block of the user with this name, which another gateway has removed.
    pub fn unblocked_elsewhere(&self, name: &[u8]) {
        let has_name =
            |user: &User| self.seals.user_names(user).any(|own| own.name.as_bytes() == name);
        self.own_blocks.0.lock().retain(|user, _| !has_name(user));
    }

    /// Writes this gateway's blocks again, because the store may have lost them.
    ///
    /// # Errors
    /// When one of them was not written.
    pub async fn rewrite_blocks(&self, store: &Store) -> RedisResult<()> {
        let blocks = self.own_blocks.live(self.clock.now_millis());
        for batch in blocks.chunks(REWRITE_BATCH) {
            let writes = batch.iter().map(|(known, until)| {
                let mut connection = store.revocations();
                // Another gateway may have set a longer one in the meantime.
                let existing = Existing::Lengthen;
                async move { self.put_block(&mut connection, known, *until, existing).await }
            });
            let timed_out = |_| failure("timed out writing blocks");
            timeout(DIAL_TIMEOUT, try_join_all(writes)).await.map_err(timed_out)??;
        }
        if !blocks.is_empty() {
            let count = blocks.len();
            tracing::info!(count, "wrote the blocks of this gateway to the new session store");
        }
        Ok(())
    }

    /// Writes a block. Returns whether there was room.
    async fn put_block(
        &self,
        connection: &mut Connection,
        known: &KnownUser,
        until: u64,
        existing: Existing,
    ) -> RedisResult<bool> {
        let KnownUser { user, user_id } = known;
        let now = self.clock.to_wall(self.clock.now_millis());
        let ends = self.clock.to_wall(until);
        let life = ends.saturating_sub(now).max(1);
        let record = Record {
            identity: Identity {
                app_id: user.app_id.clone(),
                openid: user.openid.clone(),
                unionid: None,
                user_id: user_id.clone(),
            },
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            created: now,
            ends,
            used: ends,
        };
        // Counted under only one of its names, so that it counts once. Nothing is written if there
        // is no room.
        let Some(name) = self.seals.user_names(user).next() else {
            return Err(unsealable(SealError));
        };
        let mut count = COUNT.key(self.key_names.blocks());
        count.arg(&name.name).arg(ends).arg(now).arg(life).arg(MAX_BLOCKED);
        if !count.invoke_async::<bool>(connection).await? {
            return Ok(false);
        }
        for name in self.seals.user_names(user) {
            let key = self.key_names.block(&name.name);
            let value = self.seals.seal(&block_digest(&key), &record).map_err(unsealable)?;
            if existing == Existing::Lengthen {
                let mut lengthen = LENGTHEN.key(key);
                lengthen.arg(value).arg(life).arg(ends);
                lengthen.invoke_async::<()>(connection).await?;
            } else {
                let mut set = cmd("SET");
                set.arg(key).arg(value).arg("PX").arg(life);
                set.exec_async(connection).await?;
            }
        }
        Ok(true)
    }

    /// Waits until replicas have received a user's block.
    async fn confirm_block(
        &self,
        store: &Store,
        connection: &mut Connection,
        user: &User,
    ) -> RedisResult<()> {
        for name in self.seals.user_names(user) {
            let key = self.key_names.block(&name.name);
            store.confirm(connection, key.as_bytes(), self.timeout).await?;
        }
        Ok(())
    }

    /// When the block of a user ends, in the time of the clock.
    pub async fn blocked_until(&self, user: &User) -> Result<Option<u64>, StoreError> {
        let store = self.connection.store()?;
        let read = async {
            let names = self.seals.user_names(user).map(|name| self.key_names.block(&name.name));
            let names: Vec<_> = names.collect();
            blocked_until(&mut store.common(), &names).await
        };
        let until = self.connection.within(self.timeout, read).await?;
        let now = self.clock.to_wall(self.clock.now_millis());
        Ok(until.filter(|until| now < *until).map(|until| self.clock.from_wall(until)))
    }
}

/// The latest end of the blocks under these keys, on the wall clock, even if it has passed.
pub async fn blocked_until(
    connection: &mut Connection,
    keys: &[String],
) -> RedisResult<Option<u64>> {
    if keys.is_empty() {
        return Ok(None);
    }
    let values: Vec<Option<Vec<u8>>> = cmd("MGET").arg(keys).query_async(connection).await?;
    // Any other value was written there to block the user.
    Ok(values.into_iter().flatten().map(|value| stamped_time(&value).unwrap_or(MAX_TIME)).max())
}

/// A block's record is sealed for this digest, which no token has.
pub fn block_digest(key: &str) -> TokenDigest {
    TokenDigest::from_bytes(Sha256::digest(key).into())
}
