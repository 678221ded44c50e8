//! Checks that the header of a service's response can be read in only one way.
//!
//! It is checked for the same reason as a request header: if two parsers could read it differently,
//! an attacker who controls a part of it could end one response and begin another (response
//! splitting). Less strict than for requests: equal lengths may be repeated, and a chunked body may
//! have a length, which is ignored; the connection is then not reused. A header that passes has one
//! status, one list of lines and one way in which its body ends.

use std::fmt::Write as _;

use crate::message::header::lines::{Line, Span};
use crate::message::header::syntax::{end_of_header, is_name, is_value, parse_length, split_line};
use crate::message::header::{elements, trim};

/// Maximum bytes of a response header.
pub const LONGEST: usize = 64 << 10;

/// Maximum lines of a response header.
const MOST_LINES: usize = 256;

/// Maximum bytes of a header name that a [`Fault`] shows.
const LONGEST_NAME: usize = 64;

/// A response header that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHeader {
    /// Bytes up to and including the empty line.
    pub length: usize,
    /// 100 to 999.
    pub status: u16,
    /// The reason phrase, without the blank before it.
    pub reason: Span,
    pub framing: Framing,
    /// The value of `Content-Length`, even if there is no body.
    pub content_length: Option<u64>,
    /// Whether the connection may serve another request after this one.
    pub persists: bool,
    /// Whether `Connection` nominates headers.
    pub nominates: bool,
    /// The number of header lines.
    pub lines: usize,
    /// Whether there is a `Keep-Alive` line.
    pub has_keep_alive: bool,
}

/// How the end of a response's body is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    /// By the end of the connection.
    Close,
}

/// What is wrong with a response header, in words for the log. Only names of headers are shown, not
/// their values.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("response header malformed: {0}")]
    Malformed(String),
    #[error("response header rejected: {0}")]
    Rejected(&'static str),
    #[error("response header too large")]
    TooLarge,
}

const LENGTH: Fault = Fault::Rejected("Content-Length is invalid or has several values");
const CODING: Fault = Fault::Rejected("Transfer-Encoding is not \"chunked\"");

/// Checks what has been read so far of a response header, and calls `each` with every header line
/// in order. `None`: it is incomplete, and valid so far. `is_to_head`: it responds to a HEAD
/// request.
///
/// # Errors
/// What is wrong with it. `each` may have been called before.
pub fn read(
    read: &[u8],
    is_to_head: bool,
    mut each: impl FnMut(Line),
) -> Result<Option<ResponseHeader>, Fault> {
    let Some(length) = end_of_header(read, 0) else {
        judge_beginning(read)?;
        return if read.len() > LONGEST { Err(Fault::TooLarge) } else { Ok(None) };
    };
    if length > LONGEST {
        return Err(Fault::TooLarge);
    }
    let text = read.get(..length).unwrap_or_default();
    let malformed = || Fault::Malformed(fault(text));
    let mut at = memchr::memchr(b'\n', text).ok_or_else(malformed)? + 1;
    let first = text.get(..at).and_then(|line| line.strip_suffix(b"\r\n"));
    let (is_http_10, status) = first.and_then(status_line).ok_or_else(malformed)?;
    let mut found = ResponseHeader {
        length,
        status,
        reason: Span::new((STATUS.min(at - 2))..at - 2),
        framing: Framing::Close,
        content_length: None,
        persists: !is_http_10,
        nominates: false,
        lines: 0,
        has_keep_alive: false,
    };
    let mut is_chunked = false;
    for count in 0.. {
        let rest = text.get(at..).unwrap_or_default();
        let end = memchr::memchr(b'\n', rest).ok_or_else(malformed)?;
        let Some(line) = rest.get(..end).and_then(|line| line.strip_suffix(b"\r")) else {
            return Err(malformed());
        };
        if line.is_empty() {
            break;
        }
        if count >= MOST_LINES {
            return Err(malformed());
        }
        let line = split_line(at, line).ok_or_else(malformed)?;
        at += end + 1;
        found.lines += 1;
        each(line);
        judge_line(line.name.of(text), line.value.of(text), &mut found, &mut is_chunked)?;
    }
    if is_chunked && (is_http_10 || found.content_length.is_some()) {
        // Another parser may have used the length (RFC 9112, section 6.3).
        found.persists = false;
        found.content_length = None;
    }
    let has_no_body = is_to_head || status < 200 || matches!(status, 204 | 304);
    found.framing = match (is_chunked, found.content_length) {
        _ if has_no_body => Framing::Length(0),
        (true, _) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Close,
    };
    found.persists &= found.framing != Framing::Close;
    Ok(Some(found))
}

