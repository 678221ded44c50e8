//! Decides when a request may be upgraded to a WebSocket.
//!
//! `Upgrade` to any other protocol is ignored, and the request is served normally (RFC 9110,
//! section 7.8). A handshake is validated strictly (RFC 6455, section 4). Until the service has
//! responded with a valid `101`, the bytes after the request are read as the next request, never as
//! raw data.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use http::header::{
    CONTENT_LENGTH, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use sha1::{Digest, Sha1};

use crate::message::header::{Headers, nominated, offers_websocket, trim};
use crate::message::rejection::Rejection;

/// Appended to the client's key before it is hashed (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether an HTTP/1.1 request is for a WebSocket.
pub fn is_requested(headers: &impl Headers) -> bool {
    headers.values_of(&UPGRADE).any(offers_websocket)
}

/// Headers of a forward-auth request that show that the original request is a handshake. Proxies
/// remove `Upgrade`, because it is meant for one connection, but not the key.
pub static SIGNS: [HeaderName; 2] = [UPGRADE, SEC_WEBSOCKET_KEY];

/// Whether the original request of a decision may be for a WebSocket. Pages can neither send
/// nor leave out the key.
pub fn is_asked_about(headers: &impl Headers) -> bool {
    is_requested(headers) || headers.first(&SEC_WEBSOCKET_KEY).is_some()
}

/// The rejection of a handshake on a path that allows no WebSocket.
pub const NOT_ALLOWED: Rejection = Rejection::BadRequest("WebSocket is not allowed on this path");

