//! Users' session keys in the store.
//!
//! Each user has a sorted set of sealed session keys, by times of login. Equal keys give equal
//! entries (`seal.rs`), so the store itself keeps the newest three different ones, in one step:
//! gateways that log in one user at the same time lose nothing. The set expires after the latest
//! absolute end of the sessions that were stored meanwhile, which no use of a session extends. As
//! everything about users, it has one name per seal key, of which the first is written and all are
//! read.
//!
//! Sessions and session keys are in different slots of a cluster, so they do not change in one
//! step. What holds nevertheless:
//!
//! - Keys of a user without a live session are never returned: a lookup reads the user's sessions.
//! - No concurrent end of another session removes the key of a login. A login stores and lists its
//!   session before its key. A removal of keys reads them first, and the user's sessions after
//!   that; it removes only the keys that it has read, and only if no session is live. A key that it
//!   has read belongs to a session that was listed before, so that session is live, or has ended
//!   too. An entry is removed only with the time that was read, so a key that a later login has
//!   renewed meanwhile stays. (If logins with the same key also overtook each other, the key may be
//!   lost: then the user logs in again.)
//! - Keys are removed when the last session of their user is revoked, and before a new login's key
//!   is used, if all earlier sessions have ended. What fails there, what a login adds whose session
//!   is revoked at the same moment, and what belongs to sessions that expired, is not returned, and
//!   is removed by the next login, or expires.
//!
//! A gateway that does not keep session keys does not extend the lifetime of those that others
//! keep. A failover may lose keys, or the list of a user's sessions, which makes the user one
//! without session keys until its next login.

use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use redis::{RedisResult, Script, cmd};

use super::connection::Store;
use super::primaries::Connection;
use super::seal::{Record, SealError, UserName};
use super::{Inner, Redis, unsealable};
use crate::clock::millis;
use crate::identity::User;
use crate::identity::session_key::SessionKey;
use crate::identity::token::TokenDigest;
use crate::session::user_keys::{KEPT_KEYS, UserKeys};
use crate::session::{LoginKey, StoreError};

/// When the last session of a user is revoked, few others are listed that have ended meanwhile. A
/// user with more listed sessions is not checked, or revoking all sessions one by one would read
/// all of them each time.
const MOST_CHECKED: usize = 20;

/// KEYS: the user's keys. ARGV: the minimum lifetime of the set, how many to keep, and for a new
/// key its entry, its time of login, and 1 if it must become the newest one. Returns what was kept
/// before. Times are passed as texts, because Lua would shorten them.
static KEEP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local before = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
        if ARGV[3] then
            local time = tonumber(ARGV[4])
            for i = 1, #before, 2 do
                local other = tonumber(before[i + 1])
                if before[i] == ARGV[3] then time = math.max(time, other) end
                if ARGV[5] == '1' then time = math.max(time, other + 1) end
            end
            redis.call('ZADD', KEYS[1], string.format('%.0f', time), ARGV[3])
            local old = redis.call('ZRANGE', KEYS[1], 0, -1 - tonumber(ARGV[2]))
            if #old > 0 then redis.call('ZREM', KEYS[1], unpack(old)) end
        end
        if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then
            redis.call('PEXPIRE', KEYS[1], ARGV[1])
        end
        return before",
    )
});

/// KEYS: the user's keys. ARGV: entries and their times. Removes those that still have this time.
static REMOVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local kept = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
        local times = {}
        for i = 1, #kept, 2 do times[kept[i]] = kept[i + 1] end
        for i = 1, #ARGV, 2 do
            if times[ARGV[i]] == ARGV[i + 1] then redis.call('ZREM', KEYS[1], ARGV[i]) end
        end",
    )
});

/// A sealed key in the store, and its time of login as the store writes it.
type Entry = (Vec<u8>, Vec<u8>);

/// A user's keys under one of its names.
struct Kept<'a> {
    name: UserName<'a>,
    entries: Vec<Entry>,
}

impl Redis {
    /// The kept session keys of a user with a live session, newest login first.
    pub async fn session_keys(&self, user: &User) -> Result<Vec<SessionKey>, StoreError> {
        let this = &*self.0;
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let read = this.session_keys(&store, user);
        this.connection.within(this.timeout, read).await
    }

    /// Makes a key the newest one of a user with a live session.
    pub async fn replace_session_key(&self, user: &User, key: LoginKey) -> Result<(), StoreError> {
        let this = &*self.0;
        let store = this.connection.store()?;
        let written = this.keep_newest_key(&store, user, &key);
        this.connection.within(this.timeout, written).await
    }
}

impl Inner {
    pub fn keeps_session_keys(&self) -> bool {
        self.keeps_session_keys.load(Ordering::Acquire)
    }

    /// Stores the session key of a login whose session is stored and listed. Without a key, the
    /// user's other ones must last as long as the session all the same.
    pub async fn keep_login_key(
        &self,
        connection: &mut Connection,
        digest: &TokenDigest,
        record: &Record,
        key: Option<&LoginKey>,
    ) -> RedisResult<()> {
        let user = record.identity.user();
        let life = record.ends.saturating_sub(record.used) + millis(self.interval);
        let mut before = self.keep_key(connection, &user, key, false, life).await?;
        if before.iter().any(|kept| !kept.entries.is_empty())
            && !self.has_session(connection, &user, Some(digest)).await?
        {
            if let (Some(kept), Some(key)) = (before.first_mut(), key) {
                let own = kept.name.key_entry(&key.session_key).map_err(unsealable)?;
                kept.entries.retain(|(entry, _)| *entry != own);
            }
            self.remove_keys(connection, &before).await?;
        }
        Ok(())
    }

