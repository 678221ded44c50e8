//! App ids, secrets, certificates and keys that look wrong.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Folder, SECRET};
use crate::harness::APP;
use crate::harness::command::wxgate;

/// Common mistakes in each secret, from a file and from a variable.
#[test]
fn an_app_secret_that_looks_wrong_is_warned_of_and_never_shown() {
    let folder = Folder::new();
    let check = |content: &str| {
        folder.write("given", content);
        let app = |reference: &str| {
            format!("[[app]]\napp_id = \"{APP}\"\napp_secret = {{ {reference} }}")
        };
        let from_file = folder.check(&app("file = \"{dir}/given\""));
        let variable = app("env = \"WXGATE_TEST_GIVEN\"");
        let from_variable =
            folder.check_with(&variable, wxgate().env("WXGATE_TEST_GIVEN", content));
        [from_file, from_variable]
    };
    for (content, expected) in [
        (format!("\"{SECRET}\""), "it begins with a quote"),
        (format!("'{SECRET}'\n"), "it begins with a quote"),
        (format!("{}\u{200b}{}", &SECRET[..16], &SECRET[16..]), "invisible character, U+200B"),
        (format!("{} {}", &SECRET[..16], &SECRET[16..]), "contains whitespace"),
        (APP.to_owned(), "it is the app id"),
        (STANDARD.encode(SECRET), "it is base64-encoded text: decode it"),
        (format!("WECHAT_APP_SECRET={SECRET}"), "NAME=VALUE"),
        (SECRET[1..].to_owned(), "it has 31 characters"),
        (SECRET.to_uppercase(), "upper-case"),
        (SECRET.replace('0', "z"), "not a hexadecimal digit"),
        ("７".repeat(32), "not ASCII"),
    ] {
        for outcome in check(&content) {
            outcome.warns("app[0].app_secret: does not look like an app secret");
            outcome.warns(expected);
            let shown = outcome.err + &outcome.out;
            for part in [content.trim(), &SECRET[..8], &SECRET[20..]] {
                assert!(part == APP || !shown.contains(part), "{part} in {shown}");
            }
        }
    }
    for content in [format!("{SECRET}\n"), format!("\u{feff}{SECRET}\r\n"), format!(" {SECRET}\t")]
    {
        for outcome in check(&content) {
            assert_eq!(outcome.code, 0);
            assert!(!outcome.err.contains("app_secret"), "{}", outcome.err);
        }
    }
    for (content, expected) in [
        (format!("{SECRET}\n{SECRET}\n"), "several lines"),
        (format!("{}\r{}", &SECRET[..16], &SECRET[16..]), "several lines"),
        (format!("{}\u{2028}{}", &SECRET[..16], &SECRET[16..]), "several lines"),
        (format!("{SECRET}\u{7}x"), "control character"),
        ("\u{feff}\n".to_owned(), "is empty"),
    ] {
        for outcome in check(&content) {
            outcome.rejects(expected);
            assert!(!outcome.err.contains(&SECRET[..8]), "{}", outcome.err);
        }
    }
    let utf16: Vec<u8> = SECRET.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for content in [[&[0xff, 0xfe], &*utf16].concat(), utf16] {
        folder.write("given", content);
        let app =
            "[[app]]\napp_id = \"wx0123456789abcdef\"\napp_secret = { file = \"{dir}/given\" }";
        folder.check(app).rejects("is UTF-16: save it as UTF-8");
    }
}

#[test]
fn an_app_id_that_looks_wrong_is_warned_of() {
    let folder = Folder::new();
    for (app_id, expected) in [
        ("gh_0123456789ab", "original id of an account"),
        ("touristappid", "developer tools"),
        ("wx0123456789abcde", "it has 17 characters"),
        ("WX0123456789ABCDEF", "upper-case"),
        ("wx0123456789ABCDEF", "upper-case"),
        ("wx0123456789abcdeg", "not a hexadecimal digit"),
        ("1234567890", "does not begin with \"wx\""),
        ("ww0123456789abcdef", "does not begin with \"wx\""),
    ] {
        let app = "[[app]]\napp_id = \"ID\"\napp_secret = { file = \"{dir}/wechat-secret\" }";
        let outcome = folder.check(&app.replace("ID", app_id));
        outcome.warns("app[0].app_id: does not look like an app id");
        outcome.warns(expected);
    }
}

