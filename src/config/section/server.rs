//! `[server]`: where clients connect, and how the process starts and ends.

pub mod certificate_chain;
pub mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use self::tls::TlsSection;
use super::RestartOnly;
use crate::config::Secrets;
use crate::config::document::table::{Located, Table, values};
use crate::config::value::headers::{ReservedHeaders, check_edits};
use crate::config::value::listeners::report_overlaps;
use crate::config::value::private_directory;
use crate::message::header::FoldedNames;
use crate::message::header::reserved::OF_ONE_RESPONSE;

/// The section `[server]`.
#[derive(Debug, PartialEq)]
pub struct ServerSection {
    /// Never empty.
    pub listen: Vec<SocketAddr>,
    /// Worker threads; never 0.
    pub threads: usize,
    pub tls: Option<TlsSection>,
    /// Whether plain connections may use HTTP/2 with prior knowledge.
    pub h2c: bool,
    /// Those of `listen` that expect a PROXY header from a load balancer.
    pub proxy_protocol: Vec<SocketAddr>,
    /// Listeners that redirect to HTTPS. Empty without `tls`.
    pub redirect: Vec<SocketAddr>,
    /// The port they redirect to.
    pub redirect_port: u16,
    pub trusted_proxies: Vec<IpNet>,
    /// Added to every response of the public listeners.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// How often the configuration files are checked for changes; zero: never.
    pub watch_interval: Duration,
    /// How long new connections are still accepted after SIGTERM.
    pub shutdown_delay: Duration,
    /// How long requests in flight may take after that.
    pub drain_timeout: Duration,
    /// Where a new process connects to take over from this one.
    pub upgrade_socket: Option<PathBuf>,
}

/// Keys that a reload cannot change.
pub const RESTART_ONLY: &[RestartOnly] = &[
    ("server.listen", |a, b| a.server.listen == b.server.listen),
    ("server.threads", |a, b| a.server.threads == b.server.threads),
    ("server.proxy_protocol", |a, b| a.server.proxy_protocol == b.server.proxy_protocol),
    ("server.redirect", |a, b| a.server.redirect == b.server.redirect),
    ("server.upgrade_socket", |a, b| a.server.upgrade_socket == b.server.upgrade_socket),
    ("server.tls", |a, b| a.server.tls.is_some() == b.server.tls.is_some()),
];

/// The section, and the places of its listeners.
pub fn read(
    section: Table<'_>,
    reserved: ReservedHeaders<'_>,
    secrets: Secrets,
) -> (Option<ServerSection>, Vec<Located<SocketAddr>>) {
    let listen = section.require_some::<SocketAddr>("listen", "such as \"0.0.0.0:8080\"");
    let redirect = section.list::<SocketAddr>("redirect").unwrap_or_default();
    let public = [&*listen, &*redirect].concat();
    report_overlaps(&section, &public);

    let threads = match section.number("threads", 0, 0..=1024) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let tls_section = section.optional_table("tls");
    let h2c = section.get::<bool>("h2c");
    if let Some(h2c) = h2c.as_ref().filter(|h2c| h2c.value && tls_section.is_some()) {
        let help = "with TLS, HTTP/2 is negotiated in the handshake";
        section.problem(h2c, "has no effect with server.tls", help);
    }
    let redirect_port = redirect_port(&section, &redirect, tls_section.is_some());
    let trusted_proxies = section.list("trusted_proxies").unwrap_or_default();
    warn_of_trust(&section, &trusted_proxies);
    let trusted_proxies = values(trusted_proxies);
    let watch_interval = section.get::<Duration>("watch_interval");
    if let Some(given) = &watch_interval
        && !given.value.is_zero()
        && given.value < Duration::from_millis(10)
    {
        section.problem(given, "must be at least 10ms; 0s means never", "");
    }
    let server = ServerSection {
        listen: values(listen.clone()),
        threads,
        tls: tls_section.map(|tls| tls::read(tls, secrets)),
        h2c: h2c.is_some_and(|h2c| h2c.value),
        proxy_protocol: proxy_protocol(&section, &listen, !trusted_proxies.is_empty()),
        redirect: values(redirect),
        redirect_port,
        trusted_proxies,
        response_headers: response_headers(&section, reserved),
        watch_interval: watch_interval.map_or(Duration::from_secs(1), |given| given.value),
        shutdown_delay: section.get_or("shutdown_delay", Duration::ZERO),
        drain_timeout: section.get_or("drain_timeout", Duration::from_secs(25)),
        upgrade_socket: upgrade_socket(&section, secrets),
    };
    section.finish();
    ((!listen.is_empty()).then_some(server), public)
}

