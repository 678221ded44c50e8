//! Checks that a request header can be read in only one way.
//!
//! Servers are lenient in different ways. A request header that two parsers could read differently
//! is rejected here (RFC 9112, sections 2.2, 3 and 6; such attacks are known as request smuggling).
//! With HTTP/1 the raw bytes are checked, in one pass that also finds the parts and lines; nothing
//! parses them again. HTTP/2 has its own framing. There the header that HTTP/1 would have is
//! checked, because that is what the service gets. A header that passes has one reading, and its
//! body has one length. `response_header` checks the headers of services as strictly.

use std::net::Ipv6Addr;
use std::ops::Range;
use std::sync::LazyLock;

use http::Version;
use memchr::memmem::Finder;

use super::request_target::{judge_target, path_of, strip_scheme};
use crate::message::header::lines::{Line, Span};
use crate::message::header::{all, elements, is_blank, offers_websocket, trim};
use crate::message::rejection::Rejection;

/// Limits of a request header.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// In total.
    pub bytes: usize,
    pub lines: usize,
    pub target: usize,
}

/// A request header that passed, and the positions of its parts.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead {
    pub head: Head,
    pub method: Span,
    /// The target without scheme and authority: empty, or begins with `/` or `?`.
    pub path_and_query: Span,
    /// The same without the query.
    pub path: Span,
    /// The authority of a target in absolute form; it equals the Host line.
    pub authority: Option<Span>,
    /// The value of the Host line.
    pub host: Option<Span>,
    pub version: Version,
    /// The number of header lines.
    pub lines: usize,
    pub content_length: Option<u64>,
    /// Whether the connection may serve another request after this one (RFC 9112, section 9.3).
    pub persists: bool,
    /// Whether `Connection` nominates headers.
    pub nominates: bool,
    /// Whether `TE` says that trailers are accepted.
    pub takes_trailers: bool,
}

/// How to handle a request whose header passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes up to and including the empty line.
    pub length: usize,
    pub framing: Framing,
    /// Whether the request asks for a WebSocket.
    pub asks_websocket: bool,
}

/// Method, path and host of a request header that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    pub method: &'a str,
    /// Begins with `/`, or is only the query, or is empty.
    pub path_and_query: &'a str,
    /// As in the request header, with its port; absent only where that is allowed.
    pub host: Option<&'a str>,
}

impl<'a> Asked<'a> {
    /// Reads a request header that [`judge`] accepts; `None` for others.
    pub fn read(head: &'a [u8]) -> Option<Self> {
        let limits = HeadLimits { bytes: usize::MAX, lines: usize::MAX, target: usize::MAX };
        let read = self::read(head, limits, |_| true, |_| {}).ok()??;
        Some(Self {
            method: read.method.text(head),
            path_and_query: read.path_and_query.text(head),
            host: read.host.map(|host| host.text(head)),
        })
    }

    pub fn path(&self) -> &'a str {
        self.path_and_query.split('?').next().unwrap_or_default()
    }
}

/// What follows a request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// This many bytes of body; often none.
    Length(u64),
    Chunked,
}

/// Checks what has been read so far. `None`: it is incomplete, and valid so far.
///
/// `is_health` says whether a path may be requested without a Host.
///
/// # Errors
/// The rejection. The connection cannot be used after it.
pub fn judge(
    read: &[u8],
    limits: HeadLimits,
    is_health: impl Fn(&[u8]) -> bool,
) -> Result<Option<Head>, Rejection> {
    let read = self::read(read, limits, is_health, |_| {})?;
    Ok(read.map(|request| request.head))
}

/// The same, and calls `each` with every header line in order.
///
/// # Errors
/// As [`judge`]. `each` may have been called before.
pub fn read(
    read: &[u8],
    limits: HeadLimits,
    is_health: impl Fn(&[u8]) -> bool,
    each: impl FnMut(Line),
) -> Result<Option<RequestHead>, Rejection> {
    // Some old clients send one empty line before a request (RFC 9112, section 2.2).
    let begin = if read.starts_with(b"\r\n") { 2 } else { 0 };
    let Some(end) = end_of_head(read, begin) else {
        if has_bare_line_feed(read.get(begin..).unwrap_or_default()) {
            return Err(BARE_LINE_FEED);
        }
        return if read.len() > limits.bytes { Err(Rejection::HeadersTooLarge) } else { Ok(None) };
    };
    if end > limits.bytes {
        return Err(Rejection::HeadersTooLarge);
    }
    let mut lines = LineSpans { text: read.get(..end).unwrap_or_default(), at: begin };
    let first = lines.next().ok_or(MALFORMED_REQUEST_LINE)??;
    let request = RequestLine::parse(read, first, limits)?;
    judge_fields(lines, &request, end, limits, is_health, each).map(Some)
}

