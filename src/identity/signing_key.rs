//! Keys that sign the identity for services: how they are read, and how they are published.
//!
//! ES256 (ECDSA with P-256 and SHA-256) and `EdDSA` (Ed25519), from PKCS#8. A key is known by its
//! thumbprint (RFC 7638), and published as a JWK (RFC 7517, RFC 8037).

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use memchr::memmem;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Length of a signature of either algorithm, in bytes.
pub const SIGNATURE_LENGTH: usize = 64;

/// The algorithm of a signature (RFC 7518, section 3.4, and RFC 8037, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Es256,
    EdDsa,
}

impl Algorithm {
    /// Its name in a JWT and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The kind of keys that it uses.
    pub fn curve(self) -> &'static str {
        match self {
            Self::Es256 => "P-256",
            Self::EdDsa => "Ed25519",
        }
    }
}

/// A private key. Clones share it.
#[derive(Clone)]
pub struct SigningKey(Arc<Inner>);

struct Inner {
    pair: Pair,
    jwk: Jwk,
}

enum Pair {
    P256(EcdsaKeyPair, SystemRandom),
    Ed25519(Ed25519KeyPair),
}

/// A public key as it is published (RFC 7517, section 4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Jwk {
    kty: &'static str,
    crv: &'static str,
    x: String,
    /// Ed25519 has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(rename = "use")]
    purpose: &'static str,
    alg: &'static str,
    kid: String,
}

impl Jwk {
    fn new(algorithm: Algorithm, x: &[u8], y: Option<&[u8]>) -> Self {
        let x = URL_SAFE_NO_PAD.encode(x);
        let y = y.map(|y| URL_SAFE_NO_PAD.encode(y));
        let (kty, crv) = match algorithm {
            Algorithm::Es256 => ("EC", algorithm.curve()),
            Algorithm::EdDsa => ("OKP", algorithm.curve()),
        };
        // The required members in alphabetical order, without whitespace (RFC 7638, section 3).
        let y_member = y.as_ref().map_or_else(String::new, |y| format!(",\"y\":\"{y}\""));
        let members = format!("{{\"crv\":\"{crv}\",\"kty\":\"{kty}\",\"x\":\"{x}\"{y_member}}}");
        let kid = URL_SAFE_NO_PAD.encode(Sha256::digest(members));
        Self { kty, crv, x, y, purpose: "sig", alg: algorithm.as_str(), kid }
    }
}

/// Why a PKCS#8 document is not a key of a known algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// A key for something else. The text names it.
    Other(&'static str),
    /// A P-256 key whose public half is missing or compressed.
    NoPublicKey,
    /// Damaged, or no PKCS#8.
    Malformed,
}

impl fmt::Display for KeyError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(what) => write!(out, "contains {what}"),
            Self::NoPublicKey => {
                out.write_str("contains a P-256 key whose public half is missing or compressed")
            }
            Self::Malformed => out.write_str("contains a damaged private key"),
        }
    }
}

