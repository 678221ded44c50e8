//! App ids, secrets and keys: any text is accepted, but what they usually look like is known.
//!
//! Ids and secrets come from WeChat's console, by copy and paste, through editors, shells and
//! orchestrators that add to them. WeChat promises no shape, so what looks wrong is a warning. A
//! message never contains a part of a secret, only its length and the kind of an unexpected
//! character.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::config::document::not_toml::is_invisible;
use crate::config::document::reader::{Located, Section};
use crate::identity::AppId;
use crate::identity::secret::Secret;

/// Below this many characters a key can be guessed.
const SHORTEST_KEY: usize = 16;

pub fn warn_of_app_id(section: &Section<'_>, app_id: &Located<AppId>) {
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
        "it has a character that is not a hexadecimal digit".to_owned()
    };
    let message =
        format!("does not look like an app id, \"wx\" and 16 lower-case hexadecimal digits: {why}");
    section.warn(app_id, &message);
}

/// Warns of a secret that does not look like one of WeChat's.
pub fn warn_of_app_secret<T>(
    section: &Section<'_>,
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

/// Warns of a secret that anything may be, where it looks like a mistake.
pub fn warn_of_oddity<T>(section: &Section<'_>, place: &Located<T>, secret: &Secret) {
    if let Some(oddity) = oddity(secret.expose()) {
        section.warn(place, &oddity);
    }
}

/// Warns of a key that is short enough to be guessed.
pub fn warn_of_short_key<T>(section: &Section<'_>, place: &Located<T>, key: &Secret) {
    let length = key.expose().chars().count();
    if length < SHORTEST_KEY {
        let message =
            format!("it has {length} characters and can be guessed: use openssl rand -base64 32");
        section.warn(place, &message);
    }
}

/// 32 lower-case hexadecimal digits, as WeChat gives them out.
fn is_secret(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

/// What is wrong with a key that is not 32 bytes, in words that do not give it away.
pub fn describe_key(text: &str) -> String {
    let decoded = STANDARD.decode(text).map(Zeroizing::new).ok();
    let is_text = |bytes: &[u8]| bytes.trim_ascii().iter().all(u8::is_ascii_graphic);
    match (oddity(text), decoded) {
        (Some(oddity), _) => oddity,
        // Longer than any 32 bytes: a key that was encoded twice.
        (None, Some(decoded)) if decoded.len() > 42 && is_text(&decoded) => {
            "it is base64 of a text: decode it".to_owned()
        }
        (None, Some(decoded)) => format!("it is base64 of {} bytes", decoded.len()),
        (None, None) => format!("it has {} characters", text.chars().count()),
    }
}

/// What is wrong with an app secret, in words that do not give it away.
fn describe(text: &str) -> String {
    if let Some(oddity) = oddity(text) {
        return oddity;
    }
    let decoded = STANDARD.decode(text).map(Zeroizing::new).ok();
    let inner = decoded.as_deref().and_then(|decoded| std::str::from_utf8(decoded).ok());
    if inner.is_some_and(|inner| inner.trim().bytes().all(|b| b.is_ascii_graphic())) {
        return "it is base64 of a text: decode it".to_owned();
    }
    let length = text.chars().count();
    if length != 32 {
        format!("it has {length} characters")
    } else if text.bytes().all(|b| b.is_ascii_hexdigit()) {
        "it has upper-case letters".to_owned()
    } else {
        "it has a character that is not a hexadecimal digit".to_owned()
    }
}

/// What no secret has on purpose.
fn oddity(text: &str) -> Option<String> {
    let is_quoted = ["\"", "'", "`", "“", "‘"].iter().any(|quote| text.starts_with(quote));
    if is_quoted {
        return Some("it begins with a quote, which becomes part of it".to_owned());
    }
    if let Some(odd) = text.chars().find(|c| is_invisible(*c)) {
        return Some(format!("it has an invisible character, U+{:04X}", u32::from(odd)));
    }
    if text.contains(char::is_whitespace) {
        return Some("it contains whitespace".to_owned());
    }
    if !text.is_ascii() {
        return Some("it has a character that is not ASCII".to_owned());
    }
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    let assigned = text.split_once('=').filter(|(name, value)| is_name(name) && !value.is_empty());
    assigned.map(|_| "it is written as NAME=VALUE: only the value belongs there".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_odd_about_a_secret_is_said_without_it() {
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
