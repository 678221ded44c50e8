//! Checks that a request header can be read in only one way.
//!
//! Servers are lenient in different ways. A request header that two parsers could read differently
//! is rejected here (RFC 9112, sections 2.2, 3 and 6; such attacks are known as request smuggling).
//! With HTTP/1 the raw bytes are checked, in one pass that also finds the parts and lines; nothing
//! parses them again. An HTTP/2 header is first written in HTTP/1 form, and that form is checked,
//! because it is what the service gets. A header that passes has one reading, and the body after it
//! has one length. `response_header` checks the headers of services just as strictly.

use std::ops::Range;

use http::Version;

use super::request_target::{judge_host, judge_target, path_of, strip_scheme};
use crate::message::header::lines::{Line, Span};
use crate::message::header::syntax::{end_of_header, is_token_byte, parse_length, split_line};
use crate::message::header::{all, elements, offers_websocket, trim};
use crate::message::rejection::Rejection;

/// Limits of a request header.
#[derive(Clone, Copy, Debug)]
pub struct HeaderLimits {
    /// In total.
    pub bytes: usize,
    pub lines: usize,
    pub target: usize,
}

/// A request header that passed, and the positions of its parts.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct RequestHeader {
    /// Bytes up to and including the empty line.
    pub length: usize,
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
    pub framing: Framing,
    /// Whether the request offers to become a WebSocket.
    pub wants_websocket: bool,
    /// Whether the connection may serve another request after this one (RFC 9112, section 9.3).
    pub persists: bool,
    /// Whether `Connection` nominates headers.
    pub nominates: bool,
    /// Whether `TE` says that trailers are accepted.
    pub accepts_trailers: bool,
}

/// Method, path and host of a request header that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestSummary<'a> {
    pub method: &'a str,
    /// Begins with `/`, or is only the query, or is empty.
    pub path_and_query: &'a str,
    /// As in the request header, with its port; absent only where that is allowed.
    pub host: Option<&'a str>,
}

impl<'a> RequestSummary<'a> {
    /// Reads a valid request header of any length; `None` for others.
    pub fn read(text: &'a [u8]) -> Option<Self> {
        let limits = HeaderLimits { bytes: usize::MAX, lines: usize::MAX, target: usize::MAX };
        let header = self::read(text, limits, |_| true, |_| {}).ok()??;
        Some(Self {
            method: header.method.text(text),
            path_and_query: header.path_and_query.text(text),
            host: header.host.map(|host| host.text(text)),
        })
    }

    pub fn path(&self) -> &'a str {
        self.path_and_query.split('?').next().unwrap_or_default()
    }
}

/// What follows a request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// This many bytes of body; 0 if there is no body.
    Length(u64),
    Chunked,
}

/// Checks what has been read so far, and calls `each` with every header line in order. `None`: it
/// is incomplete, and valid so far.
///
/// `is_health` says whether a path may be requested without a Host.
///
/// # Errors
/// The rejection. The connection cannot be used after it. `each` may have been called before.
pub fn read(
    read: &[u8],
    limits: HeaderLimits,
    is_health: impl Fn(&[u8]) -> bool,
    each: impl FnMut(Line),
) -> Result<Option<RequestHeader>, Rejection> {
    // Some old clients send one empty line before a request (RFC 9112, section 2.2).
    let begin = if read.starts_with(b"\r\n") { 2 } else { 0 };
    let Some(end) = end_of_header(read, begin) else {
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
    judge_lines(lines, &request, end, limits, is_health, each).map(Some)
}

/// Checks the original request that a trusted proxy describes in `X-Forwarded-Method`, `-Uri` and
/// `-Host`.
/// What passes is ASCII.
///
/// # Errors
/// The rejection.
pub fn judge_forwarded(
    method: &[u8],
    target: &[u8],
    host: &[u8],
    limits: HeaderLimits,
) -> Result<(), Rejection> {
    judge_method(method, &FORWARDED)?;
    judge_target(target, limits, &FORWARDED)?;
    if !target.starts_with(b"/") {
        return Err(Rejection::BadRequest("X-Forwarded-Uri must begin with \"/\""));
    }
    judge_host(host, &FORWARDED)
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

const FORWARDED: Messages = Messages {
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

const INVALID_LENGTH: Rejection = Rejection::BadRequest("Content-Length is not a number");

const MALFORMED_LINE: Rejection = Rejection::BadRequest("a header line is malformed");

const MALFORMED_REQUEST_LINE: Rejection = Rejection::BadRequest("the request line is malformed");

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
    /// Reads the request line at `range`.
    fn parse(text: &[u8], range: Range<usize>, limits: HeaderLimits) -> Result<Self, Rejection> {
        let begin = range.start;
        let line = text.get(range).unwrap_or_default();
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
        let length = path_of(text.get(path..to).unwrap_or_default()).len();
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

fn judge_lines(
    lines: LineSpans<'_>,
    request: &RequestLine,
    length: usize,
    limits: HeaderLimits,
    is_health: impl Fn(&[u8]) -> bool,
    mut each: impl FnMut(Line),
) -> Result<RequestHeader, Rejection> {
    let text = lines.text;
    let is_http_10 = request.version == Version::HTTP_10;
    let mut found = RequestHeader {
        length,
        method: request.method,
        path_and_query: request.path_and_query,
        path: request.path,
        authority: request.authority,
        host: None,
        version: request.version,
        lines: 0,
        content_length: None,
        framing: Framing::Length(0),
        wants_websocket: false,
        persists: !is_http_10,
        nominates: false,
        accepts_trailers: false,
    };
    let mut closes = false;
    let mut nominated = 0;
    let mut is_chunked = false;
    for (count, line) in lines.enumerate() {
        if count >= limits.lines {
            return Err(Rejection::HeadersTooLarge);
        }
        let line = line?;
        let at = line.start;
        let line = text.get(line).and_then(|line| split_line(at, line)).ok_or(MALFORMED_LINE)?;
        found.lines = count + 1;
        each(line);
        let (name, value) = (line.name.of(text), line.value.of(text));
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        match name.len() {
            2 if is(b"te") => {
                found.accepts_trailers |= elements(value).any(|one| {
                    let name = one.split(|byte| *byte == b';').next().unwrap_or_default();
                    trim(name).eq_ignore_ascii_case(b"trailers")
                });
            }
            4 if is(b"host") && found.host.replace(line.value).is_some() => {
                return Err(Rejection::BadRequest("more than one Host"));
            }
            7 if is(b"upgrade") => {
                // Upgrade is ignored in HTTP/1.0 (RFC 9110, section 7.8).
                found.wants_websocket |= !is_http_10 && offers_websocket(value);
            }
            10 if is(b"connection") => {
                closes |= judge_connection(value, &mut nominated, &mut found)?;
            }
            14 if is(b"content-length") => {
                let length = parse_length(value).ok_or(INVALID_LENGTH)?;
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
    found.framing = match (found.content_length, is_chunked) {
        (Some(_), true) => {
            return Err(Rejection::BadRequest("both Content-Length and Transfer-Encoding"));
        }
        (None, true) => Framing::Chunked,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(found)
}

/// Checks a `Connection` line. `nominated` counts the elements of all such lines. Returns whether
/// the line contains `close`.
fn judge_connection(
    value: &[u8],
    nominated: &mut usize,
    found: &mut RequestHeader,
) -> Result<bool, Rejection> {
    /// Headers that no client may withhold from a service.
    const KEPT: [&[u8]; 4] =
        [b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"];
    let mut closes = false;
    for name in value.split(|b| *b == b',').map(trim) {
        *nominated += 1;
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
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
