//! Shows how a request would be handled, without sending one: `wxgate explain`.
//!
//! Runs the functions that judge real requests on a request that an operator describes. To find out
//! why a route does not match, the route is tried alone. To find out what is removed from a
//! request, the request is compared with what its service would get. Nothing is resolved, bound or
//! called. Placeholders replace the identity, and values that may be secrets are not shown. The
//! result is plain data, written as JSON or, by `text.rs`, as text.

pub mod command;
mod question;
mod text;
mod told;

use std::net::SocketAddr;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, InvalidHeaderValue};
use http::{HeaderMap, HeaderName, HeaderValue};

pub use self::question::Question;
pub use self::told::{
    ChosenUpstream, Explanation, ForwardedRequest, Header, MatchedRoute, OtherRoute, Outcome,
    RemovedHeader, ResponseHeaders,
};

use crate::access::authenticator::{self, AuthError};
use crate::access::identity_headers::{Forwarding, IdentityHeaders};
use crate::access::websocket;
use crate::config::{
    Access, Config, EndpointsSection, HeaderEdits, Preflight, Rate, Route as RouteSection,
    ServerAddress, Target,
};
use crate::identity::{AppId, Identity, OpenId, UnionId};
use crate::message::caching::Vary;
use crate::message::header::reserved::HOP_BY_HOP;
use crate::message::header::{FoldedNames, trim};
use crate::message::rejection::Rejection;
use crate::message::request_header::{self, HeadLimits};
use crate::route::{Asked, Endpoint, Route, Routes};

/// Explains how a request would be handled.
pub fn explain(config: &Config, question: &Question) -> Explanation {
    let routes = Routes::new(&config.endpoints, &config.routes);
    let mut told = Explanation {
        method: question.method.to_string(),
        host: question.host.clone(),
        path: question.path.clone(),
        outcome: Outcome::Answered,
        status: None,
        error: None,
        reason: None,
        allow: None,
        endpoint: None,
        route: None,
        upstreams: Vec::new(),
        request: None,
        removed: Vec::new(),
        response_headers: ResponseHeaders::default(),
        other_routes: Vec::new(),
    };
    let limits = HeadLimits::from(&config.limits);
    if let Err(rejection) =
        request_header::judge(&question.head(), limits, |path| routes.is_health(path))
    {
        told.reject(&rejection, rejection.message().to_owned());
        return told;
    }
    let asked = question.asked();
    let (endpoint, is_preflight) = match routes.meet(&asked) {
        Ok(met) => met,
        Err(error) => {
            told.reject(&error.into(), error.to_string());
            return told;
        }
    };
    let met = if let Endpoint::Route(index) = endpoint { Some(index) } else { None };
    let route = met.and_then(|index| routes.get(index));
    if let Err(rejection) = judge_websocket(route, question) {
        told.reject(&rejection, rejection.message().to_owned());
        return told;
    }
    if let Some(name) = endpoint.name() {
        told.endpoint = Some(name);
        let takes_query = config.login.accept.query;
        if let Err(rejection) = endpoint.judge_method(question.method.as_str(), takes_query) {
            told.reject(&rejection, rejection.message().to_owned());
        }
        return told;
    }
    let served = met.and_then(|index| Some((index, config.routes.get(index)?, routes.get(index)?)));
    match served {
        None => told.reject(&Rejection::NoRoute, "no route matches".to_owned()),
        Some((index, section, route)) => {
            told.route = Some(matched_route(index, section, is_preflight));
            if !is_preflight && !route.allows_method(asked.method) {
                let allow = routes.allow(&asked).into();
                let rejection = Rejection::MethodNotAllowed { allow };
                told.reject(&rejection, rejection.message().to_owned());
            } else if let Err(rejection) = judge_content(config, section, question, is_preflight) {
                told.reject(&rejection, rejection.message().to_owned());
            } else {
                tell_route(&mut told, config, &routes, (section, route), question, is_preflight);
            }
        }
    }
    let others = config.routes.iter().enumerate().filter(|(at, _)| Some(*at) != met);
    told.other_routes = others
        .map(|(index, section)| OtherRoute {
            index,
            name: section.name.clone(),
            file: section.place.file.to_string(),
            line: section.place.line,
            reason: why_not(section, &asked),
        })
        .collect();
    told
}

/// Whether a request may become a WebSocket, if it asks for one.
fn judge_websocket(route: Option<&Route>, question: &Question) -> Result<(), Rejection> {
    let headers = &question.headers;
    if websocket::is_requested(headers) {
        if !route.is_some_and(|route| route.websocket) {
            return Err(websocket::NOT_ALLOWED);
        }
        websocket::judge_handshake(&question.method, headers)?;
    }
    Ok(())
}

/// Checks the body length and the tokens of a request, as the route would. No session is looked
/// up.
fn judge_content(
    config: &Config,
    section: &RouteSection,
    question: &Question,
    is_preflight: bool,
) -> Result<(), Rejection> {
    if section.target == Target::Elsewhere || is_preflight && section.cors.is_some() {
        return Ok(());
    }
    let length = question.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length
        .and_then(|length| length.parse().ok())
        .is_some_and(|length: u64| length > section.max_body)
    {
        return Err(Rejection::BodyTooLarge);
    }
    let is_looked_up = section.access != Access::None && !is_preflight;
    if is_looked_up && authenticator::has_conflict(&question.headers, &config.session) {
        return Err((&AuthError::ConflictingTokens).into());
    }
    Ok(())
}

