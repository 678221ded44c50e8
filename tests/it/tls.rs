//! HTTPS listeners, and HTTP/2 on them.

mod client_certificates;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair};
use rustls::HandshakeKind;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use wxgate::clock::Clock;
use wxgate::config::{Config, Secrets, TlsSection};
use wxgate::listener::tls::{Alpn, TicketKeys, Tls};
use wxgate::telemetry::metrics::Metrics;

use crate::harness::certificate::{Authority, Issued, credulous};
use crate::harness::{Stack, config_text, install_provider, openid};

/// A TLS server that never responds.
pub async fn serve_tls(identity: &CertifiedKey<KeyPair>) -> SocketAddr {
    install_provider();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            drop(acceptor.accept(stream).await);
        }
    });
    address
}

/// Changes that make the public listener HTTPS for `localhost`, and its certificate.
pub fn https(directory: &Path, changes: &str) -> (String, CertifiedKey<KeyPair>) {
    let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert_file, key_file) = (directory.join("cert.pem"), directory.join("key.pem"));
    std::fs::write(&cert_file, identity.cert.pem()).unwrap();
    std::fs::write(&key_file, identity.signing_key.serialize_pem()).unwrap();
    let tls = format!(
        "server.tls.cert_file = \"{}\"\nserver.tls.key_file = \"{}\"\n{changes}",
        cert_file.display(),
        key_file.display()
    );
    (tls, identity)
}

