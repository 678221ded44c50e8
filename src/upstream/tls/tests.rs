use std::path::PathBuf;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::Certificate;

const NAME: &str = "shop.internal";

/// A certificate authority.
struct Authority {
    root: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self { root: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    /// A certificate for a name, with changes.
    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Arc<CertifiedKey> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        certified(&certificate, &key)
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone()).unwrap();
        roots
    }

    /// A section that trusts this authority.
    fn section(&self) -> UpstreamTls {
        let roots = Some(Arc::new(vec![self.root.der().clone()]));
        UpstreamTls { server_name: None, roots, client: None }
    }
}

fn certified(certificate: &rcgen::Certificate, key: &KeyPair) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = ring::default_provider().key_provider.load_private_key(key).unwrap();
    Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key))
}

/// A server's side of TLS.
struct Server {
    certificate: Arc<CertifiedKey>,
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: &'static [&'static str],
    /// Whose client certificates it requires.
    clients: Option<RootCertStore>,
}

impl Server {
    fn with(certificate: Arc<CertifiedKey>) -> Self {
        Self { certificate, versions: rustls::ALL_VERSIONS, alpn: &[], clients: None }
    }

    fn acceptor(self) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(self.versions).unwrap();
        let builder = match self.clients {
            Some(roots) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .unwrap(),
            ),
            None => builder.with_no_client_auth(),
        };
        let mut config =
            builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(self.certificate)));
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Connects to a server that sends one byte after the handshake, and reads this byte.
async fn connect(
    section: &UpstreamTls,
    protocol: Protocol,
    host: Option<&str>,
    server: Server,
) -> Result<(), TlsFault> {
    let tls = ClientTls::new(section, protocol).unwrap();
    exchange(&tls, host, &server.acceptor()).await.map(drop)
}

/// The same; returns the name that the server got.
async fn exchange(
    tls: &ClientTls,
    host: Option<&str>,
    acceptor: &TlsAcceptor,
) -> Result<Option<String>, TlsFault> {
    let (here, there) = tokio::io::duplex(16 << 10);
    let serve = async {
        let mut stream = acceptor.accept(there).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        let name = stream.get_ref().1.server_name().map(str::to_owned);
        let _ = stream.read(&mut [0]).await;
        io::Result::Ok(name)
    };
    let ask = async {
        let mut stream = tls.connect(here, host).await?;
        let read = stream.read_exact(&mut [0]).await;
        read.map(drop).map_err(|error| TlsFault::of(&error).expect("an error of TLS"))
    };
    let (name, asked) = tokio::join!(serve, ask);
    asked.map(|()| name.unwrap())
}

/// What a client says to a peer that sends these bytes and closes.
async fn fault_of(sent: &[u8]) -> TlsFault {
    let (here, mut there): (DuplexStream, DuplexStream) = tokio::io::duplex(16 << 10);
    there.write_all(sent).await.unwrap();
    let peer = async {
        let _ = there.read(&mut [0; 4096]).await;
        drop(there);
    };
    let tls = ClientTls::new(&Authority::new("one").section(), Protocol::Http1).unwrap();
    let (connected, ()) = tokio::join!(tls.connect(here, Some(NAME)), peer);
    connected.map(drop).unwrap_err()
}

#[tokio::test]
async fn a_server_with_the_right_certificate_is_connected_to() {
    let authority = Authority::new("one");
    let right = || Server::with(authority.issue(NAME, |_| {}));
    for (version, host) in
        [(&rustls::version::TLS12, NAME), (&rustls::version::TLS13, "shop.internal.")]
    {
        let versions: &'static [_] = Box::leak(Box::new([version]));
        let server = Server { versions, ..right() };
        assert_eq!(
            connect(&authority.section(), Protocol::Http1, Some(host), server).await,
            Ok(())
        );
    }
    // The configured name is sent and verified instead of the host.
    let name = Some(ServerName::try_from(NAME).unwrap());
    let tls =
        ClientTls::new(&UpstreamTls { server_name: name, ..authority.section() }, Protocol::Http1);
    let tls = tls.unwrap();
    for host in [None, Some("other.internal")] {
        let sent = exchange(&tls, host, &right().acceptor()).await;
        assert_eq!(sent, Ok(Some(NAME.to_owned())));
    }
}

