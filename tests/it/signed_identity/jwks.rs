//! Where the public keys are published.

use std::sync::Arc;

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::{JWKS, Keys, jwks, start};
use crate::harness::certificate::{Authority, credulous_with};
use crate::harness::client::Response;
use crate::harness::{Stack, client};

const INTERNAL: &str = r#"
    [internal]
    listen = "127.0.0.1:0"
    token = { file = "{dir}/any" }
"#;

/// Every listener has the same keys, in the order of the configuration.
#[tokio::test(flavor = "multi_thread")]
async fn every_listener_publishes_the_same_keys_without_a_token() {
    let keys = Keys::new();
    keys.add("key", &PKCS_ECDSA_P256_SHA256).add("next", &PKCS_ED25519);
    keys.add("old", &PKCS_ECDSA_P256_SHA256).add("older", &PKCS_ED25519);
    let section = keys.section("key", &["next"], &["old", "older"]);
    let public = format!("endpoints.jwks = [\"/keys\", \"{JWKS}\"]");
    let stack = Stack::start_with(&format!("{public}\n{section}\n{INTERNAL}")).await;
    let check = |response: &Response| {
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert_eq!(response.header("cache-control"), Some("max-age=300"));
    };
    let mut bodies = Vec::new();
    for (method, is_head) in [("GET", false), ("HEAD", true)] {
        for response in [
            stack.request(method, JWKS).send().await,
            stack.request(method, "/keys").send().await,
            stack.request(method, JWKS).send_to_admin().await,
            stack.request(method, JWKS).send_to_internal().await,
        ] {
            check(&response);
            assert_eq!(response.body.is_empty(), is_head);
            bodies.extend(Some(response.body).filter(|_| !is_head));
        }
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    let published: Value = serde_json::from_slice(&bodies[0]).unwrap();
    let published = published["keys"].as_array().unwrap();
    let curves: Vec<_> = published.iter().map(|key| key["crv"].as_str().unwrap()).collect();
    assert_eq!(curves, ["P-256", "Ed25519", "P-256", "Ed25519"]);
    for key in published {
        let known = ["kty", "crv", "x", "y", "use", "sig", "alg", "kid"];
        assert!(key.as_object().unwrap().keys().all(|name| known.contains(&name.as_str())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_get_and_head_are_allowed() {
    let stack = start(&format!("endpoints.jwks = \"{JWKS}\"\n{INTERNAL}")).await;
    for response in [
        stack.post(JWKS).send().await,
        stack.post(JWKS).send_to_admin().await,
        stack.post(JWKS).send_to_internal().await,
    ] {
        assert_eq!(response.status, 405);
        assert_eq!(response.header("allow"), Some("GET, HEAD"));
        assert_eq!(response.header("cache-control"), Some("no-store"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_signed_identities_there_are_no_keys() {
    let stack = Stack::start_with(&format!("endpoints.jwks = \"/keys\"\n{INTERNAL}")).await;
    assert_eq!(client::get(stack.admin, JWKS).await.status, 404);
    let response = stack.get(JWKS).send_to_internal().await;
    assert_eq!((response.status, response.header("cache-control")), (404, Some("no-store")));
    // The path is matched against the routes.
    stack.get("/keys").send().await.assert_error(401, "missing_token", "login");
    // A reload turns it on.
    let keys = Keys::new();
    let section = keys.add("key", &PKCS_ED25519).section("key", &[], &[]);
    let section = format!("{section}identity.jwt.algorithm = \"EdDSA\"");
    assert!(stack.reload(&format!("endpoints.jwks = \"/keys\"\n{section}\n{INTERNAL}")).await);
    assert_eq!(stack.get("/keys").send().await.json(), jwks(&stack).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_keys_are_counted_and_logged() {
    const REQUESTS: &str = "wxgate_http_requests_total{code=\"200\",route=\"@jwks\"}";
    let stack = start(&format!("endpoints.jwks = \"/keys\"\n{INTERNAL}")).await;
    let metrics = client::get(stack.admin, "/metrics").await.text();
    assert!(metrics.contains(&format!("{REQUESTS} 0")), "shown from the start");
    assert_eq!(stack.get("/keys").send().await.status, 200);
    stack.until_metric(REQUESTS, 1.0).await;
    assert_eq!(stack.get(JWKS).send_to_internal().await.status, 200);
    let log = stack.access_log(2).await;
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["route"], &lines[0]["path"]), (&"@jwks".into(), &"/keys".into()));
    assert_eq!((&lines[1]["route"], &lines[1]["path"]), (&"@internal".into(), &JWKS.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_has_the_keys() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("internal.sock");
    let stack = start(&INTERNAL.replace("127.0.0.1:0", &format!("unix:{}", path.display()))).await;
    let text = exchange(UnixStream::connect(&path).await.unwrap()).await.unwrap();
    let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body, jwks(&stack).await);
}

/// A client certificate is needed, but no token.
#[tokio::test(flavor = "multi_thread")]
async fn services_with_certificates_get_the_keys() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::root("services");
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, authority.certificate.pem()).unwrap();
    let files = authority.issue(&["internal.test"]).write(directory.path(), "internal", &[]);
    let files = files.replace(", ", "\n");
    let tls = format!("[internal.tls]\n{files}\nclient_ca_file = {ca_file:?}\n");
    let stack = start(&format!("{INTERNAL}\n{tls}")).await;
    let service = authority.issue(&["orders"]);
    for (shown, is_served) in [(Some(&service), true), (None, false)] {
        let client = credulous_with(rustls::DEFAULT_VERSIONS, shown);
        let stream = TcpStream::connect(stack.internal.unwrap()).await.unwrap();
        let name = ServerName::try_from("internal.test").unwrap();
        let text = match TlsConnector::from(Arc::new(client)).connect(name, stream).await {
            Ok(stream) => exchange(stream).await,
            Err(_) => None,
        };
        assert_eq!(text.is_some_and(|text| text.starts_with("HTTP/1.1 200")), is_served);
    }
}

/// A request for the keys, and the whole response.
async fn exchange(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> Option<String> {
    let request = format!("GET {JWKS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text).filter(|text| !text.is_empty())
}
