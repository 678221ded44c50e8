//! Certificates that are generated for one test, and their files.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion,
};

/// A certificate authority.
pub struct Authority {
    pub certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub struct Issued {
    pub certificate: rcgen::Certificate,
    pub key: KeyPair,
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn authority(common_name: &str) -> CertificateParams {
    let mut params = params(common_name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

impl Authority {
    pub fn root(common_name: &str) -> Self {
        let (params, key) = (authority(common_name), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// An authority whose certificate this one has issued.
    pub fn intermediate(&self, common_name: &str) -> Self {
        self.intermediate_with(common_name, |_| {})
    }

    pub fn intermediate_with(
        &self,
        common_name: &str,
        change: impl Fn(&mut CertificateParams),
    ) -> Self {
        let (mut params, key) = (authority(common_name), KeyPair::generate().unwrap());
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate for these hosts; the first is its common name, too.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, |_| {})
    }

    pub fn issue_with(&self, names: &[&str], change: impl Fn(&mut CertificateParams)) -> Issued {
        let mut params = params(names[0], names);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Issued { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }
}

impl Issued {
    pub fn der(&self) -> &CertificateDer<'static> {
        self.certificate.der()
    }

    /// Writes `NAME.crt`, with these after the certificate, and `NAME.key`, and returns the
    /// keys of TOML that name them.
    pub fn write(&self, directory: &Path, name: &str, after: &[&rcgen::Certificate]) -> String {
        let mut pem = self.certificate.pem();
        pem.extend(after.iter().map(|certificate| certificate.pem()));
        let file = |kind: &str| directory.join(format!("{name}.{kind}"));
        std::fs::write(file("crt"), pem).unwrap();
        std::fs::write(file("key"), self.key.serialize_pem()).unwrap();
        format!("cert_file = {:?}, key_file = {:?}", file("crt"), file("key"))
    }
}

/// A client that accepts any certificate.
pub fn credulous() -> ClientConfig {
    credulous_with(rustls::DEFAULT_VERSIONS, None)
}

/// The same with these versions, and with a client certificate if one is given.
pub fn credulous_with(
    versions: &[&'static SupportedProtocolVersion],
    shown: Option<&Issued>,
) -> ClientConfig {
    super::install_provider();
    let builder = ClientConfig::builder_with_protocol_versions(versions)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let Some(issued) = shown else { return builder.with_no_client_auth() };
    let key = PrivateKeyDer::try_from(issued.key.serialize_der()).unwrap();
    builder.with_client_auth_cert(vec![issued.der().clone()], key).unwrap()
}

#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = CryptoProvider::get_default().unwrap();
        provider.signature_verification_algorithms.supported_schemes()
    }
}
