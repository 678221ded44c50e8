//! Whether a request that a browser sent with a session cookie was made by a page of its own site.
//!
//! Browsers add cookies to requests of any page. So a request by cookie that may change something,
//! and every WebSocket by cookie, must come from the same origin: `Sec-Fetch-Site` (Fetch
//! Metadata), which pages cannot set, decides, or, without it, `Origin`. A page of another origin
//! may be listed in the route's `cors`, with `credentials`.

use http::header::ORIGIN;
use http::{HeaderName, Method};

use super::browsers::BrowserHost;
use super::websocket;
use crate::message::header::Headers;
use crate::message::rejection::Rejection;
use crate::route::cors::Cors;

pub static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The request headers on which the decision about a cookie depends.
pub fn deciding_headers() -> impl Iterator<Item = HeaderName> {
    [SEC_FETCH_SITE.clone(), ORIGIN].into_iter().chain(websocket::SIGNS.iter().cloned())
}

/// What decides, besides the headers, whether a session cookie is read and accepted.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// The `[[browser]]` of the request's host. Without it, no cookie is read.
    pub host: Option<&'a BrowserHost>,
    pub method: &'a Method,
    pub is_websocket: bool,
    /// Of the route.
    pub cors: Option<&'a Cors>,
}

impl Site<'_> {
    /// Checks a request whose session was found by its cookie.
    ///
    /// # Errors
    /// When it may change something, and does not come from the same origin.
    pub fn check(&self, headers: &impl Headers) -> Result<(), Rejection> {
        let is_safe = matches!(*self.method, Method::GET | Method::HEAD | Method::OPTIONS);
        if is_safe && !self.is_websocket || self.is_same_origin(headers) {
            return Ok(());
        }
        let is_listed = self.cors.is_some_and(|cors| cors.allows_credentials(headers));
        if is_listed { Ok(()) } else { Err(Rejection::CrossSite) }
    }

    /// Whether the request comes from the same origin, or from the user.
    pub fn is_same_origin(&self, headers: &impl Headers) -> bool {
        if headers.first(&SEC_FETCH_SITE).is_some() {
            let site = headers.only(&SEC_FETCH_SITE);
            return matches!(site, Some(b"same-origin" | b"none"));
        }
        let origin = headers.only(&ORIGIN);
        self.host.is_some_and(|host| origin == Some(host.origin.as_bytes()))
    }
}
