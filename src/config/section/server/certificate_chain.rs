//! Whether phones accept a certificate file: order, key, dates, completeness.
//!
//! Browsers complete a chain that lacks a certificate, put one of a wrong order right and
//! let their user pass over a date; Mini Programs do none of it, and fail without saying
//! why. So what a file holds is judged here as they would, when the configuration is read,
//! and each verdict says what was found. It does not know what the certificate is for.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::error::X509Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

/// Time to renew a certificate.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// Of a name in a certificate, so much is shown.
const MOST_SHOWN: usize = 64;

/// What makes a chain unusable, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Flaw {
    pub message: String,
    pub help: String,
}

/// Why a key and a chain are no pair.
#[derive(Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The key is of none of the certificates.
    ForeignKey,
    Order(Flaw),
}

/// Subjects of the roots that this machine knows, read when they are first asked for.
#[derive(Default)]
pub struct Roots(OnceCell<HashSet<Vec<u8>>>);

impl Roots {
    fn know(&self, subject: &X509Name<'_>) -> bool {
        let load = || {
            // What cannot be read is not known.
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

/// The certificates of a file, as they stand there.
pub struct Chain<'a>(Vec<X509Certificate<'a>>);

impl<'a> Chain<'a> {
    /// # Errors
    /// When one of them is none.
    pub fn parse(certificates: &'a [CertificateDer<'_>]) -> Result<Self, Flaw> {
        let parse = |(index, der): (usize, &'a CertificateDer<'_>)| {
            X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|_| Flaw {
                message: format!("certificate {} of it cannot be read", index + 1),
                help: "take the file as the issuer gave it".to_owned(),
            })
        };
        certificates.iter().enumerate().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Hosts that the first certificate is for, in lower case.
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

    /// When the first of them expires.
    pub fn expires(&self) -> SystemTime {
        let ends = self.0.iter().map(|certificate| time(certificate.validity().not_after));
        ends.min().unwrap_or(UNIX_EPOCH)
    }

    /// The certificate of the key comes first, then the one that issued it, and so on.
    ///
    /// # Errors
    /// When that is not so.
    pub fn judge_order(&self, public_key: Option<&[u8]>) -> Result<(), Mismatch> {
        let is_of_key = |certificate: &X509Certificate<'_>| {
            public_key.is_none_or(|key| key == certificate.public_key().raw)
        };
        match self.0.iter().position(is_of_key) {
            Some(0) => {}
            Some(index) => {
                let number = index + 1;
                return Err(self.out_of_order(&format!("number {number} is the one of key_file")));
            }
            None => return Err(Mismatch::ForeignKey),
        }
        for (index, (one, next)) in self.0.iter().zip(self.0.iter().skip(1)).enumerate() {
            let (number, next_number) = (index + 1, index + 2);
            if one.issuer().as_raw() != next.subject().as_raw() {
                let what = format!("number {next_number} is not the issuer of number {number}");
                return Err(self.out_of_order(&what));
            }
            // What cannot be computed here is not held against anybody.
            if one.verify_signature(Some(next.public_key()))
                == Err(X509Error::SignatureVerificationError)
            {
                return Err(Mismatch::Order(Flaw {
                    message: format!(
                        "certificate {next_number} has the name of the issuer of number {number}, \
                         but has not signed it"
                    ),
                    help: "it is another one of that name: take the chain that came with the \
                           certificate"
                        .to_owned(),
                }));
            }
        }
        Ok(())
    }

    fn out_of_order(&self, what: &str) -> Mismatch {
        let mut help = "first the certificate itself, then its issuer, and so on; found".to_owned();
        for (index, certificate) in self.0.iter().enumerate() {
            let (subject, issuer) = (shown(certificate.subject()), shown(certificate.issuer()));
            let comma = if index == 0 { "" } else { "," };
            // Writing to a string does not fail.
            let _ = write!(help, "{comma} {}: {subject} issued by {issuer}", index + 1);
        }
        Mismatch::Order(Flaw {
            message: format!("the certificates are not in order: {what}"),
            help,
        })
    }

    /// Says of the one that expires first if that is soon.
    ///
    /// # Errors
    /// When one is not valid at the time.
    pub fn judge_dates(&self, now: SystemTime) -> Result<Option<String>, Flaw> {
        for (index, certificate) in self.0.iter().enumerate() {
            let validity = certificate.validity();
            let (begins, ends) = (time(validity.not_before), time(validity.not_after));
            let help = match index {
                _ if begins > now => "or the clock of this machine is wrong",
                0 => "renew it",
                _ => "take the chain that comes with a renewed certificate",
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

    /// What a client has to know already to trust the chain, if that is not to be expected.
    pub fn gap(&self, roots: &Roots) -> Option<String> {
        let last = self.0.last()?;
        if last.subject().as_raw() == last.issuer().as_raw() {
            return (self.0.len() == 1 && !roots.know(last.subject()))
                .then(|| "the certificate is signed by itself: phones do not trust it".to_owned());
        }
        (!roots.know(last.issuer())).then(|| {
            format!(
                "the chain ends with {} whose issuer {} is no root that this machine knows: \
                 phones do not complete a chain; add the certificates up to the root",
                numbered(self.0.len() - 1, last),
                shown(last.issuer())
            )
        })
    }
}

fn numbered(index: usize, certificate: &X509Certificate<'_>) -> String {
    format!("certificate {}, {},", index + 1, shown(certificate.subject()))
}

/// The common name, or all there is.
fn shown(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|name| name.as_str().ok());
    let text = common.map_or_else(|| name.to_string(), str::to_owned);
    let text: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST_SHOWN).collect();
    format!("\"{text}\"")
}

/// Never before 1970, which is long over too.
fn time(time: x509_parser::time::ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}
