//! `[identity.jwt]`: which keys are read, and what else is rejected.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm};
use wxgate::config::{Config, Problem, Secrets};

/// A directory with files of keys.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        for (name, algorithm) in [
            ("p256", &PKCS_ECDSA_P256_SHA256),
            ("other", &PKCS_ECDSA_P256_SHA256),
            ("ed25519", &PKCS_ED25519),
            ("p384", &PKCS_ECDSA_P384_SHA384),
        ] {
            files.add(name, &pem(algorithm));
        }
        files
    }

    fn add(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, section: &str, secrets: Secrets) -> Result<Vec<String>, Vec<String>> {
        let smallest = fs::read_to_string("tests/config/valid/smallest.toml").unwrap();
        fs::write(self.path("secret"), "0123456789abcdef0123456789abcdef").unwrap();
        let text = format!("{smallest}\n[identity.jwt]\n{section}\n");
        let directory = self.0.path().display().to_string();
        let text = text.replace("{dir}", &directory);
        let shown = |problem: Problem<'_>| {
            format!("{}: {} | {}", problem.key, problem.message, problem.help)
        };
        match Config::parse("file", &text, secrets) {
            Ok(config) => Ok(config.warnings),
            Err(problems) => Err(problems.iter().map(shown).collect()),
        }
    }

    /// The problems of a section, with the key `p256` unless it has another.
    fn problems(&self, section: &str) -> Vec<String> {
        let key = if section.contains("key = ") { "" } else { "key = { file = \"{dir}/p256\" }" };
        let section = format!("{key}\nissuer = \"https://wxgate\"\n{section}");
        let mut problems = self.load(&section, Secrets::Load).err().unwrap_or_default();
        // Of the smallest file.
        problems.retain(|problem| problem.starts_with("identity.jwt"));
        problems
    }
}

fn pem(algorithm: &'static SignatureAlgorithm) -> String {
    rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem()
}

fn block(label: &str, base64: &str) -> String {
    format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n")
}

#[test]
fn a_file_without_a_usable_key_is_named_with_what_it_has() {
    const EC: &str = "make a key with: openssl genpkey -algorithm EC -pkeyopt \
                      ec_paramgen_curve:P-256 -out FILE";
    let files = Files::new();
    let certificate = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let public = rcgen::KeyPair::generate().unwrap().public_key_pem();
    // The older formats have lengths that are not checked here.
    for (content, expected) in [
        (pem(&PKCS_ECDSA_P384_SHA384), format!("contains a P-384 key | {EC}")),
        (
            block("PRIVATE KEY", "MIIBVAIBADANBgkqhkiG9w0BAQEFAASCAT4wggE6AgEAAkEA"),
            format!("contains an RSA key | {EC}"),
        ),
        (
            block("PRIVATE KEY", "MC4CAQAwBQYDK2VuBCIEIGARuSLxyD9gHVF5zjSC5Pwh+2Nr"),
            format!("contains an X25519 key, which cannot sign | {EC}"),
        ),
        (
            block("PRIVATE KEY", "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg"),
            format!("contains a P-256 key whose public half is missing or compressed | {EC}"),
        ),
        (block("RSA PRIVATE KEY", "MIIBOgIBAAJB"), format!("contains an RSA key | {EC}")),
        (
            block("EC PRIVATE KEY", "MHcCAQEEIIq1a8rF"),
            "contains a private key that is not PKCS#8, but SEC 1 | convert it with: openssl \
             pkcs8 -topk8 -nocrypt -in FILE -out NEW_FILE"
                .to_owned(),
        ),
        (
            block("ENCRYPTED PRIVATE KEY", "MIGbMFcGCSqG"),
            "contains a private key with a passphrase | remove it with: openssl pkey -in FILE -out \
             NEW_FILE"
                .to_owned(),
        ),
        (certificate.cert.pem(), "contains no private key: it is a certificate | ".to_owned()),
        (public, "contains no private key: it is a public key | ".to_owned()),
        ("not a key".to_owned(), "contains no private key | ".to_owned()),
    ] {
        files.add("odd", &content);
        let odd = "{ file = \"{dir}/odd\" }";
        for (section, key) in [
            (format!("key = {odd}"), "key"),
            (format!("next_keys = [{odd}]"), "next_keys"),
            (format!("previous_keys = {odd}"), "previous_keys"),
        ] {
            assert_eq!(files.problems(&section), [format!("identity.jwt.{key}: {expected}")]);
        }
    }
    let problems = files.problems("key = { file = \"{dir}/missing\" }");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("identity.jwt.key: "), "{problems:?}");
}

