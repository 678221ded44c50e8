//! How failures of calls to WeChat are described to operators.
//!
//! An address is shown as scheme, host and port only: its query contains the app secret, and the
//! path of a relay or the password of a proxy may be secret too. Causes are a closed set, so that
//! they can be used as keys.

use std::error::Error;
use std::fmt;
use std::io;
use std::iter::successors;
use std::sync::Arc;

use rustls::CertificateError;

use crate::identity::secret::Secret;

/// A failure and its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// The address that was called, if any.
    pub destination: Option<Arc<Destination>>,
    pub cause: Cause,
    /// Whether the egress proxy failed, not WeChat.
    is_proxy_error: bool,
}

/// An address of WeChat, and the proxy to it.
#[derive(Debug, PartialEq, Eq)]
pub struct Destination {
    address: String,
    proxy: Option<String>,
}

impl Destination {
    pub fn new(base_url: &str, proxy: Option<&Secret>) -> Self {
        Self { address: origin(base_url), proxy: proxy.map(|proxy| origin(proxy.expose())) }
    }

    /// Scheme, host and port of WeChat's address.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.address)?;
        match &self.proxy {
            Some(proxy) => write!(formatter, " through egress proxy {proxy}"),
            None => Ok(()),
        }
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> String {
    let origin = reqwest::Url::parse(url).map(|url| url.origin().ascii_serialization());
    origin.unwrap_or_default()
}

/// The cause of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    ConnectionRefused,
    Dns,
    ConnectTimeout,
    NoRoute,
    Closed,
    Handshake,
    NoConnection,
    ProxyPassword,
    NoTunnel,
    UnknownIssuer,
    Expired,
    NotYetValid,
    WrongName,
    Revoked,
    BadCertificate,
    NoResponse,
    Status(u16),
    Malformed(&'static str),
}

impl Cause {
    /// The cause of an error before the request was sent.
    pub fn of_connection(error: &reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::ConnectTimeout;
        }
        chain(error).find_map(Self::of_link).unwrap_or(Self::NoConnection)
    }

    /// The cause of a rejected certificate; `None` for other errors.
    pub fn of_certificate(error: &reqwest::Error) -> Option<Self> {
        chain(error).find_map(|link| match link.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(error)) => Some(match error {
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Self::Expired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
                CertificateError::Revoked => Self::Revoked,
                _ => Self::BadCertificate,
            }),
            _ => None,
        })
    }

    /// The cause in one error of a chain. Some error types can be recognised only by their texts;
    /// tests with real connections check these.
    fn of_link(link: &(dyn Error + 'static)) -> Option<Self> {
        if link.is::<rustls::Error>() {
            return Some(Self::Handshake);
        }
        if let Some(error) = link.downcast_ref::<io::Error>() {
            use io::ErrorKind as Kind;
            return match error.kind() {
                Kind::ConnectionRefused => Some(Self::ConnectionRefused),
                Kind::TimedOut => Some(Self::ConnectTimeout),
                Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::AddrNotAvailable => {
                    Some(Self::NoRoute)
                }
                Kind::ConnectionReset
                | Kind::ConnectionAborted
                | Kind::BrokenPipe
                | Kind::UnexpectedEof => Some(Self::Closed),
                _ => None,
            };
        }
        // Its text contains the URL.
        if link.is::<reqwest::Error>() {
            return None;
        }
        match link.to_string().as_str() {
            "dns error" => Some(Self::Dns),
            "tunnel error: proxy authorization required" => Some(Self::ProxyPassword),
            // The next error of the chain says more.
            "tunnel error: failed to create underlying connection" => None,
            text if text.starts_with("tunnel error: ") => Some(Self::NoTunnel),
            _ => None,
        }
    }

    /// The description, without the number of an HTTP status: one of a fixed set of texts.
    pub fn text(self) -> &'static str {
        match self {
            Self::ConnectionRefused => "connection refused",
            Self::Dns => "DNS lookup failed",
            Self::ConnectTimeout => "timed out connecting",
            Self::NoRoute => "no route to the address",
            Self::Closed => "connection closed",
            Self::Handshake => "TLS handshake failed",
            Self::NoConnection => "cannot connect",
            Self::ProxyPassword => "wrong or missing user and password (HTTP status 407)",
            Self::NoTunnel => "no tunnel to WeChat",
            Self::UnknownIssuer => {
                "unknown issuer: put the CA of a relay, or of a proxy that inspects TLS, in \
                 wechat.ca_file"
            }
            Self::Expired => "expired, or this machine's clock is wrong",
            Self::NotYetValid => "not valid yet, or this machine's clock is wrong",
            Self::WrongName => "issued for another host name",
            Self::Revoked => "revoked",
            Self::BadCertificate => "invalid",
            Self::NoResponse => "no response within wechat.timeout",
            Self::Status(300..400) => "HTTP status; redirects are not followed",
            Self::Status(_) => "HTTP status",
            Self::Malformed(how) => how,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.text().strip_prefix("HTTP status")) {
            (Self::Status(status), Some(rest)) => {
                write!(formatter, "HTTP status {status}{rest}")
            }
            _ => formatter.write_str(self.text()),
        }
    }
}

impl CallError {
    pub fn new(destination: Option<Arc<Destination>>, cause: Cause) -> Self {
        Self { destination, cause, is_proxy_error: false }
    }

    /// The failure for a rejected certificate; `None` for other errors.
    pub fn of_certificate(destination: &Arc<Destination>, error: &reqwest::Error) -> Option<Self> {
        Cause::of_certificate(error).map(|cause| Self::new(Some(destination.clone()), cause))
    }

    /// The failure for an error before the request was sent.
    pub fn of_connection(destination: &Arc<Destination>, error: &reqwest::Error) -> Self {
        let cause = Cause::of_connection(error);
        // With a proxy, the gateway looks up and connects to the proxy only.
        let is_proxy_error = destination.proxy.is_some()
            && matches!(
                cause,
                Cause::ConnectionRefused
                    | Cause::Dns
                    | Cause::NoRoute
                    | Cause::ProxyPassword
                    | Cause::NoTunnel
            );
        Self { destination: Some(destination.clone()), cause, is_proxy_error }
    }

    /// What distinguishes it from other failures.
    pub fn kind(&self) -> (bool, Cause) {
        (self.is_proxy_error, self.cause)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(destination) = &self.destination else {
            return write!(formatter, "{}", self.cause);
        };
        match &destination.proxy {
            Some(proxy) if self.is_proxy_error => {
                write!(formatter, "egress proxy {proxy}: {} ({})", self.cause, destination.address)
            }
            _ => write!(formatter, "{} ({destination})", self.cause),
        }
    }
}

/// An error and its causes, outermost first. An `io::Error` does not return the error that it wraps
/// as its source.
pub fn chain(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    successors(Some(error as &(dyn Error + 'static)), |&error| {
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}
