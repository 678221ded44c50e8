//! `[session.redis]`: the address of a shared session store, and how to connect to it.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::Secrets;
use crate::config::document::table::Table;
use crate::config::value::pem;
use crate::config::value::secret::read_any_secret;
use crate::identity::secret::Secret;

/// The section `session.redis`: a Redis or Valkey store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSection {
    pub servers: RedisServers,
    /// `None`: plain connections.
    pub tls: Option<RedisTls>,
    /// The ACL user; `None`: the default user.
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// For the Sentinels, which have their own users.
    pub sentinel_username: Option<String>,
    pub sentinel_password: Option<Secret>,
    /// Prefix of every key and channel.
    pub key_prefix: String,
    /// Time for the store operations of one request.
    pub timeout: Duration,
    /// How long a session is cached after it was read.
    pub near_cache_ttl: Duration,
    /// Concurrent lookups.
    pub max_lookups: usize,
}

/// The topology of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisServers {
    Single {
        address: RedisAddress,
        database: i64,
    },
    /// At least one Sentinel; they know the address of the primary named `primary`.
    Sentinel {
        sentinels: Vec<RedisAddress>,
        primary: String,
        database: i64,
    },
    /// At least one node of a cluster; nodes know each other.
    Cluster {
        nodes: Vec<RedisAddress>,
    },
}

/// The address of a server of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisAddress {
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    pub port: u16,
}

/// How the certificates of the store are verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisTls {
    /// Root certificates to trust instead of the system's, from `ca_file`, in PEM.
    pub roots: Option<Vec<u8>>,
}

const FORMS: &str = "such as \"redis://HOST:6379\", \"redis+sentinel://HOST:26379,HOST:26379/PRIMARY\" \
                     or \"redis+cluster://HOST:6379,HOST:6379\"; for TLS, \"rediss\" instead of \"redis\"";

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// `None`: a problem was reported.
pub fn read(section: Table<'_>, idle_timeout: Duration, secrets: Secrets) -> Option<RedisSection> {
    let url = section.require::<String>("url");
    let parsed = url.as_ref().and_then(|url| match servers(&url.value) {
        Ok(parsed) => Some(parsed),
        Err(message) => {
            section.problem(url, message, FORMS);
            None
        }
    });
    let username = section.get::<String>("username");
    let password = read_any_secret(&section, "password", secrets);
    let sentinel_username = section.get::<String>("sentinel_username");
    let sentinel_password = read_any_secret(&section, "sentinel_password", secrets);
    let ca_file = section.get::<PathBuf>("ca_file");
    let key_prefix = section.get::<String>("key_prefix");
    if let Some(given) = &key_prefix
        && !is_prefix(&given.value)
    {
        let message = "must be 1 to 64 printable ASCII characters, without spaces, { and }";
        section.problem(given, message, "such as \"wxgate:\"");
    }
    let timeout = section.positive("timeout", Duration::from_millis(100));
    report_long(&section, "timeout", timeout, Duration::from_secs(10));
    let longest = Duration::from_secs(60).min(idle_timeout / 2);
    let near_cache_ttl = section.positive("near_cache_ttl", Duration::from_secs(5).min(longest));
    report_long(&section, "near_cache_ttl", near_cache_ttl, longest);
    let max_lookups = section.number("max_lookups", 1024, 1..=1 << 20);
    if let Some((servers, is_tls)) = &parsed {
        if !matches!(servers, RedisServers::Sentinel { .. }) {
            for key in ["sentinel_username", "sentinel_password"] {
                report_useless(&section, key, "there are no Sentinels in url");
            }
        }
        if !is_tls {
            report_useless(&section, "ca_file", "url does not use TLS");
        }
        if let Some(url) = &url
            && !is_tls
            && !addresses(servers).iter().all(is_loopback)
        {
            section
                .warn(url, "without TLS, the password of the session store is sent in clear text");
        }
    }
    let roots = ca_file.filter(|_| secrets == Secrets::Load).and_then(|ca_file| {
        pem::certificates(&section, &ca_file, "")?;
        pem::read(&section, &ca_file).map(|pem| pem.to_vec())
    });
    section.finish();
    let (servers, is_tls) = parsed?;
    Some(RedisSection {
        servers,
        tls: is_tls.then_some(RedisTls { roots }),
        username: username.map(|given| given.value),
        password: password.map(|given| given.value),
        sentinel_username: sentinel_username.map(|given| given.value),
        sentinel_password: sentinel_password.map(|given| given.value),
        key_prefix: key_prefix.map_or_else(|| "wxgate:".to_owned(), |given| given.value),
        timeout,
        near_cache_ttl,
        max_lookups,
    })
}

fn report_long(section: &Table<'_>, name: &'static str, given: Duration, longest: Duration) {
    if given > longest
        && let Some(value) = section.raw(name)
    {
        let message = format!("must be at most {}", humantime::format_duration(longest));
        section.push(section.key(name), value.span(), message, "");
    }
}

