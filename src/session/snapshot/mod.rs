//! The files of sessions in memory, from which the next start of this gateway goes on.
//!
//! A *snapshot* has all sessions, blocks and session keys of one moment. Its *journal* has what was
//! revoked, blocked and unblocked since, because those must outlive the process from their response
//! on. The journal names its snapshot by the salt at the start of that file. Losing logins since
//! the snapshot is a nuisance; losing a revocation since then would be a hole.
//!
//! Both begin with eight characters, a byte of version and a salt. The rest is sealed (`seal`) with
//! a key of the file, so that it can be neither read, nor forged, nor put together from parts of
//! several files. That *both* files were replaced by an older pair cannot be noticed: the operator
//! must protect the directory.
//!
//! What is sealed are lists of numbered fields ([`crate::handover::fields`], `session::entry`). A
//! program ignores fields and kinds of entries that it does not know. So there is a new version
//! byte only for what an older program must not ignore, and a rollback to an older program loses no
//! session. A file with another version byte is not loaded, and neither is a damaged one, not even
//! in part: to load sessions without all of their revocations is worse than to load none.
//!
//! `sealed_file` is the format of snapshots, and `journal` writes the journal and reads it. `disk`
//! has the steps on the disk by which a file gets into its place. `facts` turns the times in a file
//! into times of this process's clock.

pub mod disk;
pub mod facts;
pub mod journal;
pub mod seal;
pub mod sealed_file;

pub use self::sealed_file::{LoadError, SnapshotId};