#[tokio::test]
async fn a_server_whose_certificate_does_not_verify_is_not_connected_to() {
    let (authority, other) = (Authority::new("one"), Authority::new("other"));
    let self_signed = |is_ca| {
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        params.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap(), key)
    };
    let ca = || IsCa::Ca(BasicConstraints::Unconstrained);
    let expired = authority.issue(NAME, |params| params.not_after = date_time_ymd(2020, 1, 1));
    let future = authority.issue(NAME, |params| params.not_before = date_time_ymd(4000, 1, 1));
    let for_clients = authority.issue(NAME, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let cases = [
        (expired, TlsFault::Expired),
        (future, TlsFault::NotValidYet),
        (authority.issue("other.internal", |_| {}), TlsFault::OtherName),
        // A wildcard matches one label.
        (authority.issue("*.shop.internal", |_| {}), TlsFault::OtherName),
        (other.issue(NAME, |_| {}), TlsFault::UnknownIssuer),
        // A CA that was made anew.
        (Authority::new("one").issue(NAME, |_| {}), TlsFault::BadSignature),
        (for_clients, TlsFault::OtherPurpose),
        {
            let (certificate, key) = self_signed(IsCa::NoCa);
            (certified(&certificate, &key), TlsFault::UnknownIssuer)
        },
    ];
    for (certificate, fault) in cases {
        let server = Server::with(certificate);
        let connected = connect(&authority.section(), Protocol::Http1, Some(NAME), server).await;
        assert_eq!(connected, Err(fault));
    }
    // A self-signed certificate may be trusted itself, unless it says that it is a CA's.
    for (is_ca, expected) in [(IsCa::NoCa, Ok(())), (ca(), Err(TlsFault::IsOfCa))] {
        let (certificate, key) = self_signed(is_ca);
        let roots = Some(Arc::new(vec![certificate.der().clone()]));
        let section = UpstreamTls { roots, ..authority.section() };
        let server = Server::with(certified(&certificate, &key));
        let connected = connect(&section, Protocol::Http1, Some(NAME), server).await;
        assert_eq!(connected, expected);
    }
}

#[tokio::test]
async fn without_a_name_to_verify_no_handshake_begins() {
    let authority = Authority::new("one");
    for host in [None, Some(""), Some("."), Some("-"), Some("shop..internal"), Some("a b")] {
        let tls = ClientTls::new(&authority.section(), Protocol::Http1).unwrap();
        let (here, mut there) = tokio::io::duplex(16 << 10);
        let fault = tls.connect(here, host).await.map(drop).unwrap_err();
        assert_eq!(fault, TlsFault::NoServerName, "{host:?}");
        assert_eq!(there.read(&mut [0; 10]).await.unwrap(), 0, "nothing was sent");
    }
}

