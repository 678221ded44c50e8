//! What becomes of a request, without one: `wxgate explain`.
//!
//! Asks the very functions that requests meet, with what an operator typed in the place of
//! a request, and puts their answers into words. Why a route was not taken is found out by
//! asking it alone. Nothing is resolved, bound or called; who would be asking is shown by
//! placeholders, and values that may be secrets are not shown.

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use pingora::http::RequestHeader;

use crate::caching::Vary;
use crate::config::{
    Access, Config, EndpointsSection, Preflight, Route as RouteSection, ServerAddress, Target,
};
use crate::identity::{AppId, Identity, OpenId, UnionId};
use crate::inject::{Forwarding, Injector};
use crate::route::{Asked, Endpoint, Route, Routes};

/// What an operator asks about.
pub struct Question {
    method: Method,
    host: Option<String>,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

impl Question {
    /// `url` may be a path alone, for a request that names no host.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(
        method: Method,
        url: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Self, String> {
        // Nobody sends a fragment.
        let url = url.split('#').next().unwrap_or_default();
        let (host, target) = match url.split_once("://") {
            Some(("http" | "https", rest)) => {
                let end = rest.find(['/', '?']).unwrap_or(rest.len());
                let (host, target) = rest.split_at(end);
                (Some(host.to_owned()), target)
            }
            _ if url.starts_with('/') => (None, url),
            _ => return Err("expected http://HOST/PATH, https://HOST/PATH or /PATH".to_owned()),
        };
        if host.as_deref().is_some_and(|host| host.is_empty() || host.contains('@')) {
            return Err("expected a host name, and a port where there is one".to_owned());
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
        }
        let named = map.get(http::header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| named.map(str::to_owned));
        Ok(Self { method, host, path, query, headers: map })
    }

    fn asked(&self) -> Asked<'_> {
        let (method, headers) = (&self.method, &self.headers);
        Asked { path: &self.path, host: self.host.as_deref(), method, headers }
    }

    fn request(&self) -> pingora::Result<RequestHeader> {
        let query = self.query.as_ref().map_or_else(String::new, |query| format!("?{query}"));
        let target = format!("{}{query}", self.path);
        let mut request = RequestHeader::build(self.method.as_str(), target.as_bytes(), None)?;
        if let Some(host) = &self.host {
            request.insert_header("Host", host)?;
        }
        for (name, value) in self.headers.iter().filter(|(name, _)| *name != http::header::HOST) {
            request.append_header(name.clone(), value.clone())?;
        }
        Ok(request)
    }
}

/// What there is to say, and whether something answers.
pub struct Explanation {
    pub text: String,
    pub is_served: bool,
}

/// Says what becomes of a request.
pub fn explain(config: &Config, question: &Question) -> Explanation {
    let routes = Routes::new(&config.endpoints, &config.routes);
    let mut text = String::new();
    // Writing to a text does not fail.
    let is_served = tell(&mut text, config, &routes, question).unwrap_or(false);
    Explanation { text, is_served }
}

fn tell(
    text: &mut String,
    config: &Config,
    routes: &Routes,
    question: &Question,
) -> Result<bool, std::fmt::Error> {
    let asked = question.asked();
    let (endpoint, is_preflight) = match routes.meet(&asked) {
        Ok(met) => met,
        Err(error) => {
            writeln!(text, "400 bad_request: {error}")?;
            return Ok(false);
        }
    };
    let met = match endpoint {
        Endpoint::Route(index) => Some(index),
        Endpoint::None => {
            writeln!(text, "404 no_route: no route matches")?;
            None
        }
        own => {
            writeln!(text, "the gateway answers: {own:?}, see [endpoints]")?;
            return Ok(true);
        }
    };
    let mut is_served = false;
    if let Some((index, section, route)) =
        met.and_then(|index| Some((index, config.routes.get(index)?, routes.get(index)?)))
    {
        is_served = is_preflight || route.allows_method(asked.method);
        writeln!(text, "route[{index}] \"{}\" matches", section.name)?;
        if is_served {
            tell_route(text, config, (section, route), question, is_preflight)?;
        } else {
            writeln!(text, "  405 method_not_allowed: Allow: {}", routes.allow(&asked))?;
        }
    }
    for (index, section) in config.routes.iter().enumerate().filter(|(at, _)| Some(*at) != met) {
        let why = why_not(section, &asked);
        writeln!(text, "route[{index}] \"{}\" does not: {why}", section.name)?;
    }
    Ok(is_served)
}

