//! How a server is chosen for a request, and how the request is sent to it: `protocol`, `balance`,
//! `hash`, `host`.

use http::{HeaderName, HeaderValue};
use toml::de::DeValue;

use crate::config::document::from_value::{FromValue, kind, text, word};
use crate::config::document::table::Table;
use crate::config::value::headers::ReservedHeaders;
use crate::config::value::host::HostHeader;
use crate::message::header::FoldedNames;
use crate::message::header::reserved::{
    CLOUD_RUN, ERROR, FROM_TRUSTED, HOP_BY_HOP, OF_FRAMING, WRITTEN,
};

/// The protocol towards the servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Http1,
    /// HTTP/2: with prior knowledge, or selected by ALPN with TLS.
    Http2,
}

/// How a server is chosen for a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// In turn.
    #[default]
    RoundRobin,
    /// Of two random servers, the one with fewer requests in flight.
    LeastRequests,
    /// Consistent: a server that leaves moves only its own requests.
    Hash(HashKey),
}

/// What [`Balance::Hash`] hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// App and openid; without a session the client's address.
    User,
    /// The client's address.
    Address,
    /// The value of a header, several lines joined with ", "; the client's address if it is absent
    /// or empty.
    Header(HeaderName),
}

/// The `Host` header that a server gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UpstreamHost {
    /// As received from the client.
    #[default]
    Client,
    /// As written under `servers`; `localhost` for a unix socket.
    Server,
    Fixed(HeaderValue),
}

/// [`Balance`], without what is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    RoundRobin,
    LeastRequests,
    Hash,
}

/// Reads `balance` and `hash`.
pub fn read(section: &Table<'_>, reserved: ReservedHeaders<'_>) -> Balance {
    let method = section.get::<Method>("balance").map(|method| method.value);
    let hash = section.get::<HashKey>("hash");
    match method {
        Some(Method::Hash) => section
            .report_missing("hash", "write \"user\", \"address\" or { header = \"X-Shop-Id\" }"),
        // A method that is not valid may have been meant to be "hash".
        None if section.has("balance") => {}
        _ if section.has("hash") => {
            section.problem_of("hash", "has no effect without balance = \"hash\"", "");
        }
        _ => {}
    }
    if let Some(HashKey::Header(name)) = hash.as_ref().map(|hash| &hash.value) {
        let own = reserved.names().chain(CLOUD_RUN).chain(WRITTEN).chain(FROM_TRUSTED);
        let own = FoldedNames::new(own.chain(HOP_BY_HOP).chain(OF_FRAMING).chain([ERROR]));
        if own.contains(name.as_str()) {
            let message = format!("\"{name}\" is reserved for the gateway");
            let help = "\"user\" is the identity, and \"address\" the client's address";
            section.problem_of("hash", message, help);
        }
    }
    match (method, hash) {
        (Some(Method::Hash), Some(hash)) => Balance::Hash(hash.value),
        (Some(Method::LeastRequests), _) => Balance::LeastRequests,
        _ => Balance::RoundRobin,
    }
}

impl FromValue for Protocol {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("http1", Self::Http1), ("h2", Self::Http2)])
    }
}

impl FromValue for Method {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let words = [
            ("round_robin", Self::RoundRobin),
            ("least_requests", Self::LeastRequests),
            ("hash", Self::Hash),
        ];
        word(value, &words)
    }
}

impl FromValue for HashKey {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str = "\"user\", \"address\" or { header = \"NAME\" }";
        let Some(table) = value.as_table() else {
            return match text(value, EXPECTED)? {
                "user" => Ok(Self::User),
                "address" => Ok(Self::Address),
                given => Err(format!("expected {EXPECTED}, found \"{given}\"")),
            };
        };
        let mut entries = table.iter();
        match (entries.next(), entries.next()) {
            (Some((key, value)), None) if key.get_ref() == "header" => {
                HeaderName::from_value(value.get_ref()).map(Self::Header)
            }
            _ => Err(format!("expected {EXPECTED}, found {}", kind(value))),
        }
    }
}

impl FromValue for UpstreamHost {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "\"client\", \"server\" or a host")?;
        match given.to_ascii_lowercase().trim_end_matches('s') {
            "client" if given == "client" => Ok(Self::Client),
            "server" if given == "server" => Ok(Self::Server),
            meant @ ("client" | "server") => Err(format!(
                "\"{given}\" would be sent as the name of a host: did you mean \"{meant}\"?"
            )),
            _ => HostHeader::from_value(value).map(|host| Self::Fixed(host.0)),
        }
    }
}
