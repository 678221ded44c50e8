//! Seals what a shared store receives, so that it can be neither read nor forged.
//!
//! The record of a session is sealed with AES-256-GCM-SIV (RFC 8452) for the key it is stored
//! under, so that it cannot be moved to another token. A user's index is stored under a keyed hash
//! of app and openid. Its entries, digests of tokens, are sealed so that equal digests give equal
//! entries, which can be removed without a search. This needs a cipher that is safe with a repeated
//! nonce, which is why it is SIV. Session keys are sealed for their user in the same way, and
//! records with a short life for the name of their key. Keys for each of these purposes are derived
//! from the seal key by HMAC-SHA-256. The first key seals; all keys can open.

use std::net::{IpAddr, Ipv6Addr};

use aes_gcm_siv::aead::{Aead, Payload};
use aes_gcm_siv::{Aes256GcmSiv, KeyInit, Nonce};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use rand::Rng;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::identity::secret::SealKey;
use crate::identity::session_key::SessionKey;
use crate::identity::token::TokenDigest;
use crate::identity::{AppId, Identity, OpenId, UnionId, User, UserId};

/// Format version of records. Records of other versions are not read. Only those with a user id
/// have the second: other gateways may not know it yet.
const VERSION: u8 = 1;
const WITH_USER_ID: u8 = 2;

/// First byte of a record. The time of last use and the sealed part follow.
const SESSION: u8 = b'S';

/// The value of a revoked session.
pub const TOMBSTONE: &[u8] = b"T";

/// Digits of the time of last use before the sealed part: the store compares them.
const DIGITS: usize = 13;

/// The latest time that the digits at the start of a value can express.
pub const MAX_TIME: u64 = 9_999_999_999_999;

const NONCE: usize = 12;

/// A session as it is stored. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub identity: Identity,
    /// The address that the login came from.
    pub client: IpAddr,
    pub created: u64,
    /// Its absolute end.
    pub ends: u64,
    pub used: u64,
}

/// The kind of a value in the store.
#[derive(Debug, PartialEq, Eq)]
pub enum StoredValue {
    Session(Record),
    Tombstone,
    /// Not sealed with any known key, or sealed for another token.
    Unreadable,
}

pub struct Seals {
    /// The first key seals.
    keys: Vec<DerivedKeys>,
}

struct DerivedKeys {
    records: Aes256GcmSiv,
    members: Aes256GcmSiv,
    jars: Aes256GcmSiv,
    access_tokens: Aes256GcmSiv,
    session_keys: Aes256GcmSiv,
    short_lived: Aes256GcmSiv,
    users: Hmac<Sha256>,
}

/// The gateway has no key to seal with, for example because its configuration was read without
/// secrets.
#[derive(Debug)]
pub struct SealError;

impl Seals {
    pub fn new(keys: &[SealKey]) -> Self {
        Self { keys: keys.iter().filter_map(DerivedKeys::derive).collect() }
    }

    /// Seals a record for the token it is stored under.
    pub fn seal(&self, digest: &TokenDigest, record: &Record) -> Result<Vec<u8>, SealError> {
        let mut value = stamp(record.used).into_bytes();
        let associated = associated(digest, &value);
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let plain = Zeroizing::new(encode(record));
        let payload = Payload { msg: &plain, aad: &associated };
        let key = self.keys.first().ok_or(SealError)?;
        let sealed = key.records.encrypt(&Nonce::from(nonce), payload).map_err(|_| SealError)?;
        value.extend(nonce);
        value.extend(sealed);
        Ok(value)
    }

    pub fn open(&self, digest: &TokenDigest, value: &[u8]) -> StoredValue {
        if value == TOMBSTONE {
            return StoredValue::Tombstone;
        }
        self.open_record(digest, value).map_or(StoredValue::Unreadable, StoredValue::Session)
    }

    fn open_record(&self, digest: &TokenDigest, value: &[u8]) -> Option<Record> {
        let (stamp, rest) = value.split_at_checked(1 + DIGITS)?;
        let (&[SESSION], used) = stamp.split_first_chunk()? else { return None };
        let used = std::str::from_utf8(used).ok()?.parse().ok()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let associated = associated(digest, stamp);
        let plain = self.keys.iter().find_map(|key| {
            let payload = Payload { msg: sealed, aad: &associated };
            key.records.decrypt(&Nonce::from(*nonce), payload).ok()
        });
        decode(&Zeroizing::new(plain?), used)
    }

