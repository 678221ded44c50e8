//! TLS of the public listeners, as one configuration has it.
//!
//! Made of what the configuration has read and verified, and of nothing else, so that a new
//! configuration brings a new one. What must outlive it is given: the keys that the tickets
//! of clients are sealed with, so that a phone resumes its session with the next
//! configuration too. TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN. `edge` has it shake
//! hands; it does not know what is said on a connection after that.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{
    ClientHello, NoClientAuth, NoServerSessionStorage, ProducesTickets, ResolvesServerCert,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{Certificate, TlsSection};
use crate::telemetry::metrics::Metrics;

/// The ends of handshakes with clients. Clones are one.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    handshake_timeout: Duration,
    metrics: Arc<Metrics>,
}

/// Keys for the tickets of clients, which live as long as the process. A ticket is what a
/// session needs to be resumed, and with the client: rustls would by default remember the
/// last 256 sessions of all. It is good for twelve hours at most.
///
/// # Errors
/// When the system gives no random bytes.
pub fn tickets() -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    ring::Ticketer::new()
}

impl Tls {
    /// # Errors
    /// Only if the versions and ciphers of this code did not go together.
    pub fn new(
        section: &TlsSection,
        tickets: Arc<dyn ProducesTickets>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_client_cert_verifier(match &section.client_verifier {
                Some(verifier) => verifier.clone(),
                None => Arc::new(NoClientAuth),
            })
            .with_cert_resolver(Arc::new(ByName::new(section)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if section.client_verifier.is_none() {
            config.ticketer = tickets;
        } else {
            // Who resumes a session shows no certificate: it may have begun under another
            // configuration, that asked for none or believed others.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            handshake_timeout: section.handshake_timeout,
            metrics,
        })
    }

    /// Shakes hands. `None`: that failed, the client was told as far as it may be, and there is
    /// nothing left to do.
    pub async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let reason = match timeout(self.handshake_timeout, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
            // Who just leaves may be a balancer that looks for an open port.
            Ok(Err(_)) => return None,
            Err(_) => "it was not over in time".to_owned(),
        };
        // Whose fault it is cannot be told, and most are somebody's scan.
        tracing::debug!(reason, "a handshake failed");
        self.metrics.handshake_failed();
        None
    }
}

/// The certificate for the name that a client asks for.
#[derive(Debug)]
struct ByName {
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// By what stands behind `*.`.
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// Without one no handshake without a known name comes to an end.
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
        // rustls has put it in lower case.
        let named = hello.server_name().and_then(|name| self.get(name));
        named.or(self.default.as_ref()).cloned()
    }
}
