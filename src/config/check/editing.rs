//! What a route changes of a request and of its answer.
//!
//! Identity is the gateway's alone to write, and so is what frames a message: no route may
//! name such a header, in any spelling that a service could take for it.

use http::{HeaderName, HeaderValue};

use super::known::Known;
use crate::config::reader::{Located, Section};
use crate::config::{HeaderEdits, Rewriting, RoutePath, Timeouts};
use crate::header::owned::{CLOUD_RUN, ERROR, FROM_TRUSTED, OF_CONNECTION, OF_FRAMING, WRITTEN};
use crate::header::{FoldedNames, fold};

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
    let own = known.own_headers().chain(CLOUD_RUN).chain(WRITTEN).chain(FROM_TRUSTED);
    let own = FoldedNames::new(own.chain(OF_CONNECTION).chain(OF_FRAMING).chain(["host", ERROR]));
    edits(section, "set_request_headers", "remove_request_headers", &own)
}

pub fn response_edits(section: &Section<'_>, known: &Known<'_>) -> HeaderEdits {
    let own = known.own_headers().chain(OF_CONNECTION).chain(OF_FRAMING);
    let own = FoldedNames::new(own.chain(["x-request-id", ERROR]));
    edits(section, "set_response_headers", "remove_response_headers", &own)
}

fn edits(
    section: &Section<'_>,
    set: &'static str,
    remove: &'static str,
    own: &FoldedNames,
) -> HeaderEdits {
    let set = section.entries::<HeaderName, HeaderValue>(set);
    let remove = section.some::<HeaderName>(remove, "leave it out").unwrap_or_default();
    let mut seen: Vec<String> = Vec::new();
    for name in set.iter().map(|(name, _)| name).chain(&remove) {
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
    HeaderEdits { set: set.collect(), remove: remove.into_iter().map(|name| name.value).collect() }
}

/// Whether the value of such a header is better not shown.
fn may_be_secret(name: &str) -> bool {
    ["auth", "cookie", "key", "secret", "token", "password"].iter().any(|word| name.contains(word))
}
