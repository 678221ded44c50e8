//! Why a request ends early: the response to the client, and the log line.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use humantime::format_duration;
use pingora::{Error, ErrorType};

use super::body::Broken;
use crate::clock::Clock;
use crate::message::rejection::Rejection;
use crate::message::response_header::Fault;
use crate::route::MatchError;
use crate::telemetry::log_throttle::LogThrottles;

/// Prefix of the cause when a response header is malformed.
const MALFORMED: &str = "response header malformed: ";

/// The number of groups in which causes of this kind are throttled.
const KINDS_MALFORMED: usize = 16;

/// The fault of a `101` to a request that was not a WebSocket handshake.
pub const UNREQUESTED_UPGRADE: &str = "Upgrade (101 without a WebSocket handshake)";

/// Why a request ends early.
pub enum Stop {
    /// It is rejected, or its client made an error.
    Rejected(Rejection),
    /// The service failed, or could not be reached. This is logged.
    Failed(Failed),
    /// The client disconnected, or stopped reading.
    Disconnected,
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<MatchError> for Stop {
    fn from(error: MatchError) -> Self {
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
    /// No server exists, or all were tried.
    NoServer,
    Connect(Box<Error>),
    /// The connection was closed before the first byte of a response.
    Closed,
    ClosedInHeader,
    ClosedInBody,
    Read(io::Error),
    Write(io::Error),
    NoResponse,
    BodyStalled,
    RequestNotAccepted,
    Header(Fault),
    /// The chunks of a body, or its trailers, are malformed.
    Chunks,
}

/// The timeouts of a request's upstream.
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
            Self::Connect(error) => match error.etype() {
                ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => {
                    Rejection::GatewayTimeout
                }
                _ => Rejection::BadGateway,
            },
            Self::NoResponse | Self::BodyStalled | Self::RequestNotAccepted => {
                Rejection::GatewayTimeout
            }
            _ => Rejection::BadGateway,
        }
    }

    /// The cause as text. It contains nothing sent by the client or the service except header
    /// names.
    pub fn cause(&self, patience: &Patience) -> Cow<'static, str> {
        match self {
            Self::NoServer => "no server left to try".into(),
            Self::Connect(error) => of_connect(error, patience.connect),
            Self::Closed => "connection closed before a response".into(),
            Self::ClosedInHeader => "connection closed within the response header".into(),
            Self::ClosedInBody => "connection closed before the end of the response body".into(),
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
            Self::RequestNotAccepted => {
                let time = format_duration(patience.write);
                format!("request not accepted within write_timeout ({time})").into()
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

/// Why no connection could be opened. Only the kind of pingora's error and the system's reason are
/// logged, not pingora's text.
fn of_connect(error: &Error, limit: Duration) -> Cow<'static, str> {
    match innermost(error).etype() {
        ErrorType::ConnectRefused => "connection refused".into(),
        ErrorType::ConnectNoRoute => "no route to the server".into(),
        ErrorType::ConnectTimedout => {
            let time = format_duration(limit);
            format!("connect timed out (connect_timeout {time})").into()
        }
        ErrorType::ConnectError | ErrorType::SocketError | ErrorType::BindError => {
            match error.root_cause().downcast_ref::<io::Error>() {
                Some(reason) => format!("cannot connect: {reason}").into(),
                None => "cannot connect".into(),
            }
        }
        kind => format!("internal error ({})", kind.as_str()).into(),
    }
}

/// The innermost cause of an error.
fn innermost(error: &Error) -> &Error {
    let inner = error.cause.as_deref().and_then(|cause| cause.downcast_ref::<Box<Error>>());
    inner.map_or(error, |inner| innermost(inner))
}

/// How a request ends if its body could not be forwarded to the service.
pub fn of_request_body(broken: Broken) -> Stop {
    match broken {
        Broken::Read(_) | Broken::Ended => Stop::Disconnected,
        Broken::Malformed => Rejection::BadRequest("the body is malformed").into(),
        Broken::TooLarge => Rejection::BodyTooLarge.into(),
        Broken::TrailersTooLarge => Rejection::HeadersTooLarge.into(),
        Broken::TooSlow => Rejection::RequestTimeout.into(),
        Broken::Write(error) => Failed::Write(error).into(),
        Broken::ReceiverTooSlow => Failed::RequestNotAccepted.into(),
    }
}

/// How a request ends if its response could not be forwarded to the client.
pub fn of_response_body(broken: Broken) -> Stop {
    match broken {
        Broken::Read(error) => Failed::Read(error).into(),
        Broken::Ended => Failed::ClosedInBody.into(),
        Broken::Malformed | Broken::TrailersTooLarge => Failed::Chunks.into(),
        Broken::Write(_) | Broken::ReceiverTooSlow | Broken::TooLarge | Broken::TooSlow => {
            Stop::Disconnected
        }
    }
}

/// A failure to be logged.
pub struct Failure<'a> {
    pub request_id: &'a str,
    pub route: Option<&'a str>,
    /// The upstream's name.
    pub upstream: Option<&'a str>,
    pub server: Option<SocketAddr>,
    pub cause: Cow<'static, str>,
    /// Whether the connection had served a request before.
    pub is_reused: bool,
}

/// The log of failures, throttled per upstream and kind of cause.
pub struct Failures(LogThrottles<(String, Cow<'static, str>)>);

impl Failures {
    pub fn new(clock: Clock) -> Self {
        Self(LogThrottles::new(clock))
    }

    /// Logs that a valid request has failed.
    pub fn log(&self, failure: &Failure<'_>) {
        let upstream = failure.upstream.unwrap_or_default().to_owned();
        let Some(suppressed) = self.0.suppressed((upstream, kind(failure.cause.clone()))) else {
            return;
        };
        tracing::warn!(
            request_id = failure.request_id,
            route = failure.route,
            upstream = failure.upstream,
            server = failure.server.map(tracing::field::display),
            cause = &*failure.cause,
            reused = failure.is_reused.then_some(true),
            suppressed,
            "request failed"
        );
    }

    /// Logs that a connection to a server failed; another server may still serve the request.
    pub fn log_failed_connect(&self, failure: &Failure<'_>) {
        let server = failure.server.map(|server| server.to_string()).unwrap_or_default();
        let Some(suppressed) = self.0.suppressed((server, kind(failure.cause.clone()))) else {
            return;
        };
        tracing::warn!(
            request_id = failure.request_id,
            upstream = failure.upstream,
            server = failure.server.map(tracing::field::display),
            cause = &*failure.cause,
            suppressed,
            "cannot connect to a server, trying another"
        );
    }
}

/// The cause, or the group it shares with others. The service chooses header names, and they must
/// neither fill the log nor displace other kinds.
fn kind(cause: Cow<'static, str>) -> Cow<'static, str> {
    let Some(fault) = cause.strip_prefix(MALFORMED) else { return cause };
    let sum: usize = fault.bytes().map(usize::from).sum();
    format!("{MALFORMED}{}", sum % KINDS_MALFORMED).into()
}
