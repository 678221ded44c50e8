//! `[identity.jwt]`: the identity as a JWT, for services that verify it.
//!
//! At a reload, it warns of a rotation of keys that services could not follow.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use http::header::AUTHORIZATION;
use rustls::pki_types::PrivateKeyDer;
use toml::de::DeValue;

use crate::config::Secrets;
use crate::config::document::from_value::{FromValue, text, word};
use crate::config::document::table::{Located, Table};
use crate::config::section::route::{Route, Target};
use crate::config::section::session::Carriers;
use crate::config::section::upstream::Upstream;
use crate::config::value::headers::report_taken;
use crate::config::value::pem;
use crate::config::value::secret::warn_of_open_file;
use crate::identity::signing_key::{Algorithm, SigningKey};
use crate::message::header::reserved::JWT;

/// The section `[identity.jwt]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSection {
    /// Signs. `None` if secrets are ignored.
    pub key: Option<SigningKey>,
    /// Published, but not signing yet.
    pub next_keys: Vec<SigningKey>,
    /// Published, but not signing any more.
    pub previous_keys: Vec<SigningKey>,
    pub issuer: String,
    /// By name of the upstream, or of a route that has none. Those that are not listed have their
    /// own name.
    pub audiences: BTreeMap<String, String>,
    /// In whole seconds.
    pub lifetime: Duration,
    /// `Authorization`: the JWT is sent as `Bearer`.
    pub header: HeaderName,
}

impl JwtSection {
    pub fn is_bearer(&self) -> bool {
        self.header == AUTHORIZATION
    }

    /// The audience of an upstream, or of a route that has none.
    pub fn audience<'a>(&'a self, name: &'a str) -> &'a str {
        self.audiences.get(name).map_or(name, String::as_str)
    }

    /// All keys that are published.
    pub fn keys(&self) -> impl Iterator<Item = &SigningKey> {
        self.key.iter().chain(&self.next_keys).chain(&self.previous_keys)
    }
}

/// What the section depends on.
pub struct References<'a> {
    pub carriers: Carriers,
    pub secrets: Secrets,
    /// The section of the configuration to be replaced.
    pub running: Option<&'a JwtSection>,
}

impl FromValue for Algorithm {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[Self::Es256, Self::EdDsa].map(|algorithm| (algorithm.as_str(), algorithm)))
    }
}

/// How a key is given.
const KEY_HELP: &str = "write { file = \"/path\" }";

/// A reference to a file with a key.
struct KeyFile(PathBuf);

impl FromValue for KeyFile {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let Some(table) = value.as_table() else {
            return Err(format!("keys must not be written in this file: {KEY_HELP}"));
        };
        let mut entries = table.iter();
        match (entries.next(), entries.next()) {
            (Some((key, value)), None) if key.get_ref() == "file" => {
                PathBuf::from_value(value.get_ref()).map(Self)
            }
            _ => Err(format!("keys are read from files only: {KEY_HELP}")),
        }
    }
}

/// The text of a claim.
struct Claim(String);

impl FromValue for Claim {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "a string")?;
        let is_legal = |c: char| !c.is_control() && !c.is_whitespace();
        if (1..=256).contains(&given.len()) && given.chars().all(is_legal) {
            return Ok(Self(given.to_owned()));
        }
        Err("must be 1 to 256 bytes, without whitespace and control characters".to_owned())
    }
}

/// Reads the section. `None`: there is none, or a problem was reported.
pub fn read(section: &Table<'_>, references: &References<'_>) -> Option<JwtSection> {
    let section = section.optional_table("jwt")?;
    let References { carriers, secrets, running } = *references;
    let algorithm = section.get_or("algorithm", Algorithm::Es256);
    let mut keys = Keys { section: &section, secrets, algorithm, read: Vec::new() };
    section.report_missing("key", KEY_HELP);
    let key = section.get::<KeyFile>("key");
    let has_key = key.is_some();
    let key = keys.read(Vec::from_iter(key)).pop();
    if let Some((place, key)) = key.as_ref().filter(|(_, key)| key.algorithm() != algorithm) {
        let (own, needed) = (key.algorithm(), algorithm.curve());
        let message = format!("contains a key for {}, but {needed} is needed", own.as_str());
        let help = format!("or set algorithm = \"{}\"", own.as_str());
        section.reference_problem(place, message, help);
    }
    let next_keys = keys.read(section.list::<KeyFile>("next_keys").unwrap_or_default());
    let previous_keys = keys.read(section.list::<KeyFile>("previous_keys").unwrap_or_default());
    section.report_missing("issuer", "such as \"https://api.example.com\"");
    let issuer = section.get::<Claim>("issuer").map(|issuer| issuer.value.0);
    let audiences = section.entries::<String, Claim>("audience");
    let audiences =
        audiences.into_iter().map(|(name, audience)| (name.value, audience.value.0)).collect();
    let lifetime = read_lifetime(&section);
    let header = read_header(&section, carriers);
    if let (Some(running), Some((place, key))) = (running, &key) {
        warn_of_rotation(&section, place, key, &keys.read, running);
    }
    let values = |listed: Vec<LocatedKey>| listed.into_iter().map(|(_, key)| key).collect();
    let (key, next_keys, previous_keys) =
        (key.map(|(_, key)| key), values(next_keys), values(previous_keys));
    section.finish();
    let is_complete = has_key && (key.is_some() || secrets == Secrets::Ignore);
    let issuer = issuer.filter(|_| is_complete)?;
    Some(JwtSection { key, next_keys, previous_keys, issuer, audiences, lifetime, header })
}

