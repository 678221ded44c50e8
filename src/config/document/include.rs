//! Files that a configuration includes, so that each service may have one of its own.
//!
//! `include` holds paths or patterns, relative to the file that includes. What a pattern finds
//! comes in the order of its names; one that finds nothing is fine, for a folder may be empty,
//! but a path without a pattern must be there. Hidden files are left alone: editors and
//! Kubernetes keep what is not meant to be read under such names.

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

/// Reads what the first source includes, and tells what is wrong with that.
pub fn read(sources: &mut Vec<SourceFile>, files: &mut Files) -> Vec<Diagnostic> {
    let Some(main) = sources.first() else { return Vec::new() };
    let path = PathBuf::from(&main.name);
    let documents = [DeTable::parse_recoverable(&main.text).0];
    let (report, unheard) = (RefCell::default(), RefCell::default());
    let root = Table::root(&documents, &report);
    // What is no text there, or no TOML, is a problem of the whole file's.
    let given = Table::root(&documents, &unheard).list::<String>("include");
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
            if included.iter().any(|known| known.name == name) {
                continue;
            }
            match file::read_text(&file) {
                _ if file == path => root.problem(&given, "finds this file itself", ""),
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

/// What `include` of the file `from` stands for, whole.
fn whole(given: &str, from: &Path) -> String {
    let folder = from.parent().unwrap_or(Path::new("")).display().to_string();
    Path::new(&Pattern::escape(&folder)).join(given).display().to_string()
}

/// The files that a whole pattern finds, in the order of their names.
///
/// # Errors
/// When it is no pattern, or is a path under which nothing is.
pub fn find(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let found = glob::glob_with(pattern, OPTIONS)
        .map_err(|error| format!("is not a pattern of paths: {}", error.msg))?;
    let found: Vec<_> = found
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{}: {}", error.path().display(), io_reason(error.error())))?;
    let is_path = Pattern::escape(pattern) == pattern;
    if is_path && found.is_empty() { Err("no such file".to_owned()) } else { Ok(found) }
}
