//! The files of sessions on the disk: where they are, and how a file gets there whole or not at
//! all.
//!
//! Beside the snapshot, PATH, are PATH.journal and PATH.lock. A file is written under its name with
//! `.new` at the end, synced and renamed; then the directory is synced, without which a rename may
//! be lost. Only the process that has the lock writes. The lock file is never removed: a process
//! could lock it while another makes a new one.
//!
//! Every step on the disk can fail or hang, and tests make it do so (`before`).

#[cfg(test)]
pub mod faults;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

/// How much of a new file is written between two syncs, in bytes. Otherwise a sync of the journal
/// could wait until a whole snapshot is on the disk: some file systems sync the files together.
const UNSYNCED: u64 = 4 << 20;

/// Only the owner reads and writes.
const MODE: u32 = 0o600;

/// The files of one snapshot, locked for this process until the last clone is dropped.
#[derive(Clone)]
pub struct SnapshotFiles(Arc<Files>);

struct Files {
    snapshot: PathBuf,
    journal: PathBuf,
    lock: File,
    /// Called before each step, which fails if this does. `None` outside of tests.
    before: Option<Before>,
}

impl Drop for Files {
    fn drop(&mut self) {
        // A child that is being started has a copy of the descriptor, and would hold the lock for a
        // while.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

type Before = Box<dyn Fn(Step) -> io::Result<()> + Send + Sync>;

/// A step on the disk that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Create,
    Write,
    Sync,
    Rename,
    SyncDirectory,
    Truncate,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another process uses this snapshot: it has locked {}", path.display())]
    Held { path: PathBuf },
    #[error("cannot lock {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The bytes of the snapshot at `path`; zero if there is none.
pub fn snapshot_size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

impl SnapshotFiles {
    /// The files of the snapshot at `path`. Removes what a process that ended left unfinished.
    ///
    /// # Errors
    /// When another process has the lock, or the lock file can be neither made nor opened.
    pub fn lock(path: &Path) -> Result<Self, LockError> {
        Self::lock_with(path, None)
    }

    fn lock_with(path: &Path, before: Option<Before>) -> Result<Self, LockError> {
        let lock = with_suffix(path, ".lock");
        let locked = open_lock(&lock).and_then(|file| {
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(file)
        });
        let file = match locked {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(LockError::Held { path: lock });
            }
            Err(source) => return Err(LockError::Io { path: lock, source }),
        };
        let files = Files {
            snapshot: path.to_owned(),
            journal: with_suffix(path, ".journal"),
            lock: file,
            before,
        };
        for place in [&files.snapshot, &files.journal] {
            // If this fails, they only take room.
            let _ = fs::remove_file(with_suffix(place, ".new"));
        }
        Ok(Self(Arc::new(files)))
    }

    /// The snapshot, to be read. `None`: there is none.
    pub fn open_snapshot(&self) -> io::Result<Option<File>> {
        open_existing(&self.0.snapshot)
    }

    /// The journal, to be read. `None`: there is none.
    pub fn open_journal(&self) -> io::Result<Option<File>> {
        open_existing(&self.0.journal)
    }

    /// A new snapshot, which replaces the old one when it is finished.
    pub fn new_snapshot(&self) -> io::Result<NewFile> {
        NewFile::create(self, &self.0.snapshot)
    }

    pub(super) fn new_journal(&self) -> io::Result<NewFile> {
        NewFile::create(self, &self.0.journal)
    }

    /// Keeps the files of a failed load aside, as PATH.bad and PATH.journal.bad, which replace
    /// those of an earlier failure. Returns where they are.
    pub fn set_aside(&self) -> io::Result<Vec<PathBuf>> {
        let mut kept = Vec::new();
        // The snapshot first, and durably: without its journal, ended sessions would be loaded.
        for place in [&self.0.snapshot, &self.0.journal] {
            let bad = with_suffix(place, ".bad");
            self.before(Step::Rename)?;
            match fs::rename(place, &bad) {
                Ok(()) => kept.push(bad),
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            self.sync_directory()?;
        }
        Ok(kept)
    }

    /// Makes renames durable.
    pub(super) fn sync_directory(&self) -> io::Result<()> {
        self.before(Step::SyncDirectory)?;
        let directory = self.0.snapshot.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn before(&self, step: Step) -> io::Result<()> {
        self.0.before.as_ref().map_or(Ok(()), |before| before(step))
    }
}

/// On a read-only disk, the lock file of an earlier start can be locked all the same.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE);
    match options.open(path) {
        Ok(file) => {
            // The umask may have taken bits away, without which the next start could not open it.
            let _ = file.set_permissions(Permissions::from_mode(MODE));
            Ok(file)
        }
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
            File::open(path).map_err(|_| error)
        }
        Err(error) => Err(error),
    }
}

fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// A file that is written beside its place. Removed when it is dropped unfinished.
pub struct NewFile {
    file: OpenFile,
    length: u64,
    synced: u64,
    temporary: PathBuf,
    place: PathBuf,
    is_placed: bool,
}

impl NewFile {
    fn create(files: &SnapshotFiles, place: &Path) -> io::Result<Self> {
        let temporary = with_suffix(place, ".new");
        files.before(Step::Create)?;
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(MODE).open(&temporary)?;
        let new = Self {
            file: OpenFile { file: Arc::new(file), files: files.clone() },
            length: 0,
            synced: 0,
            temporary,
            place: place.to_owned(),
            is_placed: false,
        };
        new.file.file.set_permissions(Permissions::from_mode(MODE))?;
        Ok(new)
    }

    /// Puts the file in its place, durably. Returns its size in bytes.
    ///
    /// # Errors
    /// Either the old file is in its place or the new one, and after a power failure as well.
    pub fn finish(self) -> io::Result<u64> {
        let length = self.length;
        self.place()?.sync_directory()?;
        Ok(length)
    }

    /// Puts the file in its place. After a power failure the old one may be there, until the
    /// directory has been synced.
    pub(super) fn place(mut self) -> io::Result<OpenFile> {
        self.file.files.before(Step::Sync)?;
        self.file.file.sync_all()?;
        self.file.files.before(Step::Rename)?;
        fs::rename(&self.temporary, &self.place)?;
        self.is_placed = true;
        Ok(self.file.clone())
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        if self.length - self.synced >= UNSYNCED {
            self.file.sync()?;
            self.synced = self.length;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A file that is open for writing. Clones share it.
#[derive(Clone)]
pub(super) struct OpenFile {
    file: Arc<File>,
    files: SnapshotFiles,
}

impl OpenFile {
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.files.before(Step::Write)?;
        self.file.write_all_at(bytes, offset)
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> io::Result<()> {
        self.files.before(Step::Sync)?;
        self.file.sync_data()
    }

    pub fn truncate(&self, length: u64) -> io::Result<()> {
        self.files.before(Step::Truncate)?;
        self.file.set_len(length)
    }

    /// The file from `offset` on.
    pub fn read_from(&self, offset: u64) -> impl Read + use<> {
        FromOffset { file: self.file.clone(), offset }
    }

    pub fn sync_directory(&self) -> io::Result<()> {
        self.files.sync_directory()
    }
}

struct FromOffset {
    file: Arc<File>,
    offset: u64,
}

impl Read for FromOffset {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}
