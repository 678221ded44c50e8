//! An upstream in an explanation: its servers, and the policy that applies to the requests of a
//! route.

use std::fmt::{self, Formatter};
use std::time::Duration;

use http::Method;
use serde::Serialize;

use super::text::size;
use crate::config::{
    Balance, CheckKind, Ejection, HashKey, HealthCheck, Protocol, Retry, RetryOn, Route,
    ServerAddress, Upstream, UpstreamHost,
};

/// An upstream of the route.
#[derive(Debug, Serialize)]
pub struct ChosenUpstream {
    pub name: String,
    pub servers: Vec<String>,
    /// In the order of `servers`.
    pub weights: Vec<u16>,
    /// The percentage of the users with a session that this upstream serves.
    pub percent: f64,
    pub protocol: &'static str,
    pub tls: Option<ChosenTls>,
    pub balance: &'static str,
    /// What is hashed with `balance = "hash"`: `user`, `address`, or the name of a header.
    pub hash: Option<String>,
    /// The `Host` that the servers get: `client`, `server`, or a host.
    pub host: String,
    /// In bytes.
    pub buffer_body: u64,
    pub connect_timeout: String,
    pub read_timeout: String,
    pub write_timeout: String,
    /// Whether the service's cookies are kept in the gateway, with the session.
    pub cookie_jar: bool,
    /// The limit of the whole exchange.
    pub timeout: Option<String>,
    /// 0: no limit.
    pub max_connections: usize,
    pub max_pending: usize,
    pub pending_timeout: String,
    pub retry: ChosenRetry,
    pub ejection: ChosenEjection,
    pub health_check: Option<ChosenHealthCheck>,
}

#[derive(Debug, Serialize)]
pub struct ChosenTls {
    /// `None`: the host of each server.
    pub server_name: Option<String>,
}

