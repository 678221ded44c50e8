//! `[wechat]`: how to connect to WeChat.

use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use crate::config::Secrets;
use crate::config::document::table::{Located, Table};
use crate::config::value::{host, pem};
use crate::identity::secret::Secret;

/// The section `[wechat]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeChatSection {
    /// Scheme, host, port, and optionally a path prefix, without a trailing slash.
    pub base_url: String,
    /// URL of an egress proxy; it may contain a password.
    pub proxy: Option<Secret>,
    /// Root certificates to trust instead of the system's, from `ca_file`.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// Time for a whole exchange.
    pub timeout: Duration,
    /// Time to connect, including TLS. Shorter than `timeout`.
    pub connect_timeout: Duration,
    /// Called if `base_url` cannot be reached.
    pub fallback_base_url: Option<String>,
    /// Concurrent exchanges.
    pub max_in_flight: usize,
    /// Exchanges that wait in the queue.
    pub queue: usize,
    /// The longest time in the queue.
    pub queue_timeout: Duration,
    /// Consecutive failures after which the circuit breaker opens; 0: never.
    pub breaker_failures: u32,
    pub breaker_pause: Duration,
}

impl WeChatSection {
    /// Whether any of the URLs needs TLS.
    pub fn is_https(&self) -> bool {
        let urls = [Some(&self.base_url), self.fallback_base_url.as_ref()];
        urls.into_iter().flatten().any(|url| url.starts_with("https:"))
    }
}

/// Reads the section. `None` means that a problem was reported.
pub fn read(section: Table<'_>, secrets: Secrets) -> Option<WeChatSection> {
    let allow_plain_http = section.get_or("allow_plain_http", false);
    let proxy = section.get::<String>("proxy");
    // Through a proxy, a loopback address is on the proxy's machine.
    let is_direct = proxy.as_ref().is_none_or(|proxy| is_loopback(&proxy.value));
    let base_url = match section.get::<String>("base_url") {
        Some(given) => check_base_url(&section, &given, allow_plain_http, is_direct),
        None if section.has("base_url") => None,
        None => Some("https://api.weixin.qq.com".to_owned()),
    };
    if let Some(given) = &proxy
        && (http_url(&given.value).is_none() || reqwest::Proxy::all(&given.value).is_err())
    {
        section.problem(given, "is not an http URL", "such as \"http://10.0.0.9:3128\"");
    }
    let ca_file = section.get::<PathBuf>("ca_file");
    let ca_file = ca_file.filter(|_| secrets == Secrets::Load);
    let roots = ca_file.and_then(|ca_file| pem::certificates(&section, &ca_file, ""));
    let timeout = section.positive("timeout", Duration::from_secs(5));
    let fallback = section.get::<String>("fallback_base_url");
    let fallback_base_url = fallback
        .as_ref()
        .and_then(|given| check_base_url(&section, given, allow_plain_http, is_direct));
    if let Some(given) = &fallback
        && fallback_base_url.is_some()
        && fallback_base_url == base_url
    {
        section.problem(given, "is the same as base_url", "such as \"https://api2.weixin.qq.com\"");
    }
    // After the total timeout it is unknown whether anything was sent. So all connect timeouts
    // together must be shorter.
    let connections = 1 + u32::from(fallback.is_some());
    let default_connect = Duration::from_secs(2).min(timeout / (connections + 1));
    let connect_timeout = section.positive("connect_timeout", default_connect);
    if connect_timeout * connections >= timeout
        && let Some(given) = section.raw("connect_timeout")
    {
        let what =
            if fallback.is_some() { "half of timeout (there is a fallback)" } else { "timeout" };
        let most = humantime::format_duration(timeout / connections);
        let message = format!("must be shorter than {what}, {most}");
        section.push(section.key("connect_timeout"), given.span(), message, "");
    }
    let max_in_flight = section.number("max_in_flight", 256, 1..=1 << 20);
    let queue = section.number("queue", 4096, 0..=1 << 20);
    let queue_timeout = section.positive("queue_timeout", Duration::from_secs(3));
    let breaker_failures = section.number("breaker_failures", 20, 0..=1 << 20);
    let breaker_pause = section.positive("breaker_pause", Duration::from_secs(5));
    section.finish();
    Some(WeChatSection {
        base_url: base_url?,
        proxy: proxy.map(|proxy| Secret::new(proxy.value)),
        roots,
        timeout,
        connect_timeout,
        fallback_base_url,
        max_in_flight,
        queue,
        queue_timeout,
        breaker_failures: u32::try_from(breaker_failures).unwrap_or(u32::MAX),
        breaker_pause,
    })
}

fn check_base_url(
    section: &Table<'_>,
    given: &Located<String>,
    allow_plain_http: bool,
    is_direct: bool,
) -> Option<String> {
    const HELP: &str = "such as \"https://api.weixin.qq.com\"";
    const HELP_PREFIX: &str = "such as \"https://relay.example.com/wxapi\"";
    let Some(url) = http_url(&given.value) else {
        section.problem(given, "is not an http or https URL", HELP);
        return None;
    };
    let path = url.path().trim_end_matches('/');
    let (problem, help) = if !url.username().is_empty() || url.password().is_some() {
        ("must not have a user or password", HELP)
    } else if url.query().is_some() || url.fragment().is_some() {
        ("must not have a query or a fragment", HELP_PREFIX)
    } else if path.ends_with("/jscode2session") || path.ends_with("/sns") {
        ("must not include /sns/jscode2session, which the gateway appends", HELP)
    } else if path.contains("//") || path_of(&given.value) != path {
        // Dot segments, backslashes, spaces and other characters that URL parsing changes.
        ("its path has \"//\", \"..\" or characters that must be escaped", HELP_PREFIX)
    } else {
        ("", "")
    };
    if !problem.is_empty() {
        section.problem(given, problem, help);
        return None;
    }
    let stays_here = is_direct && is_loopback(&given.value);
    warn_of_base_url(section, given, stays_here);
    if url.scheme() == "http" && !stays_here && !allow_plain_http {
        section.problem(
            given,
            "plain http to another machine would expose the app secret on the network",
            "use https, or set allow_plain_http = true",
        );
        return None;
    }
    Some(url.origin().ascii_serialization() + path)
}

/// The path of a URL as written, without trailing slashes.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').and_then(|at| rest.get(at..)).unwrap_or_default().trim_end_matches('/')
}

/// Whether a URL points to this machine.
fn is_loopback(text: &str) -> bool {
    http_url(text).as_ref().and_then(reqwest::Url::host_str).is_some_and(host::is_loopback)
}

fn http_url(text: &str) -> Option<reqwest::Url> {
    let url = reqwest::Url::parse(text).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

/// Warns of addresses that are not WeChat's API.
fn warn_of_base_url(section: &Table<'_>, given: &Located<String>, is_loopback: bool) {
    let url = reqwest::Url::parse(&given.value).ok();
    let host = url.as_ref().and_then(|url| url.host_str()).unwrap_or_default();
    let is_api = host.starts_with("api") || host.contains(".api.");
    if is_loopback {
        let message = "this is not WeChat, but a program on this machine, such as `wxgate \
                       sandbox`, which accepts any code. In production, use only a relay of your own \
                       here";
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
