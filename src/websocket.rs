//! WebSocket: when a request may become one, and how long it may stay one.
//!
//! All protocols in `Upgrade` but a WebSocket are ignored, and the request is served like any other
//! (RFC 9110, section 7.8). A handshake is judged strictly (RFC 6455, section 4): until the service
//! has answered it with a proper `101`, what follows the request on its connection is a request
//! like any other, and never taken for raw bytes. The switch from one to the other is a [`Tunnel`],
//! which the connection holds and the proxy opens, and which is cut when the session of its user
//! ends.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONTENT_LENGTH, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Version};
use pingora::http::RequestHeader;
use sha1::{Digest, Sha1};
use tokio::sync::Notify;

use crate::header::{Headers, nominated, offers_websocket, trim};
use crate::rejection::Rejection;

/// Appended to the client's key before it is digested (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether a request asks to become a WebSocket. Over HTTP/1.0 none does.
pub fn is_asked_for(request: &RequestHeader) -> bool {
    request.version == Version::HTTP_11 && request.values_of(&UPGRADE).any(offers_websocket)
}

/// The rejection of a WebSocket where none is allowed.
pub const NOT_ALLOWED: Rejection = Rejection::BadRequest("no WebSocket is allowed on this path");

/// Judges the handshake of a request that asks to become a WebSocket.
///
/// # Errors
/// [`Rejection::BadRequest`] when it is malformed, and [`Rejection::UpgradeRequired`] when it is
/// one of another version than 13. Such a version may have another key, so it comes first.
pub fn judge_handshake(method: &Method, headers: &impl Headers) -> Result<(), Rejection> {
    if !is_only(headers, &UPGRADE, |value| value.eq_ignore_ascii_case(b"websocket")) {
        return Err(Rejection::BadRequest("Upgrade must be one \"websocket\" and nothing else"));
    }
    let has_body = headers.first(&TRANSFER_ENCODING).is_some()
        || headers.first(&CONTENT_LENGTH).is_some_and(|length| length != b"0");
    if method != Method::GET || has_body {
        return Err(Rejection::BadRequest("a WebSocket handshake is a GET without a body"));
    }
    if !nominated(headers).any(|name| name.eq_ignore_ascii_case(b"upgrade")) {
        return Err(Rejection::BadRequest("Connection does not name Upgrade"));
    }
    if is_only(headers, &SEC_WEBSOCKET_VERSION, |value| is_version(value) && value != b"13") {
        return Err(Rejection::UpgradeRequired);
    }
    if !is_only(headers, &SEC_WEBSOCKET_VERSION, |value| value == b"13") {
        return Err(Rejection::BadRequest("Sec-WebSocket-Version is not exactly one number"));
    }
    let is_key = |value: &[u8]| STANDARD.decode(value).is_ok_and(|key| key.len() == 16);
    if !is_only(headers, &SEC_WEBSOCKET_KEY, is_key) {
        return Err(Rejection::BadRequest("Sec-WebSocket-Key is not 16 bytes of base64"));
    }
    Ok(())
}

/// A number from 0 to 255 without leading zeros (RFC 6455, section 4.3).
fn is_version(value: &[u8]) -> bool {
    let is_number = value.iter().all(u8::is_ascii_digit) && !matches!(value, [b'0', _, ..]);
    is_number && std::str::from_utf8(value).is_ok_and(|text| text.parse::<u8>().is_ok())
}

/// Why a `101` does not accept the handshake of a request; the header line at fault comes first.
pub fn fault(request: &impl Headers, headers: &impl Headers) -> Option<&'static str> {
    if !is_only(headers, &UPGRADE, |value| value.eq_ignore_ascii_case(b"websocket")) {
        return Some("Upgrade (not websocket alone)");
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

/// A tunnel that was cut may end in order for so long: both sides learn of it then.
const ORDERLY_END: Duration = Duration::from_millis(250);

/// The switch between a connection and what is done with it.
#[derive(Default)]
pub struct Tunnel {
    switch: Mutex<Switch>,
    has_been_cut: Notify,
}

#[derive(Default)]
struct Switch {
    state: State,
    waker: Option<Waker>,
}

/// What a connection may pass on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Requests.
    #[default]
    Closed,
    /// Whatever comes.
    Open,
    /// Nothing any more.
    Cut,
}

impl Tunnel {
    /// The service has accepted: from now on bytes pass as they are.
    pub fn open(&self) {
        self.set(State::Open);
    }

    pub fn cut(&self) {
        self.set(State::Cut);
        self.has_been_cut.notify_one();
    }

