//! One operation on records in memory, and its outcome, as one process asks another for it.
//!
//! Both are lists of numbered fields. Times are in milliseconds.

use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{Digest, Record, RecordKind, Version};
use crate::clock::millis;
use crate::handover::fields::{Writer, read};
use crate::identity::{AppId, OpenId, User};

mod field {
    pub const ACTION: u32 = 1;
    pub const KIND: u32 = 2;
    pub const DIGEST: u32 = 3;
    pub const VALUE: u32 = 4;
    pub const LIFE: u32 = 5;
    pub const VERSION: u32 = 6;
    pub const APP_ID: u32 = 7;
    pub const OPENID: u32 = 8;
    pub const MOST: u32 = 9;

    pub const IS_DONE: u32 = 1;
    pub const FOUND: u32 = 2;
    pub const FOUND_VERSION: u32 = 3;
    pub const WAIT: u32 = 4;
}

/// An operation on one record.
pub struct Operation<'a> {
    pub kind: RecordKind,
    pub digest: Digest,
    pub action: Action<'a>,
}

/// What is to be done with it.
pub enum Action<'a> {
    Insert { value: &'a [u8], life: Duration },
    Get,
    Take,
    Replace { read: u64, value: &'a [u8], life: Duration },
    Count { user: User, most: usize, life: Duration },
    Uncount { user: User },
}

/// The outcome of an operation.
#[derive(Default)]
pub struct Outcome {
    /// Whether it was inserted, replaced or counted.
    pub is_done: bool,
    /// The record that was read or taken.
    pub record: Option<Record>,
    /// The time until a record can be counted.
    pub wait: Duration,
}

impl Operation<'_> {
    pub fn encode(&self) -> Writer {
        let mut writer = Writer::new();
        writer
            .bytes(field::ACTION, &[self.action.number()])
            .bytes(field::KIND, &[self.kind.number()])
            .bytes(field::DIGEST, &self.digest);
        match &self.action {
            Action::Insert { value, life } => {
                writer.bytes(field::VALUE, value).u64(field::LIFE, millis(*life));
            }
            Action::Get | Action::Take => {}
            Action::Replace { read, value, life } => {
                writer
                    .u64(field::VERSION, *read)
                    .bytes(field::VALUE, value)
                    .u64(field::LIFE, millis(*life));
            }
            Action::Count { user, most, life } => {
                put_user(&mut writer, user);
                writer
                    .u64(field::MOST, u64::try_from(*most).unwrap_or(u64::MAX))
                    .u64(field::LIFE, millis(*life));
            }
            Action::Uncount { user } => put_user(&mut writer, user),
        }
        writer
    }
}

impl<'a> Operation<'a> {
    /// `None`: it is malformed, or unknown here.
    pub fn decode(list: &'a [u8]) -> Option<Self> {
        let (mut number, mut kind, mut digest, mut value) = (None, None, None, None);
        let (mut life, mut version, mut most) = (None, None, None);
        let (mut app_id, mut openid) = (None, None);
        for field in read(list) {
            let field = field.ok()?;
            match field.number {
                field::ACTION => number = field.array().map(|[number]| number),
                field::KIND => kind = field.array().map(|[kind]| kind),
                field::DIGEST => digest = field.array(),
                field::VALUE => value = Some(field.value),
                field::LIFE => life = field.u64().map(Duration::from_millis),
                field::VERSION => version = field.u64(),
                field::APP_ID => app_id = field.text().and_then(AppId::parse),
                field::OPENID => openid = field.text().and_then(OpenId::parse),
                field::MOST => most = field.u64().and_then(|most| usize::try_from(most).ok()),
                _ => {}
            }
        }
        let user = app_id.zip(openid).map(|(app_id, openid)| User { app_id, openid });
        let action = match number? {
            1 => Action::Insert { value: value?, life: life? },
            2 => Action::Get,
            3 => Action::Take,
            4 => Action::Replace { read: version?, value: value?, life: life? },
            5 => Action::Count { user: user?, most: most?, life: life? },
            6 => Action::Uncount { user: user? },
            _ => return None,
        };
        Some(Self { kind: RecordKind::numbered(kind?)?, digest: digest?, action })
    }
}

impl Action<'_> {
    fn number(&self) -> u8 {
        match self {
            Self::Insert { .. } => 1,
            Self::Get => 2,
            Self::Take => 3,
            Self::Replace { .. } => 4,
            Self::Count { .. } => 5,
            Self::Uncount { .. } => 6,
        }
    }
}

impl Outcome {
    pub fn encode(&self) -> Writer {
        let mut writer = Writer::new();
        writer.bytes(field::IS_DONE, &[u8::from(self.is_done)]);
        if let Some(Record { value, version: Version::Memory(version) }) = &self.record {
            writer.bytes(field::FOUND, value).u64(field::FOUND_VERSION, *version);
        }
        writer.u64(field::WAIT, millis(self.wait));
        writer
    }

    /// `None`: it is malformed.
    pub fn decode(list: &[u8]) -> Option<Self> {
        let (mut is_done, mut value, mut version, mut wait) = (None, None, None, None);
        for field in read(list) {
            let field = field.ok()?;
            match field.number {
                field::IS_DONE => is_done = field.array().map(|[is_done]| is_done == 1),
                field::FOUND => value = Some(Arc::new(Zeroizing::new(field.value.to_vec()))),
                field::FOUND_VERSION => version = field.u64().map(Version::Memory),
                field::WAIT => wait = field.u64().map(Duration::from_millis),
                _ => {}
            }
        }
        let record = value.zip(version).map(|(value, version)| Record { value, version });
        Some(Self { is_done: is_done?, record, wait: wait? })
    }
}

fn put_user(writer: &mut Writer, user: &User) {
    writer.text(field::APP_ID, user.app_id.as_str()).text(field::OPENID, user.openid.as_str());
}
