//! Host names of routes and endpoints: how they are written, and which of them are valid.

use std::net::IpAddr;

use http::HeaderValue;
use toml::de::DeValue;

use crate::config::document::from_value::{FromValue, text};

/// Hosts of a route, in lower case and without port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Exact(String),
    /// The part after the `*`, such as `.example.com`; one or more labels come before it.
    Wildcard(String),
}

impl HostPattern {
    /// Whether a lower-case host without port is one of these.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Wildcard(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        }
    }
}

/// Whether a lower-case host, without port, is this machine.
pub fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => out.write_str(name),
            Self::Wildcard(suffix) => write!(out, "*{suffix}"),
        }
    }
}

impl FromValue for HostPattern {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str =
            "a host name without port, such as \"api.example.com\" or \"*.example.com\"";
        let given = text(value, EXPECTED)?;
        let name = given.strip_prefix("*.").unwrap_or(given);
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let is_label = |label: &str| !label.is_empty() && label.bytes().all(legal);
        let is_address = name.len() == given.len()
            && name
                .strip_prefix('[')
                .and_then(|name| name.strip_suffix(']'))
                .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
        if name.len() > 253 || !(is_address || name.split('.').all(is_label)) {
            return Err(format!("expected {EXPECTED}, found \"{given}\""));
        }
        let name = name.to_ascii_lowercase();
        Ok(if given.starts_with('*') {
            Self::Wildcard(format!(".{name}"))
        } else {
            Self::Exact(name)
        })
    }
}

/// The value of a `Host` header: a host, with a port if needed.
pub struct HostHeader(pub HeaderValue);

impl FromValue for HostHeader {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str =
            "a host, with a port if needed, such as \"shop.example.com\" or \"shop:8080\"";
        let given = text(value, EXPECTED)?;
        let (host, port) = match given.rsplit_once(':') {
            Some((host, port)) if !given.ends_with(']') => (host, Some(port)),
            _ => (given, None),
        };
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => (1..=253).contains(&host.len()) && host.bytes().all(legal),
        };
        let is_port = port.is_none_or(|port| port.parse().is_ok_and(|port: u16| port != 0));
        HeaderValue::from_str(given)
            .ok()
            .filter(|_| is_host && is_port)
            .map(Self)
            .ok_or_else(|| format!("expected {EXPECTED}, found \"{given}\""))
    }
}
