//! The identity as a JWT (RFC 7519), for services that verify it.
//!
//! A JWT is signed once for a session and an audience, and used for half of its lifetime: so a
//! service has at least the other half to verify it. The cache of JWTs has a limit. This module
//! does not know where the JWT is written.
//!
//! A JWT ends by the wall clock, which services have too, but the wall clock may be changed. So a
//! JWT is used only while it is new by both clocks.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{CACHE_CONTROL, HeaderValue};
use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde::Serialize;
use sha2::Sha256;

use crate::clock::{Clock, millis};
use crate::config::JwtSection;
use crate::identity::secret::SealKey;
use crate::identity::signing_key::{Jwk, SigningKey};
use crate::identity::token::TokenDigest;
use crate::identity::{UnionId, UserId};
use crate::message::own_response::OwnResponse;
use crate::session::{DigestHash, Session};

/// The path of the public keys on the listeners that clients do not reach.
pub const JWKS_PATH: &str = "/.well-known/jwks.json";

/// Maximum number of cached JWTs, each of about 1 KiB. When full, the least recently used one is
/// dropped.
const CAPACITY: u64 = 100_000;

/// Signs identities as one configuration requires.
pub struct SignedIdentity {
    section: JwtSection,
    audiences: Vec<String>,
    /// `Bearer ` if it is written, and the encoded header with its dot.
    beginning: String,
    jwks: OwnResponse,
    jwts: Cache<Key, CachedJwt, DigestHash>,
    /// Makes `sid`. Set up once; each one is made with a copy.
    session_ids: Hmac<Sha256>,
    clock: Clock,
}

/// A session, and the index of an audience.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key(TokenDigest, u32);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let Some(word) = self.0.as_bytes().first_chunk() {
            // Spread over all bits, of which the cache uses both ends.
            let audience = u64::from(self.1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            state.write_u64(u64::from_le_bytes(*word) ^ audience);
        }
    }
}

/// A JWT in the cache.
#[derive(Clone)]
struct CachedJwt {
    value: HeaderValue,
    signed: Times,
}

/// A moment by both clocks, in milliseconds.
#[derive(Clone, Copy)]
struct Times {
    clock: u64,
    /// Since 1970.
    wall: u64,
}

impl Times {
    fn now(clock: &Clock) -> Self {
        Self { clock: clock.now_millis(), wall: clock.wall_millis() }
    }

    /// The wall clock's whole seconds.
    fn seconds(self) -> u64 {
        self.wall / 1000
    }

    /// Whether a JWT of this moment is still used at the moment `now`, half a lifetime being
    /// `half` milliseconds. It is not if the wall clock was set back before `iat`: a service may
    /// then refuse it.
    fn is_new_at(self, now: Self, half: u64) -> bool {
        let issued = self.seconds() * 1000;
        now.clock < self.clock.saturating_add(half)
            && (issued..issued.saturating_add(half)).contains(&now.wall)
    }
}

/// The claims of a JWT. A claim without a value is absent.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    /// The openid.
    sub: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    app_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    unionid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    sid: &'a str,
}

impl SignedIdentity {
    /// `audiences` are those of the upstreams, by their index, followed by those of routes without
    /// one. `key` is the seal key, or a key of the process. The JWTs of `previous` are still used,
    /// unless they would be different now. `None` cannot occur.
    pub fn carried_over(
        previous: Option<&Arc<Self>>,
        section: &JwtSection,
        audiences: Vec<String>,
        key: &SealKey,
        clock: &Clock,
    ) -> Option<Arc<Self>> {
        let session_ids = Hmac::new_from_slice(&*key.derive(b"wxgate sid")?).ok()?;
        let same = previous.filter(|previous| {
            signs_alike(&previous.section, section) && previous.audiences == audiences
        });
        let bearer = if section.is_bearer() { "Bearer " } else { "" };
        let header = section.key.as_ref().map_or_else(String::new, encoded_header);
        let jwts = || {
            Cache::builder()
                .max_capacity(CAPACITY)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(section.lifetime / 2)
                .build_with_hasher(DigestHash)
        };
        Some(Arc::new(Self {
            section: section.clone(),
            audiences,
            beginning: format!("{bearer}{header}."),
            jwks: jwks(section),
            jwts: same.map_or_else(jwts, |same| same.jwts.clone()),
            session_ids,
            clock: clock.clone(),
        }))
    }

