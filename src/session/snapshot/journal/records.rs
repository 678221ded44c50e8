//! The records of a journal's file on the disk, written so that a failed write does no harm.

use std::io::{self, Read, Write};

use super::format::{Reader, Sealer};
use crate::identity::secret::SealKey;
use crate::session::snapshot::SnapshotId;
use crate::session::snapshot::disk::{NewFile, OpenFile, SnapshotFiles};

/// A journal that is not in its place yet.
pub struct NewRecords {
    file: NewFile,
    sealer: Sealer,
}

impl NewRecords {
    pub fn create(files: &SnapshotFiles, keys: &[SealKey]) -> io::Result<Self> {
        let (sealer, start) = Sealer::new(keys)?;
        let mut file = files.new_journal()?;
        file.write_all(&start)?;
        Ok(Self { file, sealer })
    }

    pub fn add(&mut self, contents: &[u8]) -> io::Result<()> {
        self.file.write_all(&self.sealer.seal(contents)?)?;
        self.sealer.written();
        Ok(())
    }

    /// Replaces the old journal. After a power failure that may be there again, until
    /// [`Records::settle`] has succeeded.
    pub fn place(self) -> io::Result<Records> {
        let length = self.file.length();
        let file = self.file.place()?;
        let sealer = self.sealer;
        Ok(Records { file, sealer, length, has_tail: false, is_placed: false, mark: None })
    }
}

/// The journal in its place.
pub struct Records {
    file: OpenFile,
    sealer: Sealer,
    /// Bytes that are durable. What follows in the file is of a failed write.
    length: u64,
    has_tail: bool,
    /// Whether the directory has been synced.
    is_placed: bool,
    mark: Option<Mark>,
}

/// Where the records of a snapshot that is being written begin.
struct Mark {
    snapshot: SnapshotId,
    length: u64,
    index: u64,
}

impl Records {
    /// Makes a record durable.
    pub fn add(&mut self, contents: &[u8]) -> io::Result<()> {
        self.settle()?;
        let record = self.sealer.seal(contents)?;
        self.has_tail = true;
        self.file.write_at(&record, self.length)?;
        self.file.sync()?;
        self.has_tail = false;
        self.length += record.len() as u64;
        self.sealer.written();
        Ok(())
    }

    /// Makes up for what failed before: makes the file's place durable, and cuts off its tail.
    pub fn settle(&mut self) -> io::Result<()> {
        if !self.is_placed {
            self.file.sync_directory()?;
            self.is_placed = true;
        }
        if self.has_tail {
            self.file.truncate(self.length)?;
            self.has_tail = false;
        }
        Ok(())
    }

    /// The next record is the first of this snapshot.
    pub fn mark(&mut self, snapshot: SnapshotId) {
        let (length, index) = (self.length, self.sealer.index());
        self.mark = Some(Mark { snapshot, length, index });
    }

    /// The records of a snapshot. `None`: it has not the last mark.
    pub fn since(&self, snapshot: SnapshotId) -> Option<Reader<impl Read + use<>>> {
        let mark = self.mark.as_ref().filter(|mark| mark.snapshot == snapshot)?;
        let input = self.file.read_from(mark.length);
        Some(self.sealer.reader(input, self.length - mark.length, mark.index))
    }

    pub fn length(&self) -> u64 {
        self.length
    }
}
