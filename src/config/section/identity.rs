//! `[identity]`: the headers with which services receive the identity of a user.

pub mod jwt;

use http::HeaderName;
use toml::de::DeValue;

use self::jwt::JwtSection;
use super::app::{App, AppKind};
use super::session::SessionSection;
use crate::config::Secrets;
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::{Located, Table};
use crate::config::value::headers::{folded, report_taken};
use crate::message::header::reserved::{JWT, PRESET};

/// The section `[identity]`. Its header names differ even for a CGI-like service, which reads `-`
/// and `_` as the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentitySection {
    pub openid_header: HeaderName,
    pub app_id_header: HeaderName,
    pub union_id_header: HeaderName,
    /// Set if there is a login hook.
    pub user_id_header: Option<HeaderName>,
    pub jwt: Option<JwtSection>,
    pub preset: Option<Preset>,
}

/// Headers that are written besides, as another platform does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// WeChat Cloud Run.
    WxCloudRun,
}

impl FromValue for Preset {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("wxcloudrun", Self::WxCloudRun)])
    }
}

impl IdentitySection {
    /// All headers of the section.
    pub fn headers(&self) -> Vec<&HeaderName> {
        let always = [&self.openid_header, &self.app_id_header, &self.union_id_header];
        let jwt = self.jwt.as_ref().map(|jwt| &jwt.header);
        always.into_iter().chain(&self.user_id_header).chain(jwt).collect()
    }
}

/// What the section depends on.
pub struct References<'a> {
    pub session: &'a SessionSection,
    /// The place of `session.header`, if it is in the file.
    pub session_header: Option<Located<HeaderName>>,
    /// Whether there is a `[login.hook]`.
    pub has_hook: bool,
    pub secrets: Secrets,
    /// The section of the configuration to be replaced.
    pub running: Option<&'a IdentitySection>,
}

/// Reads the section.
pub fn read(section: Table<'_>, references: References<'_>) -> IdentitySection {
    let References { session, session_header, has_hook, secrets, running } = references;
    let mut names = Names { section: &section, read: Vec::new() };
    names.add(&session.header, "session.header", session_header);
    let preset = section.get::<Preset>("preset").map(|given| given.value);
    if preset.is_some() {
        for name in PRESET {
            names.add(&HeaderName::from_static(name), "one that identity.preset writes", None);
        }
    }
    let openid_header = names.read("openid_header", "identity.openid_header", "x-openid");
    let app_id_header = names.read("app_id_header", "identity.app_id_header", "x-appid");
    let union_id_header = names.read("union_id_header", "identity.union_id_header", "x-unionid");
    let user_id_header = if has_hook || section.is_listing() {
        Some(names.read("user_id_header", "identity.user_id_header", "x-user-id"))
    } else {
        if section.get::<HeaderName>("user_id_header").is_some() {
            section.warn_of("user_id_header", "has no effect without [login.hook]");
        }
        None
    };
    names.add_jwt();
    let running = running.and_then(|running| running.jwt.as_ref());
    let references = jwt::References { carriers: session.carriers, secrets, running };
    let jwt = jwt::read(&section, &references);
    section.finish();
    IdentitySection { openid_header, app_id_header, union_id_header, user_id_header, jwt, preset }
}

/// Header names that must differ, as a CGI-like service reads them.
struct Names<'a, 't> {
    section: &'a Table<'t>,
    /// Each with its key, and its place if it is in the file.
    read: Vec<(String, &'static str, Option<Located<HeaderName>>)>,
}

impl Names<'_, '_> {
    /// The name of a header of the section.
    fn read(&mut self, key: &'static str, path: &'static str, default: &'static str) -> HeaderName {
        let given = self.section.get::<HeaderName>(key);
        if let Some(given) = &given {
            report_taken(self.section, given);
        }
        let name =
            given.as_ref().map_or(HeaderName::from_static(default), |given| given.value.clone());
        self.add(&name, path, given);
        name
    }

    /// Reports a name that another key has, too.
    fn add(&mut self, name: &HeaderName, path: &'static str, given: Option<Located<HeaderName>>) {
        let folded = folded(name.as_str());
        if let Some((_, other, place)) = self.read.iter().find(|(name, ..)| *name == folded) {
            let message = |other: &str| format!("services could not distinguish it from {other}");
            match (&given, place) {
                (Some(given), _) => self.section.problem(given, message(other), ""),
                // The header in the file collides with a default.
                (None, Some(place)) => self.section.problem(place, message(path), ""),
                (None, None) => {}
            }
        }
        self.read.push((folded, path, given));
    }

    /// Adds the header of `[identity.jwt]`, whose name is otherwise checked where that section is
    /// read.
    fn add_jwt(&mut self) {
        const PATH: &str = "identity.jwt.header";
        // Reserved even if there is no such section, or if it has another header.
        let default = HeaderName::from_static(JWT);
        // A section of a wrong type is reported where it is read.
        let raw = self.section.raw("jwt").filter(|raw| raw.get_ref().is_table());
        let given = raw.and_then(|_| {
            let jwt = self.section.table("jwt");
            let header = jwt.raw("header")?;
            let value = HeaderName::from_value(header.get_ref()).ok()?;
            Some(Located { value, key: jwt.key("header"), source: jwt.source, span: header.span() })
        });
        let is_default = |name: &HeaderName| folded(name.as_str()) == folded(JWT);
        if given.as_ref().is_none_or(|given| !is_default(&given.value)) {
            self.add(&default, PATH, None);
        }
        if let Some(given) = given {
            let name = given.value.clone();
            self.add(&name, PATH, Some(given));
        }
    }
}

/// Warns of a preset that never writes a header.
pub fn warn_of_preset(root: &Table<'_>, identity: &IdentitySection, apps: &[App]) {
    let has_mini_program = apps.iter().any(|app| app.kind == AppKind::MiniProgram);
    if identity.preset.is_some() && !has_mini_program {
        let message = "has no effect: no [[app]] is of the kind mini_program";
        root.table("identity").warn_of("preset", message);
    }
}
