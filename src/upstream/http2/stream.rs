//! One request to a server, as a stream of an HTTP/2 connection.
//!
//! It is read and written like a connection to an HTTP/1 server: first comes a header in HTTP/1
//! form, then the bytes of the body, without framing. The end of a response is the end of what can
//! be read, and the end of a request is [`Stream::finish`]. So everything that is checked and
//! decided about HTTP/1 is checked and decided here too, in the same place.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Fault, Frames, Lease, convert};
use crate::message::header::syntax::end_of_header;

/// A stream of a connection to a server. When it is dropped before its end, it is reset.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Stream {
    lease: Lease,
    /// Whether the request has no body, and whether it accepts trailers.
    is_bodyless: bool,
    accepts_trailers: bool,
    /// From when the request header was written until the response header was read.
    response: Option<ResponseFuture>,
    send: Option<SendStream<Bytes>>,
    frames: Frames,
    is_finished: bool,
    /// A response header in HTTP/1 form, and how much of it was read.
    header: Vec<u8>,
    header_read: usize,
    /// The body of the response.
    body: Option<RecvStream>,
    /// Received, but not yet read: first what was gathered, then a frame.
    gathered: BytesMut,
    frame: Bytes,
    ends_with_header: bool,
    has_ended: bool,
    /// In HTTP/1 form.
    trailers: Vec<u8>,
}

impl Stream {
    pub(super) fn new(lease: Lease) -> Self {
        Self {
            lease,
            is_bodyless: false,
            accepts_trailers: false,
            response: None,
            send: None,
            frames: Frames::new(),
            is_finished: false,
            header: Vec::new(),
            header_read: 0,
            body: None,
            gathered: BytesMut::new(),
            frame: Bytes::new(),
            ends_with_header: false,
            has_ended: false,
            trailers: Vec::new(),
        }
    }

    /// Whether its connection has served a request before.
    pub fn is_reused(&self) -> bool {
        self.lease.is_reused
    }

    /// To be called before the request is written: whether its body is empty, and whether to tell
    /// the server that trailers are accepted.
    pub fn announce(&mut self, is_bodyless: bool, accepts_trailers: bool) {
        (self.is_bodyless, self.accepts_trailers) = (is_bodyless, accepts_trailers);
    }

    /// Whether the response ended with its header: it has no body, and no length that says so.
    pub fn ends_with_header(&self) -> bool {
        self.ends_with_header
    }

    /// The request has timed out. If nothing at all came from the server meanwhile, its connection
    /// is not used for other requests.
    pub fn timed_out(&self) {
        self.lease.suspect();
    }

    /// Sends the request header at the beginning of `bytes`. Returns its length.
    fn send_header(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = end_of_header(bytes, 0).ok_or(io::ErrorKind::InvalidInput)?;
        let header = bytes.get(..length).unwrap_or_default();
        let request = convert::request(header, self.lease.shared.is_tls, self.accepts_trailers)
            .ok_or(io::ErrorKind::InvalidData)?;
        self.lease.begin();
        let begun = self.lease.requests.send_request(request, self.is_bodyless);
        let (response, send) = begun.map_err(|error| match Fault::from(error) {
            // A request that `h2` does not accept is a fault of the gateway.
            fault @ Fault::Protocol(_) => fault,
            _ => Fault::NotProcessed,
        })?;
        self.response = Some(response);
        self.send = Some(send);
        self.is_finished = self.is_bodyless;
        Ok(length)
    }

    /// Ends the request, with trailers in HTTP/1 form.
    ///
    /// # Errors
    /// When the stream is closed.
    pub fn finish(&mut self, trailers: &[u8]) -> io::Result<()> {
        let Some(send) = self.send.as_mut().filter(|_| !self.is_finished) else { return Ok(()) };
        self.is_finished = true;
        let ended = if trailers.is_empty() {
            send.send_data(Bytes::new(), true)
        } else {
            send.send_trailers(convert::trailers(trailers))
        };
        ended.map_err(|error| Fault::from(error).into())
    }

