//! The hosts of web pages, and the cookies of the gateway on each.
//!
//! A cookie belongs to one host alone: it has no `Domain`, and is read only if the request's `Host`
//! is that of its `[[browser]]`. It has no `Max-Age`, so that it ends with the browser; the session
//! ends as all others do. Attributes: RFC 6265bis, section 4.1.

use std::time::Duration;

use http::HeaderValue;

use super::cookies::{self, OwnCookies};
use crate::config;
use crate::identity::token::SessionToken;
use crate::message::header::Headers;

/// The hosts of all `[[browser]]` sections.
pub struct Browsers(Vec<BrowserHost>);

/// A host of web pages.
pub struct BrowserHost {
    pub section: config::Browser,
    /// Scheme and authority, as browsers send them in `Origin`.
    pub origin: String,
}

impl Browsers {
    pub fn new(sections: &[config::Browser]) -> Self {
        let host = |section: &config::Browser| BrowserHost {
            origin: section.base_url.to_string(),
            section: section.clone(),
        };
        Self(sections.iter().map(host).collect())
    }

    /// Whether there is any.
    pub fn are_on(&self) -> bool {
        !self.0.is_empty()
    }

    /// The names of all cookies of the gateway.
    pub fn cookies(&self) -> OwnCookies {
        OwnCookies::new(self.0.iter().map(|host| host.section.cookie.as_str()))
    }

    /// The host with this `Host` header, with or without the default port of its scheme.
    pub fn of(&self, host: Option<&[u8]>) -> Option<&BrowserHost> {
        if self.0.is_empty() {
            return None;
        }
        let host = host?;
        self.0.iter().find(|one| {
            let port: &[u8] = if one.section.base_url.is_https { b":443" } else { b":80" };
            let host = host.strip_suffix(port).unwrap_or(host);
            host.eq_ignore_ascii_case(one.section.base_url.authority.as_bytes())
        })
    }
}

impl BrowserHost {
    /// The value of the `Set-Cookie` that gives the browser a session.
    pub fn session_cookie(&self, token: &SessionToken) -> HeaderValue {
        self.line("", token.expose(), None)
    }

    /// The value of the `Set-Cookie` that removes the session cookie.
    pub fn cleared_session(&self) -> HeaderValue {
        self.line("", "", Some(Duration::ZERO))
    }

    /// The value of the `Set-Cookie` for the cookie `{cookie}-{suffix}`.
    pub fn set(&self, suffix: &str, value: &str, life: Duration) -> HeaderValue {
        self.line(suffix, value, Some(life))
    }

    /// The value of the `Set-Cookie` that removes the cookie `{cookie}-{suffix}`.
    pub fn cleared(&self, suffix: &str) -> HeaderValue {
        self.line(suffix, "", Some(Duration::ZERO))
    }

    /// The value of the cookie `{cookie}-{suffix}`; `None` also if there are two different ones.
    pub fn value<'a>(&self, headers: &'a impl Headers, suffix: &str) -> Option<&'a [u8]> {
        let name = format!("{}-{suffix}", self.section.cookie);
        let mut values = cookies::all(headers).filter(|(other, _)| *other == name.as_bytes());
        let (_, first) = values.next()?;
        values.all(|(_, value)| value == first).then_some(first)
    }

    /// Suffixes and values of the gateway's cookies other than the session's.
    pub fn others<'a>(
        &'a self,
        headers: &'a impl Headers,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        cookies::all(headers).filter_map(|(name, value)| {
            let suffix = name.strip_prefix(self.section.cookie.as_bytes())?.strip_prefix(b"-")?;
            Some((suffix, value))
        })
    }

    fn line(&self, suffix: &str, value: &str, max_age: Option<Duration>) -> HeaderValue {
        let config::Browser { cookie, base_url, .. } = &self.section;
        let dash = if suffix.is_empty() { "" } else { "-" };
        let secure = if base_url.is_https { "; Secure" } else { "" };
        let age = max_age.map_or_else(String::new, |age| format!("; Max-Age={}", age.as_secs()));
        let line =
            format!("{cookie}{dash}{suffix}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{age}");
        // Names and values are of characters that are legal in a header.
        HeaderValue::try_from(line).unwrap_or(HeaderValue::from_static(""))
    }
}
