//! Which sessions a user has, when sessions are kept in a shared store.
//!
//! Each user has a sorted set of sealed digests, scored by the sessions' absolute ends. A single
//! server stores and lists a session in one step, so that a failover cannot separate the two. In a
//! cluster they are in different slots: a session is listed after it is stored and before the
//! login's response is sent. It is listed again whenever its use is written, because the node with
//! the list may have lost it. Ended sessions may still be listed; they are removed when the list is
//! read, and sessions past their absolute end by the next login.

use std::collections::HashSet;
use std::sync::LazyLock;

use redis::{RedisResult, Script, ScriptInvocation, cmd};

use super::blocks::blocked_until;
use super::key_names::KeyNames;
use super::primaries::Connection;
use super::seal::{Record, SealError, Seals, StoredValue, TOMBSTONE, UserName};
use super::unsealable;
use crate::identity::User;
use crate::identity::token::TokenDigest;

/// Entries that are read together.
const CHUNK: usize = 500;

/// KEYS: the user's set. ARGV: the entry, its end, now, the minimum lifetime of the set. Returns
/// the number of entries.
const LIST: &str = r"
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[3])
    if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
        redis.call('PEXPIRE', KEYS[1], ARGV[4])
    end
    return redis.call('ZCARD', KEYS[1])";

static LIST_ONLY: LazyLock<Script> = LazyLock::new(|| Script::new(LIST));

/// KEYS and ARGV as above, followed by the session, its value and its lifetime. If the user is
/// blocked under the third key, nothing is stored, and the result is -1. A block that cannot be
/// read blocks.
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

/// The sessions that are listed for a user.
#[derive(Default)]
pub struct Listed {
    /// Those that are stored, some of which may have ended.
    pub sessions: Vec<(TokenDigest, Record)>,
    /// Whether there are some that no known key opens.
    pub has_unreadable: bool,
}

/// The index of users' sessions, for one operation on the store.
pub struct UserIndex<'a> {
    pub seals: &'a Seals,
    pub key_names: &'a KeyNames,
}

