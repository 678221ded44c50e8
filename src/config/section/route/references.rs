//! What routes refer to: upstreams, apps, browsers, certificates, and reserved headers.
//!
//! These are read before the routes, so that the names in a route can be resolved.

use http::{HeaderName, HeaderValue};

use crate::config::Secrets;
use crate::config::document::table::{Located, Table};
use crate::config::section::app::App;
use crate::config::section::browser::Browser;
use crate::config::section::server::tls::TlsSection;
use crate::config::section::session::SessionSection;
use crate::config::section::upstream::Upstream;
use crate::config::value::headers::ReservedHeaders;

/// What routes refer to.
pub struct References<'a> {
    pub upstreams: &'a [Located<Upstream>],
    /// Whether routes may be forward-auth-only.
    pub upstream_may_be_absent: bool,
    /// `None`: a problem was reported.
    pub apps: Option<&'a [App]>,
    pub browsers: &'a [Located<Browser>],
    pub max_body: u64,
    pub session: &'a SessionSection,
    pub reserved: ReservedHeaders<'a>,
    /// `server.response_headers`: on every response, unless a route sets them itself.
    pub response_headers: &'a [(HeaderName, HeaderValue)],
    pub tls: Option<&'a TlsSection>,
    pub secrets: Secrets,
}

impl References<'_> {
    /// The index of an upstream by its name; reports an unknown name.
    pub fn upstream(&self, section: &Table<'_>, given: &Located<String>) -> Option<usize> {
        let upstreams = self.upstreams;
        let index = upstreams.iter().position(|upstream| upstream.value.name == given.value);
        let names = upstreams.iter().map(|upstream| &upstream.value.name);
        let defined: Vec<_> =
            names.filter(|name| !name.is_empty()).map(|name| format!("\"{name}\"")).collect();
        // If there are no upstreams although one is needed, that is reported instead.
        if index.is_none() && (self.upstream_may_be_absent || !defined.is_empty()) {
            let help = match &defined[..] {
                [] => "add an [[upstream]], or leave this key out".to_owned(),
                defined => format!("defined upstreams: {}", defined.join(", ")),
            };
            section.problem(given, format!("no upstream named \"{}\"", given.value), help);
        }
        index
    }
}
