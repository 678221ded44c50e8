//! The gateway's own endpoints, and the methods that each allows.

use std::borrow::Cow;

use crate::message::rejection::Rejection;

/// What a request matched: an endpoint of the gateway, a route, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Login,
    Logout,
    Session,
    /// Begins a login by redirect.
    Start,
    /// Completes it.
    Callback,
    Ticket,
    Scan,
    /// A scan that has begun: the path below [`Self::Scan`].
    ScanById,
    Health,
    /// The public keys that verify signed identities.
    Jwks,
    /// Index of the route in [`Routes`](super::Routes).
    Route(usize),
    /// Nothing is served under this path.
    None,
}

impl Endpoint {
    /// The name in the configuration; `None` if it is not an endpoint.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Login => Some("login"),
            Self::Logout => Some("logout"),
            Self::Session => Some("session"),
            Self::Start => Some("start"),
            Self::Callback => Some("callback"),
            Self::Ticket => Some("ticket"),
            Self::Scan | Self::ScanById => Some("scan"),
            Self::Health => Some("health"),
            Self::Jwks => Some("jwks"),
            Self::Route(_) | Self::None => None,
        }
    }

    /// The endpoint of a path, if it is this one with the path `own`, or one below it.
    pub(super) fn at(self, own: &str, path: &[u8]) -> Option<Self> {
        if self != Self::Scan {
            return (path == own.as_bytes()).then_some(self);
        }
        match path.strip_prefix(own.as_bytes())? {
            [] => Some(self),
            [b'/', id @ ..] if !id.is_empty() && !id.contains(&b'/') => Some(Self::ScanById),
            _ => None,
        }
    }

    /// Checks the method of a request to an endpoint. Routes check their own.
    ///
    /// # Errors
    /// 405, with the allowed methods. `login.accept` decides whether a login `takes_query`.
    pub fn judge_method(self, method: &str, takes_query: bool) -> Result<(), Rejection> {
        let allow = match self {
            Self::Login if takes_query => "GET, POST",
            Self::Login | Self::Logout | Self::Ticket | Self::Scan => "POST",
            // One request uses up a code or a confirmed scan: HEAD would lose its response.
            Self::Start | Self::Callback => "GET",
            Self::ScanById => "GET, POST",
            Self::Session | Self::Health | Self::Jwks => "GET, HEAD",
            Self::Route(_) | Self::None => return Ok(()),
        };
        if allow.split(", ").any(|allowed| method == allowed) {
            return Ok(());
        }
        Err(Rejection::MethodNotAllowed { allow: Cow::Borrowed(allow) })
    }
}
