//! Reads the files that a configuration names.
//!
//! Secrets, certificates, responses and included files must be regular files of limited size.
//! Reading a pipe could block forever, and a device may have no end. On a reload this also applies
//! to the configuration itself; at the start it may come from a pipe.

use std::fs::OpenOptions;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// More bytes than any configuration or certificate chain has.
pub const LONGEST: u64 = 1 << 20;

/// The bytes of a regular file.
///
/// # Errors
/// When it cannot be read, is not a regular file, or has more than `most` bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    // Opening a pipe blocks until its other end is opened, unless the open is non-blocking.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(Error::other("is not a regular file"));
    }
    let mut bytes = Vec::new();
    let length = file.take(most + 1).read_to_end(&mut bytes)?;
    if length as u64 > most {
        return Err(Error::other(format!("is larger than {}KiB", most >> 10)));
    }
    Ok(bytes)
}

/// The text of a regular file.
///
/// # Errors
/// As [`read`], and when it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    decode(read(path, LONGEST)?)
}

/// Decodes the bytes of a file.
///
/// # Errors
/// When they are not UTF-8.
pub fn decode(bytes: Vec<u8>) -> Result<String> {
    // Recognised by a byte order mark, or by the zero bytes of ASCII in UTF-16. Some editors on
    // Windows write UTF-16.
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..] = *bytes {
        return Err(Error::other("is UTF-16: save it as UTF-8"));
    }
    String::from_utf8(bytes).map_err(|_| ErrorKind::InvalidData.into())
}

/// Why a file cannot be read.
pub fn io_reason(error: &Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::IsADirectory => "is a directory".to_owned(),
        ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
        _ => error.to_string(),
    }
}