    /// Seals the cookies of a session for the name of their key.
    pub fn seal_jar(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        seal_for(name, &self.keys.first().ok_or(SealError)?.jars, plain)
    }

    /// `None` if they were not sealed with a known key for this name.
    pub fn open_jar(&self, name: &str, value: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        open_for(name, self.keys.iter().map(|keys| &keys.jars), value)
    }

    /// Seals an access token for its app.
    pub fn seal_access_token(&self, app_id: &AppId, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let key = &self.keys.first().ok_or(SealError)?.access_tokens;
        seal_for(app_id.as_str(), key, plain)
    }

    /// `None` if it was not sealed with a known key for this app.
    pub fn open_access_token(&self, app_id: &AppId, value: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let keys = self.keys.iter().map(|keys| &keys.access_tokens);
        open_for(app_id.as_str(), keys, value)
    }

    /// Seals a record with a short life for the name of its key.
    pub fn seal_short_lived(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let key = &self.keys.first().ok_or(SealError)?.short_lived;
        seal_for(name, key, plain)
    }

    /// `None` if it was not sealed with a known key for this name.
    pub fn open_short_lived(&self, name: &str, value: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        open_for(name, self.keys.iter().map(|keys| &keys.short_lived), value)
    }

    /// The names under which a user's sessions are listed; new sessions are listed under the first.
    pub fn user_names<'a>(&'a self, user: &'a User) -> impl Iterator<Item = UserName<'a>> {
        self.keys.iter().map(move |keys| UserName { name: keys.name(user), keys })
    }
}

/// The name of a user in the store, made with one of the seal keys.
pub struct UserName<'a> {
    pub name: String,
    keys: &'a DerivedKeys,
}

impl UserName<'_> {
    /// The entry of a token in the user's list.
    pub fn member(&self, digest: &TokenDigest) -> Result<Vec<u8>, SealError> {
        let payload = Payload { msg: digest.as_bytes(), aad: self.name.as_bytes() };
        self.keys.members.encrypt(&Nonce::default(), payload).map_err(|_| SealError)
    }

    /// The token of an entry, if it was sealed for this user.
    pub fn digest(&self, member: &[u8]) -> Option<TokenDigest> {
        let payload = Payload { msg: member, aad: self.name.as_bytes() };
        let plain = self.keys.members.decrypt(&Nonce::default(), payload).ok()?;
        Some(TokenDigest::from_bytes(plain.try_into().ok()?))
    }
}

impl UserName<'_> {
    /// The entry of one of the user's session keys.
    pub fn key_entry(&self, key: &SessionKey) -> Result<Vec<u8>, SealError> {
        let payload = Payload { msg: &*key.bytes(), aad: self.name.as_bytes() };
        self.keys.session_keys.encrypt(&Nonce::default(), payload).map_err(|_| SealError)
    }

    /// The session key of an entry, if it was sealed for this user.
    pub fn session_key(&self, entry: &[u8]) -> Option<SessionKey> {
        let payload = Payload { msg: entry, aad: self.name.as_bytes() };
        let plain = self.keys.session_keys.decrypt(&Nonce::default(), payload).ok()?;
        let plain = Zeroizing::new(plain);
        Some(SessionKey::from_bytes(plain.first_chunk().filter(|_| plain.len() == 16)?))
    }
}

impl DerivedKeys {
    fn derive(key: &SealKey) -> Option<Self> {
        let derive = |purpose: &[u8]| key.derive(purpose);
        Some(Self {
            records: Aes256GcmSiv::new_from_slice(&*derive(b"wxgate record")?).ok()?,
            members: Aes256GcmSiv::new_from_slice(&*derive(b"wxgate member")?).ok()?,
            jars: Aes256GcmSiv::new_from_slice(&*derive(b"wxgate cookie jar")?).ok()?,
            access_tokens: Aes256GcmSiv::new_from_slice(&*derive(b"wxgate access token")?).ok()?,
            session_keys: Aes256GcmSiv::new_from_slice(&*derive(b"wxgate session key")?).ok()?,
            short_lived: Aes256GcmSiv::new_from_slice(&*derive(b"wxgate short-lived record")?)
                .ok()?,
            users: Hmac::new_from_slice(&*derive(b"wxgate user")?).ok()?,
        })
    }