    /// Makes a key the newest one of a user with a live session.
    pub async fn keep_newest_key(
        &self,
        store: &Store,
        user: &User,
        key: &LoginKey,
    ) -> RedisResult<()> {
        let mut connection = store.common();
        let sessions = self.users().sessions(&mut connection, user).await?;
        let records = sessions.iter().map(|(_, record)| record);
        let ends = records.filter(|record| self.is_live(record)).map(|record| record.ends).max();
        let Some(ends) = ends else { return Ok(()) };
        let now = self.clock.to_wall(self.clock.now_millis());
        let life = ends.saturating_sub(now) + millis(self.interval);
        self.keep_key(&mut connection, user, Some(key), true, life).await.map(drop)
    }

    /// The session keys of a user with a live session, newest login first.
    pub async fn session_keys(&self, store: &Store, user: &User) -> RedisResult<Vec<SessionKey>> {
        let mut connection = store.common();
        let mut keys = UserKeys::default();
        for Kept { name, entries } in self.kept_keys(&mut connection, user).await? {
            for (entry, time) in entries {
                let time = std::str::from_utf8(&time).ok().and_then(|time| time.parse().ok());
                if let (Some(session_key), Some(time)) = (name.session_key(&entry), time) {
                    keys.keep(LoginKey { session_key, logged_in_at_millis: time });
                }
            }
        }
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let sessions = self.users().sessions(&mut connection, user).await?;
        let is_any_live = sessions.iter().any(|(_, record)| self.is_live(record));
        Ok(if is_any_live { keys.newest_first() } else { Vec::new() })
    }

    /// Removes the session keys of a user if it has no session any more.
    pub async fn remove_keys_of_ended(&self, store: &Store, user: &User) -> RedisResult<()> {
        let mut connection = store.common();
        let kept = self.kept_keys(&mut connection, user).await?;
        let names: Vec<_> = self.seals.user_names(user).collect();
        if kept.iter().all(|kept| kept.entries.is_empty())
            || self.users().count(&mut connection, &names).await? > MOST_CHECKED
            || self.has_session(&mut connection, user, None).await?
        {
            return Ok(());
        }
        self.remove_keys(&mut connection, &kept).await
    }

    /// Stores a key, if there is one, and extends the lifetime of all of the user's keys. Returns
    /// what was kept before.
    async fn keep_key<'a>(
        &'a self,
        connection: &mut Connection,
        user: &'a User,
        mut key: Option<&LoginKey>,
        is_newest: bool,
        life: u64,
    ) -> RedisResult<Vec<Kept<'a>>> {
        let mut before = Vec::new();
        for name in self.seals.user_names(user) {
            let mut keep = KEEP.key(self.key_names.session_keys(&name.name));
            keep.arg(life).arg(KEPT_KEYS);
            // Under the first name only.
            if let Some(LoginKey { session_key, logged_in_at_millis }) = key.take() {
                let entry = name.key_entry(session_key).map_err(unsealable)?;
                let time = self.clock.to_wall(*logged_in_at_millis);
                keep.arg(entry).arg(time).arg(u8::from(is_newest));
            }
            let entries = keep.invoke_async(connection).await?;
            before.push(Kept { name, entries });
        }
        if before.is_empty() { Err(unsealable(SealError)) } else { Ok(before) }
    }

    async fn kept_keys<'a>(
        &'a self,
        connection: &mut Connection,
        user: &'a User,
    ) -> RedisResult<Vec<Kept<'a>>> {
        let mut kept = Vec::new();
        for name in self.seals.user_names(user) {
            let mut range = cmd("ZRANGE");
            range.arg(self.key_names.session_keys(&name.name)).arg(0).arg(-1).arg("WITHSCORES");
            let entries = range.query_async(connection).await?;
            kept.push(Kept { name, entries });
        }
        Ok(kept)
    }

    async fn remove_keys(&self, connection: &mut Connection, all: &[Kept<'_>]) -> RedisResult<()> {
        for Kept { name, entries } in all.iter().filter(|kept| !kept.entries.is_empty()) {
            let mut remove = REMOVE.key(self.key_names.session_keys(&name.name));
            for (entry, time) in entries {
                remove.arg(entry).arg(time);
            }
            remove.invoke_async::<()>(connection).await?;
        }
        Ok(())
    }

    /// Whether a user has a session other than `own`. One that cannot be read may be live for
    /// another gateway.
    async fn has_session(
        &self,
        connection: &mut Connection,
        user: &User,
        own: Option<&TokenDigest>,
    ) -> RedisResult<bool> {
        let listed = self.users().listed(connection, user).await?;
        let is_other = |(digest, record): &(_, _)| Some(digest) != own && self.is_live(record);
        Ok(listed.has_unreadable || listed.sessions.iter().any(is_other))
    }
}
