//! The results of reading: problems, warnings, and the files and keys found.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::DeValue;

use super::{Located, Table};
use crate::config::document::from_value::kind;
use crate::config::document::problems::{Diagnostic, SourceFile};
use crate::config::document::redact_line::Redaction;

/// The results so far.
#[derive(Default)]
pub struct Report {
    pub diagnostics: Vec<Diagnostic>,
    /// Values that work, but should be changed.
    pub warnings: Vec<String>,
    /// Files that were read because a value names them.
    pub files: Vec<PathBuf>,
    /// Names and lines of the documents, in the order of reading.
    pub sources: Vec<LineBreaks>,
    /// Keys that were read, in their documented form: without indexes.
    pub keys: BTreeSet<String>,
    /// Only `keys` is wanted: optional sections are read even if they are missing.
    pub is_listing: bool,
}

/// A file and its line breaks, from which places are computed.
pub struct LineBreaks {
    file: Arc<str>,
    breaks: Vec<usize>,
}

impl LineBreaks {
    pub fn new(source: &SourceFile) -> Self {
        let breaks = source.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self { file: source.name.as_str().into(), breaks: breaks.map(|(at, _)| at).collect() }
    }

    fn place(&self, at: usize) -> Place {
        let line = self.breaks.partition_point(|line_break| *line_break < at) + 1;
        Place { file: self.file.clone(), line }
    }
}

/// A place: the name of a file, and a line of it, counted from 1.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<str>,
    pub line: usize,
}

/// Hides the place, so that files with the same meaning have the same output.
impl fmt::Debug for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("..")
    }
}

impl Table<'_> {
    /// Reports a required key that is missing.
    pub fn report_missing(&self, name: &str, help: &str) {
        if !self.has(name) && !self.is_reported {
            self.push(self.key(name), self.span.clone(), "is missing", help);
        }
    }

    /// Reports a problem with a value.
    pub fn problem<T>(&self, at: &Located<T>, message: impl Into<String>, help: impl Into<String>) {
        self.report(at.source, at.key.clone(), at.span.clone(), message, help, Redaction::IfSecret);
    }

    /// Reports a problem with the value of a key.
    pub fn problem_of(&self, name: &str, message: impl Into<String>, help: impl Into<String>) {
        let span = self.raw(name).map_or_else(|| self.span.clone(), Spanned::span);
        self.push(self.key(name), span, message, help);
    }

    /// Reports a problem with the target of a reference: a variable or a file. Its name is shown,
    /// because it is not secret, whatever words it contains.
    pub fn reference_problem<T>(
        &self,
        at: &Located<T>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.report(
            at.source,
            at.key.clone(),
            at.span.clone(),
            message,
            help,
            Redaction::ExceptMarked,
        );
    }

    /// Records that a file was read.
    pub fn reads(&self, file: &Path) {
        self.report.borrow_mut().files.push(file.to_owned());
    }

    /// Warns about a value, which is used nevertheless.
    pub fn warn<T>(&self, at: &Located<T>, message: &str) {
        self.push_warning(at.source, at.span.start, &at.key, message);
    }

    /// Warns about the value of a key, which is used nevertheless.
    pub fn warn_of(&self, name: &str, message: &str) {
        let at = self.raw(name).map_or(self.span.start, |value| value.span().start);
        self.push_warning(self.source, at, &self.key(name), message);
    }

    fn push_warning(&self, source: usize, at: usize, key: &str, message: &str) {
        let mut report = self.report.borrow_mut();
        let place = report.sources.get(source).map(|lines| lines.place(at)).unwrap_or_default();
        report.warnings.push(format!("{}:{}: {key}: {message}", place.file, place.line));
    }

    /// The place where this table begins.
    pub fn place(&self) -> Place {
        let report = self.report.borrow();
        report
            .sources
            .get(self.source)
            .map(|lines| lines.place(self.span.start))
            .unwrap_or_default()
    }

    /// Reports a problem at a place.
    pub fn push(
        &self,
        key: String,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.report(self.source, key, span, message, help, Redaction::IfSecret);
    }

    pub(super) fn report(
        &self,
        source: usize,
        key: String,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
        redaction: Redaction,
    ) {
        self.report.borrow_mut().diagnostics.push(Diagnostic {
            source,
            span: Some(span),
            key,
            message: message.into(),
            help: help.into(),
            redaction,
        });
    }

    pub(super) fn wrong_type(
        &self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        expected: &str,
        help: String,
    ) {
        let message = format!("expected {expected}, found {}", kind(value.get_ref()));
        self.push(self.key(name), value.span(), message, help);
    }
}