#[test]
fn other_secrets_that_look_wrong_are_warned_of_or_rejected() {
    let folder = Folder::new();
    let token = "an-operator-s-token-of-so-many-letters";
    for (content, expected) in [
        (format!("\"{token}\""), "admin.token: it begins with a quote"),
        (format!("{token}\u{feff}x"), "admin.token: it contains an invisible character, U+FEFF"),
        (format!("TOKEN={token}"), "admin.token: it has the form NAME=VALUE"),
    ] {
        folder.write("given", content);
        folder.check("admin.token = { file = \"{dir}/given\" }").warns(expected);
    }
    folder.write("given", format!("{token}\n{token}"));
    folder.check("admin.token = { file = \"{dir}/given\" }").rejects("several lines");

    folder.write("given", "short");
    folder
        .check("log.openid_key = { file = \"{dir}/given\" }")
        .warns("log.openid_key: it has only 5");

    let key = STANDARD.encode([7; 32]);
    for (content, expected) in [
        (STANDARD.encode(&key), "base64-encoded text"),
        (format!("\"{key}\""), "begins with a quote"),
        (key[..40].to_owned(), "it is base64 of 30 bytes"),
        (key[..41].to_owned(), "it has 41 characters"),
    ] {
        folder.write("given", &content);
        let changes = "session.redis.url = \"redis://127.0.0.1\"\n\
                       session.seal_key = { file = \"{dir}/given\" }";
        let outcome = folder.check(changes);
        outcome.rejects("session.seal_key: must be 32 bytes");
        outcome.rejects(expected);
        assert!(!outcome.err.contains(&content[..10]), "{}", outcome.err);
    }
    folder.write("given", "'password'");
    folder.write("seal", format!("\u{feff}{key}\r\n"));
    let changes = "session.redis = { url = \"redis://127.0.0.1\", password = { file = \"{dir}/given\" } }\n\
                   session.seal_key = { file = \"{dir}/seal\" }";
    folder.check(changes).warns("session.redis.password: it begins with a quote");
}

#[test]
fn the_kind_of_a_wrong_certificate_or_key_file_is_shown() {
    let folder = Folder::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let (pem, key_pem, der) = (certificate.pem(), key.serialize_pem(), certificate.der().to_vec());
    let indented = |pem: &str| pem.lines().map(|line| format!("  {line}\n")).collect::<String>();
    let labelled = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let check = |cert: &[u8], key: &[u8]| {
        folder.write("cert", cert);
        folder.write("key", key);
        folder.check("server.tls = { cert_file = \"{dir}/cert\", key_file = \"{dir}/key\" }")
    };
    // Bytes that editors on Windows add.
    for (cert, key) in [
        (format!("\u{feff}{pem}"), format!("\u{feff}{key_pem}")),
        (pem.replace('\n', "\r\n"), key_pem.replace('\n', "\r\n")),
    ] {
        let outcome = check(cert.as_bytes(), key.as_bytes());
        assert_eq!(outcome.code, 0, "{}", outcome.err);
    }
    for (cert, expected) in [
        (request.as_bytes(), "cert_file: contains no certificate: it is a certificate request"),
        (key_pem.as_bytes(), "cert_file: contains no certificate: it is a private key"),
        (&der, "cert_file: contains no certificate: it is DER or PKCS#12, not PEM"),
        (indented(&pem).as_bytes(), "its PEM does not start at the beginning of a line"),
        (labelled("PKCS7").as_bytes(), "contains no certificate: it is PKCS7"),
        (labelled("PUBLIC KEY").as_bytes(), "contains no certificate: it is a public key"),
        (b"", "cert_file: contains no certificate\n"),
    ] {
        check(cert, key_pem.as_bytes()).rejects(expected);
    }
    for (key, expected) in [
        (pem.as_bytes(), "key_file: contains no private key: it is a certificate"),
        (request.as_bytes(), "key_file: contains no private key: it is a certificate request"),
        (labelled("PUBLIC KEY").as_bytes(), "contains no private key: it is a public key"),
        (labelled("ENCRYPTED PRIVATE KEY").as_bytes(), "a private key with a passphrase"),
        (labelled("OPENSSH PRIVATE KEY").as_bytes(), "it is an SSH key"),
        (&key.serialize_der(), "contains no private key: it is DER"),
        (
            b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
            "a private key with a passphrase",
        ),
    ] {
        check(pem.as_bytes(), key).rejects(expected);
    }
    // Both files are checked; they may just be swapped.
    let outcome = check(key_pem.as_bytes(), pem.as_bytes());
    outcome.rejects("server.tls.cert_file: ");
    outcome.rejects("server.tls.key_file: ");
    outcome.rejects("are cert_file and key_file swapped?");
    assert!(!outcome.err.contains(key_pem.lines().nth(1).unwrap()), "{}", outcome.err);
}