    fn name(&self, user: &User) -> String {
        let hmac = self.users.clone().chain_update(user.app_id.as_str());
        // An app id contains no zero byte.
        let hmac = hmac.chain_update([0]).chain_update(user.openid.as_str());
        URL_SAFE_NO_PAD.encode(hmac.finalize().into_bytes())
    }
}

/// The nonce, then what is sealed for `name`.
fn seal_for(name: &str, key: &Aes256GcmSiv, plain: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE];
    rand::rng().fill_bytes(&mut nonce);
    let payload = Payload { msg: plain, aad: name.as_bytes() };
    let sealed = key.encrypt(&Nonce::from(nonce), payload).map_err(|_| SealError)?;
    Ok([&nonce[..], &sealed].concat())
}

/// The reverse of [`seal_for`], with the first of `keys` that can.
fn open_for<'a>(
    name: &str,
    mut keys: impl Iterator<Item = &'a Aes256GcmSiv>,
    value: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = value.split_first_chunk::<NONCE>()?;
    let plain = keys.find_map(|key| {
        let payload = Payload { msg: sealed, aad: name.as_bytes() };
        key.decrypt(&Nonce::from(*nonce), payload).ok()
    });
    plain.map(Zeroizing::new)
}

/// The time at the start of a value: the last use of a session, or the end of a block.
pub fn stamped_time(value: &[u8]) -> Option<u64> {
    let (&[SESSION], digits) = value.get(..1 + DIGITS)?.split_first_chunk()? else { return None };
    std::str::from_utf8(digits).ok()?.parse().ok()
}

pub fn stamp(used: u64) -> String {
    format!("{}{used:0DIGITS$}", char::from(SESSION))
}

fn associated(digest: &TokenDigest, stamp: &[u8]) -> Vec<u8> {
    [digest.as_bytes(), stamp].concat()
}

fn encode(record: &Record) -> Vec<u8> {
    let Identity { app_id, openid, unionid, user_id } = &record.identity;
    let version = if user_id.is_some() { WITH_USER_ID } else { VERSION };
    let mut plain = vec![version];
    plain.extend(record.created.to_be_bytes());
    plain.extend(record.ends.to_be_bytes());
    plain.extend(mapped(record.client).octets());
    let unionid = unionid.as_ref().map_or("", UnionId::as_str);
    for text in [app_id.as_str(), openid.as_str(), unionid] {
        // An id has at most 128 bytes.
        plain.push(u8::try_from(text.len()).unwrap_or_default());
        plain.extend(text.as_bytes());
    }
    if let Some(user_id) = user_id {
        // The rest of the record.
        plain.extend(user_id.as_str().as_bytes());
    }
    plain
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn decode(plain: &[u8], used: u64) -> Option<Record> {
    let (&[version @ (VERSION | WITH_USER_ID)], rest) = plain.split_first_chunk()? else {
        return None;
    };
    let (created, rest) = rest.split_first_chunk()?;
    let (ends, rest) = rest.split_first_chunk()?;
    let (client, mut rest) = rest.split_first_chunk::<16>()?;
    let mut text = || {
        let (length, after) = rest.split_first()?;
        let (text, after) = after.split_at_checked(usize::from(*length))?;
        rest = after;
        std::str::from_utf8(text).ok()
    };
    let app_id = AppId::parse(text()?)?;
    let openid = OpenId::parse(text()?)?;
    let unionid = match text()? {
        "" => None,
        unionid => Some(UnionId::parse(unionid)?),
    };
    let user_id = match (version, rest) {
        (VERSION, []) => None,
        (WITH_USER_ID, rest) => Some(UserId::parse(std::str::from_utf8(rest).ok()?)?),
        _ => return None,
    };
    Some(Record {
        identity: Identity { app_id, openid, unionid, user_id },
        client: Ipv6Addr::from(*client).to_canonical(),
        created: u64::from_be_bytes(*created),
        ends: u64::from_be_bytes(*ends),
        used,
    })
}

#[cfg(test)]
mod tests;
