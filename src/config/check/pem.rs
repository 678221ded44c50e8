//! Certificates and keys in PEM files that the configuration names.

use std::path::PathBuf;

use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::config::diagnostic::io_reason;
use crate::config::file::{self, LONGEST};
use crate::config::reader::{Located, Section};

/// The certificates of a file. `None` when there are none and that was reported.
pub fn certificates(
    section: &Section<'_>,
    file: &Located<PathBuf>,
    help: &str,
) -> Option<Vec<CertificateDer<'static>>> {
    section.reads(&file.value);
    let certificates: Result<Vec<_>, _> = file::read(&file.value, LONGEST)
        .map_err(Error::Io)
        .and_then(|pem| CertificateDer::pem_slice_iter(&pem).collect());
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            section.reference_problem(file, "holds no certificate", help);
            None
        }
        Ok(certificates) => Some(certificates),
        Err(error) => {
            section.reference_problem(file, reason(&error), "");
            None
        }
    }
}

/// The private key of a file. `None` when there is none and that was reported.
pub fn private_key(
    section: &Section<'_>,
    file: &Located<PathBuf>,
) -> Option<PrivateKeyDer<'static>> {
    section.reads(&file.value);
    let key = file::read(&file.value, LONGEST)
        .map(Zeroizing::new)
        .map_err(Error::Io)
        .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem));
    key.map_err(|error| section.reference_problem(file, reason(&error), "")).ok()
}

fn reason(error: &Error) -> String {
    match error {
        Error::Io(error) => io_reason(error),
        Error::NoItemsFound => "holds no PEM of the right kind".to_owned(),
        _ => "holds no valid PEM".to_owned(),
    }
}
