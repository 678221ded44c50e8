//! Searches the store for users that are known only by the name in the access log or by the user
//! id.
//!
//! Keys do not reveal users, so every session and every block is read.

use std::collections::HashMap;
use std::time::Duration;

use redis::{RedisResult, cmd};

use super::Inner;
use super::blocks::block_digest;
use super::primaries::Connection;
use super::seal::StoredValue;
use crate::identity::{AppId, OpenId, User, UserId};
use crate::session::{KnownUser, StoreError};

/// Time for a search through all stored sessions.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Keys that are read together.
const CHUNK: usize = 500;

impl Inner {
    /// Finds the users of an app for whom `matches` is true, among those with a session or a
    /// block.
    pub async fn find_users(
        &self,
        app_id: &AppId,
        matches: &(impl Fn(&OpenId, Option<&UserId>) -> bool + Sync),
    ) -> Result<Vec<KnownUser>, StoreError> {
        let store = self.connection.store()?;
        let search = async {
            let found = self.search(store.common(), app_id, matches).await;
            found.inspect_err(|error| {
                tracing::warn!(%error, "cannot search the session store for a user");
            })
        };
        let found = self.connection.within(SEARCH_TIMEOUT, search).await?;
        let known = found.into_iter().map(|(user, user_id)| KnownUser { user, user_id });
        Ok(known.collect())
    }

    async fn search(
        &self,
        mut connection: Connection,
        app_id: &AppId,
        matches: &(impl Fn(&OpenId, Option<&UserId>) -> bool + Sync),
    ) -> RedisResult<HashMap<User, Option<UserId>>> {
        let pattern = self.key_names.pattern();
        // A key may be scanned more than once.
        let mut found = HashMap::new();
        for primary in connection.primaries().await? {
            let mut cursor = "0".to_owned();
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(CHUNK);
                let keys: Vec<String>;
                (cursor, keys) = connection.query(&primary, scan).await?;
                found.extend(self.find(&mut connection, &keys, app_id, matches).await?);
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Finds the users among those of these keys.
    async fn find(
        &self,
        connection: &mut Connection,
        keys: &[String],
        app_id: &AppId,
        matches: &(impl Fn(&OpenId, Option<&UserId>) -> bool + Sync),
    ) -> RedisResult<Vec<(User, Option<UserId>)>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let values: Vec<Option<Vec<u8>>> = cmd("MGET").arg(keys).query_async(connection).await?;
        let identities = keys.iter().zip(values).filter_map(|(key, value)| {
            let digest = self.key_names.token(key).unwrap_or_else(|| block_digest(key));
            match self.seals.open(&digest, &value?) {
                StoredValue::Session(record) => Some(record.identity),
                StoredValue::Tombstone | StoredValue::Unreadable => None,
            }
        });
        let of_app = identities.filter(|identity| identity.app_id == *app_id);
        let found = of_app.filter(|of| matches(&of.openid, of.user_id.as_ref()));
        Ok(found.map(|identity| (identity.user(), identity.user_id)).collect())
    }
}
