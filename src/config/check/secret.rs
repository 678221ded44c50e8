//! Secrets by reference: from the environment or from a file, never in the configuration.

use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::config::Secrets;
use crate::config::reader::Section;
use crate::secret::Secret;

pub const REFERENCE_HELP: &str = "write { env = \"NAME\" } or { file = \"/path\" }";

/// Where a secret stands; exactly one is set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    env: Option<String>,
    file: Option<String>,
}

/// A secret by reference. `None` when it is absent or was reported.
pub fn read_secret(section: &Section<'_>, name: &'static str, secrets: Secrets) -> Option<Secret> {
    if let Some(raw) = section.raw(name)
        && raw.get_ref().is_str()
    {
        // Asked for, so that it is not an unknown key as well.
        section.get::<String>(name);
        section.push(
            section.key(name),
            raw.span(),
            "a secret does not stand in this file",
            REFERENCE_HELP,
        );
        return None;
    }
    let reference = section.deserialize::<Reference>(name)?;
    let (source, found) = match (&reference.value.env, &reference.value.file) {
        (Some(variable), None) => {
            (format!("environment variable {variable}"), read_variable(variable, secrets))
        }
        (None, Some(file)) => (format!("file {file}"), read_secret_file(Path::new(file), secrets)),
        _ => {
            section.problem(&reference, "expected one of env and file", REFERENCE_HELP);
            return None;
        }
    };
    match found {
        Ok(secret) => Some(secret),
        Err(reason) => {
            section.problem(&reference, format!("{source}: {reason}"), "");
            None
        }
    }
}

fn read_variable(variable: &str, secrets: Secrets) -> Result<Secret, String> {
    if secrets == Secrets::Ignore {
        return Ok(Secret::new(String::new()));
    }
    match std::env::var(variable) {
        Ok(text) if text.trim().is_empty() => Err("is empty".to_owned()),
        Ok(text) => Ok(Secret::new(text.trim().to_owned())),
        Err(std::env::VarError::NotPresent) => Err("is not set".to_owned()),
        Err(std::env::VarError::NotUnicode(_)) => Err("is not UTF-8".to_owned()),
    }
}

fn read_secret_file(file: &Path, secrets: Secrets) -> Result<Secret, String> {
    if secrets == Secrets::Ignore {
        return Ok(Secret::new(String::new()));
    }
    match std::fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Err("is empty".to_owned()),
        Ok(text) => Ok(Secret::new(text.trim().to_owned())),
        Err(error) => Err(io_reason(&error)),
    }
}

pub fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
