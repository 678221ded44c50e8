use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::FutureExt;
use http::HeaderName;
use http::header::AUTHORIZATION;
use proptest::prelude::*;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
use serde_json::Value;

use super::*;
use crate::config::{Carriers, SessionSection};
use crate::handover::peer::Peer;
use crate::identity::{AppId, Identity, OpenId, UnionId, UserId};
use crate::message::header::reserved::JWT;
use crate::session::Sessions;
use crate::telemetry::metrics::Metrics;

const ISSUER: &str = "https://gateway.example.com/\"\u{5fae}";

fn key(algorithm: &'static rcgen::SignatureAlgorithm) -> SigningKey {
    let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
    SigningKey::from_pkcs8(&pair.serialize_der()).unwrap()
}

fn ed25519() -> SigningKey {
    key(&rcgen::PKCS_ED25519)
}

fn p256() -> SigningKey {
    key(&rcgen::PKCS_ECDSA_P256_SHA256)
}

fn section(key: SigningKey) -> JwtSection {
    JwtSection {
        key: Some(key),
        next_keys: Vec::new(),
        previous_keys: Vec::new(),
        issuer: ISSUER.to_owned(),
        audiences: BTreeMap::new(),
        lifetime: Duration::from_secs(3600),
        header: HeaderName::from_static(JWT),
    }
}

fn seal_key(byte: u8) -> SealKey {
    SealKey::parse(&format!("{byte:02x}").repeat(32)).unwrap()
}

fn signed(section: &JwtSection, clock: &Clock) -> Arc<SignedIdentity> {
    let audiences = vec!["shop".into(), "blog".into()];
    SignedIdentity::carried_over(None, section, audiences, &seal_key(1), clock).unwrap()
}

fn identity(openid: &str) -> Identity {
    Identity {
        app_id: AppId::parse("wx0123456789abcdef").unwrap(),
        openid: OpenId::parse(openid).unwrap(),
        unionid: None,
        user_id: None,
    }
}

struct Store(Sessions);

impl Store {
    fn new(clock: &Clock) -> Self {
        let section = SessionSection {
            ttl: Duration::from_secs(100_000),
            idle_timeout: Duration::from_secs(100_000),
            capacity: 1000,
            carriers: Carriers { header: true, bearer: true, cookie: false },
            header: HeaderName::from_static("x-3rd-session"),
            max_per_user: None,
            seal_keys: Vec::new(),
            jar_capacity: 1 << 20,
            shared: None,
            snapshot: None,
        };
        Self(Sessions::new(&section, clock.clone(), Metrics::new().unwrap(), Peer::default(), 0))
    }

    fn session(&self, identity: Identity) -> Arc<Session> {
        let client = IpAddr::from([192, 0, 2, 1]);
        let created = self.0.create(identity, client, None).now_or_never().unwrap();
        let digest = created.ok().unwrap().0.digest();
        self.0.get(&digest).now_or_never().unwrap().unwrap().unwrap()
    }
}

fn decoded(part: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// The header and the claims of a token whose signature is valid by a public key of `jwks`.
fn verified(token: &HeaderValue, jwks: &OwnResponse) -> (Value, Value) {
    let token = token.to_str().unwrap();
    let token = token.strip_prefix("Bearer ").unwrap_or(token);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, claims) = message.split_once('.').unwrap();
    let header = decoded(header);
    let jwks: Value = serde_json::from_slice(&jwks.body).unwrap();
    let keys = jwks["keys"].as_array().unwrap();
    let jwk = keys.iter().find(|jwk| jwk["kid"] == header["kid"]).unwrap();
    let field = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    assert_eq!(jwk["alg"], header["alg"]);
    let valid = match header["alg"].as_str().unwrap() {
        "ES256" => {
            let point = [vec![4], field("x"), field("y")].concat();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(message.as_bytes(), &signature)
        }
        "EdDSA" => {
            UnparsedPublicKey::new(&ED25519, field("x")).verify(message.as_bytes(), &signature)
        }
        other => panic!("{other}"),
    };
    assert!(valid.is_ok());
    (header, decoded(claims))
}

