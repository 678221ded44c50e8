//! Records with a short life in the store.
//!
//! A record is sealed for the name of its key. Each operation is one command on one key, so that it
//! is one step on a server and in a cluster alike. Keys are removed by their expiry, which needs no
//! permission to delete. The records of a user are counted in a sorted set of their digests, by
//! their ends; the user's name is that of the current seal key, so the count starts at zero when
//! the key is changed.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{Script, cmd};

use super::seal::SealError;
use super::{Redis, unsealable};
use crate::clock::millis;
use crate::identity::User;
use crate::session::StoreError;
use crate::session::records::{Digest, Record, RecordKind, Version};

/// KEYS: a record. Removes it, and returns what it was.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local value = redis.call('GET', KEYS[1])
        if value then redis.call('PEXPIRE', KEYS[1], 0) end
        return value",
    )
});

/// KEYS: a record. ARGV: what was read, what to store, its life. Returns whether it was unchanged.
static REPLACE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
        redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
        return 1",
    )
});

/// KEYS: the records of a user. ARGV: the new one, its end, now, its life, the limit. Returns the
/// end of the one that ends first if there are too many.
static COUNT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
        if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[5]) then
            return redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
        end
        redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
        if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
            redis.call('PEXPIRE', KEYS[1], ARGV[4])
        end
        return false",
    )
});

impl Redis {
    /// Adds a record unless there is one. Returns whether there was none.
    pub async fn insert_record(
        &self,
        kind: RecordKind,
        digest: &Digest,
        value: &[u8],
        life: Duration,
    ) -> Result<bool, StoreError> {
        let this = &*self.0;
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let written = async {
            let key = this.key_names.record(kind, digest);
            let sealed = this.seals.seal_short_lived(&key, value).map_err(unsealable)?;
            let mut set = cmd("SET");
            set.arg(key).arg(sealed).arg("NX").arg("PX").arg(millis(life).max(1));
            set.query_async::<Option<String>>(&mut store.common()).await
        };
        Ok(this.connection.within(this.timeout, written).await?.is_some())
    }

    pub async fn get_record(
        &self,
        kind: RecordKind,
        digest: &Digest,
    ) -> Result<Option<Record>, StoreError> {
        let this = &*self.0;
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let key = this.key_names.record(kind, digest);
        let read = async {
            cmd("GET").arg(&key).query_async::<Option<Vec<u8>>>(&mut store.common()).await
        };
        let stored = this.connection.within(this.timeout, read).await?;
        Ok(self.opened(&key, stored))
    }

    /// Removes a record, and returns it.
    pub async fn take_record(
        &self,
        kind: RecordKind,
        digest: &Digest,
    ) -> Result<Option<Record>, StoreError> {
        let this = &*self.0;
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let key = this.key_names.record(kind, digest);
        let taken =
            async { TAKE.key(&key).invoke_async::<Option<Vec<u8>>>(&mut store.common()).await };
        let stored = this.connection.within(this.timeout, taken).await?;
        Ok(self.opened(&key, stored))
    }

    /// Replaces a record if it is still `read`, as it was stored. Returns whether it was.
    pub async fn replace_record(
        &self,
        kind: RecordKind,
        digest: &Digest,
        read: &[u8],
        value: &[u8],
        life: Duration,
    ) -> Result<bool, StoreError> {
        let this = &*self.0;
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let replaced = async {
            let key = this.key_names.record(kind, digest);
            let sealed = this.seals.seal_short_lived(&key, value).map_err(unsealable)?;
            let mut replace = REPLACE.key(key);
            replace.arg(read).arg(sealed).arg(millis(life).max(1));
            replace.invoke_async(&mut store.common()).await
        };
        this.connection.within(this.timeout, replaced).await
    }

    /// Counts a record of a user. If the user has `most` already: the time until one of them ends.
    pub async fn count_record(
        &self,
        kind: RecordKind,
        user: &User,
        most: usize,
        digest: &Digest,
        life: Duration,
    ) -> Result<Result<(), Duration>, StoreError> {
        let this = &*self.0;
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let (now, life) = (this.clock.to_wall(this.clock.now_millis()), millis(life).max(1));
        let counted = async {
            let name = this.seals.user_names(user).next().ok_or_else(|| unsealable(SealError))?;
            let mut count = COUNT.key(this.key_names.records_of(kind, &name.name));
            count.arg(&digest[..]).arg(now + life).arg(now).arg(life).arg(most);
            count.invoke_async::<Option<u64>>(&mut store.common()).await
        };
        let first_end = this.connection.within(this.timeout, counted).await?;
        // Another gateway's clock may be ahead.
        let left = |end: u64| Duration::from_millis(end.saturating_sub(now).min(life));
        Ok(first_end.map_or(Ok(()), |end| Err(left(end))))
    }

    /// The record of a user no longer counts.
    pub async fn uncount_record(
        &self,
        kind: RecordKind,
        user: &User,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        let this = &*self.0;
        let store = this.connection.store()?;
        let _permit = this.permit(&this.lookup_permits)?;
        let removed = async {
            for name in this.seals.user_names(user) {
                let mut remove = cmd("ZREM");
                remove.arg(this.key_names.records_of(kind, &name.name)).arg(&digest[..]);
                remove.exec_async(&mut store.common()).await?;
            }
            Ok(())
        };
        this.connection.within(this.timeout, removed).await
    }

    fn opened(&self, key: &str, stored: Option<Vec<u8>>) -> Option<Record> {
        let stored = stored?;
        let value = self.0.seals.open_short_lived(key, &stored);
        if value.is_none()
            && let Some(suppressed) = self.0.unreadable.suppressed()
        {
            tracing::warn!(
                suppressed,
                "cannot open a stored record: check session.seal_key and previous_seal_keys"
            );
        }
        Some(Record { value: Arc::new(value?), version: Version::Shared(stored.into()) })
    }
}