fn redirect_port(section: &Table<'_>, redirect: &[Located<SocketAddr>], is_tls: bool) -> u16 {
    const HTTPS: u16 = 443;
    if let Some(first) = redirect.first().filter(|_| !is_tls) {
        let help = "add [server.tls]: then the listeners in server.listen use HTTPS";
        section.problem(first, "there is no HTTPS listener to redirect to", help);
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
    section: &Table<'_>,
    listen: &[Located<SocketAddr>],
    has_trusted_proxies: bool,
) -> Vec<SocketAddr> {
    let given = section.list::<SocketAddr>("proxy_protocol").unwrap_or_default();
    for one in &given {
        if !listen.iter().any(|listen| listen.value == one.value) {
            section.problem(one, "is not in server.listen", "");
        }
    }
    if let Some(first) = given.first().filter(|_| !has_trusted_proxies) {
        let message = "every connection would be rejected: server.trusted_proxies is empty";
        section.problem(first, message, "list the addresses of your load balancers there");
    }
    values(given)
}

/// Reads the path of the upgrade socket. Whoever could put another socket in its place would get
/// the sessions of all users.
fn upgrade_socket(section: &Table<'_>, secrets: Secrets) -> Option<PathBuf> {
    /// The system's limit is 107, of which the name of a socket that is not ready yet needs four.
    const LONGEST: usize = 103;
    let given = section.get::<PathBuf>("upgrade_socket")?;
    let path = &given.value;
    let length = path.as_os_str().len();
    let directory = path.parent().filter(|_| path.is_absolute() && path.file_name().is_some());
    let Some(directory) = directory else {
        let help = "such as \"/run/wxgate/upgrade.sock\"";
        section.problem(&given, "is not the absolute path of a socket", help);
        return None;
    };
    if length > LONGEST {
        let message = format!("has {length} bytes, but the path of a socket at most {LONGEST}");
        section.problem(&given, message, "");
        return None;
    }
    // Where secrets are missing, the directory is, too.
    if secrets == Secrets::Load {
        let own = rustix::process::geteuid().as_raw();
        if let Err(reason) = private_directory::check(directory, own) {
            let help = "the directory must belong to the gateway's user or root, be writable by \
                        nobody else, and so must those above it; check as the gateway's user";
            section.problem(&given, reason, help);
            return None;
        }
    }
    Some(given.value)
}

/// Reads the headers of every response.
fn response_headers(
    section: &Table<'_>,
    reserved: ReservedHeaders<'_>,
) -> Vec<(HeaderName, HeaderValue)> {
    let of_one = FoldedNames::new(OF_ONE_RESPONSE.into_iter());
    let reserved = FoldedNames::new(reserved.of_responses());
    let given = section.entries::<HeaderName, HeaderValue>("response_headers");
    for (name, _) in &given {
        if of_one.contains(name.value.as_str()) {
            let message = format!("\"{}\" cannot be the same for every response", name.value);
            section.problem(name, message, "set it on a route, in set_response_headers");
        }
    }
    check_edits(section, given, &[], &reserved)
}

/// Warns if every address is a trusted proxy.
fn warn_of_trust(section: &Table<'_>, trusted: &[Located<IpNet>]) {
    // Two networks that together are all addresses count as well.
    let networks: Vec<IpNet> = trusted.iter().map(|one| one.value.trunc()).collect();
    let is_all = |network: &IpNet| network.prefix_len() == 0;
    if IpNet::aggregate(&networks).iter().any(is_all) {
        let message = "this trusts every address: all clients can forge their address, scheme \
                       and host. List only your own proxies";
        section.warn_of("trusted_proxies", message);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use crate::config::{Config, Secrets};

    /// What is wrong with the path of an upgrade socket.
    fn problem(path: &str, secrets: Secrets) -> Option<String> {
        let text = format!(
            r#"
            [server]
            listen = "127.0.0.1:8080"
            upgrade_socket = "{path}"
            [[app]]
            app_id = "wx0123456789abcdef"
            app_secret = {{ file = "tests/config/app_secret" }}
            [[upstream]]
            name = "shop"
            servers = ["127.0.0.1:3000"]
            [[route]]
            path = "/"
            upstream = "shop"
            "#
        );
        let shown = match Config::parse("file", &text, secrets) {
            Ok(config) => {
                assert_eq!(config.server.upgrade_socket.unwrap().to_str(), Some(path));
                return None;
            }
            Err(problems) => problems.to_string(),
        };
        let (_, found) = shown.split_once("server.upgrade_socket: ").unwrap_or(("", &shown));
        found.lines().next().map(str::to_owned)
    }

    #[test]
    fn the_upgrade_socket_is_in_a_directory_of_the_gateway_alone() {
        let temp = tempfile::tempdir().unwrap();
        let directory = fs::canonicalize(temp.path()).unwrap();
        let path = directory.join("upgrade.sock");
        let path = path.to_str().unwrap();
        assert_eq!(problem(path, Secrets::Load), None);
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        let expected =
            format!("{} is writable by other users (its mode is 777)", directory.display());
        assert_eq!(problem(path, Secrets::Load), Some(expected));
        assert_eq!(problem("/none/upgrade.sock", Secrets::Load).unwrap(), "/none does not exist");
        // As in CI, where the gateway does not run.
        assert_eq!(problem(path, Secrets::Ignore), None);
        assert_eq!(problem("/none/upgrade.sock", Secrets::Ignore), None);
    }

    #[test]
    fn the_path_of_the_upgrade_socket_is_absolute_and_short() {
        for path in ["upgrade.sock", "./upgrade.sock", "/", "/run/.."] {
            let found = problem(path, Secrets::Ignore);
            assert_eq!(found.as_deref(), Some("is not the absolute path of a socket"), "{path}");
        }
        let longest = format!("/{}", "x".repeat(102));
        assert_eq!(problem(&longest, Secrets::Ignore), None);
        let expected = "has 104 bytes, but the path of a socket at most 103";
        assert_eq!(problem(&format!("{longest}x"), Secrets::Ignore).unwrap(), expected);
    }
}
