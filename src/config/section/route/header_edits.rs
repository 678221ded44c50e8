//! Headers that a route sets and removes, merged with `server.response_headers`.

use http::{HeaderName, HeaderValue};

use super::references::References;
use crate::config::document::table::{Located, Table};
use crate::config::value::headers::{check_edits, folded};
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
    edits(section, references, ["set_request_headers", "remove_request_headers"], &own)
}

/// Reads the edits of responses.
pub fn response_edits(section: &Table<'_>, references: &References<'_>) -> HeaderEdits {
    let own = FoldedNames::new(references.reserved.of_responses());
    edits(section, references, ["set_response_headers", "remove_response_headers"], &own)
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
    references: &References<'_>,
    [set, remove]: [&'static str; 2],
    reserved: &FoldedNames,
) -> HeaderEdits {
    let set = section.entries::<HeaderName, HeaderValue>(set);
    for (name, value) in &set {
        report_own_cookies(section, references, &name.value, value);
    }
    let remove = section.some::<HeaderName>(remove, "leave it out").unwrap_or_default();
    let set = check_edits(section, set, &remove, reserved);
    HeaderEdits { set, remove: remove.into_iter().map(|name| name.value).collect() }
}

/// Reports a header with a cookie that is the gateway's: it would be taken for a session.
fn report_own_cookies(
    section: &Table<'_>,
    references: &References<'_>,
    name: &HeaderName,
    value: &Located<HeaderValue>,
) {
    // What follows the first pair of a Set-Cookie are its attributes.
    let most = match folded(name.as_str()).as_str() {
        "cookie" => usize::MAX,
        "set_cookie" => 1,
        _ => return,
    };
    let mut pairs = value.value.as_bytes().split(|byte| *byte == b';').take(most);
    let is_own = |pair: &[u8]| {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        references.browsers.iter().any(|browser| browser.value.owns_cookie(name))
    };
    if pairs.any(is_own) {
        let help = "choose another name: those of a [[browser]] are only for sessions";
        section.problem(value, "has a cookie that is the gateway's", help);
    }
}
