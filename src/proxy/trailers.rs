//! Trailers: which of them are announced and forwarded, in both directions.
//!
//! A header that is not forwarded is not forwarded as a trailer either, and neither is one that is
//! allowed only before the body. Trailers count towards the limits of their message's header.

use std::sync::LazyLock;

use http::header::TRAILER;

use super::body::{BadTrailers, WriteTrailers};
use super::compose::{is_among, is_of_connection, nominations};
use super::request::Request;
use crate::access::identity_headers::IdentityHeaders;
use crate::message::header::lines::{Lines, write_line};
use crate::message::header::reserved::HOP_BY_HOP;
use crate::message::header::syntax::{is_name, name_and_value};
use crate::message::header::{FoldedNames, Headers, elements, fold};
use crate::message::request_header::{Framing, HeaderLimits};
use crate::message::response_header::{Framing as ResponseFraming, ResponseHeader};

/// What is needed to check the trailers of a response.
pub struct Trailers {
    /// Bytes and header lines that the response header has used of the limits.
    used: (usize, usize),
    nominated: Vec<Box<[u8]>>,
    is_taken: bool,
}

impl Trailers {
    pub fn new(request: &Request, header: &ResponseHeader, lines: &Lines) -> Self {
        let nominates = header.nominates && header.framing == ResponseFraming::Chunked;
        Self {
            used: (header.length, header.lines),
            nominated: if nominates { nominations(lines) } else { Vec::new() },
            is_taken: request.header.accepts_trailers || request.is_http2,
        }
    }

    /// Writes the trailers for the client. They are checked even if the client does not accept any.
    pub fn to_client(&self, request: &Request) -> impl WriteTrailers {
        |lines: &[u8], out: &mut Vec<u8>| {
            let begin = out.len();
            response_trailers(request, lines, self.used, &self.nominated, out)?;
            if !self.is_taken {
                out.truncate(begin);
            }
            Ok(())
        }
    }
}

/// The trailer names that the client announced and that may be forwarded to the service.
pub fn announced_by_client(request: &Request) -> Option<Vec<u8>> {
    if request.header.framing != Framing::Chunked {
        return None;
    }
    let identity_headers = &request.policy.identity_headers;
    let names: Vec<&[u8]> = request
        .lines
        .values_of(&TRAILER)
        .flat_map(elements)
        .filter(|name| is_name(name) && passes_to_service(identity_headers, name, b"", false))
        .collect();
    (!names.is_empty()).then(|| names.join(&b", "[..]))
}

/// Whether a trailer may be forwarded to a service. Names are compared folded, because a service
/// may fold them.
fn passes_to_service(
    identity_headers: &IdentityHeaders,
    name: &[u8],
    value: &[u8],
    is_trusted: bool,
) -> bool {
    static OF_HEADERS: LazyLock<FoldedNames> = LazyLock::new(|| {
        let others = ["content-length", "host", "authorization", "cookie", "expect"];
        FoldedNames::new(HOP_BY_HOP.into_iter().chain(others))
    });
    const CONTENT: &[u8] = b"content_";
    let is_of_content = name
        .get(..CONTENT.len())
        .is_some_and(|begin| begin.iter().zip(CONTENT).all(|(byte, other)| fold(*byte) == *other));
    !(is_of_content
        || OF_HEADERS.contains(name)
        || identity_headers.strips(name, value, is_trusted))
}

/// Writes the trailers of a request for the service.
pub fn write_to_service(
    request: &Request,
    trailers: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), BadTrailers> {
    let limits = request.policy.header_limits;
    let identity_headers = &request.policy.identity_headers;
    let nominated = nominations(&request.lines);
    let route = request.route();
    let used = (request.header.length, request.header.lines);
    each_trailer(trailers, limits, used, |name, value| {
        let passes = passes_to_service(identity_headers, name, value, false)
            && !is_among(&nominated, name)
            && !route.is_some_and(|route| route.request_edits.removes(name));
        if passes {
            write_line(out, name, value);
        }
    })
}

/// Writes the trailers of a response for the client.
///
/// `used` are the bytes and lines of the response header, and `nominated` the names in its
/// `Connection`.
fn response_trailers(
    request: &Request,
    trailers: &[u8],
    used: (usize, usize),
    nominated: &[Box<[u8]>],
    out: &mut Vec<u8>,
) -> Result<(), BadTrailers> {
    let limits = request.policy.header_limits;
    let identity_headers = &request.policy.identity_headers;
    let route = request.route();
    each_trailer(trailers, limits, used, |name, value| {
        let passes = !(is_of_connection(name)
            || is_among(nominated, name)
            || name.eq_ignore_ascii_case(b"set-cookie")
            || name.eq_ignore_ascii_case(b"x-request-id")
            || identity_headers.cleans(name)
            || route.is_some_and(|route| route.response_edits.removes(name)));
        if passes {
            write_line(out, name, value);
        }
    })
}

/// Calls `each` with every trailer. `used` are the bytes and lines of the message's header, because
/// trailers count towards the same limits.
fn each_trailer(
    trailers: &[u8],
    limits: HeaderLimits,
    used: (usize, usize),
    mut each: impl FnMut(&[u8], &[u8]),
) -> Result<(), BadTrailers> {
    if used.0 + trailers.len() > limits.bytes {
        return Err(BadTrailers::TooLarge);
    }
    let mut lines = used.1;
    for line in trailers.split_inclusive(|byte| *byte == b'\n') {
        lines += 1;
        let line = line.strip_suffix(b"\r\n").ok_or(BadTrailers::Malformed)?;
        let (name, value) = name_and_value(line).ok_or(BadTrailers::Malformed)?;
        if lines > limits.lines {
            return Err(BadTrailers::TooLarge);
        }
        each(name, value);
    }
    Ok(())
}

/// The trailer names that the service announced and that may be forwarded to the client.
pub fn announced_by_service(request: &Request, lines: &Lines) -> Option<Vec<u8>> {
    let identity_headers = &request.policy.identity_headers;
    let passes = |name: &&[u8]| {
        is_name(name)
            && !is_of_connection(name)
            && !identity_headers.cleans(name)
            && !name.eq_ignore_ascii_case(b"set-cookie")
    };
    let names: Vec<&[u8]> = lines.values_of(&TRAILER).flat_map(elements).filter(passes).collect();
    (!names.is_empty()).then(|| names.join(&b", "[..]))
}
