//! `[identity]`: the headers with which services receive the identity of a user.

use http::HeaderName;

use super::session::SessionSection;
use crate::config::document::table::{Located, Table};
use crate::config::value::headers::{folded, report_taken};

/// The section `[identity]`. Its header names stay different when a service folds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentitySection {
    pub openid_header: HeaderName,
    pub app_id_header: HeaderName,
    pub union_id_header: HeaderName,
}

impl IdentitySection {
    /// All headers of the section.
    pub fn headers(&self) -> [&HeaderName; 3] {
        [&self.openid_header, &self.app_id_header, &self.union_id_header]
    }
}

/// Reads the section. `session_header` is the place of `session.header`, if it is in the file.
pub fn read(
    section: Table<'_>,
    session: &SessionSection,
    session_header: Option<Located<HeaderName>>,
) -> IdentitySection {
    let mut names = vec![(folded(session.header.as_str()), "session.header", session_header)];
    let mut name = |key: &'static str, path: &'static str, default: &'static str| {
        let given = section.get::<HeaderName>(key);
        if let Some(given) = &given {
            report_taken(&section, given);
        }
        let name =
            given.as_ref().map_or(HeaderName::from_static(default), |given| given.value.clone());
        let folded = folded(name.as_str());
        if let Some((_, other, place)) = names.iter().find(|(name, ..)| *name == folded) {
            let message = |other: &str| format!("services could not distinguish it from {other}");
            match (&given, place) {
                (Some(given), _) => section.problem(given, message(other), ""),
                // The header in the file collides with a default.
                (None, Some(place)) => section.problem(place, message(path), ""),
                (None, None) => {}
            }
        }
        names.push((folded, path, given));
        name
    };
    let openid_header = name("openid_header", "identity.openid_header", "x-openid");
    let app_id_header = name("app_id_header", "identity.app_id_header", "x-appid");
    let union_id_header = name("union_id_header", "identity.union_id_header", "x-unionid");
    section.finish();
    IdentitySection { openid_header, app_id_header, union_id_header }
}
