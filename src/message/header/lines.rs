//! Header lines as bytes: one text, and the positions of the names and values in it.
//!
//! A removed line stays in the text: only the list of lines gets shorter. Headers are written from
//! the list, as `name: value`, so that no unusual spelling of a line is forwarded.

use std::ops::Range;

use http::HeaderValue;
use http::header::HeaderName;

use super::syntax::name_and_value;
use super::{Headers, HeadersMut};

/// A part of a text. A header is never longer than [`u32::MAX`] bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    begin: u32,
    end: u32,
}

impl Span {
    pub fn new(range: Range<usize>) -> Self {
        let short = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self { begin: short(range.start), end: short(range.end) }
    }

    /// The part of the text for which the span was made.
    pub fn of(self, text: &[u8]) -> &[u8] {
        text.get(self.begin as usize..self.end as usize).unwrap_or_default()
    }

    /// This part of the text as a `str`; empty if it is not UTF-8.
    pub fn text(self, text: &[u8]) -> &str {
        std::str::from_utf8(self.of(text)).unwrap_or_default()
    }

    fn length(self) -> usize {
        self.end.saturating_sub(self.begin) as usize
    }
}

/// A header line; the value has no blanks at its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub name: Span,
    pub value: Span,
}

/// The header lines of a message.
#[derive(Default)]
pub struct Lines {
    text: Vec<u8>,
    list: Vec<Line>,
}

impl Lines {
    /// A text, and the lines in it.
    pub fn new(text: Vec<u8>, list: Vec<Line>) -> Self {
        Self { text, list }
    }

    /// The text and the list, to be reused for another message.
    pub fn into_parts(self) -> (Vec<u8>, Vec<Line>) {
        (self.text, self.list)
    }

    /// The whole text, with what precedes and follows the lines.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list.iter().map(|line| (line.name.of(&self.text), line.value.of(&self.text)))
    }

    /// Writes the lines that were not removed.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        for (name, value) in self.iter() {
            write_line(out, name, value);
        }
    }
}

/// Writes one header line in the format of HTTP/1.
pub fn write_line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Calls `each` with every header line of a text in HTTP/1 form that the gateway wrote, for
/// protocols that carry lines in another form.
pub fn each_parsed(text: &[u8], mut each: impl FnMut(HeaderName, HeaderValue)) {
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r\n").and_then(name_and_value);
        let Some((name, value)) = line else { continue };
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            each(name, value);
        }
    }
}

impl Headers for Lines {
    fn values_of<'a>(&'a self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let name = name.as_str().as_bytes();
        // The length of the name already rules out most lines.
        let is_it = move |line: &&Line| {
            line.name.length() == name.len() && line.name.of(&self.text).eq_ignore_ascii_case(name)
        };
        self.list.iter().filter(is_it).map(|line| line.value.of(&self.text))
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.iter().map(|(name, _)| name)
    }
}

impl HeadersMut for Lines {
    fn remove_if(&mut self, mut holds: impl FnMut(&[u8], &[u8]) -> bool) {
        let text = &self.text;
        self.list.retain(|line| !holds(line.name.of(text), line.value.of(text)));
    }

    fn add(&mut self, name: &HeaderName, value: &HeaderValue) {
        let begin = self.text.len();
        self.text.extend_from_slice(name.as_str().as_bytes());
        let middle = self.text.len();
        self.text.extend_from_slice(value.as_bytes());
        let name = Span::new(begin..middle);
        self.list.push(Line { name, value: Span::new(middle..self.text.len()) });
    }
}

#[cfg(test)]
mod tests {
    use http::header::{HOST, VARY};

    use super::*;

    fn lines(text: &str) -> Lines {
        let mut list = Vec::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let colon = line.find(':').unwrap();
            let value = line[colon + 1..].trim();
            let begin = at + colon + 1 + line[colon + 1..].find(value).unwrap();
            let name = Span::new(at..at + colon);
            list.push(Line { name, value: Span::new(begin..begin + value.len()) });
            at += line.len();
        }
        Lines::new(text.as_bytes().to_vec(), list)
    }

    #[test]
    fn lines_are_found_removed_added_and_written_anew() {
        let mut lines = lines("HOST:h\r\nX-A:  1 \r\nvary: a\r\nVary: b\r\n");
        assert_eq!(lines.only(&HOST), Some(&b"h"[..]));
        assert_eq!(lines.only(&VARY), None);
        assert_eq!(lines.values_of(&VARY).collect::<Vec<_>>(), [b"a", b"b"]);
        lines.remove_if(|name, value| name == b"Vary" || value == b"1");
        lines.add(&VARY, &HeaderValue::from_static("c, d"));
        let mut out = Vec::new();
        lines.write_to(&mut out);
        assert_eq!(out, b"HOST: h\r\nvary: a\r\nvary: c, d\r\n");
    }
}
