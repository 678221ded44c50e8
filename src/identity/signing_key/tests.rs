use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};

use super::*;

/// RFC 8037, appendix A.1, as `openssl genpkey` writes it: without the public half.
const ED25519_KEY: &str = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";

/// Made by `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`.
const P256_KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgirVrysVYNgGZJ+vM\
    QUmRLemCcN3xljTXmZ2S/aHXRp6hRANCAARfLMkfVyKuyklgwwuCPLgbIkGaBjpX\
    Nro4uDjh2U6VOUO8hX2mTMgbUeNOsMhG8DMBEJ7sm7UUsSNlepwvX3Kd";

/// The x coordinate begins with a zero byte.
const P256_ZERO_KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg89HXihGqPieyPDMW\
    boLj1CIeNiDehudE8K6bnIU6P5ahRANCAAQAqVu863DALx8JuA8KxsDkBIUvHdfU\
    d13cH7EoFSKKuQv6/Kti8qrJDimYFYsGKrEYm8ZKNbkIm4gOYFLUv3wG";

fn read(base64: &str) -> Result<SigningKey, KeyError> {
    SigningKey::from_pkcs8(&STANDARD.decode(base64).unwrap())
}

/// RFC 8037, appendices A.2 and A.3.
#[test]
fn an_ed25519_key_has_the_jwk_and_thumbprint_of_the_rfc() {
    let key = read(ED25519_KEY).unwrap();
    assert_eq!(key.algorithm(), Algorithm::EdDsa);
    assert_eq!(
        serde_json::to_string(key.jwk()).unwrap(),
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","use":"sig","alg":"EdDSA","kid":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"}"#
    );
}

/// RFC 8037, appendix A.4.
#[test]
fn an_ed25519_key_signs_as_the_rfc_does() {
    let key = read(ED25519_KEY).unwrap();
    let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    assert_eq!(
        URL_SAFE_NO_PAD.encode(key.sign(message).unwrap()),
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    );
}

/// Computed by Python's `cryptography`.
#[test]
fn a_p256_key_has_the_jwk_and_thumbprint_that_others_compute() {
    for (key, jwk) in [
        (
            P256_KEY,
            r#"{"kty":"EC","crv":"P-256","x":"XyzJH1cirspJYMMLgjy4GyJBmgY6Vza6OLg44dlOlTk","y":"Q7yFfaZMyBtR406wyEbwMwEQnuybtRSxI2V6nC9fcp0","use":"sig","alg":"ES256","kid":"nDEQezm7sGw3LO6syil3MvRv3F9U4Pm7cbFTLri5_fE"}"#,
        ),
        (
            P256_ZERO_KEY,
            r#"{"kty":"EC","crv":"P-256","x":"AKlbvOtwwC8fCbgPCsbA5ASFLx3X1Hdd3B-xKBUiirk","y":"C_r8q2LyqskOKZgViwYqsRibxko1uQibiA5gUtS_fAY","use":"sig","alg":"ES256","kid":"Nkyj8dlh3N4UwNvFu-2Q43Gj8olUpgDVoIzUX8NnFQg"}"#,
        ),
    ] {
        let key = read(key).unwrap();
        assert_eq!(key.algorithm(), Algorithm::Es256);
        assert_eq!(serde_json::to_string(key.jwk()).unwrap(), jwk);
    }
}

#[test]
fn a_signature_of_either_algorithm_is_valid_and_has_64_bytes() {
    for base64 in [ED25519_KEY, P256_KEY, P256_ZERO_KEY] {
        let key = read(base64).unwrap();
        // An ES256 signature in DER would sometimes be shorter.
        for number in 0..64u8 {
            let signature = key.sign(&[number]).unwrap();
            let valid = match &key.0.pair {
                Pair::P256(pair, _) => {
                    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref())
                        .verify(&[number], &signature)
                }
                Pair::Ed25519(pair) => UnparsedPublicKey::new(&ED25519, pair.public_key().as_ref())
                    .verify(&[number], &signature),
            };
            assert!(valid.is_ok(), "{base64}");
        }
    }
}

#[test]
fn a_key_with_its_public_half_in_pkcs8_is_read_too() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let key = SigningKey::from_pkcs8(&pair.serialize_der()).unwrap();
    assert_eq!(key.jwk().x, URL_SAFE_NO_PAD.encode(pair.public_key_raw()));
}

#[test]
fn keys_for_something_else_are_named() {
    for (beginning, expected) in [
        ("MIIBVAIBADANBgkqhkiG9w0BAQEFAASCAT4wggE6AgEAAkEA", "an RSA key"),
        ("MIIBUQIBADALBgkqhkiG9w0BAQoEggE9MIIBOQIBAAJBAMRq", "an RSA key"),
        ("MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGbAgEBBDCY", "a P-384 key"),
        ("MIHuAgEAMBAGByqGSM49AgEGBSuBBAAjBIHWMIHTAgEBBEIA", "a P-521 key"),
        ("MIGEAgEAMBAGByqGSM49AgEGBSuBBAAKBG0wawIBAQQgR6jE", "a secp256k1 key, not a P-256 key"),
        ("MC4CAQAwBQYDK2VuBCIEIGARuSLxyD9gHVF5zjSC5Pwh+2Nr", "an X25519 key, which cannot sign"),
        ("MEcCAQAwBQYDK2VxBDsEOcllcPJI+GrpBMO5Rn6RwueRbxVk", "an Ed448 key"),
        (
            "MIIBeQIBADCCAQMGByqGSM49AgEwgfcCAQEwLAYHKoZIzj0B",
            "an EC key of another curve, or one without the curve's name",
        ),
        ("MC4CAQAwBQYDK2UBBCIEIGARuSLxyD9gHVF5zjSC5Pwh+2Nr", "a private key of an unknown kind"),
    ] {
        assert_eq!(read(beginning).unwrap_err(), KeyError::Other(expected));
    }
}

#[test]
fn a_p256_key_without_an_uncompressed_public_half_is_named() {
    for base64 in [
        "MEECAQAwEwYHKoZIzj0CAQYIKoZIzj0DAQcEJzAlAgEBBCCKtWvKxVg2AZkn68xB\
         SZEt6YJw3fGWNNeZnZL9oddGng==",
        "MGcCAQAwEwYHKoZIzj0CAQYIKoZIzj0DAQcETTBLAgEBBCCKtWvKxVg2AZkn68xB\
         SZEt6YJw3fGWNNeZnZL9oddGnqEkAyIAA18syR9XIq7KSWDDC4I8uBsiQZoGOlc2\
         uji4OOHZTpU5",
    ] {
        assert_eq!(read(base64).unwrap_err(), KeyError::NoPublicKey);
    }
}

#[test]
fn a_damaged_key_is_not_read() {
    for base64 in [ED25519_KEY, P256_KEY] {
        let der = STANDARD.decode(base64).unwrap();
        for length in 0..der.len() {
            assert!(SigningKey::from_pkcs8(&der[..length]).is_err(), "{length}");
        }
        // A public half that belongs to another key.
        let mut changed = der.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(base64 == ED25519_KEY || SigningKey::from_pkcs8(&changed).is_err());
    }
}

#[test]
fn a_private_key_is_not_shown() {
    let key = read(ED25519_KEY).unwrap();
    assert_eq!(format!("{key:?}"), "SigningKey(kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k)");
}
