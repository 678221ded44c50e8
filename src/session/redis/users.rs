//! Which sessions a user has.
//!
//! Each user has a sorted set of sealed digests, by the absolute end of the sessions. A server
//! that has it all stores and lists a session at once, so that no failover parts them. In a
//! cluster the two lie in different slots: a session is listed after it is stored and before its
//! login is answered, and again whenever its use is written, for the node that has the list may
//! have lost it. What was ended or has expired may still be listed, and is taken off when somebody
//! looks; what has come to its absolute end goes with the next login.

use std::collections::HashSet;
use std::sync::LazyLock;

use redis::{RedisResult, Script, ScriptInvocation, cmd};

use super::blocks::blocked_until;
use super::connection::Connection;
use super::seal::{Record, SealError, Seals, TOMBSTONE, UserName, Value};
use super::{Keys, unsealable};
use crate::identity::User;
use crate::identity::token::TokenDigest;

/// Entries looked at together.
const CHUNK: usize = 500;

/// KEYS: the user's set. ARGV: the entry, its end, now, the set's life at least. Returns how many
/// there are.
const LIST: &str = r"
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[3])
    if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
        redis.call('PEXPIRE', KEYS[1], ARGV[4])
    end
    return redis.call('ZCARD', KEYS[1])";

static LIST_ONLY: LazyLock<Script> = LazyLock::new(|| Script::new(LIST));

/// KEYS and ARGV: besides, the session, its value and its life. A user that is blocked under the
/// third key gets nothing and -1. A value that cannot be read was written there to block.
static STORE_AND_LIST: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        r"local block = redis.call('GET', KEYS[3])
        if block then
            local ends = tonumber(string.sub(block, 2, 14))
            if not ends or ends > tonumber(ARGV[3]) then return -1 end
        end
        redis.call('SET', KEYS[2], ARGV[5], 'NX', 'PX', ARGV[6])
        {LIST}"
    ))
});

/// The index of users' sessions, for one dealing with the store.
pub struct Users<'a> {
    pub seals: &'a Seals,
    pub keys: &'a Keys,
}

impl Users<'_> {
    /// Stores a new session for `life` milliseconds, unless it is used, and lists it. Returns how
    /// many its user may have; `None` where the user is blocked, and nothing is kept then.
    pub async fn insert(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
        record: &Record,
        life: u64,
        interval: u64,
    ) -> RedisResult<Option<usize>> {
        let key = self.keys.session(digest);
        let user = record.identity.user();
        let value = self.seals.seal(digest, record).map_err(unsealable)?;
        if let Connection::Cluster(cluster) = connection {
            let mut set = cmd("SET");
            set.arg(key).arg(value).arg("NX").arg("PX").arg(life);
            set.exec_async(cluster).await?;
            let listed = self.list(connection, digest, record, interval).await?;
            let names = self.seals.users(&user).collect();
            return self.unless_blocked(connection, names, digest, record, listed).await;
        }
        let mut names = self.seals.users(&user);
        let name = names.next().ok_or_else(|| unsealable(SealError))?;
        let mut script = self.listing(&STORE_AND_LIST, &name, digest, record, interval)?;
        script.key(key).key(self.keys.block(&name.name)).arg(value).arg(life);
        let listed: i64 = script.invoke_async(connection).await?;
        let Ok(listed) = usize::try_from(listed) else { return Ok(None) };
        let others: Vec<_> = names.collect();
        if others.is_empty() {
            return Ok(Some(listed));
        }
        let listed = listed + self.count(connection, &others).await?;
        self.unless_blocked(connection, others, digest, record, listed).await
    }

    /// Removes a session again if its user is blocked under one of these names. Listed sessions are
    /// ended after the block is set, so that neither misses the other.
    async fn unless_blocked(
        &self,
        connection: &mut Connection,
        names: Vec<UserName<'_>>,
        digest: &TokenDigest,
        record: &Record,
        listed: usize,
    ) -> RedisResult<Option<usize>> {
        let keys: Vec<_> = names.iter().map(|name| self.keys.block(&name.name)).collect();
        let until = blocked_until(connection, &keys).await?;
        if until.is_none_or(|until| until <= record.used) {
            return Ok(Some(listed));
        }
        // Nobody has its token.
        let mut end = cmd("SET");
        end.arg(self.keys.session(digest)).arg(TOMBSTONE).arg("PX").arg(1);
        end.exec_async(connection).await?;
        self.remove(connection, digest, &record.identity.user()).await?;
        Ok(None)
    }

    /// Lists a session. Returns how many its user may have.
    pub async fn list(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
        record: &Record,
        interval: u64,
    ) -> RedisResult<usize> {
        let user = record.identity.user();
        let mut names = self.seals.users(&user);
        let name = names.next().ok_or_else(|| unsealable(SealError))?;
        let script = self.listing(&LIST_ONLY, &name, digest, record, interval)?;
        let listed: usize = script.invoke_async(connection).await?;
        let others: Vec<_> = names.collect();
        Ok(listed + self.count(connection, &others).await?)
    }

    fn listing<'a>(
        &self,
        script: &'a Script,
        name: &UserName<'_>,
        digest: &TokenDigest,
        record: &Record,
        interval: u64,
    ) -> RedisResult<ScriptInvocation<'a>> {
        let member = name.member(digest).map_err(unsealable)?;
        // As long as the session can be stored.
        let longest = record.ends.saturating_sub(record.used) + interval;
        let mut listing = script.key(self.keys.user(&name.name));
        listing.arg(member).arg(record.ends).arg(record.used).arg(longest);
        Ok(listing)
    }

    /// How many are listed under other keys.
    async fn count(
        &self,
        connection: &mut Connection,
        names: &[UserName<'_>],
    ) -> RedisResult<usize> {
        let mut count = 0_usize;
        for name in names {
            let key = self.keys.user(&name.name);
            count += cmd("ZCARD").arg(key).query_async::<usize>(connection).await?;
        }
        Ok(count)
    }

    /// A user's sessions that are stored, oldest first, each once.
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
        // Where keys were changed it may be listed under each of them.
        let mut seen = HashSet::new();
        live.retain(|(digest, _): &(TokenDigest, Record)| seen.insert(*digest));
        live.sort_by_key(|(_, record)| record.created);
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
