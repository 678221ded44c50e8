//! Where a header ends and which bytes its lines may have, in requests and responses.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::lines::{Line, Span};
use super::{all, is_blank, trim};

/// The end of a header that begins at `begin`, its empty line included.
pub fn end_of_header(read: &[u8], begin: usize) -> Option<usize> {
    static EMPTY_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
    EMPTY_LINE.find(read.get(begin..)?).map(|at| begin + at + 4)
}

/// Name and value of a line without its line end; the value has no blanks at its ends. `at` is the
/// position of the line in the text to which the spans refer. `None` if the line is malformed.
pub fn split_line(at: usize, line: &[u8]) -> Option<Line> {
    // A line that begins with a blank (obsolete folding) has no valid name before its colon.
    let colon = memchr::memchr(b':', line)?;
    let (name, rest) = line.split_at_checked(colon)?;
    let value = rest.get(1..)?;
    if !is_name(name) || !is_value(value) {
        return None;
    }
    let blanks = value.iter().take_while(|byte| is_blank(**byte)).count();
    let begin = at + colon + 1 + blanks;
    let value = Span::new(begin..begin + trim(value).len());
    Some(Line { name: Span::new(at..at + colon), value })
}

/// The same as bytes.
pub fn name_and_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let found = split_line(0, line)?;
    Some((found.name.of(line), found.value.of(line)))
}

/// Whether a name is a token (RFC 9110, section 5.6.2).
pub fn is_name(name: &[u8]) -> bool {
    static IS_TOKEN: LazyLock<[bool; 256]> =
        LazyLock::new(|| std::array::from_fn(|byte| u8::try_from(byte).is_ok_and(is_token_byte)));
    let is_token = &*IS_TOKEN;
    let is_legal = |byte: u8| is_token.get(usize::from(byte)).copied().unwrap_or(false);
    !name.is_empty() && all(name, is_legal)
}

/// Whether a value has no control bytes except tabs (RFC 9110, section 5.5).
pub fn is_value(value: &[u8]) -> bool {
    all(value, |byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..))
}

/// RFC 9110, section 5.6.2: printable ASCII without delimiters.
pub fn is_token_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e)
        && !matches!(byte, b'"' | b'(' | b')' | b',' | b'/' | b':'..=b'@' | b'['..=b']' | b'{' | b'}')
}

/// The value of `Content-Length`: up to 18 digits and nothing else.
pub fn parse_length(value: &[u8]) -> Option<u64> {
    let is_number = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(value).ok()?.parse().ok()).flatten()
}
