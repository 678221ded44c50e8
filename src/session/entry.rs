//! What is written of sessions, and of their changes.
//!
//! An [`Entry`] is in a snapshot, and is given to the new process during an upgrade. A [`Change`]
//! is in the journal, and is told to the other process. Both are lists of fields. The first field
//! is the kind. Kinds and fields that this program does not know are ignored. A field that is
//! missing, malformed or there twice is an error. A field has the same number in all kinds. Times
//! are milliseconds of the writer's clock.

use std::net::IpAddr;

use super::{KnownUser, LoginKey};
use crate::handover::fields::{self, Field, Malformed, Writer};
use crate::identity::session_key::SessionKey;
use crate::identity::token::TokenDigest;
use crate::identity::{AppId, Identity, OpenId, UnionId, User, UserId};

const KIND: u32 = 1;
const DIGEST: u32 = 2;
const APP_ID: u32 = 3;
const OPENID: u32 = 4;
const UNIONID: u32 = 5;
const USER_ID: u32 = 6;
const CLIENT: u32 = 7;
const CREATED: u32 = 8;
const ENDS: u32 = 9;
const USED: u32 = 10;
/// A session key and the time of its login; several.
const KEY: u32 = 11;
/// A digest and the time of its last use; several.
const USE: u32 = 12;

const SESSION: u8 = 1;
const BLOCK: u8 = 2;
const KEYS: u8 = 3;
const REVOKED: u8 = 11;
const BLOCKED: u8 = 12;
const UNBLOCKED: u8 = 13;
const CREATED_SESSION: u8 = 14;
const KEY_REPLACED: u8 = 15;
const USED_SESSIONS: u8 = 16;
const WIPED_KEYS: u8 = 17;
const REMOVED: u8 = 18;

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEntry {
    pub digest: TokenDigest,
    pub identity: Identity,
    /// The address that the login came from.
    pub client: IpAddr,
    pub created: u64,
    /// Its absolute end.
    pub ends: u64,
    pub used: u64,
}

/// The block of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    pub known: KnownUser,
    pub until: u64,
}

/// The kept session keys of a user, newest login first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysEntry {
    pub user: User,
    pub keys: Vec<LoginKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Session(SessionEntry),
    Block(BlockEntry),
    Keys(KeysEntry),
}

/// A change of sessions, blocks or session keys. Only the first three are in a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Revoked(TokenDigest),
    Blocked(BlockEntry),
    Unblocked(User),
    Created {
        session: SessionEntry,
        key: Option<LoginKey>,
    },
    KeyReplaced {
        user: User,
        key: LoginKey,
    },
    /// The last uses of sessions.
    Used(Vec<(TokenDigest, u64)>),
    WipedKeys,
    /// Replaced by newer sessions of its user, or expired.
    Removed(TokenDigest),
}

impl Entry {
    /// Appends the fields of the entry to an empty list.
    pub fn encode(&self, list: &mut Writer) {
        match self {
            Self::Session(session) => {
                list.bytes(KIND, &[SESSION]);
                put_session(list, session);
            }
            Self::Block(block) => {
                list.bytes(KIND, &[BLOCK]);
                put_block(list, block);
            }
            Self::Keys(KeysEntry { user, keys }) => {
                list.bytes(KIND, &[KEYS]);
                put_user(list, user);
                for key in keys {
                    put_key(list, key);
                }
            }
        }
    }

    /// `None` for a kind that this program does not know.
    ///
    /// # Errors
    /// When the list is not one of an entry.
    pub fn decode(list: &[u8], apps: &mut AppIds) -> Result<Option<Self>, Malformed> {
        let (kind, fields) = kind(list)?;
        Ok(match kind {
            SESSION => Some(Self::Session(Parts::read(fields, apps)?.session()?)),
            BLOCK => Some(Self::Block(Parts::read(fields, apps)?.block()?)),
            KEYS => {
                let mut parts = Parts::read(fields, apps)?;
                let keys = std::mem::take(&mut parts.keys);
                Some(Self::Keys(KeysEntry { user: parts.user()?, keys }))
            }
            _ => None,
        })
    }
}

