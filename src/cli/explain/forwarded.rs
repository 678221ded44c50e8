//! Which headers of a request a service would get, and why it would not get the others.
//!
//! Uses the functions that write the headers of real requests, and compares what they return with
//! the headers of the client.

use std::borrow::Cow;

use http::header::{COOKIE, HOST, InvalidHeaderValue};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{DescribedRequest, Header, RemovedHeader};
use crate::access::cookies::OwnCookies;
use crate::access::identity_headers::{Forwarding, IdentityHeaders};
use crate::access::websocket;
use crate::config::{App, AppKind, Config, HeaderEdits, JwtSection, Route as RouteSection};
use crate::identity::{AppId, Identity, OpenId, UnionId, UserId};
use crate::message::header::reserved::HOP_BY_HOP;
use crate::message::header::{FoldedNames, trim};
use crate::route::{Route, Routes};

/// The headers of the request as its service gets them. The identity is a placeholder; `host`
/// replaces the host that the client requests.
pub fn forwarded(
    config: &Config,
    routes: &Routes,
    (section, route): (&RouteSection, &Route),
    request: &DescribedRequest,
    identity: Option<&Identity>,
    host: Option<String>,
) -> Result<HeaderMap, InvalidHeaderValue> {
    let mut headers = HeaderMap::new();
    if let Some(host) = &request.host {
        headers.insert(HOST, HeaderValue::from_str(host)?);
    }
    headers.extend(request.headers.clone());
    for name in not_forwarded(&headers) {
        headers.remove(&name);
    }
    route.request_edits.remove_from(&mut headers);
    remove_own_cookies(config, &mut headers);
    let mut own = identity_headers(config, routes);
    if let Some(identity) = identity.filter(|_| accepts_mini_programs(config, section)) {
        own = own.with_mini_program(&identity.app_id);
    }
    let jwt = config.identity.jwt.as_ref().map(JwtSection::is_bearer);
    let jwt = jwt.map(|is_bearer| if is_bearer { "Bearer JWT" } else { "JWT" });
    let jwt = jwt.map(HeaderValue::from_static);
    own.apply(&mut headers, &forwarding(request), identity, jwt.as_ref())?;
    route.request_edits.write_to(&mut headers);
    if let Some(host) = host {
        headers.insert(HOST, HeaderValue::from_str(&host)?);
    }
    Ok(headers)
}

fn identity_headers(config: &Config, routes: &Routes) -> IdentityHeaders {
    IdentityHeaders::new(config).removing_overrides(routes.trust_methods())
}

/// Whether sessions of a Mini Program are accepted by a route.
fn accepts_mini_programs(config: &Config, section: &RouteSection) -> bool {
    let is_accepted = |app: &App| section.apps.is_empty() || section.apps.contains(&app.app_id);
    config.apps.iter().any(|app| app.kind == AppKind::MiniProgram && is_accepted(app))
}

fn own_cookies(config: &Config) -> OwnCookies {
    OwnCookies::new(config.browsers.iter().map(|browser| browser.cookie.as_str()))
}

/// Removes the gateway's cookies. The others stay as they are.
fn remove_own_cookies(config: &Config, headers: &mut HeaderMap) {
    let own = own_cookies(config);
    let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    headers.remove(COOKIE);
    for line in lines {
        let kept = match own.without_own(line.as_bytes()) {
            Cow::Borrowed(_) => Some(line),
            Cow::Owned(kept) if kept.is_empty() => None,
            Cow::Owned(kept) => HeaderValue::from_bytes(&kept).ok(),
        };
        if let Some(kept) = kept {
            headers.append(COOKIE, kept);
        }
    }
}

/// Hop-by-hop headers, which are not forwarded. The handshake of a WebSocket is rewritten.
fn not_forwarded(headers: &HeaderMap) -> Vec<HeaderName> {
    let is_websocket = websocket::is_requested(headers);
    let is_kept = |name: &HeaderName| {
        is_websocket && [http::header::CONNECTION, http::header::UPGRADE].contains(name)
    };
    let nominated = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(trim(name)).ok());
    let names = HOP_BY_HOP.into_iter().map(HeaderName::from_static).chain(nominated);
    names.filter(|name| !is_kept(name)).collect()
}

/// The client's header lines that the service does not get unchanged, and why.
pub fn removed(
    config: &Config,
    routes: &Routes,
    section: &RouteSection,
    request: &DescribedRequest,
    forwarded: &HeaderMap,
) -> Vec<RemovedHeader> {
    let identity_headers = identity_headers(config, routes);
    let of_connection = not_forwarded(&request.headers);
    let own = own_cookies(config);
    let HeaderEdits { set, remove } = &section.request_edits;
    let set = FoldedNames::new(set.iter().map(|(name, _)| name.as_str()));
    let remove = FoldedNames::new(remove.iter().map(HeaderName::as_str));
    let is_kept = |name: &HeaderName, value: &HeaderValue| {
        forwarded.get_all(name).iter().any(|kept| kept == value)
    };
    let reason = |name: &HeaderName, value: &HeaderValue| {
        if of_connection.contains(name) {
            "it applies only to the client's connection".to_owned()
        } else if set.contains(name.as_str()) {
            "replaced by the route's set_request_headers".to_owned()
        } else if remove.contains(name.as_str()) {
            "removed by the route's remove_request_headers".to_owned()
        } else if name == COOKIE && matches!(own.without_own(value.as_bytes()), Cow::Owned(_)) {
            "the gateway's own cookies are removed from it".to_owned()
        } else if let Some(removal) = identity_headers.removal_reason(name, value, IS_TRUSTED) {
            removal.to_string()
        } else {
            "the gateway does not forward it".to_owned()
        }
    };
    let missing = request.headers.iter().filter(|(name, value)| !is_kept(name, value));
    missing
        .map(|(name, value)| RemovedHeader { name: name.to_string(), reason: reason(name, value) })
        .collect()
}

pub fn header((name, value): (&HeaderName, &HeaderValue)) -> Header {
    let value = if value.is_sensitive() {
        "(not shown)".to_owned()
    } else {
        String::from_utf8_lossy(value.as_bytes()).into_owned()
    };
    Header { name: name.to_string(), value }
}

/// Placeholders for the identity, which is not known here.
pub fn placeholder() -> Option<Identity> {
    Some(Identity {
        app_id: AppId::parse("APP_ID")?,
        openid: OpenId::parse("OPENID")?,
        unionid: UnionId::parse("UNIONID-if-known"),
        user_id: UserId::parse("USER_ID-if-known"),
    })
}

/// Whether the client is one of `server.trusted_proxies`.
const IS_TRUSTED: bool = false;

fn forwarding(request: &DescribedRequest) -> Forwarding {
    let host = request.host.as_deref().and_then(|host| HeaderValue::from_str(host).ok());
    Forwarding {
        request_id: HeaderValue::from_static("REQUEST_ID"),
        forwarded_for: HeaderValue::from_static("CLIENT"),
        proto: HeaderValue::from_static("SCHEME"),
        host,
        client: HeaderValue::from_static("CLIENT"),
        is_trusted: IS_TRUSTED,
    }
}
