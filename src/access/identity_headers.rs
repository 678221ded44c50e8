//! The identity headers for services, and the headers that only the gateway may write.
//!
//! Services trust these headers blindly, so only this code may write them. It first removes what
//! the client sent under the same names, on every route, including those with `auth = "none"`.
//! CGI-like services fold `X_OpenId`, `X.OpenId` and `X-OpenId` into one variable, so names are
//! compared folded: every byte that is not a letter or digit counts as `_`, and case is ignored.
//! The gateway's headers are written after everything else that removes headers has run;
//! `proxy::compose` ensures that order. This module does not know how an identity was verified.

mod optional;
mod removal;

use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderName, HeaderValue, InvalidHeaderValue, SET_COOKIE};
use http::{HeaderMap, StatusCode};

use self::optional::OptionalHeaders;
pub use self::removal::RemovalReason;
use super::cookies::OwnCookies;
use super::signed_identity::SignedIdentity;
use crate::config::Config;
use crate::identity::{Identity, UnionId, token};
use crate::message::header::lines::write_line;
use crate::message::header::reserved::{
    CLOUD_RUN, FROM_TRUSTED, HTTP2_SETTINGS, JWT, METHOD_OVERRIDES, OF_CONNECTION,
    ORIGINAL_REQUEST, PRESET, WRITTEN,
};
use crate::message::header::{FoldedNames, HeadersMut, nominated};
use crate::message::rejection::ERROR_HEADER;
use crate::session::Session;

pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

pub static FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
pub static FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Removes and writes headers as one configuration requires.
pub struct IdentityHeaders {
    request: FoldedNames,
    response: FoldedNames,
    strips_bearer: bool,
    /// The names for the openid, the app id and the unionid.
    identity: [HeaderName; 3],
    /// `None` if there are no other identity headers.
    optional: Option<Box<OptionalHeaders>>,
    /// Removed from requests and responses.
    pub(crate) cookies: OwnCookies,
    /// Headers that a forward-auth proxy writes or removes. They are also kept folded, to recognise
    /// other spellings.
    decision_names: Vec<HeaderName>,
    decision_names_folded: FoldedNames,
}

/// An identity could not be written: it could not be signed, or is not a legal header value. The
/// request must then not be forwarded.
#[derive(Debug, thiserror::Error)]
#[error("the identity cannot be written")]
pub struct Unwritable;

impl From<InvalidHeaderValue> for Unwritable {
    fn from(_: InvalidHeaderValue) -> Self {
        Self
    }
}

/// The values of the forwarding headers.
pub struct Forwarding {
    pub request_id: HeaderValue,
    /// The whole value of `X-Forwarded-For`.
    pub forwarded_for: HeaderValue,
    pub proto: HeaderValue,
    pub host: Option<HeaderValue>,
    pub client: HeaderValue,
    /// Whether the peer is one of `server.trusted_proxies`.
    pub is_trusted: bool,
}

impl IdentityHeaders {
    pub fn new(config: &Config) -> Self {
        let Config { identity, session, .. } = config;
        let own = identity.headers().into_iter().chain([&session.header]);
        let own: Vec<_> = own.map(HeaderName::as_str).chain([JWT]).collect();
        let optional = OptionalHeaders::new(config);
        let request = own.iter().copied().chain(CLOUD_RUN).chain(WRITTEN).chain(FROM_TRUSTED);
        let request = request.chain([HTTP2_SETTINGS]);
        let decision_names: Vec<_> = ORIGINAL_REQUEST
            .into_iter()
            .chain(CLOUD_RUN)
            .chain([JWT])
            .map(HeaderName::from_static)
            .chain(identity.headers().into_iter().cloned())
            .collect();
        // A service that repeats what it received must not show the client its openid.
        let preset = identity.preset.map_or(&[][..], |_| &PRESET);
        let own = own.iter().copied().chain(preset.iter().copied());
        let response = own.chain([ERROR_HEADER.as_str()]).chain(OF_CONNECTION);
        Self {
            request: FoldedNames::new(request),
            response: FoldedNames::new(response),
            strips_bearer: session.carriers.bearer,
            cookies: OwnCookies::default(),
            decision_names_folded: FoldedNames::new(decision_names.iter().map(HeaderName::as_str)),
            decision_names,
            identity: [
                identity.openid_header.clone(),
                identity.app_id_header.clone(),
                identity.union_id_header.clone(),
            ],
            optional: optional.is_on().then(|| Box::new(optional)),
        }
    }