#[test]
fn a_token_is_valid_and_has_all_claims() {
    let clock = Clock::manual();
    let store = Store::new(&clock);
    let session = store.session(Identity {
        unionid: UnionId::parse("u1"),
        user_id: UserId::parse("\"\\<7>"),
        ..identity("o1")
    });
    for key in [p256(), ed25519()] {
        let section = section(key);
        let signed = signed(&section, &clock);
        let token = signed.value(&session, 1).unwrap();
        assert!(token.is_sensitive());
        let (header, claims) = verified(&token, signed.jwks());
        let key = section.key.as_ref().unwrap();
        let expected = serde_json::json!({
            "alg": key.algorithm().as_str(), "typ": "JWT", "kid": key.kid(),
        });
        assert_eq!(header, expected);
        let iat = clock.wall_millis() / 1000;
        let expected = serde_json::json!({
            "iss": ISSUER, "sub": "o1", "aud": "blog", "iat": iat, "exp": iat + 3600,
            "app_id": "wx0123456789abcdef", "unionid": "u1", "user_id": "\"\\<7>",
            "sid": signed.session_id(session.digest()).unwrap(),
        });
        assert_eq!(claims, expected);
    }
}

#[test]
fn gateways_with_one_seal_key_have_the_same_session_ids() {
    let clock = Clock::manual();
    let store = Store::new(&clock);
    let session = store.session(identity("o1"));
    let of = |section: JwtSection, key| {
        let audiences = vec!["shop".into()];
        let signed = SignedIdentity::carried_over(None, &section, audiences, &key, &clock);
        signed.unwrap().session_id(session.digest()).unwrap()
    };
    let here = of(section(p256()), seal_key(1));
    assert_eq!(of(section(ed25519()), seal_key(1)), here);
    assert_ne!(of(section(p256()), seal_key(2)), here);
}

#[test]
fn a_claim_without_a_value_is_absent() {
    let clock = Clock::manual();
    let signed = signed(&section(ed25519()), &clock);
    let session = Store::new(&clock).session(identity("o1"));
    let (_, claims) = verified(&signed.value(&session, 0).unwrap(), signed.jwks());
    let names: Vec<_> = claims.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["app_id", "aud", "exp", "iat", "iss", "sid", "sub"]);
}

#[test]
fn for_authorization_a_token_is_a_bearer_token() {
    let clock = Clock::manual();
    let signed = signed(&JwtSection { header: AUTHORIZATION, ..section(p256()) }, &clock);
    let session = Store::new(&clock).session(identity("o1"));
    let token = signed.value(&session, 0).unwrap();
    assert!(token.to_str().unwrap().starts_with("Bearer ey"));
    verified(&token, signed.jwks());
}

#[test]
fn a_token_is_used_for_half_of_its_lifetime() {
    let clock = Clock::manual();
    let signed = signed(&section(p256()), &clock);
    let session = Store::new(&clock).session(identity("o1"));
    let first = signed.value(&session, 0).unwrap();
    // ES256 signatures are never the same, but `iat` is rounded down: up to a second is missing.
    clock.advance(Duration::from_secs(1798));
    assert_eq!(signed.value(&session, 0).unwrap(), first);
    clock.advance(Duration::from_secs(2));
    let second = signed.value(&session, 0).unwrap();
    assert_ne!(second, first);
    assert_eq!(signed.value(&session, 0).unwrap(), second);
}

#[test]
fn sessions_and_audiences_have_jwts_of_their_own() {
    let clock = Clock::manual();
    let signed = signed(&section(ed25519()), &clock);
    let store = Store::new(&clock);
    let (one, other) = (store.session(identity("o1")), store.session(identity("o1")));
    let claims =
        |session, audience| verified(&signed.value(session, audience).unwrap(), signed.jwks()).1;
    let of_one = claims(&one, 0);
    assert_eq!(claims(&one, 1)["aud"], "blog");
    assert_eq!(claims(&one, 1)["sid"], of_one["sid"]);
    assert_eq!(claims(&other, 0)["aud"], "shop");
    assert_ne!(claims(&other, 0)["sid"], of_one["sid"]);
    assert_eq!(claims(&one, 0), of_one);
    assert!(signed.value(&one, 2).is_none());
}

#[test]
fn a_step_of_the_wall_clock_ends_the_use_of_a_token() {
    let signed = Times { clock: 5_000, wall: 1_000_900 };
    let is_new = |clock, wall| signed.is_new_at(Times { clock, wall }, 30_000);
    assert!(is_new(5_000, 1_000_900));
    // Slowed down a little, but not before `iat`.
    assert!(is_new(5_000, 1_000_000));
    assert!(is_new(34_999, 1_029_999));
    assert!(!is_new(35_000, 1_000_900));
    assert!(!is_new(5_000, 1_030_000));
    assert!(!is_new(5_000, 999_999));
}

