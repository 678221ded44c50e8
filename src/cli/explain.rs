//! Shows how a request would be handled, without sending one: `wxgate explain`.
//!
//! An operator describes a request, and the same functions judge it that judge real requests.
//! `mismatch` finds out why a route does not match, and `forwarded` what the service would get.
//! Nothing is resolved, bound or called. Placeholders replace the identity, and values that may be
//! secrets are not shown. The result is plain data, written as JSON or, by `text`, as text.

mod browser;
pub mod command;
mod explanation;
mod forwarded;
mod mismatch;
mod request;
mod text;
mod upstream;

use http::header::CONTENT_LENGTH;

pub use self::browser::ExplainedBrowser;
pub use self::explanation::{
    Explanation, ForwardedRequest, Header, MatchedRoute, OtherRoute, Outcome, RemovedHeader,
    ResponseHeaders,
};
use self::forwarded::{forwarded, header, placeholder, removed};
use self::mismatch::why_not;
pub use self::request::DescribedRequest;
pub use self::upstream::ChosenUpstream;
use self::upstream::host_of;
use crate::access::authenticator::{self, AuthError};
use crate::access::browsers::{BrowserHost, Browsers};
use crate::access::websocket;
use crate::config::{Access, Config, Preflight, Rate, Route as RouteSection, Target};
use crate::message::caching::Vary;
use crate::message::rejection::Rejection;
use crate::message::request_header::{self, HeaderLimits};
use crate::route::{Endpoint, Route, Routes};

/// Explains how a request would be handled.
pub fn explain(config: &Config, request: &DescribedRequest) -> Explanation {
    let routes = Routes::new(&config.endpoints, &config.routes);
    let browsers = Browsers::new(&config.browsers);
    let host = browsers.of(request.host_bytes());
    let mut explanation = Explanation {
        method: request.method.to_string(),
        host: request.host.clone(),
        path: request.path.clone(),
        outcome: Outcome::Answered,
        status: None,
        error: None,
        reason: None,
        allow: None,
        endpoint: None,
        route: None,
        browser: None,
        ticket: false,
        upstreams: Vec::new(),
        request: None,
        removed: Vec::new(),
        response_headers: ResponseHeaders::default(),
        other_routes: Vec::new(),
    };
    let limits = HeaderLimits::from(&config.limits);
    if let Err(rejection) =
        request_header::read(&request.header_bytes(), limits, |path| routes.is_health(path), |_| {})
    {
        explanation.reject(&rejection, rejection.message().to_owned());
        return explanation;
    }
    let wanted = request.to_match();
    let (endpoint, is_preflight) = match routes.match_request(&wanted) {
        Ok(matched) => matched,
        Err(error) => {
            explanation.reject(&error.into(), error.to_string());
            return explanation;
        }
    };
    let matched = if let Endpoint::Route(index) = endpoint { Some(index) } else { None };
    let route = matched.and_then(|index| routes.get(index));
    if let Err(rejection) = judge_websocket(route, request) {
        explanation.reject(&rejection, rejection.message().to_owned());
        return explanation;
    }
    if let Some(name) = endpoint.name() {
        explanation.endpoint = Some(name);
        let takes_query = config.login.accept.query;
        let judged = endpoint.judge_method(request.method.as_str(), takes_query);
        if let Err(rejection) = judged {
            explanation.reject(&rejection, rejection.message().to_owned());
        } else if is_of_browsers(endpoint) && host.is_none() {
            explanation.reject(&Rejection::NoRoute, "no [[browser]] has this host".to_owned());
        }
        return explanation;
    }
    let served =
        matched.and_then(|index| Some((index, config.routes.get(index)?, routes.get(index)?)));
    match served {
        None => explanation.reject(&Rejection::NoRoute, "no route matches".to_owned()),
        Some((index, section, route)) => {
            explanation.route = Some(matched_route(index, section, is_preflight));
            if !is_preflight && !route.allows_method(wanted.method) {
                let allow = routes.allow(&wanted).into();
                let rejection = Rejection::MethodNotAllowed { allow };
                explanation.reject(&rejection, rejection.message().to_owned());
            } else if let Err(rejection) =
                judge_content(config, section, host, request, is_preflight)
            {
                explanation.reject(&rejection, rejection.message().to_owned());
            } else {
                let access = if is_preflight { Access::None } else { section.access };
                let is_websocket = websocket::is_requested(&request.headers);
                explanation.browser = host.map(|host| {
                    let how = (access, is_websocket);
                    ExplainedBrowser::new(config, host, (section, route), request, how)
                });
                explanation.ticket = request.ticket(config).is_some();
                explain_route(
                    &mut explanation,
                    config,
                    &routes,
                    (section, route),
                    request,
                    is_preflight,
                );
            }
        }
    }
    let others = config.routes.iter().enumerate().filter(|(at, _)| Some(*at) != matched);
    explanation.other_routes = others
        .map(|(index, section)| OtherRoute {
            index,
            name: section.name.clone(),
            file: section.place.file.to_string(),
            line: section.place.line,
            reason: why_not(section, &wanted),
        })
        .collect();
    explanation
}