#[test]
fn the_key_fits_the_algorithm_and_the_others_may_be_of_either() {
    let files = Files::new();
    let others = "next_keys = [{ file = \"{dir}/other\" }]\n\
                  previous_keys = [{ file = \"{dir}/EITHER\" }]";
    for (key, other, algorithm) in [("p256", "ed25519", "ES256"), ("ed25519", "p256", "EdDSA")] {
        let key = format!("key = {{ file = \"{{dir}}/{key}\" }}");
        let others = others.replace("EITHER", other);
        let section = |algorithm| format!("algorithm = \"{algorithm}\"\n{key}\n{others}");
        assert_eq!(files.problems(&section(algorithm)), [""; 0]);
        let wrong = if algorithm == "ES256" { "EdDSA" } else { "ES256" };
        let needed = if algorithm == "ES256" { "Ed25519" } else { "P-256" };
        assert_eq!(
            files.problems(&section(wrong)),
            [format!(
                "identity.jwt.key: contains a key for {algorithm}, but {needed} is needed | or set \
                 algorithm = \"{algorithm}\""
            )]
        );
    }
}

#[test]
fn a_key_that_is_listed_twice_is_rejected() {
    let files = Files::new();
    let [p256, other] = ["p256", "other"].map(|name| format!("{{ file = \"{{dir}}/{name}\" }}"));
    for (section, key, first) in [
        (format!("next_keys = [{p256}]"), "next_keys", "key"),
        (format!("previous_keys = [{other}, {p256}]"), "previous_keys", "key"),
        (format!("next_keys = [{other}]\nprevious_keys = {other}"), "previous_keys", "next_keys"),
        (format!("next_keys = [{other}, {other}]"), "next_keys", "next_keys"),
    ] {
        assert_eq!(
            files.problems(&section),
            [format!(
                "identity.jwt.{key}: this key is listed twice | also in identity.jwt.{first}"
            )]
        );
    }
}

#[test]
fn values_out_of_bounds_are_rejected() {
    const AUDIENCE: &str = "must be 1 to 256 bytes, without whitespace and control characters | ";
    let files = Files::new();
    let long = "x".repeat(257);
    for (section, expected) in [
        ("lifetime = \"9s\"", "lifetime: must be whole seconds, from 10s to 1h | ".to_owned()),
        ("lifetime = \"10500ms\"", "lifetime: must be whole seconds, from 10s to 1h | ".to_owned()),
        ("lifetime = \"61m\"", "lifetime: must be whole seconds, from 10s to 1h | ".to_owned()),
        ("audience.shop = \"a b\"", format!("audience.shop: {AUDIENCE}")),
        ("audience.shop = \"\"", format!("audience.shop: {AUDIENCE}")),
        (
            "algorithm = \"RS256\"",
            "algorithm: expected one of \"ES256\", \"EdDSA\", found \"RS256\" | ".to_owned(),
        ),
        (
            "header = \"X-Request-Id\"",
            "header: \"x-request-id\" already has another meaning | choose another name".to_owned(),
        ),
        (
            "header = \"Authorization\"",
            "header: services get the signed identity in it, so clients cannot send their token in it | \
             remove \"bearer\" from session.carriers, which has it by default"
                .to_owned(),
        ),
        ("nextkeys = []", "nextkeys: unknown key | did you mean \"next_keys\"?".to_owned()),
        (
            "key = \"{dir}/p256\"",
            "key: keys must not be written in this file: write { file = \"/path\" } | ".to_owned(),
        ),
        ("key = { env = \"KEY\" }", "key: keys are read from files only: write { file = \"/path\" } | ".to_owned()),
    ] {
        assert_eq!(files.problems(section), [format!("identity.jwt.{expected}")]);
    }
    let section = format!("audience.shop = \"{long}\"");
    assert_eq!(files.problems(&section), [format!("identity.jwt.audience.shop: {AUDIENCE}")]);
    let problems = files.load("", Secrets::Load).unwrap_err();
    for expected in [
        "identity.jwt.key: is missing | write { file = \"/path\" }",
        "identity.jwt.issuer: is missing | such as \"https://api.example.com\"",
    ] {
        let expected = expected.to_owned();
        assert!(problems.contains(&expected), "{problems:?}");
    }
}