impl Change {
    /// Appends the fields of the change to an empty list.
    pub fn encode(&self, list: &mut Writer) {
        match self {
            Self::Revoked(digest) => {
                list.bytes(KIND, &[REVOKED]).bytes(DIGEST, digest.as_bytes());
            }
            Self::Blocked(block) => {
                list.bytes(KIND, &[BLOCKED]);
                put_block(list, block);
            }
            Self::Unblocked(user) => {
                list.bytes(KIND, &[UNBLOCKED]);
                put_user(list, user);
            }
            Self::Created { session, key } => {
                list.bytes(KIND, &[CREATED_SESSION]);
                put_session(list, session);
                if let Some(key) = key {
                    put_key(list, key);
                }
            }
            Self::KeyReplaced { user, key } => {
                list.bytes(KIND, &[KEY_REPLACED]);
                put_user(list, user);
                put_key(list, key);
            }
            Self::Used(uses) => {
                list.bytes(KIND, &[USED_SESSIONS]);
                for (digest, used) in uses {
                    let mut value = [0; 40];
                    let (start, end) = value.split_at_mut(32);
                    start.copy_from_slice(digest.as_bytes());
                    end.copy_from_slice(&used.to_be_bytes());
                    list.bytes(USE, &value);
                }
            }
            Self::WipedKeys => {
                list.bytes(KIND, &[WIPED_KEYS]);
            }
            Self::Removed(digest) => {
                list.bytes(KIND, &[REMOVED]).bytes(DIGEST, digest.as_bytes());
            }
        }
    }

    /// `None` for a kind that this program does not know.
    ///
    /// # Errors
    /// When the list is not one of a change.
    pub fn decode(list: &[u8], apps: &mut AppIds) -> Result<Option<Self>, Malformed> {
        let (kind, fields) = kind(list)?;
        if !(REVOKED..=REMOVED).contains(&kind) {
            return Ok(None);
        }
        let mut parts = Parts::read(fields, apps)?;
        Ok(Some(match kind {
            REVOKED => Self::Revoked(parts.digest.ok_or(Malformed)?),
            REMOVED => Self::Removed(parts.digest.ok_or(Malformed)?),
            BLOCKED => Self::Blocked(parts.block()?),
            UNBLOCKED => Self::Unblocked(parts.user()?),
            CREATED_SESSION => {
                let key = parts.one_key()?;
                Self::Created { session: parts.session()?, key }
            }
            KEY_REPLACED => {
                let key = parts.one_key()?.ok_or(Malformed)?;
                Self::KeyReplaced { user: parts.user()?, key }
            }
            USED_SESSIONS => Self::Used(parts.uses),
            _ => Self::WipedKeys,
        }))
    }
}

/// The app ids that were read so far. Sessions of one app share its id.
#[derive(Default)]
pub struct AppIds(Vec<AppId>);

impl AppIds {
    /// How many are remembered. More than one process has; further ones are not shared.
    const MOST: usize = 64;

    fn parse(&mut self, text: &str) -> Option<AppId> {
        if let Some(known) = self.0.iter().find(|known| known.as_str() == text) {
            return Some(known.clone());
        }
        let app_id = AppId::parse(text)?;
        if self.0.len() < Self::MOST {
            self.0.push(app_id.clone());
        }
        Some(app_id)
    }
}

fn put_session(list: &mut Writer, session: &SessionEntry) {
    let SessionEntry { digest, identity, client, created, ends, used } = session;
    let Identity { app_id, openid, unionid, user_id } = identity;
    list.bytes(DIGEST, digest.as_bytes());
    list.text(APP_ID, app_id.as_str()).text(OPENID, openid.as_str());
    if let Some(unionid) = unionid {
        list.text(UNIONID, unionid.as_str());
    }
    put_user_id(list, user_id.as_ref());
    match client {
        IpAddr::V4(client) => list.bytes(CLIENT, &client.octets()),
        IpAddr::V6(client) => list.bytes(CLIENT, &client.octets()),
    };
    list.u64(CREATED, *created).u64(ENDS, *ends).u64(USED, *used);
}

fn put_block(list: &mut Writer, BlockEntry { known, until }: &BlockEntry) {
    put_user(list, &known.user);
    put_user_id(list, known.user_id.as_ref());
    list.u64(ENDS, *until);
}

fn put_user(list: &mut Writer, User { app_id, openid }: &User) {
    list.text(APP_ID, app_id.as_str()).text(OPENID, openid.as_str());
}

fn put_user_id(list: &mut Writer, user_id: Option<&UserId>) {
    if let Some(user_id) = user_id {
        list.text(USER_ID, user_id.as_str());
    }
}

