//! One stream of an HTTP/2 connection: a request body to read, and a response to write.
//!
//! The request header is converted to HTTP/1 and checked like any other, because services get
//! HTTP/1. `h2` does the framing.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, COOKIE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Response, StatusCode, request};
use tokio::io::ReadBuf;

use super::http2::Growth;
use crate::message::header::lines::{each_parsed, write_line};
use crate::upstream::http2::Frames;

/// Once this many bytes of a body have been received, and all of them read, larger windows are
/// requested.
const KEEPS_UP: u64 = 48 << 10;

/// An HTTP/2 stream.
pub struct Stream {
    body: RecvStream,
    /// Received, but not yet read.
    unread: Bytes,
    has_ended: bool,
    /// Trailers in HTTP/1 form.
    trailers: Vec<u8>,
    /// Bytes of the body received so far.
    received: u64,
    growth: Arc<Growth>,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
    frames: Frames,
    is_finished: bool,
}

impl Stream {
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>, growth: Arc<Growth>) -> Self {
        let has_ended = body.is_end_stream();
        Self {
            body,
            unread: Bytes::new(),
            has_ended,
            trailers: Vec::new(),
            received: 0,
            growth,
            respond,
            send: None,
            frames: Frames::new(),
            is_finished: false,
        }
    }

    /// Whether no body follows the header.
    pub fn is_bodyless(&self) -> bool {
        self.has_ended
    }

    /// Reads what has been received of the body, several small frames at once.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Poll::Ready(first) = self.poll_frame(cx) else {
            if self.received >= KEEPS_UP {
                // All received bytes have been read: the window is what limits the client.
                self.growth.request();
            }
            return Poll::Pending;
        };
        first?;
        loop {
            let length = self.unread.len().min(buffer.remaining());
            buffer.put_slice(self.unread.get(..length).unwrap_or_default());
            self.unread.advance(length);
            // Allows the client to send this many bytes more.
            let _ = self.body.flow_control().release_capacity(length);
            let is_done = self.has_ended || buffer.remaining() == 0;
            // An error is reported by the next read.
            if is_done || !matches!(self.poll_frame(cx), Poll::Ready(Ok(()))) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Ready when there are unread bytes, or the body has ended.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.has_ended {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.received += data.len() as u64;
                    self.unread = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => {
                    if let Some(trailers) =
                        ready!(self.body.poll_trailers(cx)).map_err(io::Error::other)?
                    {
                        for (name, value) in &trailers {
                            let name = name.as_str().as_bytes();
                            write_line(&mut self.trailers, name, value.as_bytes());
                        }
                    }
                    self.has_ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The trailers, after the end of the body.
    pub fn take_trailers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.trailers)
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(send) = &mut self.send else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        self.frames.poll_send(cx, send, bytes).map_err(io::Error::from)
    }

    /// Ready when the client has reset the stream.
    pub fn poll_disconnect(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.send {
            Some(send) => send.poll_reset(cx).map(drop),
            None => self.respond.poll_reset(cx).map(drop),
        }
    }

    /// Sends a response header, given in HTTP/1 form.
    ///
    /// # Errors
    /// When the stream is closed, or the header cannot be sent over HTTP/2.
    pub fn send_header(&mut self, header: &[u8], is_bodyless: bool) -> io::Result<()> {
        let response = response(header).ok_or(io::ErrorKind::InvalidData)?;
        if response.status().is_informational() {
            return self.respond.send_informational(response).map_err(io::Error::other);
        }
        let send = self.respond.send_response(response, is_bodyless).map_err(io::Error::other)?;
        self.is_finished = is_bodyless;
        self.send = Some(send);
        Ok(())
    }

    /// Ends the response, with trailers in HTTP/1 form.
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn finish(&mut self, trailers: &[u8]) -> io::Result<()> {
        let Some(send) = self.send.as_mut().filter(|_| !self.is_finished) else { return Ok(()) };
        self.is_finished = true;
        if trailers.is_empty() {
            return send.send_data(Bytes::new(), true).map_err(io::Error::other);
        }
        let mut map = HeaderMap::new();
        each_parsed(trailers, |name, value| {
            map.append(name, value);
        });
        send.send_trailers(map).map_err(io::Error::other)
    }

    /// Resets the stream, so that the client sees that its response is incomplete.
    pub fn reset(&mut self) {
        match self.send.as_mut() {
            Some(send) if !self.is_finished => send.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::CANCEL),
            Some(_) => {}
        }
    }
}

/// Writes a request header in HTTP/1 form, but without `Transfer-Encoding` for a body of unknown
/// length.
pub fn header_text(request: &request::Parts, out: &mut Vec<u8>) {
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b' ');
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let Some(authority) = authority {
        write_line(out, b"host", authority);
    }
    let mut has_cookie = false;
    for (name, value) in &request.headers {
        // A client may send both `:authority` and `Host` (RFC 9113, section 8.3.1).
        let is_repeated = *name == HOST && authority == Some(value.as_bytes());
        if *name == COOKIE {
            if !std::mem::replace(&mut has_cookie, true) {
                // HTTP/1 needs them in one line (RFC 9113, section 8.2.3).
                let crumbs = request.headers.get_all(COOKIE);
                let crumbs: Vec<&[u8]> = crumbs.iter().map(HeaderValue::as_bytes).collect();
                write_line(out, b"cookie", &crumbs.join(&b"; "[..]));
            }
        } else if !is_repeated {
            write_line(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Parses a response header that the gateway wrote; `None` if HTTP/2 cannot carry it.
fn response(header: &[u8]) -> Option<Response<()>> {
    let first = memchr::memchr(b'\n', header)? + 1;
    let status = StatusCode::from_bytes(header.get(b"HTTP/1.1 ".len()..)?.get(..3)?).ok()?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    each_parsed(header.get(first..)?.strip_suffix(b"\r\n")?, |name, value| {
        // They are only for HTTP/1 connections (RFC 9113, section 8.2.2).
        if name != CONNECTION && name != TRANSFER_ENCODING {
            headers.append(name, value);
        }
    });
    Some(response)
}

impl Drop for Stream {
    /// A client whose request is dropped must not wait for a response.
    fn drop(&mut self) {
        self.reset();
    }
}
