//! Connections to the gateway, with or without TLS, and the responses on them.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::client::Response;

pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A client's side of TLS that trusts this certificate.
pub fn trusting(identity: &CertifiedKey<KeyPair>) -> Arc<rustls::ClientConfig> {
    crate::harness::install_provider();
    let mut roots = RootCertStore::empty();
    roots.add(identity.cert.der().clone()).unwrap();
    let config = rustls::ClientConfig::builder();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

pub async fn connect(
    address: SocketAddr,
    tls: Option<&Arc<rustls::ClientConfig>>,
    protocols: &[&str],
) -> Box<dyn Wire> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let Some(tls) = tls else { return Box::new(stream) };
    let mut tls = rustls::ClientConfig::clone(tls);
    tls.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    Box::new(TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap())
}

pub struct ReadResponses {
    pub responses: Vec<Response>,
    pub has_ended: bool,
}

/// Reads complete responses until there are enough of them, or to the end.
pub async fn read_responses(
    wire: &mut (impl AsyncRead + Unpin),
    is_first_bodyless: bool,
    are_enough: impl Fn(&[Response]) -> bool,
) -> ReadResponses {
    let mut bytes = Vec::new();
    let mut responses = Vec::new();
    loop {
        let read = Pin::new(&mut *wire).read_buf(&mut bytes).await;
        let has_ended = !matches!(read, Ok(1..));
        while let Some((response, length)) =
            Response::parse(&bytes, is_first_bodyless && responses.is_empty(), has_ended)
        {
            bytes.drain(..length);
            responses.push(response);
        }
        if has_ended || are_enough(&responses) {
            return ReadResponses { responses, has_ended };
        }
    }
}
