//! PROXY protocol: layer-4 load balancers name the client's address, and nobody else can.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::Stack;
use crate::harness::client::Connection;

const ON: &str = r#"
    [server]
    proxy_protocol = "127.0.0.1:0"
    trusted_proxies = "127.0.0.1"
"#;

const REQUEST: &[u8] = b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n";

#[tokio::test]
async fn the_address_in_a_proxy_header_is_the_clients() {
    let stack = Stack::start_with(ON).await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n").await;
    for _ in 0..2 {
        // The client itself is not a trusted proxy.
        connection.send(b"GET /none HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n").await;
        assert_eq!(connection.response(false).await.status, 200);
    }
    for received in stack.upstream.requests() {
        assert_eq!(received.all("x-real-ip"), ["192.0.2.1"]);
        assert_eq!(received.all("x-forwarded-for"), ["192.0.2.1"]);
    }
}

#[tokio::test]
async fn a_local_proxy_header_keeps_the_address_of_the_balancer() {
    let stack = Stack::start_with(ON).await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00").await;
    connection.send(REQUEST).await;
    assert_eq!(connection.response(false).await.status, 200);
    assert_eq!(stack.upstream.requests()[0].all("x-real-ip"), ["127.0.0.1"]);
}

#[tokio::test]
async fn without_a_header_there_is_no_connection() {
    let stack = Stack::start_with(&format!("{ON}\n[limits]\nheader_timeout = \"200ms\"")).await;
    for bytes in [REQUEST, b"PROXY TCP4 me you 1 2\r\nGET /none HTTP/1.1\r\n\r\n", b"", b"PROXY TC"]
    {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(bytes).await;
        assert!(connection.is_closed().await, "{}", bytes.escape_ascii());
    }
    assert!(stack.upstream.requests().is_empty());
}

#[tokio::test]
async fn only_a_trusted_proxy_can_set_the_client_address() {
    let stack = Stack::start_with(&ON.replace("\"127.0.0.1\"", "\"192.0.2.0/24\"")).await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n").await;
    connection.send(REQUEST).await;
    assert!(connection.is_closed().await);
    assert!(stack.upstream.requests().is_empty());
}

#[tokio::test]
async fn where_it_is_off_the_header_is_a_malformed_request() {
    let stack = Stack::start_with("server.trusted_proxies = \"127.0.0.1\"").await;
    for header in ["PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", "PROXY UNKNOWN\r\n"] {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(header.as_bytes()).await;
        connection.send(REQUEST).await;
        connection.response(false).await.assert_error(400, "bad_request", "none");
    }
    assert!(stack.upstream.requests().is_empty());
}

#[tokio::test]
async fn connections_are_counted_by_the_address_that_is_named() {
    let stack = Stack::start_with(&format!(
        "{ON}\n[limits]\nmax_connections_per_address = 1\nidle_timeout = \"1m\""
    ))
    .await;
    let mut held = Vec::new();
    for (client, status) in [("192.0.2.1", 200), ("192.0.2.1", 503), ("192.0.2.2", 200)] {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(format!("PROXY TCP4 {client} 198.51.100.2 1 443\r\n").as_bytes()).await;
        connection.send(REQUEST).await;
        assert_eq!(connection.response(false).await.status, status, "{client}");
        held.push(connection);
    }
}

#[tokio::test]
async fn the_header_comes_before_the_handshake_of_tls() {
    let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (cert_file, key_file) = (directory.path().join("cert"), directory.path().join("key"));
    std::fs::write(&cert_file, identity.cert.pem()).unwrap();
    std::fs::write(&key_file, identity.signing_key.serialize_pem()).unwrap();
    let (cert_file, key_file) = (cert_file.display(), key_file.display());
    let tls = format!("tls = {{ cert_file = \"{cert_file}\", key_file = \"{key_file}\" }}");
    let stack = Stack::start_with(&format!("{ON}\n{tls}")).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.cert.der().clone()).unwrap();
    let config =
        rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();

    let mut stream = TcpStream::connect(stack.gateway).await.unwrap();
    stream.write_all(b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n").await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.unwrap();
    stream.write_all(b"GET /none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert_eq!(stack.upstream.requests()[0].all("x-real-ip"), ["192.0.2.1"]);
}

#[tokio::test]
async fn a_client_that_is_not_named_has_no_word_about_its_address() {
    let stack = Stack::start_with(ON).await;
    for header in [b"PROXY UNKNOWN\r\n".as_slice(), b"\r\n\r\n\0\r\nQUIT\n\x21\x00\x00\x00"] {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(header).await;
        connection.send(b"GET /none HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n").await;
        assert_eq!(connection.response(false).await.status, 200);
    }
    for received in stack.upstream.requests() {
        assert_eq!(received.all("x-real-ip"), ["0.0.0.0"]);
        assert_eq!(received.all("x-forwarded-for"), ["0.0.0.0"]);
    }
}
