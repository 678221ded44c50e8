//! Checks whether phones accept a certificate file: order, key, dates, completeness.
//!
//! Browsers complete an incomplete chain, reorder one in the wrong order, and let the user ignore a
//! date. Mini Programs do none of this, and fail without a reason. So certificates are checked here
//! by the rules of Mini Programs, when the configuration is read, and each problem says what was
//! found. This module does not know what the certificate is used for.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::error::X509Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

/// How early to warn of a certificate that expires.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// Maximum number of characters shown of a name in a certificate.
const MOST_SHOWN: usize = 64;

/// Why a chain cannot be used, and how to fix it.
#[derive(Debug, PartialEq, Eq)]
pub struct Flaw {
    pub message: String,
    pub help: String,
}

/// Why a key and a chain do not match.
#[derive(Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The key belongs to none of the certificates.
    ForeignKey,
    Order(Flaw),
}

/// Subjects of the root certificates of this machine, read on first use.
#[derive(Default)]
pub struct Roots(OnceCell<HashSet<Vec<u8>>>);

impl Roots {
    fn know(&self, subject: &X509Name<'_>) -> bool {
        let load = || {
            // Roots that cannot be read count as unknown.
            let found = rustls_native_certs::load_native_certs().certs;
            let subject = |root: &CertificateDer<'_>| {
                let (_, root) = X509Certificate::from_der(root).ok()?;
                Some(root.subject().as_raw().to_vec())
            };
            found.iter().filter_map(subject).collect()
        };
        self.0.get_or_init(load).contains(subject.as_raw())
    }
}

/// The certificates of a file, in its order.
pub struct Chain<'a>(Vec<X509Certificate<'a>>);

