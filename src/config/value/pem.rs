//! How certificates and keys are read from PEM files.

use std::path::PathBuf;

use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::config::document::file::{self, LONGEST, io_reason};
use crate::config::document::table::{Located, Table};

const CERTIFICATE: &str = "certificate";
const PRIVATE_KEY: &str = "private key";

/// The certificates of a file. `None`: there are none, and that was reported.
pub fn certificates(
    section: &Table<'_>,
    file: &Located<PathBuf>,
    help: &str,
) -> Option<Vec<CertificateDer<'static>>> {
    let pem = read(section, file)?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if certificates.is_empty() => {
            report(section, file, &pem, CERTIFICATE, help);
            None
        }
        Ok(certificates) => Some(certificates),
        Err(_) => {
            section.reference_problem(file, "contains no valid PEM", "");
            None
        }
    }
}

/// The private key of a file. `None`: there is none, and that was reported.
pub fn private_key(section: &Table<'_>, file: &Located<PathBuf>) -> Option<PrivateKeyDer<'static>> {
    let pem = read(section, file)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Some(key),
        Err(Error::NoItemsFound) => {
            report(section, file, &pem, PRIVATE_KEY, "");
            None
        }
        // The older form of encryption is marked by lines inside the block.
        Err(_) if memchr::memmem::find(&pem, b"ENCRYPTED").is_some() => {
            section.reference_problem(file, ENCRYPTED, DECRYPT);
            None
        }
        Err(_) => {
            section.reference_problem(file, "contains no valid PEM", "");
            None
        }
    }
}

/// The bytes of a file, without a byte order mark. `None`: it cannot be read, and that was
/// reported.
pub fn read(section: &Table<'_>, file: &Located<PathBuf>) -> Option<Zeroizing<Vec<u8>>> {
    section.reads(&file.value);
    match file::read(&file.value, LONGEST) {
        Ok(mut pem) => {
            if pem.starts_with(b"\xef\xbb\xbf") {
                pem.drain(..3);
            }
            Some(Zeroizing::new(pem))
        }
        Err(error) => {
            section.reference_problem(file, io_reason(&error), "");
            None
        }
    }
}

const ENCRYPTED: &str = "contains a private key with a passphrase";
const DECRYPT: &str = "remove it with: openssl pkey -in FILE -out NEW_FILE";

/// Reports what a file contains instead of the expected PEM blocks.
fn report(section: &Table<'_>, file: &Located<PathBuf>, pem: &[u8], wanted: &str, help: &str) {
    let problem = |found: &str, help: &str| {
        let found = if found.is_empty() { String::new() } else { format!(": {found}") };
        section.reference_problem(file, format!("contains no {wanted}{found}"), help);
    };
    match pem {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return problem("it is UTF-16", "save it as UTF-8"),
        // An ASN.1 sequence of more than 127 bytes.
        [0x30, 0x81..=0x83, ..] => {
            let help = match wanted {
                CERTIFICATE => "convert DER to PEM with: openssl x509 -inform der -in FILE",
                _ => "convert DER to PEM with: openssl pkey -inform der -in FILE",
            };
            return problem("it is DER or PKCS#12, not PEM", help);
        }
        _ => {}
    }
    let labels = labels(pem);
    let has = |end: &str| labels.iter().any(|label| label.ends_with(end));
    if labels.is_empty() && memchr::memmem::find(pem, b"-----BEGIN ").is_some() {
        problem("its PEM does not start at the beginning of a line", "is it indented?");
    } else if has("ENCRYPTED PRIVATE KEY") {
        section.reference_problem(file, ENCRYPTED, DECRYPT);
    } else if has("OPENSSH PRIVATE KEY") {
        problem("it is an SSH key", help);
    } else if has("PRIVATE KEY") {
        let is_ca_file = file.key.ends_with("ca_file");
        let swapped = "are cert_file and key_file swapped?";
        problem("it is a private key", if is_ca_file { help } else { swapped });
    } else if has("CERTIFICATE REQUEST") {
        problem(
            "it is a certificate request",
            "use the certificate that the authority issued for it",
        );
    } else if has("PUBLIC KEY") {
        problem("it is a public key", help);
    } else if wanted == PRIVATE_KEY && has("CERTIFICATE") {
        let is_key_file = file.key.ends_with("key_file");
        let swapped = "are cert_file and key_file swapped?";
        problem("it is a certificate", if is_key_file { swapped } else { "" });
    } else {
        let found = labels.first().map_or_else(String::new, |label| format!("it is {label}"));
        problem(&found, help);
    }
}

/// The labels of the blocks of a PEM file.
fn labels(pem: &[u8]) -> Vec<&str> {
    let lines = pem.split(|b| *b == b'\n');
    let label = |line| {
        let line: &str = std::str::from_utf8(line).ok()?.trim_end();
        let label = line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
        let is_plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b' ';
        (label.len() <= 40 && label.bytes().all(is_plain)).then_some(label)
    };
    lines.filter_map(label).collect()
}