/// Retries, as the route's keys and those of the upstream result in.
#[derive(Debug, Serialize)]
pub struct ChosenRetry {
    pub attempts: u32,
    pub on: Vec<&'static str>,
    pub budget: String,
    pub per_try_timeout: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct ChosenEjection {
    pub failures: u32,
    pub duration: String,
    pub max_percent: u8,
}

#[derive(Debug, Serialize)]
pub struct ChosenHealthCheck {
    /// `None`: only a connection is opened.
    pub path: Option<String>,
    pub interval: String,
    pub timeout: String,
    pub unhealthy_after: u32,
    pub healthy_after: u32,
}

impl ChosenUpstream {
    /// The upstream of a route, for some of its users out of 10,000.
    pub fn new(upstream: &Upstream, route: &Route, users: u16) -> Self {
        let timeout = |own: Option<Duration>, upstreams| shown(own.unwrap_or(upstreams));
        let (balance, hash) = match &upstream.balance {
            Balance::RoundRobin => ("round_robin", None),
            Balance::LeastRequests => ("least_requests", None),
            Balance::Hash(HashKey::User) => ("hash", Some("user".to_owned())),
            Balance::Hash(HashKey::Address) => ("hash", Some("address".to_owned())),
            Balance::Hash(HashKey::Header(name)) => ("hash", Some(name.to_string())),
        };
        let servers = upstream.servers.iter();
        Self {
            name: upstream.name.clone(),
            servers: servers.clone().map(|server| server.address.to_string()).collect(),
            weights: servers.map(|server| server.weight).collect(),
            percent: f64::from(users) / 100.0,
            protocol: match upstream.protocol {
                Protocol::Http1 => "http1",
                Protocol::Http2 => "h2",
            },
            tls: upstream.tls.as_ref().map(|tls| ChosenTls {
                server_name: tls.server_name.as_ref().map(|name| name.to_str().into_owned()),
            }),
            balance,
            hash,
            host: match &upstream.host {
                UpstreamHost::Client => "client".to_owned(),
                UpstreamHost::Server => "server".to_owned(),
                UpstreamHost::Fixed(host) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
            },
            buffer_body: upstream.buffer_body,
            cookie_jar: upstream.cookie_jar,
            connect_timeout: timeout(route.timeouts.connect, upstream.connect_timeout),
            read_timeout: timeout(route.timeouts.read, upstream.read_timeout),
            write_timeout: timeout(route.timeouts.write, upstream.write_timeout),
            timeout: route.timeouts.total.map(shown),
            max_connections: upstream.max_connections,
            max_pending: upstream.max_pending,
            pending_timeout: shown(upstream.pending_timeout),
            retry: ChosenRetry::new(&upstream.retry.with(&route.retry)),
            ejection: ChosenEjection::new(&upstream.ejection),
            health_check: upstream.health_check.as_ref().map(ChosenHealthCheck::new),
        }
    }
}

impl ChosenRetry {
    fn new(retry: &Retry) -> Self {
        let RetryOn { connect, reset, timeout, status_502, status_503, status_504 } = retry.on();
        let words = [
            ("connect", connect),
            ("reset", reset),
            ("timeout", timeout),
            ("502", status_502),
            ("503", status_503),
            ("504", status_504),
        ];
        Self {
            attempts: retry.attempts,
            on: words.into_iter().filter(|(_, is_on)| *is_on).map(|(word, _)| word).collect(),
            budget: format!("{}%", f64::from(retry.budget) / 100.0),
            per_try_timeout: retry.per_try_timeout.map(shown),
        }
    }
}

impl ChosenEjection {
    fn new(ejection: &Ejection) -> Self {
        Self {
            failures: ejection.failures,
            duration: shown(ejection.duration),
            max_percent: ejection.max_percent,
        }
    }
}

impl ChosenHealthCheck {
    fn new(check: &HealthCheck) -> Self {
        Self {
            path: match &check.kind {
                CheckKind::Http { path, .. } => Some(path.clone()),
                CheckKind::Connect => None,
            },
            interval: shown(check.interval),
            timeout: shown(check.timeout),
            unhealthy_after: check.unhealthy_after,
            healthy_after: check.healthy_after,
        }
    }
}

/// The `Host` that a service gets instead of the client's, if there is one.
pub fn host_of(upstream: &Upstream) -> Option<String> {
    match &upstream.host {
        UpstreamHost::Client => None,
        UpstreamHost::Fixed(host) => Some(String::from_utf8_lossy(host.as_bytes()).into_owned()),
        UpstreamHost::Server => upstream.servers.first().map(|server| match &server.address {
            ServerAddress::Unix(_) => "localhost".to_owned(),
            address => address.to_string(),
        }),
    }
}

fn shown(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

impl ChosenUpstream {
    /// Writes how requests with a method are sent, a line for each kind of policy.
    pub(super) fn write_policy(&self, out: &mut Formatter<'_>, method: &str) -> fmt::Result {
        write!(out, "    protocol {}", self.protocol)?;
        match &self.tls {
            Some(ChosenTls { server_name: Some(name) }) => write!(out, " with TLS for {name}")?,
            Some(ChosenTls { server_name: None }) => write!(out, " with TLS")?,
            None => {}
        }
        write!(out, ", balance {}", self.balance)?;
        if let Some(hash) = &self.hash {
            write!(out, " of {hash}")?;
        }
        write!(out, ", host {}", self.host)?;
        if self.buffer_body > 0 {
            write!(out, ", buffer_body {}", size(self.buffer_body))?;
        }
        writeln!(out)?;
        if self.cookie_jar {
            writeln!(out, "    cookie_jar: its cookies stay in the gateway, with the session")?;
        }
        write!(
            out,
            "    connect_timeout {}, read_timeout {}, write_timeout {}",
            self.connect_timeout, self.read_timeout, self.write_timeout
        )?;
        if let Some(timeout) = &self.timeout {
            write!(out, ", timeout {timeout}")?;
        }
        writeln!(out)?;
        write!(out, "    ")?;
        self.retry.write(out, method)?;
        if self.max_connections > 0 {
            writeln!(
                out,
                "    max_connections {} to each server, max_pending {}, pending_timeout {}",
                self.max_connections, self.max_pending, self.pending_timeout
            )?;
        }
        let ChosenEjection { failures, duration, max_percent } = &self.ejection;
        match failures {
            0 => write!(out, "    no ejection")?,
            _ => write!(
                out,
                "    ejection after {failures} failures for {duration}, at most {max_percent}%"
            )?,
        }
        match &self.health_check {
            None => writeln!(out, "; no health checks"),
            Some(check) => {
                let what =
                    check.path.as_ref().map_or("connect".to_owned(), |path| format!("GET {path}"));
                writeln!(
                    out,
                    "; health check {what} every {}, unhealthy after {}, healthy after {}",
                    check.interval, check.unhealthy_after, check.healthy_after
                )
            }
        }
    }

    /// The addresses, with the weights that are not 1.
    pub(super) fn servers(&self) -> String {
        if self.servers.is_empty() {
            return "the servers of its servers_file".to_owned();
        }
        let servers = self.servers.iter().zip(&self.weights).map(|(server, weight)| match weight {
            1 => server.clone(),
            _ => format!("{server} (weight {weight})"),
        });
        servers.collect::<Vec<_>>().join(", ")
    }
}

impl ChosenRetry {
    fn write(&self, out: &mut Formatter<'_>, method: &str) -> fmt::Result {
        let is_idempotent = method.parse().is_ok_and(|method: Method| method.is_idempotent());
        let (on, other): (Vec<_>, Vec<_>) =
            self.on.iter().copied().partition(|word| is_idempotent || *word == "connect");
        match self.attempts {
            0 => write!(out, "no retries")?,
            _ if on.is_empty() => write!(out, "no retries")?,
            1 => write!(out, "up to 1 retry on {}", on.join(", "))?,
            attempts => write!(out, "up to {attempts} retries on {}", on.join(", "))?,
        }
        if self.attempts > 0 && !other.is_empty() {
            write!(out, " (not on {}: {method} is not idempotent)", other.join(", "))?;
        }
        if self.attempts > 0 && is_idempotent {
            write!(out, ", budget {}", self.budget)?;
        }
        match &self.per_try_timeout {
            Some(timeout) => writeln!(out, ", per_try_timeout {timeout}"),
            None => writeln!(out),
        }
    }
}
