//! From pingora's errors to responses, and to the words of the log.
//!
//! An error of pingora's may quote what it read, with whatever secrets are in it: nothing of
//! its texts is logged. From a response header that cannot be read only the name of the line at
//! fault is.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use humantime::format_duration;
use pingora::{Error, ErrorSource, ErrorType};

use crate::clock::Clock;
use crate::rejection::Rejection;
use crate::seldom::SeldomEach;

/// A response of a service that the gateway rejects. The reason is the error's context and is
/// logged: it names the header line at fault.
pub const REFUSED: ErrorType = ErrorType::new("refused response");

/// Bytes of a header's name that are logged.
const LONGEST_NAME: usize = 64;

/// How the cause begins where a response header cannot be read.
const MALFORMED: &str = "response header malformed: ";

/// Kinds of such causes that are logged apart.
const KINDS_MALFORMED: usize = 16;

/// The response to an error on the way, or `None` when the client is gone.
pub fn rejection(error: &Error) -> Option<Rejection> {
    match error.esource() {
        ErrorSource::Upstream => Some(match error.etype() {
            ErrorType::ConnectTimedout
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout => Rejection::GatewayTimeout,
            _ => Rejection::BadGateway,
        }),
        ErrorSource::Downstream => match error.etype() {
            ErrorType::ReadTimedout => Some(Rejection::RequestTimeout),
            ErrorType::ReadError if io_kind(error) == Some(io::ErrorKind::TimedOut) => {
                Some(Rejection::RequestTimeout)
            }
            // The edge's own verdict on a body that it passes on.
            ErrorType::ReadError if io_kind(error) == Some(io::ErrorKind::InvalidData) => {
                Some(Rejection::BadRequest("the body is malformed"))
            }
            ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::WriteTimedout
            | ErrorType::ConnectionClosed
            | ErrorType::H2Error => None,
            _ => Some(Rejection::BadRequest("the request is malformed")),
        },
        ErrorSource::Internal | ErrorSource::Unset => match error.etype() {
            // pingora's own refusals of a request head: hop-by-hop nominations, authority.
            ErrorType::InvalidHTTPHeader | ErrorType::HTTPStatus(400) => {
                Some(Rejection::BadRequest("the request is malformed"))
            }
            _ => Some(Rejection::InternalError),
        },
    }
}

/// A failure, as it is logged.
pub struct Failure<'a> {
    pub request_id: &'a str,
    pub route: Option<&'a str>,
    /// The upstream's name.
    pub upstream: Option<&'a str>,
    pub server: Option<SocketAddr>,
    pub cause: Cow<'static, str>,
    /// Whether the connection had served a request before.
    pub is_reused: bool,
}

/// The log of failures, each upstream's by the kinds of their causes.
pub struct Failures(SeldomEach<(String, Cow<'static, str>)>);

impl Failures {
    pub fn new(clock: Clock) -> Self {
        Self(SeldomEach::new(clock))
    }

    /// A valid request has failed.
    pub fn log(&self, failure: &Failure<'_>) {
        let upstream = failure.upstream.unwrap_or_default().to_owned();
        let Some(suppressed) = self.0.suppressed((upstream, kind(failure.cause.clone()))) else {
            return;
        };
        tracing::warn!(
            request_id = failure.request_id,
            route = failure.route,
            upstream = failure.upstream,
            server = failure.server.map(tracing::field::display),
            cause = &*failure.cause,
            reused = failure.is_reused.then_some(true),
            suppressed,
            "request failed"
        );
    }

    /// A connection to a server failed; another server may still serve the request.
    pub fn log_passed_over(&self, failure: &Failure<'_>) {
        let server = failure.server.map(|server| server.to_string()).unwrap_or_default();
        let Some(suppressed) = self.0.suppressed((server, kind(failure.cause.clone()))) else {
            return;
        };
        tracing::warn!(
            request_id = failure.request_id,
            upstream = failure.upstream,
            server = failure.server.map(tracing::field::display),
            cause = &*failure.cause,
            suppressed,
            "cannot connect to a server, trying another"
        );
    }
}

/// The cause, or the kind that it shares with others: the service chooses the names of header
/// lines, and they must neither fill the log nor displace other kinds.
fn kind(cause: Cow<'static, str>) -> Cow<'static, str> {
    let Some(fault) = cause.strip_prefix(MALFORMED) else { return cause };
    let sum: usize = fault.bytes().map(usize::from).sum();
    format!("{MALFORMED}{}", sum % KINDS_MALFORMED).into()
}

/// The timeouts of an upstream, with the names of their keys.
pub struct Patience {
    pub connect: Duration,
    pub write: Duration,
    pub read: Duration,
    pub read_key: &'static str,
}

/// Why a request could not be served, in words.
pub fn cause(error: &Error, patience: &Patience) -> Cow<'static, str> {
    let root = innermost(error);
    let context = root.context.as_ref().map_or("", |context| context.as_str());
    let is_in_header = context.contains("response header");
    match root.etype() {
        ErrorType::ConnectRefused => "connection refused".into(),
        ErrorType::ConnectNoRoute => "no route to the server".into(),
        ErrorType::ConnectTimedout => {
            let time = format_duration(patience.connect);
            format!("connect timed out (connect_timeout {time})").into()
        }
        ErrorType::ConnectError | ErrorType::SocketError | ErrorType::BindError => {
            with_reason("cannot connect", error)
        }
        ErrorType::ReadTimedout => {
            let (key, time) = (patience.read_key, format_duration(patience.read));
            if is_in_header {
                format!("no response within {key} ({time})").into()
            } else {
                format!("response body stalled for {key} ({time})").into()
            }
        }
        ErrorType::WriteTimedout => {
            let time = format_duration(patience.write);
            format!("request not taken within write_timeout ({time})").into()
        }
        ErrorType::ConnectionClosed if context.ends_with("bytes already read: 0") => {
            "closed before a response".into()
        }
        ErrorType::ConnectionClosed if is_in_header => "closed within the response header".into(),
        ErrorType::ConnectionClosed | ErrorType::Custom("PrematureBodyEnd") => {
            "closed before the end of the response body".into()
        }
        ErrorType::ReadError | ErrorType::WriteError => match io_kind(error) {
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                "connection reset".into()
            }
            _ if *root.etype() == ErrorType::ReadError => {
                with_reason("cannot read the response", error)
            }
            _ => with_reason("cannot send the request", error),
        },
        ErrorType::InvalidHTTPHeader => malformed(context).into(),
        ErrorType::Custom("InvalidChunk" | "InvalidTrailerEnd") => {
            "response body malformed: chunked encoding".into()
        }
        kind if *kind == REFUSED => format!("response header rejected: {context}").into(),
        ErrorType::HTTPStatus(_) => "no server is left to try".into(),
        kind => format!("internal error ({})", kind.as_str()).into(),
    }
}

/// Why no connection to a server can be made, in words.
pub fn cause_of_connect(error: &Error, connect: Duration) -> Cow<'static, str> {
    let none = Duration::ZERO;
    cause(error, &Patience { connect, write: none, read: none, read_key: "read_timeout" })
}

