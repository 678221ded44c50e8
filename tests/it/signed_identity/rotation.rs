//! Rotation of keys by reloads.

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use serde_json::Value;
use wxgate::config::{Config, Loaded, Secrets};

use super::{Keys, jwks, token, verify};
use crate::harness::Stack;

fn kids(jwks: &Value) -> Vec<&str> {
    jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap()).collect()
}

/// A service that has fetched the keys one step ago verifies all tokens of this step.
#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_refused_while_a_key_is_replaced() {
    let keys = Keys::new();
    keys.add("a", &PKCS_ECDSA_P256_SHA256).add("b", &PKCS_ECDSA_P256_SHA256);
    let stack = Stack::start_with(&keys.section("a", &[], &[])).await;
    let session = stack.login("alice").await;
    let next = async || token(&stack.get("/").token(&session).forwarded().await);
    let (mut known, mut sent) = (jwks(&stack).await, next().await);
    let steps = [
        (keys.section("a", &["b"], &[]), "a"),
        (keys.section("b", &[], &["a"]), "b"),
        (keys.section("b", &[], &[]), "b"),
    ];
    let kid = |token: &str, jwks: &Value| verify(token, jwks).unwrap().0["kid"].clone();
    let (kid_a, mut kid_b) = (kid(&sent, &known), Value::Null);
    for (section, signing) in steps {
        assert!(stack.reload(&section).await);
        let fetched = jwks(&stack).await;
        let token = next().await;
        let signed_by = kid(&token, &known);
        assert_eq!(signed_by, kid(&token, &fetched));
        if signing == "a" {
            assert_eq!(signed_by, kid_a);
            kid_b = fetched["keys"][1]["kid"].clone();
        } else {
            assert_eq!(signed_by, kid_b);
        }
        assert!(verify(&sent, &fetched).is_some() || kids(&fetched).len() == 1);
        (known, sent) = (fetched, token);
    }
    assert_eq!(kids(&known), [kid_b.as_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_replaces_tokens_only_if_they_would_be_different() {
    let keys = Keys::new();
    keys.add("a", &PKCS_ECDSA_P256_SHA256).add("b", &PKCS_ED25519);
    let long = "identity.jwt.lifetime = \"1h\"\n";
    let stack = Stack::start_with(&format!("{}{long}", keys.section("a", &[], &[]))).await;
    let session = stack.login("alice").await;
    let next = async || token(&stack.get("/").token(&session).forwarded().await);
    let first = next().await;
    let published = keys.section("a", &["b"], &[]);
    assert!(stack.reload(&format!("session.ttl = \"3h\"\n{published}{long}")).await);
    assert_eq!(next().await, first);
    // The algorithm changes, too.
    let other = keys.section("b", &[], &["a"]);
    let eddsa = "identity.jwt.algorithm = \"EdDSA\"\n";
    assert!(stack.reload(&format!("{other}{long}{eddsa}")).await);
    let second = next().await;
    let published = jwks(&stack).await;
    assert_eq!(verify(&second, &published).unwrap().0["alg"], "EdDSA");
    assert_eq!(verify(&first, &published).unwrap().0["alg"], "ES256");
    // A broken file: the running configuration goes on.
    std::fs::write(keys.path("b"), "no key").unwrap();
    assert!(!stack.order_reload().await);
    assert_eq!(next().await, second);
    // A new key in the same file.
    keys.add("b", &PKCS_ED25519);
    assert!(stack.order_reload().await);
    assert_ne!(next().await, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_warns_of_a_key_that_services_do_not_know() {
    let keys = Keys::new();
    keys.add("a", &PKCS_ECDSA_P256_SHA256).add("b", &PKCS_ECDSA_P256_SHA256);
    let stack = Stack::start_with("").await;
    let warnings = |section: &str, running: Option<&Config>| {
        stack.write_config(section);
        let Loaded { config, files } = Config::read(&stack.config_file(), Secrets::Load, running);
        let config = config.unwrap();
        assert_eq!(files.find().contains(&keys.path("a")), section.contains("/a\""));
        let is_of_mode = |warning: &&String| warning.contains("readable by every user");
        let found = config.warnings.iter().filter(|warning| !is_of_mode(warning));
        let found = found.filter_map(|warning| Some(warning.split_once("jwt.")?.1.to_owned()));
        (found.collect::<Vec<_>>(), config)
    };
    let (none, without) = warnings("", None);
    assert_eq!(none, [""; 0]);
    let (none, running) = warnings(&keys.section("a", &[], &[]), Some(&without));
    assert_eq!(none, [""; 0], "the first key");
    for (section, expected) in [
        (keys.section("a", &["b"], &[]), vec![]),
        (keys.section("b", &[], &["a"]), vec!["key: services that have fetched"]),
        (keys.section("b", &[], &[]), vec!["key: services that have fetched", "key: the key \""]),
    ] {
        let (found, _) = warnings(&section, Some(&running));
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(found.iter().zip(expected).all(|(one, start)| one.starts_with(start)), "{found:?}");
    }
    for published in [keys.section("a", &["b"], &[]), keys.section("a", &[], &["b"])] {
        let (_, running) = warnings(&published, None);
        assert_eq!(warnings(&keys.section("b", &[], &["a"]), Some(&running)).0, [""; 0]);
    }
}
