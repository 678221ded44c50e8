//! Files that a configuration includes, so that each service can have its own.
//!
//! `include` has paths or patterns, relative to the including file. Files found by a pattern are
//! sorted by name. A pattern may find nothing, because a folder may be empty, but a path without a
//! pattern must exist. Hidden files are ignored: editors and Kubernetes use such names for files
//! that are not meant to be read.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use toml::de::DeTable;

use super::file::{self, io_reason};
use super::problems::{Diagnostic, SourceFile};
use super::table::{Report, Table};
use crate::config::Files;

const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Reads the files that the first source includes, and returns the problems with them.
pub fn read(sources: &mut Vec<SourceFile>, files: &mut Files) -> Vec<Diagnostic> {
    let Some(main) = sources.first() else { return Vec::new() };
    let path = PathBuf::from(&main.name);
    let documents = [DeTable::parse_recoverable(&main.text).0];
    let (report, ignored) = (RefCell::default(), RefCell::default());
    let root = Table::root(&documents, &report);
    // A value that is not text, or a file that is not TOML, is reported when the whole file is
    // read.
    let given = Table::root(&documents, &ignored).list::<String>("include");
    let mut included: Vec<SourceFile> = Vec::new();
    for given in given.unwrap_or_default() {
        let pattern = whole(&given.value, &path);
        let found = find(&pattern).unwrap_or_else(|reason| {
            root.problem(&given, reason, "");
            Vec::new()
        });
        files.patterns.insert(pattern);
        for file in found {
            let name = file.display().to_string();
            if included.iter().any(|other| other.name == name) {
                continue;
            }
            match file::read_text(&file) {
                _ if file == path => root.problem(&given, "matches this file itself", ""),
                Ok(text) => included.push(SourceFile { name, text }),
                Err(error) => {
                    let reason = format!("cannot read {name}: {}", io_reason(&error));
                    root.problem(&given, reason, "");
                }
            }
        }
    }
    drop(documents);
    sources.extend(included);
    let report: Report = report.into_inner();
    report.diagnostics
}

/// The full path or pattern of an `include` in the file `from`.
fn whole(given: &str, from: &Path) -> String {
    let folder = from.parent().unwrap_or(Path::new("")).display().to_string();
    Path::new(&Pattern::escape(&folder)).join(given).display().to_string()
}

/// The files that a full pattern matches, sorted by name.
///
/// # Errors
/// When the pattern is invalid, or is a path that does not exist.
pub fn find(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let found = glob::glob_with(pattern, OPTIONS)
        .map_err(|error| format!("is not a valid pattern: {}", error.msg))?;
    let found: Vec<_> = found
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{}: {}", error.path().display(), io_reason(error.error())))?;
    let is_path = Pattern::escape(pattern) == pattern;
    if is_path && found.is_empty() { Err("no such file".to_owned()) } else { Ok(found) }
}