fn judge_line(
    name: &[u8],
    value: &[u8],
    found: &mut ResponseHeader,
    is_chunked: &mut bool,
) -> Result<(), Fault> {
    let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
    match name.len() {
        10 if is(b"connection") => {
            for name in elements(value) {
                if name.eq_ignore_ascii_case(b"close") {
                    found.persists = false;
                } else if !name.eq_ignore_ascii_case(b"keep-alive") {
                    found.nominates = true;
                }
            }
        }
        10 if is(b"keep-alive") => found.has_keep_alive = true,
        14 if is(b"content-length") => {
            for one in value.split(|byte| *byte == b',').map(trim) {
                let length = parse_length(one).ok_or(LENGTH)?;
                if found.content_length.replace(length).is_some_and(|other| other != length) {
                    return Err(LENGTH);
                }
            }
        }
        17 if is(b"transfer-encoding") => {
            for coding in elements(value) {
                if coding.eq_ignore_ascii_case(b"identity") {
                    continue;
                }
                // Another coding would have to be decoded here: it is for this connection only.
                if *is_chunked || !coding.eq_ignore_ascii_case(b"chunked") {
                    return Err(CODING);
                }
                *is_chunked = true;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Bytes before the reason phrase.
const STATUS: usize = b"HTTP/1.1 200 ".len();

/// Whether the version of a status line is 1.0, and its status.
fn status_line(line: &[u8]) -> Option<(bool, u16)> {
    let (version, rest) = line.split_at_checked(b"HTTP/1.1 ".len())?;
    let is_http_10 = match version {
        b"HTTP/1.1 " => false,
        b"HTTP/1.0 " => true,
        _ => return None,
    };
    let (code, reason) = rest.split_at_checked(3)?;
    let is_status = code.iter().all(u8::is_ascii_digit) && code.first() != Some(&b'0');
    let is_reason = is_value(reason) && matches!(reason, [] | [b' ', ..]);
    if !is_status || !is_reason {
        return None;
    }
    let digits = code.iter().map(|digit| u16::from(digit - b'0'));
    Some((is_http_10, digits.fold(0, |number, digit| number * 10 + digit)))
}

/// Whether the bytes received so far can be the beginning of a response.
fn judge_beginning(read: &[u8]) -> Result<(), Fault> {
    let first = read.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_whole = first.len() < read.len();
    let can_be = if is_whole {
        first.strip_suffix(b"\r").and_then(status_line).is_some()
    } else {
        let same = first.len().min(b"HTTP/1.".len());
        first.get(..same) == b"HTTP/1.".get(..same)
    };
    if can_be { Ok(()) } else { Err(Fault::Malformed(other_protocol(read).to_owned())) }
}

/// Why a response does not begin with a status line.
fn other_protocol(read: &[u8]) -> &'static str {
    match read {
        // A SETTINGS frame (RFC 9113, sections 3.4 and 4.1).
        [0, 0, _, 4, ..] => "status line (the server speaks HTTP/2: set protocol = \"h2\")",
        // An alert (RFC 8446, section 5.1).
        [21, 3, ..] => "status line (the server speaks TLS: add [upstream.tls])",
        _ => STATUS_LINE,
    }
}

const STATUS_LINE: &str = "status line";

/// What is wrong with a response header, without showing values.
pub fn fault(header: &[u8]) -> String {
    let mut lines = header.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    if status_line(first.strip_suffix(b"\r").unwrap_or(first)).is_none() {
        return STATUS_LINE.to_owned();
    }
    for (number, line) in (2..).zip(lines) {
        let Some(line) = line.strip_suffix(b"\r") else {
            return format!("line {number} (does not end with CR LF)");
        };
        if line.is_empty() {
            break;
        }
        let is_continued = line.starts_with(b" ") || line.starts_with(b"\t");
        if is_continued {
            return format!("line {number} (continues the line before)");
        }
        let Some(colon) = memchr::memchr(b':', line) else {
            return format!("line {number} (no colon)");
        };
        let (name, value) = line.split_at(colon);
        if !is_name(name) {
            return format!("line {number} (not a header name)");
        }
        if !is_value(value) {
            let mut shown = String::new();
            for byte in name.iter().take(LONGEST_NAME) {
                shown.push(char::from(*byte));
            }
            // Writing to a string cannot fail.
            let _ = write!(shown, " (control character in the value)");
            return shown;
        }
    }
    "too many header lines".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> Result<Option<ResponseHeader>, Fault> {
        read(text.as_bytes(), false, |_| {})
    }

    fn framing(lines: &str) -> Result<(Framing, bool), Fault> {
        let header = judged(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n"))?.unwrap();
        Ok((header.framing, header.persists))
    }

    #[test]
    fn a_response_has_one_way_to_end() {
        let (length, chunked, close) = (Framing::Length(5), Framing::Chunked, Framing::Close);
        for (lines, expected) in [
            ("", (close, false)),
            ("Content-Length: 5\r\n", (length, true)),
            ("content-length:5\r\nContent-Length: 5, 5\r\n", (length, true)),
            ("Transfer-Encoding: Chunked\r\n", (chunked, true)),
            ("Transfer-Encoding: identity\r\nContent-Length: 5\r\n", (length, true)),
            ("Transfer-Encoding: identity, chunked\r\n", (chunked, true)),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", (chunked, false)),
            ("Content-Length: 5\r\nConnection: x, Close\r\n", (length, false)),
        ] {
            assert_eq!(framing(lines).unwrap(), expected, "{lines:?}");
        }
        for value in ["", "-3", "+3", "3 4", "3, 4", "0x3", "3,", "1111111111111111111"] {
            let lines = format!("Content-Length: {value}\r\n");
            assert_eq!(framing(&lines).unwrap_err(), LENGTH, "{value:?}");
        }
        for value in ["gzip", "gzip, chunked", "chunked, gzip", "chunked, chunked", "chunked;a=b"] {
            let lines = format!("Transfer-Encoding: {value}\r\n");
            assert_eq!(framing(&lines).unwrap_err(), CODING, "{value:?}");
        }
    }

    #[test]
    fn a_response_without_a_body_ends_with_its_header() {
        for (status, is_to_head) in [(200, true), (103, false), (204, false), (304, false)] {
            let text = format!("HTTP/1.1 {status} x\r\nContent-Length: 5\r\n\r\n");
            let header = read(text.as_bytes(), is_to_head, |_| {}).unwrap().unwrap();
            assert_eq!((header.framing, header.persists), (Framing::Length(0), true), "{status}");
            assert_eq!(header.content_length, Some(5));
        }
        let old = judged("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n").unwrap().unwrap();
        assert_eq!((old.framing, old.persists), (Framing::Length(5), false));
    }

    #[test]
    fn a_server_that_speaks_another_protocol_is_reported() {
        for (text, hint) in [
            ("\0\0\x12\x04\0\0\0\0\0\0\0", "protocol = \"h2\""),
            ("\x15\x03\x01\0\x02\x02\x46", "add [upstream.tls]"),
        ] {
            let fault = judged(text).err().map(|fault| fault.to_string()).unwrap_or_default();
            assert!(fault.starts_with("response header malformed: status line"), "{fault}");
            assert!(fault.contains(hint), "{fault}");
        }
    }

    #[test]
    fn an_incomplete_header_is_waited_for_as_long_as_it_can_be_valid() {
        for text in ["", "H", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200\r\nA: b\r\n"]
        {
            assert_eq!(judged(text), Ok(None), "{text:?}");
        }
        for text in ["S", "HTTP/2", "HTTP/1.1 20\r\n", "HTTP/1.1 099 x\r\n", "HTTP/1.1 200OK\r\n"] {
            let status_line = Fault::Malformed(STATUS_LINE.to_owned());
            assert_eq!(judged(text), Err(status_line), "{text:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(LONGEST));
        assert_eq!(judged(&endless), Err(Fault::TooLarge));
        assert_eq!(judged(&format!("{endless}\r\n\r\n")), Err(Fault::TooLarge));
    }

    #[test]
    fn of_a_header_only_names_are_shown_up_to_a_length() {
        let name = "N".repeat(LONGEST_NAME);
        let many = "A: b\r\n".repeat(MOST_LINES + 1);
        for (lines, expected) in [
            (
                format!("{}: a\x07b\r\n", "N".repeat(1000)),
                &*format!("{name} (control character in the value)"),
            ),
            ("A: b\r\n c\r\n".to_owned(), "line 3 (continues the line before)"),
            ("A: b\nC: d\r\n".to_owned(), "line 2 (does not end with CR LF)"),
            ("secret\r\n".to_owned(), "line 2 (no colon)"),
            ("A b: c\r\n".to_owned(), "line 2 (not a header name)"),
            (many, "too many header lines"),
        ] {
            let fault = framing(&lines).unwrap_err();
            assert_eq!(fault, Fault::Malformed(expected.to_owned()), "{lines:?}");
        }
        let blank = framing("Content-Length : 5\r\n").unwrap_err();
        assert_eq!(blank, Fault::Malformed("line 2 (not a header name)".to_owned()));
    }
}
