//! TLS of listeners, for one configuration.
//!
//! A [`Tls`] is built from what the configuration has read and verified, and from nothing else; a
//! reload builds a new one. The keys for session tickets outlive it, so they are passed in: a phone
//! can resume its TLS session after a reload. TLS 1.2 and 1.3 are accepted, and ALPN selects HTTP/2
//! or HTTP/1.1. `edge` calls this module for the handshake; the module does not know what is sent
//! afterwards.

mod tickets;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, NoClientAuth, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use self::tickets::TicketKeys;
use crate::config::{Certificate, TlsSection};
use crate::telemetry::metrics::Metrics;

/// The protocols that a listener offers in the handshake.
#[derive(Clone, Copy)]
pub enum Alpn {
    /// HTTP/2 and HTTP/1.1.
    Http2,
    /// HTTP/1.1 only.
    Http1,
}

/// Does the handshakes with clients. Clones share one configuration.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    handshake_timeout: Duration,
    metrics: Arc<Metrics>,
}

impl Tls {
    /// Builds the TLS configuration of listeners. With `tickets`, the client keeps what is needed
    /// to resume its TLS session: by default rustls would keep the sessions itself, and only the
    /// last 256 of all clients. A ticket is valid for twelve hours at most.
    ///
    /// # Errors
    /// Only if the versions and ciphers in this code were not compatible.
    pub fn new(
        section: &TlsSection,
        tickets: Arc<TicketKeys>,
        metrics: Arc<Metrics>,
        alpn: Alpn,
    ) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_client_cert_verifier(match &section.client_verifier {
                Some(verifier) => verifier.clone(),
                None => Arc::new(NoClientAuth),
            })
            .with_cert_resolver(Arc::new(ByName::new(section)));
        config.alpn_protocols = match alpn {
            Alpn::Http2 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Alpn::Http1 => vec![b"http/1.1".to_vec()],
        };
        if section.client_verifier.is_none() {
            config.ticketer = tickets;
        } else {
            // A client that resumes a session shows no certificate. The session may have begun
            // under another configuration, which required none or trusted other issuers.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            handshake_timeout: section.handshake_timeout,
            metrics,
        })
    }

    /// Does the handshake. `None`: it failed, the client was notified if possible, and nothing is
    /// left to do.
    pub async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let reason = match timeout(self.handshake_timeout, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
            // A client that disconnects may be a load balancer's port probe.
            Ok(Err(_)) => return None,
            Err(_) => "timed out".to_owned(),
        };
        // It is unknown whose fault it is, and most failures come from scans.
        tracing::debug!(reason, "TLS handshake failed");
        self.metrics.handshake_failed();
        None
    }
}

/// Chooses the certificate for the name that a client requests.
#[derive(Debug)]
struct ByName {
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// Without a default, handshakes without a known name fail.
    default: Option<Arc<CertifiedKey>>,
}

impl ByName {
    fn new(section: &TlsSection) -> Self {
        let chain_and_key = |certificate: &Certificate| certificate.chain_and_key.clone();
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for certificate in &section.certificates {
            for name in &certificate.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent),
                    None => (&mut exact, name.as_str()),
                };
                names.entry(name.into()).or_insert_with(|| chain_and_key(certificate));
            }
        }
        Self { exact, wildcard, default: section.default.as_ref().map(chain_and_key) }
    }

    /// `name` is in lower case.
    fn get(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.exact.get(name).or_else(|| self.wildcard.get(parent?))
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls has converted it to lower case.
        let named = hello.server_name().and_then(|name| self.get(name));
        named.or(self.default.as_ref()).cloned()
    }
}