    /// Also signs the identity.
    #[must_use]
    pub(crate) fn signing(mut self, signed: Option<Arc<SignedIdentity>>) -> Self {
        if let Some(optional) = &mut self.optional {
            optional.signed = signed;
        }
        self
    }

    /// Also removes headers that override the method, if routes match by method: otherwise the
    /// service could see a different method from the one that was matched.
    #[must_use]
    pub fn removing_overrides(mut self, routes_trust_methods: bool) -> Self {
        let overrides = METHOD_OVERRIDES.into_iter().filter(|_| routes_trust_methods);
        for name in overrides {
            self.request.insert(name);
            // Another proxy would forward it.
            self.decision_names_folded.insert(name);
        }
        self
    }

    /// Also removes these cookies.
    #[must_use]
    pub(crate) fn removing_cookies(self, cookies: OwnCookies) -> Self {
        Self { cookies, ..self }
    }

    /// Removes the client's lines of the gateway's headers, and writes exactly one line of each.
    /// The identity headers are written only if there is an identity. `jwt` is the signed identity.
    ///
    /// # Errors
    /// When a value cannot be written; the request must then not be forwarded.
    pub fn apply(
        &self,
        request: &mut impl HeadersMut,
        forwarding: &Forwarding,
        identity: Option<&Identity>,
        jwt: Option<&HeaderValue>,
    ) -> Result<(), InvalidHeaderValue> {
        request.remove_if(|name, value| self.strips(name, value, forwarding.is_trusted));
        for (name, value) in [
            (&REQUEST_ID, &forwarding.request_id),
            (&FORWARDED_FOR, &forwarding.forwarded_for),
            (&FORWARDED_PROTO, &forwarding.proto),
            (&REAL_IP, &forwarding.client),
        ] {
            request.add(name, value);
        }
        if let Some(host) = &forwarding.host {
            request.add(&FORWARDED_HOST, host);
        }
        let mut written = Ok(());
        if identity.is_some() {
            self.each(identity, jwt, |name, value| match value.map(HeaderValue::from_bytes) {
                Some(Ok(value)) => request.add(name, &value),
                Some(Err(error)) => written = Err(error),
                None => {}
            });
        }
        written
    }

    /// Writes the forwarding headers and the request id. Every line that [`Self::strips`] selects
    /// must have been removed before.
    pub fn write(&self, forwarding: &Forwarding, out: &mut Vec<u8>) {
        for (name, value) in [
            (&REQUEST_ID, Some(&forwarding.request_id)),
            (&FORWARDED_FOR, Some(&forwarding.forwarded_for)),
            (&FORWARDED_PROTO, Some(&forwarding.proto)),
            (&REAL_IP, Some(&forwarding.client)),
            (&FORWARDED_HOST, forwarding.host.as_ref()),
        ] {
            if let Some(value) = value {
                write_line(out, name.as_str().as_bytes(), value.as_bytes());
            }
        }
    }

    /// Writes the identity headers. Every line that [`Self::strips`] selects must have been removed
    /// before. `audience` is the index of the upstream.
    ///
    /// # Errors
    /// When the identity cannot be signed; the request must then not be forwarded.
    pub fn write_identity(
        &self,
        session: &Session,
        audience: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Unwritable> {
        let jwt = self.jwt(session, audience)?;
        self.each(Some(&session.identity), jwt.as_ref(), |name, value| {
            if let Some(value) = value {
                write_line(out, name.as_str().as_bytes(), value);
            }
        });
        Ok(())
    }

    /// The signed identity; `None` if it is off.
    fn jwt(&self, session: &Session, audience: usize) -> Result<Option<HeaderValue>, Unwritable> {
        self.optional.as_ref().map_or(Ok(None), |optional| optional.jwt(session, audience))
    }

    /// Calls `each` with every identity header, and its value if it has one.
    #[inline]
    fn each<'a>(
        &'a self,
        identity: Option<&'a Identity>,
        jwt: Option<&'a HeaderValue>,
        mut each: impl FnMut(&'a HeaderName, Option<&'a [u8]>),
    ) {
        let [openid, app_id, unionid] = &self.identity;
        let union_of = |identity: &'a Identity| identity.unionid.as_ref().map(UnionId::as_str);
        each(openid, identity.map(|identity| identity.openid.as_str().as_bytes()));
        each(app_id, identity.map(|identity| identity.app_id.as_str().as_bytes()));
        each(unionid, identity.and_then(union_of).map(str::as_bytes));
        if let Some(optional) = &self.optional {
            optional.each(identity, jwt, each);
        }
    }

