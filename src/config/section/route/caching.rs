//! Which cache headers the gateway adds to the responses of a route.

use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue};
use toml::de::DeValue;

use super::Access;
use super::header_edits::HeaderEdits;
use super::references::References;
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::Table;
use crate::message::header::cache_control::is_shared;

/// The cache headers of a route's responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    /// `Vary`, and `private` on responses to users.
    Private,
    /// Cache headers stay as the service sent them.
    AsSent,
}

/// The headers that `Vary` lists in the responses of a route.
pub fn vary(
    section: &Table<'_>,
    references: &References<'_>,
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
            Access::None => section.warn(
                given,
                "has no effect with auth = \"none\": cache headers are never changed there",
            ),
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
    let has_vary = access != Access::None && !cache.is_some_and(|given| is_as_sent(&given.value));
    if has_vary { references.session.carrier_headers() } else { Vec::new() }
}

impl FromValue for Cache {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("private", Self::Private), ("as_sent", Self::AsSent)])
    }
}