    /// The value of `identity.jwt.header` for a session. `None`: there is no such audience, or signing
    /// failed; the request must then not be forwarded.
    pub fn value(&self, session: &Session, audience: usize) -> Option<HeaderValue> {
        let key = Key(*session.digest(), u32::try_from(audience).ok()?);
        let now = Times::now(&self.clock);
        let half = millis(self.section.lifetime) / 2;
        match self.jwts.get(&key) {
            Some(jwt) if jwt.signed.is_new_at(now, half) => Some(jwt.value),
            _ => self.signed(key, session, now, half),
        }
    }

    /// Signs a JWT, unless another request of the session has just done so.
    #[cold]
    fn signed(&self, key: Key, session: &Session, now: Times, half: u64) -> Option<HeaderValue> {
        let result = self.jwts.entry(key).and_compute_with(|entry| match entry {
            Some(entry) if entry.value().signed.is_new_at(now, half) => Op::Nop,
            _ => self
                .sign(session, key.1, now)
                .map_or(Op::Remove, |value| Op::Put(CachedJwt { value, signed: now })),
        });
        match result {
            CompResult::Inserted(entry)
            | CompResult::ReplacedWith(entry)
            | CompResult::Unchanged(entry) => Some(entry.into_value().value),
            CompResult::Removed(_) | CompResult::StillNone(_) => None,
        }
    }

    fn sign(&self, session: &Session, audience: u32, now: Times) -> Option<HeaderValue> {
        let signing = self.section.key.as_ref()?;
        let (identity, iat) = (&session.identity, now.seconds());
        let claims = Claims {
            iss: &self.section.issuer,
            sub: identity.openid.as_str(),
            aud: self.audiences.get(usize::try_from(audience).ok()?)?,
            iat,
            exp: iat.saturating_add(self.section.lifetime.as_secs()),
            app_id: identity.app_id.as_str(),
            unionid: identity.unionid.as_ref().map(UnionId::as_str),
            user_id: identity.user_id.as_ref().map(UserId::as_str),
            sid: &self.session_id(session.digest())?,
        };
        let claims = serde_json::to_vec(&claims).ok()?;
        // For the claims, a dot, and the signature.
        let rest = claims.len().div_ceil(3) * 4 + 1 + 86;
        let mut value = String::with_capacity(self.beginning.len() + rest);
        value.push_str(&self.beginning);
        URL_SAFE_NO_PAD.encode_string(claims, &mut value);
        let message = value.strip_prefix("Bearer ").unwrap_or(&value);
        let signature = signing.sign(message.as_bytes())?;
        value.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut value);
        let mut value = HeaderValue::try_from(value).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The same for all JWTs of a session, on all gateways with the same seal key. Nobody can
    /// compute the session's digest from it. `None` cannot occur.
    fn session_id(&self, digest: &TokenDigest) -> Option<String> {
        let hmac = self.session_ids.clone().chain_update(digest.as_bytes());
        Some(URL_SAFE_NO_PAD.encode(hmac.finalize().into_bytes().get(..16)?))
    }

    /// Frees the memory of JWTs that are not used any more.
    pub fn maintain(&self) {
        self.jwts.run_pending_tasks();
    }

    /// The public keys, as a response.
    pub fn jwks(&self) -> &OwnResponse {
        &self.jwks
    }
}

/// Whether two sections sign the same JWTs. Other keys that are published make no difference.
fn signs_alike(one: &JwtSection, other: &JwtSection) -> bool {
    let of = |section: &JwtSection| JwtSection {
        next_keys: Vec::new(),
        previous_keys: Vec::new(),
        audiences: BTreeMap::new(),
        ..section.clone()
    };
    of(one) == of(other)
}

/// The header of all JWTs of a key, encoded (RFC 7515, section 4.1).
fn encoded_header(key: &SigningKey) -> String {
    let (algorithm, kid) = (key.algorithm().as_str(), key.kid());
    let header = format!("{{\"alg\":\"{algorithm}\",\"typ\":\"JWT\",\"kid\":\"{kid}\"}}");
    URL_SAFE_NO_PAD.encode(header)
}

/// A JWK Set (RFC 7517, section 5).
fn jwks(section: &JwtSection) -> OwnResponse {
    #[derive(Serialize)]
    struct Jwks<'a> {
        keys: Vec<&'a Jwk>,
    }
    let keys = section.keys().map(SigningKey::jwk).collect();
    let mut response = OwnResponse::json(200, &Jwks { keys });
    response.replace(CACHE_CONTROL, HeaderValue::from_static("max-age=300"));
    response
}

#[cfg(test)]
mod tests;