const IMPOSSIBLE: &str = "the request is malformed";

fn matched_route(index: usize, section: &RouteSection, is_preflight: bool) -> MatchedRoute {
    let rate = |rate: Option<Rate>| {
        rate.map(|rate| format!("{}/{}", rate.count, humantime::format_duration(rate.period)))
    };
    MatchedRoute {
        index,
        name: section.name.clone(),
        file: section.place.file.to_string(),
        line: section.place.line,
        auth: match section.access {
            Access::Required if !is_preflight => "required",
            Access::Optional if !is_preflight => "optional",
            _ => "none",
        },
        preflight: is_preflight,
        apps: section.apps.iter().map(|app_id| app_id.as_str().to_owned()).collect(),
        max_body: section.max_body,
        rate_per_user: rate(section.rate_per_user),
        rate_per_address: rate(section.rate_per_address),
        websocket: section.websocket,
        cors: section.cors.is_some(),
        preflights: match section.preflight {
            Preflight::Answer => "answer",
            Preflight::Pass => "pass",
        },
    }
}

fn tell_route(
    told: &mut Explanation,
    config: &Config,
    routes: &Routes,
    (section, route): (&RouteSection, &Route),
    question: &Question,
    is_preflight: bool,
) {
    if is_preflight && section.cors.is_some() {
        told.status = Some(204);
        return;
    }
    match &section.target {
        Target::Answer(answer) => told.status = Some(answer.status),
        Target::Elsewhere => told.outcome = Outcome::ForwardAuth,
        Target::Service { upstream, split } => {
            told.outcome = Outcome::Forwarded;
            let parts: u16 = split.iter().map(|share| share.users).sum();
            let shares = split.iter().map(|share| (share.upstream, share.users));
            let all = shares.chain([(*upstream, 10_000u16.saturating_sub(parts))]);
            told.upstreams =
                all.filter_map(|(index, users)| chosen(config, section, index, users)).collect();
            let identity =
                placeholder().filter(|_| !is_preflight && section.access != Access::None);
            match forwarded(config, routes, route, question, identity.as_ref()) {
                Ok(headers) => {
                    told.removed = removed(config, routes, section, question, &headers);
                    let target = question.target();
                    told.request = Some(ForwardedRequest {
                        method: question.method.to_string(),
                        target: route.rewritten(&target).unwrap_or(target),
                        headers: headers.iter().map(header).collect(),
                    });
                }
                Err(_) => told.reject(&Rejection::BadRequest(IMPOSSIBLE), IMPOSSIBLE.to_owned()),
            }
        }
    }
    let edits = &section.response_edits;
    told.response_headers = ResponseHeaders {
        set: edits.set.iter().map(|(name, value)| header((name, value))).collect(),
        removed: edits.remove.iter().map(ToString::to_string).collect(),
        vary: Vary::new(section.vary.iter().cloned())
            .map(|vary| String::from_utf8_lossy(vary.value().as_bytes()).into_owned()),
    };
}

fn chosen(
    config: &Config,
    section: &RouteSection,
    index: usize,
    users: u16,
) -> Option<ChosenUpstream> {
    let upstream = config.upstreams.get(index)?;
    let show = |server: &ServerAddress| match server {
        ServerAddress::Socket(address) => SocketAddr::to_string(address),
        ServerAddress::Host { host, port } => format!("{host}:{port}"),
    };
    let timeout = |own: Option<Duration>, upstreams: Duration| {
        humantime::format_duration(own.unwrap_or(upstreams)).to_string()
    };
    Some(ChosenUpstream {
        name: upstream.name.clone(),
        servers: upstream.servers.iter().map(show).collect(),
        percent: f64::from(users) / 100.0,
        connect_timeout: timeout(section.timeouts.connect, upstream.connect_timeout),
        read_timeout: timeout(section.timeouts.read, upstream.read_timeout),
        write_timeout: timeout(section.timeouts.write, upstream.write_timeout),
    })
}

/// The headers of the request as its service gets them.
fn forwarded(
    config: &Config,
    routes: &Routes,
    route: &Route,
    question: &Question,
    identity: Option<&Identity>,
) -> Result<HeaderMap, InvalidHeaderValue> {
    let mut headers = HeaderMap::new();
    if let Some(host) = &question.host {
        headers.insert(HOST, HeaderValue::from_str(host)?);
    }
    headers.extend(question.headers.clone());
    for name in not_forwarded(&headers) {
        headers.remove(&name);
    }
    route.request_edits.remove_from(&mut headers);
    identity_headers(config, routes).apply(&mut headers, &forwarding(question), identity)?;
    route.request_edits.write_to(&mut headers);
    Ok(headers)
}

fn identity_headers(config: &Config, routes: &Routes) -> IdentityHeaders {
    IdentityHeaders::new(&config.identity, &config.session)
        .removing_overrides(routes.trust_methods())
}

