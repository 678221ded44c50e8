//! `login` of a route: what a request without a session gets.

use toml::de::DeValue;

use super::Access;
use super::references::References;
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::{Located, Table};
use crate::config::section::browser::Browser;
use crate::config::value::host::HostPattern;
use crate::identity::AppId;

/// What a page request without a session gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LoginBy {
    /// 401, as all other requests.
    Json,
    /// A redirect to WeChat.
    Redirect,
}

/// Reads the key. Returns whether page requests without a session are sent to WeChat.
pub fn read(
    section: &Table<'_>,
    references: &References<'_>,
    access: Access,
    hosts: &[HostPattern],
) -> bool {
    let given = section.get::<LoginBy>("login");
    let Some(given) = given.filter(|given| given.value == LoginBy::Redirect) else { return false };
    match access {
        Access::None => {
            let message = "has no effect with auth = \"none\": no session is needed";
            section.problem(&given, message, "");
        }
        Access::Optional => section.warn(
            &given,
            "a page request without a session is anonymous with auth = \"optional\": it is not \
             redirected",
        ),
        Access::Required => {}
    }
    let has_app = |browser: &&Located<Browser>| browser.value.has_app();
    let mut browsers = references.browsers.iter().filter(has_app).peekable();
    if browsers.peek().is_none() {
        let message = "there is no [[browser]] whose users can log in by a redirect";
        let help = "set official_account or website in a [[browser]]";
        section.problem(&given, message, help);
    } else if !browsers.any(|browser| is_of_route(browser, hosts)) {
        let message = "no [[browser]] with official_account or website has a host of this route";
        section.problem(&given, message, "browsers log in on the host of a base_url only");
    }
    true
}

/// Warns of logins by redirect whose sessions the route, which lists its `apps`, rejects.
pub fn warn_of_other_apps(
    section: &Table<'_>,
    references: &References<'_>,
    hosts: &[HostPattern],
    apps: &[AppId],
) {
    let browsers = references.browsers.iter().filter(|browser| is_of_route(browser, hosts));
    let browsers = browsers.map(|browser| &browser.value);
    let mut logins =
        browsers.flat_map(|browser| browser.official_account.iter().chain(&browser.website));
    if let Some(app_id) = logins.find(|app_id| !apps.is_empty() && !apps.contains(app_id)) {
        let message = format!(
            "users who log in to {} by a redirect get 403: it is not in the route's apps",
            app_id.as_str()
        );
        section.warn_of("login", &message);
    }
}

/// Whether a route with these hosts serves the host of a `[[browser]]`.
fn is_of_route(browser: &Located<Browser>, hosts: &[HostPattern]) -> bool {
    let host = browser.value.base_url.host();
    hosts.is_empty() || hosts.iter().any(|pattern| pattern.matches(host))
}

impl FromValue for LoginBy {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("json", Self::Json), ("redirect", Self::Redirect)])
    }
}