/// The words for an I/O error for which the system gave a reason.
fn with_reason(what: &'static str, error: &Error) -> Cow<'static, str> {
    match error.root_cause().downcast_ref::<io::Error>() {
        Some(reason) => format!("{what}: {reason}").into(),
        None => what.into(),
    }
}

/// What is wrong with a response header, by the text of pingora's error.
fn malformed(context: &str) -> String {
    const QUOTE: &str = "buf: ";
    if let Some(quoted) = context.strip_prefix(QUOTE) {
        return format!("{MALFORMED}{}", fault(&unescape(quoted)));
    }
    if context.contains("Content-Length") {
        return "response header rejected: Content-Length is invalid or has several values"
            .to_owned();
    }
    if context.starts_with("received 101") {
        return format!("response header rejected: {UNASKED}");
    }
    if context.starts_with("Response header larger") {
        return "response header too large".to_owned();
    }
    "response header malformed".to_owned()
}

/// Of a `101` to a request that did not ask for it.
pub const UNASKED: &str = "Upgrade (101 to a request that is no WebSocket handshake)";

/// What pingora found wrong in these bytes, without their values.
fn fault(header: &[u8]) -> String {
    let mut lines =
        header.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let is_status = |line: &[u8]| {
        let code = line.strip_prefix(b"HTTP/1.0 ").or(line.strip_prefix(b"HTTP/1.1 "));
        code.and_then(|code| code.first_chunk::<3>())
            .is_some_and(|code| code.iter().all(u8::is_ascii_digit))
    };
    if !lines.next().is_some_and(is_status) {
        return "status line".to_owned();
    }
    for (number, line) in (2..).zip(lines.take_while(|line| !line.is_empty())) {
        let is_continued = line.starts_with(b" ") || line.starts_with(b"\t");
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            _ if is_continued => (&b""[..], line),
            Some(colon) => line.split_at(colon),
            None => return format!("line {number} (no colon)"),
        };
        if !is_continued && !is_name(name.trim_ascii_end()) {
            return format!("line {number} (not a header name)");
        }
        if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            let mut place = String::new();
            for byte in name.trim_ascii_end().iter().take(LONGEST_NAME) {
                place.push(char::from(*byte));
            }
            if place.is_empty() {
                // Writing to a string cannot fail.
                let _ = write!(place, "line {number}");
            }
            return format!("{place} (control character in the value)");
        }
    }
    "too many header lines".to_owned()
}

fn is_name(name: &[u8]) -> bool {
    let is_legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is_legal)
}

/// The reverse of [`slice::escape_ascii`].
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'x') => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = (digit().unwrap_or_default(), digit().unwrap_or_default());
                u8::try_from(high << 4 | low).unwrap_or_default()
            }
            Some(byte) => byte,
            None => break,
        });
    }
    bytes
}

/// The error that the others were made of.
fn innermost(error: &Error) -> &Error {
    let inner = error.cause.as_deref().and_then(|cause| cause.downcast_ref::<Box<Error>>());
    inner.map_or(error, |inner| innermost(inner))
}

/// The kind of the I/O error at the root of an error.
fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_escaped_is_read_back() {
        let all: Vec<u8> = (0..=255).chain(*b"\\n\\x").collect();
        assert_eq!(unescape(&all.escape_ascii().to_string()), all);
    }

    #[test]
    fn of_a_header_only_names_are_shown_and_not_too_much_of_them() {
        let long = format!("HTTP/1.1 200 OK\r\n{}: a\x07b\r\n\r\n", "N".repeat(1000));
        let shown = format!("{} (control character in the value)", "N".repeat(LONGEST_NAME));
        assert_eq!(fault(long.as_bytes()), shown);
        let folded = "HTTP/1.1 200 OK\r\nA: b\r\n c\x01\r\n\r\n";
        assert_eq!(fault(folded.as_bytes()), "line 3 (control character in the value)");
    }
}