#[test]
fn jwts_are_carried_over_only_if_they_would_be_the_same() {
    let clock = Clock::manual();
    let section = section(p256());
    let before = signed(&section, &clock);
    let session = Store::new(&clock).session(identity("o1"));
    let token = before.value(&session, 0).unwrap();
    let audiences = || vec!["shop".to_owned(), "blog".to_owned()];
    let over = |section: &JwtSection, audiences| {
        SignedIdentity::carried_over(Some(&before), section, audiences, &seal_key(1), &clock)
            .unwrap()
            .value(&session, 0)
            .unwrap()
    };
    assert_eq!(over(&section, audiences()), token);
    assert_ne!(over(&section, vec!["blog".into(), "shop".into()]), token);
    assert_ne!(over(&JwtSection { key: Some(p256()), ..section.clone() }, audiences()), token);
    let published = JwtSection { next_keys: vec![ed25519()], ..section.clone() };
    assert_eq!(over(&published, audiences()), token);
    let other = JwtSection { issuer: "other".to_owned(), ..section.clone() };
    assert_ne!(over(&other, audiences()), token);
}

#[test]
fn all_keys_are_published_in_order_and_no_private_part_of_them() {
    let [current, next, previous] = [p256(), ed25519(), p256()];
    let kids = [&current, &next, &previous].map(|key| key.kid().to_owned());
    let section =
        JwtSection { next_keys: vec![next], previous_keys: vec![previous], ..section(current) };
    let response = signed(&section, &Clock::manual()).jwks().clone();
    let jwks: Value = serde_json::from_slice(&response.body).unwrap();
    let keys = jwks["keys"].as_array().unwrap();
    assert_eq!(keys.iter().map(|key| key["kid"].as_str().unwrap()).collect::<Vec<_>>(), kids);
    for key in keys {
        let names: Vec<_> = key.as_object().unwrap().keys().map(String::as_str).collect();
        match key["kty"].as_str().unwrap() {
            "EC" => assert_eq!(names, ["alg", "crv", "kid", "kty", "use", "x", "y"]),
            _ => assert_eq!(names, ["alg", "crv", "kid", "kty", "use", "x"]),
        }
        assert_eq!(key["use"], "sig");
    }
    let values: Vec<_> = response.values(&CACHE_CONTROL).collect();
    assert_eq!(values, ["max-age=300"]);
}

#[test]
fn concurrent_requests_of_a_session_have_the_same_token() {
    let clock = Clock::manual();
    let signed = signed(&section(p256()), &clock);
    let session = Store::new(&clock).session(identity("o1"));
    let start = std::sync::Barrier::new(8);
    let tokens: Vec<_> = std::thread::scope(|scope| {
        let one = || {
            start.wait();
            signed.value(&session, 0).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(tokens.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn the_cache_has_a_limit() {
    let signed = signed(&section(p256()), &Clock::manual());
    assert_eq!(signed.jwts.policy().max_capacity(), Some(100_000));
}

proptest! {
    #[test]
    fn claims_are_json_for_all_legal_ids(
        openid in "[A-Za-z0-9_-]{1,128}",
        unionid in proptest::option::of("[A-Za-z0-9_-]{1,128}"),
        user_id in proptest::option::of("[!-~]{1,256}"),
        issuer in "\\PC{1,64}",
    ) {
        let clock = Clock::manual();
        let signed = signed(&JwtSection { issuer: issuer.clone(), ..section(ed25519()) }, &clock);
        let session = Store::new(&clock).session(Identity {
            unionid: unionid.as_deref().and_then(UnionId::parse),
            user_id: user_id.as_deref().and_then(UserId::parse),
            ..identity(&openid)
        });
        let (_, claims) = verified(&signed.value(&session, 0).unwrap(), signed.jwks());
        prop_assert_eq!(&claims["iss"], &Value::from(issuer));
        prop_assert_eq!(&claims["sub"], &Value::from(openid));
        prop_assert_eq!(claims.get("unionid").cloned(), unionid.map(Value::from));
        prop_assert_eq!(claims.get("user_id").cloned(), user_id.map(Value::from));
    }
}

/// Run with `--ignored --nocapture` in a release build.
#[test]
#[ignore = "measures"]
fn measure() {
    let clock = Clock::system();
    let store = Store::new(&clock);
    for key in [p256(), ed25519()] {
        let name = key.algorithm().as_str();
        let signed = signed(&section(key), &clock);
        let session = store.session(identity("oAbCdEfGhIjKlMnOpQrStUvWxYz0"));
        let time = |count: u32, work: &dyn Fn()| {
            let start = std::time::Instant::now();
            (0..count).for_each(|_| work());
            start.elapsed() / count
        };
        let signing = time(2000, &|| {
            let now = Times::now(&clock);
            assert!(signed.sign(&session, 0, now).is_some());
        });
        let hit = time(1_000_000, &|| assert!(signed.value(&session, 0).is_some()));
        let length = signed.value(&session, 0).unwrap().len();
        println!("{name}: signing {signing:?}, hit {hit:?}, {length} bytes");
    }
}
