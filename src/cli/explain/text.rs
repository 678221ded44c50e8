//! An explanation as text, with one line for each fact.

use std::fmt::{self, Display, Formatter};

use super::{Explanation, MatchedRoute, Outcome};

impl Display for Explanation {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match (&self.route, self.endpoint) {
            (Some(route), _) => self.write_route(out, route)?,
            (None, Some(endpoint)) if self.outcome == Outcome::Rejected => {
                self.write_rejection(out, "")?;
                writeln!(out, "  this is the path of endpoints.{endpoint}")?;
            }
            (None, Some(endpoint)) => {
                writeln!(
                    out,
                    "the gateway responds itself: this is the path of endpoints.{endpoint}"
                )?;
            }
            (None, None) => self.write_rejection(out, "")?,
        }
        for other in &self.other_routes {
            let (index, name, reason) = (other.index, &other.name, &other.reason);
            writeln!(out, "route[{index}] \"{name}\" does not match: {reason}")?;
        }
        Ok(())
    }
}

impl Explanation {
    fn write_rejection(&self, out: &mut Formatter<'_>, indent: &str) -> fmt::Result {
        let status = self.status.unwrap_or_default();
        let error = self.error.unwrap_or_default();
        match (&self.allow, &self.reason) {
            (Some(allow), _) => writeln!(out, "{indent}{status} {error}: Allow: {allow}"),
            (None, Some(reason)) => writeln!(out, "{indent}{status} {error}: {reason}"),
            (None, None) => writeln!(out, "{indent}{status} {error}"),
        }
    }

    fn write_route(&self, out: &mut Formatter<'_>, route: &MatchedRoute) -> fmt::Result {
        let MatchedRoute { index, name, file, line, .. } = route;
        writeln!(out, "route[{index}] \"{name}\" matches, {file}:{line}")?;
        if self.outcome == Outcome::Rejected {
            return self.write_rejection(out, "  ");
        }
        if route.preflight && route.cors {
            return writeln!(out, "  a preflight: the gateway responds with 204");
        }
        let auth = match route.auth {
            // What a browser gets without one is below.
            "required" if self.browser.is_some() => "required: a session is needed",
            "required" => "required: 401 without a session",
            "optional" => {
                "optional: without a session the request is anonymous; shown here with one"
            }
            _ if route.preflight => "none: preflights are forwarded without identity",
            none => none,
        };
        writeln!(out, "  auth: {auth}")?;
        if !route.apps.is_empty() && route.auth != "none" {
            writeln!(out, "  apps: {}", route.apps.join(", "))?;
        }
        if let Some(browser) = &self.browser {
            browser.write(out)?;
        }
        if self.ticket {
            writeln!(out, "  ticket: the session is found by it; it is removed from the query")?;
        }
        match (self.outcome, self.status) {
            (Outcome::Answered, Some(status)) => {
                writeln!(out, "  the gateway responds with {status}")?;
            }
            (Outcome::ForwardAuth, _) => {
                writeln!(out, "  only for forward-auth: 404 on the public listeners")?;
            }
            _ => self.write_service(out, route)?,
        }
        for header in &self.response_headers.set {
            writeln!(out, "  added to responses: {}: {}", header.name, header.value)?;
        }
        for name in &self.response_headers.removed {
            writeln!(out, "  removed from responses: {name}")?;
        }
        if let Some(vary) = &self.response_headers.vary {
            writeln!(out, "  added to responses: Vary: {vary}")?;
            writeln!(
                out,
                "  added to responses to users: Cache-Control: private, unless the service sends a \
                 Cache-Control that says how to cache it"
            )?;
        }
        if route.cors {
            writeln!(out, "  added to responses: the headers of cors")?;
        } else if route.preflights == "pass" {
            writeln!(out, "  preflights are forwarded without identity")?;
        }
        Ok(())
    }

    fn write_service(&self, out: &mut Formatter<'_>, route: &MatchedRoute) -> fmt::Result {
        let rate = |rate: &Option<String>| rate.clone().unwrap_or_else(|| "off".to_owned());
        writeln!(
            out,
            "  limits: max_body {}, rate_per_user {}, rate_per_address {}{}",
            size(route.max_body),
            rate(&route.rate_per_user),
            rate(&route.rate_per_address),
            if route.websocket { ", WebSockets allowed" } else { "" },
        )?;
        for (at, upstream) in self.upstreams.iter().enumerate() {
            let who = match (self.upstreams.len(), at + 1) {
                (1, _) => String::new(),
                (count, number) if number == count => "all other users: ".to_owned(),
                _ => format!("{}% of users: ", upstream.percent),
            };
            let (name, servers) = (&upstream.name, upstream.servers());
            writeln!(out, "  {who}upstream \"{name}\" at {servers}")?;
            upstream.write_policy(out, &self.method)?;
        }
        if let Some(request) = &self.request {
            writeln!(out, "  the service gets:")?;
            writeln!(out, "    {} {}", request.method, request.target)?;
            for header in &request.headers {
                writeln!(out, "    {}: {}", header.name, header.value)?;
            }
        }
        if !self.removed.is_empty() {
            writeln!(out, "  removed from the request:")?;
            for removed in &self.removed {
                writeln!(out, "    {}: {}", removed.name, removed.reason)?;
            }
        }
        Ok(())
    }
}

/// As it is written in the configuration.
pub(super) fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}
