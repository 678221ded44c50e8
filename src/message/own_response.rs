//! Answers that the gateway makes itself, before they meet a protocol.
//!
//! Login, logout, session, health and every refusal end in an [`OwnResponse`]; `proxy` writes it as the
//! response to a request, and to a connection whose request header was rejected. All of them are
//! `Cache-Control: no-store`: none may be kept by anybody on the way.

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Serialize;

/// Status, headers and body of one response. Content-Length is left to the writer.
#[derive(Clone)]
pub struct OwnResponse {
    pub status: u16,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Vec<u8>,
}

impl OwnResponse {
    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        Self {
            status,
            headers: vec![(CACHE_CONTROL, HeaderValue::from_static("no-store"))],
            body: Vec::new(),
        }
    }

    /// A JSON response. A value that cannot be serialized leaves the body empty; the types
    /// that are passed here are plain structs of strings and numbers, which always can.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        let mut response = Self::empty(status);
        response.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.body = serde_json::to_vec(value).unwrap_or_default();
        // For those who read it in a terminal.
        response.body.push(b'\n');
        response
    }

    pub fn header(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.push((name, value));
    }

    /// The values of a header, one for each line of it.
    pub fn values<'a>(
        &'a self,
        name: &'a HeaderName,
    ) -> impl Iterator<Item = &'a HeaderValue> + Clone {
        self.headers.iter().filter(move |(known, _)| known == name).map(|(_, value)| value)
    }

    /// Replaces all lines of a header with one.
    pub fn replace(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value));
    }

    /// Adds the headers that the response does not have yet.
    pub fn add_missing(&mut self, headers: &[(HeaderName, HeaderValue)]) {
        for (name, value) in headers {
            if self.values(name).next().is_none() {
                self.header(name.clone(), value.clone());
            }
        }
    }

    /// The answer in the wire form of HTTP/1.1, for a connection that ends with it. One that
    /// `is_to_head` says how long its body is, and leaves it out.
    pub fn to_closing_http1(&self, is_to_head: bool) -> Vec<u8> {
        let reason = http::StatusCode::from_u16(self.status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or("");
        let mut wire = format!("HTTP/1.1 {} {reason}\r\n", self.status).into_bytes();
        for (name, value) in &self.headers {
            wire.extend_from_slice(name.as_str().as_bytes());
            wire.extend_from_slice(b": ");
            wire.extend_from_slice(value.as_bytes());
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(
            format!("content-length: {}\r\nconnection: close\r\n\r\n", self.body.len()).as_bytes(),
        );
        if !is_to_head {
            wire.extend_from_slice(&self.body);
        }
        wire
    }
}
