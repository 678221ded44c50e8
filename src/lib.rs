//! wxgate: WeChat Mini Program login for services, without changes to the services.
//!
//! The glossary is in `README.md` beside this file.
//!
//! # The map
//!
//! A folder uses only folders of lower layers; a test compares this table with the code. The module
//! comment of a folder's `mod.rs`, or of the file itself, says what each file is for.
//!
//! | layer | folder | what it is for |
//! |---|---|---|
//! | 12 | `cli` | the commands: `run`, `check`, `explain`, `demo`, `sandbox` |
//! | 11 | `server` | listeners, workers, signals, reload: starts the gateway from a configuration, and stops it |
//! | 10 | `edge` | prepares accepted connections: their limits, the client's address, TLS, the protocol; forward-auth |
//! | 9 | `proxy` | handles requests: reads and writes every byte on the connections to clients and services |
//! | 9 | `admin` | metrics, probes, and the operator's actions on sessions |
//! | 9 | `internal_api` | what services need session keys, access tokens and the app secret for |
//! | 8 | `policy` | the state of the process, and of one configuration; which requests are admitted |
//! | 7 | `browser` | logins of web pages by a redirect to WeChat or by a scan; tickets; the gateway's own pages |
//! | 6 | `login` | handles logins: turns the body of a login request into its response |
//! | 5 | `access` | finds the session of a request, or rejects it; trusted proxies; identity headers; rate limits |
//! | 5 | `wechat` | calls of WeChat's API: turns a code into an identity, keeps access tokens, passes services' calls through; a simulated WeChat |
//! | 4 | `session` | sessions and when they end: in memory, and in Redis |
//! | 4 | `route` | matches a path to a route or endpoint; how a route changes a request |
//! | 4 | `upstream` | the servers of an upstream: which one is next, and how to connect to it |
//! | 4 | `listener` | what comes before a request: PROXY header, TLS handshake; the server of listeners that are not public |
//! | 3 | `telemetry` | metrics, access log, process log |
//! | 2 | `open_data` | decrypts and verifies what phones get from WeChat for the app's back end |
//! | 2 | `config` | the configuration file, validated |
//! | 1 | `identity` | verified identities: ids, tokens, secrets |
//! | 0 | `message` | HTTP messages: headers, framing, the gateway's own responses and errors |
//! | 0 | `handover` | how state leaves the process, for the next start or in an upgrade |
//! | 0 | `clock` | the clock for lifetimes, and deadlines |
//!
//! # The life of a request
//!
//! `edge` finds out which protocol the client speaks. The rest happens in `proxy`, in one async
//! function for HTTP/1 and HTTP/2. It reads the request header, which `message::request_header`
//! validates, and takes the current `policy`. `route` matches the path, and `access` looks up the
//! session. `upstream` chooses a server. `access::identity_headers` removes headers of the client
//! and writes the gateway's own. Then both bodies are forwarded, in both directions at once. At the
//! end the request is counted and logged.
//!
//! Responses of services are not trusted either: their headers are validated as well, their bodies
//! are framed anew, and hop-by-hop headers are not forwarded.
//!
//! # What this crate does itself
//!
//! This crate parses, frames and writes every byte of HTTP/1 between clients and services: headers
//! in `message` and `proxy::compose`, bodies in `message::chunked` and `proxy::body`. `h2` does the
//! same for HTTP/2, and rustls does TLS, with clients and services. Sockets and timers are tokio's.
//! pingora's connectors open connections to servers, and hickory resolves their names (`upstream`).
//! pingora's proxy, its HTTP parsers, its connection pool and its server are not used. Listeners
//! that are not public use hyper (`listener::small_server` and `edge::forward_auth`).
//!
//! # The life of a login
//!
//! `proxy` reads the body and passes it to `login`. `login` takes the code out of it, `wechat`
//! exchanges the code for an identity, and `session` creates a session. The response contains the
//! token.

pub mod access;
mod admin;
mod browser;
pub mod cli;
pub mod clock;
pub mod config;
mod edge;
pub mod handover;
pub mod identity;
mod internal_api;
pub mod listener;
mod login;
pub mod message;
mod open_data;
mod policy;
mod proxy;
pub mod route;
pub mod server;
pub mod session;
pub mod telemetry;
mod upstream;
pub mod wechat;

/// What the fuzz targets of `tests/fuzz` need. Not public otherwise.
#[cfg(any(fuzzing, test))]
pub mod fuzzing {
    pub use crate::access::cross_site::Site;
    pub use crate::internal_api::fuzzing as internal_api;
    pub use crate::login::request::{ContentType, Fields, LoginRequest, parse as parse_login};
    pub use crate::message::chunked::{Chunked, Malformed};
    pub use crate::message::header::lines;
    pub use crate::message::rejection::Rejection;
    pub use crate::message::response_header::{self as response, Fault, ResponseHeader};
    pub use crate::open_data::{DecryptError, Encrypted, Freshness};
    pub use crate::proxy::body;
    pub use crate::server::upgrade::fuzzing as upgrade;
    pub use crate::session::fuzzing as session;
    /// What is handed over during an upgrade, besides sessions.
    pub mod state {
        pub use crate::access::rate_limiter::RateLimit;
        pub use crate::listener::tls::TicketKeys;
        pub use crate::login::AppRateLimit;
        pub use crate::session::fuzzing::records::{
            MemoryRecords, Operation, Outcome, OwnedRecords, RecordKind,
        };
        pub use crate::wechat::sent_codes::SentCodes;
    }
    pub use crate::wechat::reply::Reply;
    pub use crate::wechat::{Code, ErrCode, WeChatError};
}

// The fuzz targets use the crate's public name.
#[cfg(test)]
extern crate self as wxgate;

#[cfg(test)]
#[path = "../tests/fuzz/replay.rs"]
mod replay;
