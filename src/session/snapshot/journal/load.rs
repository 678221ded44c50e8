//! What is in a journal, and reading it at the start.
//!
//! The contents of a record are fields: changes, and from where on the journal belongs to which
//! snapshot.

use std::io::Read;

use super::format::Reader;
use crate::handover::fields::{self, Malformed};
use crate::identity::secret::SealKey;
use crate::session::entry::{AppIds, Change};
use crate::session::snapshot::disk::SnapshotFiles;
use crate::session::snapshot::facts::Facts;
use crate::session::snapshot::{LoadError, SnapshotId};

/// The id of a snapshot that the journal belongs to from here on; empty: no snapshot.
pub const BELONGS_TO: u32 = 1;
/// In the first record.
pub const FACTS: u32 = 2;
pub const CHANGE: u32 = 3;

/// A journal that was read to its end.
pub struct LoadedJournal {
    /// The clocks that the times of its changes are of.
    pub facts: Facts,
    changes: Vec<Change>,
    /// Snapshots that it belongs to, each with the number of changes before.
    belongs_to: Vec<(Option<SnapshotId>, usize)>,
}

/// Reads the journal. `None`: there is none. A torn end is ignored.
pub fn load_journal(
    files: &SnapshotFiles,
    keys: &[SealKey],
) -> Result<Option<LoadedJournal>, LoadError> {
    let Some(file) = files.open_journal()? else { return Ok(None) };
    let length = file.metadata()?.len();
    LoadedJournal::read(file, length, keys).map(Some)
}

impl LoadedJournal {
    /// Reads the journal in the `length` bytes of `input`.
    pub fn read(input: impl Read, length: u64, keys: &[SealKey]) -> Result<Self, LoadError> {
        let (mut reader, first) = Reader::open(input, length, keys)?;
        let mut apps = AppIds::default();
        let mut parts = Parts::default();
        parts.take(&first, &mut apps)?;
        let facts = parts.facts.take().ok_or(Malformed)?;
        let mut loaded = Self { facts, changes: Vec::new(), belongs_to: Vec::new() };
        loop {
            let before = loaded.changes.len();
            let belongs_to = parts.belongs_to.drain(..).map(|(id, at)| (id, before + at));
            loaded.belongs_to.extend(belongs_to);
            loaded.changes.append(&mut parts.changes);
            let Some(contents) = reader.next()? else { break };
            parts.take(&contents, &mut apps)?;
        }
        Ok(loaded)
    }

    /// The changes since a snapshot, oldest first.
    ///
    /// # Errors
    /// When the journal is of another snapshot.
    pub fn since(mut self, snapshot: Option<SnapshotId>) -> Result<Vec<Change>, LoadError> {
        let found = self.belongs_to.iter().rfind(|(id, _)| *id == snapshot);
        let Some((_, before)) = found else {
            return Err(LoadError::Damaged("the journal belongs to another snapshot"));
        };
        self.changes.drain(..before);
        Ok(self.changes)
    }
}

/// The contents of a record.
#[derive(Default)]
struct Parts {
    facts: Option<Facts>,
    changes: Vec<Change>,
    /// Each with the number of changes before it in this record.
    belongs_to: Vec<(Option<SnapshotId>, usize)>,
}

impl Parts {
    fn take(&mut self, contents: &[u8], apps: &mut AppIds) -> Result<(), Malformed> {
        for field in fields::read(contents) {
            let field = field?;
            match field.number {
                BELONGS_TO if field.value.is_empty() => {
                    self.belongs_to.push((None, self.changes.len()));
                }
                BELONGS_TO => {
                    let id = field.array().ok_or(Malformed)?;
                    self.belongs_to.push((Some(id), self.changes.len()));
                }
                FACTS => self.facts = Some(Facts::decode(field.value)?),
                CHANGE => self.changes.extend(Change::decode(field.value, apps)?),
                _ => {}
            }
        }
        Ok(())
    }
}
