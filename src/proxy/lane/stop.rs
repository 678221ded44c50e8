//! Why a request ends before its response, and the words for it.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use humantime::format_duration;
use pingora::Error;

use super::body::Broken;
use crate::head::response::Fault;
use crate::proxy::failure;
use crate::rejection::Rejection;
use crate::route::PathError;

/// Why a request ends.
pub enum Stop {
    /// It is not served, or its client does something wrong.
    Rejected(Rejection),
    /// The service, or the way to it, failed: this is logged.
    Failed(Failed),
    /// The client is gone, or takes nothing any more.
    Left,
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<PathError> for Stop {
    fn from(error: PathError) -> Self {
        Self::Rejected(error.into())
    }
}

impl From<Failed> for Stop {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Failed(Failed::Header(fault))
    }
}

/// How a service failed.
pub enum Failed {
    /// There is no server, or none is left to try.
    NoServer,
    Connect(Box<Error>),
    /// The connection closed before the first byte of a response.
    Closed,
    ClosedInHeader,
    ClosedInBody,
    Read(io::Error),
    Write(io::Error),
    NoResponse,
    BodyStalled,
    RequestNotTaken,
    Header(Fault),
    /// The chunks of a body, or its trailers.
    Chunks,
}

/// The timeouts of a request's service.
#[derive(Default)]
pub struct Patience {
    pub connect: Duration,
    pub read: Duration,
    pub write: Duration,
}

impl Failed {
    pub fn rejection(&self) -> Rejection {
        match self {
            Self::NoServer => Rejection::NoUpstream,
            Self::Connect(error) => failure::rejection(error).unwrap_or(Rejection::BadGateway),
            Self::NoResponse | Self::BodyStalled | Self::RequestNotTaken => {
                Rejection::GatewayTimeout
            }
            _ => Rejection::BadGateway,
        }
    }

    /// In words, without anything that the service or the client chose but names of headers.
    pub fn cause(&self, patience: &Patience) -> Cow<'static, str> {
        match self {
            Self::NoServer => "no server is left to try".into(),
            Self::Connect(error) => failure::cause_of_connect(error, patience.connect),
            Self::Closed => "closed before a response".into(),
            Self::ClosedInHeader => "closed within the response header".into(),
            Self::ClosedInBody => "closed before the end of the response body".into(),
            Self::Read(error) => of_io("cannot read the response", error),
            Self::Write(error) => of_io("cannot send the request", error),
            Self::NoResponse => {
                let time = format_duration(patience.read);
                format!("no response within read_timeout ({time})").into()
            }
            Self::BodyStalled => {
                let time = format_duration(patience.read);
                format!("response body stalled for read_timeout ({time})").into()
            }
            Self::RequestNotTaken => {
                let time = format_duration(patience.write);
                format!("request not taken within write_timeout ({time})").into()
            }
            Self::Header(fault) => fault.to_string().into(),
            Self::Chunks => "response body malformed: chunked encoding".into(),
        }
    }
}

fn of_io(what: &'static str, error: &io::Error) -> Cow<'static, str> {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset".into(),
        _ => format!("{what}: {error}").into(),
    }
}

/// What becomes of a request whose body breaks on its way to the service.
pub fn of_request_body(broken: Broken) -> Stop {
    match broken {
        Broken::Read(_) | Broken::Ended => Stop::Left,
        Broken::Malformed => Rejection::BadRequest("the body is malformed").into(),
        Broken::TooLarge => Rejection::BodyTooLarge.into(),
        Broken::TooSlow => Rejection::RequestTimeout.into(),
        Broken::Write(error) => Failed::Write(error).into(),
    }
}

/// What becomes of a request whose response breaks on its way to the client.
pub fn of_response_body(broken: Broken) -> Stop {
    match broken {
        Broken::Read(error) => Failed::Read(error).into(),
        Broken::Ended => Failed::ClosedInBody.into(),
        Broken::Malformed => Failed::Chunks.into(),
        Broken::Write(_) | Broken::TooLarge | Broken::TooSlow => Stop::Left,
    }
}