/// A stack whose public listener is HTTPS for `localhost`, and a client that trusts it.
async fn start(changes: &str) -> (Stack, reqwest::ClientBuilder, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let (changes, identity) = https(directory.path(), changes);
    let stack = Stack::start_with(&changes).await;
    let root = reqwest::Certificate::from_pem(identity.cert.pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([root])
        .resolve("localhost", stack.gateway);
    (stack, client, directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_served_as_http_1_and_http_2() {
    let (stack, client, _directory) = start("").await;
    let url = |path: &str| format!("https://localhost:{}{path}", stack.gateway.port());
    for (client, version) in [
        (client.build().unwrap(), http::Version::HTTP_2),
        (
            reqwest::Client::builder()
                .no_proxy()
                .http1_only()
                .danger_accept_invalid_certs(true)
                .build()
                .unwrap(),
            http::Version::HTTP_11,
        ),
    ] {
        let code = format!("user-alice-{version:?}").replace(['/', '.'], "-");
        let login = client.post(url("/login")).body(format!("{{\"code\":\"{code}\"}}"));
        let response = login.send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, version));
        let body: serde_json::Value =
            serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let token = body["token"].as_str().unwrap();
        let request = client.post(url("/orders")).header("X-3rd-Session", token);
        let request = request.header("x_openid", "evil").body("payload");
        assert_eq!(request.send().await.unwrap().text().await.unwrap(), "hello");
        let received = stack.upstream.requests();
        let received = received.last().unwrap();
        assert_eq!(received.folded("x-openid"), [openid("alice")]);
        assert_eq!(received.all("x-forwarded-proto"), ["https"]);
        assert_eq!(
            received.all("x-forwarded-host"),
            [format!("localhost:{}", stack.gateway.port())]
        );
        assert_eq!(received.body, b"payload");
        let rejected = client.get(url("/orders")).send().await.unwrap();
        assert_eq!(rejected.status().as_u16(), 401);
        assert_eq!(rejected.headers()["x-wxgate-error"], "missing_token");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_of_one_connection_keep_their_own_identity() {
    let (stack, client, _directory) = start("").await;
    let client = client.build().unwrap();
    let url = format!("https://localhost:{}", stack.gateway.port());
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let (client, url) = (client.clone(), url.clone());
        tasks.spawn(async move {
            let code = format!("{{\"code\":\"user-u{number}\"}}");
            let response = client.post(format!("{url}/login")).body(code).send().await.unwrap();
            let body: serde_json::Value =
                serde_json::from_str(&response.text().await.unwrap()).unwrap();
            let path = format!("{url}/of/u{number}");
            let request = client.get(path).bearer_auth(body["token"].as_str().unwrap());
            assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let received = stack.upstream.requests();
    assert_eq!(received.len(), 50);
    for received in received {
        let user = received.target().rsplit('/').next().unwrap().to_owned();
        assert_eq!(received.all("x-openid"), [openid(&user)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_has_a_deadline_and_plain_http_gets_none() {
    let (stack, _client, _directory) = start(r#"server.tls.handshake_timeout = "200ms""#).await;
    let mut silent = crate::harness::client::Connection::open(stack.gateway).await;
    assert!(silent.is_closed().await);
    let mut plain = crate::harness::client::Connection::open(stack.gateway).await;
    plain.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut rest = Vec::new();
    // At most a TLS alert, then the end; never HTTP.
    while let Some(response) = plain.response_or_end().await {
        rest.push(response);
    }
    assert!(rest.is_empty());
    stack.until_metric("wxgate_tls_handshakes_failed_total", 2.0).await;
    // A port scan is not counted as a failure.
    drop(TcpStream::connect(stack.gateway).await.unwrap());
    let mut begun = crate::harness::client::Connection::open(stack.gateway).await;
    begun.send(&[22, 3, 1, 0]).await;
    assert!(begun.is_closed().await, "bytes do not extend the deadline");
    stack.until_metric("wxgate_tls_handshakes_failed_total", 3.0).await;
}

/// Request headers follow the same rules as in HTTP/1, and services get valid HTTP/1.
#[tokio::test(flavor = "multi_thread")]
async fn http_2_follows_the_same_rules() {
    let (stack, client, _directory) = start("endpoints.health = \"/health\"").await;
    let client = client.build().unwrap();
    let url = |path: &str| format!("https://localhost:{}{path}", stack.gateway.port());
    let cookies = client.get(url("/none")).header("Cookie", "a=1").header("Cookie", "b=2");
    assert_eq!(cookies.send().await.unwrap().status().as_u16(), 200);
    assert_eq!(stack.upstream.requests()[0].all("cookie"), ["a=1; b=2"]);

    for path in ["/health", "/orders", "/none"] {
        let response = client.head(url(path)).send().await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        assert_eq!(response.text().await.unwrap(), "", "{path}");
    }
    let before = stack.upstream.requests().len();
    for method in ["TRACE", "get", "G|T"] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let response = client.request(method.clone(), url("/none")).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 400, "{method}");
    }
    let long = client.get(url(&format!("/none/{}", "x".repeat(9000)))).send().await.unwrap();
    assert_eq!(long.status().as_u16(), 431);
    let mut many = client.get(url("/none"));
    for number in 0..120 {
        many = many.header(format!("x-{number}"), "a");
    }
    assert_eq!(many.send().await.unwrap().status().as_u16(), 431);
    assert_eq!(stack.upstream.requests().len(), before);
}

/// A phone connects once an hour, and other phones in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_returns_after_many_others_resumes_its_tls_session() {
    let directory = tempfile::tempdir().unwrap();
    let (changes, identity) = https(directory.path(), "");
    let stack = Stack::start_with(&changes).await;
    let client = || {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(identity.cert.der().clone()).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots);
        TlsConnector::from(Arc::new(config.with_no_client_auth()))
    };
    let again = client();
    assert_eq!(handshake(&stack, &again).await, HandshakeKind::Full);
    for _ in 0..300 {
        assert_eq!(handshake(&stack, &client()).await, HandshakeKind::Full);
    }
    assert_eq!(handshake(&stack, &again).await, HandshakeKind::Resumed);
}

/// One connection with one request on it.
pub async fn handshake(stack: &Stack, connector: &TlsConnector) -> HandshakeKind {
    let stream = TcpStream::connect(stack.gateway).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 "), "{response}");
    stream.get_ref().1.handshake_kind().unwrap()
}

/// Requested host names, and the certificates that are shown for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_the_certificate_of_the_name_that_it_requests() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::root("root");
    let default = authority.issue(&["localhost", "c.test"]);
    let exact = authority.issue(&["a.test", "B.test"]);
    let wildcard = authority.issue(&["*.b.test", "*.a.test"]);
    let late = authority.issue(&["a.test", "x.b.test"]);
    let write = |issued: &Issued, name: &str| {
        format!("{{ {} }}", issued.write(directory.path(), name, &[&authority.certificate]))
    };
    let changes = format!(
        "server.tls = {{ certificate = [{}, {}, {}], {} }}",
        write(&exact, "exact"),
        write(&wildcard, "wildcard"),
        write(&late, "late"),
        default.write(directory.path(), "default", &[])
    );
    let stack = Stack::start_with(&changes).await;
    let expiry = format!(
        "wxgate_tls_certificate_expiry_timestamp_seconds{{certificate=\"{}\"}}",
        directory.path().join("late.crt").display()
    );
    assert!(stack.metric(&expiry).await > 4e9);
    for (asked, issued) in [
        ("a.test", &exact),
        ("A.Test", &exact),
        ("b.test", &exact),
        ("y.b.test", &wildcard),
        ("y.a.test", &wildcard),
        ("Y.A.TEST", &wildcard),
        ("x.b.test", &late),
        ("z.y.b.test", &default),
        ("c.test", &default),
        ("unknown.test", &default),
        ("test", &default),
        ("127.0.0.1", &default),
    ] {
        let stream = TcpStream::connect(stack.gateway).await.unwrap();
        let connector = TlsConnector::from(Arc::new(credulous()));
        let name = ServerName::try_from(asked).unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap();
        assert_eq!(&shown[0], issued.der(), "{asked}");
        let is_default = std::ptr::eq(issued, &default);
        assert_eq!(shown.len(), if is_default { 1 } else { 2 }, "the chain of the file");
    }
    let mut config = credulous();
    config.enable_sni = false;
    let stream = TcpStream::connect(stack.gateway).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(&stream.get_ref().1.peer_certificates().unwrap()[0], default.der());
}

/// The section of a configuration with these changes.
fn section(directory: &Path, changes: &str) -> TlsSection {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let text = config_text(directory, "http://127.0.0.1:1", nowhere, changes);
    Config::parse("test", &text, Secrets::Load).unwrap().server.tls.unwrap()
}

/// The kind of handshake between a client and these settings, if it succeeds.
async fn shake(tls: &Tls, connector: &TlsConnector) -> Option<HandshakeKind> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tls.accept(stream).await?;
        stream.write_all(b"hello").await.ok()?;
        stream.shutdown().await.ok()
    };
    let ask = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let host = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(host, stream).await.ok()?;
        let mut hello = String::new();
        stream.read_to_string(&mut hello).await.ok()?;
        assert_eq!(hello, "hello");
        stream.get_ref().1.handshake_kind()
    };
    tokio::join!(serve, ask).1
}

/// A new configuration has new certificates, and phones resume their sessions, in this process and
/// in the next one.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_resumed_and_expiries_replaced_with_the_next_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::root("root");
    let metrics = Metrics::new().unwrap();
    let keys = || Arc::new(TicketKeys::new(Clock::system()).unwrap());
    let mut tickets = keys();
    let connector = TlsConnector::from(Arc::new(credulous()));
    for (name, kind) in [
        ("before", HandshakeKind::Full),
        ("after", HandshakeKind::Resumed),
        ("next process", HandshakeKind::Resumed),
    ] {
        if name == "next process" {
            let exported = tickets.export();
            tickets = keys();
            tickets.import(exported.as_bytes()).unwrap();
        }
        let issued = authority.issue_with(&["localhost"], |params| {
            params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        });
        let changes = format!("server.tls = {{ {} }}", issued.write(directory.path(), name, &[]));
        let section = section(directory.path(), &changes);
        let tls = Tls::new(&section, tickets.clone(), metrics.clone(), Alpn::Http2).unwrap();
        assert_eq!(shake(&tls, &connector).await, Some(kind), "{name}");

        let in_use = section.all().map(|one| (one.file.display().to_string(), one.expires));
        metrics.set_certificates(in_use);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let expiry = format!(
            "wxgate_tls_certificate_expiry_timestamp_seconds{{certificate=\"{}\"}} 4102444800\n",
            directory.path().join(name).with_extension("crt").display()
        );
        assert!(text.contains(&expiry), "{text}");
        assert_eq!(text.matches("{certificate=").count(), 1, "{text}");
    }
}
