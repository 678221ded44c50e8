//! The journal: changes that must outlive the process and are newer than the snapshot.
//!
//! A change is durable when [`Journal::append`] returns. One thread writes. While it waits for the
//! disk, further changes come; they are written together and synced once. The thread waits for the
//! disk as long as that takes, callers wait ten seconds at most. Changes are written in the order
//! in which they came, and also if nobody waits for them any more: they did happen.
//!
//! After a failed write the end of the file is unknown. It is cut off before the next write, which
//! the next change starts; so a disk that works again needs no restart. The file itself is made in
//! the same way: a process whose disk is full starts without a journal, and gets it later.
//!
//! # How a snapshot and its journal change together
//!
//! A journal names the snapshot that it belongs to. There is a moment in which one of the two files
//! is new and the other is not, so:
//!
//! 1. [`Journal::mark`]: from here on, the journal belongs to the new snapshot as well. Everything
//!    before has happened, so it is in the new snapshot.
//! 2. The new snapshot replaces the old one.
//! 3. [`Journal::fold`]: a new journal with what came since the mark replaces the old one.
//!
//! A process that ends between any two steps leaves a pair that fits. If a step fails, the journal
//! still belongs to the old snapshot, and the next snapshot begins with a mark of its own.

mod file;
mod format;
mod load;
mod records;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use self::file::JournalFile;
#[cfg(any(fuzzing, test))]
pub use self::format::sealed_journal;
#[cfg(any(fuzzing, test))]
pub use self::load::LoadedJournal;
pub use self::load::load_journal;
use self::writer::{Request, Task, Writer};
use super::SnapshotId;
use super::disk::SnapshotFiles;
use super::facts::Facts;
use crate::handover::fields;
use crate::identity::secret::SealKey;
use crate::session::entry::Change;

/// How long a change may take to become durable.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The size at which a journal should be folded, in bytes.
pub const FOLD_AT: u64 = 64 << 20;

/// Changes that may wait for the disk.
const WAITING: usize = 16_384;

/// The journal that this process writes.
pub struct Journal {
    requests: SyncSender<Request>,
    bytes: Arc<AtomicU64>,
}

/// What a journal begins with.
pub struct JournalStart {
    /// The snapshot that it belongs to. `None`: there is no snapshot yet.
    pub belongs_to: Option<SnapshotId>,
    /// The clocks that the times of its changes are of.
    pub facts: Facts,
    /// What was loaded from the old journal, in times of this process.
    pub changes: Vec<Change>,
}

/// Why a change is not durable. It may become so later, all the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot write the journal: {0}")]
    Io(#[source] Arc<io::Error>),
    #[error("the disk did not write the journal within {} seconds", PATIENCE.as_secs())]
    Slow,
    #[error("too many changes wait for the disk")]
    Full,
    #[error("the journal is too large, because no snapshot could be written")]
    TooLarge,
    #[error("the journal is closed")]
    Closed,
}

impl From<io::Error> for JournalError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl Journal {
    /// Begins a journal, which replaces the one on the disk. That is done by the journal's thread.
    /// If it fails, it is tried again with each change.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn begin(files: &SnapshotFiles, keys: &[SealKey], start: JournalStart) -> io::Result<Self> {
        let (sender, requests) = sync_channel(WAITING);
        let bytes = Arc::new(AtomicU64::new(0));
        let file = JournalFile::new(files.clone(), keys.to_vec(), start, bytes.clone());
        let writer = Writer { file, requests };
        std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run())?;
        Ok(Self { requests: sender, bytes })
    }

    /// Makes a change durable. It must have been applied already.
    pub async fn append(&self, change: &Change) -> Result<(), JournalError> {
        let mut list = fields::Writer::new();
        change.encode(&mut list);
        let task = Task::Append(list);
        timeout(PATIENCE, self.request(task)?).await.map_err(|_| JournalError::Slow)?
    }

    /// From here on, the journal also belongs to this snapshot, which is about to be written.
    pub async fn mark(&self, snapshot: SnapshotId) -> Result<(), JournalError> {
        let task = Task::Mark(snapshot);
        timeout(PATIENCE, self.request(task)?).await.map_err(|_| JournalError::Slow)?
    }

    /// Removes what was before the last mark, which was for this snapshot. The snapshot must be
    /// durable. Waits as long as the disk does.
    ///
    /// # Errors
    /// The journal goes on as it was.
    pub async fn fold(&self, snapshot: SnapshotId, facts: Facts) -> Result<(), JournalError> {
        self.request(Task::Fold(snapshot, facts))?.await
    }

    /// Writes what waits, and ends the thread, which holds the lock of the files until then.
    /// Further changes fail.
    pub async fn close(&self) -> Result<(), JournalError> {
        timeout(PATIENCE, self.request(Task::Close)?).await.map_err(|_| JournalError::Slow)?
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn request(
        &self,
        task: Task,
    ) -> Result<impl Future<Output = Result<(), JournalError>> + use<>, JournalError> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(Request { task, answer }).map_err(|error| match error {
            TrySendError::Full(_) => JournalError::Full,
            TrySendError::Disconnected(_) => JournalError::Closed,
        })?;
        Ok(async { answered.await.unwrap_or(Err(JournalError::Closed)) })
    }
}
