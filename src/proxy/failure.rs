//! From pingora's errors to answers.

use std::io;

use pingora::{Error, ErrorSource, ErrorType};

use crate::rejection::Rejection;

/// The answer to an error on the way, or `None` when the client is gone.
pub fn rejection(error: &Error) -> Option<Rejection> {
    match error.esource() {
        ErrorSource::Upstream => Some(match error.etype() {
            ErrorType::ConnectTimedout
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout => Rejection::GatewayTimeout,
            _ => Rejection::BadGateway,
        }),
        ErrorSource::Downstream => match error.etype() {
            ErrorType::ReadTimedout => Some(Rejection::RequestTimeout),
            ErrorType::ReadError if io_kind(error) == Some(io::ErrorKind::TimedOut) => {
                Some(Rejection::RequestTimeout)
            }
            // The edge's own verdict on a body that it passes on.
            ErrorType::ReadError if io_kind(error) == Some(io::ErrorKind::InvalidData) => {
                Some(Rejection::BadRequest("the body is malformed"))
            }
            ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::WriteTimedout
            | ErrorType::ConnectionClosed
            | ErrorType::H2Error => None,
            _ => Some(Rejection::BadRequest("the request is malformed")),
        },
        ErrorSource::Internal | ErrorSource::Unset => match error.etype() {
            // pingora's own refusals of a request head: hop-by-hop nominations, authority.
            ErrorType::InvalidHTTPHeader | ErrorType::HTTPStatus(400) => {
                Some(Rejection::BadRequest("the request is malformed"))
            }
            _ => Some(Rejection::InternalError),
        },
    }
}

/// The kind of the I/O error at the root of an error.
fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind)
}