/// Checks the request that a trusted proxy describes in `X-Forwarded-Method`, `-Uri` and `-Host`.
/// What passes is ASCII.
///
/// # Errors
/// The rejection.
pub fn judge_told(
    method: &[u8],
    target: &[u8],
    host: &[u8],
    limits: HeadLimits,
) -> Result<(), Rejection> {
    judge_method(method, &TOLD)?;
    judge_target(target, limits, &TOLD)?;
    if !target.starts_with(b"/") {
        return Err(Rejection::BadRequest("X-Forwarded-Uri must begin with \"/\""));
    }
    judge_host(host, &TOLD)
}

/// Messages of rejections, which say where the invalid part is.
pub(super) struct Messages {
    pub(super) method: &'static str,
    pub(super) host: &'static str,
    pub(super) not_ascii: &'static str,
    pub(super) target_byte: &'static str,
    pub(super) backtick: &'static str,
}

const REQUEST: Messages = Messages {
    method: "this method is not supported",
    host: "Host is malformed",
    not_ascii: "request target: bytes outside ASCII must be percent-encoded",
    target_byte: "request target: control bytes, spaces and \" # < > \\ must be percent-encoded",
    backtick: "request target: ` must be percent-encoded in a path",
};

const TOLD: Messages = Messages {
    method: "the method in X-Forwarded-Method is not supported",
    host: "X-Forwarded-Host is malformed",
    not_ascii: "X-Forwarded-Uri: bytes outside ASCII must be percent-encoded",
    target_byte: "X-Forwarded-Uri: control bytes, spaces and \" # < > \\ must be percent-encoded",
    backtick: "X-Forwarded-Uri: ` must be percent-encoded in a path",
};

/// With this number of elements or more, `Connection` is rejected.
const MOST_NOMINATED: usize = 10;

const BARE_LINE_FEED: Rejection = Rejection::BadRequest("a line does not end with CR LF");

const SECOND_LENGTH: Rejection = Rejection::BadRequest("more than one Content-Length");

const MALFORMED_REQUEST_LINE: Rejection = Rejection::BadRequest("the request line is malformed");

/// The end of a header that begins at `begin`, its empty line included.
pub(super) fn end_of_head(read: &[u8], begin: usize) -> Option<usize> {
    static EMPTY_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
    EMPTY_LINE.find(read.get(begin..)?).map(|at| begin + at + 4)
}

fn has_bare_line_feed(text: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', text)
        .any(|at| at.checked_sub(1).and_then(|at| text.get(at)) != Some(&b'\r'))
}

/// The lines of a header, without their CR LF, up to the empty line. A line that ends with LF alone
/// is an error.
struct LineSpans<'a> {
    text: &'a [u8],
    at: usize,
}

impl Iterator for LineSpans<'_> {
    type Item = Result<Range<usize>, Rejection>;

    fn next(&mut self) -> Option<Self::Item> {
        let begin = self.at;
        let rest = self.text.get(begin..)?;
        let length = memchr::memchr(b'\n', rest)?;
        self.at = begin + length + 1;
        match length.checked_sub(1) {
            Some(0) if rest.first() == Some(&b'\r') => None,
            Some(length) if rest.get(length) == Some(&b'\r') => Some(Ok(begin..begin + length)),
            _ => Some(Err(BARE_LINE_FEED)),
        }
    }
}

struct RequestLine {
    method: Span,
    path_and_query: Span,
    path: Span,
    authority: Option<Span>,
    version: Version,
}

