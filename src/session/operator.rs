//! What an operator does with the sessions of a user: list and revoke them, and block the user.

use std::sync::Arc;
use std::time::Duration;

use super::entry::{BlockEntry, Change};
use super::{Backend, BlockError, Session, Sessions, StoreError};
use crate::clock::millis;
use crate::identity::{AppId, OpenId, User, UserId};

/// A user with a session or a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownUser {
    pub user: User,
    /// The user id, if it is known.
    pub user_id: Option<UserId>,
}

impl From<User> for KnownUser {
    fn from(user: User) -> Self {
        Self { user, user_id: None }
    }
}

impl Sessions {
    /// The sessions of a user, oldest first. With a shared store, the last use may be outdated by
    /// one refresh interval, and some sessions may have expired by this gateway's clock but not by
    /// others'.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn of_user(&self, user: &User) -> Result<Vec<Arc<Session>>, StoreError> {
        let mut sessions = match &self.backend {
            Backend::Memory(memory) => {
                let mut sessions = memory.of_user(user);
                sessions.retain(|session| self.is_live(session));
                sessions
            }
            Backend::Redis(redis) => redis.of_user(user).await?,
        };
        sessions.sort_by_key(|session| session.created_at_millis);
        Ok(sessions)
    }

    /// Rejects the logins of a user for a time, including logins in flight; with a shared store, on
    /// all gateways. Existing sessions of the user are not revoked. The user id is kept, so that
    /// the user can be found by it without a session. If sessions outlive the process, that is
    /// durable when this returns.
    ///
    /// # Errors
    /// When the store is unavailable, or too many users are blocked. A block in memory is set even
    /// if it could not be written.
    pub async fn block(&self, known: &KnownUser, time: Duration) -> Result<(), BlockError> {
        let now = self.clock.now_millis();
        let until = now.saturating_add(millis(time));
        let has_room = match &self.backend {
            Backend::Memory(memory) => {
                let block = BlockEntry { known: known.clone(), until };
                self.change_block(Change::Blocked(block), || {
                    memory.blocks.set(known.clone(), until, now)
                })
                .await?
            }
            Backend::Redis(redis) => redis.block(known, until).await?,
        };
        if has_room { Ok(()) } else { Err(BlockError::Full) }
    }

    /// Removes the block of a user, if there is one. If sessions outlive the process, that is
    /// durable when this returns.
    ///
    /// # Errors
    /// When the store is unavailable. A block in memory is removed even if that could not be
    /// written.
    pub async fn unblock(&self, user: &User) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Memory(memory) => {
                let unblock = || {
                    memory.blocks.remove(user);
                    true
                };
                self.change_block(Change::Unblocked(user.clone()), unblock).await?;
            }
            Backend::Redis(redis) => redis.unblock(user).await?,
        }
        Ok(())
    }

    /// When the block of a user ends, in milliseconds of the [`Clock`](crate::clock::Clock).
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn blocked_until(&self, user: &User) -> Result<Option<u64>, StoreError> {
        let now = self.clock.now_millis();
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.blocks.until(user, now)),
            Backend::Redis(redis) => redis.blocked_until(user).await,
        }
    }

    /// Finds the users of an app for whom `matches` is true, among those with a session or a
    /// block. Searches all sessions in the background, one search at a time. A million sessions
    /// take about a second, in a shared store about 15; the limit is a minute.
    ///
    /// # Errors
    /// When the store is unavailable or cannot be searched.
    pub async fn find_users(
        &self,
        app_id: &AppId,
        matches: impl Fn(&OpenId, Option<&UserId>) -> bool + Send + Sync + 'static,
    ) -> Result<Vec<KnownUser>, StoreError> {
        // The semaphore is never closed.
        let permit = self.searches.clone().acquire_owned().await.map_err(|_| StoreError)?;
        match &self.backend {
            Backend::Memory(memory) => {
                let (memory, app_id) = (memory.clone(), app_id.clone());
                let search = move || {
                    // Held by the task, because the caller may have disconnected.
                    let _permit = permit;
                    memory.find_users(&app_id, &matches)
                };
                tokio::task::spawn_blocking(search).await.map_err(|_| StoreError)
            }
            Backend::Redis(redis) => redis.find_users(app_id, &matches).await,
        }
    }
}