fn put_key(list: &mut Writer, LoginKey { session_key, logged_in_at_millis }: &LoginKey) {
    let mut value = zeroize::Zeroizing::new([0; 24]);
    let (start, end) = value.split_at_mut(16);
    start.copy_from_slice(&*session_key.bytes());
    end.copy_from_slice(&logged_in_at_millis.to_be_bytes());
    list.bytes(KEY, &*value);
}

type FieldResult<'a> = Result<Field<'a>, Malformed>;

/// The kind, and the other fields.
fn kind(list: &[u8]) -> Result<(u8, impl Iterator<Item = FieldResult<'_>>), Malformed> {
    let mut fields = fields::read(list);
    match fields.next() {
        Some(Ok(Field { number: KIND, value: [kind] })) => Ok((*kind, fields)),
        _ => Err(Malformed),
    }
}

/// The fields of any kind.
#[derive(Default)]
struct Parts {
    digest: Option<TokenDigest>,
    app_id: Option<AppId>,
    openid: Option<OpenId>,
    unionid: Option<UnionId>,
    user_id: Option<UserId>,
    client: Option<IpAddr>,
    created: Option<u64>,
    ends: Option<u64>,
    used: Option<u64>,
    keys: Vec<LoginKey>,
    uses: Vec<(TokenDigest, u64)>,
}

impl Parts {
    fn read<'a>(
        fields: impl Iterator<Item = FieldResult<'a>>,
        apps: &mut AppIds,
    ) -> Result<Self, Malformed> {
        let mut parts = Self::default();
        for field in fields {
            parts.take(field?, apps).ok_or(Malformed)?;
        }
        Ok(parts)
    }

    fn take(&mut self, field: Field<'_>, apps: &mut AppIds) -> Option<()> {
        match field.number {
            KIND => None,
            DIGEST => once(&mut self.digest, TokenDigest::from_bytes(field.array()?)),
            APP_ID => once(&mut self.app_id, apps.parse(field.text()?)?),
            OPENID => once(&mut self.openid, OpenId::parse(field.text()?)?),
            UNIONID => once(&mut self.unionid, UnionId::parse(field.text()?)?),
            USER_ID => once(&mut self.user_id, UserId::parse(field.text()?)?),
            CLIENT => {
                let v4 = || field.array::<4>().map(IpAddr::from);
                once(&mut self.client, v4().or_else(|| field.array::<16>().map(IpAddr::from))?)
            }
            CREATED => once(&mut self.created, field.u64()?),
            ENDS => once(&mut self.ends, field.u64()?),
            USED => once(&mut self.used, field.u64()?),
            KEY => {
                let (key, time) = field.value.split_first_chunk::<16>()?;
                let logged_in_at_millis = u64::from_be_bytes(time.try_into().ok()?);
                let session_key = SessionKey::from_bytes(key);
                self.keys.push(LoginKey { session_key, logged_in_at_millis });
                Some(())
            }
            USE => {
                let (digest, time) = field.value.split_first_chunk::<32>()?;
                let used = u64::from_be_bytes(time.try_into().ok()?);
                self.uses.push((TokenDigest::from_bytes(*digest), used));
                Some(())
            }
            _ => Some(()),
        }
    }

    fn session(self) -> Result<SessionEntry, Malformed> {
        Ok(SessionEntry {
            digest: self.digest.ok_or(Malformed)?,
            identity: Identity {
                app_id: self.app_id.ok_or(Malformed)?,
                openid: self.openid.ok_or(Malformed)?,
                unionid: self.unionid,
                user_id: self.user_id,
            },
            client: self.client.ok_or(Malformed)?,
            created: self.created.ok_or(Malformed)?,
            ends: self.ends.ok_or(Malformed)?,
            used: self.used.ok_or(Malformed)?,
        })
    }

    fn block(mut self) -> Result<BlockEntry, Malformed> {
        let (user_id, until) = (self.user_id.take(), self.ends.ok_or(Malformed)?);
        Ok(BlockEntry { known: KnownUser { user: self.user()?, user_id }, until })
    }

    fn user(self) -> Result<User, Malformed> {
        Ok(User { app_id: self.app_id.ok_or(Malformed)?, openid: self.openid.ok_or(Malformed)? })
    }

    /// The only session key, if there is one.
    fn one_key(&mut self) -> Result<Option<LoginKey>, Malformed> {
        let key = self.keys.pop();
        if self.keys.is_empty() { Ok(key) } else { Err(Malformed) }
    }
}

/// Fills a place, which must be empty.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

#[cfg(test)]
mod tests;
