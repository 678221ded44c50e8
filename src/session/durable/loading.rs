//! Loads the files at the start, and takes them over from the other process during an upgrade.

use std::convert::Infallible;
use std::io::BufReader;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Durable, OpenFiles};
use crate::clock::Clock;
use crate::handover::fields::{Malformed, Writer};
use crate::identity::secret::SealKey;
use crate::session::entry::{BlockEntry, Change};
use crate::session::snapshot::disk::{LockError, SnapshotFiles};
use crate::session::snapshot::facts::{Facts, Rebase};
use crate::session::snapshot::journal::{Journal, JournalStart, load_journal};
use crate::session::snapshot::sealed_file::{LoadError, SnapshotId, SnapshotReader};
use crate::session::{Backend, Incoming, Restored, Sessions};
use crate::telemetry::metrics::{RestoredFrom, Stage};

/// Bytes of a snapshot that are read at once.
const READ_AT_ONCE: usize = 1 << 18;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("session.snapshot: {0}")]
    Lock(#[from] LockError),
    #[error("session.snapshot: cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// It has panicked.
    #[error("session.snapshot: the thread has ended early")]
    Ended,
}

/// What the files have, in times of this process's clock.
#[derive(Default)]
struct Loaded {
    snapshot: Option<SnapshotId>,
    incoming: Vec<Incoming>,
    changes: Vec<Change>,
}

impl Sessions {
    /// Loads the sessions of the previous process, if sessions outlive the process. Called before
    /// the first request. If the files cannot be loaded, they are kept aside, and there are no
    /// sessions.
    ///
    /// # Errors
    /// When another process uses the files.
    pub async fn restore(&self) -> Result<(), FilesError> {
        let Some(durable) = &self.durable else { return Ok(()) };
        let sessions = self.clone();
        let lock = move |durable: &Durable| SnapshotFiles::lock(&durable.path);
        let files = in_thread(move || sessions.load(lock)).await??;
        durable.open(files).await;
        Ok(())
    }

    pub(super) fn load(
        &self,
        lock: impl FnOnce(&Durable) -> Result<SnapshotFiles, LockError>,
    ) -> Result<Option<OpenFiles>, FilesError> {
        let Some(durable) = &self.durable else { return Ok(None) };
        let files = lock(durable)?;
        let loaded = match Loaded::read(&files, &durable.keys, &self.clock) {
            Ok(loaded) => {
                durable.metrics.snapshot.loaded();
                loaded
            }
            Err(error) => {
                durable.metrics.snapshot.failed(Stage::Load);
                let (kept, not_kept) = match files.set_aside() {
                    Ok(kept) => (kept, None),
                    Err(error) => (Vec::new(), Some(error)),
                };
                tracing::error!(
                    file = %durable.path.display(),
                    %error,
                    ?kept,
                    not_kept = not_kept.map(tracing::field::display),
                    "cannot load the sessions of the previous process: all users must log in again"
                );
                Loaded::default()
            }
        };
        let start = JournalStart {
            belongs_to: loaded.snapshot,
            facts: Facts::now(&self.clock),
            changes: loaded.changes.clone(),
        };
        let is_empty = loaded.snapshot.is_none() && loaded.changes.is_empty();
        let changes = loaded.changes.len();
        let Restored { sessions, expired, blocks, users_with_keys } = self.insert(loaded);
        if !is_empty {
            tracing::info!(
                file = %durable.path.display(),
                sessions,
                expired,
                blocks,
                users_with_keys,
                changes,
                "sessions restored"
            );
        }
        Ok(Some(durable.begin_journal(files, start)?))
    }

    /// Everything that was loaded, but for what has ended since.
    fn insert(&self, loaded: Loaded) -> Restored {
        let restoring = self.begin_restoring(RestoredFrom::Snapshot);
        if let Backend::Memory(memory) = &self.backend {
            let now = self.clock.now_millis();
            for change in &loaded.changes {
                self.note_meanwhile(change);
                match change {
                    Change::Blocked(BlockEntry { known, until }) if now < *until => {
                        memory.blocks.set(known.clone(), *until, now);
                    }
                    Change::Blocked(BlockEntry { known, .. }) => memory.blocks.remove(&known.user),
                    Change::Unblocked(user) => memory.blocks.remove(user),
                    _ => {}
                }
            }
        }
        let incoming = Mutex::new(loaded.incoming.into_iter());
        let next = || Ok::<_, Infallible>(incoming.lock().next());
        let Ok(()) = restoring.insert_all(next);
        // There is no limit of changes here.
        restoring.finish().unwrap_or_default()
    }

    /// Gives the files to the other process: none is open when this returns. Waits for a snapshot
    /// and for changes that are being written.
    pub async fn hand_over_files(&self) {
        let Some(durable) = &self.durable else { return };
        durable.wants_files.store(false, Ordering::Release);
        let _saving = durable.saving.lock().await;
        let mut files = durable.files.write().await;
        durable.has_files.store(false, Ordering::Release);
        if let Some(OpenFiles { journal, files }) = files.take() {
            drop(files);
            if let Err(error) = journal.close().await {
                durable.log_failed_write(&error);
            }
        }
    }

