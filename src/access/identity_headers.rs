//! The identity headers for services, and the headers that only the gateway may write.
//!
//! Services trust these headers blindly, so only this code may write them. It first removes what
//! the client sent under the same names, on every route, including those with `auth = "none"`.
//! CGI-like services fold `X_OpenId`, `X.OpenId` and `X-OpenId` into one variable, so names are
//! compared folded: every byte that is not a letter or digit counts as `_`, and case is ignored.
//! The gateway's headers are written after everything else that removes headers has run;
//! `proxy::compose` ensures that order. This module does not know how an identity was verified.

use http::header::{AUTHORIZATION, HeaderName, HeaderValue, InvalidHeaderValue, SET_COOKIE};
use http::{HeaderMap, StatusCode};

use super::cookies::OwnCookies;
use crate::config::{IdentitySection, SessionSection};
use crate::identity::token;
use crate::identity::{Identity, UnionId};
use crate::message::header::lines::write_line;
use crate::message::header::reserved::{
    CLOUD_RUN, FROM_TRUSTED, HTTP2_SETTINGS, METHOD_OVERRIDES, OF_CONNECTION, ORIGINAL_REQUEST,
    WRITTEN,
};
use crate::message::header::{FoldedNames, HeadersMut, nominated};
use crate::message::rejection::ERROR_HEADER;

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
    /// Removed from requests and responses.
    pub(crate) cookies: OwnCookies,
    /// Headers that a forward-auth proxy writes or removes. They are also kept folded, to recognise
    /// other spellings.
    decision_names: Vec<HeaderName>,
    decision_names_folded: FoldedNames,
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

/// Why a header of a request is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemovalReason {
    #[error("reserved: only the gateway sends the identity")]
    Identity,
    #[error("the session header")]
    SessionHeader,
    #[error("the session token")]
    Token,
    #[error("reserved: services written for WeChat Cloud Run trust it")]
    CloudRun,
    #[error("replaced: the gateway sends its own value")]
    Written,
    #[error("only a trusted proxy may send it")]
    Untrusted,
    #[error("it applies only to the client's connection")]
    OfConnection,
    #[error("it could override the method, on which routes depend")]
    MethodOverride,
}

impl IdentityHeaders {
    pub fn new(identity: &IdentitySection, session: &SessionSection) -> Self {
        let own = [
            identity.openid_header.as_str(),
            identity.app_id_header.as_str(),
            identity.union_id_header.as_str(),
            session.header.as_str(),
        ];
        let request = own.iter().copied().chain(CLOUD_RUN).chain(WRITTEN).chain(FROM_TRUSTED);
        let request = request.chain([HTTP2_SETTINGS]);
        let identity = [
            identity.openid_header.clone(),
            identity.app_id_header.clone(),
            identity.union_id_header.clone(),
        ];
        let decision_names: Vec<_> = ORIGINAL_REQUEST
            .into_iter()
            .chain(CLOUD_RUN)
            .map(HeaderName::from_static)
            .chain(identity.iter().cloned())
            .collect();
        let response = own.iter().copied().chain([ERROR_HEADER.as_str()]).chain(OF_CONNECTION);
        Self {
            request: FoldedNames::new(request),
            response: FoldedNames::new(response),
            strips_bearer: session.carriers.bearer,
            cookies: OwnCookies::default(),
            decision_names_folded: FoldedNames::new(decision_names.iter().map(HeaderName::as_str)),
            decision_names,
            identity,
        }
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
    /// The identity headers are written only if there is an identity.
    ///
    /// # Errors
    /// When a value cannot be written; the request must then not be forwarded.
    pub fn apply(
        &self,
        request: &mut impl HeadersMut,
        forwarding: &Forwarding,
        identity: Option<&Identity>,
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
        if let Some(identity) = identity {
            let [openid, app_id, unionid] = &self.identity;
            request.add(openid, &HeaderValue::from_str(identity.openid.as_str())?);
            request.add(app_id, &HeaderValue::from_str(identity.app_id.as_str())?);
            if let Some(value) = &identity.unionid {
                request.add(unionid, &HeaderValue::from_str(value.as_str())?);
            }
        }
        Ok(())
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
    /// before.
    pub fn write_identity(&self, identity: &Identity, out: &mut Vec<u8>) {
        let [openid, app_id, unionid] = &self.identity;
        write_line(out, openid.as_str().as_bytes(), identity.openid.as_str().as_bytes());
        write_line(out, app_id.as_str().as_bytes(), identity.app_id.as_str().as_bytes());
        if let Some(value) = &identity.unionid {
            write_line(out, unionid.as_str().as_bytes(), value.as_str().as_bytes());
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
    /// empty if it has no value, so that it replaces what the client sent.
    ///
    /// # Errors
    /// When a value cannot be written; the request must then not be allowed.
    pub fn write_decision(
        &self,
        headers: &mut HeaderMap,
        identity: Option<&Identity>,
    ) -> Result<(), InvalidHeaderValue> {
        let unionid = identity.and_then(|identity| identity.unionid.as_ref());
        let values = [
            identity.map(|identity| identity.openid.as_str()),
            identity.map(|identity| identity.app_id.as_str()),
            unionid.map(UnionId::as_str),
        ];
        for (name, value) in self.identity.iter().zip(values) {
            let value = match value {
                Some(value) => HeaderValue::from_str(value)?,
                None => HeaderValue::from_static(""),
            };
            headers.insert(name, value);
        }
        Ok(())
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

    /// Why a header line of a request is removed; `None` if it is not. Only for `wxgate explain`.
    pub fn removal_reason(
        &self,
        name: &HeaderName,
        value: &HeaderValue,
        is_trusted: bool,
    ) -> Option<RemovalReason> {
        if !self.is_stripped(name.as_str().as_bytes(), is_trusted) {
            let is_token = self.is_token(name.as_str().as_bytes(), value.as_bytes());
            return is_token.then_some(RemovalReason::Token);
        }
        let is_among =
            |names: &[&str]| FoldedNames::new(names.iter().copied()).contains(name.as_str());
        let [openid, app_id, union_id] = &self.identity;
        Some(if is_among(&[openid, app_id, union_id].map(HeaderName::as_str)) {
            RemovalReason::Identity
        } else if is_among(&CLOUD_RUN) {
            RemovalReason::CloudRun
        } else if is_among(&WRITTEN) {
            RemovalReason::Written
        } else if is_among(&FROM_TRUSTED) {
            RemovalReason::Untrusted
        } else if is_among(&METHOD_OVERRIDES) {
            RemovalReason::MethodOverride
        } else if is_among(&[HTTP2_SETTINGS]) {
            RemovalReason::OfConnection
        } else {
            RemovalReason::SessionHeader
        })
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
