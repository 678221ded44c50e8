//! `[upstream.tls]`: HTTPS to the servers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use toml::de::DeValue;

use super::server::{ServerAddress, ServerEntry};
use crate::config::Secrets;
use crate::config::document::from_value::{FromValue, text};
use crate::config::document::table::Table;
use crate::config::section::server::tls::{Certificate, chain_and_key};
use crate::config::value::pem;

/// TLS towards the servers of an upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamTls {
    /// The name that certificates are verified against. `None`: the host of the address, and then
    /// every server has one.
    pub server_name: Option<ServerName<'static>>,
    /// The certificates of `ca_file`. `None`: the system's roots, or secrets are ignored.
    pub roots: Option<Arc<Vec<CertificateDer<'static>>>>,
    /// The client certificate. `None`: none is sent, or secrets are ignored.
    pub client: Option<Certificate>,
}

impl Eq for UpstreamTls {}

/// Reads the section, and the files that it names.
pub fn read(section: Table<'_>, servers: &[ServerEntry], secrets: Secrets) -> UpstreamTls {
    let server_name = section.get::<Name>("server_name").map(|name| name.value.0);
    let nameless = servers.iter().find(|server| !has_name(&server.address));
    if let Some(server) = nameless
        && !section.has("server_name")
    {
        let help =
            format!("write the name in the servers' certificates: {} has no name", server.address);
        section.report_missing("server_name", &help);
    }
    let tls = UpstreamTls {
        server_name,
        roots: roots(&section, secrets).map(Arc::new),
        client: client(&section, secrets),
    };
    section.finish();
    tls
}

/// Whether a certificate can be for the host of an address.
fn has_name(address: &ServerAddress) -> bool {
    match address {
        ServerAddress::Socket(_) | ServerAddress::Unix(_) => false,
        ServerAddress::Host { host, .. } => {
            ServerName::try_from(host.trim_end_matches('.')).is_ok()
        }
    }
}

fn roots(section: &Table<'_>, secrets: Secrets) -> Option<Vec<CertificateDer<'static>>> {
    let ca_file = section.get::<PathBuf>("ca_file");
    let ca_file = ca_file.filter(|_| secrets == Secrets::Load)?;
    let help = "it must be a PEM file with CA certificates";
    let certificates = pem::certificates(section, &ca_file, help)?;
    let mut store = RootCertStore::empty();
    for (index, certificate) in certificates.iter().enumerate() {
        if let Err(error) = store.add(certificate.clone()) {
            let message = format!("certificate {} in it cannot be used: {error}", index + 1);
            section.reference_problem(&ca_file, message, "");
        }
    }
    Some(certificates)
}

/// `None`: there is none, secrets are ignored, or a problem was reported.
fn client(section: &Table<'_>, secrets: Secrets) -> Option<Certificate> {
    let cert_file = section.get::<PathBuf>("cert_file");
    let key_file = section.get::<PathBuf>("key_file");
    if section.has("cert_file") || section.has("key_file") {
        let help = "a client certificate needs cert_file and key_file";
        section.report_missing("cert_file", help);
        section.report_missing("key_file", help);
    }
    let (cert_file, key_file) = cert_file.zip(key_file).filter(|_| secrets == Secrets::Load)?;
    // Both files are read, even if there is a problem with one.
    let help = "it must be a PEM file with the full chain";
    let certificates = pem::certificates(section, &cert_file, help);
    let key = pem::private_key(section, &key_file);
    let (certificates, key) = certificates.zip(key)?;
    let (chain, key) = chain_and_key(section, (&cert_file, &key_file), &certificates, key)?;
    // The services decide whether they accept it, and the gateway has other upstreams.
    match chain.judge_dates(SystemTime::now()) {
        Ok(None) => {}
        Ok(Some(warning)) => section.warn(&cert_file, &warning),
        Err(flaw) => section.warn(&cert_file, &format!("{}: {}", flaw.message, flaw.help)),
    }
    Some(Certificate {
        file: cert_file.value.clone(),
        names: chain.names(),
        expires: chain.expires(),
        chain_and_key: Arc::new(CertifiedKey::new(certificates.clone(), key)),
    })
}

/// What a certificate is verified against.
struct Name(ServerName<'static>);

impl FromValue for Name {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str =
            "the name in the certificates of the servers, such as \"shop.internal\"";
        let given = text(value, EXPECTED)?;
        if given.is_empty() {
            return Err(format!("is empty: expected {EXPECTED}"));
        }
        ServerName::try_from(given.to_owned())
            .map(Self)
            .map_err(|_| format!("expected {EXPECTED}, found \"{given}\""))
    }
}
