//! wxgate: WeChat Mini Program login in front of services that stay as they are.
//!
//! The words of the project are in `README.md` beside this file.
//!
//! # The map
//!
//! A module uses only modules of lower layers; a test holds this table against the code.
//!
//! | layer | module | what it decides |
//! |---|---|---|
//! | 8 | `demo` | `wxgate demo`: sandbox, echo service and gateway in one process |
//! | 8 | `signals` | which signals there are, and what each of them orders |
//! | 7 | `server` | listeners, workers, signals: from a configuration to a running gateway, and to its end |
//! | 6 | `reload` | taking a changed configuration into service |
//! | 6 | `edge` | which public connections are accepted, whose they are, and what protocol they speak |
//! | 5 | `proxy` | the life of a request, and every byte that goes to its client and its service |
//! | 5 | `forward_auth` | the decision alone, for those who keep another proxy in front |
//! | 5 | `admin` | metrics, probes, and the operator's hold on users' sessions |
//! | 4 | `explain` | what would become of a request, in words |
//! | 4 | `policy` | what lives as long as the process, or as one configuration |
//! | 3 | `auth` | from headers to a session, or to a refusal |
//! | 3 | `login` | from a login's body to its answer |
//! | 3 | `access_log` | one line a request |
//! | 3 | `forwarded` | whose word counts about where a request came from |
//! | 2 | `session` | what a token stands for, and for how long |
//! | 2 | `wechat` | a one-time code traded for an identity |
//! | 2 | `head` | whether the header of a request or response has only one reading |
//! | 2 | `route` | which route or endpoint a path is for |
//! | 2 | `upstream` | which server is next, and how it is connected to |
//! | 2 | `tls` | the handshake with clients: certificates by name, versions, tickets |
//! | 2 | `websocket` | when a request may become one, and how long it may stay one |
//! | 2 | `rate_limit` | how often somebody may ask |
//! | 2 | `inject` | the headers that are the gateway's to write |
//! | 2 | `log_file` | a log file that can be reopened |
//! | 2 | `telemetry` | the process's own log |
//! | 2 | `sandbox` | a simulated WeChat |
//! | 1 | `caching` | cache headers of responses |
//! | 1 | `config` | the file, validated |
//! | 1 | `rejection` | the closed list of error answers |
//! | 1 | `log_writer` | writing logs without waiting for them |
//! | 1 | `seldom` | what is said at most once a minute |
//! | 1 | `token` | what a session token looks like |
//! | 1 | `chunked` | where a chunked body ends, and which of its bytes are data |
//! | 0 | `answer` | an answer of the gateway's own, before it meets a protocol |
//! | 0 | `clock` | the time that sessions live by |
//! | 0 | `deadline` | a time limit that is moved often and seldom met |
//! | 0 | `error_body` | the body of an error answer, by template |
//! | 0 | `header` | how header names and values are read |
//! | 0 | `http_server` | a small server for what is not public |
//! | 0 | `identity` | who was proved |
//! | 0 | `lifecycle` | serving, draining or closing |
//! | 0 | `metrics` | counters, one method per event |
//! | 0 | `secret` | what cannot be printed |
//!
//! # The life of a request
//!
//! `edge` finds out what protocol its connection speaks. The rest is `proxy`, one async function
//! for HTTP/1 and HTTP/2: it reads the request header, which `head` judges, and takes the current
//! `policy`; `route` matches the path, and `auth` looks the session up; `upstream` chooses a
//! server, and `inject` says which headers are removed and writes the gateway's own. Then both
//! bodies are forwarded, in both directions at once, and at the end the request is counted and
//! logged.
//!
//! What a request may not do, a response may not either: the header of a service's response is
//! judged as strictly, its framing is never copied, and what it says of its connection stays there.
//!
//! # What is ours, and what is pingora's
//!
//! This crate parses, frames and writes every byte of HTTP/1 between clients and services: headers
//! in `head` and `proxy::compose`, bodies in `chunked` and `proxy::body`. `h2` does the same for
//! clients of HTTP/2, and rustls their TLS; sockets and timers are tokio's. pingora is used for two
//! things: its connectors open connections to servers (`proxy`), and its service discovery updates
//! an upstream's list of servers (`upstream`). Its proxy, its HTTP parsers, its pool of connections
//! and its server are not used. The listeners that are not public use hyper (`http_server`).
//!
//! # The life of a login
//!
//! `proxy` reads the body and hands it to `login`, which takes the code out of it, has
//! `wechat` trade it for an identity, starts a session in `session`, and answers with the
//! token.

mod access_log;
mod admin;
mod answer;
pub mod auth;
mod caching;
mod chunked;
pub mod clock;
pub mod config;
mod deadline;
pub mod demo;
mod edge;
mod error_body;
pub mod explain;
mod forward_auth;
pub mod forwarded;
pub mod head;
mod header;
pub mod http_server;
pub mod identity;
pub mod inject;
mod lifecycle;
mod log_file;
mod log_writer;
mod login;
pub mod metrics;
mod policy;
mod proxy;
mod rate_limit;
mod rejection;
pub mod reload;
pub mod route;
pub mod sandbox;
pub mod secret;
mod seldom;
pub mod server;
pub mod session;
pub mod signals;
pub mod telemetry;
pub mod tls;
mod token;
mod upstream;
mod websocket;
pub mod wechat;

/// What the fuzz targets of `tests/fuzz` need, and nobody outside the crate may use.
#[cfg(any(fuzzing, test))]
pub mod fuzzing {
    pub use crate::chunked::{Chunked, Malformed};
    pub use crate::head::response::{self, Fault, ResponseHead};
    pub use crate::head::{Framing, Head, HeadLimits, judge};
    pub use crate::header::lines;
    pub use crate::login::request::{ContentType, Fields, LoginRequest, parse as parse_login};
    pub use crate::proxy::body;
    pub use crate::rejection::Rejection;
    pub use crate::wechat::reply::Reply;
    pub use crate::wechat::{Code, ErrCode, WeChatError};
}

// The targets name the crate as if from outside.
#[cfg(test)]
extern crate self as wxgate;

#[cfg(test)]
#[path = "../tests/fuzz/replay.rs"]
mod replay;
