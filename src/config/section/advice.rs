//! Warnings about values that work, but are probably mistakes.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::document::reader::{Located, Section};
use crate::config::{Access, Route, RoutePath, Target, Upstream};
use crate::identity::AppId;

/// Approximate memory of a session, in bytes.
pub const SESSION_BYTES: u64 = 500;

/// Approximate memory of a client of a rate limit, in bytes.
pub const RATE_CLIENT_BYTES: u64 = 400;

/// Warns if a limit would allow more memory than most machines have.
pub fn warn_of_memory(section: &Section<'_>, name: &str, count: u64, bytes_each: u64, what: &str) {
    const MUCH: u64 = 10_000_000_000;
    let bytes = count.saturating_mul(bytes_each);
    if bytes > MUCH {
        let message = format!("{what} may take {} GB of memory", bytes / 1_000_000_000);
        section.warn_of(name, &message);
    }
}

/// Warns where everybody is a trusted proxy.
pub fn warn_of_trust(section: &Section<'_>, trusted: &[Located<IpNet>]) {
    // Two halves of all addresses count as well.
    let networks: Vec<IpNet> = trusted.iter().map(|one| one.value.trunc()).collect();
    let is_all = |network: &IpNet| network.prefix_len() == 0;
    if IpNet::aggregate(&networks).iter().any(is_all) {
        let message = "this trusts every address: all clients can forge their address, scheme \
                       and host. List only your own proxies";
        section.warn_of("trusted_proxies", message);
    }
}

/// Warns of an endpoint that is not where it seems to be.
pub fn warn_of_trailing_slash(section: &Section<'_>, path: &Located<RoutePath>) {
    let text = path.value.as_str();
    let without = text.trim_end_matches('/');
    if !without.is_empty() && without != text {
        let message = format!("\"{without}\" is not this endpoint: paths must be equal");
        section.warn(path, &message);
    }
}

/// Warns of a path that looks like a pattern, but is compared literally.
pub fn warn_of_pattern(section: &Section<'_>, path: &Located<RoutePath>) {
    let text = path.value.as_str();
    let has_parameter = text.split('/').any(|segment| segment.starts_with(':'));
    let why = if text.ends_with('$') || text.contains('(') {
        "a path is not a regular expression"
    } else if has_parameter {
        "a path has no parameters"
    } else {
        return;
    };
    section.warn(path, &format!("\"{text}\" is compared literally: {why}"));
}

pub fn warn_of_unused_upstreams(
    root: &Section<'_>,
    upstreams: &[Located<Upstream>],
    routes: &[Route],
) {
    let is_used = |index: usize| {
        routes.iter().any(|route| match &route.target {
            Target::Service { upstream, split } => {
                *upstream == index || split.iter().any(|share| share.upstream == index)
            }
            Target::Answer(_) | Target::Elsewhere => false,
        })
    };
    for (_, upstream) in upstreams.iter().enumerate().filter(|(index, _)| !is_used(*index)) {
        root.warn(upstream, &format!("no route uses \"{}\"", upstream.value.name));
    }
}

/// Warns of apps whose sessions no route accepts.
pub fn warn_of_unused_apps(root: &Section<'_>, apps: &[Located<AppId>], routes: &[Route]) {
    for app_id in apps {
        let is_used = routes.iter().any(|route| {
            let takes = route.apps.is_empty() || route.apps.contains(&app_id.value);
            route.access != Access::None && takes
        });
        if !is_used {
            root.warn(app_id, "no route accepts the sessions of this app");
        }
    }
}

/// Warns of lifetimes of sessions that are beyond reason.
pub fn warn_of_life(section: &Section<'_>, ttl: Duration, idle_timeout: Duration) {
    const DAY: u64 = 24 * 3600;
    if ttl.as_secs() > 366 * DAY {
        let message = "a stolen token is valid for more than a year";
        section.warn_of("ttl", message);
    } else if ttl.as_secs() < 60 {
        section.warn_of("ttl", "every user must log in again within a minute");
    } else if idle_timeout.as_secs() < 60 {
        let message = "users must log in again after less than a minute without a request";
        section.warn_of("idle_timeout", message);
    }
}

/// Warns of addresses of WeChat that are not WeChat's API.
pub fn warn_of_base_url(section: &Section<'_>, given: &Located<String>, is_loopback: bool) {
    let url = reqwest::Url::parse(&given.value).ok();
    let host = url.as_ref().and_then(|url| url.host_str()).unwrap_or_default();
    let is_api = host.starts_with("api") || host.contains(".api.");
    if is_loopback {
        let message = "this is not WeChat, but a program on this machine, such as `wxgate \
                       sandbox`, where any code logs in. In production it must be a relay of your \
                       own";
        section.warn(given, message);
    } else if host.ends_with("weixin.qq.com") && !is_api {
        let message = format!("{host} is not the host of WeChat's API, api.weixin.qq.com");
        section.warn(given, &message);
    } else if host.ends_with("weixin.qq.com")
        && url.as_ref().is_some_and(|url| !matches!(url.path(), "" | "/"))
    {
        section.warn(given, "WeChat's API has no path prefix: leave out the path");
    }
}

/// Whether an address is one of this machine's.
pub fn is_of_this_machine(address: IpAddr) -> bool {
    // Connecting a datagram socket sends nothing. To one of its own addresses the system connects
    // from that same address.
    let probe = || {
        let there = std::net::SocketAddr::new(address, 9);
        let domain = socket2::Domain::for_address(there);
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
        socket.connect(&there.into())?;
        socket.local_addr()
    };
    let here = probe().ok().and_then(|here| here.as_socket());
    address.is_loopback() || here.is_some_and(|here| here.ip() == address)
}
