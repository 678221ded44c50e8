//! What a route may say beyond its path: plain data, as the rest of the configuration.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

/// Hosts that a route is for, in lower case and without port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Exact(String),
    /// What follows the `*`, as `.example.com`: one label or more stand before it.
    Wildcard(String),
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => out.write_str(name),
            Self::Wildcard(suffix) => write!(out, "*{suffix}"),
        }
    }
}

/// Who answers a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Service {
        /// Index into [`super::Config::upstreams`].
        upstream: usize,
        /// Parts of the users that go elsewhere; together they are not more than all.
        split: Vec<Share>,
    },
    /// The gateway, always the same.
    Answer(StaticAnswer),
    /// Another proxy, which only asks.
    Elsewhere,
}

/// A part of a route's users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Index into [`super::Config::upstreams`].
    pub upstream: usize,
    /// Of 10,000 users.
    pub users: u16,
}

/// What is answered without a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticAnswer {
    pub status: u16,
    pub content_type: HeaderValue,
    pub body: Vec<u8>,
}

/// What becomes of a request's path: `strip` is where it begins, and `add` takes its place.
/// Both are without trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewriting {
    pub strip: String,
    pub add: String,
}

/// Headers to remove and to write; none of them is the gateway's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

/// What a route says instead of its upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Option<Duration>,
    pub read: Option<Duration>,
    pub write: Option<Duration>,
}

/// Which pages of other origins may ask a route, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    pub origins: Origins,
    pub methods: Vec<String>,
    pub headers: Vec<HeaderName>,
    pub expose: Vec<HeaderName>,
    pub credentials: bool,
    pub max_age: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    Any,
    /// As browsers send them.
    Listed(Vec<HeaderValue>),
}

/// The cache headers of a route's responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// `Vary`, and `private` on responses to users.
    Private,
    /// Only what the service sends.
    AsSent,
}

/// What becomes of a browser's question whether it may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preflight {
    /// Answered here where [`Cors`] says how; else it is a request like any other.
    Answer,
    /// Forwarded, without identity.
    Pass,
}