fn report_useless(section: &Table<'_>, name: &'static str, reason: &str) {
    if let Some(value) = section.raw(name) {
        section.push(section.key(name), value.span(), format!("has no effect: {reason}"), "");
    }
}

fn is_prefix(prefix: &str) -> bool {
    (1..=64).contains(&prefix.len())
        && prefix.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'{' | b'}'))
}

/// The servers of a URL, and whether to connect with TLS.
fn servers(url: &str) -> Result<(RedisServers, bool), String> {
    let (scheme, rest) = url.split_once("://").ok_or("is not a URL")?;
    if rest.contains('@') {
        return Err("put credentials in username and password, not in the URL".into());
    }
    if rest.contains(['?', '#']) {
        return Err("must not have a query or a fragment".to_owned());
    }
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let is_tls = scheme.starts_with("rediss");
    let servers = match scheme {
        "redis" | "rediss" => {
            let [address] = <[_; 1]>::try_from(parse_hosts(hosts, REDIS_PORT)?)
                .map_err(|_| "has several servers, but the scheme is for a single one")?;
            RedisServers::Single { address, database: database(path)? }
        }
        "redis+sentinel" | "rediss+sentinel" => {
            let (primary, path) = path.split_once('/').unwrap_or((path, ""));
            if primary.is_empty() {
                return Err("does not name the primary".to_owned());
            }
            RedisServers::Sentinel {
                sentinels: parse_hosts(hosts, SENTINEL_PORT)?,
                primary: primary.to_owned(),
                database: database(path)?,
            }
        }
        "redis+cluster" | "rediss+cluster" if path.is_empty() => {
            RedisServers::Cluster { nodes: parse_hosts(hosts, REDIS_PORT)? }
        }
        "redis+cluster" | "rediss+cluster" => {
            return Err("a cluster has no databases".to_owned());
        }
        _ => return Err(format!("unknown scheme {scheme}")),
    };
    Ok((servers, is_tls))
}

fn database(path: &str) -> Result<i64, String> {
    match path {
        "" => Ok(0),
        _ => path
            .parse::<u16>()
            .map(i64::from)
            .map_err(|_| format!("{path} is not a database number")),
    }
}

fn parse_hosts(hosts: &str, default_port: u16) -> Result<Vec<RedisAddress>, String> {
    let mut addresses: Vec<RedisAddress> = Vec::new();
    for text in hosts.split(',') {
        let address = parse_host(text, default_port)
            .ok_or_else(|| format!("{text:?} is not a server address"))?;
        if addresses.contains(&address) {
            return Err(format!("{text:?} is listed twice"));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn parse_host(text: &str, default_port: u16) -> Option<RedisAddress> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let is_host = !host.is_empty() && (host.contains(':') || host.bytes().all(is_name));
    let port = port.map_or(Some(default_port), |port| port.parse().ok().filter(|port| *port != 0));
    is_host.then(|| Some(RedisAddress { host: host.to_owned(), port: port? }))?
}

fn addresses(servers: &RedisServers) -> &[RedisAddress] {
    match servers {
        RedisServers::Single { address, .. } => std::slice::from_ref(address),
        RedisServers::Sentinel { sentinels, .. } => sentinels,
        RedisServers::Cluster { nodes } => nodes,
    }
}

fn is_loopback(address: &RedisAddress) -> bool {
    let host = &address.host;
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> RedisAddress {
        RedisAddress { host: host.to_owned(), port }
    }

    #[test]
    fn the_three_forms_of_a_store_url_are_parsed() {
        let single = |host, port, database| {
            (RedisServers::Single { address: address(host, port), database }, false)
        };
        assert_eq!(servers("redis://redis.internal"), Ok(single("redis.internal", 6379, 0)));
        assert_eq!(servers("redis://[::1]:7000/3"), Ok(single("::1", 7000, 3)));
        let sentinels = vec![address("a", 26379), address("b", 7)];
        let primary = "main".to_owned();
        assert_eq!(
            servers("rediss+sentinel://a,b:7/main/2"),
            Ok((RedisServers::Sentinel { sentinels, primary, database: 2 }, true))
        );
        let nodes = vec![address("10.0.0.1", 6379), address("10.0.0.2", 7000)];
        assert_eq!(
            servers("redis+cluster://10.0.0.1,10.0.0.2:7000"),
            Ok((RedisServers::Cluster { nodes }, false))
        );
    }

    #[test]
    fn an_invalid_store_url_is_rejected() {
        for url in [
            "",
            "redis:",
            "redis://",
            "redis://:6379",
            "redis://a:0",
            "redis://a:x",
            "redis://a/x",
            "redis://a/-1",
            "redis://a,b",
            "redis://a?db=1",
            "redis://user:planted@a",
            "redis://[::1",
            "redis://[a]",
            "redis://a b",
            "valkey://a",
            "unix:///run/redis.sock",
            "redis+sentinel://a",
            "redis+sentinel://a,a/main",
            "redis+cluster://a/1",
        ] {
            assert!(servers(url).is_err(), "{url}");
        }
    }
}
