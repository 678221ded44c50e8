//! Why a request ends early: the response to the client, and the log line.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use humantime::format_duration;

use super::body::Broken;
use crate::clock::Clock;
use crate::message::rejection::Rejection;
use crate::message::response_header::Fault;
use crate::route::MatchError;
use crate::telemetry::log_throttle::LogThrottles;
use crate::upstream::Outcome;
use crate::upstream::connection::ConnectError;
use crate::upstream::http2;
use crate::upstream::server::Address;
use crate::upstream::tls::TlsFault;

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
    /// No server exists, or none is healthy.
    NoServer,
    /// All connections are in use, and `max_pending` requests wait for one.
    QueueFull,
    /// No connection became free within `pending_timeout`.
    NoPlace(Duration),
    Connect(ConnectError),
    /// The connection was closed before the first byte of a response.
    Closed,
    ClosedInHeader,
    ClosedInBody,
    Read(io::Error),
    Write(io::Error),
    NoResponse,
    /// The route's `retry.per_try_timeout`, or the upstream's.
    NoFirstByte,
    /// The route's `timeout`, or the client's `grpc-timeout`.
    TimedOut,
    BodyStalled,
    RequestNotAccepted,
    /// The server has not processed an HTTP/2 stream, and says so.
    NotProcessed,
    Http2(http2::Fault),
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
    pub per_try: Duration,
    pub total: Duration,
}

impl Failed {
    pub fn rejection(&self) -> Rejection {
        match self {
            Self::NoServer => Rejection::NoUpstream,
            Self::QueueFull | Self::NoPlace(_) => Rejection::Overloaded,
            Self::Connect(ConnectError::TimedOut(_) | ConnectError::TlsTimedOut(_))
            | Self::NoResponse
            | Self::NoFirstByte
            | Self::BodyStalled
            | Self::RequestNotAccepted
            | Self::TimedOut => Rejection::GatewayTimeout,
            _ => Rejection::BadGateway,
        }
    }

    /// What it says about the server; `None`: nothing.
    pub fn outcome(&self) -> Option<Outcome> {
        Some(match self {
            Self::Connect(error) if error.is_own() => Outcome::NoSocket,
            Self::Connect(
                ConnectError::Tls(_)
                | ConnectError::TlsTimedOut(_)
                | ConnectError::Http2(http2::Fault::Tls(_)),
            ) => Outcome::TlsFailed,
            // With TLS 1.3 a server judges the client's certificate after the handshake.
            Self::Read(error) | Self::Write(error) if TlsFault::of(error).is_some() => {
                Outcome::TlsFailed
            }
            Self::Closed | Self::ClosedInHeader | Self::Read(_) | Self::Write(_) => Outcome::Reset,
            Self::NoResponse | Self::NoFirstByte | Self::RequestNotAccepted => Outcome::TimedOut,
            Self::Header(_)
            | Self::Http2(_)
            | Self::Connect(ConnectError::Http2(http2::Fault::Protocol(_))) => {
                Outcome::ProtocolError
            }
            Self::Connect(_) | Self::NotProcessed => Outcome::ConnectFailed,
            // There was no attempt, the route's own limit was reached, or the response has begun.
            Self::NoServer
            | Self::QueueFull
            | Self::NoPlace(_)
            | Self::TimedOut
            | Self::BodyStalled
            | Self::ClosedInBody
            | Self::Chunks => return None,
        })
    }

    /// The cause as text. It contains nothing sent by the client or the service except header
    /// names.
    pub fn cause(&self, patience: &Patience) -> Cow<'static, str> {
        match self {
            Self::NoServer => "no server is available".into(),
            Self::QueueFull => "all connections are in use, and max_pending requests wait".into(),
            Self::NoPlace(time) => {
                let time = format_duration(*time);
                format!("no connection became free within pending_timeout ({time})").into()
            }
            Self::Connect(error) => error.cause().into(),
            Self::Closed => "connection closed before a response".into(),
            Self::ClosedInHeader => "connection closed within the response header".into(),
            Self::ClosedInBody => "connection closed before the end of the response body".into(),
            Self::Read(error) => of_io("cannot read the response", error),
            Self::Write(error) => of_io("cannot send the request", error),
            Self::NoResponse => {
                let time = format_duration(patience.read);
                format!("no response within read_timeout ({time})").into()
            }
            Self::NoFirstByte => {
                let time = format_duration(patience.per_try);
                format!("no response within per_try_timeout ({time})").into()
            }
            Self::TimedOut => {
                let time = format_duration(patience.total);
                format!("not complete within timeout ({time})").into()
            }
            Self::BodyStalled => {
                let time = format_duration(patience.read);
                format!("response body stalled for read_timeout ({time})").into()
            }
            Self::RequestNotAccepted => {
                let time = format_duration(patience.write);
                format!("request not accepted within write_timeout ({time})").into()
            }
            Self::NotProcessed => http2::Fault::NotProcessed.to_string().into(),
            Self::Http2(fault) => fault.to_string().into(),
            Self::Header(fault) => fault.to_string().into(),
            Self::Chunks => "response body malformed: chunked encoding".into(),
        }
    }
}

fn of_io(what: &'static str, error: &io::Error) -> Cow<'static, str> {
    if let Some(fault) = TlsFault::of(error) {
        return format!("TLS: {fault}").into();
    }
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset".into(),
        _ => match http2::Fault::of(error) {
            Some(fault) => fault.to_string().into(),
            None => format!("{what}: {error}").into(),
        },
    }
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
        // With TLS, an end that is not announced is an error, also of a body that ends with the
        // connection (RFC 9112, section 9.8).
        Broken::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Failed::ClosedInBody.into()
        }
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
    pub server: Option<&'a Address>,
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

    /// Logs that an attempt failed and that another one follows.
    pub fn log_failed_attempt(&self, failure: &Failure<'_>) {
        let server = failure.server.map(ToString::to_string).unwrap_or_default();
        let Some(suppressed) = self.0.suppressed((server, kind(failure.cause.clone()))) else {
            return;
        };
        tracing::warn!(
            request_id = failure.request_id,
            upstream = failure.upstream,
            server = failure.server.map(tracing::field::display),
            cause = &*failure.cause,
            reused = failure.is_reused.then_some(true),
            suppressed,
            "an attempt failed, trying another server"
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
