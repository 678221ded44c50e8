//! Converts headers between the form of HTTP/1 and that of HTTP/2.
//!
//! Only this is converted: what the headers of a request may be was decided when they were written,
//! and those of a response are checked afterwards, in the form of HTTP/1, like any other.

use http::header::{HOST, TE, TRAILER};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};

use crate::message::header::lines::{each_parsed, write_line};
use crate::message::header::reserved::HOP_BY_HOP;

/// A request header in HTTP/1 form as one for HTTP/2; `None` if HTTP/2 cannot carry it.
/// `accepts_trailers`: whether to say that trailers are accepted.
pub fn request(header: &[u8], is_tls: bool, accepts_trailers: bool) -> Option<Request<()>> {
    let first = memchr::memchr(b'\n', header)?;
    let mut parts = header.get(..first)?.strip_suffix(b" HTTP/1.1\r")?.splitn(2, |b| *b == b' ');
    let (method, target) = (parts.next()?, parts.next()?);
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method).ok()?;
    let mut authority = None;
    let headers = request.headers_mut();
    each_parsed(header.get(first + 1..)?.strip_suffix(b"\r\n")?, |name, value| {
        if name == HOST && authority.is_none() {
            authority = Some(value);
        } else if !is_of_connection(&name) {
            headers.append(name, value);
        }
    });
    if accepts_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    match authority.as_ref().and_then(|value| Authority::try_from(value.as_bytes()).ok()) {
        Some(authority) => {
            uri.authority = Some(authority);
            uri.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
            *request.version_mut() = Version::HTTP_2;
        }
        // Without a host, `h2` sends no `:authority` only for a request that came as HTTP/1.1 (RFC
        // 9113, section 8.3.1).
        None => {
            *request.version_mut() = Version::HTTP_11;
            if let Some(host) = authority {
                request.headers_mut().insert(HOST, host);
            }
        }
    }
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    Some(request)
}

/// HTTP/2 has no such headers (RFC 9113, section 8.2.2).
fn is_of_connection(name: &HeaderName) -> bool {
    *name != TRAILER && HOP_BY_HOP.contains(&name.as_str())
}

/// Writes a response header in HTTP/1 form.
pub fn write_response(status: StatusCode, headers: &HeaderMap, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    write_lines(headers, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes header lines in HTTP/1 form.
pub fn write_lines(headers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in headers {
        write_line(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Trailers in HTTP/1 form as those of HTTP/2.
pub fn trailers(lines: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    each_parsed(lines, |name, value| {
        map.append(name, value);
    });
    map
}
