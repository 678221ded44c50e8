//! The session token, the `3rd_session` of WeChat's documentation.
//!
//! Decides what a token looks like, how it is generated and where in a header it may be.
//! `access::authenticator` reads tokens and `access::identity_headers` removes them with the same
//! functions, so that what is read and what is removed cannot differ. Only the [`TokenDigest`] is
//! stored: a reader of the session store finds no usable token.

use std::fmt;
use std::hash::{Hash, Hasher};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use sha2::{Digest, Sha256};

use crate::identity::secret::Secret;
use crate::message::header::{all, is_blank, trim};

/// Length of a token in characters: 32 bytes in base64url without padding.
pub const TOKEN_LENGTH: usize = 43;

/// A new token: 32 bytes from the thread's cryptographic generator, which is seeded by the system.
/// It is derived from nothing else.
pub struct SessionToken(Secret);

impl SessionToken {
    pub fn generate() -> Self {
        let mut bytes = [0u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(Secret::new(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// A token that was generated before. `None` if it has not the format of a token.
    pub fn parse(text: &str) -> Option<Self> {
        has_token_shape(text.as_bytes()).then(|| Self(Secret::new(text.to_owned())))
    }

    /// The text that the client gets, once.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.0.expose().as_bytes())
    }
}

/// SHA-256 of a token's text: the key under which its session is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of `text` if it has the format of a token.
    pub fn parse(text: &[u8]) -> Option<Self> {
        has_token_shape(text).then(|| Self::of(text))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A digest that was stored elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first 16 hexadecimal digits, by which operators identify a session.
    pub fn id(&self) -> String {
        let first = self.0.first_chunk().copied().unwrap_or_default();
        format!("{:016x}", u64::from_be_bytes(first))
    }

    fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }
}

/// The part by which operators identify a session.
impl fmt::Debug for TokenDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TokenDigest({})", self.id())
    }
}

/// Eight bytes of a digest are as good a hash as all of them.
impl Hash for TokenDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let Some(word) = self.0.first_chunk() {
            state.write_u64(u64::from_le_bytes(*word));
        }
    }
}

/// The token in an `Authorization` value, if it is a Bearer token in the gateway's format. Any
/// other value is meant for the service. The scheme is case-insensitive (RFC 9110, section 11.1).
pub fn bearer_token(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") || !rest.first().is_some_and(|b| is_blank(*b)) {
        return None;
    }
    let token = trim(rest);
    has_token_shape(token).then_some(token)
}

/// Whether a text is 43 characters of base64url, like every token of the gateway.
pub fn has_token_shape(text: &[u8]) -> bool {
    text.len() == TOKEN_LENGTH
        && all(text, |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_token_has_the_shape_it_is_recognised_by() {
        let token = SessionToken::generate();
        assert_eq!(token.expose().len(), TOKEN_LENGTH);
        assert!(TokenDigest::parse(token.expose().as_bytes()) == Some(token.digest()));
    }

    #[test]
    fn digests_are_spread_over_a_map() {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

        let building = BuildHasherDefault::<DefaultHasher>::default();
        let hashes: std::collections::HashSet<_> =
            (0..1000).map(|_| building.hash_one(SessionToken::generate().digest())).collect();
        assert_eq!(hashes.len(), 1000);
    }

    #[test]
    fn tokens_do_not_repeat() {
        let tokens: std::collections::HashSet<_> =
            (0..10_000).map(|_| SessionToken::generate().expose().to_owned()).collect();
        assert_eq!(tokens.len(), 10_000);
    }

    #[test]
    fn only_a_bearer_of_our_shape_is_ours() {
        let token = "A".repeat(TOKEN_LENGTH);
        for ours in [format!("Bearer {token}"), format!("bearer\t {token} ")] {
            assert_eq!(bearer_token(ours.as_bytes()), Some(token.as_bytes()), "{ours}");
        }
        for theirs in [
            format!("Basic {token}"),
            format!("Bearer{token}"),
            format!("Bearer {token}A"),
            format!("Bearer {}", "A".repeat(TOKEN_LENGTH - 1)),
            format!("Bearer {}=", "A".repeat(TOKEN_LENGTH - 1)),
            "Bearer".to_owned(),
            String::new(),
        ] {
            assert_eq!(bearer_token(theirs.as_bytes()), None, "{theirs}");
        }
    }
}
