//! `[server.tls]`: the certificates, and the hosts they are for.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SigningKey};
use toml::de::DeValue;

use super::certificate_chain::{Chain, Flaw, Mismatch, Roots};
use crate::config::Secrets;
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::{Located, Table};
use crate::config::value::pem;

/// TLS of the public listeners.
#[derive(Clone, Debug)]
pub struct TlsSection {
    /// Used if no other certificate matches. `None` only if secrets are ignored.
    pub default: Option<Certificate>,
    /// Selected by the requested host name. If two have the same name, the first is used.
    pub certificates: Vec<Certificate>,
    pub handshake_timeout: Duration,
    /// Checks client certificates. `None`: none is requested, or secrets are ignored.
    pub client_verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl TlsSection {
    /// Whether a client that requests this lower-case host gets a certificate that is valid for it.
    pub fn is_for(&self, host: &str) -> bool {
        self.all().any(|certificate| certificate.is_for(host))
    }

    pub fn all(&self) -> impl Iterator<Item = &Certificate> {
        self.certificates.iter().chain(&self.default)
    }
}

impl PartialEq for TlsSection {
    fn eq(&self, other: &Self) -> bool {
        self.default == other.default
            && self.certificates == other.certificates
            && self.handshake_timeout == other.handshake_timeout
            && self.client_verifier.is_some() == other.client_verifier.is_some()
    }
}

/// A validated certificate, with its chain and key.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The path in the configuration.
    pub file: PathBuf,
    /// Hosts that it is for: lower-case names, some with `*.` in front, and addresses.
    pub names: Vec<String>,
    /// The earliest expiry of all certificates in the chain.
    pub expires: SystemTime,
    pub chain_and_key: Arc<CertifiedKey>,
}

impl Certificate {
    fn is_for(&self, host: &str) -> bool {
        let parent = host.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|name| {
            name == host || name.strip_prefix("*.").is_some_and(|name| Some(name) == parent)
        })
    }
}

/// The key is not compared, because it belongs to the certificate.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.file == other.file && self.chain_and_key.cert == other.chain_and_key.cert
    }
}

/// Whether a client must present a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientCertificate {
    Required,
    /// A certificate that is presented must be valid.
    Optional,
}

/// The default.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the section, and the files that it names.
pub fn read(section: Table<'_>, secrets: Secrets) -> TlsSection {
    let roots = Roots::default();
    let default = certificate(&section, secrets, &roots);
    let mut certificates = Vec::new();
    for listed in section.tables("certificate") {
        if let Some((file, certificate)) = certificate(&listed, secrets, &roots) {
            if certificate.names.is_empty() {
                let message = "this certificate would never be used: it has no host name";
                listed.reference_problem(
                    &file,
                    message,
                    "certificates are selected by the host name that a client sends (SNI)",
                );
            }
            certificates.push((file, certificate));
        }
        listed.finish();
    }
    for (index, one) in certificates.iter().chain(&default).enumerate() {
        let earlier = certificates.get(..index).unwrap_or_default();
        warn_of_names_held_before(&section, one, earlier);
    }
    let handshake_timeout = section.positive("handshake_timeout", HANDSHAKE_TIMEOUT);
    let presence = section.get::<ClientCertificate>("client_certificate");
    if let Some(presence) = &presence
        && !section.has("client_ca_file")
    {
        let help = "set server.tls.client_ca_file";
        section.problem(
            presence,
            "no client certificate could be verified: there is no client_ca_file",
            help,
        );
    }
    let presence = presence.map_or(ClientCertificate::Required, |presence| presence.value);
    let client_verifier = client_verifier(&section, presence, secrets);
    section.finish();
    TlsSection {
        default: default.map(|(_, certificate)| certificate),
        certificates: certificates.into_iter().map(|(_, certificate)| certificate).collect(),
        handshake_timeout,
        client_verifier,
    }
}

