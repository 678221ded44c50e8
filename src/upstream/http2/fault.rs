//! Why a stream or a connection to a server failed.

use std::io;

use h2::Reason;

use super::frames::SendError;
use crate::upstream::tls::TlsFault;

/// Why a stream or a connection failed. The texts contain nothing that the server sent, except
/// codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The server has done nothing with the request: it says so (`REFUSED_STREAM`, or a GOAWAY with
    /// a lower last stream; RFC 9113, section 8.7), or the request was not sent.
    #[error("HTTP/2 stream not processed by the server")]
    NotProcessed,
    #[error("HTTP/2 stream reset by the server: {0}")]
    Reset(Reason),
    #[error("HTTP/2 protocol error: {0}")]
    Protocol(Reason),
    /// With TLS 1.3 a server judges the client's certificate after the handshake.
    #[error("TLS: {0}")]
    Tls(TlsFault),
    /// The connection ended.
    #[error("HTTP/2 connection closed: {0}")]
    Closed(io::ErrorKind),
}

impl Fault {
    pub const CLOSED: Self = Self::Closed(io::ErrorKind::UnexpectedEof);

    /// The fault behind an error of a [`Stream`](super::Stream).
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<h2::Error> for Fault {
    fn from(error: h2::Error) -> Self {
        if let Some(error) = error.get_io() {
            return TlsFault::of(error).map_or(Self::Closed(error.kind()), Self::Tls);
        }
        let reason = error.reason().unwrap_or(Reason::INTERNAL_ERROR);
        match (error.is_remote(), error.is_go_away()) {
            // `h2` reports a GOAWAY only to the streams above its last one. The others continue.
            (true, true) => Self::NotProcessed,
            (true, false) if reason == Reason::REFUSED_STREAM => Self::NotProcessed,
            (true, false) => Self::Reset(reason),
            (false, _) => Self::Protocol(reason),
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault {
            Fault::Closed(kind) => kind,
            Fault::Protocol(_) => io::ErrorKind::InvalidData,
            Fault::NotProcessed | Fault::Reset(_) | Fault::Tls(_) => io::ErrorKind::Other,
        };
        Self::new(kind, fault)
    }
}

impl From<SendError> for Fault {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Http2(error) => error.into(),
            SendError::Closed => Self::Closed(io::ErrorKind::BrokenPipe),
        }
    }
}
