//! The names of the keys in the store.
//!
//! | key | value |
//! |---|---|
//! | `{prefix}s:DIGEST` | `S`, time of last use, sealed record; or `T`, a tombstone |
//! | `{prefix}u:USER` | sorted set of sealed digests, by their absolute ends |
//! | `{prefix}k:USER` | sorted set of sealed session keys, by times of login (`user_keys.rs`) |
//! | `{prefix}b:USER` | `S`, time of its end, sealed record: a block of the user (`blocks.rs`) |
//! | `{prefix}j:DIGEST:UPSTREAM` | sealed cookies of the session at an upstream (`jars.rs`) |
//! | `{prefix}blocked` | sorted set of blocked users, by the ends of their blocks |
//! | `{prefix}revoked` | channel for digests of revoked sessions, and names of unblocked users |
//! | `{prefix}t:APP_ID` | sealed access token of the app (`access_tokens.rs`) |
//! | `{prefix}r:APP_ID` | the gateway that renews it: random, and only while it does |
//! | `{prefix}o:KIND DIGEST` | sealed record with a short life, by its kind (one letter) and id (`records.rs`) |
//! | `{prefix}n:KIND USER` | sorted set of digests of the user's records of this kind, by their ends |
//! | `{prefix}lease` | empty: written to check whether replicas follow |

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::identity::AppId;
use crate::identity::token::TokenDigest;
use crate::session::jars::JarName;
use crate::session::records::{Digest, RecordKind};

pub struct KeyNames {
    prefix: String,
    /// For notices to other gateways.
    pub channel: String,
}

impl KeyNames {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), channel: format!("{prefix}revoked") }
    }

    pub fn session(&self, digest: &TokenDigest) -> String {
        format!("{}s:{}", self.prefix, URL_SAFE_NO_PAD.encode(digest.as_bytes()))
    }

    /// For the cookies of a session at an upstream.
    pub fn jar(&self, digest: &TokenDigest, upstream: JarName) -> String {
        let digest = URL_SAFE_NO_PAD.encode(digest.as_bytes());
        format!("{}j:{digest}:{}", self.prefix, URL_SAFE_NO_PAD.encode(upstream.as_bytes()))
    }

    pub fn user(&self, name: &str) -> String {
        format!("{}u:{name}", self.prefix)
    }

    pub fn session_keys(&self, name: &str) -> String {
        format!("{}k:{name}", self.prefix)
    }

    pub fn block(&self, name: &str) -> String {
        format!("{}b:{name}", self.prefix)
    }

    pub fn blocks(&self) -> String {
        format!("{}blocked", self.prefix)
    }

    /// For the access token of an app.
    pub fn access_token(&self, app_id: &AppId) -> String {
        format!("{}t:{}", self.prefix, app_id.as_str())
    }

    /// For the right to renew it.
    pub fn renewal(&self, app_id: &AppId) -> String {
        format!("{}r:{}", self.prefix, app_id.as_str())
    }

    /// For a record with a short life.
    pub fn record(&self, kind: RecordKind, digest: &Digest) -> String {
        format!("{}o:{}{}", self.prefix, kind.letter(), URL_SAFE_NO_PAD.encode(digest))
    }

    /// For the count of such records of a user.
    pub fn records_of(&self, kind: RecordKind, name: &str) -> String {
        format!("{}n:{}{name}", self.prefix, kind.letter())
    }

    /// For heartbeats.
    pub fn lease(&self) -> String {
        format!("{}lease", self.prefix)
    }

    /// A `SCAN` pattern for the keys of sessions and blocks.
    pub fn pattern(&self) -> String {
        let mut pattern = String::new();
        for c in self.prefix.chars() {
            if matches!(c, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        pattern + "[sb]:*"
    }

    /// The digest in the key of a session.
    pub fn token(&self, key: &str) -> Option<TokenDigest> {
        let digest = key.strip_prefix(&self.prefix)?.strip_prefix("s:")?;
        let digest = URL_SAFE_NO_PAD.decode(digest).ok()?;
        Some(TokenDigest::from_bytes(digest.try_into().ok()?))
    }
}