/// Reads the section of a listener that has one certificate, and the files that it names.
pub fn read_one(section: Table<'_>, secrets: Secrets) -> TlsSection {
    let default = certificate(&section, secrets, &Roots::default());
    let client_verifier = client_verifier(&section, ClientCertificate::Required, secrets);
    section.finish();
    TlsSection {
        default: default.map(|(_, certificate)| certificate),
        certificates: Vec::new(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        client_verifier,
    }
}

fn client_verifier(
    section: &Table<'_>,
    presence: ClientCertificate,
    secrets: Secrets,
) -> Option<Arc<dyn ClientCertVerifier>> {
    let ca_file = section.get::<PathBuf>("client_ca_file");
    let ca_file = ca_file.filter(|_| secrets == Secrets::Load)?;
    let certificates =
        pem::certificates(section, &ca_file, "it must be a PEM file with CA certificates")?;
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates.into_iter().enumerate() {
        if let Err(error) = roots.add(certificate) {
            let message = format!("certificate {} in it cannot be used: {error}", index + 1);
            section.reference_problem(&ca_file, message, "");
            return None;
        }
    }
    let provider = Arc::new(ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match presence {
        ClientCertificate::Required => builder,
        ClientCertificate::Optional => builder.allow_unauthenticated(),
    };
    let report =
        |error| section.reference_problem(&ca_file, format!("cannot be used: {error}"), "");
    builder.build().map_err(report).ok()
}

/// Warns of hosts without a certificate. Nothing is known of them if secrets are ignored.
pub fn warn_of_uncovered<T: fmt::Display>(
    section: &Table<'_>,
    hosts: &[Located<T>],
    tls: &TlsSection,
) {
    if tls.default.is_none() {
        return;
    }
    let is_uncovered =
        |host: &&Located<T>| !tls.is_for(&host.value.to_string().to_ascii_lowercase());
    for host in hosts.iter().filter(is_uncovered) {
        section
            .warn(host, &format!("no certificate in server.tls is valid for \"{}\"", host.value));
    }
}

/// A certificate, and the place where its file is named.
type Placed = (Located<PathBuf>, Certificate);

/// The certificate of a section. `None`: secrets are ignored, or a problem was reported.
fn certificate(section: &Table<'_>, secrets: Secrets, roots: &Roots) -> Option<Placed> {
    let cert_file = section.require::<PathBuf>("cert_file");
    let key_file = section.require::<PathBuf>("key_file");
    if secrets == Secrets::Ignore {
        return None;
    }
    // Both files are read, even if there is a problem with one.
    let certificates = cert_file.as_ref().and_then(|file| {
        pem::certificates(section, file, "it must be a PEM file with the full chain")
    });
    let key = key_file.as_ref().and_then(|file| pem::private_key(section, file));
    let ((cert_file, key_file), (certificates, key)) =
        cert_file.zip(key_file).zip(certificates.zip(key))?;
    let report = |flaw: Flaw| section.reference_problem(&cert_file, flaw.message, flaw.help);
    let (chain, key) = chain_and_key(section, (&cert_file, &key_file), &certificates, key)?;
    match chain.judge_dates(SystemTime::now()) {
        Ok(None) => {}
        Ok(Some(warning)) => section.warn(&cert_file, &warning),
        Err(flaw) => report(flaw),
    }
    if let Some(warning) = chain.gap(roots) {
        section.warn(&cert_file, &warning);
    }
    let names = chain.names();
    if names.is_empty() {
        section.warn(
            &cert_file,
            "the certificate has no host name in its subject alternative names: clients reject it",
        );
    }
    let certificate = Certificate {
        file: cert_file.value.clone(),
        names,
        expires: chain.expires(),
        chain_and_key: Arc::new(CertifiedKey::new(certificates.clone(), key)),
    };
    Some((cert_file, certificate))
}

/// Checks that certificates are a chain, and that a key belongs to it. `files` name the two.
/// `None`: a problem was reported that leaves nothing to check.
pub fn chain_and_key<'a>(
    section: &Table<'_>,
    (cert_file, key_file): (&Located<PathBuf>, &Located<PathBuf>),
    certificates: &'a [CertificateDer<'_>],
    key: PrivateKeyDer<'static>,
) -> Option<(Chain<'a>, Arc<dyn SigningKey>)> {
    let report = |flaw: Flaw| section.reference_problem(cert_file, flaw.message, flaw.help);
    let key = ring::default_provider().key_provider.load_private_key(key);
    let key = key.map_err(|error| {
        section.reference_problem(key_file, format!("cannot be used: {error}"), "");
    });
    let chain = Chain::parse(certificates).map_err(report);
    let (chain, key) = chain.ok().zip(key.ok())?;
    match chain.judge_order(key.public_key().as_deref()) {
        Ok(()) => {}
        Err(Mismatch::ForeignKey) => {
            let message = "does not match the certificate in cert_file";
            section.reference_problem(key_file, message, "");
        }
        Err(Mismatch::Order(flaw)) => report(flaw),
    }
    Some((chain, key))
}

fn warn_of_names_held_before(
    section: &Table<'_>,
    (file, certificate): &Placed,
    earlier: &[Placed],
) {
    for name in &certificate.names {
        let first = earlier.iter().find(|(_, earlier)| earlier.names.contains(name));
        if let Some((first, _)) = first {
            let message = format!("\"{name}\" is also in {}, which is used for it", first.key);
            section.warn(file, &message);
        }
    }
}

impl FromValue for ClientCertificate {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("required", Self::Required), ("optional", Self::Optional)])
    }
}
