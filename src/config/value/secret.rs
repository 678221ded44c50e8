//! Secrets by reference: in the environment or in a file, never in the configuration itself.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use toml::de::DeValue;
use zeroize::Zeroizing;

use crate::config::Secrets;
use crate::config::document::file::{io_reason, read_text};
use crate::config::document::from_value::FromValue;
use crate::config::document::not_toml::is_invisible;
use crate::config::document::table::{Located, Table};
use crate::identity::secret::Secret;

/// How to write a secret.
pub const REFERENCE_HELP: &str = "write { env = \"NAME\" } or { file = \"/path\" }";

/// Where a secret is kept.
enum Reference {
    Variable(String),
    File(String),
}

impl FromValue for Reference {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let literal = || Err(format!("secrets must not be written in this file: {REFERENCE_HELP}"));
        let Some(table) = value.as_table() else { return literal() };
        let mut entries = table.iter().map(|(key, value)| (&**key.get_ref(), value.get_ref()));
        let (Some((key, value)), None) = (entries.next(), entries.next()) else {
            return Err(format!("expected either env or file: {REFERENCE_HELP}"));
        };
        match (key, value.as_str()) {
            ("env" | "file", Some(name)) if looks_like_secret(name) => literal(),
            ("env" | "file", Some("")) => Err(format!("{key} is empty")),
            ("env", Some(name)) => Ok(Self::Variable(name.to_owned())),
            ("file", Some(name)) => Ok(Self::File(name.to_owned())),
            ("env" | "file", None) => Err(format!("{key} is not a string: {REFERENCE_HELP}")),
            _ => Err(format!("expected either env or file: {REFERENCE_HELP}")),
        }
    }
}

/// Whether a reference looks like WeChat's app secrets (32 hexadecimal digits) rather than like a
/// name.
fn looks_like_secret(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A secret by reference; empty if secrets are ignored. `None`: it is missing, or a problem was
/// reported.
pub fn read_secret(
    section: &Table<'_>,
    name: &'static str,
    secrets: Secrets,
) -> Option<Located<Secret>> {
    let reference = section.get::<Reference>(name)?;
    resolve(section, reference, secrets)
}

/// A list of secrets by reference, without those that a problem was reported for.
pub fn read_secrets(
    section: &Table<'_>,
    name: &'static str,
    secrets: Secrets,
) -> Vec<Located<Secret>> {
    let references = section.list::<Reference>(name).unwrap_or_default();
    references.into_iter().filter_map(|reference| resolve(section, reference, secrets)).collect()
}

/// A secret of any form, with a warning if it looks like a mistake.
pub fn read_any_secret(
    section: &Table<'_>,
    name: &'static str,
    secrets: Secrets,
) -> Option<Located<Secret>> {
    let secret = read_secret(section, name, secrets)?;
    if secrets == Secrets::Load {
        warn_of_oddity(section, &secret, &secret.value);
    }
    Some(secret)
}

fn resolve(
    section: &Table<'_>,
    reference: Located<Reference>,
    secrets: Secrets,
) -> Option<Located<Secret>> {
    let found = match &reference.value {
        _ if secrets == Secrets::Ignore => Ok(String::new()),
        Reference::Variable(variable) => read_variable(variable),
        Reference::File(file) => {
            section.reads(Path::new(file));
            read_file(file)
        }
    };
    if let Reference::File(file) = &reference.value {
        warn_of_open_file(section, &reference, Path::new(file));
    }
    match found.and_then(|text| one_line(&reference.value, text)) {
        Ok(value) => {
            let Located { key, source, span, .. } = reference;
            Some(Located { value, key, source, span })
        }
        Err(reason) => {
            section.reference_problem(&reference, reason, "");
            None
        }
    }
}

/// A secret without line breaks and control characters, which are not possible in a header, a URL
/// or a line of a protocol.
fn one_line(reference: &Reference, text: String) -> Result<Secret, String> {
    let secret = Secret::new(text);
    let is_break = |c: char| matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let reason =
        match secret.expose().chars().find(|c| c.is_control() && *c != '\t' || is_break(*c)) {
            None => return Ok(secret),
            Some(odd) if is_break(odd) => "has several lines, but a secret must be one line",
            Some(_) => "contains a control character",
        };
    Err(match reference {
        Reference::Variable(variable) => format!("environment variable {variable} {reason}"),
        Reference::File(file) => format!("file {file} {reason}"),
    })
}

fn read_variable(variable: &str) -> Result<String, String> {
    let reason = match std::env::var(variable).map(trimmed) {
        Ok(Some(text)) => return Ok(text),
        Ok(None) => "is empty",
        Err(std::env::VarError::NotPresent) => "is not set",
        Err(std::env::VarError::NotUnicode(_)) => "is not UTF-8",
    };
    Err(format!("environment variable {variable} {reason}"))
}

fn read_file(file: &str) -> Result<String, String> {
    match read_text(Path::new(file)).map(trimmed) {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(format!("file {file} is empty")),
        Err(error) => Err(format!("file {file}: {}", io_reason(&error))),
    }
}

/// Warns of a file with a secret that everybody can read.
pub fn warn_of_open_file<T>(section: &Table<'_>, place: &Located<T>, file: &Path) {
    if std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
        let file = file.display();
        section.warn(place, &format!("file {file} is readable by every user of this machine"));
    }
}

/// Editors and shells add a newline at the end, and some editors a byte order mark at the start.
fn trimmed(text: String) -> Option<String> {
    let text = Zeroizing::new(text);
    let trimmed = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    (!trimmed.is_empty()).then(|| trimmed.to_owned())
}

/// Warns of a secret of any form if it looks like a mistake.
fn warn_of_oddity<T>(section: &Table<'_>, place: &Located<T>, secret: &Secret) {
    if let Some(oddity) = oddity(secret.expose()) {
        section.warn(place, &oddity);
    }
}

/// What looks like a mistake in a secret, such as quotes or whitespace; `None` if nothing does.
pub fn oddity(text: &str) -> Option<String> {
    let is_quoted = ["\"", "'", "`", "“", "‘"].iter().any(|quote| text.starts_with(quote));
    if is_quoted {
        return Some("it begins with a quote, which is then part of the secret".to_owned());
    }
    if let Some(odd) = text.chars().find(|c| is_invisible(*c)) {
        return Some(format!("it contains an invisible character, U+{:04X}", u32::from(odd)));
    }
    if text.contains(char::is_whitespace) {
        return Some("it contains whitespace".to_owned());
    }
    if !text.is_ascii() {
        return Some("it contains a character that is not ASCII".to_owned());
    }
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    let assigned = text.split_once('=').filter(|(name, value)| is_name(name) && !value.is_empty());
    assigned.map(|_| "it has the form NAME=VALUE: write only the value".to_owned())
}
