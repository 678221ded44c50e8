//! Paths of WeChat's API that services may call through the gateway.
//!
//! A path has only `A-Za-z0-9/_.-`, and no empty segment, `.` or `..`: so it has one spelling, and
//! what is compared is what is sent. Some paths are never allowed, because their responses contain
//! a secret or a token, or because they change what only the gateway may change.

use toml::de::DeValue;

use crate::config::document::from_value::{FromValue, text};

/// Paths, with everything below them, that are never called for a service. Compared without regard
/// to case.
const NEVER: [&str; 11] = [
    "/cgi-bin/token",
    "/cgi-bin/stable_token",
    "/cgi-bin/component",
    "/sns",
    "/wxa/checksession",
    "/wxa/resetusersessionkey",
    "/wxa/business/getuserencryptkey",
    "/wxa/business/getuserphonenumber",
    "/cgi-bin/gettoken",
    "/cgi-bin/miniprogram",
    "/cgi-bin/service",
];

/// A path of WeChat's API, such as `/wxa/msg_sec_check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiPath(String);

impl ApiPath {
    /// `None` if the path has another character, an empty segment, `.` or `..`.
    pub fn parse(text: &str) -> Option<Self> {
        let is_legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'.' | b'-');
        let segments = text.strip_prefix('/')?;
        let is_normal = segments.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
        (is_normal && text.bytes().all(is_legal)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the path is this one or below it.
    pub fn covers(&self, path: &Self) -> bool {
        covers(&self.0, &path.0)
    }

    /// Whether calls of the path are always rejected.
    pub fn is_never_allowed(&self) -> bool {
        let folded = self.0.to_ascii_lowercase();
        NEVER.iter().any(|never| covers(never, &folded))
    }
}

/// Whether a path is another one or below it: `/a` covers `/a/b`, but not `/ab`.
fn covers(parent: &str, path: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl FromValue for ApiPath {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "a path of WeChat's API, as \"/wxa/msg_sec_check\"")?;
        Self::parse(given).ok_or_else(|| {
            format!(
                "\"{given}\" is not a path of WeChat's API: letters, digits, \"_\", \".\" and \
                 \"-\" between slashes, none at the end"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ApiPath {
        ApiPath::parse(text).unwrap()
    }

    #[test]
    fn a_path_has_one_spelling() {
        for text in ["/a", "/a/b.c-d_e", "/cgi-bin/message/subscribe/send", "/a/..b", "/..."] {
            assert!(ApiPath::parse(text).is_some(), "{text}");
        }
        for text in
            ["", "a", "/", "//a", "/a/", "/a//b", "/a/.", "/../a", "/a%2fb", "/a;b", "/ä", "/a b"]
        {
            assert!(ApiPath::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_path_covers_itself_and_what_is_below_it() {
        assert!(path("/a").covers(&path("/a")) && path("/a").covers(&path("/a/b")));
        assert!(!path("/a").covers(&path("/ab")) && !path("/a/b").covers(&path("/a")));
        assert!(!path("/a").covers(&path("/A")));
    }

    #[test]
    fn paths_that_give_secrets_away_are_never_allowed() {
        for text in [
            "/cgi-bin/token",
            "/cgi-bin/Token",
            "/CGI-BIN/TOKEN/x",
            "/cgi-bin/stable_token",
            "/cgi-bin/component/api_component_token",
            "/cgi-bin/component",
            "/sns/jscode2session",
            "/SNS/oauth2/access_token",
            "/wxa/checksession",
            "/wxa/resetusersessionkey",
            "/wxa/business/getuserencryptkey",
            "/wxa/business/getuserphonenumber",
            "/cgi-bin/gettoken",
            "/cgi-bin/miniprogram/jscode2session",
            "/cgi-bin/service/get_provider_token",
        ] {
            assert!(path(text).is_never_allowed(), "{text}");
        }
        for text in ["/cgi-bin/tokens", "/cgi-bin/message/custom/send", "/snsx", "/wxa/business"] {
            assert!(!path(text).is_never_allowed(), "{text}");
        }
    }
}
