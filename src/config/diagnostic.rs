//! Problems of a configuration file, and how they are shown.
//!
//! A problem has a place, the key it is about, what is wrong, and help. Its first line is
//! `FILE:LINE:COL: key: message`, which editors and CI understand; the line of the file and
//! a caret follow. Quoted text on a line that names a secret is masked, unless it is the
//! name of a variable or a file: what an operator put there by mistake is not repeated.

use std::fmt;
use std::io;
use std::ops::Range;

use unicode_width::UnicodeWidthStr;

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Byte range in the text, where there is one.
    pub span: Option<Range<usize>>,
    /// The key, as `route[1].upstream`. Empty for the file as a whole.
    pub key: String,
    pub message: String,
    pub help: String,
}

/// All problems of one file.
#[derive(Debug)]
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
        let reason = match error.kind() {
            io::ErrorKind::NotFound => "no such file".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            io::ErrorKind::IsADirectory => "is a directory".to_owned(),
            io::ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
            _ => error.to_string(),
        };
        Self {
            file: file.to_owned(),
            text: String::new(),
            diagnostics: vec![Diagnostic {
                span: None,
                key: String::new(),
                message: format!("cannot read the file: {reason}"),
                help: String::new(),
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
        let Diagnostic { span, key, message, help } = diagnostic;
        let colon = if key.is_empty() { "" } else { ": " };
        let Some(place) = span.as_ref().and_then(|span| Place::find(&self.text, span)) else {
            writeln!(out, "{}: {key}{colon}{message}", self.file)?;
            return if help.is_empty() { Ok(()) } else { writeln!(out, "      {help}") };
        };
        writeln!(out, "{}:{}:{}: {key}{colon}{message}", self.file, place.line, place.column)?;
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

impl std::error::Error for Problems {}

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
    fn find(text: &str, span: &Range<usize>) -> Option<Self> {
        let before = text.get(..span.start)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let rest = text.get(line_start..)?;
        let line = rest.split('\n').next()?.trim_end_matches('\r');
        let offset = (span.start - line_start).min(line.len());
        let lead = line.get(..offset)?;
        // A span that goes on in later lines is marked to the end of its first.
        let marked =
            line.get(offset..(span.end.saturating_sub(line_start)).clamp(offset, line.len()))?;
        Some(Self {
            line: before.matches('\n').count() + 1,
            column: lead.chars().count() + 1,
            shown: mask(&untab(line)),
            indent: untab(lead).width(),
            width: untab(marked).width().max(1),
        })
    }
}

/// One column a tab, so that carets stand where they should.
fn untab(text: &str) -> String {
    text.replace('\t', " ")
}

/// Stars for quoted text on a line about a secret. Characters keep their number and, as
/// secrets are ASCII, their width.
fn mask(line: &str) -> String {
    const SENSITIVE: [&str; 4] = ["secret", "_key", "token", "password"];
    if !SENSITIVE.iter().any(|word| line.contains(word)) {
        return line.to_owned();
    }
    let mut shown = String::with_capacity(line.len());
    let mut quote = None;
    for character in line.chars() {
        match quote {
            None if matches!(character, '"' | '\'') => {
                let before = shown.trim_end().trim_end_matches('=').trim_end();
                let word = before.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next();
                let is_reference = word.is_some_and(|word| word == "env" || word.ends_with("file"));
                quote = Some((character, is_reference));
                shown.push(character);
            }
            Some((open, _)) if open == character => {
                quote = None;
                shown.push(character);
            }
            Some((_, false)) => shown.push('*'),
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_secrets_are_masked_and_references_are_not() {
        assert_eq!(mask(r#"app_secret = "hunter2" # "x""#), r#"app_secret = "*******" # "*""#);
        assert_eq!(mask(r#"app_secret = { env = "NAME" }"#), r#"app_secret = { env = "NAME" }"#);
        assert_eq!(mask(r#"key_file = "a.pem""#), r#"key_file = "a.pem""#);
        assert_eq!(mask(r#"app_secret = "unterminated"#), r#"app_secret = "************"#);
    }

    #[test]
    fn columns_count_characters_and_carets_stand_under_wide_ones() {
        let text = "a = 1\n名 = \"值\" # x\n";
        let start = text.find('"').unwrap();
        let place = Place::find(text, &(start..start + 5)).unwrap();
        assert_eq!((place.line, place.column, place.indent, place.width), (2, 5, 5, 4));
    }
}