/// Whether a request may become a WebSocket, if it requests one.
fn judge_websocket(route: Option<&Route>, request: &DescribedRequest) -> Result<(), Rejection> {
    let headers = &request.headers;
    if websocket::is_requested(headers) {
        if !route.is_some_and(|route| route.websocket) {
            return Err(websocket::NOT_ALLOWED);
        }
        websocket::judge_handshake(&request.method, headers)?;
    }
    Ok(())
}

/// Whether an endpoint is only on the hosts of a `[[browser]]`.
fn is_of_browsers(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Start | Endpoint::Callback)
}

/// Checks the body length and the tokens of a request, as the route would. No session is looked
/// up.
fn judge_content(
    config: &Config,
    section: &RouteSection,
    host: Option<&BrowserHost>,
    request: &DescribedRequest,
    is_preflight: bool,
) -> Result<(), Rejection> {
    if section.target == Target::ForwardAuthOnly || is_preflight && section.cors.is_some() {
        return Ok(());
    }
    let ticket = request.ticket(config);
    if ticket.is_some_and(|ticket| ticket.is_repeated) {
        return Err(Rejection::BadRequest("more than one ticket"));
    }
    let length = request.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length
        .and_then(|length| length.parse().ok())
        .is_some_and(|length: u64| length > section.max_body)
    {
        return Err(Rejection::BodyTooLarge);
    }
    let is_looked_up = section.access != Access::None && !is_preflight;
    let has_conflict = match ticket {
        Some(_) => authenticator::is_in_header(&request.headers, &config.session),
        None => authenticator::has_conflict(&request.headers, &config.session, host),
    };
    if is_looked_up && has_conflict {
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
            Preflight::Respond => "answer",
            Preflight::Pass => "pass",
        },
    }
}

fn explain_route(
    explanation: &mut Explanation,
    config: &Config,
    routes: &Routes,
    (section, route): (&RouteSection, &Route),
    request: &DescribedRequest,
    is_preflight: bool,
) {
    if is_preflight && section.cors.is_some() {
        explanation.status = Some(204);
        return;
    }
    match &section.target {
        Target::OwnResponse(response) => explanation.status = Some(response.status),
        Target::ForwardAuthOnly => explanation.outcome = Outcome::ForwardAuth,
        Target::Service { upstream, split } => {
            explanation.outcome = Outcome::Forwarded;
            let parts: u16 = split.iter().map(|share| share.users).sum();
            let shares = split.iter().map(|share| (share.upstream, share.users));
            let all = shares.chain([(*upstream, 10_000u16.saturating_sub(parts))]);
            explanation.upstreams =
                all.filter_map(|(index, users)| chosen(config, section, index, users)).collect();
            let identity =
                placeholder().filter(|_| !is_preflight && section.access != Access::None);
            let host = config.upstreams.get(*upstream).and_then(host_of);
            let served = (section, route);
            match forwarded(config, routes, served, request, identity.as_ref(), host) {
                Ok(headers) => {
                    explanation.removed = removed(config, routes, section, request, &headers);
                    let target = request.forwarded_target(config);
                    explanation.request = Some(ForwardedRequest {
                        method: request.method.to_string(),
                        target: route.rewritten(&target).unwrap_or(target),
                        headers: headers.iter().map(header).collect(),
                    });
                }
                Err(_) => {
                    explanation.reject(&Rejection::BadRequest(IMPOSSIBLE), IMPOSSIBLE.to_owned());
                }
            }
        }
    }
    let edits = &section.response_edits;
    explanation.response_headers = ResponseHeaders {
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
    Some(ChosenUpstream::new(config.upstreams.get(index)?, section, users))
}