    /// The trailers of the response in HTTP/1 form, after the end of its body.
    pub fn take_trailers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.trailers)
    }

    /// Takes from `h2` what has been received of the body, while the client does not read. A
    /// service may send thousands of small messages, each in a frame of its own, and `h2` needs
    /// more memory for a frame than for its bytes. The window limits how much this is.
    pub fn gather(&mut self, cx: &mut Context<'_>) {
        let Some(body) = self.body.as_mut().filter(|_| !self.has_ended) else { return };
        // An error is kept by `h2`, and reported by the next read.
        while let Poll::Ready(Some(Ok(data))) = body.poll_data(cx) {
            self.gathered.extend_from_slice(&std::mem::replace(&mut self.frame, Bytes::new()));
            self.gathered.extend_from_slice(&data);
        }
    }

    /// Ready when a response header was received. Its text is then in `header`.
    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Some(response) = &mut self.response else {
            return Poll::Ready(Err(Fault::CLOSED));
        };
        self.header.clear();
        self.header_read = 0;
        if let Poll::Ready(Some(informational)) = response.poll_informational(cx) {
            let informational = informational?;
            if informational.status() == StatusCode::SWITCHING_PROTOCOLS {
                // HTTP/2 has no such response (RFC 9113, section 8.6).
                return Poll::Ready(Err(Fault::Protocol(Reason::PROTOCOL_ERROR)));
            }
            convert::write_response(
                informational.status(),
                informational.headers(),
                &mut self.header,
            );
            return Poll::Ready(Ok(()));
        }
        let (parts, body) = ready!(Pin::new(response).poll(cx))?.into_parts();
        convert::write_response(parts.status, &parts.headers, &mut self.header);
        self.has_ended = body.is_end_stream();
        self.ends_with_header = self.has_ended;
        self.body = Some(body);
        self.response = None;
        Poll::Ready(Ok(()))
    }

    /// Ready when there are unread bytes, or the body has ended.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Some(body) = &mut self.body else { return Poll::Ready(Err(Fault::CLOSED)) };
        while self.gathered.is_empty() && self.frame.is_empty() && !self.has_ended {
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) => self.frame = data,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => {
                    if let Some(trailers) = ready!(body.poll_trailers(cx))? {
                        convert::write_lines(&trailers, &mut self.trailers);
                    }
                    self.has_ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Moves unread bytes of the body to `buffer`.
    fn take(&mut self, buffer: &mut ReadBuf<'_>) {
        let from = [self.gathered.chunk(), self.frame.chunk()];
        let mut taken = [0; 2];
        for (bytes, taken) in from.into_iter().zip(&mut taken) {
            *taken = bytes.len().min(buffer.remaining());
            buffer.put_slice(bytes.get(..*taken).unwrap_or_default());
        }
        let [of_gathered, of_frame] = taken;
        self.gathered.advance(of_gathered);
        self.frame.advance(of_frame);
        if self.gathered.is_empty() && self.gathered.capacity() > 0 {
            self.gathered = BytesMut::new();
        }
        if let Some(body) = &mut self.body {
            // Allows the server to send this many bytes more.
            let _ = body.flow_control().release_capacity(of_gathered + of_frame);
        }
    }
}

impl AsyncRead for Stream {
    /// Reads what has been received, several small frames at once.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.body.is_none() && this.header_read >= this.header.len() {
            ready!(this.poll_header(cx))?;
        }
        let header = this.header.get(this.header_read..).unwrap_or_default();
        if !header.is_empty() {
            let length = header.len().min(buffer.remaining());
            buffer.put_slice(header.get(..length).unwrap_or_default());
            this.header_read += length;
            return Poll::Ready(Ok(()));
        }
        this.header = Vec::new();
        this.header_read = 0;
        ready!(this.poll_frame(cx))?;
        loop {
            this.take(buffer);
            let is_done = this.has_ended || buffer.remaining() == 0;
            // An error is reported by the next read.
            if is_done || !matches!(this.poll_frame(cx), Poll::Ready(Ok(()))) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Stream {
    /// The first bytes must be a whole request header.
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(send) = &mut this.send else { return Poll::Ready(this.send_header(bytes)) };
        if this.is_finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        this.frames.poll_send(cx, send, bytes).map_err(|error| Fault::from(error).into())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    /// A server must not go on with a request that nobody waits for.
    fn drop(&mut self) {
        let has_ended = self.has_ended || self.body.as_ref().is_some_and(RecvStream::is_end_stream);
        if let Some(send) = &mut self.send
            && !(self.is_finished && has_ended)
        {
            send.send_reset(Reason::CANCEL);
        }
    }
}
