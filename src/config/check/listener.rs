//! Where the gateway listens, and with which certificate.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::secret::io_reason;
use crate::config::reader::{Located, Section, values};
use crate::config::{AdminSection, Secrets, ServerSection, Tls};

pub fn server(section: Section<'_>, secrets: Secrets) -> Option<ServerSection> {
    let listen = section.require_some::<SocketAddr>("listen", "as \"0.0.0.0:8080\"");
    report_repeated(&section, &listen, |address| address.port() != 0);

    let threads = match section.get_or("threads", 0usize) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let server = ServerSection {
        listen: values(listen),
        threads,
        tls: section.optional_section("tls").and_then(|tls| read_tls(tls, secrets)),
        trusted_proxies: values(section.list("trusted_proxies").unwrap_or_default()),
        shutdown_delay: section.get_or("shutdown_delay", Duration::ZERO),
        drain_timeout: section.get_or("drain_timeout", Duration::from_secs(25)),
    };
    section.finish();
    (!server.listen.is_empty()).then_some(server)
}

fn read_tls(section: Section<'_>, secrets: Secrets) -> Option<Tls> {
    let cert_file = section.require::<PathBuf>("cert_file");
    let key_file = section.require::<PathBuf>("key_file");
    let tls = cert_file.zip(key_file).and_then(|(cert_file, key_file)| {
        let server_config = match secrets {
            Secrets::Load => Some(load_tls(&section, &cert_file, &key_file)?),
            Secrets::Ignore => None,
        };
        Some(Tls { cert_file: cert_file.value, key_file: key_file.value, server_config })
    });
    section.finish();
    tls
}

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN.
fn load_tls(
    section: &Section<'_>,
    cert_file: &Located<PathBuf>,
    key_file: &Located<PathBuf>,
) -> Option<Arc<rustls::ServerConfig>> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&cert_file.value).and_then(Iterator::collect);
    let chain = match chain {
        Ok(chain) if chain.is_empty() => {
            section.problem(cert_file, "holds no certificate", "a PEM file with the full chain");
            None
        }
        Ok(chain) => Some(chain),
        Err(error) => {
            section.problem(cert_file, format!("cannot be read: {}", pem_error(&error)), "");
            None
        }
    };
    let key = match PrivateKeyDer::from_pem_file(&key_file.value) {
        Ok(key) => Some(key),
        Err(error) => {
            section.problem(key_file, format!("cannot be read: {}", pem_error(&error)), "");
            None
        }
    };
    let (chain, key) = chain.zip(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    match config {
        Ok(mut config) => {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Some(Arc::new(config))
        }
        Err(rustls::Error::InconsistentKeys(_)) => {
            section.problem(key_file, "does not belong to the certificate in cert_file", "");
            None
        }
        Err(error) => {
            section.problem(cert_file, format!("cannot be used: {error}"), "");
            None
        }
    }
}

pub fn pem_error(error: &rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    match error {
        Error::Io(error) => io_reason(error),
        Error::NoItemsFound => "holds no PEM of the right kind".to_owned(),
        _ => "is not PEM".to_owned(),
    }
}

pub fn admin(section: Section<'_>, server: Option<&ServerSection>) -> AdminSection {
    let default = SocketAddr::from(([127, 0, 0, 1], 9090));
    let listen = section.get::<SocketAddr>("listen");
    if let Some(listen) = &listen
        && listen.value.port() != 0
        && server.is_some_and(|server| server.listen.contains(&listen.value))
    {
        section.problem(
            listen,
            "is a public listener too",
            "metrics never stand on a public listener: choose another port",
        );
    }
    section.finish();
    AdminSection { listen: listen.map_or(default, |listen| listen.value) }
}

fn report_repeated<T: PartialEq>(
    section: &Section<'_>,
    listed: &[Located<T>],
    counts: impl Fn(&T) -> bool,
) {
    for (index, one) in listed.iter().enumerate() {
        if counts(&one.value) && listed.iter().take(index).any(|earlier| earlier.value == one.value)
        {
            section.problem(one, "stands twice", "");
        }
    }
}
