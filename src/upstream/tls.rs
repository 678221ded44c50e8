//! TLS towards servers: which certificates are trusted, for which name, and how a failed handshake
//! is described.
//!
//! The certificate of a server is verified on every connection. There is no way to turn that off,
//! and sessions are not resumed: rustls does not verify a certificate again on resumption, so a
//! server whose certificate has expired since would be accepted for days.

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{Protocol, UpstreamTls};

const HTTP2: &[u8] = b"h2";

/// How connections to the servers of an upstream are encrypted. A clone is cheap.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
    needs_http2: bool,
}

impl ClientTls {
    /// Loads the system's CA certificates if the section has none of its own.
    ///
    /// # Errors
    ///
    /// A root of `ca_file` that cannot be used, or no root at all.
    pub fn new(section: &UpstreamTls, protocol: Protocol) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        match &section.roots {
            Some(certificates) => {
                certificates.iter().try_for_each(|root| roots.add(root.clone()))?;
            }
            // The system's store may contain unreadable certificates; the others are used.
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(Error::General("there is no CA certificate".to_owned()));
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &section.client {
            Some(client) => {
                let key = SingleCertAndKey::from(client.chain_and_key.clone());
                builder.with_client_cert_resolver(Arc::new(key))
            }
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        let needs_http2 = protocol == Protocol::Http2;
        if needs_http2 {
            config.alpn_protocols = vec![HTTP2.to_vec()];
        }
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            server_name: section.server_name.clone(),
            needs_http2,
        })
    }

    /// Does the handshake on a new connection. `host`: the host of the server's address, `None` for
    /// an IP address or a unix socket; the section's `server_name` is used instead if it is set.
    /// The caller limits the time.
    ///
    /// With TLS 1.3 a server may reject the client certificate after the handshake; see
    /// [`TlsFault::of`].
    pub async fn connect<S>(&self, io: S, host: Option<&str>) -> Result<TlsStream<S>, TlsFault>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = match (&self.server_name, host) {
            (Some(name), _) => name.clone(),
            (None, Some(host)) => {
                let host = host.strip_suffix('.').unwrap_or(host);
                let name = ServerName::try_from(host).map_err(|_| TlsFault::NoServerName)?;
                name.to_owned()
            }
            (None, None) => return Err(TlsFault::NoServerName),
        };
        let stream = self.connector.connect(name, io).await;
        let stream = stream.map_err(|error| TlsFault::of(&error).unwrap_or(TlsFault::Closed))?;
        if self.needs_http2 && stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
            return Err(TlsFault::NoHttp2);
        }
        Ok(stream)
    }
}

/// Why there is no encrypted connection, in words for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    #[error("the server's certificate has expired")]
    Expired,
    #[error("the server's certificate is not valid yet")]
    NotValidYet,
    #[error("the server's certificate is for another name: see upstream.tls.server_name")]
    OtherName,
    #[error("the server's certificate was not issued by a trusted CA: see upstream.tls.ca_file")]
    UnknownIssuer,
    #[error(
        "the server's certificate is from another CA of the same name: see upstream.tls.ca_file"
    )]
    BadSignature,
    #[error(
        "the server's certificate is a CA certificate (CA:TRUE), which cannot be a server's own"
    )]
    IsOfCa,
    #[error("the server's certificate is not meant for servers (extended key usage)")]
    OtherPurpose,
    #[error("the server's certificate is invalid")]
    Invalid,
    #[error("the server requires a client certificate: see upstream.tls.cert_file")]
    ClientCertificateRequired,
    #[error("the server rejected the client certificate")]
    ClientCertificateRejected,
    #[error("the server did not choose HTTP/2 (ALPN h2): for HTTP/1.1, set protocol = \"http1\"")]
    NoHttp2,
    #[error("the server does not know the server name")]
    UnrecognizedName,
    #[error("the server and the gateway have no TLS version or cipher suite in common")]
    NothingInCommon,
    #[error("the server rejected the handshake ({0:?})")]
    Rejected(AlertDescription),
    #[error("the server responded without TLS: does this port use TLS?")]
    NotTls,
    #[error("the server broke the TLS protocol")]
    Protocol,
    #[error("the connection ended during the TLS handshake")]
    Closed,
    #[error("there is no server name to verify the certificate against")]
    NoServerName,
}

impl TlsFault {
    /// What TLS found wrong, if this is an error of TLS. Also for errors of reading and writing
    /// after the handshake.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Error>().map(Self::of_tls)
    }

    fn of_tls(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::AlertReceived(alert) => Self::of_alert(*alert),
            Error::NoApplicationProtocol => Self::NoHttp2,
            // A record that cannot be one: the first byte is not a type, or the version is none.
            Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => Self::NotTls,
            Error::PeerIncompatible(_) => Self::NothingInCommon,
            _ => Self::Protocol,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotValidYet
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::OtherName
            }
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::BadSignature => Self::BadSignature,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::OtherPurpose
            }
            // The only name of this error; its type belongs to a crate that rustls does not export.
            CertificateError::Other(error) if error.to_string().contains("CaUsedAsEndEntity") => {
                Self::IsOfCa
            }
            _ => Self::Invalid,
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::CertificateRequired => Self::ClientCertificateRequired,
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            // Its signature does not verify: another CA of the same name.
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => Self::ClientCertificateRejected,
            AlertDescription::NoApplicationProtocol => Self::NoHttp2,
            AlertDescription::UnrecognisedName => Self::UnrecognizedName,
            AlertDescription::ProtocolVersion | AlertDescription::InsufficientSecurity => {
                Self::NothingInCommon
            }
            alert => Self::Rejected(alert),
        }
    }
}

#[cfg(test)]
mod tests;