#[tokio::test]
async fn a_certificate_is_verified_on_each_connection() {
    let authority = Authority::new("one");
    let acceptor = Server::with(authority.issue(NAME, |_| {})).acceptor();
    let tls = ClientTls::new(&authority.section(), Protocol::Http1).unwrap();
    for _ in 0..3 {
        let (here, there) = tokio::io::duplex(16 << 10);
        let serve = async {
            let mut stream = acceptor.accept(there).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.get_ref().1.handshake_kind()
        };
        let ask = async { tls.connect(here, Some(NAME)).await.unwrap().read(&mut [0]).await };
        let (kind, _) = tokio::join!(serve, ask);
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_client_certificate_is_presented_if_it_is_required() {
    static TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
    static TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
    let (authority, other) = (Authority::new("one"), Authority::new("other"));
    let server = |version| Server {
        clients: Some(authority.roots()),
        versions: version,
        ..Server::with(authority.issue(NAME, |_| {}))
    };
    let with = |client: Option<Arc<CertifiedKey>>| {
        let client = client.map(|chain_and_key| Certificate {
            file: PathBuf::new(),
            names: Vec::new(),
            expires: SystemTime::UNIX_EPOCH,
            chain_and_key,
        });
        UpstreamTls { client, ..authority.section() }
    };
    for version in [TLS12, TLS13] {
        let ask = async |client| {
            connect(&with(client), Protocol::Http1, Some(NAME), server(version)).await
        };
        assert_eq!(ask(Some(authority.issue("gateway", |_| {}))).await, Ok(()));
        let rejected = ask(Some(other.issue("gateway", |_| {}))).await;
        assert_eq!(rejected, Err(TlsFault::ClientCertificateRejected));
        let renewed = ask(Some(Authority::new("one").issue("gateway", |_| {}))).await;
        assert_eq!(renewed, Err(TlsFault::ClientCertificateRejected));
        let missing = ask(None).await;
        assert_eq!(missing, Err(TlsFault::ClientCertificateRequired));
    }
}

#[tokio::test]
async fn http2_must_be_chosen_by_the_server() {
    let authority = Authority::new("one");
    let section = authority.section();
    let ask = async |protocol, alpn| {
        let server = Server { alpn, ..Server::with(authority.issue(NAME, |_| {})) };
        connect(&section, protocol, Some(NAME), server).await
    };
    assert_eq!(ask(Protocol::Http2, &["http/1.1", "h2"]).await, Ok(()));
    assert_eq!(ask(Protocol::Http2, &["http/1.1"]).await, Err(TlsFault::NoHttp2));
    assert_eq!(ask(Protocol::Http2, &[]).await, Err(TlsFault::NoHttp2));
    // Nothing is offered for HTTP/1.1, so that nothing else can be chosen.
    assert_eq!(ask(Protocol::Http1, &["h2"]).await, Ok(()));
}

#[tokio::test]
async fn a_peer_without_tls_is_named() {
    let cases: [(&[u8], _); 4] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", TlsFault::NotTls),
        (b"SSH-2.0-OpenSSH_9.6\r\n", TlsFault::NotTls),
        (b"", TlsFault::Closed),
        // Alerts: handshake failure, unrecognized name.
        (b"\x15\x03\x03\x00\x02\x02\x28", TlsFault::Rejected(AlertDescription::HandshakeFailure)),
    ];
    for (sent, fault) in cases {
        assert_eq!(fault_of(sent).await, fault);
    }
    assert_eq!(fault_of(b"\x15\x03\x03\x00\x02\x02\x70").await, TlsFault::UnrecognizedName);
    assert_eq!(fault_of(b"\x15\x03\x03\x00\x02\x02\x46").await, TlsFault::NothingInCommon);
}

#[test]
fn roots_that_cannot_be_used_are_an_error() {
    let section = |roots: &[&[u8]]| UpstreamTls {
        server_name: None,
        roots: Some(Arc::new(roots.iter().map(|root| root.to_vec().into()).collect())),
        client: None,
    };
    assert!(ClientTls::new(&section(&[]), Protocol::Http1).is_err());
    assert!(ClientTls::new(&section(&[b"no certificate"]), Protocol::Http1).is_err());
}

#[test]
fn words_for_the_log_have_no_text_of_certificates() {
    let error = CertificateError::NotValidForNameContext {
        expected: ServerName::try_from(NAME).unwrap(),
        presented: vec!["secret-name.internal".to_owned()],
    };
    let fault = TlsFault::of(&io::Error::other(Error::InvalidCertificate(error))).unwrap();
    assert_eq!(
        fault.to_string(),
        "the server's certificate is for another name: see upstream.tls.server_name"
    );
    assert_eq!(TlsFault::of(&io::Error::other("something else")), None);
}
