//! The cache headers of responses.

use std::time::Duration;

use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue};

use super::references::Known;
use crate::config::document::reader::Section;
use crate::config::{Access, Cache, HeaderEdits};
use crate::message::header::cache_control::is_shared;

/// The headers that `Vary` of a route's responses names.
pub fn vary(
    section: &Section<'_>,
    known: &Known<'_>,
    access: Access,
    edits: &HeaderEdits,
) -> Vec<HeaderName> {
    let cache = section.get::<Cache>("cache");
    let is_as_sent = |cache: &Cache| *cache == Cache::AsSent;
    if let Some(given) = cache.as_ref().filter(|given| is_as_sent(&given.value)) {
        match access {
            Access::Required => section.warn(
                given,
                "responses to users are not marked as private: a shared cache may give one user's \
                 response to another",
            ),
            Access::None => section
                .warn(given, "has no effect with auth = \"none\": responses are always as sent"),
            Access::Optional => {}
        }
    }
    let is_for_caches = |(name, value): &&(HeaderName, HeaderValue)| {
        name == CACHE_CONTROL && is_shared(value.as_bytes()) && access != Access::None
    };
    if edits.set.iter().any(|edit| is_for_caches(&edit)) {
        section.warn_of(
            "set_response_headers",
            "this Cache-Control lets shared caches store responses to users: a cache that \
             ignores Vary gives them to others",
        );
    }
    let is_told = access != Access::None && !cache.is_some_and(|given| is_as_sent(&given.value));
    if is_told { known.session.carrier_headers() } else { Vec::new() }
}

/// How long a proxy may reuse a decision.
pub fn of_decisions(section: &Section<'_>, idle_timeout: Duration) -> Duration {
    let Some(given) = section.get::<Duration>("cache") else { return Duration::ZERO };
    if given.value.subsec_nanos() != 0 {
        section.problem(&given, "must be whole seconds", "as \"10s\", or \"0s\" for never");
    }
    let longest = idle_timeout / 2;
    if given.value > longest {
        let message = format!(
            "must be at most {}, half of session.idle_timeout",
            humantime::format_duration(longest)
        );
        section.problem(&given, message, "requests served from a cache do not extend the session");
    }
    given.value
}
