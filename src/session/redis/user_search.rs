//! Searches the store for a user that is known only by the name in the access log.
//!
//! Keys do not reveal users, so every session and every block is read.

use std::time::Duration;

use redis::{RedisResult, cmd};

use super::Inner;
use super::blocks::block_digest;
use super::primaries::Connection;
use super::seal::StoredValue;
use crate::identity::{AppId, OpenId, User};
use crate::session::StoreError;

/// Time for a search through all stored sessions.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Keys that are read together.
const CHUNK: usize = 500;

impl Inner {
    /// Finds the user of an app for whom `matches` is true, among those with a session or a
    /// block.
    pub async fn find_user(
        &self,
        app_id: &AppId,
        matches: &(impl Fn(&OpenId) -> bool + Sync),
    ) -> Result<Option<User>, StoreError> {
        let store = self.connection.store()?;
        let search = async {
            let found = self.search(store.common(), app_id, matches).await;
            found.inspect_err(|error| {
                tracing::warn!(%error, "cannot search the session store for a user");
            })
        };
        self.connection.within(SEARCH_TIMEOUT, search).await
    }

    async fn search(
        &self,
        mut connection: Connection,
        app_id: &AppId,
        matches: &(impl Fn(&OpenId) -> bool + Sync),
    ) -> RedisResult<Option<User>> {
        let pattern = self.key_names.pattern();
        for primary in connection.primaries().await? {
            let mut cursor = "0".to_owned();
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(CHUNK);
                let keys: Vec<String>;
                (cursor, keys) = connection.query(&primary, scan).await?;
                if let Some(found) = self.find(&mut connection, &keys, app_id, matches).await? {
                    return Ok(Some(found));
                }
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Finds the user among those of these keys.
    async fn find(
        &self,
        connection: &mut Connection,
        keys: &[String],
        app_id: &AppId,
        matches: &(impl Fn(&OpenId) -> bool + Sync),
    ) -> RedisResult<Option<User>> {
        if keys.is_empty() {
            return Ok(None);
        }
        let values: Vec<Option<Vec<u8>>> = cmd("MGET").arg(keys).query_async(connection).await?;
        let users = keys.iter().zip(values).filter_map(|(key, value)| {
            let digest = self.key_names.token(key).unwrap_or_else(|| block_digest(key));
            match self.seals.open(&digest, &value?) {
                StoredValue::Session(record) => Some(record.identity.user()),
                StoredValue::Tombstone | StoredValue::Unreadable => None,
            }
        });
        let mut of_app = users.filter(|user| user.app_id == *app_id);
        Ok(of_app.find(|user| matches(&user.openid)))
    }
}
