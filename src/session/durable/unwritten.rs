//! Changes that have been applied, and that the journal does not have yet.
//!
//! They are tried again every second, by the next logout with the same token, and by an operator's
//! next action; a snapshot that is written settles them, too.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;

use super::Durable;
use crate::identity::User;
use crate::identity::token::TokenDigest;
use crate::session::entry::{BlockEntry, Change};
use crate::session::{Backend, KnownUser, Sessions, StoreError};

/// The most changes that are remembered. Sessions beyond it are still known as ended.
const MOST: usize = 100_000;

/// Changes that are tried again at once.
const AT_ONCE: usize = 1000;

/// Time between attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Each with a number, by its age.
#[derive(Default)]
pub struct Unwritten(Mutex<(u64, HashMap<Subject, u64>)>);

/// What has changed.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Subject {
    /// It was revoked.
    Session(TokenDigest),
    /// The user was blocked or unblocked.
    User(User),
}

impl Subject {
    fn of(change: &Change) -> Option<Self> {
        match change {
            Change::Revoked(digest) => Some(Self::Session(*digest)),
            Change::Blocked(BlockEntry { known: KnownUser { user, .. }, .. })
            | Change::Unblocked(user) => Some(Self::User(user.clone())),
            _ => None,
        }
    }
}

impl Unwritten {
    pub fn has(&self, digest: &TokenDigest) -> bool {
        self.0.lock().1.contains_key(&Subject::Session(*digest))
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().1.is_empty()
    }

    fn add(&self, subject: Subject) {
        let mut unwritten = self.0.lock();
        let (number, changes) = &mut *unwritten;
        *number += 1;
        if changes.len() < MOST || changes.contains_key(&subject) {
            changes.insert(subject, *number);
        }
    }

    fn remove(&self, subject: &Subject) {
        self.0.lock().1.remove(subject);
    }

    fn all(&self) -> Vec<Subject> {
        self.0.lock().1.keys().cloned().collect()
    }

    /// The number of the last change.
    pub fn last(&self) -> u64 {
        self.0.lock().0
    }

    /// A snapshot has all changes up to this number.
    pub fn settle_until(&self, last: u64) {
        self.0.lock().1.retain(|_, number| *number > last);
    }
}

/// A change that is being written. Unless that succeeds, it is unwritten when this is dropped.
pub struct Written<'a> {
    durable: &'a Durable,
    subject: Option<Subject>,
}

impl<'a> Written<'a> {
    pub fn new(durable: &'a Durable, change: &Change) -> Self {
        Self { durable, subject: Subject::of(change) }
    }

    pub fn succeed(&mut self) {
        if let Some(subject) = self.subject.take() {
            self.durable.unwritten.remove(&subject);
            if let Subject::Session(digest) = subject {
                self.durable.ended.remove(&digest);
            }
        }
    }
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        if let Some(subject) = self.subject.take() {
            self.durable.unwritten.add(subject);
        }
    }
}

impl Sessions {
    /// Tries to write the changes that could not be written before.
    ///
    /// # Errors
    /// When one of them is still not durable.
    pub async fn settle(&self) -> Result<(), StoreError> {
        let Some(durable) = &self.durable else { return Ok(()) };
        let mut subjects = durable.unwritten.all().into_iter();
        // If the first one fails, so would the others.
        if let Some(first) = subjects.next() {
            self.settle_one(durable, first).await?;
        }
        let mut others = stream::iter(subjects)
            .map(|subject| self.settle_one(durable, subject))
            .buffer_unordered(AT_ONCE);
        while let Some(outcome) = others.next().await {
            outcome?;
        }
        Ok(())
    }

    async fn settle_one(&self, durable: &Durable, subject: Subject) -> Result<(), StoreError> {
        match subject {
            Subject::Session(digest) => durable.write(&Change::Revoked(digest)).await,
            Subject::User(user) => {
                let _order = durable.order_of_blocks.lock().await;
                durable.write(&self.block_now(user)).await
            }
        }
    }

    /// The change that leads to the current state of a user.
    fn block_now(&self, user: User) -> Change {
        let now = self.clock.now_millis();
        let block = match &self.backend {
            Backend::Memory(memory) => memory.blocks.get(&user, now),
            Backend::Redis(_) => None,
        };
        match block {
            Some((known, until)) => Change::Blocked(BlockEntry { known, until }),
            None => Change::Unblocked(user),
        }
    }

    /// Writes every second what could not be written, and takes the files where it should have
    /// them. Never returns.
    pub(super) async fn keep_settling(&self, durable: &Durable) {
        loop {
            tokio::time::sleep(RETRY).await;
            if durable.should_take_files() {
                // A failure is logged there.
                drop(self.take_files().await);
            }
            if durable.has_files() && !durable.unwritten.is_empty() {
                // Failures are logged where they occur.
                drop(self.settle().await);
            }
        }
    }
}
