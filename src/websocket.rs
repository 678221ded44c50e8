//! WebSocket: when a request may become one, and how long it may stay one.
//!
//! A handshake is judged strictly (RFC 6455, section 4): until the service has answered it
//! with a proper `101`, what follows the request on its connection is a request like any
//! other, and never taken for raw bytes. The switch from one to the other is a [`Tunnel`],
//! which the connection holds and the proxy opens, and which is cut when the session of its
//! user ends.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use sha1::{Digest, Sha1};
use tokio::sync::Notify;

use crate::header::trim;

/// Appended to the client's key before it is digested (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether a request is a sound handshake of a WebSocket.
pub fn is_handshake(request: &RequestHeader) -> bool {
    let headers = &request.headers;
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    request.method == Method::GET
        && request.version == Version::HTTP_11
        && !has_body
        && is_only(headers, &UPGRADE, |value| value.eq_ignore_ascii_case(b"websocket"))
        && is_only(headers, &SEC_WEBSOCKET_VERSION, |value| value == b"13")
        && is_only(headers, &SEC_WEBSOCKET_KEY, |value| {
            STANDARD.decode(value).is_ok_and(|key| key.len() == 16)
        })
        && headers.get_all(CONNECTION).iter().any(|value| nominates_upgrade(value.as_bytes()))
}

/// Whether an answer accepts the handshake of a request.
pub fn is_accepted(request: &RequestHeader, response: &ResponseHeader) -> bool {
    let Some(key) = request.headers.get(SEC_WEBSOCKET_KEY) else { return false };
    let digest = Sha1::new().chain_update(trim(key.as_bytes())).chain_update(GUID).finalize();
    let expected = STANDARD.encode(digest);
    is_only(&response.headers, &UPGRADE, |value| value.eq_ignore_ascii_case(b"websocket"))
        && is_only(&response.headers, &SEC_WEBSOCKET_ACCEPT, |value| value == expected.as_bytes())
}

fn is_only(headers: &HeaderMap, name: &HeaderName, is_right: impl Fn(&[u8]) -> bool) -> bool {
    let mut values = headers.get_all(name).iter();
    values.next().is_some_and(|value| is_right(trim(value.as_bytes()))) && values.next().is_none()
}

fn nominates_upgrade(connection: &[u8]) -> bool {
    connection.split(|b| *b == b',').any(|name| trim(name).eq_ignore_ascii_case(b"upgrade"))
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

    #[test]
    fn only_a_sound_handshake_is_one() {
        assert!(is_handshake(&request("GET", &SOUND)));
        assert!(!is_handshake(&request("POST", &SOUND)));
        for left_out in &SOUND[1..] {
            let lines: Vec<_> = SOUND.into_iter().filter(|line| line != left_out).collect();
            assert!(!is_handshake(&request("GET", &lines)), "without {}", left_out.0);
        }
        for added in [
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "8"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Content-Length", "5"),
            ("Transfer-Encoding", "chunked"),
        ] {
            let lines = [&SOUND[..], &[added]].concat();
            assert!(!is_handshake(&request("GET", &lines)), "{added:?}");
        }
        let mut odd = SOUND;
        odd[2] = ("Upgrade", "websocket, h2c");
        assert!(!is_handshake(&request("GET", &odd)));
        odd = SOUND;
        odd[3] = ("Sec-WebSocket-Version", "99");
        assert!(!is_handshake(&request("GET", &odd)));
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
        assert!(is_accepted(&asked, &answer("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
        assert!(!is_accepted(&asked, &answer("AAAAAAAAAAAAAAAAAAAAAAAAAAA=")));
        assert!(!is_accepted(&asked, &ResponseHeader::build(101, None).unwrap()));
    }
}
