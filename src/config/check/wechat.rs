//! How WeChat is reached, and the apps it knows.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::pem;
use super::secret::{REFERENCE_HELP, read_secret};
use crate::config::reader::{Located, Section};
use crate::config::{App, Secrets, WeChatSection};
use crate::identity::AppId;
use crate::secret::Secret;

pub fn wechat(section: Section<'_>, secrets: Secrets) -> Option<WeChatSection> {
    let allow_plain_http = section.get_or("allow_plain_http", false);
    let base_url = match section.get::<String>("base_url") {
        Some(given) => check_base_url(&section, &given, allow_plain_http),
        None if section.has("base_url") => None,
        None => Some("https://api.weixin.qq.com".to_owned()),
    };
    let proxy = section.get::<String>("proxy");
    if let Some(given) = &proxy
        && (http_url(&given.value).is_none() || reqwest::Proxy::all(&given.value).is_err())
    {
        section.problem(given, "is not an http URL", "as \"http://10.0.0.9:3128\"");
    }
    let ca_file = section.get::<PathBuf>("ca_file");
    let ca_file = ca_file.filter(|_| secrets == Secrets::Load);
    let roots = ca_file.and_then(|ca_file| pem::certificates(&section, &ca_file, ""));
    let timeout = section.positive("timeout", Duration::from_secs(5));
    let default_connect = Duration::from_secs(2).min(timeout / 2);
    let connect_timeout = section.positive("connect_timeout", default_connect);
    if connect_timeout >= timeout
        && let Some(given) = section.raw("connect_timeout")
    {
        let message =
            format!("must be shorter than timeout, {}", humantime::format_duration(timeout));
        section.push(section.key("connect_timeout"), given.span(), message, "");
    }
    section.finish();
    Some(WeChatSection {
        base_url: base_url?,
        proxy: proxy.map(|proxy| Secret::new(proxy.value)),
        roots,
        timeout,
        connect_timeout,
    })
}

fn check_base_url(
    section: &Section<'_>,
    given: &Located<String>,
    allow_plain_http: bool,
) -> Option<String> {
    const HELP: &str = "as \"https://api.weixin.qq.com\"";
    let Some(url) = http_url(&given.value) else {
        section.problem(given, "is not an http or https URL", HELP);
        return None;
    };
    let origin = url.origin().ascii_serialization();
    if url.as_str().trim_end_matches('/') != origin {
        section.problem(given, "must be scheme, host and port only", HELP);
        return None;
    }
    let is_loopback = match url.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    };
    if url.scheme() == "http" && !is_loopback && !allow_plain_http {
        section.problem(
            given,
            "plain http to another machine would show the app secret to the network",
            "use https, or set allow_plain_http = true",
        );
        return None;
    }
    Some(origin)
}

fn http_url(text: &str) -> Option<reqwest::Url> {
    let url = reqwest::Url::parse(text).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

pub fn apps(root: &Section<'_>, secrets: Secrets) -> Option<Vec<App>> {
    let sections = root.tables("app");
    root.report_missing("app", "one [[app]] for each Mini Program");
    if sections.is_empty() {
        return None;
    }
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
        section.finish();
        match app_id.zip(secret) {
            Some((app_id, secret)) => apps.push(App {
                app_id: app_id.value,
                secret,
                is_default: is_only || is_default.is_some_and(|is_default| is_default.value),
            }),
            None => is_complete = false,
        }
    }
    is_complete.then_some(apps)
}
