//! `[log]`: what is logged, in which format, and the destination of the access log.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use toml::de::DeValue;

use super::RestartOnly;
use crate::config::Secrets;
use crate::config::document::file::io_reason;
use crate::config::document::from_value::{FromValue, text, word};
use crate::config::document::table::{Located, Table};
use crate::config::value::secret::read_any_secret;
use crate::identity::secret::Secret;

/// The section `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSection {
    pub level: LogLevel,
    pub format: LogFormat,
    pub access: LogDestination,
    /// The key of the hash that replaces the openid in the access log.
    pub openid_key: Option<Secret>,
}

/// The lowest level that the process log has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// The format of the process log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

/// The destination of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogDestination {
    Stderr,
    Stdout,
    File(PathBuf),
    Off,
}

/// Keys that a reload cannot change.
pub const RESTART_ONLY: &[RestartOnly] = &[
    ("log.format", |a, b| a.log.format == b.log.format),
    ("log.access", |a, b| a.log.access == b.log.access),
    ("log.openid_key", |a, b| a.log.openid_key == b.log.openid_key),
];

/// A key with fewer characters can be guessed.
const SHORTEST_KEY: usize = 16;

/// Reads the section. A reload does not repeat checks that only the start needs.
pub fn read(section: Table<'_>, secrets: Secrets, is_start: bool) -> LogSection {
    let openid_key = read_any_secret(&section, "openid_key", secrets);
    if let Some(key) = openid_key.as_ref().filter(|_| secrets == Secrets::Load) {
        warn_of_short_key(&section, key, &key.value);
    }
    let access = section.get::<LogDestination>("access");
    // The file may be for another machine, as in CI.
    let is_here = is_start && secrets == Secrets::Load;
    if let Some(given) = access.as_ref().filter(|_| is_here)
        && let LogDestination::File(path) = &given.value
        && let Err(reason) = judge_append(path)
    {
        section.problem(given, format!("cannot be opened: {reason}"), "");
    }
    let log = LogSection {
        level: section.get_or("level", LogLevel::Info),
        format: section.get_or("format", LogFormat::Json),
        access: access.map_or(LogDestination::Stderr, |given| given.value),
        openid_key: openid_key.map(|key| key.value),
    };
    section.finish();
    log
}

/// Warns of a key that is so short that it can be guessed.
fn warn_of_short_key<T>(section: &Table<'_>, place: &Located<T>, key: &Secret) {
    let length = key.expose().chars().count();
    if length < SHORTEST_KEY {
        let message = format!(
            "it has only {length} characters and could be guessed: create one with openssl rand -base64 32"
        );
        section.warn(place, &message);
    }
}

/// Whether a file can be opened for appending. The file is not created.
///
/// # Errors
/// The reason.
fn judge_append(path: &Path) -> Result<(), String> {
    let may_write = |path: &Path, access: Access| {
        let outcome = rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS);
        // If the system does not know, the start will find out.
        let is_denied = matches!(outcome, Err(Errno::ACCESS | Errno::PERM | Errno::ROFS));
        if is_denied { Err(format!("cannot write to {}", path.display())) } else { Ok(()) }
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err("is a directory".to_owned()),
        Ok(_) => may_write(path, Access::WRITE_OK),
        Err(_) if path.as_os_str().as_encoded_bytes().ends_with(b"/") => {
            Err("is a directory".to_owned())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let folder = parent.unwrap_or(Path::new("."));
            match std::fs::metadata(folder) {
                Ok(metadata) if metadata.is_dir() => {
                    may_write(folder, Access::WRITE_OK | Access::EXEC_OK)
                }
                Ok(_) => Err(format!("{} is not a directory", folder.display())),
                Err(error) => Err(format!("{}: {}", folder.display(), io_reason(&error))),
            }
        }
        Err(error) => Err(io_reason(&error)),
    }
}

impl FromValue for LogLevel {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let words = [
            ("error", Self::Error),
            ("warn", Self::Warn),
            ("info", Self::Info),
            ("debug", Self::Debug),
        ];
        word(value, &words)
    }
}

impl FromValue for LogFormat {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("json", Self::Json), ("text", Self::Text)])
    }
}

impl FromValue for LogDestination {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        match text(value, "\"stderr\", \"stdout\", \"off\" or a path")? {
            "stderr" => Ok(Self::Stderr),
            "stdout" => Ok(Self::Stdout),
            "off" => Ok(Self::Off),
            path if path.contains('/') => Ok(Self::File(path.into())),
            other => Err(format!(
                "expected \"stderr\", \"stdout\", \"off\" or a path with a \"/\", found \"{other}\""
            )),
        }
    }
}
