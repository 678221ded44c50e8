//! A scan in the store, and which browser owns it.
//!
//! Only the digest of the browser's secret is stored. Each scan has a secret of its own; the
//! browser's cookie has those of its newest scans.

use std::array;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::clock::Clock;
use crate::identity::secret::Secret;
use crate::message::rejection::Rejection;
use crate::session::{Record, RecordKind, Records};

/// Bytes of an id and of a secret, from the cryptographic generator.
const BYTES: usize = 16;

/// Their characters, of base64url. A scene of a Mini Program code has at most 32, and may have
/// these characters.
const LENGTH: usize = 22;

/// Scans of one browser whose secrets its cookie has, so that several tabs can show a code.
const SECRETS: usize = 4;

/// How long the end of a scan is still reported.
pub const AFTERLIFE: Duration = Duration::from_secs(60);

/// The number of groups in which polls wait; a change wakes the polls of one group.
const GROUPS: usize = 256;

/// The stage of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// No phone has scanned the code.
    Waiting,
    /// The user has not confirmed or denied it.
    Scanned,
    Confirmed,
    Denied,
    /// Ended by time, or used.
    Expired,
}

impl Stage {
    /// The stages at which a page waits.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "waiting" => Some(Self::Waiting),
            "scanned" => Some(Self::Scanned),
            _ => None,
        }
    }
}

/// A scan. Times are in milliseconds since 1970.
#[derive(Clone, Serialize, Deserialize)]
pub struct Scan {
    pub stage: Stage,
    /// Scheme and host of the page.
    pub origin: String,
    /// SHA-256 of the secret.
    pub secret: [u8; 32],
    /// In words.
    pub browser: String,
    pub address: IpAddr,
    pub since: u64,
    pub ends_at: u64,
    /// The digest of the token of the session that has scanned.
    pub scanned_by: Option<[u8; 32]>,
}

/// The owner of a scan: the browser that has begun it.
#[derive(Clone, Copy)]
pub struct Owner<'a> {
    /// Scheme and host.
    pub origin: &'a str,
    /// The value of its cookie.
    pub cookie: Option<&'a [u8]>,
}

impl Scan {
    /// Whether this browser has begun it.
    pub fn is_of(&self, owner: Owner<'_>) -> bool {
        let is_secret = |secret| bool::from(digest(secret).ct_eq(&self.secret));
        self.origin == owner.origin && secrets(owner.cookie).any(is_secret)
    }
}

/// A new id or secret.
pub fn random() -> String {
    let mut bytes = [0; BYTES];
    rand::rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn digest(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// A cookie with a new secret, and the newest ones that the browser has.
pub fn cookie(secret: &str, current: Option<&[u8]>) -> Secret {
    let kept = secrets(current).take(SECRETS - 1);
    let kept = kept.filter_map(|kept| std::str::from_utf8(kept).ok());
    let all: Vec<&str> = [secret].into_iter().chain(kept).collect();
    Secret::new(all.join("."))
}

/// The secrets in a cookie, the newest first.
fn secrets(cookie: Option<&[u8]>) -> impl Iterator<Item = &[u8]> {
    let cookie = cookie.unwrap_or_default();
    cookie.split(|byte| *byte == b'.').take(SECRETS).filter(|secret| is_random(secret))
}

/// Whether a text has the form of what [`random`] returns.
fn is_random(text: &[u8]) -> bool {
    let is_legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    text.len() == LENGTH && text.iter().all(is_legal)
}

/// Reads and writes scans, and wakes the polls that wait here for changes.
pub struct ScanRecords {
    records: Records,
    clock: Clock,
    changed: [Notify; GROUPS],
}

impl ScanRecords {
    pub fn new(records: Records, clock: Clock) -> Self {
        Self { records, clock, changed: array::from_fn(|_| Notify::new()) }
    }

    /// Adds a scan.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn insert(&self, id: &str, scan: &Scan) -> Result<(), Rejection> {
        let (value, life) = self.value(scan)?;
        let inserted = self.records.insert(RecordKind::Scan, id, &value, life).await;
        // No two ids are equal.
        match inserted {
            Ok(true) => Ok(()),
            Ok(false) => Err(Rejection::InternalError),
            Err(_) => Err(Rejection::StoreUnavailable),
        }
    }

    /// The scan with this id; its stage is that of this moment.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn read(&self, id: &str) -> Result<Option<(Record, Scan)>, Rejection> {
        if !is_random(id.as_bytes()) {
            return Ok(None);
        }
        let found = self.records.get(RecordKind::Scan, id).await;
        let Some(record) = found.map_err(|_| Rejection::StoreUnavailable)? else {
            return Ok(None);
        };
        // The record of another version is unknown here.
        let Ok(mut scan) = serde_json::from_slice::<Scan>(&record.value) else { return Ok(None) };
        if self.remaining(&scan).is_zero() {
            scan.stage = Stage::Expired;
        }
        Ok(Some((record, scan)))
    }

    /// Replaces a scan that was read, unless it has changed since. Returns whether it was replaced.
    ///
    /// # Errors
    /// When the store is unavailable. The scan may be replaced nevertheless.
    pub async fn replace(&self, id: &str, read: &Record, scan: &Scan) -> Result<bool, Rejection> {
        let (value, life) = self.value(scan)?;
        let replaced = self.records.replace(RecordKind::Scan, id, read, &value, life).await;
        let is_replaced = replaced.map_err(|_| Rejection::StoreUnavailable)?;
        if is_replaced {
            self.group(id).notify_waiters();
        }
        Ok(is_replaced)
    }

    /// Ready when a scan changes here; sometimes also when it does not.
    pub fn changed(&self, id: &str) -> Notified<'_> {
        self.group(id).notified()
    }

    fn value(&self, scan: &Scan) -> Result<(Vec<u8>, Duration), Rejection> {
        let value = serde_json::to_vec(scan).map_err(|_| Rejection::InternalError)?;
        Ok((value, self.remaining(scan) + AFTERLIFE))
    }

    /// The time until a scan ends.
    fn remaining(&self, scan: &Scan) -> Duration {
        let ends_at = self.clock.from_wall(scan.ends_at);
        Duration::from_millis(ends_at.saturating_sub(self.clock.now_millis()))
    }

    fn group(&self, id: &str) -> &Notify {
        let [first, ..] = &self.changed;
        let number = id.bytes().fold(0, |sum: usize, byte| sum * 31 % GROUPS + usize::from(byte));
        self.changed.get(number % GROUPS).unwrap_or(first)
    }
}
