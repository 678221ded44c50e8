//! TLS and HTTP/2 while two processes run.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ended;
use crate::harness::{Stack, UPGRADES, until};
use crate::http2::{Client, status};
use crate::tls::{handshake, https};

#[tokio::test(flavor = "multi_thread")]
async fn http_2_streams_end_at_the_old_process_and_the_new_one_resumes_tls_sessions() {
    let directory = tempfile::tempdir().unwrap();
    let (changes, identity) = https(directory.path(), UPGRADES);
    let mut stack = Stack::start_with(&changes).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.cert.der().clone()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    let returning = TlsConnector::from(Arc::new(config.clone()));
    assert_eq!(handshake(&stack, &returning).await, HandshakeKind::Full);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    let connect = async || {
        let stream = TcpStream::connect(stack.gateway).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(config.clone()).connect(name, stream).await.unwrap()
    };
    let builder = h2::client::Builder::new();
    let mut client = Client::over(connect().await, &builder).await;
    let (response, mut body) = client.send(Method::POST, "/login", false).await;
    body.send_data(Bytes::from_static(b"{\"code\":\"user-alice-1\"}"), true).unwrap();
    assert_eq!(status(response).await.unwrap(), 200);
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    let (response, mut body) = client.send(Method::POST, "/none", false).await;
    body.send_data(Bytes::from_static(b"begin"), false).unwrap();
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;

    let old = stack.upgrade(&changes).await;
    // GOAWAY: the client knows that no more streams are taken.
    until("the connection takes no more requests", async || {
        client.requests.clone().ready().await.is_err()
    })
    .await;
    assert!(!old.ended.is_finished());
    body.send_data(Bytes::from_static(b"end"), true).unwrap();
    assert_eq!(status(response).await.unwrap(), 200);
    assert!(client.ends().await);
    ended(old).await;
    assert_eq!(stack.upstream.requests().last().unwrap().body, b"beginend");
    assert_eq!(handshake(&stack, &returning).await, HandshakeKind::Resumed);
}