fn tell_route(
    text: &mut String,
    config: &Config,
    (section, route): (&RouteSection, &Route),
    question: &Question,
    is_preflight: bool,
) -> std::fmt::Result {
    if is_preflight && section.cors.is_some() {
        writeln!(text, "  a preflight: answered by the gateway with 204, without identity")?;
        return Ok(());
    }
    let access = if is_preflight { Access::None } else { section.access };
    let auth = match access {
        Access::Required => "required: 401 without a session",
        Access::Optional => "optional: what follows is with a session, and anonymous without",
        Access::None if is_preflight => "none: a preflight passes without identity",
        Access::None => "none",
    };
    writeln!(text, "  auth: {auth}")?;
    if !section.apps.is_empty() && access != Access::None {
        let apps: Vec<_> = section.apps.iter().map(AppId::as_str).collect();
        writeln!(text, "  apps: {}", apps.join(", "))?;
    }
    match &section.target {
        Target::Answer(answer) => {
            writeln!(text, "  the gateway answers {}", answer.status)?;
        }
        Target::Elsewhere => {
            writeln!(text, "  only for other proxies to ask about: 404 on the public listeners")?;
        }
        Target::Service { upstream, split } => {
            for share in split {
                let percent = f64::from(share.users) / 100.0;
                tell_upstream(text, config, share.upstream, &format!("{percent}% of users"))?;
            }
            let who = if split.is_empty() { "" } else { "everybody else" };
            tell_upstream(text, config, *upstream, who)?;
            tell_request(text, config, route, question, access)?;
        }
    }
    let edits = &section.response_edits;
    for (name, value) in &edits.set {
        writeln!(text, "  answers get {name}: {}", shown(value))?;
    }
    for name in &edits.remove {
        writeln!(text, "  answers lose {name}")?;
    }
    if let Some(vary) = Vary::new(section.vary.iter().cloned()) {
        writeln!(text, "  responses get Vary: {}", shown(vary.value()))?;
        writeln!(
            text,
            "  responses to users get Cache-Control: private, unless the service's own decides"
        )?;
    }
    if section.cors.is_some() {
        writeln!(text, "  answers say which origins may read them (cors)")?;
    } else if section.preflight == Preflight::Pass {
        writeln!(text, "  preflights pass without identity")?;
    }
    Ok(())
}

fn tell_upstream(text: &mut String, config: &Config, index: usize, who: &str) -> std::fmt::Result {
    let Some(upstream) = config.upstreams.get(index) else { return Ok(()) };
    let servers: Vec<String> = upstream
        .servers
        .iter()
        .map(|server| match server {
            ServerAddress::Socket(address) => address.to_string(),
            ServerAddress::Host { host, port } => format!("{host}:{port}"),
        })
        .collect();
    let who = if who.is_empty() { String::new() } else { format!("{who}: ") };
    writeln!(text, "  {who}upstream \"{}\" at {}", upstream.name, servers.join(", "))
}

/// The request as its service gets it.
fn tell_request(
    text: &mut String,
    config: &Config,
    route: &Route,
    question: &Question,
    access: Access,
) -> std::fmt::Result {
    let injector = Injector::new(&config.identity, &config.session);
    let routes = Routes::new(&config.endpoints, &config.routes);
    let injector = injector.removing_overrides(routes.trust_methods());
    let identity = placeholder().filter(|_| access != Access::None);
    let built = question.request().and_then(|mut request| {
        route.prepare(&mut request)?;
        injector.apply(&mut request, forwarding(question), identity.as_ref())?;
        route.request_edits.write_to(&mut request)?;
        Ok(request)
    });
    let Ok(request) = built else {
        return writeln!(text, "  400 bad_request: no request can look like this");
    };
    let target = String::from_utf8_lossy(request.raw_path()).into_owned();
    writeln!(text, "  the upstream sees:")?;
    writeln!(text, "    {} {target}", request.method)?;
    for (name, value) in &request.headers {
        writeln!(text, "    {name}: {}", shown(value))?;
    }
    Ok(())
}

fn shown(value: &HeaderValue) -> String {
    if value.is_sensitive() {
        return "(not shown)".to_owned();
    }
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Who is asking; that is what nobody knows here.
fn placeholder() -> Option<Identity> {
    Some(Identity {
        app_id: AppId::parse("APP_ID")?,
        openid: OpenId::parse("OPENID")?,
        unionid: UnionId::parse("UNIONID-where-there-is-one"),
    })
}

fn forwarding(question: &Question) -> Forwarding {
    let host = question.host.as_deref().and_then(|host| HeaderValue::from_str(host).ok());
    Forwarding {
        request_id: HeaderValue::from_static("REQUEST_ID"),
        forwarded_for: HeaderValue::from_static("CLIENT"),
        proto: HeaderValue::from_static("SCHEME"),
        host,
        client: HeaderValue::from_static("CLIENT"),
        is_trusted: false,
    }
}

/// What keeps a request from a route. The route is asked alone, each time with all that is not
/// in question made its own.
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
        "what matches is more specific".to_owned()
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
