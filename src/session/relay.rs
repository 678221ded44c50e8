//! Changes of sessions during an upgrade, which the other process must know.
//!
//! While both processes run, each tells the other what it changes, and waits for the answer before
//! it answers its own client: the other process rejects the token of a logout from then on, and
//! accepts the token of a login. Uses follow within a second. The other process is not told what it
//! finds out by itself: that a session has expired, or was replaced by a newer one of its user.
//!
//! The answer also says whether the change is durable, because only one of the two has the files.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::entry::{AppIds, BlockEntry, Change, SessionEntry};
use super::memory::Memory;
use super::transfer::{entry_of, restored_session};
use super::{Backend, LoginKey, Removal, Session, Sessions, StoreError};
use crate::handover::fields::Writer;
use crate::handover::peer::Topic;
use crate::identity::token::TokenDigest;

/// Uses in one change.
const USES_AT_ONCE: usize = 8192;

/// How long a change waits for the files, which are on their way to the other process.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Time between two attempts meanwhile.
const RETRY: Duration = Duration::from_millis(20);

/// How long an answer waits for the disk. With more, this process would count as dead.
const DISK_PATIENCE: Duration = Duration::from_millis(700);

/// What the other process has done with a change. The numbers are a part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// Nothing: the user of a new session is blocked, or there are too many blocks.
    Refused = 0,
    /// It was applied, and whoever has the files must write it.
    Applied = 1,
    /// It was applied, and is written if it has to be.
    Durable = 2,
    /// It was applied, but could not be written.
    NotDurable = 3,
}

impl Answer {
    fn parse(body: &[u8]) -> Option<Self> {
        let [number] = body else { return None };
        let all = [Self::Refused, Self::Applied, Self::Durable, Self::NotDurable];
        all.into_iter().find(|answer| *answer as u8 == *number)
    }
}

