//! What routes refer to: upstreams, apps, certificates, and the names that are reserved.
//!
//! Read before the routes, and looked up by each part of a route that names one of them.

use http::{HeaderName, HeaderValue};

use crate::config::Secrets;
use crate::config::document::table::{Located, Table};
use crate::config::section::app::App;
use crate::config::section::server::tls::TlsSection;
use crate::config::section::session::SessionSection;
use crate::config::section::upstream::Upstream;
use crate::config::value::headers::ReservedHeaders;

/// What routes refer to.
pub struct References<'a> {
    pub upstreams: &'a [Located<Upstream>],
    /// Whether routes may be only for other proxies to ask about.
    pub upstream_may_be_absent: bool,
    /// `None`: that was reported.
    pub apps: Option<&'a [App]>,
    pub max_body: u64,
    pub session: &'a SessionSection,
    pub reserved: ReservedHeaders<'a>,
    /// Of every response, where a route says nothing else.
    pub response_headers: &'a [(HeaderName, HeaderValue)],
    pub tls: Option<&'a TlsSection>,
    pub secrets: Secrets,
}

impl References<'_> {
    /// The index of an upstream by its name, or a problem.
    pub fn upstream(&self, section: &Table<'_>, given: &Located<String>) -> Option<usize> {
        let upstreams = self.upstreams;
        let index = upstreams.iter().position(|upstream| upstream.value.name == given.value);
        let names = upstreams.iter().map(|upstream| &upstream.value.name);
        let defined: Vec<_> =
            names.filter(|name| !name.is_empty()).map(|name| format!("\"{name}\"")).collect();
        // Without any where one is needed, that is the problem to report.
        if index.is_none() && (self.upstream_may_be_absent || !defined.is_empty()) {
            let help = match &defined[..] {
                [] => "write [[upstream]], or leave it out".to_owned(),
                defined => format!("defined upstreams: {}", defined.join(", ")),
            };
            section.problem(given, format!("no upstream named \"{}\"", given.value), help);
        }
        index
    }
}