/// Validates the handshake of a request for a WebSocket.
///
/// # Errors
/// [`Rejection::BadRequest`] if it is malformed, and [`Rejection::UpgradeRequired`] if its version
/// is not 13. The version is checked before the key, because the key may have a different format in
/// other versions.
pub fn judge_handshake(method: &Method, headers: &impl Headers) -> Result<(), Rejection> {
    if !is_only(headers, &UPGRADE, |value| value.eq_ignore_ascii_case(b"websocket")) {
        return Err(Rejection::BadRequest("Upgrade must be \"websocket\" only"));
    }
    let has_body = headers.first(&TRANSFER_ENCODING).is_some()
        || headers.first(&CONTENT_LENGTH).is_some_and(|length| length != b"0");
    if method != Method::GET || has_body {
        return Err(Rejection::BadRequest("a WebSocket handshake must be a GET without a body"));
    }
    if !nominated(headers).any(|name| name.eq_ignore_ascii_case(b"upgrade")) {
        return Err(Rejection::BadRequest("Connection does not contain \"Upgrade\""));
    }
    if is_only(headers, &SEC_WEBSOCKET_VERSION, |value| is_version(value) && value != b"13") {
        return Err(Rejection::UpgradeRequired);
    }
    if !is_only(headers, &SEC_WEBSOCKET_VERSION, |value| value == b"13") {
        return Err(Rejection::BadRequest("Sec-WebSocket-Version must be one number"));
    }
    let is_key = |value: &[u8]| STANDARD.decode(value).is_ok_and(|key| key.len() == 16);
    if !is_only(headers, &SEC_WEBSOCKET_KEY, is_key) {
        return Err(Rejection::BadRequest("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    Ok(())
}

/// A number from 0 to 255 without leading zeros (RFC 6455, section 4.3).
fn is_version(value: &[u8]) -> bool {
    let is_number = value.iter().all(u8::is_ascii_digit) && !matches!(value, [b'0', _, ..]);
    is_number && std::str::from_utf8(value).is_ok_and(|text| text.parse::<u8>().is_ok())
}

/// Why a `101` does not accept the handshake of a request; begins with the header at fault.
pub fn fault(request: &impl Headers, headers: &impl Headers) -> Option<&'static str> {
    if !is_only(headers, &UPGRADE, |value| value.eq_ignore_ascii_case(b"websocket")) {
        return Some("Upgrade (must be exactly \"websocket\")");
    }
    let Some(key) = request.first(&SEC_WEBSOCKET_KEY) else {
        return Some("Sec-WebSocket-Accept (the request has no key)");
    };
    let digest = Sha1::new().chain_update(trim(key)).chain_update(GUID).finalize();
    let expected = STANDARD.encode(digest);
    let is_accepted = is_only(headers, &SEC_WEBSOCKET_ACCEPT, |value| value == expected.as_bytes());
    (!is_accepted).then_some("Sec-WebSocket-Accept (does not match the handshake's key)")
}

fn is_only(headers: &impl Headers, name: &HeaderName, is_right: impl Fn(&[u8]) -> bool) -> bool {
    headers.only(name).is_some_and(|value| is_right(trim(value)))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    /// The example of RFC 6455, section 1.3.
    const VALID: [(&str, &str); 5] = [
        ("Host", "h"),
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "WebSocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn judge(method: &Method, lines: &[(&'static str, &str)]) -> Result<(), Rejection> {
        judge_handshake(method, &headers(lines))
    }

    fn is_malformed(method: &Method, lines: &[(&'static str, &str)]) -> bool {
        matches!(judge(method, lines), Err(Rejection::BadRequest(_)))
    }

    #[test]
    fn only_a_valid_handshake_is_accepted() {
        assert_eq!(judge(&Method::GET, &VALID), Ok(()));
        assert!(is_malformed(&Method::POST, &VALID));
        for omitted in &VALID[1..] {
            let lines: Vec<_> = VALID.into_iter().filter(|line| line != omitted).collect();
            assert!(is_malformed(&Method::GET, &lines), "without {}", omitted.0);
        }
        for added in [
            ("Upgrade", "websocket"),
            ("Upgrade", "h2c"),
            ("Upgrade", ""),
            ("Sec-WebSocket-Version", "8"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Content-Length", "5"),
            ("Transfer-Encoding", "chunked"),
        ] {
            let lines = [&VALID[..], &[added]].concat();
            assert!(is_malformed(&Method::GET, &lines), "{added:?}");
        }
        let mut odd = VALID;
        odd[2] = ("Upgrade", "websocket, h2c");
        assert!(is_malformed(&Method::GET, &odd));
    }

    #[test]
    fn another_version_is_not_a_malformed_one() {
        let of_version = |version: &str| {
            let mut lines = VALID;
            lines[3] = ("Sec-WebSocket-Version", version);
            // A later version may have another kind of key, or none.
            let lines = &lines[..4];
            judge(&Method::GET, lines)
        };
        for version in ["0", "7", "8", "14", "99", "255"] {
            assert_eq!(of_version(version), Err(Rejection::UpgradeRequired), "{version}");
        }
        for version in ["", "013", "00", "256", "1000", "-8", "+8", "8.0", "x", "13, 8", "8, 13"] {
            assert!(matches!(of_version(version), Err(Rejection::BadRequest(_))), "{version}");
        }
    }

    #[test]
    fn only_an_upgrade_to_websocket_requests_one() {
        let requests = |lines: &[(&'static str, &str)]| is_requested(&headers(lines));
        for offer in ["websocket", "WebSocket", "h2c, websocket", "h2c,websocket/13 ,foo"] {
            assert!(requests(&[("Upgrade", offer)]), "{offer}");
            assert!(requests(&[("Upgrade", "h2c"), ("Upgrade", offer)]), "{offer}");
        }
        for offer in ["", ",", "h2c", "TLS/1.2", "foo/websocket", "websockets", "web socket"] {
            assert!(!requests(&[("Upgrade", offer), ("Connection", "websocket")]), "{offer}");
        }
    }

    #[test]
    fn only_a_matching_response_accepts() {
        let request = headers(&VALID);
        let response =
            |accept: &str| headers(&[("Upgrade", "websocket"), ("Sec-WebSocket-Accept", accept)]);
        assert_eq!(fault(&request, &response("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")), None);
        assert!(fault(&request, &response("AAAAAAAAAAAAAAAAAAAAAAAAAAA=")).is_some());
        assert!(fault(&request, &HeaderMap::new()).is_some());
        assert!(fault(&HeaderMap::new(), &response("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")).is_some());
    }
}
