//! `[[browser]]`: the hosts that web pages have, and how their users log in.

use toml::de::DeValue;

use super::app::{App, AppKind};
use super::route::Route;
use super::server::tls::{TlsSection, warn_of_uncovered};
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::{Located, Table};
use crate::config::value::base_url::BaseUrl;
use crate::config::value::host::is_loopback;
use crate::identity::AppId;

/// A host with web pages. A session cookie belongs to one host alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Browser {
    /// Scheme and host of the pages. `http` only for this machine.
    pub base_url: BaseUrl,
    /// For WeChat's own browser.
    pub official_account: Option<AppId>,
    /// For every other browser.
    pub website: Option<AppId>,
    /// Of the official account.
    pub scope: Scope,
    /// Scheme and host of WeChat's login pages, without a trailing slash.
    pub authorize_base_url: String,
    /// Name of the session cookie. Cookies with this name, or one that begins with it and `-`, are
    /// the gateway's. No name of another host's cookie begins with this one and `-`.
    pub cookie: String,
}

impl Browser {
    /// Whether its users can log in by a redirect to WeChat.
    pub fn has_app(&self) -> bool {
        self.official_account.is_some() || self.website.is_some()
    }

    /// Whether a cookie with this name is the gateway's.
    pub fn owns_cookie(&self, name: &[u8]) -> bool {
        let rest = name.strip_prefix(self.cookie.as_bytes());
        rest.is_some_and(|rest| matches!(rest, [] | [b'-', ..]))
    }
}

/// What WeChat reports about a user of an official account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The openid, silently.
    Base,
    /// Also the unionid. The user must consent.
    UserInfo,
}

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "snsapi_base",
            Self::UserInfo => "snsapi_userinfo",
        }
    }
}

/// WeChat's login pages.
const AUTHORIZE: &str = "open.weixin.qq.com";

/// Maximum length of a cookie's name.
const LONGEST_NAME: usize = 64;

/// Reads all hosts, each with the place of its URL. Warns of hosts without a certificate.
pub fn read(
    root: &Table<'_>,
    apps: Option<&[App]>,
    tls: Option<&TlsSection>,
) -> Vec<Located<Browser>> {
    let mut browsers: Vec<Located<Browser>> = Vec::new();
    let mut cookies: Vec<Located<String>> = Vec::new();
    for section in root.tables("browser") {
        let base_url = section.require::<BaseUrl>("base_url");
        let official_account = app(&section, "official_account", AppKind::OfficialAccount, apps);
        let website = app(&section, "website", AppKind::Website, apps);
        let scope = section.get_or("scope", Scope::Base);
        let authorize = section.get::<BaseUrl>("authorize_base_url");
        check_authorize_base_url(&section, authorize.as_ref());
        let cookie = section.get::<String>("cookie");
        for (name, is_used) in [
            ("scope", section.has("official_account")),
            ("authorize_base_url", section.has("official_account") || section.has("website")),
        ] {
            if section.has(name) && !is_used {
                let apps = if name == "scope" { "" } else { " or website" };
                let message = format!("has no effect without official_account{apps}");
                section.problem_of(name, message, "");
            }
        }
        if let Some(base_url) = &base_url {
            check_base_url(&section, base_url, &browsers, tls);
        }
        let is_https = base_url.as_ref().is_none_or(|base_url| base_url.value.is_https);
        if let Some(cookie) = &cookie {
            check_cookie(&section, cookie, is_https);
        }
        let default = if is_https { "__Host-wxgate" } else { "wxgate" };
        let name = cookie.as_ref().map_or(default, |cookie| &cookie.value).to_owned();
        if let Some(base_url) = base_url {
            // The key and place of the cookie, or of what decides its default.
            let (key, span) = match &cookie {
                Some(cookie) => (cookie.key.clone(), cookie.span.clone()),
                None => (base_url.key.clone(), base_url.span.clone()),
            };
            let source = base_url.source;
            let cookie = Located { value: name.clone(), key, source, span };
            report_nested(&section, &cookie, &cookies);
            warn_of_shared(&section, &base_url, &name, &browsers);
            cookies.push(cookie);
            let authorize = authorize.map(|given| given.value.to_string());
            browsers.push(Located {
                value: Browser {
                    base_url: base_url.value,
                    official_account,
                    website,
                    scope,
                    authorize_base_url: authorize.unwrap_or_else(|| format!("https://{AUTHORIZE}")),
                    cookie: name,
                },
                key: base_url.key,
                source,
                span: base_url.span,
            });
        }
        section.finish();
    }
    browsers
}

