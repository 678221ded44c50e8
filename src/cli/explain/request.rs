//! A request, described by an operator.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::browser::tickets::TicketParameter;
use crate::config::Config;
use crate::route::RouteLookup;

/// A request, described by an operator.
pub struct DescribedRequest {
    pub(super) method: Method,
    pub(super) host: Option<String>,
    pub(super) path: String,
    query: Option<String>,
    pub(super) headers: HeaderMap,
}

impl DescribedRequest {
    /// `url` may be only a path, for a request that names no host.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(
        method: Method,
        url: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Self, String> {
        // A fragment is never sent.
        let url = url.split('#').next().unwrap_or_default();
        let (host, target) = match url.split_once("://") {
            Some(("http" | "https", rest)) => {
                let end = rest.find(['/', '?']).unwrap_or(rest.len());
                let (host, target) = rest.split_at(end);
                (Some(host.to_owned()), target)
            }
            _ if url.starts_with('/') => (None, url),
            _ => return Err("expected http://HOST/PATH, https://HOST/PATH or /PATH".to_owned()),
        };
        if host.as_deref().is_some_and(|host| host.is_empty() || host.contains('@')) {
            return Err("expected a host name, optionally with a port".to_owned());
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
        }
        let named = map.remove(http::header::HOST);
        let named = named.and_then(|host| host.to_str().ok().map(str::to_owned));
        Ok(Self { method, host: host.or(named), path, query, headers: map })
    }

    pub(super) fn to_match(&self) -> RouteLookup<'_> {
        let (method, headers) = (&self.method, &self.headers);
        RouteLookup { path: &self.path, host: self.host.as_deref(), method, headers }
    }

    pub(super) fn target(&self) -> String {
        let query = self.query.as_ref().map_or_else(String::new, |query| format!("?{query}"));
        format!("{}{query}", self.path)
    }

    pub(super) fn host_bytes(&self) -> Option<&[u8]> {
        self.host.as_deref().map(str::as_bytes)
    }

    /// Its ticket, if tickets are on.
    pub(super) fn ticket(&self, config: &Config) -> Option<TicketParameter> {
        let target = config.ticket.enabled.then(|| self.target())?;
        TicketParameter::find(target.as_bytes())
    }

    /// What a service gets of path and query: without a ticket.
    pub(super) fn forwarded_target(&self, config: &Config) -> String {
        let target = self.target();
        let Some(ticket) = self.ticket(config) else { return target };
        let (before, after) = ticket.around(target.as_bytes());
        String::from_utf8_lossy(&[before, after].concat()).into_owned()
    }

    /// The request header as HTTP/1.1 would send it. Without a host, a placeholder is used.
    pub(super) fn header_bytes(&self) -> Vec<u8> {
        let host = self.host.as_deref().unwrap_or("localhost");
        let (method, target) = (self.method.as_str(), self.target());
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n").into_bytes();
        for (name, value) in &self.headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                bytes.extend_from_slice(part);
            }
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }
}
