//! How WeChat is reached, and the apps it knows.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{advice, shape};
use crate::config::document::reader::{Located, Section};
use crate::config::read::rate;
use crate::config::value::pem;
use crate::config::value::secret::{REFERENCE_HELP, read_secret};
use crate::config::{App, Rate, Secrets, WeChatSection};
use crate::identity::AppId;
use crate::identity::secret::Secret;

pub fn wechat(section: Section<'_>, secrets: Secrets) -> Option<WeChatSection> {
    let allow_plain_http = section.get_or("allow_plain_http", false);
    let proxy = section.get::<String>("proxy");
    // A loopback address that a proxy is asked for is the proxy's own.
    let is_direct = proxy.as_ref().is_none_or(|proxy| is_loopback(&proxy.value));
    let base_url = match section.get::<String>("base_url") {
        Some(given) => check_base_url(&section, &given, allow_plain_http, is_direct),
        None if section.has("base_url") => None,
        None => Some("https://api.weixin.qq.com".to_owned()),
    };
    if let Some(given) = &proxy
        && (http_url(&given.value).is_none() || reqwest::Proxy::all(&given.value).is_err())
    {
        section.problem(given, "is not an http URL", "as \"http://10.0.0.9:3128\"");
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
        section.problem(given, "is base_url itself", "as \"https://api2.weixin.qq.com\"");
    }
    // Where no connection stood in time nothing was sent, and only then.
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
    section: &Section<'_>,
    given: &Located<String>,
    allow_plain_http: bool,
    is_direct: bool,
) -> Option<String> {
    const HELP: &str = "as \"https://api.weixin.qq.com\"";
    const HELP_PREFIX: &str = "as \"https://relay.example.com/wxapi\"";
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
        ("must end before /sns/jscode2session, which is added to it", HELP)
    } else if path.contains("//") || path_of(&given.value) != path {
        // Dot segments, backslashes, spaces and the like, which parsing a URL changes.
        ("its path is not in normal form", HELP_PREFIX)
    } else {
        ("", "")
    };
    if !problem.is_empty() {
        section.problem(given, problem, help);
        return None;
    }
    let stays_here = is_direct && is_loopback(&given.value);
    advice::warn_of_base_url(section, given, stays_here);
    if url.scheme() == "http" && !stays_here && !allow_plain_http {
        section.problem(
            given,
            "plain http to another machine would show the app secret to the network",
            "use https, or set allow_plain_http = true",
        );
        return None;
    }
    Some(url.origin().ascii_serialization() + path)
}

/// The path of a URL as it is written, without slashes at its end.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').and_then(|at| rest.get(at..)).unwrap_or_default().trim_end_matches('/')
}

/// Whether a URL leads to this machine.
fn is_loopback(text: &str) -> bool {
    match http_url(text).as_ref().and_then(reqwest::Url::host_str) {
        Some("localhost") => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

fn http_url(text: &str) -> Option<reqwest::Url> {
    let url = reqwest::Url::parse(text).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

/// The apps, `None` where a problem was reported, and the places of their ids.
pub fn apps(
    root: &Section<'_>,
    secrets: Secrets,
    default_rate: Option<Rate>,
) -> (Option<Vec<App>>, Vec<Located<AppId>>) {
    let sections = root.tables("app");
    root.report_missing("app", "one [[app]] for each Mini Program");
    if sections.is_empty() {
        return (None, Vec::new());
    }
    let mut ids = Vec::with_capacity(sections.len());
    let mut apps = Vec::with_capacity(sections.len());
    let mut seen: HashMap<AppId, String> = HashMap::new();
    let mut default: Option<String> = None;
    let mut is_complete = true;
    let is_only = sections.len() == 1;
    for section in sections {
        let app_id = section.require::<AppId>("app_id");
        if let Some(app_id) = &app_id
            && let Some(first) = seen.insert(app_id.value.clone(), app_id.key.clone())
        {
            section.problem(app_id, "this app stands twice", format!("first as {first}"));
        }
        section.report_missing("app_secret", REFERENCE_HELP);
        let secret = read_secret(&section, "app_secret", secrets);
        if let Some(app_id) = &app_id {
            shape::warn_of_app_id(&section, app_id);
        }
        if let Some(secret) = secret.as_ref().filter(|_| secrets == Secrets::Load) {
            let app_id = app_id.as_ref().map(|app_id| &app_id.value);
            shape::warn_of_app_secret(&section, secret, &secret.value, app_id);
        }
        let is_default = section.get::<bool>("default");
        if let Some(is_default) = &is_default
            && is_default.value
        {
            match &default {
                Some(first) => section.problem(
                    is_default,
                    "a second default app",
                    format!("the first is {first}"),
                ),
                None => default = Some(is_default.key.clone()),
            }
        }
        let login_rate = rate(&section, "login_rate", default_rate);
        section.finish();
        match app_id.zip(secret) {
            Some((app_id, secret)) => {
                apps.push(App {
                    app_id: app_id.value.clone(),
                    secret: secret.value,
                    is_default: is_only || is_default.is_some_and(|is_default| is_default.value),
                    login_rate,
                });
                ids.push(app_id);
            }
            None => is_complete = false,
        }
    }
    (is_complete.then_some(apps), ids)
}
