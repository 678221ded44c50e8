//! `[login.hook]`: a service of the operator that is called before each session is made.

use std::time::Duration;

use reqwest::Url;
use toml::de::DeValue;

use super::LoginSection;
use crate::config::Secrets;
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::{Located, Table};
use crate::config::section::server::ServerSection;
use crate::config::section::wechat::WeChatSection;
use crate::config::value::host::is_loopback;
use crate::config::value::secret::{REFERENCE_HELP, read_any_secret};
use crate::identity::secret::Secret;

/// The section `[login.hook]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookSection {
    /// `https`, or a loopback address.
    pub url: Url,
    /// Sent as `Authorization: Bearer`.
    pub token: Secret,
    /// Time limit for the whole call, with the time to connect.
    pub timeout: Duration,
    pub on_failure: OnFailure,
}

/// What happens to a login if the hook fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    Refuse,
    /// The session is made, without a user id.
    Allow,
}

impl FromValue for OnFailure {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("refuse", Self::Refuse), ("allow", Self::Allow)])
    }
}

const HELP: &str = "such as \"https://users.example.com/wxgate/login\"";

/// Users wait for the hook, and requests for their logins stay open.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads the section. `None`: there is none, or a problem was reported.
pub fn read(section: &Table<'_>, secrets: Secrets) -> Option<HookSection> {
    let section = section.optional_table("hook")?;
    let url = section.require::<String>("url");
    let url = url.and_then(|given| read_url(&section, &given));
    section.report_missing("token", REFERENCE_HELP);
    let token = read_any_secret(&section, "token", secrets);
    if let Some(token) = &token
        && !token.value.expose().bytes().all(|b| b.is_ascii_graphic())
    {
        let message = "has a character that is not visible ASCII, so it cannot be in a header";
        section.problem(token, message, "create one with: openssl rand -base64 32");
    }
    let timeout = section.positive("timeout", Duration::from_secs(2));
    if timeout > LONGEST_TIMEOUT {
        section.problem_of("timeout", "must be at most 30s", "");
    }
    let on_failure = section.get_or("on_failure", OnFailure::Refuse);
    section.finish();
    Some(HookSection { url: url?, token: token?.value, timeout, on_failure })
}

/// Warns if a login with a slow hook can take longer than a drain, which would cut it off after its
/// code is used up.
pub fn warn_of_drain(
    root: &Table<'_>,
    login: &LoginSection,
    wechat: Option<&WeChatSection>,
    server: Option<&ServerSection>,
) {
    let (Some(hook), Some(wechat), Some(server)) = (&login.hook, wechat, server) else { return };
    let longest = wechat.queue_timeout + wechat.timeout + hook.timeout;
    if longest > server.drain_timeout {
        let message = format!(
            "with its hook a login can take {}, longer than server.drain_timeout: a restart may cut \
             it off",
            humantime::format_duration(longest)
        );
        root.warn_of("login", &message);
    }
}

fn read_url(section: &Table<'_>, given: &Located<String>) -> Option<Url> {
    let text = given.value.as_str();
    // The parser also takes spaces, backslashes, and URLs without "//".
    let has_form = text.contains("://") && !text.contains(|c: char| c.is_whitespace() || c == '\\');
    let url = Url::parse(text).ok().filter(|url| {
        has_form && matches!(url.scheme(), "http" | "https") && url.host_str().is_some()
    });
    let Some(url) = url else {
        section.problem(given, "is not an http or https URL", HELP);
        return None;
    };
    if !url.username().is_empty() || url.password().is_some() {
        section.problem(given, "must not have a user or password", "the hook gets the token");
    } else if url.fragment().is_some() {
        section.problem(given, "must not have a fragment", HELP);
    } else if url.scheme() == "http" && !url.host_str().is_some_and(is_loopback) {
        let message = "plain http to another machine would expose the token, and whoever changes \
                       the response decides who users are";
        section.problem(given, message, "use https, or a loopback address");
    } else {
        return Some(url);
    }
    None
}