impl UserIndex<'_> {
    /// Stores a new session for `life` milliseconds, which later uses extend, and lists it. Returns
    /// how many sessions of its user are listed, some of which may have ended; `None` if the user
    /// is blocked, and then nothing is stored.
    pub async fn insert(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
        record: &Record,
        life: u64,
        interval: u64,
    ) -> RedisResult<Option<usize>> {
        let key = self.key_names.session(digest);
        let user = record.identity.user();
        let value = self.seals.seal(digest, record).map_err(unsealable)?;
        if let Connection::Cluster(cluster) = connection {
            let mut set = cmd("SET");
            set.arg(key).arg(value).arg("NX").arg("PX").arg(life);
            set.exec_async(cluster).await?;
            let listed = self.list(connection, digest, record, interval).await?;
            let names = self.seals.user_names(&user).collect();
            return self.undo_if_blocked(connection, names, digest, record, listed).await;
        }
        let mut names = self.seals.user_names(&user);
        let name = names.next().ok_or_else(|| unsealable(SealError))?;
        let mut script = self.list_script(&STORE_AND_LIST, &name, digest, record, interval)?;
        script.key(key).key(self.key_names.block(&name.name)).arg(value).arg(life);
        let listed: i64 = script.invoke_async(connection).await?;
        let Ok(listed) = usize::try_from(listed) else { return Ok(None) };
        let others: Vec<_> = names.collect();
        if others.is_empty() {
            return Ok(Some(listed));
        }
        let listed = listed + self.count(connection, &others).await?;
        self.undo_if_blocked(connection, others, digest, record, listed).await
    }

    /// Removes a session again if its user is blocked under one of these names. A block is set
    /// before the listed sessions are revoked, so one of the two sees the other.
    async fn undo_if_blocked(
        &self,
        connection: &mut Connection,
        names: Vec<UserName<'_>>,
        digest: &TokenDigest,
        record: &Record,
        listed: usize,
    ) -> RedisResult<Option<usize>> {
        let keys: Vec<_> = names.iter().map(|name| self.key_names.block(&name.name)).collect();
        let until = blocked_until(connection, &keys).await?;
        if until.is_none_or(|until| until <= record.used) {
            return Ok(Some(listed));
        }
        // Nobody has received its token.
        let mut set = cmd("SET");
        set.arg(self.key_names.session(digest)).arg(TOMBSTONE).arg("PX").arg(1);
        set.exec_async(connection).await?;
        self.remove(connection, digest, &record.identity.user()).await?;
        Ok(None)
    }

    /// Lists a session. Returns how many sessions of its user are listed; some may have ended.
    pub async fn list(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
        record: &Record,
        interval: u64,
    ) -> RedisResult<usize> {
        let user = record.identity.user();
        let mut names = self.seals.user_names(&user);
        let name = names.next().ok_or_else(|| unsealable(SealError))?;
        let script = self.list_script(&LIST_ONLY, &name, digest, record, interval)?;
        let listed: usize = script.invoke_async(connection).await?;
        let others: Vec<_> = names.collect();
        Ok(listed + self.count(connection, &others).await?)
    }

    fn list_script<'a>(
        &self,
        script: &'a Script,
        name: &UserName<'_>,
        digest: &TokenDigest,
        record: &Record,
        interval: u64,
    ) -> RedisResult<ScriptInvocation<'a>> {
        let member = name.member(digest).map_err(unsealable)?;
        // As long as the session may be stored.
        let longest = record.ends.saturating_sub(record.used) + interval;
        let mut listing = script.key(self.key_names.user(&name.name));
        listing.arg(member).arg(record.ends).arg(record.used).arg(longest);
        Ok(listing)
    }

    /// The number of a user's entries under some of its names.
    pub async fn count(
        &self,
        connection: &mut Connection,
        names: &[UserName<'_>],
    ) -> RedisResult<usize> {
        let mut count = 0_usize;
        for name in names {
            let key = self.key_names.user(&name.name);
            count += cmd("ZCARD").arg(key).query_async::<usize>(connection).await?;
        }
        Ok(count)
    }

    /// A user's stored sessions, oldest first, without duplicates.
    pub async fn sessions(
        &self,
        connection: &mut Connection,
        user: &User,
    ) -> RedisResult<Vec<(TokenDigest, Record)>> {
        Ok(self.listed(connection, user).await?.sessions)
    }

    /// What is listed for a user; the sessions oldest first, without duplicates.
    pub async fn listed(&self, connection: &mut Connection, user: &User) -> RedisResult<Listed> {
        let mut found = Listed::default();
        for name in self.seals.user_names(user) {
            let listed: Vec<Vec<u8>> = cmd("ZRANGE")
                .arg(self.key_names.user(&name.name))
                .arg(0)
                .arg(-1)
                .query_async(connection)
                .await?;
            for chunk in listed.chunks(CHUNK) {
                let read = self.read(connection, &name, chunk).await?;
                found.sessions.extend(read.sessions);
                found.has_unreadable |= read.has_unreadable;
            }
        }
        // After a change of keys, a session may be listed under several keys.
        let mut digests = HashSet::new();
        found.sessions.retain(|(digest, _)| digests.insert(*digest));
        found.sessions.sort_by_key(|(_, record)| record.created);
        Ok(found)
    }

    /// Reads some listed sessions. Those that are not stored any more are removed from the list.
    async fn read(
        &self,
        connection: &mut Connection,
        name: &UserName<'_>,
        listed: &[Vec<u8>],
    ) -> RedisResult<Listed> {
        let digests: Vec<_> =
            listed.iter().filter_map(|member| Some((member, name.digest(member)?))).collect();
        if digests.is_empty() {
            return Ok(Listed::default());
        }
        let keys: Vec<_> =
            digests.iter().map(|(_, digest)| self.key_names.session(digest)).collect();
        let values: Vec<Option<Vec<u8>>> = cmd("MGET").arg(keys).query_async(connection).await?;
        let (mut found, mut ended) = (Listed::default(), Vec::new());
        for ((member, digest), value) in digests.into_iter().zip(values) {
            match value.map(|value| self.seals.open(&digest, &value)) {
                Some(StoredValue::Session(record)) => found.sessions.push((digest, record)),
                Some(StoredValue::Unreadable) => found.has_unreadable = true,
                Some(StoredValue::Tombstone) | None => ended.push(member),
            }
        }
        if !ended.is_empty() {
            let key = self.key_names.user(&name.name);
            cmd("ZREM").arg(key).arg(ended).query_async::<()>(connection).await?;
        }
        Ok(found)
    }

    /// Removes a session from the list.
    pub async fn remove(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
        user: &User,
    ) -> RedisResult<()> {
        for name in self.seals.user_names(user) {
            let member = name.member(digest).map_err(unsealable)?;
            let key = self.key_names.user(&name.name);
            cmd("ZREM").arg(key).arg(member).query_async::<()>(connection).await?;
        }
        Ok(())
    }
}
