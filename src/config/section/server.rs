//! Where the gateway listens.

pub mod certificate_chain;
pub mod tls;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::advice;
use super::route::caching;
use super::route::header_edits::response_headers;
use super::route::references::OwnHeaders;
use crate::config::document::reader::{Located, Section, values};
use crate::config::value::secret::read_any_secret;
use crate::config::{
    AdminSection, ForwardAuthSection, RoutePath, Secrets, ServerAddress, ServerSection,
};

/// The section, and the places of its listeners.
pub fn server(
    section: Section<'_>,
    own: OwnHeaders<'_>,
    secrets: Secrets,
) -> (Option<ServerSection>, Vec<Located<SocketAddr>>) {
    let listen = section.require_some::<SocketAddr>("listen", "as \"0.0.0.0:8080\"");
    let redirect = section.list::<SocketAddr>("redirect").unwrap_or_default();
    let public = [&*listen, &*redirect].concat();
    report_overlaps(&section, &public);

    let threads = match section.number("threads", 0, 0..=1024) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let tls_section = section.optional_section("tls");
    let h2c = section.get::<bool>("h2c");
    if let Some(h2c) = h2c.as_ref().filter(|h2c| h2c.value && tls_section.is_some()) {
        let help = "HTTP/2 is agreed on by the handshake there";
        section.problem(h2c, "has no effect where the listeners are HTTPS", help);
    }
    let redirect_port = redirect_port(&section, &redirect, tls_section.is_some());
    let trusted_proxies = section.list("trusted_proxies").unwrap_or_default();
    advice::warn_of_trust(&section, &trusted_proxies);
    let trusted_proxies = values(trusted_proxies);
    let watch_interval = section.get::<Duration>("watch_interval");
    if let Some(given) = &watch_interval
        && !given.value.is_zero()
        && given.value < Duration::from_millis(10)
    {
        section.problem(given, "must be at least 10ms, or 0s for never", "");
    }
    let server = ServerSection {
        listen: values(listen.clone()),
        threads,
        tls: tls_section.map(|tls| tls::tls(tls, secrets)),
        h2c: h2c.is_some_and(|h2c| h2c.value),
        proxy_protocol: proxy_protocol(&section, &listen, !trusted_proxies.is_empty()),
        redirect: values(redirect),
        redirect_port,
        trusted_proxies,
        response_headers: response_headers(&section, own),
        watch_interval: watch_interval.map_or(Duration::from_secs(1), |given| given.value),
        shutdown_delay: section.get_or("shutdown_delay", Duration::ZERO),
        drain_timeout: section.get_or("drain_timeout", Duration::from_secs(25)),
    };
    section.finish();
    ((!listen.is_empty()).then_some(server), public)
}

fn redirect_port(section: &Section<'_>, redirect: &[Located<SocketAddr>], is_tls: bool) -> u16 {
    const HTTPS: u16 = 443;
    if let Some(first) = redirect.first().filter(|_| !is_tls) {
        let help = "server.tls makes the others HTTPS";
        section.problem(first, "there is no HTTPS to send clients to", help);
    }
    let port = section.number("redirect_port", HTTPS.into(), 1..=u16::MAX.into());
    if let Some(given) = section.raw("redirect_port")
        && redirect.is_empty()
        && port != usize::from(HTTPS)
    {
        let message = "has no effect without server.redirect";
        section.push(section.key("redirect_port"), given.span(), message, "");
    }
    u16::try_from(port).unwrap_or(HTTPS)
}

fn proxy_protocol(
    section: &Section<'_>,
    listen: &[Located<SocketAddr>],
    has_trusted_proxies: bool,
) -> Vec<SocketAddr> {
    let given = section.list::<SocketAddr>("proxy_protocol").unwrap_or_default();
    for one in &given {
        if !listen.iter().any(|listen| listen.value == one.value) {
            section.problem(one, "is not one of server.listen", "");
        }
    }
    if let Some(first) = given.first().filter(|_| !has_trusted_proxies) {
        let message = "nobody could connect: server.trusted_proxies is empty";
        section.problem(first, message, "name the networks of the balancers there");
    }
    values(given)
}

/// In characters.
const SHORTEST_TOKEN: usize = 32;