    /// Gives to the other process which sessions have ended though the snapshot may have them. The
    /// files must have been handed over.
    pub fn export_ended(&self, give: impl FnMut(&mut Writer)) {
        if let Some(durable) = &self.durable {
            durable.ended.export(&durable.path, give);
        }
    }

    /// Takes what the other process has given, before [`Sessions::take_files`].
    ///
    /// # Errors
    /// When it is malformed.
    pub fn import_ended(&self, piece: &[u8]) -> Result<(), Malformed> {
        self.durable.as_ref().map_or(Ok(()), |durable| durable.ended.import(&durable.path, piece))
    }

    /// Takes the files that the other process had. This process must have all sessions already. If
    /// it fails, it is tried again every second.
    ///
    /// # Errors
    /// When another process still has them.
    pub async fn take_files(&self) -> Result<(), FilesError> {
        let Some(durable) = self.durable.clone() else { return Ok(()) };
        durable.wants_files.store(true, Ordering::Release);
        durable.is_paused.store(false, Ordering::Release);
        if durable.has_files() {
            return Ok(());
        }
        let (taken, clock) = (durable.clone(), self.clock.clone());
        let outcome = in_thread(move || taken.take(&clock)).await.and_then(|files| files);
        match outcome {
            Ok(files) => {
                durable.open(Some(files)).await;
                Ok(())
            }
            Err(error) => {
                if let Some(suppressed) = durable.cannot_write.suppressed() {
                    tracing::error!(%error, suppressed, "cannot take over the files of sessions");
                }
                Err(error)
            }
        }
    }
}

impl Durable {
    pub fn should_take_files(&self) -> bool {
        self.wants_files.load(Ordering::Acquire) && !self.has_files()
    }

    pub(super) async fn open(&self, opened: Option<OpenFiles>) {
        let mut files = self.files.write().await;
        self.has_files.store(opened.is_some(), Ordering::Release);
        self.wants_files.store(true, Ordering::Release);
        *files = opened;
    }

    fn take(&self, clock: &Clock) -> Result<OpenFiles, FilesError> {
        let files = SnapshotFiles::lock(&self.path)?;
        self.ended.continue_another();
        // Logins that were told are in no snapshot yet.
        self.save_soon();
        let (belongs_to, changes) = continued(&files, &self.keys, clock).unwrap_or_else(|error| {
            // Then there is no journal of the old snapshot, so that neither is loaded.
            self.metrics.snapshot.failed(Stage::Load);
            tracing::error!(
                file = %self.path.display(),
                %error,
                "cannot continue the journal of sessions: a new snapshot replaces it"
            );
            (None, Vec::new())
        });
        let start = JournalStart { belongs_to, facts: Facts::now(clock), changes };
        self.begin_journal(files, start)
    }

    fn begin_journal(
        &self,
        files: SnapshotFiles,
        start: JournalStart,
    ) -> Result<OpenFiles, FilesError> {
        let journal = Journal::begin(&files, &self.keys, start)?;
        Ok(OpenFiles { files, journal })
    }
}

impl Loaded {
    fn read(files: &SnapshotFiles, keys: &[SealKey], clock: &Clock) -> Result<Self, LoadError> {
        let mut loaded = Self::default();
        if let Some(file) = files.open_snapshot()? {
            let file = BufReader::with_capacity(READ_AT_ONCE, file);
            let reader = SnapshotReader::open(file, keys)?;
            let rebase = Rebase::new(reader.facts(), &Facts::now(clock));
            loaded.snapshot = Some(reader.id());
            let read = reader.read(|incoming: &mut Incoming, mut entry| {
                rebase.entry(&mut entry);
                incoming.add(entry);
            });
            loaded.incoming = read?.collect();
        }
        loaded.changes = changes_since(files, keys, clock, loaded.snapshot)?;
        Ok(loaded)
    }
}

/// The snapshot that is there, and the changes since.
fn continued(
    files: &SnapshotFiles,
    keys: &[SealKey],
    clock: &Clock,
) -> Result<(Option<SnapshotId>, Vec<Change>), LoadError> {
    let snapshot = match files.open_snapshot()? {
        Some(file) => Some(SnapshotReader::open(file, keys)?.id()),
        None => None,
    };
    Ok((snapshot, changes_since(files, keys, clock, snapshot)?))
}

/// The changes in the journal since a snapshot, in times of this process's clock.
fn changes_since(
    files: &SnapshotFiles,
    keys: &[SealKey],
    clock: &Clock,
    snapshot: Option<SnapshotId>,
) -> Result<Vec<Change>, LoadError> {
    let Some(journal) = load_journal(files, keys)? else { return Ok(Vec::new()) };
    let rebase = Rebase::new(&journal.facts, &Facts::now(clock));
    let mut changes = journal.since(snapshot)?;
    for change in &mut changes {
        rebase.change(change);
    }
    Ok(changes)
}

/// Runs something that waits for the disk. Not in a thread of the runtime, which would wait for it
/// at its end: a file system may never respond.
pub(super) async fn in_thread<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FilesError> {
    let (done, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name("snapshot".to_owned());
    thread.spawn(move || drop(done.send(run())))?;
    outcome.await.map_err(|_| FilesError::Ended)
}
