//! What the fuzz targets of snapshots and journals need.

pub use super::entry::{AppIds, Change, Entry};
pub use super::snapshot::facts::Facts;
pub use super::snapshot::journal::{LoadedJournal, sealed_journal};
pub use super::snapshot::seal::{FileKey, Purpose};
pub use super::snapshot::sealed_file::{SnapshotReader, SnapshotWriter};
