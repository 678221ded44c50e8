//! The gateway's own endpoints, and the methods that each allows.

use std::borrow::Cow;

use crate::message::rejection::Rejection;

/// What a request matched: an endpoint of the gateway, a route, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Login,
    Logout,
    Session,
    Health,
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
            Self::Health => Some("health"),
            Self::Route(_) | Self::None => None,
        }
    }

    /// Checks the method of a request to an endpoint. Routes check their own.
    ///
    /// # Errors
    /// 405, with the allowed methods. `login.accept` decides whether a login `takes_query`.
    pub fn judge_method(self, method: &str, takes_query: bool) -> Result<(), Rejection> {
        let allow = match self {
            Self::Login if takes_query => "GET, POST",
            Self::Login | Self::Logout => "POST",
            Self::Session | Self::Health => "GET, HEAD",
            Self::Route(_) | Self::None => return Ok(()),
        };
        if allow.split(", ").any(|allowed| method == allowed) {
            return Ok(());
        }
        Err(Rejection::MethodNotAllowed { allow: Cow::Borrowed(allow) })
    }
}
