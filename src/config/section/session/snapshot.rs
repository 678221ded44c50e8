//! `[session.snapshot]`: the file in which sessions outlive the process.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Secrets;
use crate::config::document::file::io_reason;
use crate::config::document::table::{Located, Table};

/// The section `[session.snapshot]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSection {
    /// The snapshot. The journal is beside it, as `PATH.journal`.
    pub path: PathBuf,
    /// Time between snapshots.
    pub interval: Duration,
}

/// `None`: there is no snapshot, or a problem was reported. A reload does not repeat checks that
/// only the start needs.
pub fn read(session: &Table<'_>, secrets: Secrets, is_start: bool) -> Option<SnapshotSection> {
    let section = session.optional_table("snapshot")?;
    let path = section.require::<PathBuf>("path");
    let interval = section.positive("interval", Duration::from_secs(300));
    if interval < Duration::from_secs(1) {
        section.problem_of("interval", "must be at least 1s", "");
    }
    if let Some(place) = session.raw("snapshot").map(toml::Spanned::span) {
        if session.has("redis") {
            let message = "cannot be used with [session.redis], where sessions outlive the process";
            let span = if place.is_empty() { section.span.clone() } else { place };
            session.push(session.key("snapshot"), span, message, "remove one of the two sections");
        } else {
            session.report_missing("seal_key", "create one with: openssl rand -base64 32");
        }
    }
    // The file may be for another machine, as in CI.
    let is_here = is_start && secrets == Secrets::Load;
    if let Some(path) = path.as_ref().filter(|_| is_here) {
        judge(&section, path);
    }
    section.finish();
    Some(SnapshotSection { path: path?.value, interval })
}

/// Reports a path where no snapshot can be, and warns of one that everybody can reach.
fn judge(section: &Table<'_>, path: &Located<PathBuf>) {
    let is_directory = path.value.as_os_str().as_encoded_bytes().ends_with(b"/");
    if is_directory || path.value.is_dir() {
        section.problem(path, "is a directory", "write the path of a file");
        return;
    }
    let parent = path.value.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.unwrap_or(Path::new("."));
    match std::fs::metadata(folder) {
        Ok(metadata) if !metadata.is_dir() => {
            let message = format!("{} is not a directory", folder.display());
            section.problem(path, message, "");
        }
        Ok(metadata) if metadata.permissions().mode() & 0o004 != 0 => {
            let folder = folder.display();
            let message = format!(
                "directory {folder} is readable by every user of this machine: chmod 700 {folder}"
            );
            section.warn(path, &message);
        }
        Ok(_) => {}
        Err(error) => {
            let message = format!("{}: {}", folder.display(), io_reason(&error));
            section.problem(path, message, "create the directory, for the gateway's user only");
        }
    }
}
