//! Which paths routes and endpoints may have.

use toml::de::DeValue;

use crate::config::document::from_value::{FromValue, text};

/// The path of a route or endpoint. It begins with `/`, and every server reads it the same way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoutePath(pub(in crate::config) String);

impl RoutePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromValue for RoutePath {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "a path, such as \"/api\"")?;
        // These occur in most regular expressions, but not in paths.
        let is_pattern = given.starts_with(['^', '~'])
            || given.contains(".*")
            || given.contains(['\\', '|', '['].as_slice())
            || given.contains('+') && !given.starts_with('/')
            || given.contains("(?");
        if is_pattern {
            return Err(format!(
                "\"{given}\" looks like a regular expression: paths are prefixes, or exact with match = \"exact\""
            ));
        }
        if !given.starts_with('/') {
            return Err(format!("\"{given}\" must begin with \"/\""));
        }
        if given.contains('*') {
            return Err(format!("\"{given}\" contains '*': wildcards are not supported"));
        }
        if given.contains('{') {
            return Err(format!("\"{given}\" contains '{{': path parameters are not supported"));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()+,=:@".contains(&b);
        if let Some(odd) = given.chars().find(|c| !u8::try_from(*c).is_ok_and(plain)) {
            return Err(format!(
                "\"{given}\" contains '{odd}': only characters that all servers read the same way are allowed"
            ));
        }
        if given.contains("//") || given.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(format!(
                "\"{given}\" contains a segment that servers read in different ways"
            ));
        }
        Ok(Self(given.to_owned()))
    }
}
