//! The file of the journal that this process writes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::JournalStart;
use super::load::{BELONGS_TO, CHANGE, FACTS};
use super::records::{NewRecords, Records};
use crate::handover::fields::Writer;
use crate::identity::secret::SealKey;
use crate::session::snapshot::SnapshotId;
use crate::session::snapshot::disk::SnapshotFiles;
use crate::session::snapshot::facts::Facts;

/// Where a record should end and the next begin, in bytes.
pub const GROUP: usize = 64 << 10;

/// The journal's file. It is made by the first write that succeeds.
pub struct JournalFile {
    files: SnapshotFiles,
    /// The first one seals.
    keys: Vec<SealKey>,
    state: State,
    /// For those who do not write.
    bytes: Arc<AtomicU64>,
}

enum State {
    /// There is no file yet. It will begin with these records.
    Waiting(Vec<Writer>),
    Open(Records),
}

impl JournalFile {
    pub fn new(
        files: SnapshotFiles,
        keys: Vec<SealKey>,
        start: JournalStart,
        bytes: Arc<AtomicU64>,
    ) -> Self {
        let JournalStart { belongs_to, facts, changes } = start;
        let mut records = vec![first_record(belongs_to, &facts)];
        let mut group = Writer::new();
        for change in changes {
            let mut list = Writer::new();
            change.encode(&mut list);
            group.list(CHANGE, &list);
            if group.as_bytes().len() >= GROUP {
                records.push(std::mem::take(&mut group));
            }
        }
        if !group.as_bytes().is_empty() {
            records.push(group);
        }
        Self { files, keys, state: State::Waiting(records), bytes }
    }

    /// Makes the file if there is none yet.
    pub fn open(&mut self) -> io::Result<()> {
        self.records()?.settle()
    }

    /// Makes a record durable.
    pub fn add(&mut self, contents: &Writer) -> io::Result<()> {
        let records = self.records()?;
        records.add(contents.as_bytes())?;
        let length = records.length();
        self.bytes.store(length, Ordering::Relaxed);
        Ok(())
    }

    /// From here on, the journal belongs to this snapshot as well.
    pub fn mark(&mut self, snapshot: SnapshotId) -> io::Result<()> {
        let mut contents = Writer::new();
        contents.bytes(BELONGS_TO, &snapshot);
        self.add(&contents)?;
        self.records()?.mark(snapshot);
        Ok(())
    }

    /// Goes on in a new file, which has only what came after the mark for this snapshot.
    pub fn fold(&mut self, snapshot: SnapshotId, facts: &Facts) -> io::Result<()> {
        let since = self.records()?.since(snapshot);
        let mut since = since.ok_or_else(|| io::Error::other("the snapshot has no mark"))?;
        let mut new = NewRecords::create(&self.files, &self.keys)?;
        new.add(first_record(Some(snapshot), facts).as_bytes())?;
        while let Some(contents) = since.next().map_err(io::Error::other)? {
            new.add(&contents)?;
        }
        if !since.is_at_end() {
            return Err(io::Error::other("what was written is not in the file"));
        }
        self.go_on(new)?;
        self.open()
    }

    fn records(&mut self) -> io::Result<&mut Records> {
        if let State::Waiting(records) = &self.state {
            let mut new = NewRecords::create(&self.files, &self.keys)?;
            for contents in records {
                new.add(contents.as_bytes())?;
            }
            self.go_on(new)?;
        }
        match &mut self.state {
            State::Open(records) => Ok(records),
            State::Waiting(_) => Err(io::Error::other("the file is not open")),
        }
    }

    fn go_on(&mut self, new: NewRecords) -> io::Result<()> {
        let records = new.place()?;
        self.bytes.store(records.length(), Ordering::Relaxed);
        self.state = State::Open(records);
        Ok(())
    }
}

fn first_record(belongs_to: Option<SnapshotId>, facts: &Facts) -> Writer {
    let mut list = Writer::new();
    facts.encode(&mut list);
    let mut contents = Writer::new();
    contents.bytes(BELONGS_TO, belongs_to.as_ref().map_or(&[], |id| id)).list(FACTS, &list);
    contents
}
