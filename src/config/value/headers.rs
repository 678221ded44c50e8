//! Header names in the configuration: which of them are reserved.
//!
//! Only the gateway may write identity headers and headers for framing. Nothing else may be
//! configured to use such a header, in any spelling that a service could take for it.

use http::{HeaderName, HeaderValue};

use crate::config::document::table::{Located, Table};
use crate::message::header::reserved::{ERROR, JWT, OF_CONNECTION, OF_FRAMING};
use crate::message::header::{FoldedNames, fold};

/// Headers that the configuration reserves: for tokens and for identities.
#[derive(Clone, Copy)]
pub struct ReservedHeaders<'a> {
    pub session: &'a HeaderName,
    pub identity: &'a [&'a HeaderName],
}

impl<'a> ReservedHeaders<'a> {
    pub fn names(self) -> impl Iterator<Item = &'a str> {
        let own = self.identity.iter().copied().chain([self.session]);
        own.map(HeaderName::as_str).chain([JWT])
    }

    /// Response headers that the configuration cannot set.
    pub fn of_responses(self) -> impl Iterator<Item = &'a str> {
        self.names().chain(OF_CONNECTION).chain(OF_FRAMING).chain(["x-request-id", ERROR])
    }
}

/// Reports a session or identity header whose name already has another meaning.
pub fn report_taken(section: &Table<'_>, header: &Located<HeaderName>) {
    const TAKEN: [&str; 19] = [
        "authorization",
        "connection",
        "content_encoding",
        "content_length",
        "content_type",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "keep_alive",
        "proxy_authorization",
        "proxy_connection",
        "te",
        "trailer",
        "transfer_encoding",
        "upgrade",
        "x_real_ip",
        "x_request_id",
        "x_wxgate_error",
    ];
    let folded = folded(header.value.as_str());
    if TAKEN.contains(&folded.as_str()) || folded.starts_with("x_forwarded_") {
        let message = format!("\"{}\" already has another meaning", header.value);
        section.problem(header, message, "choose another name");
    }
}

/// A header name as a CGI-like service reads it.
pub fn folded(name: &str) -> String {
    name.bytes().map(|byte| char::from(fold(byte))).collect()
}

/// The headers to set. Reports those that are reserved, repeated, or also removed.
pub fn check_edits(
    section: &Table<'_>,
    set: Vec<(Located<HeaderName>, Located<HeaderValue>)>,
    remove: &[Located<HeaderName>],
    reserved: &FoldedNames,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut names: Vec<String> = Vec::new();
    for name in set.iter().map(|(name, _)| name).chain(remove) {
        let folded = folded(name.value.as_str());
        if reserved.contains(name.value.as_str()) {
            let message = format!("\"{}\" is reserved for the gateway", name.value);
            section.problem(name, message, "");
        } else if names.contains(&folded) {
            section.problem(
                name,
                "is listed twice",
                "a header that is set replaces the existing one",
            );
        }
        names.push(folded);
    }
    let set = set.into_iter().map(|(name, mut value)| {
        value.value.set_sensitive(may_be_secret(name.value.as_str()));
        (name.value, value.value)
    });
    set.collect()
}

/// Whether the value of such a header may be secret, and must not be shown.
fn may_be_secret(name: &str) -> bool {
    ["auth", "cookie", "key", "secret", "token", "password"].iter().any(|word| name.contains(word))
}