type LocatedKey = (Located<KeyFile>, SigningKey);

/// Reads files with keys, and reports a key that occurs twice.
struct Keys<'a> {
    section: &'a Table<'a>,
    secrets: Secrets,
    algorithm: Algorithm,
    /// The keys so far, and where each was listed.
    read: Vec<(SigningKey, String)>,
}

impl Keys<'_> {
    fn read(&mut self, files: Vec<Located<KeyFile>>) -> Vec<LocatedKey> {
        let mut found = Vec::with_capacity(files.len());
        for file in files {
            warn_of_open_file(self.section, &file, &file.value.0);
            if self.secrets == Secrets::Ignore {
                continue;
            }
            let Some(key) = self.read_one(&file) else { continue };
            if let Some((_, other)) = self.read.iter().find(|(other, _)| *other == key) {
                let help = format!("also in {other}");
                self.section.reference_problem(&file, "this key is listed twice", help);
            }
            self.read.push((key.clone(), file.key.clone()));
            found.push((file, key));
        }
        found
    }

    fn read_one(&self, file: &Located<KeyFile>) -> Option<SigningKey> {
        let place = Located {
            value: file.value.0.clone(),
            key: file.key.clone(),
            source: file.source,
            span: file.span.clone(),
        };
        let problem = |message: &str, help: &str| {
            self.section.reference_problem(file, message, help);
        };
        match pem::private_key(self.section, &place)? {
            PrivateKeyDer::Pkcs8(der) => match SigningKey::from_pkcs8(der.secret_pkcs8_der()) {
                Ok(key) => return Some(key),
                Err(error) => problem(&error.to_string(), self.command()),
            },
            PrivateKeyDer::Sec1(_) => {
                let help = "convert it with: openssl pkcs8 -topk8 -nocrypt -in FILE -out NEW_FILE";
                problem("contains a private key that is not PKCS#8, but SEC 1", help);
            }
            PrivateKeyDer::Pkcs1(_) => problem("contains an RSA key", self.command()),
            _ => problem("contains a private key that is not PKCS#8", self.command()),
        }
        None
    }

    /// How to make a key.
    fn command(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Es256 => {
                "make a key with: openssl genpkey -algorithm EC -pkeyopt \
                 ec_paramgen_curve:P-256 -out FILE"
            }
            Algorithm::EdDsa => "make a key with: openssl genpkey -algorithm ed25519 -out FILE",
        }
    }
}

fn read_lifetime(section: &Table<'_>) -> Duration {
    const DEFAULT: Duration = Duration::from_secs(60);
    let Some(given) = section.get::<Duration>("lifetime") else { return DEFAULT };
    let is_whole = given.value.subsec_nanos() == 0;
    if is_whole && (10..=3600).contains(&given.value.as_secs()) {
        return given.value;
    }
    section.problem(&given, "must be whole seconds, from 10s to 1h", "");
    DEFAULT
}

fn read_header(section: &Table<'_>, carriers: Carriers) -> HeaderName {
    let Some(given) = section.get::<HeaderName>("header") else {
        return HeaderName::from_static(JWT);
    };
    if given.value != AUTHORIZATION {
        report_taken(section, &given);
    } else if carriers.bearer {
        let message =
            "services get the signed identity in it, so clients cannot send their token in it";
        let help = "remove \"bearer\" from session.carriers, which has it by default";
        section.problem(&given, message, help);
    }
    given.value
}

/// Warns of a change of keys that services could not follow: they fetch the published keys only now
/// and then.
fn warn_of_rotation(
    section: &Table<'_>,
    place: &Located<KeyFile>,
    key: &SigningKey,
    published: &[(SigningKey, String)],
    running: &JwtSection,
) {
    if !running.keys().any(|known| known == key) {
        let message = "services that have fetched the published keys do not know this one yet, and \
                       may refuse its JWTs: list a new key in next_keys first, for 15 minutes or \
                       as long as services keep the keys";
        section.warn(place, message);
    }
    if let Some(signed) = &running.key
        && !published.iter().any(|(known, _)| known == signed)
    {
        let message = format!(
            "the key \"{}\", which has signed until now, is not published any more, and services \
             may refuse its JWTs: list it in previous_keys first",
            signed.kid()
        );
        section.warn(place, &message);
    }
}

/// Reports audiences of names that have no JWT: those that are neither an upstream nor a route
/// without one.
pub fn report_unknown_audiences<'a>(
    root: &Table<'_>,
    upstreams: impl Iterator<Item = &'a Upstream>,
    routes: &'a [Route],
) {
    let own = routes.iter().filter(|route| route.target == Target::ForwardAuthOnly);
    let known: BTreeSet<&str> = upstreams
        .map(|upstream| upstream.name.as_str())
        .chain(own.map(|route| route.name.as_str()))
        .collect();
    let section = root.table("identity").table("jwt");
    let listed = section.raw("audience").and_then(|listed| listed.get_ref().as_table());
    for (name, _) in listed.into_iter().flatten() {
        let text: &str = name.get_ref();
        if !known.contains(text) {
            let message = "is neither an upstream nor a route without one";
            section.push(format!("{}.{text}", section.key("audience")), name.span(), message, "");
        }
    }
}
