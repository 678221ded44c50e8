//! What a request is written to, whatever its protocol: a connection, or a stream that looks like
//! one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::http2;

/// A connection to a server, below HTTP: plain, or TLS (boxed, because it is a kilobyte large).
pub type Transport = Either<Stream, Box<TlsStream<Stream>>>;

/// What a request is written to, and its response read from.
pub enum Io {
    Http1(Transport),
    Http2(Box<http2::Stream>),
}

impl Io {
    /// To be called before a request is written: HTTP/2 has to know whether its body is empty, and
    /// whether trailers are accepted.
    pub fn announce(&mut self, is_bodyless: bool, accepts_trailers: bool) {
        if let Self::Http2(stream) = self {
            stream.announce(is_bodyless, accepts_trailers);
        }
    }

    /// Ends a request after its body.
    ///
    /// # Errors
    /// When the HTTP/2 stream is closed.
    pub fn finish(&mut self, trailers: &[u8]) -> io::Result<()> {
        match self {
            Self::Http1(_) => Ok(()),
            Self::Http2(stream) => stream.finish(trailers),
        }
    }

    /// The trailers of a response that has ended, in HTTP/1 form.
    pub fn take_trailers(&mut self) -> Vec<u8> {
        match self {
            Self::Http1(_) => Vec::new(),
            Self::Http2(stream) => stream.take_trailers(),
        }
    }

    /// See [`http2::Stream::gather`].
    pub fn gather(&mut self, cx: &mut Context<'_>) {
        if let Self::Http2(stream) = self {
            stream.gather(cx);
        }
    }

    /// Whether the response has ended with its header, whatever that says.
    pub fn ends_with_header(&self) -> bool {
        matches!(self, Self::Http2(stream) if stream.ends_with_header())
    }

    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// The request has timed out before its response.
    pub fn timed_out(&self) {
        if let Self::Http2(stream) = self {
            stream.timed_out();
        }
    }
}

impl AsyncRead for Io {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(io) => Pin::new(io).poll_read(cx, buffer),
            Self::Http2(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Http1(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Http2(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(io) => Pin::new(io).poll_flush(cx),
            Self::Http2(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(io) => Pin::new(io).poll_shutdown(cx),
            Self::Http2(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
