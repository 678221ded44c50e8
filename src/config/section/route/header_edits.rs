//! Headers that a route sets and removes, merged with `server.response_headers`.

use http::{HeaderName, HeaderValue};

use super::references::References;
use crate::config::document::table::Table;
use crate::config::value::headers::check_edits;
use crate::message::header::FoldedNames;
use crate::message::header::reserved::{
    CLOUD_RUN, ERROR, FROM_TRUSTED, OF_CONNECTION, OF_FRAMING, WRITTEN,
};

/// Headers to remove and to set; none of them is reserved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

/// Reads the edits of requests.
pub fn request_edits(section: &Table<'_>, references: &References<'_>) -> HeaderEdits {
    let own = references.reserved.names().chain(CLOUD_RUN).chain(WRITTEN).chain(FROM_TRUSTED);
    let own = FoldedNames::new(own.chain(OF_CONNECTION).chain(OF_FRAMING).chain(["host", ERROR]));
    edits(section, "set_request_headers", "remove_request_headers", &own)
}

/// Reads the edits of responses.
pub fn response_edits(section: &Table<'_>, references: &References<'_>) -> HeaderEdits {
    let own = FoldedNames::new(references.reserved.of_responses());
    edits(section, "set_response_headers", "remove_response_headers", &own)
}

/// Merges `server.response_headers` into a route. Returns the edits of its service's responses, and
/// the headers of the gateway's own responses.
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
    section: &Table<'_>,
    set: &'static str,
    remove: &'static str,
    reserved: &FoldedNames,
) -> HeaderEdits {
    let set = section.entries::<HeaderName, HeaderValue>(set);
    let remove = section.some::<HeaderName>(remove, "leave it out").unwrap_or_default();
    let set = check_edits(section, set, &remove, reserved);
    HeaderEdits { set, remove: remove.into_iter().map(|name| name.value).collect() }
}
