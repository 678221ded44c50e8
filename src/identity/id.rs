//! The ids of apps and users: which texts are legal.
//!
//! An id that does not fit in a header, or is longer than any real id, is rejected and never
//! becomes a session.

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

/// The id that the operator's own service gave a user, through the login hook.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UserId(Box<str>);

impl UserId {
    /// Longest id, in bytes.
    pub const LONGEST: usize = 256;

    /// Parses an id: 1 to 256 visible ASCII characters, so that it can be a header's value.
    pub fn parse(text: &str) -> Option<Self> {
        let is_legal =
            (1..=Self::LONGEST).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        is_legal.then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
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

impl fmt::Debug for UserId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("UserId(..)")
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
