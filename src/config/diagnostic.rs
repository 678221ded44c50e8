//! Problems of a configuration file, and how they are shown.
//!
//! A problem has a place, the key it is about, what is wrong, and help. Its first line is
//! `FILE:LINE:COL: key: message`, which editors and CI understand; the line of the file and
//! a caret follow. What of the line may be shown is decided in `mask.rs`.

use std::fmt;
use std::io;
use std::ops::Range;

use unicode_width::UnicodeWidthStr;

use super::mask::Line;

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Byte range in the text, where there is one.
    pub span: Option<Range<usize>>,
    /// The key, as `route[1].upstream`. Empty for the file as a whole.
    pub key: String,
    pub message: String,
    pub help: String,
    pub line: Line,
}

/// All problems of one file.
pub struct Problems {
    file: String,
    text: String,
    diagnostics: Vec<Diagnostic>,
}

impl Problems {
    /// Problems of `text`, in the order of their places.
    pub fn new(file: &str, text: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|d| d.span.as_ref().map_or(usize::MAX, |span| span.start));
        Self { file: file.to_owned(), text: text.to_owned(), diagnostics }
    }

    pub fn unreadable(file: &str, error: &io::Error) -> Self {
        Self {
            file: file.to_owned(),
            text: String::new(),
            diagnostics: vec![Diagnostic {
                span: None,
                key: String::new(),
                message: format!("cannot read the file: {}", io_reason(error)),
                help: String::new(),
                line: Line::Judged,
            }],
        }
    }

    pub fn len(&self) -> usize {
        self.diagnostics.len()
    }

    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    fn show(&self, diagnostic: &Diagnostic, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic { span, key, message, help, line } = diagnostic;
        let colon = if key.is_empty() { "" } else { ": " };
        let what = printable(&format!("{key}{colon}{message}"));
        let find = |span| Place::find(&self.text, span, *line);
        let Some(place) = span.as_ref().and_then(find) else {
            writeln!(out, "{}: {what}", self.file)?;
            return if help.is_empty() { Ok(()) } else { writeln!(out, "      | {help}") };
        };
        writeln!(out, "{}:{}:{}: {what}", self.file, place.line, place.column)?;
        if *span == Some(0..0) {
            // It is about no line of the file, but editors want one.
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

/// As shown: the text of the file may hold a secret.
impl fmt::Debug for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl std::error::Error for Problems {}

/// Why a file cannot be read.
pub fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "is a directory".to_owned(),
        io::ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
        _ => error.to_string(),
    }
}

/// A span as a reader sees it. Line and column count from 1, the column in characters;
/// indent and width are in columns of a terminal, where a Chinese character takes two.
struct Place {
    line: usize,
    column: usize,
    shown: String,
    indent: usize,
    width: usize,
}

impl Place {
    fn find(text: &str, span: &Range<usize>, how: Line) -> Option<Self> {
        // What an editor shows of a byte order mark is nothing.
        let mark = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        let before = text.get(..span.start.max(mark))?;
        let line_start = before.rfind('\n').map_or(mark, |newline| newline + 1);
        let rest = text.get(line_start..)?;
        let line = rest.split('\n').next()?.trim_end_matches('\r');
        let offset = span.start.saturating_sub(line_start).min(line.len());
        let lead = line.get(..offset)?;
        // A span that goes on in later lines is marked to the end of its first.
        let marked =
            line.get(offset..(span.end.saturating_sub(line_start)).clamp(offset, line.len()))?;
        Some(Self {
            line: before.matches('\n').count() + 1,
            column: lead.chars().count() + 1,
            shown: printable(&how.show(text.get(..line_start)?, line)),
            indent: printable(lead).width(),
            width: printable(marked).width().max(1),
        })
    }
}

/// One column a tab or another control character, so that carets stand where they should and
/// nothing is told to the terminal.
fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_carets_stand_under_wide_ones() {
        let text = "a = 1\n名 = \"值\" # x\n";
        let start = text.find('"').unwrap();
        let place = Place::find(text, &(start..start + 5), Line::Judged).unwrap();
        assert_eq!((place.line, place.column, place.indent, place.width), (2, 5, 5, 4));
        let place = Place::find("\u{feff}a = 1\n", &(7..8), Line::Judged).unwrap();
        assert_eq!((place.line, place.column, place.indent, place.width), (1, 5, 4, 1));
    }
}
