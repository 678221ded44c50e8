//! What the log line at the start says about the configuration and the listeners.

use std::net::SocketAddr;
use std::path::Path;

use super::Server;
use crate::config::{Config, RedisServers};
use crate::edge::ListenerKind;

/// A summary of the configuration, without secrets.
#[derive(Clone, Copy)]
pub struct ConfigSummary {
    is_https: bool,
    apps: usize,
    routes: usize,
    upstreams: usize,
    sessions: &'static str,
    warnings: usize,
}

impl ConfigSummary {
    pub fn new(config: &Config) -> Self {
        let store = config.session.shared.as_ref().map(|shared| &shared.redis.servers);
        Self {
            is_https: config.server.tls.is_some(),
            apps: config.apps.len(),
            routes: config.routes.len(),
            upstreams: config.upstreams.len(),
            sessions: match store {
                None => "memory",
                Some(RedisServers::Single { .. }) => "redis",
                Some(RedisServers::Sentinel { .. }) => "redis-sentinel",
                Some(RedisServers::Cluster { .. }) => "redis-cluster",
            },
            warnings: config.warnings.len(),
        }
    }
}

/// The log line at the start.
pub struct StartLog {
    summary: ConfigSummary,
    config: Option<String>,
    public: String,
    proxy_protocol: Option<String>,
    redirect: Option<String>,
    forward_auth: Option<String>,
    admin: SocketAddr,
    internal: Option<String>,
    workers: usize,
}

impl StartLog {
    /// Describes a server. Its listeners are bound, so that all ports are known.
    pub fn new(server: &Server) -> Self {
        let public = |is_included: fn(ListenerKind) -> bool| {
            let included = server.listeners.public.iter().filter(|(_, kind)| is_included(*kind));
            included.map(|(listener, _)| listener.address).collect::<Vec<_>>()
        };
        let path = server.origin.as_ref().map(|origin| &origin.path);
        Self {
            config: path.map(|path| Path::display(path).to_string()),
            public: list(&public(|kind| kind != ListenerKind::Redirect)).unwrap_or_default(),
            proxy_protocol: list(&public(|kind| kind == ListenerKind::ProxyProtocol)),
            redirect: list(&public(|kind| kind == ListenerKind::Redirect)),
            forward_auth: list(&server.forward_auth_addresses()),
            admin: server.admin_address(),
            internal: server.internal_address(),
            workers: server.workers,
            summary: server.summary,
        }
    }

    pub fn write(&self) {
        let Self { summary, .. } = self;
        tracing::info!(
            version = display(env!("CARGO_PKG_VERSION")),
            config = self.config.as_ref().map(display),
            public = display(&self.public),
            tls = summary.is_https,
            proxy_protocol = self.proxy_protocol.as_ref().map(display),
            redirect = self.redirect.as_ref().map(display),
            forward_auth = self.forward_auth.as_ref().map(display),
            admin = display(self.admin),
            internal = self.internal.as_ref().map(display),
            apps = summary.apps,
            routes = summary.routes,
            upstreams = summary.upstreams,
            sessions = display(summary.sessions),
            threads = self.workers,
            warnings = summary.warnings,
            "started"
        );
    }
}

fn list(addresses: &[SocketAddr]) -> Option<String> {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    (!addresses.is_empty()).then(|| addresses.join(", "))
}
