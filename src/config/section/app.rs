//! `[[app]]`: the WeChat apps whose users log in.
//!
//! Ids and secrets are copied from WeChat's console through editors, shells and orchestrators,
//! which may add characters. WeChat does not document their form, so an unusual form is only a
//! warning. Messages never contain a part of a secret, only its length and the kind of an
//! unexpected character.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use toml::de::DeValue;
use zeroize::Zeroizing;

use super::browser::Browser;
use super::route::{Access, Route};
use crate::config::Secrets;
use crate::config::document::from_value::{FromValue, text, word};
use crate::config::document::table::{Located, Table};
use crate::config::value::rate::{self, Rate};
use crate::config::value::secret::{REFERENCE_HELP, oddity, read_secret};
use crate::identity::AppId;
use crate::identity::secret::Secret;

/// A WeChat app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    pub app_id: AppId,
    pub kind: AppKind,
    pub secret: Secret,
    /// Whether logins that name no app are for this one. At most one app is the default.
    pub is_default: bool,
    /// Rate limit of logins; `None`: no limit.
    pub login_rate: Option<Rate>,
}

/// The kind of an app at WeChat. It decides how the users log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppKind {
    MiniProgram,
    /// 公众号 or 服务号: web pages in WeChat's own browser.
    OfficialAccount,
    /// 网站应用: web pages in other browsers, by a QR code.
    Website,
    /// 移动应用: a native app with WeChat's SDK.
    Mobile,
}

impl AppKind {
    /// Whether its users log in by `POST /login`. The others log in by redirects.
    pub fn sends_codes(self) -> bool {
        matches!(self, Self::MiniProgram | Self::Mobile)
    }

    const ALL: [(&'static str, Self); 4] = [
        ("mini_program", Self::MiniProgram),
        ("official_account", Self::OfficialAccount),
        ("website", Self::Website),
        ("mobile", Self::Mobile),
    ];

    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        let found = Self::ALL.into_iter().find(|(_, kind)| *kind == self);
        found.map_or("", |(word, _)| word)
    }

    /// Reports a reference to an app that does not exist, or is not of this kind.
    pub(super) fn check(self, section: &Table<'_>, given: &Located<AppId>, apps: Option<&[App]>) {
        // If there is a problem with the apps, it is not known which of them exist.
        let Some(apps) = apps else { return };
        let kind = self.as_str();
        match apps.iter().find(|app| app.app_id == given.value) {
            None => {
                let message = format!("no [[app]] has the id \"{}\"", given.value.as_str());
                section.problem(given, message, format!("add one with kind = \"{kind}\""));
            }
            Some(app) if app.kind != self => {
                let message = format!("must be an app with kind = \"{kind}\"");
                let help = format!("this one has kind = \"{}\"", app.kind.as_str());
                section.problem(given, message, help);
            }
            Some(_) => {}
        }
    }
}

/// The apps, and the places of their ids. The apps are `None` if a problem was reported.
pub fn read(
    root: &Table<'_>,
    secrets: Secrets,
    default_rate: Option<Rate>,
) -> (Option<Vec<App>>, Vec<Located<AppId>>) {
    let sections = root.tables("app");
    root.report_missing("app", "add an [[app]] for each Mini Program");
    if sections.is_empty() {
        return (None, Vec::new());
    }
    let mut ids = Vec::with_capacity(sections.len());
    let mut apps = Vec::with_capacity(sections.len());
    let mut listed: HashMap<AppId, String> = HashMap::new();
    let mut default: Option<String> = None;
    let mut is_complete = true;
    for section in sections {
        let app_id = section.require::<AppId>("app_id");
        if let Some(app_id) = &app_id
            && let Some(first) = listed.insert(app_id.value.clone(), app_id.key.clone())
        {
            section.problem(app_id, "this app is listed twice", format!("first in {first}"));
        }
        section.report_missing("app_secret", REFERENCE_HELP);
        let secret = read_secret(&section, "app_secret", secrets);
        if let Some(app_id) = &app_id {
            warn_of_app_id(&section, app_id);
        }
        if let Some(secret) = secret.as_ref().filter(|_| secrets == Secrets::Load) {
            let app_id = app_id.as_ref().map(|app_id| &app_id.value);
            warn_of_app_secret(&section, secret, &secret.value, app_id);
        }
        let kind = section.get_or("kind", AppKind::MiniProgram);
        let is_default = section.get::<bool>("default");
        if let Some(is_default) = &is_default
            && is_default.value
        {
            if !kind.sends_codes() {
                let message = "cannot be the default: its users do not log in by POST /login";
                let help = "set it on an app with kind = \"mini_program\" or \"mobile\"";
                section.problem(is_default, message, help);
            }
            match &default {
                Some(first) => section.problem(
                    is_default,
                    "only one app can be the default",
                    format!("the first is {first}"),
                ),
                None => default = Some(is_default.key.clone()),
            }
        }
        let login_rate = rate::read(&section, "login_rate", default_rate);
        section.finish();
        match app_id.zip(secret) {
            Some((app_id, secret)) => {
                apps.push(App {
                    app_id: app_id.value.clone(),
                    kind,
                    secret: secret.value,
                    is_default: is_default.is_some_and(|is_default| is_default.value),
                    login_rate,
                });
                ids.push(app_id);
            }
            None => is_complete = false,
        }
    }
    let mut with_codes = apps.iter_mut().filter(|app| app.kind.sends_codes());
    if let (Some(only), None) = (with_codes.next(), with_codes.next()) {
        only.is_default = true;
    }
    (is_complete.then_some(apps), ids)
}

