//! Verified identities.
//!
//! An identity reaches services as header values, so its parts are validated here, once, when
//! WeChat returns them. An id that does not fit in a header, or is longer than any real id, is
//! rejected and never becomes a session. This module does not know how an identity is verified,
//! carried or written.

pub mod secret;
pub(crate) mod token;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Longest id accepted. WeChat's have 28 characters.
const LONGEST: usize = 128;

/// The id of an app. Cheap to clone: sessions share it with the configuration.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AppId(Arc<str>);

/// The id of a user in one app.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OpenId(Text);

/// The id of a user in all apps that are bound to one Open Platform account.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UnionId(Text);

/// The identity of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub app_id: AppId,
    pub openid: OpenId,
    pub unionid: Option<UnionId>,
}

impl Identity {
    pub fn user(&self) -> User {
        User { app_id: self.app_id.clone(), openid: self.openid.clone() }
    }
}

/// A user, whose sessions are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    pub app_id: AppId,
    pub openid: OpenId,
}

/// The text of a user's id. An id of WeChat's usual length is stored inline, so that a session is
/// one allocation.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Text {
    Short { length: u8, bytes: [u8; 30] },
    Long(Box<str>),
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let mut bytes = [0; 30];
        match (u8::try_from(text.len()), bytes.get_mut(..text.len())) {
            (Ok(length), Some(place)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Short { length, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            // Valid UTF-8 by construction.
            Self::Short { length, bytes } => bytes
                .get(..usize::from(*length))
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .unwrap_or_default(),
            Self::Long(text) => text,
        }
    }
}

fn is_legal(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

macro_rules! id {
    ($name:ident) => {
        impl $name {
            /// Parses an id: 1 to 128 characters of `A-Z a-z 0-9 - _`, the alphabet of WeChat's
            /// ids.
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

// Openids and unionids are personal data: `Debug` must not write them to logs.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_any_valid_length_is_kept_unchanged() {
        for length in [1, 28, 30, 31, LONGEST] {
            let text = "oAbC-_09".repeat(LONGEST).split_off(8 * LONGEST - length);
            let id = OpenId::parse(&text).unwrap();
            assert_eq!(id.as_str(), text);
            assert_eq!(Some(id), OpenId::parse(&text));
        }
        assert_ne!(OpenId::parse("oA"), OpenId::parse("oAA"));
        assert_eq!(OpenId::parse(""), None);
        assert_eq!(OpenId::parse(&"o".repeat(LONGEST + 1)), None);
    }
}