/// Headers about the client's connection, which are not forwarded. The handshake of a WebSocket is
/// rewritten.
fn not_forwarded(request: &HeaderMap) -> Vec<HeaderName> {
    let is_websocket = websocket::is_requested(request);
    let is_kept = |name: &HeaderName| {
        is_websocket && [http::header::CONNECTION, http::header::UPGRADE].contains(name)
    };
    let nominated = request
        .get_all(http::header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(trim(name)).ok());
    let names = HOP_BY_HOP.into_iter().map(HeaderName::from_static).chain(nominated);
    names.filter(|name| !is_kept(name)).collect()
}

/// The client's header lines that the service does not get unchanged, and why.
fn removed(
    config: &Config,
    routes: &Routes,
    section: &RouteSection,
    question: &Question,
    request: &HeaderMap,
) -> Vec<RemovedHeader> {
    let identity_headers = identity_headers(config, routes);
    let of_connection = not_forwarded(&question.headers);
    let HeaderEdits { set, remove } = &section.request_edits;
    let set = FoldedNames::new(set.iter().map(|(name, _)| name.as_str()));
    let remove = FoldedNames::new(remove.iter().map(HeaderName::as_str));
    let is_kept = |name: &HeaderName, value: &HeaderValue| {
        request.get_all(name).iter().any(|kept| kept == value)
    };
    let reason = |name: &HeaderName, value: &HeaderValue| {
        if of_connection.contains(name) {
            "it applies only to the client's connection".to_owned()
        } else if set.contains(name.as_str()) {
            "the route's set_request_headers replaces it".to_owned()
        } else if remove.contains(name.as_str()) {
            "the route's remove_request_headers names it".to_owned()
        } else if let Some(removal) = identity_headers.removal_reason(name, value, IS_TRUSTED) {
            removal.to_string()
        } else {
            "the gateway does not forward it".to_owned()
        }
    };
    let gone = question.headers.iter().filter(|(name, value)| !is_kept(name, value));
    gone.map(|(name, value)| RemovedHeader { name: name.to_string(), reason: reason(name, value) })
        .collect()
}

fn header((name, value): (&HeaderName, &HeaderValue)) -> Header {
    let value = if value.is_sensitive() {
        "(not shown)".to_owned()
    } else {
        String::from_utf8_lossy(value.as_bytes()).into_owned()
    };
    Header { name: name.to_string(), value }
}

/// Placeholders for the identity, which is not known here.
fn placeholder() -> Option<Identity> {
    Some(Identity {
        app_id: AppId::parse("APP_ID")?,
        openid: OpenId::parse("OPENID")?,
        unionid: UnionId::parse("UNIONID-where-there-is-one"),
    })
}

/// Whether the client is one of `server.trusted_proxies`.
const IS_TRUSTED: bool = false;

fn forwarding(question: &Question) -> Forwarding {
    let host = question.host.as_deref().and_then(|host| HeaderValue::from_str(host).ok());
    Forwarding {
        request_id: HeaderValue::from_static("REQUEST_ID"),
        forwarded_for: HeaderValue::from_static("CLIENT"),
        proto: HeaderValue::from_static("SCHEME"),
        host,
        client: HeaderValue::from_static("CLIENT"),
        is_trusted: IS_TRUSTED,
    }
}

/// Why a request does not match a route. The route is tried alone, each time with all other
/// conditions made to match.
fn why_not(section: &RouteSection, asked: &Asked<'_>) -> String {
    let route_path = Asked { path: section.path.as_str(), ..*asked };
    let mut any_headers = RouteSection { rewriting: None, ..section.clone() };
    let any_host = RouteSection { hosts: Vec::new(), ..any_headers.clone() };
    any_headers.headers.clear();
    let neither = RouteSection { hosts: Vec::new(), ..any_headers.clone() };
    if !meets(&any_headers, &route_path) {
        let hosts: Vec<_> = section.hosts.iter().map(ToString::to_string).collect();
        return format!("it is for the host {}", hosts.join(", "));
    }
    if !meets(&neither, asked) {
        let kind = if section.is_exact { "path" } else { "prefix" };
        return format!("its {kind} is {}", section.path.as_str());
    }
    if !meets(&any_host, &route_path) {
        let names: Vec<_> = section.headers.iter().map(|(name, _)| name.as_str()).collect();
        return format!("it asks for other values of {}", names.join(", "));
    }
    let takes_method = section.methods.is_empty()
        || section.methods.iter().any(|method| asked.method == method.as_str());
    if takes_method {
        "the matching route is more specific".to_owned()
    } else {
        format!("its methods are {}", section.methods.join(", "))
    }
}

fn meets(section: &RouteSection, asked: &Asked<'_>) -> bool {
    let none = EndpointsSection {
        login: Vec::new(),
        logout: Vec::new(),
        session: Vec::new(),
        health: Vec::new(),
        hosts: Vec::new(),
    };
    let alone = Routes::new(&none, std::slice::from_ref(section));
    alone.resolve(asked) == Ok(Endpoint::Route(0))
}