impl RequestLine {
    /// Reads the request line at `place`.
    fn parse(head: &[u8], place: Range<usize>, limits: HeadLimits) -> Result<Self, Rejection> {
        let begin = place.start;
        let line = head.get(place).unwrap_or_default();
        let mut blanks = memchr::memchr_iter(b' ', line);
        let (Some(first), Some(second), None) = (blanks.next(), blanks.next(), blanks.next())
        else {
            return Err(MALFORMED_REQUEST_LINE);
        };
        let part = |from, to| line.get(from..to).unwrap_or_default();
        let (method, target) = (part(0, first), part(first + 1, second));
        judge_method(method, &REQUEST)?;
        let version = match part(second + 1, line.len()) {
            b"HTTP/1.1" => Version::HTTP_11,
            b"HTTP/1.0" => Version::HTTP_10,
            _ => return Err(MALFORMED_REQUEST_LINE),
        };
        judge_target(target, limits, &REQUEST)?;
        let (from, to) = (begin + first + 1, begin + second);
        let (authority, path) = match target {
            [b'/', ..] => (None, from),
            _ => {
                let rest = strip_scheme(target).ok_or(MALFORMED_REQUEST_LINE)?;
                let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
                let authority = to - rest.len()..to - rest.len() + end;
                (Some(Span::new(authority.clone())), authority.end)
            }
        };
        let length = path_of(head.get(path..to).unwrap_or_default()).len();
        Ok(Self {
            method: Span::new(begin..begin + first),
            path_and_query: Span::new(path..to),
            path: Span::new(path..path + length),
            authority,
            version,
        })
    }
}

fn judge_method(method: &[u8], messages: &Messages) -> Result<(), Rejection> {
    let is_method = (1..=32).contains(&method.len())
        && method.first().is_some_and(u8::is_ascii_uppercase)
        && all(method, |b| b.is_ascii_uppercase() || b == b'-');
    if !is_method || matches!(method, b"CONNECT" | b"TRACE") {
        return Err(Rejection::BadRequest(messages.method));
    }
    Ok(())
}

fn judge_fields(
    lines: LineSpans<'_>,
    request: &RequestLine,
    length: usize,
    limits: HeadLimits,
    is_health: impl Fn(&[u8]) -> bool,
    mut each: impl FnMut(Line),
) -> Result<RequestHead, Rejection> {
    let text = lines.text;
    let is_http_10 = request.version == Version::HTTP_10;
    let mut found = RequestHead {
        head: Head { length, framing: Framing::Length(0), asks_websocket: false },
        method: request.method,
        path_and_query: request.path_and_query,
        path: request.path,
        authority: request.authority,
        host: None,
        version: request.version,
        lines: 0,
        content_length: None,
        persists: !is_http_10,
        nominates: false,
        takes_trailers: false,
    };
    let mut closes = false;
    let mut nominated = 0;
    let mut is_chunked = false;
    for (count, line) in lines.enumerate() {
        if count >= limits.lines {
            return Err(Rejection::HeadersTooLarge);
        }
        let line = split_field(text, line?)?;
        found.lines = count + 1;
        each(line);
        let (name, value) = (line.name.of(text), line.value.of(text));
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            2 if is(b"te") => {
                found.takes_trailers |= elements(value).any(|one| {
                    let name = one.split(|byte| *byte == b';').next().unwrap_or_default();
                    trim(name).eq_ignore_ascii_case(b"trailers")
                });
            }
            4 if is(b"host") && found.host.replace(line.value).is_some() => {
                return Err(Rejection::BadRequest("more than one Host"));
            }
            7 if is(b"upgrade") => {
                // Upgrade is ignored in HTTP/1.0 (RFC 9110, section 7.8).
                found.head.asks_websocket |= !is_http_10 && offers_websocket(value);
            }
            10 if is(b"connection") => {
                closes |= judge_connection(value, &mut nominated, &mut found)?;
            }
            14 if is(b"content-length") => {
                let length = parse_length(value)?;
                if found.content_length.replace(length).is_some() {
                    return Err(SECOND_LENGTH);
                }
            }
            17 if is(b"transfer-encoding") => {
                if is_chunked || is_http_10 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Rejection::BadRequest(
                        "Transfer-Encoding must be exactly one \"chunked\"",
                    ));
                }
                is_chunked = true;
            }
            _ => {}
        }
    }
    match found.host {
        Some(host) => {
            let host = host.of(text);
            judge_host(host, &REQUEST)?;
            // Byte by byte, because a service may compare them like that.
            if request.authority.is_some_and(|authority| authority.of(text) != host) {
                return Err(Rejection::BadRequest("Host and target name different hosts"));
            }
        }
        None if is_health(request.path.of(text)) => {}
        None => return Err(Rejection::BadRequest("Host is missing")),
    }
    found.persists &= !closes;
    found.head.framing = match (found.content_length, is_chunked) {
        (Some(_), true) => {
            return Err(Rejection::BadRequest("both Content-Length and Transfer-Encoding"));
        }
        (None, true) => Framing::Chunked,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(found)
}