impl<'a> Chain<'a> {
    /// # Errors
    /// When one of them is not a certificate.
    pub fn parse(certificates: &'a [CertificateDer<'_>]) -> Result<Self, Flaw> {
        let parse = |(index, der): (usize, &'a CertificateDer<'_>)| {
            X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|_| Flaw {
                message: format!("certificate {} in it cannot be parsed", index + 1),
                help: "use the file as the issuer provided it".to_owned(),
            })
        };
        certificates.iter().enumerate().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Hosts of the first certificate, in lower case.
    pub fn names(&self) -> Vec<String> {
        let leaf = self.0.first();
        let names = leaf.and_then(|leaf| leaf.subject_alternative_name().ok().flatten());
        let names = names.into_iter().flat_map(|names| &names.value.general_names);
        names
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                GeneralName::IPAddress(address) => match address.len() {
                    4 => <[u8; 4]>::try_from(*address).ok().map(|a| Ipv4Addr::from(a).to_string()),
                    _ => <[u8; 16]>::try_from(*address).ok().map(|a| Ipv6Addr::from(a).to_string()),
                },
                _ => None,
            })
            .collect()
    }

    /// When the first of the certificates expires.
    pub fn expires(&self) -> SystemTime {
        let ends = self.0.iter().map(|certificate| time(certificate.validity().not_after));
        ends.min().unwrap_or(UNIX_EPOCH)
    }

    /// Checks that the certificate of the key comes first, then its issuer, and so on.
    ///
    /// # Errors
    /// When the order is different.
    pub fn judge_order(&self, public_key: Option<&[u8]>) -> Result<(), Mismatch> {
        let is_of_key = |certificate: &X509Certificate<'_>| {
            public_key.is_none_or(|key| key == certificate.public_key().raw)
        };
        match self.0.iter().position(is_of_key) {
            Some(0) => {}
            Some(index) => {
                let number = index + 1;
                return Err(
                    self.out_of_order(&format!("number {number} is the one that matches key_file"))
                );
            }
            None => return Err(Mismatch::ForeignKey),
        }
        for (index, (one, next)) in self.0.iter().zip(self.0.iter().skip(1)).enumerate() {
            let (number, next_number) = (index + 1, index + 2);
            if one.issuer().as_raw() != next.subject().as_raw() {
                let what = format!("number {next_number} is not the issuer of number {number}");
                return Err(self.out_of_order(&what));
            }
            // A signature that cannot be verified here, for example of an unknown algorithm, is
            // accepted.
            if one.verify_signature(Some(next.public_key()))
                == Err(X509Error::SignatureVerificationError)
            {
                return Err(Mismatch::Order(Flaw {
                    message: format!(
                        "certificate {next_number} has the name of the issuer of certificate {number}, \
                         but did not sign it"
                    ),
                    help: "use the chain that was issued with the certificate".to_owned(),
                }));
            }
        }
        Ok(())
    }

    fn out_of_order(&self, what: &str) -> Mismatch {
        let mut help =
            "expected the certificate itself, then its issuer, and so on; found".to_owned();
        for (index, certificate) in self.0.iter().enumerate() {
            let (subject, issuer) = (shown(certificate.subject()), shown(certificate.issuer()));
            let comma = if index == 0 { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(help, "{comma} {}: {subject} issued by {issuer}", index + 1);
        }
        Mismatch::Order(Flaw {
            message: format!("the certificates are in the wrong order: {what}"),
            help,
        })
    }

    /// Checks the dates; returns a warning if the earliest expiry is near.
    ///
    /// # Errors
    /// When a certificate is not valid at `now`.
    pub fn judge_dates(&self, now: SystemTime) -> Result<Option<String>, Flaw> {
        for (index, certificate) in self.0.iter().enumerate() {
            let validity = certificate.validity();
            let (begins, ends) = (time(validity.not_before), time(validity.not_after));
            let help = match index {
                _ if begins > now => "also check the clock of this machine",
                0 => "renew it",
                _ => "use the chain of a renewed certificate",
            };
            let what = if begins > now {
                format!("is valid only from {}", humantime::format_rfc3339_seconds(begins))
            } else if ends < now {
                format!("expired on {}", humantime::format_rfc3339_seconds(ends))
            } else {
                continue;
            };
            let message = format!("{} {what}", numbered(index, certificate));
            return Err(Flaw { message, help: help.to_owned() });
        }
        let first = self.0.iter().enumerate().min_by_key(|(_, one)| one.validity().not_after);
        let left = self.expires().duration_since(now).unwrap_or_default();
        Ok(first.filter(|_| left < SOON).map(|(index, certificate)| {
            format!(
                "{} expires on {}, in {} days: renew it",
                numbered(index, certificate),
                humantime::format_rfc3339_seconds(self.expires()),
                left.as_secs() / (24 * 3600)
            )
        }))
    }

    /// Returns a warning if phones probably lack a certificate that they need to trust the chain.
    pub fn gap(&self, roots: &Roots) -> Option<String> {
        let last = self.0.last()?;
        if last.subject().as_raw() == last.issuer().as_raw() {
            return (self.0.len() == 1 && !roots.know(last.subject()))
                .then(|| "the certificate is self-signed: phones do not trust it".to_owned());
        }
        (!roots.know(last.issuer())).then(|| {
            format!(
                "the chain ends with {} whose issuer {} is not a root certificate of this machine: \
                 phones do not fetch missing certificates; add all of them, up to the root",
                numbered(self.0.len() - 1, last),
                shown(last.issuer())
            )
        })
    }
}

fn numbered(index: usize, certificate: &X509Certificate<'_>) -> String {
    format!("certificate {}, {},", index + 1, shown(certificate.subject()))
}

/// The common name, or else the whole name.
fn shown(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|name| name.as_str().ok());
    let text = common.map_or_else(|| name.to_string(), str::to_owned);
    let text: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST_SHOWN).collect();
    format!("\"{text}\"")
}

/// Dates before 1970 count as 1970, which is expired as well.
fn time(time: x509_parser::time::ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}