pub fn admin(
    section: Section<'_>,
    public: &[Located<SocketAddr>],
    secrets: Secrets,
) -> AdminSection {
    const HELP: &str = "metrics never stand on a public listener: choose another port";
    let default = SocketAddr::from(([127, 0, 0, 1], 9464));
    let given = section.get::<SocketAddr>("listen");
    let listen = given.as_ref().map_or(default, |given| given.value);
    if let Some(public) = public.iter().find(|public| overlap(public.value, listen)) {
        match &given {
            Some(given) => section.problem(given, "is a public listener too", HELP),
            None => section.problem(public, "is where admin.listen is by default", HELP),
        }
    }
    let token = read_any_secret(&section, "token", secrets);
    if let Some(token) = &token
        && secrets == Secrets::Load
        && token.value.expose().len() < SHORTEST_TOKEN
    {
        let message = format!("is shorter than {SHORTEST_TOKEN} characters");
        section.problem(token, message, "openssl rand -base64 32");
    }
    section.finish();
    AdminSection { listen, token: token.map(|token| token.value) }
}

/// Off without `listen`.
pub fn forward_auth(
    section: Section<'_>,
    public: &[Located<SocketAddr>],
    admin: &AdminSection,
    has_trusted_proxies: bool,
    idle_timeout: Duration,
) -> ForwardAuthSection {
    const HELP: &str = "decisions never stand on another listener: choose another port";
    let path = section.get_or("path", RoutePath("/auth".to_owned()));
    let cache = caching::of_decisions(&section, idle_timeout);
    if section.has("path") || !cache.is_zero() {
        section.report_missing("listen", "as \"127.0.0.1:8081\"");
    }
    let listen = section.list::<SocketAddr>("listen").unwrap_or_default();
    report_overlaps(&section, &listen);
    for one in &listen {
        if public.iter().any(|public| overlap(public.value, one.value)) {
            section.problem(one, "is a public listener too", HELP);
        }
        if overlap(admin.listen, one.value) {
            section.problem(one, "is admin.listen too", HELP);
        }
    }
    if let Some(first) = listen.first().filter(|_| !has_trusted_proxies) {
        let message = "nobody could ask: server.trusted_proxies is empty";
        section.problem(first, message, "name the addresses of the proxies in front there");
    }
    section.finish();
    ForwardAuthSection { listen: values(listen), path, cache }
}

fn report_overlaps(section: &Section<'_>, listed: &[Located<SocketAddr>]) {
    for (index, one) in listed.iter().enumerate() {
        for earlier in listed.iter().take(index) {
            if one.value == earlier.value && one.value.port() != 0 {
                section.problem(one, "stands twice", "");
            } else if overlap(one.value, earlier.value) {
                let help = "0.0.0.0 is all of IPv4, and [::] all of IPv6 and IPv4";
                section.problem(one, format!("overlaps with {}", earlier.value), help);
            }
        }
    }
}

/// Whether a connection to a server would reach a listener of this gateway. Names other than
/// `localhost` are not resolved.
pub fn is_met(listener: SocketAddr, server: &ServerAddress) -> bool {
    let (addresses, port) = match server {
        // A connection to the unspecified address reaches loopback.
        ServerAddress::Socket(server) => {
            let address = match server.ip().to_canonical() {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
                address => address,
            };
            (vec![address], server.port())
        }
        ServerAddress::Host { host, port } => {
            let is_here = host.trim_end_matches('.').eq_ignore_ascii_case("localhost");
            let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            (if is_here { loopback.to_vec() } else { Vec::new() }, *port)
        }
    };
    let own = listener.ip().to_canonical();
    let is_all_of = |address: IpAddr| own.is_ipv6() || address.is_ipv4();
    let is_own = |address: &IpAddr| {
        *address == own
            || own.is_unspecified() && is_all_of(*address) && advice::is_of_this_machine(*address)
    };
    port == listener.port() && addresses.iter().any(is_own)
}

/// Whether two listeners would want the same address. Port 0 is another one each time.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    // All of IPv6 is all of IPv4 too, unless the system is told otherwise.
    let covers = |a: SocketAddr, b: SocketAddr| {
        a.ip().is_unspecified() && (a.is_ipv6() || a.is_ipv4() == b.is_ipv4())
    };
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}