impl SigningKey {
    /// Reads a private key. The public half of an Ed25519 key may be missing, as `openssl genpkey`
    /// omits it (PKCS#8 version 1, RFC 8410, section 7); that of a P-256 key may not.
    ///
    /// # Errors
    /// It is a key of another kind, or damaged.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let kind = KeyKind::of(der).ok_or(KeyError::Malformed)?;
        let (pair, jwk) = match kind {
            KeyKind::Other(what) => return Err(KeyError::Other(what)),
            KeyKind::Ed25519 => {
                let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
                    .map_err(|_| KeyError::Malformed)?;
                let jwk = Jwk::new(Algorithm::EdDsa, pair.public_key().as_ref(), None);
                (Pair::Ed25519(pair), jwk)
            }
            KeyKind::P256 => {
                let random = SystemRandom::new();
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random)
                    .map_err(|_| {
                        let is_short = has_short_public_half(der);
                        if is_short { KeyError::NoPublicKey } else { KeyError::Malformed }
                    })?;
                // An uncompressed point: 4, x, y (SEC 1, section 2.3.3).
                let point = pair.public_key().as_ref();
                let (x, y) = point
                    .strip_prefix(&[4])
                    .and_then(|both| both.split_at_checked(32))
                    .ok_or(KeyError::Malformed)?;
                let jwk = Jwk::new(Algorithm::Es256, x, Some(y));
                (Pair::P256(pair, random), jwk)
            }
        };
        Ok(Self(Arc::new(Inner { pair, jwk })))
    }

    pub fn algorithm(&self) -> Algorithm {
        match self.0.pair {
            Pair::P256(..) => Algorithm::Es256,
            Pair::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    /// The RFC 7638 thumbprint.
    pub fn kid(&self) -> &str {
        &self.0.jwk.kid
    }

    /// The public half.
    pub fn jwk(&self) -> &Jwk {
        &self.0.jwk
    }

    /// Signs a message: `r` and `s`, 32 bytes each (RFC 7518, section 3.4), or as Ed25519 does (RFC
    /// 8037, section 3.1). `None`: the system has no random numbers.
    pub fn sign(&self, message: &[u8]) -> Option<[u8; SIGNATURE_LENGTH]> {
        let signature = match &self.0.pair {
            Pair::P256(pair, random) => pair.sign(random, message).ok()?,
            Pair::Ed25519(pair) => pair.sign(message),
        };
        signature.as_ref().try_into().ok()
    }
}

/// What a PKCS#8 document says that its key is for.
enum KeyKind {
    P256,
    Ed25519,
    Other(&'static str),
}

impl KeyKind {
    /// Object identifiers, with tag and length. A curve is before the identifier of all curves.
    const KNOWN: [(&'static [u8], Self); 11] = [
        (&[6, 3, 0x2b, 0x65, 0x70], Self::Ed25519),
        (&[6, 3, 0x2b, 0x65, 0x71], Self::Other("an Ed448 key")),
        (&[6, 3, 0x2b, 0x65, 0x6e], Self::Other("an X25519 key, which cannot sign")),
        (&[6, 3, 0x2b, 0x65, 0x6f], Self::Other("an X448 key, which cannot sign")),
        (&[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7], Self::P256),
        (&[6, 5, 0x2b, 0x81, 4, 0, 0x22], Self::Other("a P-384 key")),
        (&[6, 5, 0x2b, 0x81, 4, 0, 0x23], Self::Other("a P-521 key")),
        (&[6, 5, 0x2b, 0x81, 4, 0, 0x0a], Self::Other("a secp256k1 key, not a P-256 key")),
        (
            &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1],
            Self::Other("an EC key of another curve, or one without the curve's name"),
        ),
        (&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1], Self::Other("an RSA key")),
        (&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0a], Self::Other("an RSA key")),
    ];

    /// `None`: it is no PKCS#8.
    fn of(der: &[u8]) -> Option<Self> {
        // The identifiers are at the beginning, after two lengths and the version (RFC 5958,
        // section 2).
        let beginning = der.get(..40).unwrap_or(der);
        let known = Self::KNOWN.into_iter();
        let mut found = known.filter(|(id, _)| memmem::find(beginning, id).is_some());
        match (der.first(), found.next()) {
            (Some(0x30), Some((_, kind))) => Some(kind),
            (Some(0x30), None) => Some(Self::Other("a private key of an unknown kind")),
            _ => None,
        }
    }
}

/// Whether a document is too short for a P-256 key with the 65 bytes of an uncompressed public
/// half: without it there are 67 bytes, and a compressed one has 33.
fn has_short_public_half(der: &[u8]) -> bool {
    der.len() < 110
}

/// Two keys with the same thumbprint are the same key.
impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.kid() == other.kid()
    }
}

impl Eq for SigningKey {}

impl fmt::Debug for SigningKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SigningKey({})", self.kid())
    }
}

#[cfg(test)]
mod tests;
