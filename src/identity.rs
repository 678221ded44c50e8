//! Who was proved.
//!
//! An identity reaches upstream services as header values, so its parts are checked here,
//! once, when WeChat hands them over: what does not fit a header, or is longer than any
//! real id, is refused and never becomes a session. It does not know how identity is
//! proved, carried or written.

use std::fmt;
use std::sync::Arc;

/// Longest id accepted. WeChat's have 28 characters.
const LONGEST: usize = 128;

/// The id of a Mini Program. Cheap to clone: sessions share one with the configuration.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AppId(Arc<str>);

/// A user of one Mini Program.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OpenId(Box<str>);

/// A user across all apps bound to one Open Platform account.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UnionId(Box<str>);

/// What a session stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub app_id: AppId,
    pub openid: OpenId,
    pub unionid: Option<UnionId>,
}

fn is_legal(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

macro_rules! id {
    ($name:ident) => {
        impl $name {
            /// 1 to 128 of `A-Z a-z 0-9 - _`, the alphabet of WeChat's ids.
            pub fn parse(text: &str) -> Option<Self> {
                is_legal(text).then(|| Self(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(AppId);
id!(OpenId);
id!(UnionId);

impl fmt::Debug for AppId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

// Openids and unionids are personal data: they do not slip into logs through `Debug`.
impl fmt::Debug for OpenId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("OpenId(..)")
    }
}

impl fmt::Debug for UnionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("UnionId(..)")
    }
}
