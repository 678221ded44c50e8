//! Headers that a route sets and removes, and headers of every response.
//!
//! Identity is the gateway's alone to write, and so is what frames a message: no route may
//! name such a header, in any spelling that a service could take for it.

use http::{HeaderName, HeaderValue};

use super::references::{Known, OwnHeaders};
use crate::config::document::reader::{Located, Section};
use crate::config::{HeaderEdits, Rewriting, RoutePath, Timeouts};
use crate::message::header::reserved::{
    CLOUD_RUN, ERROR, FROM_TRUSTED, OF_CONNECTION, OF_FRAMING, OF_ONE_RESPONSE, WRITTEN,
};
use crate::message::header::{FoldedNames, fold};

pub fn rewriting(section: &Section<'_>, path: Option<&Located<RoutePath>>) -> Option<Rewriting> {
    let strip = section.get::<RoutePath>("strip_prefix");
    let add = section.get::<RoutePath>("add_prefix");
    let trimmed = |path: &RoutePath| path.as_str().trim_end_matches('/').to_owned();
    if let (Some(strip), Some(path)) = (&strip, path) {
        let prefix = trimmed(&strip.value);
        let rest = path.value.as_str().strip_prefix(prefix.as_str());
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            let message = format!("is not where \"{}\" begins", path.value.as_str());
            section.problem(strip, message, "as much of the path as is to go, in whole segments");
        }
    }
    if strip.is_none() && add.is_none() {
        return None;
    }
    let text = |path: Option<Located<RoutePath>>| {
        path.map_or_else(String::new, |path| trimmed(&path.value))
    };
    Some(Rewriting { strip: text(strip), add: text(add) })
}

pub fn timeouts(section: &Section<'_>) -> Timeouts {
    Timeouts {
        connect: section.optional_positive("connect_timeout"),
        read: section.optional_positive("read_timeout"),
        write: section.optional_positive("write_timeout"),
    }
}

pub fn request_edits(section: &Section<'_>, known: &Known<'_>) -> HeaderEdits {
    let own = known.own.names().chain(CLOUD_RUN).chain(WRITTEN).chain(FROM_TRUSTED);
    let own = FoldedNames::new(own.chain(OF_CONNECTION).chain(OF_FRAMING).chain(["host", ERROR]));
    edits(section, "set_request_headers", "remove_request_headers", &own)
}

pub fn response_edits(section: &Section<'_>, known: &Known<'_>) -> HeaderEdits {
    let own = FoldedNames::new(of_responses(known.own));
    edits(section, "set_response_headers", "remove_response_headers", &own)
}

/// Response headers that the configuration cannot set.
fn of_responses(own: OwnHeaders<'_>) -> impl Iterator<Item = &str> {
    own.names().chain(OF_CONNECTION).chain(OF_FRAMING).chain(["x-request-id", ERROR])
}

/// The headers of every response.
pub fn response_headers(
    section: &Section<'_>,
    own: OwnHeaders<'_>,
) -> Vec<(HeaderName, HeaderValue)> {
    let of_one = FoldedNames::new(OF_ONE_RESPONSE.into_iter());
    let own = FoldedNames::new(of_responses(own));
    let given = section.entries::<HeaderName, HeaderValue>("response_headers");
    for (name, _) in &given {
        if of_one.contains(name.value.as_str()) {
            let message = format!("\"{}\" is not the same for every response", name.value);
            section.problem(name, message, "a route may have it in set_response_headers");
        }
    }
    checked(section, given, &[], &own)
}

/// What every response gets, as a route has it: the edits of its service's responses, and the
/// headers of the gateway's own.
pub fn on_route(
    shared: &[(HeaderName, HeaderValue)],
    edits: HeaderEdits,
    has_cors: bool,
) -> (HeaderEdits, Vec<(HeaderName, HeaderValue)>) {
    let is_of_cors = |name: &HeaderName| has_cors && name.as_str().starts_with("access-control-");
    let edited = edits.set.iter().map(|(name, _)| name).chain(&edits.remove);
    let edited = FoldedNames::new(edited.map(HeaderName::as_str));
    let names = FoldedNames::new(shared.iter().map(|(name, _)| name.as_str()));
    let kept: Vec<_> = shared
        .iter()
        .filter(|(name, _)| !edited.contains(name.as_str()) && !is_of_cors(name))
        .cloned()
        .collect();
    let replaced = edits.set.iter().filter(|(name, _)| names.contains(name.as_str()));
    let own = kept.iter().chain(replaced).cloned().collect();
    let set = [kept, edits.set].concat();
    (HeaderEdits { set, remove: edits.remove }, own)
}

fn edits(
    section: &Section<'_>,
    set: &'static str,
    remove: &'static str,
    own: &FoldedNames,
) -> HeaderEdits {
    let set = section.entries::<HeaderName, HeaderValue>(set);
    let remove = section.some::<HeaderName>(remove, "leave it out").unwrap_or_default();
    let set = checked(section, set, &remove, own);
    HeaderEdits { set, remove: remove.into_iter().map(|name| name.value).collect() }
}

/// Headers to set. None of them is the gateway's, repeated, or removed as well.
fn checked(
    section: &Section<'_>,
    set: Vec<(Located<HeaderName>, Located<HeaderValue>)>,
    remove: &[Located<HeaderName>],
    own: &FoldedNames,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut seen: Vec<String> = Vec::new();
    for name in set.iter().map(|(name, _)| name).chain(remove) {
        let folded = name.value.as_str().bytes().map(|byte| char::from(fold(byte))).collect();
        if own.contains(name.value.as_str()) {
            let message = format!("\"{}\" is the gateway's to write", name.value);
            section.problem(name, message, "");
        } else if seen.contains(&folded) {
            section.problem(name, "stands twice", "a header that is set replaces what was there");
        }
        seen.push(folded);
    }
    let set = set.into_iter().map(|(name, mut value)| {
        value.value.set_sensitive(may_be_secret(name.value.as_str()));
        (name.value, value.value)
    });
    set.collect()
}

/// Whether the value of such a header is better not shown.
fn may_be_secret(name: &str) -> bool {
    ["auth", "cookie", "key", "secret", "token", "password"].iter().any(|word| name.contains(word))
}
