//! The signed identity: what services get, and how they verify it.

mod jwks;
mod rotation;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm};
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::harness::client::{self, Connection};
use crate::harness::http2_service::Http2Service;
use crate::harness::upstream::{Received, Reply, Step, Upstream};
use crate::harness::{APP, Stack, canary, openid};

pub const ISSUER: &str = "https://gateway.test";

pub const JWKS: &str = "/.well-known/jwks.json";

/// Files with keys.
pub struct Keys(tempfile::TempDir);

impl Keys {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Makes a key.
    pub fn add(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> &Self {
        let pem = rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem();
        canary::plant(pem.lines().nth(1).unwrap());
        std::fs::write(self.path(name), pem).unwrap();
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The keys of `[identity.jwt]` for the file that signs, the next ones, and the previous ones.
    /// They are keys of the root, so they must come before any section.
    pub fn section(&self, key: &str, next: &[&str], previous: &[&str]) -> String {
        let file = |name: &&str| format!("{{ file = \"{}\" }}", self.path(name).display());
        let list = |names: &[&str]| names.iter().map(file).collect::<Vec<_>>().join(", ");
        format!(
            "identity.jwt.issuer = \"{ISSUER}\"\nidentity.jwt.key = {}\n\
             identity.jwt.next_keys = [{}]\nidentity.jwt.previous_keys = [{}]\n",
            file(&key),
            list(next),
            list(previous)
        )
    }
}

/// A stack with an ES256 key, and these changes to its configuration.
pub async fn start(changes: &str) -> Stack {
    let keys = Keys::new();
    let section = keys.add("key", &PKCS_ECDSA_P256_SHA256).section("key", &[], &[]);
    // The files are read once: there is no reload.
    Stack::start_with(&format!("{section}\n{changes}")).await
}

pub async fn jwks(stack: &Stack) -> Value {
    client::get(stack.admin, JWKS).await.json()
}

/// The token of a request that has exactly one, under any spelling of the header's name.
pub fn token(received: &Received) -> String {
    let tokens = received.folded("x-wxgate-jwt");
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    canary::plant(tokens[0].rsplit('.').next().unwrap());
    tokens[0].to_owned()
}

fn decoded(part: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// Verifies the signature of a token, as a service does, and returns its header and claims. `None`:
/// its key is not among the public keys, or the signature is wrong.
pub fn verify(token: &str, jwks: &Value) -> Option<(Value, Value)> {
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, claims) = message.split_once('.').unwrap();
    let header = decoded(header);
    let keys = jwks["keys"].as_array().unwrap();
    let jwk = keys.iter().find(|jwk| jwk["kid"] == header["kid"])?;
    assert_eq!(jwk["alg"], header["alg"]);
    let field = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    let (message, signature) = (message.as_bytes(), URL_SAFE_NO_PAD.decode(signature).unwrap());
    let verified = match jwk["crv"].as_str().unwrap() {
        "P-256" => {
            let point = [vec![4], field("x"), field("y")].concat();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, &signature)
        }
        "Ed25519" => UnparsedPublicKey::new(&ED25519, field("x")).verify(message, &signature),
        other => panic!("{other}"),
    };
    verified.ok().map(|()| (header, decoded(claims)))
}

/// The claims of a token that is valid now.
pub async fn claims(stack: &Stack, token: &str) -> Value {
    verify(token, &jwks(stack).await).expect("a valid signature").1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_gets_a_token_that_it_can_verify() {
    for (algorithm, name) in [(&PKCS_ECDSA_P256_SHA256, "ES256"), (&PKCS_ED25519, "EdDSA")] {
        let keys = Keys::new();
        let section = keys.add("key", algorithm).section("key", &[], &[]);
        let more = format!("identity.jwt.algorithm = \"{name}\"\nidentity.jwt.lifetime = \"10m\"");
        let stack = Stack::start_with(&format!("{section}{more}")).await;
        let session = stack.login("unionbob").await;
        let received = stack
            .get("/")
            .token(&session)
            .header("X-Wxgate-Jwt", "forged")
            .header("x_wxgate_jwt", "forged")
            .forwarded()
            .await;
        let (header, mut claims) = verify(&token(&received), &jwks(&stack).await).unwrap();
        let kid = jwks(&stack).await["keys"][0]["kid"].clone();
        assert_eq!(header, json!({ "alg": name, "typ": "JWT", "kid": kid }));
        let sid = claims.as_object_mut().unwrap().remove("sid").unwrap();
        assert_eq!(sid.as_str().unwrap().len(), 22);
        let iat = stack.clock.wall_millis() / 1000;
        let expected = json!({
            "iss": ISSUER,
            "sub": openid("unionbob"),
            "aud": "recorder",
            "iat": iat,
            "exp": iat + 600,
            "app_id": APP,
            "unionid": wxgate::wechat::sandbox::unionid("unionbob").unwrap(),
        });
        assert_eq!(claims, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_its_token_for_half_of_a_lifetime() {
    let stack = start("identity.jwt.lifetime = \"1h\"").await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    let next = async |session| token(&stack.get("/").token(session).forwarded().await);
    let first = next(&alice).await;
    assert_ne!(next(&bob).await, first);
    // `iat` is rounded down, so a token may be replaced up to a second before its half.
    stack.clock.advance(Duration::from_secs(30 * 60 - 1));
    assert_eq!(next(&alice).await, first);
    stack.clock.advance(Duration::from_secs(1));
    let second = next(&alice).await;
    let (before, after) = (claims(&stack, &first).await, claims(&stack, &second).await);
    assert_eq!(after["iat"], before["iat"].as_u64().unwrap() + 30 * 60);
    assert_eq!((&after["sid"], &after["sub"]), (&before["sid"], &before["sub"]));
    assert_eq!(next(&alice).await, second);
}

/// An attempt can take longer than a token is valid.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_has_a_token_that_has_not_ended() {
    let stack = start("").await;
    let session = stack.login("alice").await;
    let clock = stack.clock.clone();
    let is_first = AtomicBool::new(true);
    stack.upstream.reply(move |_| {
        if is_first.swap(false, Ordering::Relaxed) {
            clock.advance(Duration::from_secs(60));
            return Reply::Steps(vec![Step::Reset]);
        }
        Reply::ok("", "")
    });
    assert_eq!(stack.get("/").token(&session).send().await.status, 200);
    let received = stack.upstream.requests();
    assert_eq!(received.len(), 2);
    let first = claims(&stack, &token(&received[0])).await;
    let second = claims(&stack, &token(&received[1])).await;
    assert!(second["iat"].as_u64() >= first["exp"].as_u64(), "{first} {second}");
    assert_eq!((&second["sid"], &second["aud"]), (&first["sid"], &first["aud"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_upstream_is_an_audience_of_its_own() {
    let other = Upstream::start().await;
    let stack = start(&format!(
        r#"
        identity.jwt.audience.shop = "https://shop.test"
        [[upstream]]
        name = "recorder"
        servers = ["{{upstream}}"]
        [[upstream]]
        name = "shop"
        servers = ["{}"]
        [[route]]
        path = "/"
        upstream = "recorder"
        [[route]]
        path = "/shop"
        upstream = "shop"
        "#,
        other.address
    ))
    .await;
    let session = stack.login("alice").await;
    let of_recorder = token(&stack.get("/").token(&session).forwarded().await);
    assert_eq!(stack.get("/shop").token(&session).send().await.status, 200);
    let of_shop = token(&other.requests()[0]);
    let (of_recorder, of_shop) =
        (claims(&stack, &of_recorder).await, claims(&stack, &of_shop).await);
    assert_eq!(of_recorder["aud"], "recorder");
    assert_eq!(of_shop["aud"], "https://shop.test");
    assert_eq!(of_recorder["sid"], of_shop["sid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_authorization_the_token_replaces_the_clients() {
    let stack = start(
        r#"
        identity.jwt.header = "Authorization"
        session.carriers = ["header"]
        "#,
    )
    .await;
    let session = stack.login("alice").await;
    for forged in ["Basic YTpi", "Bearer forged"] {
        let request = stack.get("/").token(&session).header("Authorization", forged);
        let received = request.forwarded().await;
        let values = received.folded("authorization");
        assert_eq!(values.len(), 1, "{values:?}");
        let token = values[0].strip_prefix("Bearer ").unwrap();
        assert_eq!(claims(&stack, token).await["sub"], openid("alice"));
        assert_eq!(received.folded("x-wxgate-jwt"), [""; 0]);
        for path in ["/none", "/optional"] {
            let received = stack.get(path).header("Authorization", forged).forwarded().await;
            assert_eq!(received.folded("authorization"), [""; 0], "{path}");
        }
    }
    let request = stack.get("/").bearer(&session);
    request.send().await.assert_error(401, "missing_token", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_session_has_no_token() {
    let stack = start("").await;
    let session = stack.login("alice").await;
    for request in [
        stack.get("/optional"),
        stack.get("/none"),
        stack.get("/none").token(&session),
        stack.get("/none").header("X_Wxgate_JWT", "forged"),
    ] {
        assert_eq!(request.forwarded().await.folded("x-wxgate-jwt"), [""; 0]);
    }
    token(&stack.get("/optional").token(&session).forwarded().await);
    let response = stack.post("/logout").token(&session).send().await;
    assert_eq!(response.status, 204);
    let response = stack.get("/").token(&session).send().await;
    response.assert_error(401, "session_expired", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_cannot_show_a_token_to_the_client() {
    let stack = start("").await;
    let session = stack.login("alice").await;
    stack.upstream.reply(|_| Reply::ok("X-Wxgate-Jwt: a\r\nx_wxgate_jwt: b\r\n", "hello"));
    let response = stack.get("/").token(&session).send().await;
    assert_eq!(response.status, 200);
    assert_eq!([response.all("x-wxgate-jwt"), response.all("x_wxgate_jwt")], [[""; 0]; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_http_2_gets_the_token() {
    let mut service = Http2Service::start().await;
    let stack = start(&service.section("")).await;
    let session = stack.login("alice").await;
    let mut connection = Connection::open(stack.gateway).await;
    let request = stack.get("/").token(&session).header("x_wxgate_jwt", "forged");
    connection.send(&request.bytes()).await;
    let call = service.call().await;
    let names = call.request.headers().keys().filter(|name| name.as_str().contains("jwt"));
    assert_eq!(names.collect::<Vec<_>>(), ["x-wxgate-jwt"]);
    let token = call.request.headers()["x-wxgate-jwt"].to_str().unwrap().to_owned();
    call.echo().await;
    assert_eq!(connection.response(false).await.status, 200);
    assert_eq!(claims(&stack, &token).await["sub"], openid("alice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_handshake_has_the_token() {
    let stack = start(
        r#"
        [[route]]
        path = "/"
        upstream = "recorder"
        websocket = true
        "#,
    )
    .await;
    let accepted: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stack.upstream.reply(|_| Reply::Echo(accepted.to_vec()));
    let session = stack.login("alice").await;
    let request = stack
        .get("/chat")
        .token(&session)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&request.bytes()).await;
    assert_eq!(connection.response(false).await.status, 101);
    let token = token(&stack.upstream.requests()[0]);
    assert_eq!(claims(&stack, &token).await["sub"], openid("alice"));
}