fn check_base_url(
    section: &Table<'_>,
    base_url: &Located<BaseUrl>,
    earlier: &[Located<Browser>],
    tls: Option<&TlsSection>,
) {
    if !base_url.value.is_private() {
        let message = "plain http to another machine would expose the session cookies on the \
                       network";
        section.problem(base_url, message, "use https");
    }
    let authority = &base_url.value.authority;
    if let Some(first) = earlier.iter().find(|one| one.value.base_url.authority == *authority) {
        section.problem(base_url, "this host is listed twice", format!("first in {}", first.key));
    }
    if let Some(tls) = tls.filter(|_| base_url.value.is_https) {
        let host = Located {
            value: base_url.value.host(),
            key: base_url.key.clone(),
            source: base_url.source,
            span: base_url.span.clone(),
        };
        warn_of_uncovered(section, &[host], tls);
    }
}

fn check_authorize_base_url(section: &Table<'_>, given: Option<&Located<BaseUrl>>) {
    let Some(given) = given else { return };
    let host = given.value.host();
    if !given.value.is_private() {
        let message = "plain http to another machine would expose the logins on the network";
        section.problem(given, message, "use https");
    } else if is_loopback(host) {
        let message = "these are not WeChat's login pages, but a program on this machine, such as \
                       `wxgate sandbox`, which logs in any user";
        section.warn(given, message);
    } else if host.ends_with("weixin.qq.com") && host != AUTHORIZE {
        let message = format!("{host} is not the host of WeChat's login pages, {AUTHORIZE}");
        section.warn(given, &message);
    }
}

/// Checks the name of a cookie (RFC 6265, section 4.1.1), and what browsers require of the host of
/// a name with a prefix (RFC 6265bis, section 4.1.3).
fn check_cookie(section: &Table<'_>, cookie: &Located<String>, is_https: bool) {
    let name = &cookie.value;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !(1..=LONGEST_NAME).contains(&name.len()) || !name.bytes().all(legal) {
        let help = format!(
            "1 to {LONGEST_NAME} characters: letters, digits and !#$%&'*+-.^_`|~, such as \
             \"__Host-wxgate\""
        );
        section.reference_problem(cookie, "is not a valid name of a cookie", help);
        return;
    }
    // Newer browsers ignore the case of a prefix, older ones do not.
    let begins = |prefix: &str| {
        let begin = name.get(..prefix.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
    };
    if let Some(prefix) = ["__Host-", "__Secure-"].into_iter().find(|prefix| begins(prefix))
        && !is_https
    {
        let message = format!("browsers accept {prefix} only from https URLs");
        section.reference_problem(cookie, message, "leave out the prefix, or use https");
    } else if is_https && !name.starts_with("__Host-") {
        let message =
            "without the prefix __Host-, other hosts of the domain can replace the cookie";
        section.warn(cookie, message);
    }
}

/// Reports a name that would make the cookies of one host belong to another, too.
fn report_nested(section: &Table<'_>, cookie: &Located<String>, earlier: &[Located<String>]) {
    let contains =
        |one: &str, other: &str| other.strip_prefix(one).is_some_and(|rest| rest.starts_with('-'));
    for other in earlier {
        let (name, first) = (&cookie.value, &other.value);
        if contains(name, first) || contains(first, name) {
            let message = format!(
                "\"{name}\" and \"{first}\" cannot be told apart: names that begin with one of \
                 them and \"-\" belong to it"
            );
            section.reference_problem(cookie, message, format!("the other is {}", other.key));
            return;
        }
    }
}

/// Warns of two ports of one host.
fn warn_of_shared(
    section: &Table<'_>,
    base_url: &Located<BaseUrl>,
    cookie: &str,
    earlier: &[Located<Browser>],
) {
    let is_other_port = |other: &&Located<Browser>| {
        let Browser { base_url: url, cookie: name, .. } = &other.value;
        url.host() == base_url.value.host()
            && url.authority != base_url.value.authority
            && name == cookie
    };
    if let Some(other) = earlier.iter().find(is_other_port) {
        let message = format!(
            "shares its cookies with {}: browsers do not separate cookies by port",
            other.value.base_url
        );
        section.warn(base_url, &message);
    }
}

/// An app of a host, which must have this kind.
fn app(
    section: &Table<'_>,
    name: &'static str,
    kind: AppKind,
    apps: Option<&[App]>,
) -> Option<AppId> {
    let given: Located<AppId> = section.get(name)?;
    kind.check(section, &given, apps);
    Some(given.value)
}

/// Warns of hosts without a route.
pub fn warn_of_unused(root: &Table<'_>, browsers: &[Located<Browser>], routes: &[Route]) {
    for browser in browsers {
        let host = browser.value.base_url.host();
        let is_served = |route: &Route| {
            route.hosts.is_empty() || route.hosts.iter().any(|pattern| pattern.matches(host))
        };
        if !routes.iter().any(is_served) {
            root.warn(browser, "no route is for this host");
        }
    }
}

impl FromValue for Scope {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("snsapi_base", Self::Base), ("snsapi_userinfo", Self::UserInfo)])
    }
}