    pub fn is_cut(&self) -> bool {
        self.lock().state == State::Cut
    }

    /// Resolves a moment after the cut. One side may be waited for that takes nothing any
    /// more, so that the other never learns of it.
    pub async fn after_cut(&self) {
        self.has_been_cut.notified().await;
        tokio::time::sleep(ORDERLY_END).await;
    }

    /// The state, and to be woken when it changes.
    pub fn poll(&self, cx: &mut Context<'_>) -> State {
        let mut switch = self.lock();
        if !switch.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            switch.waker = Some(cx.waker().clone());
        }
        switch.state
    }

    fn set(&self, state: State) {
        let mut switch = self.lock();
        switch.state = state;
        if let Some(waker) = switch.waker.take() {
            waker.wake();
        }
    }

    /// Nothing panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Switch> {
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use pingora::http::ResponseHeader;

    use super::*;

    /// The example of RFC 6455, section 1.3.
    const SOUND: [(&str, &str); 5] = [
        ("Host", "h"),
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "WebSocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn request(method: &str, lines: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build(method, b"/", None).unwrap();
        for (name, value) in lines {
            request.append_header(*name, (*value).to_owned()).unwrap();
        }
        request
    }

    fn judge(request: &RequestHeader) -> Result<(), Rejection> {
        judge_handshake(&request.method, request)
    }

    fn is_malformed(request: &RequestHeader) -> bool {
        matches!(judge(request), Err(Rejection::BadRequest(_)))
    }

    #[test]
    fn only_a_sound_handshake_is_one() {
        assert_eq!(judge(&request("GET", &SOUND)), Ok(()));
        assert!(is_malformed(&request("POST", &SOUND)));
        for left_out in &SOUND[1..] {
            let lines: Vec<_> = SOUND.into_iter().filter(|line| line != left_out).collect();
            assert!(is_malformed(&request("GET", &lines)), "without {}", left_out.0);
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
            let lines = [&SOUND[..], &[added]].concat();
            assert!(is_malformed(&request("GET", &lines)), "{added:?}");
        }
        let mut odd = SOUND;
        odd[2] = ("Upgrade", "websocket, h2c");
        assert!(is_malformed(&request("GET", &odd)));
    }

    #[test]
    fn another_version_is_told_apart_from_a_malformed_one() {
        let of_version = |version: &str| {
            let mut lines = SOUND;
            lines[3] = ("Sec-WebSocket-Version", version);
            // A later version may have a key of another shape, or none.
            let lines = &lines[..4];
            judge(&request("GET", lines))
        };
        for version in ["0", "7", "8", "14", "99", "255"] {
            assert_eq!(of_version(version), Err(Rejection::UpgradeRequired), "{version}");
        }
        for version in ["", "013", "00", "256", "1000", "-8", "+8", "8.0", "x", "13, 8", "8, 13"] {
            assert!(matches!(of_version(version), Err(Rejection::BadRequest(_))), "{version}");
        }
    }

    #[test]
    fn only_what_names_a_websocket_asks_for_one() {
        let asks = |lines: &[(&'static str, &str)]| is_asked_for(&request("GET", lines));
        for offer in ["websocket", "WebSocket", "h2c, websocket", "h2c,websocket/13 ,foo"] {
            assert!(asks(&[("Upgrade", offer)]), "{offer}");
            assert!(asks(&[("Upgrade", "h2c"), ("Upgrade", offer)]), "{offer}");
        }
        for offer in ["", ",", "h2c", "TLS/1.2", "foo/websocket", "websockets", "web socket"] {
            assert!(!asks(&[("Upgrade", offer), ("Connection", "websocket")]), "{offer}");
        }
        let mut old = request("GET", &SOUND);
        old.set_version(Version::HTTP_10);
        assert!(!is_asked_for(&old));
    }

    #[test]
    fn only_the_right_answer_accepts() {
        let asked = request("GET", &SOUND);
        let answer = |accept: &str| {
            let mut response = ResponseHeader::build(101, None).unwrap();
            response.append_header("Upgrade", "websocket").unwrap();
            response.append_header("Sec-WebSocket-Accept", accept.to_owned()).unwrap();
            response
        };
        assert_eq!(fault(&asked, &answer("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")), None);
        assert!(fault(&asked, &answer("AAAAAAAAAAAAAAAAAAAAAAAAAAA=")).is_some());
        assert!(fault(&asked, &ResponseHeader::build(101, None).unwrap()).is_some());
        let keyless = RequestHeader::build("GET", b"/", None).unwrap();
        assert!(fault(&keyless, &answer("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")).is_some());
    }
}
