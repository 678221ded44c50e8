//! Sessions outlive the process: joins those in memory with the files in `snapshot`.
//!
//! At the start the files are loaded, all of them or nothing (`loading`). From then on a logout and
//! an operator's change are in the journal before they are answered. They are applied first: a
//! session whose end cannot be written has ended in this process all the same, and is tried again
//! until it is written. Everything else waits for the next snapshot (`saving`).
//!
//! The files belong to one process. During an upgrade the old one gives them to the new one.

mod ended;
mod loading;
mod saving;
#[cfg(test)]
mod tests;
mod unwritten;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, RwLock};

pub use self::ended::Ended;
pub use self::loading::FilesError;
use self::unwritten::{Unwritten, Written};
use super::entry::Change;
use super::snapshot::disk::{SnapshotFiles, snapshot_size};
use super::snapshot::journal::{FOLD_AT, Journal, JournalError};
use super::{Sessions, StoreError};
use crate::clock::Clock;
use crate::config::SessionSection;
use crate::identity::secret::SealKey;
use crate::identity::token::TokenDigest;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::{Metrics, Stage};

/// A journal of this size, in bytes, takes no more changes before the next snapshot.
const MOST_JOURNAL: u64 = 4 * FOLD_AT;

/// The bytes of a snapshot that a session takes, at least: with an openid and no other id. Room for
/// too many sessions costs little.
const BYTES_PER_SESSION: u64 = 128;

/// What makes the sessions of a process durable.
pub struct Durable {
    path: PathBuf,
    interval: Duration,
    /// The first seals.
    keys: Vec<SealKey>,
    /// `None`: they are not loaded yet, or the other process has them.
    files: RwLock<Option<OpenFiles>>,
    has_files: AtomicBool,
    /// Whether this process should have the files.
    wants_files: AtomicBool,
    pub ended: Arc<Ended>,
    unwritten: Unwritten,
    /// Held while a block is changed and written.
    pub order_of_blocks: Mutex<()>,
    /// One snapshot at a time.
    saving: Mutex<()>,
    /// No snapshot begins.
    is_paused: AtomicBool,
    /// Whether anything has changed since the last snapshot.
    is_changed: AtomicBool,
    /// Whether there were logins since the last snapshot.
    has_logins: AtomicBool,
    /// Whether the next snapshot must not wait for the interval.
    is_urgent: AtomicBool,
    cannot_write: LogThrottle,
    cannot_save: LogThrottle,
    metrics: Arc<Metrics>,
}

struct OpenFiles {
    files: SnapshotFiles,
    journal: Journal,
}

impl Durable {
    /// `None`: sessions end with the process.
    pub fn new(section: &SessionSection, clock: &Clock, metrics: &Arc<Metrics>) -> Option<Self> {
        let snapshot = section.snapshot.as_ref().filter(|_| section.shared.is_none())?;
        Some(Self {
            path: snapshot.path.clone(),
            interval: snapshot.interval,
            keys: section.seal_keys.clone(),
            files: RwLock::default(),
            has_files: AtomicBool::new(false),
            wants_files: AtomicBool::new(false),
            ended: Arc::default(),
            unwritten: Unwritten::default(),
            order_of_blocks: Mutex::default(),
            saving: Mutex::default(),
            is_paused: AtomicBool::new(false),
            is_changed: AtomicBool::new(false),
            has_logins: AtomicBool::new(false),
            is_urgent: AtomicBool::new(false),
            cannot_write: LogThrottle::new(clock.clone()),
            cannot_save: LogThrottle::new(clock.clone()),
            metrics: metrics.clone(),
        })
    }

    /// How many sessions there may be in the files.
    pub fn expected(&self) -> u64 {
        snapshot_size(&self.path) / BYTES_PER_SESSION
    }

    /// Notes that the next snapshot would be another one. Called by every request.
    pub fn note_change(&self) {
        // Requests do not write what all of them read.
        if !self.is_changed.load(Ordering::Relaxed) {
            self.is_changed.store(true, Ordering::Relaxed);
        }
    }

    /// Notes a login, which only the next snapshot has.
    pub fn note_login(&self) {
        self.note_change();
        self.has_logins.store(true, Ordering::Relaxed);
    }

    /// The next snapshot begins as soon as it may.
    pub fn save_soon(&self) {
        self.is_urgent.store(true, Ordering::Relaxed);
    }

    /// Whether a session that is not here any more may come back with the files.
    pub fn may_return(&self, digest: &TokenDigest) -> bool {
        self.ended.may_have(digest) || self.unwritten.has(digest)
    }

    /// A session is about to end, and that must be written.
    pub fn end(&self, digest: &TokenDigest) {
        self.ended.add(digest);
        self.note_change();
    }

    /// Whether this process has the files.
    pub fn has_files(&self) -> bool {
        self.has_files.load(Ordering::Acquire)
    }

    /// Writes a change that has been applied. If that fails, or the caller does not wait for it,
    /// it is tried again later.
    ///
    /// # Errors
    /// When it is not durable yet.
    pub async fn write(&self, change: &Change) -> Result<(), StoreError> {
        let mut written = Written::new(self, change);
        let files = self.files.read().await;
        let Some(OpenFiles { journal, .. }) = &*files else { return Err(StoreError) };
        if journal.bytes() >= MOST_JOURNAL {
            // Made-up tokens must not fill the disk if no snapshot can be written.
            self.log_failed_write(&JournalError::TooLarge);
            return Err(StoreError);
        }
        match journal.append(change).await {
            Ok(()) => {
                written.succeed();
                Ok(())
            }
            Err(error) => {
                self.log_failed_write(&error);
                Err(StoreError)
            }
        }
    }

    /// The other process has written a change.
    pub fn settle(&self, change: &Change) {
        Written::new(self, change).succeed();
    }

    fn log_failed_write(&self, error: &JournalError) {
        self.metrics.snapshot.failed(Stage::Save);
        if let Some(suppressed) = self.cannot_write.suppressed() {
            tracing::error!(
                file = %self.path.display(),
                %error,
                suppressed,
                "cannot write the journal of sessions: logouts and blocks fail until it works again"
            );
        }
    }
}

impl Sessions {
    /// Notes that the next snapshot would be another one.
    pub(super) fn note_change(&self) {
        if let Some(durable) = &self.durable {
            durable.note_change();
        }
    }
}
