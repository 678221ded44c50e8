//! Scheme and host of a URL, without a path: what a base URL may be.

use toml::de::DeValue;

use super::host::is_loopback;
use crate::config::document::from_value::{FromValue, text};

/// Scheme and authority of a host, such as `https://h5.example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    pub is_https: bool,
    /// In lower case; with the port, unless it is the scheme's default.
    pub authority: String,
}

impl BaseUrl {
    /// The host without its port.
    pub fn host(&self) -> &str {
        match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.authority,
        }
    }

    /// Whether what is sent there can be read only by this machine, or by the host itself.
    pub fn is_private(&self) -> bool {
        self.is_https || is_loopback(self.host())
    }
}

impl std::fmt::Display for BaseUrl {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(out, "{scheme}://{}", self.authority)
    }
}

impl FromValue for BaseUrl {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str =
            "scheme and host of a URL, such as \"https://h5.example.com\", without a path";
        let given = text(value, EXPECTED)?;
        // The URL may have a password.
        let shown = if given.contains('@') { "a URL with a user" } else { &format!("\"{given}\"") };
        let wrong = || format!("expected {EXPECTED}, found {shown}");
        let url = reqwest::Url::parse(given).map_err(|_| wrong())?;
        let is_https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        // The parser also takes spaces, backslashes, and URLs without "//".
        let has_form = given.contains("://") && !given.contains([' ', '\t', '\\']);
        let is_bare = matches!(url.path(), "" | "/") && url.query().is_none();
        let is_bare = is_bare && url.fragment().is_none() && !given.contains('@');
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b);
        let host = url
            .host_str()
            .filter(|host| has_form && is_bare && host.bytes().all(legal) && !host.ends_with('.'));
        let host = host.ok_or_else(wrong)?;
        // `url` removes the scheme's default port.
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self { is_https, authority })
    }
}
