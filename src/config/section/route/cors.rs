//! `[route.cors]`: which origins may use a route from a browser.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue};
use toml::de::DeValue;

use super::header_edits::HeaderEdits;
use super::references::References;
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::{Located, Table, values};
use crate::message::header::reserved::ERROR;

/// Which origins may use a route from a browser, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    pub origins: Origins,
    pub methods: Vec<String>,
    pub headers: Vec<HeaderName>,
    pub expose: Vec<HeaderName>,
    pub credentials: bool,
    pub max_age: Duration,
}

/// Origins that may read responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    Any,
    /// Spelled as browsers send them.
    Listed(Vec<HeaderValue>),
}

/// How CORS preflights are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preflight {
    /// The gateway responds as configured in [`Cors`]; without it, a preflight is an ordinary
    /// request.
    Respond,
    /// Forwarded without identity.
    Pass,
}

/// The methods of a route that accepts every method.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// Reads `cors` and `preflight` of a route. `methods` and the edits of responses are the route's.
pub fn read(
    section: &Table<'_>,
    references: &References<'_>,
    methods: &[String],
    edits: &HeaderEdits,
) -> (Option<Cors>, Preflight) {
    let preflight = section.get::<Preflight>("preflight");
    let cors = section.optional_table("cors").map(|cors| {
        let read = read_table(&cors, references, methods);
        cors.finish();
        read
    });
    if let Some(preflight) = &preflight
        && preflight.value == Preflight::Pass
        && section.has("cors")
    {
        let help = "with cors, the gateway responds to preflights: remove one of the two";
        section.problem(preflight, "cannot be combined with cors", help);
    }
    let is_cors = |name: &HeaderName| name.as_str().starts_with("access-control-");
    let edited = edits.set.iter().map(|(name, _)| name).chain(&edits.remove);
    for name in edited.filter(|name| is_cors(name)) {
        if let Some(raw) = section.raw("cors") {
            let message = format!("writes \"{name}\", which this route also edits");
            section.push(section.key("cors"), raw.span(), message, "");
        }
    }
    let cors = cors.filter(|_| section.has("cors"));
    (cors, preflight.map_or(Preflight::Respond, |preflight| preflight.value))
}

fn read_table(section: &Table<'_>, references: &References<'_>, methods: &[String]) -> Cors {
    let listed = section.require_some::<String>("origins", "such as [\"https://h5.example.com\"]");
    let credentials = section.get::<bool>("credentials");
    let credentials_are_sent = credentials.as_ref().is_some_and(|given| given.value);
    if let Some(credentials) = credentials
        && credentials.value
        && listed.iter().any(|origin| origin.value == "*")
    {
        let help = "list the origins that may send cookies";
        section.problem(&credentials, "cannot be combined with the origin \"*\"", help);
    }
    let own_methods = section.some::<String>("methods", "leave it out to use the route's methods");
    let own_headers = section.list::<HeaderName>("headers");
    let expose = section.list::<HeaderName>("expose");
    let max_age = section.get_or("max_age", Duration::from_secs(600));
    let methods = match own_methods {
        Some(listed) => {
            for method in &listed {
                report_invalid_method(section, method, methods);
            }
            values(listed)
        }
        None if methods.is_empty() => METHODS.map(str::to_owned).to_vec(),
        None => methods.to_vec(),
    };
    Cors {
        origins: origins(section, listed),
        methods,
        headers: own_headers.map_or_else(|| references.carriers(), values),
        expose: expose.map_or_else(
            || {
                vec![
                    RETRY_AFTER,
                    HeaderName::from_static("x-request-id"),
                    HeaderName::from_static(ERROR),
                ]
            },
            values,
        ),
        credentials: credentials_are_sent,
        max_age,
    }
}

fn report_invalid_method(section: &Table<'_>, method: &Located<String>, served: &[String]) {
    if method.value.is_empty() || !method.value.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
    {
        section.problem(method, "is not a valid method", "such as \"GET\"");
    } else if !served.is_empty() && !served.contains(&method.value) {
        section.problem(method, "is not one of the route's methods", "");
    }
}

fn origins(section: &Table<'_>, listed: Vec<Located<String>>) -> Origins {
    if let [any] = listed.as_slice()
        && any.value == "*"
    {
        return Origins::Any;
    }
    let mut origins = Vec::with_capacity(listed.len());
    for origin in listed {
        match parse(&origin.value) {
            Some(value) => origins.push(value),
            None => section.problem(
                &origin,
                format!("\"{}\" is not an origin", origin.value),
                "such as \"https://h5.example.com\", in lower case, without path; or \"*\" alone",
            ),
        }
    }
    Origins::Listed(origins)
}

/// An origin exactly as browsers write it (RFC 6454, section 6.1).
fn parse(origin: &str) -> Option<HeaderValue> {
    let (scheme, rest) = origin.split_once("://")?;
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]".contains(&b);
    let is_default_port = match scheme {
        "http" => rest.ends_with(":80"),
        "https" => rest.ends_with(":443"),
        _ => true,
    };
    let is_sound = !rest.is_empty() && rest.bytes().all(legal) && !is_default_port;
    is_sound.then(|| origin.parse().ok()).flatten()
}

impl References<'_> {
    /// Headers that clients send with every request to carry the token.
    fn carriers(&self) -> Vec<HeaderName> {
        let carriers = self.session.carriers;
        let bearer = carriers.bearer.then_some(AUTHORIZATION);
        let header = carriers.header.then(|| self.session.header.clone());
        [CONTENT_TYPE].into_iter().chain(bearer).chain(header).collect()
    }
}

impl FromValue for Preflight {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("answer", Self::Respond), ("pass", Self::Pass)])
    }
}
