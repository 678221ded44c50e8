//! Client certificates.

use std::sync::Arc;

use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wxgate::clock::Clock;
use wxgate::listener::tls::{Alpn, TicketKeys, Tls};
use wxgate::telemetry::metrics::Metrics;

use super::{https, section, shake};
use crate::harness::Stack;
use crate::harness::certificate::{Authority, Issued, credulous_with};

/// The response to a client with this certificate, or without one.
async fn served_with(stack: &Stack, shown: Option<&Issued>) -> Option<String> {
    let config = credulous_with(rustls::DEFAULT_VERSIONS, shown);
    let stream = TcpStream::connect(stack.gateway).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    // With TLS 1.3 a client learns only now that it was rejected.
    let request = b"GET /none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let _ = stream.write_all(request).await;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.ok()?;
    Some(response)
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_are_required_where_configured() {
    let directory = tempfile::tempdir().unwrap();
    let client_auth = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    };
    let over = |params: &mut rcgen::CertificateParams| {
        client_auth(params);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    };
    let (ours, theirs) = (Authority::root("clients"), Authority::root("clients"));
    let good = ours.issue_with(&["client"], client_auth);
    let bad = [theirs.issue_with(&["client"], client_auth), ours.issue_with(&["client"], over)];
    let ca_file = directory.path().join("clients.pem");
    std::fs::write(&ca_file, ours.certificate.pem()).unwrap();
    let ca_file = format!("server.tls.client_ca_file = {ca_file:?}");
    for (presence, serves_nobody) in [
        ("", false),
        ("server.tls.client_certificate = \"required\"", false),
        ("server.tls.client_certificate = \"optional\"", true),
    ] {
        let changes = format!("{ca_file}\n{presence}");
        let stack = Stack::start_with(&https(directory.path(), &changes).0).await;
        let response = served_with(&stack, Some(&good)).await.expect("a response");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert_eq!(served_with(&stack, None).await.is_some(), serves_nobody, "{presence}");
        for bad in &bad {
            assert_eq!(served_with(&stack, Some(bad)).await, None, "{presence}");
        }
        let received = stack.upstream.requests();
        assert_eq!(received.len(), if serves_nobody { 2 } else { 1 });
        let failed = if serves_nobody { 2.0 } else { 3.0 };
        stack.until_metric("wxgate_tls_handshakes_failed_total", failed).await;
    }
}

/// A TLS session without a client certificate cannot be resumed where one is required.
#[tokio::test(flavor = "multi_thread")]
async fn no_tls_session_bypasses_a_client_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::root("clients");
    let good = ours.issue(&["client"]);
    let ca_file = directory.path().join("clients.pem");
    std::fs::write(&ca_file, ours.certificate.pem()).unwrap();
    let (open, _) = https(directory.path(), "");
    let guarded =
        section(directory.path(), &format!("server.tls.client_ca_file = {ca_file:?}\n{open}"));
    let open = section(directory.path(), &open);
    let metrics = Metrics::new().unwrap();
    let tickets = Arc::new(TicketKeys::new(Clock::system()).unwrap());
    let tls = |section| Tls::new(section, tickets.clone(), metrics.clone(), Alpn::Http2).unwrap();
    for versions in [[&rustls::version::TLS12], [&rustls::version::TLS13]] {
        let client = |shown| TlsConnector::from(Arc::new(credulous_with(&versions, shown)));
        let guest = client(None);
        assert_eq!(shake(&tls(&open), &guest).await, Some(HandshakeKind::Full));
        assert_eq!(shake(&tls(&open), &guest).await, Some(HandshakeKind::Resumed));
        assert_eq!(shake(&tls(&guarded), &guest).await, None);
        let member = client(Some(&good));
        for _ in 0..2 {
            assert_eq!(shake(&tls(&guarded), &member).await, Some(HandshakeKind::Full));
        }
    }
}
