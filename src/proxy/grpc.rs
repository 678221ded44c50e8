//! What is different for gRPC clients: errors, and deadlines.
//!
//! A gRPC client does not look at the status and the body of an HTTP error. It expects its own
//! status in a response that consists of nothing but a header ("Trailers-Only"), with the HTTP
//! status 200. The metrics and the log of the gateway have the status that other clients would get.
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>)

use std::fmt::Write as _;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue};

use crate::message::header::Headers;
use crate::message::own_response::OwnResponse;

const CONTENT: &[u8] = b"application/grpc";

static TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
static STATUS: HeaderName = HeaderName::from_static("grpc-status");
static MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request that came over HTTP/2 is gRPC, by its content type: `application/grpc` alone,
/// or followed by `+` or `;`.
pub fn is_grpc(headers: &impl Headers) -> bool {
    let Some(value) = headers.only(&CONTENT_TYPE) else { return false };
    let Some((begin, rest)) = value.split_at_checked(CONTENT.len()) else { return false };
    begin.eq_ignore_ascii_case(CONTENT) && matches!(rest, [] | [b'+' | b';', ..])
}

/// The time that the client gives the call (`grpc-timeout`); `None` if it is absent or malformed.
pub fn timeout(headers: &impl Headers) -> Option<Duration> {
    let (unit, digits) = headers.only(&TIMEOUT)?.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// The gRPC status for the HTTP status of a rejection.
fn status(http: u16) -> u16 {
    match http {
        400 | 411 | 426 => 3, // INVALID_ARGUMENT
        408 | 504 => 4,       // DEADLINE_EXCEEDED
        404 => 5,             // NOT_FOUND
        403 => 7,             // PERMISSION_DENIED
        413 | 429 | 431 => 8, // RESOURCE_EXHAUSTED
        409 => 9,             // FAILED_PRECONDITION
        405 => 12,            // UNIMPLEMENTED
        500 => 13,            // INTERNAL
        502 | 503 => 14,      // UNAVAILABLE
        401 => 16,            // UNAUTHENTICATED
        _ => 2,               // UNKNOWN
    }
}

/// Turns an error response into one for gRPC clients, with the same other headers.
pub fn trailers_only(response: &mut OwnResponse, message: &str) {
    response.replace(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.replace(STATUS.clone(), status(response.status).into());
    // An encoded message consists of visible characters.
    if let Ok(message) = HeaderValue::try_from(encoded(message)) {
        response.replace(MESSAGE.clone(), message);
    }
    response.status = 200;
    response.body.clear();
}

/// A message, percent-encoded: every byte except printable ASCII, and `%` itself.
fn encoded(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' | ..=0x1f | 0x7f.. => {
                // Writing to a string cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::message::rejection::Rejection;

    fn headers(name: &HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (values, expected) in [
            (&["application/grpc"][..], true),
            (&["application/grpc+proto"], true),
            (&["Application/gRPC; charset=utf-8"], true),
            (&["application/grpc-web"], false),
            (&["application/grpc-web+proto"], false),
            (&["application/grpcx"], false),
            (&["application/grp"], false),
            (&["application/grpc", "application/grpc"], false),
            (&[], false),
        ] {
            assert_eq!(is_grpc(&headers(&CONTENT_TYPE, values)), expected, "{values:?}");
        }
    }

    #[test]
    fn a_malformed_timeout_is_none() {
        let read = |value: &'static str| timeout(&headers(&TIMEOUT, &[value]));
        for (value, nanos) in [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("3S", 3_000_000_000),
            ("4m", 4_000_000),
            ("5u", 5_000),
            ("6n", 6),
            ("0S", 0),
        ] {
            assert_eq!(read(value), Some(Duration::from_nanos(nanos)), "{value}");
        }
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for value in ["", "S", "1", "1s", "1h", "-1S", "+1S", "1.5S", " 1S", "1 S", "123456789S"] {
            assert_eq!(read(value), None, "{value}");
        }
        assert_eq!(timeout(&headers(&TIMEOUT, &["1S", "1S"])), None);
    }

    #[test]
    fn an_error_keeps_its_headers_and_loses_its_body() {
        let mut response = Rejection::RateLimited { retry_after: 7 }.response("id", None, None);
        trailers_only(&mut response, "50% über\n");
        assert_eq!((response.status, response.body.len()), (200, 0));
        let value = |name: &'static str| {
            let name = HeaderName::from_static(name);
            let values: Vec<_> = response.values(&name).collect();
            assert_eq!(values.len(), 1, "{name}");
            values[0].to_str().unwrap().to_owned()
        };
        assert_eq!(value("content-type"), "application/grpc");
        assert_eq!((value("grpc-status"), value("retry-after")), ("8".into(), "7".into()));
        assert_eq!(value("grpc-message"), "50%25 %C3%BCber%0A");
        assert_eq!(value("x-wxgate-error"), "rate_limited");
        assert_eq!(value("cache-control"), "no-store");
    }
}