fn warn_of_app_id(section: &Table<'_>, app_id: &Located<AppId>) {
    let text = app_id.value.as_str();
    let rest = text.strip_prefix("wx");
    let is_hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    if rest.is_some_and(|rest| rest.len() == 16 && rest.bytes().all(is_hex)) {
        return;
    }
    let lower = text.to_ascii_lowercase();
    let why = if text.starts_with("gh_") {
        "it is the original id of an account; WeChat's console shows the app id next to it"
            .to_owned()
    } else if text == "touristappid" {
        "it is the test id of the developer tools: WeChat rejects its logins".to_owned()
    } else if lower != text {
        "it has upper-case letters".to_owned()
    } else if rest.is_none() {
        "it does not begin with \"wx\"".to_owned()
    } else if text.len() != 18 {
        format!("it has {} characters", text.len())
    } else {
        "it contains a character that is not a hexadecimal digit".to_owned()
    };
    let message =
        format!("does not look like an app id, \"wx\" and 16 lower-case hexadecimal digits: {why}");
    section.warn(app_id, &message);
}

/// Warns of a secret that does not look like WeChat's.
fn warn_of_app_secret<T>(
    section: &Table<'_>,
    place: &Located<T>,
    secret: &Secret,
    app_id: Option<&AppId>,
) {
    let text = secret.expose();
    let is_app_id = app_id.is_some_and(|app_id| app_id.as_str() == text);
    let why = if is_app_id {
        "it is the app id".to_owned()
    } else if is_secret(text) {
        return;
    } else {
        describe(text)
    };
    let message =
        format!("does not look like an app secret, 32 lower-case hexadecimal digits: {why}");
    section.warn(place, &message);
}

/// 32 lower-case hexadecimal digits, like the secrets that WeChat issues.
fn is_secret(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

/// What is wrong with an app secret, without showing any part of it.
fn describe(text: &str) -> String {
    if let Some(oddity) = oddity(text) {
        return oddity;
    }
    let decoded = STANDARD.decode(text).map(Zeroizing::new).ok();
    let inner = decoded.as_deref().and_then(|decoded| std::str::from_utf8(decoded).ok());
    if inner.is_some_and(|inner| inner.trim().bytes().all(|b| b.is_ascii_graphic())) {
        return "it is base64-encoded text: decode it".to_owned();
    }
    let length = text.chars().count();
    if length != 32 {
        format!("it has {length} characters")
    } else if text.bytes().all(|b| b.is_ascii_hexdigit()) {
        "it has upper-case letters".to_owned()
    } else {
        "it contains a character that is not a hexadecimal digit".to_owned()
    }
}

/// Warns of apps whose users cannot log in, and of those whose sessions are not accepted by any
/// route. `ids` are the places of `apps`.
pub fn warn_of_unused(
    root: &Table<'_>,
    apps: &[App],
    ids: &[Located<AppId>],
    browsers: &[Located<Browser>],
    routes: &[Route],
) {
    for (app, app_id) in apps.iter().zip(ids) {
        let uses = |browser: &Browser| match app.kind {
            AppKind::OfficialAccount => browser.official_account.as_ref() == Some(&app.app_id),
            AppKind::Website => browser.website.as_ref() == Some(&app.app_id),
            AppKind::MiniProgram | AppKind::Mobile => false,
        };
        if !app.kind.sends_codes() && !browsers.iter().any(|browser| uses(&browser.value)) {
            let message =
                format!("no user can log in: no [[browser]] has it as {}", app.kind.as_str());
            root.warn(app_id, &message);
            continue;
        }
        let is_used = routes.iter().any(|route| {
            let is_accepted = route.apps.is_empty() || route.apps.contains(&app_id.value);
            route.access != Access::None && is_accepted
        });
        if !is_used {
            root.warn(app_id, "no route accepts the sessions of this app");
        }
    }
}

impl FromValue for AppKind {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &Self::ALL)
    }
}

impl FromValue for AppId {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "an app id, such as \"wx0123456789abcdef\"")?;
        AppId::parse(given).ok_or_else(|| {
            format!(
                "\"{given}\" is not an app id: only letters, digits, \"-\" and \"_\" are allowed"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_secret_is_described_without_showing_it() {
        let hex = "0123456789abcdef0123456789abcdef";
        assert!(is_secret(hex) && !is_secret(&hex[1..]) && !is_secret(&hex.to_uppercase()));
        for (text, said) in [
            (format!("\"{hex}\""), "a quote"),
            (format!("'{hex}"), "a quote"),
            ("0123456789\u{200b}abcdef".to_owned(), "U+200B"),
            (format!("{hex}\u{feff}{hex}"), "U+FEFF"),
            ("0123456789 abcdef".to_owned(), "whitespace"),
            ("0123456789\u{a0}abcdef".to_owned(), "whitespace"),
            ("０123".to_owned(), "not ASCII"),
            (format!("WECHAT_APP_SECRET={hex}"), "NAME=VALUE"),
            (STANDARD.encode(hex), "base64"),
            (STANDARD.encode(format!("{hex}\n")), "base64"),
            (hex[..31].to_owned(), "31 characters"),
            (hex.to_uppercase(), "upper-case"),
            (format!("{}g", &hex[..31]), "not a hexadecimal digit"),
        ] {
            let shown = describe(&text);
            assert!(shown.contains(said), "{text}: {shown}");
            assert!(!shown.contains("0123"), "{shown}");
        }
    }
}
