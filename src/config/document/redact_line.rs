//! Redacts lines of the file that are shown.
//!
//! Problems show the line that they are about, and an operator may have written a secret there by
//! mistake: as a literal, without quotes, under a misspelled name, or in text that is not TOML. The
//! values of such a line are replaced by stars. In case of doubt the line is redacted; the place of
//! the problem is always shown.

use std::borrow::Cow;
use std::ops::Range;

/// Words that indicate a secret.
const SENSITIVE: [&str; 6] = ["secret", "_key", "token", "password", "passwd", "private key"];

/// Headers whose values are secrets; so are other names that end in `-key`.
const SENSITIVE_HEADERS: [&str; 3] = ["authorization", "cookie", "-key"];

/// How the line of a problem is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redaction {
    /// The value is redacted if it may be a secret.
    IfSecret,
    /// The value is always redacted.
    Always,
    /// Like `IfSecret`, but the value that the problem is about is shown, because it is not secret.
    /// Another value on the line may be.
    ExceptMarked,
}

impl Redaction {
    /// Returns `line`, redacted. `before` is the text above it, and `marked` the part that the
    /// problem is about.
    pub fn show<'a>(self, before: &str, line: &'a str, marked: Range<usize>) -> Cow<'a, str> {
        match self {
            Self::ExceptMarked => {
                let redacted = Self::IfSecret.show(before, line, marked.clone());
                // Redacting keeps the number of characters.
                let pairs = line.char_indices().zip(redacted.chars());
                let pick =
                    |((at, own), redacted)| if marked.contains(&at) { own } else { redacted };
                pairs.map(pick).collect::<String>().into()
            }
            Self::Always => redact(line, false).into(),
            Self::IfSecret if ends_in_secret(before) => redact(line, true).into(),
            Self::IfSecret if is_sensitive(line) => redact(line, false).into(),
            Self::IfSecret => line.into(),
        }
    }
}

fn is_sensitive(line: &str) -> bool {
    let lower = line.to_ascii_lowercase();
    SENSITIVE.iter().any(|word| lower.contains(word))
        // A URL may contain the password of a proxy, as user:password@host.
        || lower.split_once(':').is_some_and(|(_, rest)| rest.contains('@'))
        || SENSITIVE_HEADERS.iter().any(|name| is_given(&lower, name))
}

/// Whether a header, quoted or not, is followed by a value.
fn is_given(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let rest = line.get(at + name.len()..).unwrap_or_default();
        rest.trim_start_matches(['"', '\'']).trim_start().starts_with('=')
    })
}

/// Whether the line continues a value of an earlier line that may be a secret.
fn ends_in_secret(before: &str) -> bool {
    // No key takes multi-line text; one that is given may be a pasted key.
    if ["\"\"\"", "'''"].iter().any(|quotes| before.matches(quotes).count() % 2 == 1) {
        return true;
    }
    let lower = before.to_ascii_lowercase();
    let Some(at) = SENSITIVE.iter().filter_map(|word| lower.rfind(word)).max() else {
        return false;
    };
    // A `[section]` line ends every value above it.
    let since = lower.get(at..).and_then(|since| since.split("\n[").next()).unwrap_or_default();
    let count = |signs: &[char]| since.matches(signs).count();
    count(&['{', '[']) > count(&['}', ']'])
}

/// Replaces text in quotes and after a key by stars. The number of characters stays the same and,
/// as secrets are ASCII, so does their width. The line may not be TOML: a key also ends at a blank.
fn redact(line: &str, begins_in_value: bool) -> String {
    let mut quote = None;
    let mut braces = 0usize;
    let mut is_key_begun = false;
    let mut is_value = begins_in_value;
    let mut star = |c: char| {
        let is_hidden = match (quote, c) {
            (Some(open), _) if open == c => {
                quote = None;
                false
            }
            (Some(_), _) => true,
            (None, '"' | '\'') => {
                quote = Some(c);
                is_value = true;
                false
            }
            (None, '{') => {
                braces += 1;
                is_key_begun = false;
                is_value = begins_in_value;
                false
            }
            (None, ',') => {
                is_key_begun = false;
                is_value = begins_in_value || braces == 0;
                false
            }
            (None, '}') => {
                braces = braces.saturating_sub(1);
                is_value = true;
                false
            }
            (None, '[' | ']') => false,
            (None, '=' | ':' | ' ' | '\t') => {
                is_value |= is_key_begun || c == '=';
                false
            }
            (None, _) => {
                is_key_begun = true;
                is_value
            }
        };
        if is_hidden { '*' } else { c }
    };
    line.chars().map(&mut star).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_key_is_redacted() {
        for (line, shown) in [
            (r#"app_secret = "hunter2" # "x""#, r#"app_secret = "*******" * "*""#),
            (r#"  app_secret="hunter2""#, r#"  app_secret="*******""#),
            (r#"app_secret = "unterminated"#, r#"app_secret = "************"#),
            (r#"app_secret = "hun\"ter2""#, r#"app_secret = "****"****""#),
            (r#""app_secret" = "hunter2""#, r#""**********" = "*******""#),
            (
                r#"app_secret = { value = "x", y = 1 } # z"#,
                r#"app_secret = { value = "*", y = * } * *"#,
            ),
            ("app_secret = [hunter2, 1]", "app_secret = [*******, *]"),
            ("app_secret = hunter2", "app_secret = *******"),
            ("app_secret: hunter2", "app_secret: *******"),
            ("app_secret hunter2", "app_secret *******"),
            ("= hunter2", "= *******"),
            ("[app.app_secret]", "[app.app_secret]"),
        ] {
            assert_eq!(redact(line, false), shown);
        }
        assert_eq!(redact(r#"hun,ter2""""#, true), r#"***,****""""#);
    }

    #[test]
    fn a_line_that_may_contain_a_secret_is_redacted() {
        assert!(is_sensitive("AppSecret = 1"));
        assert!(is_sensitive(r#"proxy = "http://me:word@10.0.0.9""#));
        assert!(is_sensitive(r#"proxy = "me:word@10.0.0.9:3128""#));
        for header in [
            r#"set_request_headers = { "Authorization" = "hunter2 " }"#,
            "X-Api-Key = hunter2",
            r#"Cookie = "sid=hunter2 ""#,
            r#""set-cookie"="sid=hunter2 ""#,
        ] {
            assert!(is_sensitive(header), "{header}");
        }
        assert!(!is_sensitive(r#"remove_request_headers = ["Authorization", "Cookie"]"#));
        assert!(!is_sensitive(r#"listen = "0.0.0.0:80""#));
        assert!(ends_in_secret("a = 1\napp_secret = {\n"));
        assert!(ends_in_secret("app_secret = \"\"\"\n"));
        assert!(ends_in_secret("key_file = \"\"\"\n-----BEGIN PRIVATE KEY-----\nabc\n"));
        assert!(!ends_in_secret("app_secret = { env = \"A\" }\n[x]\n"));
        assert!(!ends_in_secret("a = [\n"));
    }
}
