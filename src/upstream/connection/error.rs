//! Why a connection could not be opened, in words for the log.

use std::io;
use std::time::Duration;

use humantime::format_duration;
use pingora::{Error, ErrorType};
use rustix::io::Errno;

use crate::upstream::http2;
use crate::upstream::tls::TlsFault;

/// Errors of the system that say nothing about a server.
const EXHAUSTED: [Errno; 5] =
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];

/// Why a connection could not be opened.
pub enum ConnectError {
    Tcp(Box<Error>),
    /// Not connected within this time.
    TimedOut(Duration),
    Tls(TlsFault),
    /// Connected, but the TLS handshake was not complete within this time.
    TlsTimedOut(Duration),
    /// The server does not speak HTTP/2, or ended the connection.
    Http2(http2::Fault),
}

impl From<http2::Fault> for ConnectError {
    fn from(fault: http2::Fault) -> Self {
        Self::Http2(fault)
    }
}

impl ConnectError {
    /// Whether the gateway itself has no socket or no port left.
    pub fn is_own(&self) -> bool {
        let Self::Tcp(error) = self else { return false };
        let reason = error.root_cause().downcast_ref::<io::Error>();
        let is_exhausted = |reason: &io::Error| {
            let errno = reason.raw_os_error().map(Errno::from_raw_os_error);
            errno.is_some_and(|errno| EXHAUSTED.contains(&errno))
        };
        reason.is_some_and(is_exhausted)
    }

    /// The cause as text. Only the kind of pingora's error and the system's reason are shown, not
    /// pingora's text.
    pub fn cause(&self) -> String {
        let error = match self {
            Self::TimedOut(limit) => {
                return format!("connect timed out (connect_timeout {})", format_duration(*limit));
            }
            Self::Http2(fault @ http2::Fault::Protocol(_)) => {
                return format!("the server does not speak HTTP/2 (protocol = \"h2\"): {fault}");
            }
            Self::Http2(fault) => return fault.to_string(),
            Self::Tls(fault) => return format!("TLS: {fault}"),
            Self::TlsTimedOut(limit) => {
                let time = format_duration(*limit);
                return format!("TLS handshake timed out (connect_timeout {time})");
            }
            Self::Tcp(error) => error,
        };
        match innermost(error).etype() {
            ErrorType::ConnectRefused => "connection refused".to_owned(),
            ErrorType::ConnectNoRoute => "no route to the server".to_owned(),
            ErrorType::ConnectError | ErrorType::SocketError | ErrorType::BindError => {
                match error.root_cause().downcast_ref::<io::Error>() {
                    Some(reason) => format!("cannot connect: {reason}"),
                    None => "cannot connect".to_owned(),
                }
            }
            kind => format!("internal error ({})", kind.as_str()),
        }
    }
}

/// The innermost cause of an error.
pub(super) fn innermost(error: &Error) -> &Error {
    let inner = error.cause.as_deref().and_then(|cause| cause.downcast_ref::<Box<Error>>());
    inner.map_or(error, |inner| innermost(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_without_a_socket_is_told_from_a_server_that_refuses() {
        let failed = |errno: Errno| {
            let reason = io::Error::from_raw_os_error(errno.raw_os_error());
            ConnectError::Tcp(Error::because(ErrorType::ConnectError, "", reason))
        };
        for errno in EXHAUSTED {
            assert!(failed(errno).is_own(), "{errno}");
        }
        for errno in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::CONNRESET, Errno::TIMEDOUT] {
            assert!(!failed(errno).is_own(), "{errno}");
        }
        assert!(!ConnectError::TimedOut(Duration::ZERO).is_own());
    }
}
