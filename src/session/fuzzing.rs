//! What fuzz targets need.

pub use super::entry::{AppIds, Change, Entry};
pub use super::snapshot::facts::Facts;
pub use super::snapshot::journal::{LoadedJournal, sealed_journal};
pub use super::snapshot::seal::{FileKey, Purpose};
pub use super::snapshot::sealed_file::{SnapshotReader, SnapshotWriter};

pub mod records {
    pub use crate::session::memory::records::MemoryRecords;
    pub use crate::session::records::RecordKind;
    pub use crate::session::records::operation::{Operation, Outcome};
    pub use crate::session::records::owned::OwnedRecords;
}