    /// Whether a header line of a request is removed before the gateway writes its own.
    pub fn strips(&self, name: &[u8], value: &[u8], is_trusted: bool) -> bool {
        self.is_stripped(name, is_trusted) || self.is_token(name, value)
    }

    fn is_token(&self, name: &[u8], value: &[u8]) -> bool {
        self.strips_bearer
            && name.eq_ignore_ascii_case(AUTHORIZATION.as_str().as_bytes())
            && token::bearer_token(value).is_some()
    }

    /// Writes the identity into the response to another proxy. Each header is written once, and is
    /// empty if it has no value, so that it replaces what the client sent. `audience` is that of
    /// the original request's route.
    ///
    /// # Errors
    /// When a value cannot be written or signed; the request must then not be allowed.
    pub fn write_decision(
        &self,
        headers: &mut HeaderMap,
        session: Option<&Session>,
        audience: Option<usize>,
    ) -> Result<(), Unwritable> {
        let jwt = session.zip(audience).map(|(session, audience)| self.jwt(session, audience));
        let jwt = jwt.transpose()?.flatten();
        let identity = session.map(|session| &session.identity);
        let mut written = Ok(());
        self.each(identity, jwt.as_ref(), |name, value| {
            match HeaderValue::from_bytes(value.unwrap_or_default()) {
                Ok(value) => {
                    headers.insert(name, value);
                }
                Err(error) => written = Err(error.into()),
            }
        });
        written
    }

    /// Whether another proxy forwarded a header that it should have removed: another spelling of a
    /// header that it writes or removes, or a method override, if routes match by method.
    pub fn has_lookalike(&self, forwarded: &HeaderMap) -> bool {
        forwarded.keys().any(|name| {
            self.decision_names_folded.contains(name.as_str())
                && !self.decision_names.contains(name)
        })
    }

    fn is_stripped(&self, name: &[u8], is_trusted: bool) -> bool {
        let is_it = |other: &str| other.as_bytes().eq_ignore_ascii_case(name);
        self.request.contains(name) && !(is_trusted && FROM_TRUSTED.iter().any(|name| is_it(name)))
    }

    /// Removes from a service's response the identity and session headers, the header that marks
    /// the gateway's own errors, and hop-by-hop headers.
    pub fn clean_response(&self, status: u16, response: &mut impl HeadersMut) {
        let is_kept = |name: &[u8]| {
            // A service must not remove framing; the others are connection options.
            is_framing(name) || is_any(name, &["upgrade", "keep-alive", "close"])
        };
        let nominated = nominated(response).filter(|name| !is_kept(name));
        let nominated: Vec<Box<[u8]>> = nominated.map(Box::from).collect();
        // A service's offer to upgrade, such as Apache's of HTTP/2, is meant for the gateway.
        let declines = status != StatusCode::SWITCHING_PROTOCOLS.as_u16();
        // These have no body, and must not announce one (RFC 9110, section 8.6, and RFC 9112,
        // section 6.1).
        let has_no_body = status < 200 || status == StatusCode::NO_CONTENT.as_u16();
        let has_cookies = self.cookies.are_on();
        response.remove_if(|name, value| {
            self.response.contains(name)
                || has_cookies && self.sets_own_cookie(name, value)
                || nominated.iter().any(|one| one.eq_ignore_ascii_case(name))
                || declines && is_any(name, &["upgrade"])
                || has_no_body && is_framing(name)
        });
    }

    fn sets_own_cookie(&self, name: &[u8], value: &[u8]) -> bool {
        is_any(name, &[SET_COOKIE.as_str()]) && self.cookies.is_set_by(value)
    }

    /// Whether a header of a service's response is removed, whatever the status.
    pub fn cleans(&self, name: &[u8]) -> bool {
        self.response.contains(name)
    }
}

fn is_framing(name: &[u8]) -> bool {
    is_any(name, &["content-length", "transfer-encoding"])
}

fn is_any(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|other| name.eq_ignore_ascii_case(other.as_bytes()))
}

#[cfg(test)]
mod tests;
