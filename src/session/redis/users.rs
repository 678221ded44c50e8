//! Which sessions a user has.
//!
//! Each user has a sorted set of sealed digests, by the absolute end of the sessions, beside the
//! sessions themselves; in a cluster in another slot. A session is listed after it is stored and
//! before its login is answered, so what a client holds is listed. What was ended or has expired
//! may still be listed, and is taken off when somebody looks; what has come to its absolute end
//! goes with the next login.

use std::sync::LazyLock;

use redis::{RedisResult, Script, cmd};

use super::link::Connection;
use super::seal::{Record, Seals, UserName, Value};
use super::{Keys, unsealable};
use crate::identity::User;
use crate::token::TokenDigest;

/// Entries looked at together.
const CHUNK: usize = 500;

/// KEYS: the user's set. ARGV: the entry, its end, now, the set's life at least. Returns how many
/// there are.
static LIST: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
        redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[3])
        if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
            redis.call('PEXPIRE', KEYS[1], ARGV[4])
        end
        return redis.call('ZCARD', KEYS[1])",
    )
});

/// The index of users' sessions, for one dealing with the store.
pub struct Users<'a> {
    pub seals: &'a Seals,
    pub keys: &'a Keys,
}

impl Users<'_> {
    /// Lists a new session, that is kept for `life` milliseconds at most. Returns how many there
    /// may be.
    pub async fn add(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
        record: &Record,
        life: u64,
    ) -> RedisResult<usize> {
        let user = record.identity.user();
        let mut count = 0_usize;
        for (index, name) in self.seals.users(&user).enumerate() {
            let key = self.keys.user(&name.name);
            let listed: usize = if index == 0 {
                let member = name.member(digest).map_err(unsealable)?;
                let mut list = LIST.key(key);
                list.arg(member).arg(record.ends).arg(record.created).arg(life);
                list.invoke_async(connection).await?
            } else {
                cmd("ZCARD").arg(key).query_async(connection).await?
            };
            count += listed;
        }
        Ok(count)
    }

    /// A user's live sessions, oldest first.
    pub async fn sessions(
        &self,
        connection: &mut Connection,
        user: &User,
    ) -> RedisResult<Vec<(TokenDigest, Record)>> {
        let mut live = Vec::new();
        for name in self.seals.users(user) {
            let listed: Vec<Vec<u8>> = cmd("ZRANGE")
                .arg(self.keys.user(&name.name))
                .arg(0)
                .arg(-1)
                .query_async(connection)
                .await?;
            for chunk in listed.chunks(CHUNK) {
                self.read(connection, &name, chunk, &mut live).await?;
            }
        }
        live.sort_by_key(|(_, record): &(TokenDigest, Record)| record.created);
        Ok(live)
    }

    async fn read(
        &self,
        connection: &mut Connection,
        name: &UserName<'_>,
        listed: &[Vec<u8>],
        live: &mut Vec<(TokenDigest, Record)>,
    ) -> RedisResult<()> {
        let digests: Vec<_> =
            listed.iter().filter_map(|member| Some((member, name.digest(member)?))).collect();
        if digests.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = digests.iter().map(|(_, digest)| self.keys.session(digest)).collect();
        let values: Vec<Option<Vec<u8>>> = cmd("MGET").arg(keys).query_async(connection).await?;
        let mut over = Vec::new();
        for ((member, digest), value) in digests.into_iter().zip(values) {
            match value.map(|value| self.seals.open(&digest, &value)) {
                Some(Value::Session(record)) => live.push((digest, record)),
                Some(Value::Unreadable) => {}
                Some(Value::Tombstone) | None => over.push(member),
            }
        }
        if !over.is_empty() {
            let key = self.keys.user(&name.name);
            cmd("ZREM").arg(key).arg(over).query_async::<()>(connection).await?;
        }
        Ok(())
    }

    /// Takes a session off the list.
    pub async fn remove(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
        user: &User,
    ) -> RedisResult<()> {
        for name in self.seals.users(user) {
            let member = name.member(digest).map_err(unsealable)?;
            let key = self.keys.user(&name.name);
            cmd("ZREM").arg(key).arg(member).query_async::<()>(connection).await?;
        }
        Ok(())
    }
}