/// Name and value of the header line at `place`; the value has no blanks at its ends.
fn split_field(text: &[u8], place: Range<usize>) -> Result<Line, Rejection> {
    const MALFORMED: Rejection = Rejection::BadRequest("a header line is malformed");
    let Range { start, end } = place;
    let line = text.get(place).unwrap_or_default();
    // A line that begins with a blank (obsolete folding) has no valid name before its colon.
    let colon = memchr::memchr(b':', line).ok_or(MALFORMED)?;
    let (name, rest) = line.split_at(colon);
    let value = rest.get(1..).unwrap_or_default();
    if !is_name(name) || !is_value(value) {
        return Err(MALFORMED);
    }
    let blanks = value.iter().take_while(|byte| is_blank(**byte)).count();
    let begin = start + colon + 1 + blanks;
    let value = Span::new(begin..(begin + trim(value).len()).min(end));
    Ok(Line { name: Span::new(start..start + colon), value })
}

/// Name and value of a line without its line end; the value has no blanks at its ends. `None` if
/// the line is malformed.
pub fn name_and_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let found = split_field(line, 0..line.len()).ok()?;
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
fn is_token_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e)
        && !matches!(byte, b'"' | b'(' | b')' | b',' | b'/' | b':'..=b'@' | b'['..=b']' | b'{' | b'}')
}

pub(super) fn parse_length(value: &[u8]) -> Result<u64, Rejection> {
    let is_number = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let number = is_number.then(|| std::str::from_utf8(value).ok()?.parse().ok()).flatten();
    number.ok_or(Rejection::BadRequest("Content-Length is not a number"))
}

/// A host name or address, with or without a port.
fn judge_host(host: &[u8], messages: &Messages) -> Result<(), Rejection> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    // Most hosts are a name without a port.
    let is_host =
        !host.is_empty() && all(host, is_plain) || std::str::from_utf8(host).is_ok_and(is_host);
    if is_host { Ok(()) } else { Err(Rejection::BadRequest(messages.host)) }
}

fn is_host(host: &str) -> bool {
    let (is_name, rest) = match host.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((address, rest)) => (address.parse::<Ipv6Addr>().is_ok(), rest),
            None => return false,
        },
        None => {
            let (name, rest) = host.split_at(host.find(':').unwrap_or(host.len()));
            let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            (!name.is_empty() && name.bytes().all(legal), rest)
        }
    };
    let is_number =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    // An empty port means the default (RFC 3986, section 3.2.3).
    let is_port = |port: &str| port.is_empty() || is_number(port);
    is_name && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

/// Checks a `Connection` line. `nominated` counts the elements of all such lines. Returns whether
/// the line contains `close`.
fn judge_connection(
    value: &[u8],
    nominated: &mut usize,
    found: &mut RequestHead,
) -> Result<bool, Rejection> {
    /// Headers that no client may withhold from a service.
    const KEPT: [&[u8]; 4] =
        [b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"];
    let mut closes = false;
    for name in value.split(|b| *b == b',').map(trim) {
        *nominated += 1;
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        if *nominated >= MOST_NOMINATED
            || KEPT.iter().any(|kept| is(kept))
            || !name.iter().copied().all(is_token_byte)
        {
            return Err(Rejection::BadRequest("Connection is malformed"));
        }
        match name.len() {
            5 if is(b"close") => closes = true,
            // From HTTP/1.0 (RFC 9112, appendix C.2.2).
            10 if is(b"keep-alive") => found.persists = true,
            _ => found.nominates = true,
        }
    }
    Ok(closes)
}

#[cfg(test)]
mod tests;
