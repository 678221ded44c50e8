//! Problems of a configuration file, and how they are shown.
//!
//! A problem has a place, a key, a message and help. Its first line is `FILE:LINE:COL: key:
//! message`, a format that editors and CI understand; the line of the file and a caret follow.
//! `redact_line.rs` decides which parts of the line are shown.

use std::fmt;
use std::io;
use std::ops::Range;

use unicode_width::UnicodeWidthStr;

use super::file::io_reason;
use super::redact_line::Redaction;

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Index of the file in [`Problems`].
    pub source: usize,
    /// Byte range in the text, if there is one.
    pub span: Option<Range<usize>>,
    /// The key, as `route[1].upstream`. Empty for the file as a whole.
    pub key: String,
    pub message: String,
    pub help: String,
    pub redaction: Redaction,
}

/// A problem in parts. `key` and `help` may be empty; lines and columns count from 1.
pub struct Problem<'a> {
    pub file: &'a str,
    pub line: Option<usize>,
    pub column: Option<usize>,
    pub key: String,
    pub message: String,
    pub help: String,
}

/// A file: its name and its text.
pub struct SourceFile {
    pub name: String,
    pub text: String,
}

/// All problems of a file and its included files.
pub struct Problems {
    sources: Vec<SourceFile>,
    diagnostics: Vec<Diagnostic>,
}

impl Problems {
    /// The problems of files, sorted by their places.
    pub fn new(sources: Vec<SourceFile>, mut diagnostics: Vec<Diagnostic>) -> Self {
        let start = |d: &Diagnostic| d.span.as_ref().map_or(usize::MAX, |span| span.start);
        diagnostics.sort_by_key(|diagnostic| (diagnostic.source, start(diagnostic)));
        Self { sources, diagnostics }
    }

    pub fn unreadable(file: &str, error: &io::Error) -> Self {
        Self {
            sources: vec![SourceFile { name: file.to_owned(), text: String::new() }],
            diagnostics: vec![Diagnostic {
                source: 0,
                span: None,
                key: String::new(),
                message: format!("cannot read the file: {}", io_reason(error)),
                help: String::new(),
                redaction: Redaction::IfSecret,
            }],
        }
    }

    pub fn len(&self) -> usize {
        self.diagnostics.len()
    }

    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// Each problem in parts, for structured logs. They contain nothing of the file's text.
    pub fn iter(&self) -> impl Iterator<Item = Problem<'_>> {
        self.diagnostics.iter().filter_map(|diagnostic| {
            let Diagnostic { source, span, key, message, help, redaction } = diagnostic;
            let SourceFile { name, text } = self.sources.get(*source)?;
            let place = span.as_ref().and_then(|span| Excerpt::find(text, span, *redaction));
            Some(Problem {
                file: name,
                line: place.as_ref().map(|place| place.line),
                column: place.as_ref().map(|place| place.column),
                key: printable(key),
                message: printable(message),
                help: printable(help),
            })
        })
    }

    fn show(&self, diagnostic: &Diagnostic, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic { source, span, key, message, help, redaction } = diagnostic;
        let Some(SourceFile { name, text }) = self.sources.get(*source) else { return Ok(()) };
        let colon = if key.is_empty() { "" } else { ": " };
        let what = printable(&format!("{key}{colon}{message}"));
        let find = |span| Excerpt::find(text, span, *redaction);
        let Some(place) = span.as_ref().and_then(find) else {
            writeln!(out, "{name}: {what}")?;
            return if help.is_empty() { Ok(()) } else { writeln!(out, "      | {help}") };
        };
        writeln!(out, "{name}:{}:{}: {what}", place.line, place.column)?;
        if *span == Some(0..0) {
            // The problem concerns no particular line, but editors expect one.
            return if help.is_empty() { Ok(()) } else { writeln!(out, "      | {help}") };
        }
        writeln!(out, "{:>5} | {}", place.line, place.shown)?;
        let caret = format!("{}{}", " ".repeat(place.indent), "^".repeat(place.width));
        writeln!(out, "      | {}", format!("{caret} {help}").trim_end())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.diagnostics.iter().try_for_each(|diagnostic| self.show(diagnostic, out))
    }
}

/// Same as `Display`: a derived `Debug` would show the text of the file, which may contain a
/// secret.
impl fmt::Debug for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl std::error::Error for Problems {}

/// A span as shown to the reader. Line and column count from 1, the column in characters; indent
/// and width are in terminal columns, of which a Chinese character takes two.
struct Excerpt {
    line: usize,
    column: usize,
    shown: String,
    indent: usize,
    width: usize,
}

impl Excerpt {
    fn find(text: &str, span: &Range<usize>, how: Redaction) -> Option<Self> {
        // Editors do not show a byte order mark.
        let mark = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        let before = text.get(..span.start.max(mark))?;
        let line_start = before.rfind('\n').map_or(mark, |newline| newline + 1);
        let rest = text.get(line_start..)?;
        let line = rest.split('\n').next()?.trim_end_matches('\r');
        let offset = span.start.saturating_sub(line_start).min(line.len());
        let lead = line.get(..offset)?;
        // A span of several lines is marked up to the end of the first.
        let end = span.end.saturating_sub(line_start).clamp(offset, line.len());
        let marked = line.get(offset..end)?;
        Some(Self {
            line: before.matches('\n').count() + 1,
            column: lead.chars().count() + 1,
            shown: printable(&how.show(text.get(..line_start)?, line, offset..end)),
            indent: printable(lead).width(),
            width: printable(marked).width().max(1),
        })
    }
}

/// Replaces tabs and other control characters by one column each, so that carets are in the right
/// place and the terminal receives no control sequences.
fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_carets_fit_wide_ones() {
        let text = "a = 1\n名 = \"值\" # x\n";
        let start = text.find('"').unwrap();
        let place = Excerpt::find(text, &(start..start + 5), Redaction::IfSecret).unwrap();
        assert_eq!((place.line, place.column, place.indent, place.width), (2, 5, 5, 4));
        let place = Excerpt::find("\u{feff}a = 1\n", &(7..8), Redaction::IfSecret).unwrap();
        assert_eq!((place.line, place.column, place.indent, place.width), (1, 5, 4, 1));
    }
}