impl Sessions {
    /// The answer to the other process's question about [`Topic::Session`]. `None`: it cannot be
    /// understood.
    pub async fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let change = Change::decode(question, &mut AppIds::default()).ok()?;
        let answer = match change {
            Some(change) => self.apply(change).await,
            // Of a newer program.
            None => Answer::Applied,
        };
        Some(vec![answer as u8])
    }

    /// Applies a change of the other process, and writes it if this process has the files.
    pub async fn apply(&self, change: Change) -> Answer {
        let memory = match &self.backend {
            Backend::Memory(memory) => memory,
            Backend::Redis(redis) => {
                // It is in the store already.
                if let Change::Revoked(digest) = &change {
                    redis.remove_cached(digest);
                }
                return Answer::Applied;
            }
        };
        self.note_meanwhile(&change);
        let must_write = match &change {
            Change::Revoked(digest) => self.end(memory, digest),
            Change::Removed(digest) => {
                memory.remove(digest, Removal::Replaced);
                false
            }
            Change::Created { session, key } => return self.join(memory, session, key.clone()),
            Change::KeyReplaced { user, key } => {
                memory.replace_session_key(user, key.clone(), |session| self.is_live(session));
                false
            }
            Change::Used(uses) => {
                for (digest, used) in uses {
                    // A lookup also restarts moka's idle time.
                    if let Some(session) = memory.get(digest) {
                        session.raise_last_used(*used);
                    }
                }
                self.note_change();
                false
            }
            Change::WipedKeys => {
                memory.wipe_session_keys();
                false
            }
            Change::Blocked(BlockEntry { known, until }) => {
                if !memory.blocks.set(known.clone(), *until, self.clock.now_millis()) {
                    return Answer::Refused;
                }
                true
            }
            Change::Unblocked(user) => {
                memory.blocks.remove(user);
                true
            }
        };
        if !self.peer.is_owner() {
            return Answer::Applied;
        }
        let Some(durable) = self.durable.as_ref().filter(|_| must_write) else {
            return Answer::Durable;
        };
        match timeout(DISK_PATIENCE, durable.write(&change)).await {
            Ok(Ok(())) => Answer::Durable,
            Ok(Err(StoreError)) | Err(_) => Answer::NotDurable,
        }
    }

    /// Adds a session that was created in the other process. An operator sets the block before
    /// revoking the sessions: either this session is among those, or the block is seen here.
    fn join(&self, memory: &Memory, created: &SessionEntry, key: Option<LoginKey>) -> Answer {
        let (user, now) = (created.identity.user(), self.clock.now_millis());
        let is_blocked = || memory.blocks.until(&user, now).is_some();
        if is_blocked() {
            return Answer::Refused;
        }
        let session = Arc::new(restored_session(created.clone()));
        memory.join(&session, key, |session| self.is_live(session));
        if let Some(durable) = &self.durable {
            durable.note_login();
        }
        if is_blocked() {
            memory.remove(&created.digest, Removal::Revoked);
            return Answer::Refused;
        }
        Answer::Durable
    }

    /// Ends a session in this process. Returns whether that must be written.
    pub(super) fn end(&self, memory: &Memory, digest: &TokenDigest) -> bool {
        let must_write = self.durable.as_ref().is_some_and(|durable| {
            let must_write = memory.contains(digest) || durable.may_return(digest);
            if must_write {
                // First, so that another logout with this token is not answered before this one.
                durable.end(digest);
            }
            must_write
        });
        memory.remove(digest, Removal::Revoked);
        must_write
    }

    /// Tells the other process about a session that was created here, if there is one. Returns
    /// whether it may exist.
    pub(super) async fn tell_created(&self, session: &Session, key: Option<LoginKey>) -> bool {
        if !self.peer.is_linked() {
            return true;
        }
        let change = Change::Created { session: entry_of(session), key };
        self.tell(&change).await != Some(Answer::Refused)
    }

    /// Changes the block of a user by `apply`, which returns whether it could. Returns the same.
    ///
    /// # Errors
    /// When it is not durable.
    pub(super) async fn change_block(
        &self,
        change: Change,
        apply: impl FnOnce() -> bool,
    ) -> Result<bool, StoreError> {
        let order = self.durable.as_ref().map(|durable| &durable.order_of_blocks);
        // Held while it is written, so that the journal has the changes of a block in their order.
        let _order = match order {
            Some(order) => Some(order.lock().await),
            None => None,
        };
        if !apply() {
            return Ok(false);
        }
        self.note_change();
        self.publish(change, true).await.map(|()| true)
    }

    /// Tells the other process about a change, if there is one.
    pub(super) async fn tell(&self, change: &Change) -> Option<Answer> {
        if !self.peer.is_linked() {
            return None;
        }
        let mut list = Writer::new();
        change.encode(&mut list);
        let answer = self.peer.ask(Topic::Session, list.as_bytes().to_vec()).await?;
        Answer::parse(&answer)
    }

    /// Makes a change known to the other process, and durable if it must be written. It has been
    /// applied here.
    ///
    /// # Errors
    /// When it is not durable.
    pub(super) async fn publish(&self, change: Change, must_write: bool) -> Result<(), StoreError> {
        let Some(durable) = self.durable.as_ref().filter(|_| must_write) else {
            return match self.tell(&change).await {
                Some(Answer::NotDurable | Answer::Refused) => Err(StoreError),
                _ => Ok(()),
            };
        };
        let begun = Instant::now();
        loop {
            let (written, told) = tokio::join!(durable.write(&change), self.tell(&change));
            match (written, told) {
                (Ok(()), Some(Answer::Refused)) => return Err(StoreError),
                (Ok(()), _) => return Ok(()),
                (Err(_), Some(Answer::Durable)) => {
                    durable.settle(&change);
                    return Ok(());
                }
                (Err(_), Some(Answer::Applied))
                    if !durable.has_files() && begun.elapsed() < HAND_OVER =>
                {
                    // The files are on their way to the other process.
                    sleep(RETRY).await;
                }
                _ => return Err(StoreError),
            }
        }
    }

    /// Tells the other process which sessions were used here since a time of the clock. Returns the
    /// time for the next call.
    pub async fn tell_uses(&self, since: u64) -> u64 {
        let next = self.clock.now_millis();
        let sessions = self.clone();
        let used = tokio::task::spawn_blocking(move || sessions.used_since(since)).await;
        for uses in used.unwrap_or_default().chunks(USES_AT_ONCE) {
            if self.tell(&Change::Used(uses.to_vec())).await.is_none() {
                break;
            }
        }
        next
    }
}