#[test]
fn an_audience_belongs_to_an_upstream_or_to_a_route_without_one() {
    let files = Files::new();
    let section = "key = { file = \"p256\" }\nissuer = \"i\"\n\
                   audience = { nothing = \"a\", \"/decided\" = \"b\" }\n\
                   [server]\ntrusted_proxies = [\"127.0.0.1\"]\n\
                   [forward_auth]\nlisten = \"127.0.0.1:9099\"\n[[route]]\npath = \"/decided\"";
    let smallest = fs::read_to_string("tests/config/valid/smallest.toml").unwrap();
    let merged = smallest.replace("[server]\n", "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n");
    let section = section.replace("[server]\ntrusted_proxies = [\"127.0.0.1\"]\n", "");
    let text = format!("{merged}\n[identity.jwt]\n{section}\n");
    let problems = Config::parse("file", &text, Secrets::Ignore).unwrap_err();
    let shown: Vec<_> =
        problems.iter().map(|one| format!("{}: {}", one.key, one.message)).collect();
    let message = "is neither an upstream nor a route without one";
    assert_eq!(shown, [format!("identity.jwt.audience.nothing: {message}")]);
    drop(files);
}

#[test]
fn a_file_that_everybody_can_read_is_warned_of() {
    let files = Files::new();
    let section = "key = { file = \"{dir}/p256\" }\nissuer = \"i\"\n\
                   next_keys = { file = \"{dir}/other\" }";
    let warnings = || {
        let warnings = files.load(section, Secrets::Ignore).unwrap();
        warnings.iter().filter(|one| one.contains("jwt")).count()
    };
    assert_eq!(warnings(), 0);
    for name in ["p256", "other"] {
        fs::set_permissions(files.path(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    assert_eq!(warnings(), 2);
}

#[test]
fn without_secrets_no_key_is_needed() {
    let files = Files::new();
    let section = "key = { file = \"/nowhere\" }\nissuer = \"i\"";
    assert!(files.load(section, Secrets::Ignore).is_ok());
}

#[test]
fn an_endpoint_for_keys_has_no_effect_without_keys() {
    let smallest = fs::read_to_string("tests/config/valid/smallest.toml").unwrap();
    let text = format!("endpoints.jwks = \"/keys\"\n{smallest}");
    let config = Config::parse("file", &text, Secrets::Ignore).unwrap();
    let warning = config.warnings.iter().find(|one| one.contains("endpoints.jwks")).unwrap();
    assert!(warning.ends_with("endpoints.jwks: has no effect without [identity.jwt]"), "{warning}");
    assert!(config.endpoints.jwks.is_empty());
    let jwt = "identity.jwt = { key = { file = \"k\" }, issuer = \"i\" }";
    let text = format!("endpoints.jwks = \"/login\"\n{jwt}\n{smallest}");
    let problems = Config::parse("file", &text, Secrets::Ignore).unwrap_err().to_string();
    assert!(problems.contains("endpoints.jwks: this path is listed twice"), "{problems}");
}
