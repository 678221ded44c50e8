//! wxgate: WeChat Mini Program login in front of services that stay as they are.
//!
//! The words of the project are in `README.md` beside this file.
//!
//! # The map
//!
//! A folder uses only folders of lower layers; a test holds this table against the code. What its
//! files decide is in the header of its `mod.rs`, or in their own.
//!
//! | layer | folder | what it decides |
//! |---|---|---|
//! | 11 | `cli` | the commands: `run`, `check`, `explain`, `demo`, `sandbox` |
//! | 10 | `server` | listeners, workers, signals, reload: from a configuration to a running gateway, and to its end |
//! | 9 | `edge` | which connections are accepted, whose they are, and what they speak; forward-auth |
//! | 8 | `proxy` | the life of a request, and every byte that goes to its client and its service |
//! | 8 | `admin` | metrics, probes, and what an operator does to sessions |
//! | 7 | `policy` | what lives as long as the process, or as one configuration; which requests are admitted |
//! | 6 | `login` | from the body of a login to its response |
//! | 5 | `access` | from headers to a session or a rejection; trusted proxies; identity headers; rate limits |
//! | 5 | `wechat` | the call that turns a code into an identity; a simulated WeChat |
//! | 4 | `session` | what a token stands for, and for how long: in memory, and in Redis |
//! | 4 | `route` | which route or endpoint a path is for, and what a route does to a request |
//! | 4 | `upstream` | which server is next, and how it is connected to |
//! | 4 | `listener` | what comes before a request: PROXY header, TLS handshake; the server of internal listeners |
//! | 3 | `telemetry` | metrics, access log, process log |
//! | 2 | `config` | the configuration file, validated |
//! | 1 | `identity` | who was proved: ids, tokens, secrets |
//! | 0 | `message` | HTTP messages: headers, framing, the gateway's own responses and errors |
//! | 0 | `clock` | the time that sessions live by, and deadlines |
//!
//! # The life of a request
//!
//! `edge` finds out what protocol its connection speaks. The rest is `proxy`, one async function
//! for HTTP/1 and HTTP/2: it reads the request header, which `message::request_header` judges, and
//! takes the current `policy`; `route` matches the path, and `access` looks the session up;
//! `upstream` chooses a server, and `access::identity_headers` says which headers are removed and
//! writes the gateway's own. Then both bodies are forwarded, in both directions at once, and at the
//! end the request is counted and logged.
//!
//! What a request may not do, a response may not either: the header of a service's response is
//! judged as strictly, its framing is never copied, and what it says of its connection stays there.
//!
//! # What is ours, and what is pingora's
//!
//! This crate parses, frames and writes every byte of HTTP/1 between clients and services: headers
//! in `message` and `proxy::compose`, bodies in `message::chunked` and `proxy::body`. `h2` does the same for
//! clients of HTTP/2, and rustls their TLS; sockets and timers are tokio's. pingora is used for two
//! things: its connectors open connections to servers (`proxy`), and its service discovery updates
//! an upstream's list of servers (`upstream`). Its proxy, its HTTP parsers, its pool of connections
//! and its server are not used. The listeners that are not public use hyper (`listener::internal`).
//!
//! # The life of a login
//!
//! `proxy` reads the body and hands it to `login`, which takes the code out of it, has
//! `wechat` trade it for an identity, starts a session in `session`, and answers with the
//! token.

pub mod access;
mod admin;
pub mod cli;
pub mod clock;
pub mod config;
mod edge;
pub mod identity;
pub mod listener;
mod login;
pub mod message;
mod policy;
mod proxy;
pub mod route;
pub mod server;
pub mod session;
pub mod telemetry;
mod upstream;
pub mod wechat;

/// What the fuzz targets of `tests/fuzz` need, and nobody outside the crate may use.
#[cfg(any(fuzzing, test))]
pub mod fuzzing {
    pub use crate::login::request::{ContentType, Fields, LoginRequest, parse as parse_login};
    pub use crate::message::chunked::{Chunked, Malformed};
    pub use crate::message::header::lines;
    pub use crate::message::rejection::Rejection;
    pub use crate::message::request_header::{Framing, Head, HeadLimits, judge};
    pub use crate::message::response_header::{self as response, Fault, ResponseHead};
    pub use crate::proxy::body;
    pub use crate::wechat::reply::Reply;
    pub use crate::wechat::{Code, ErrCode, WeChatError};
}

// The targets name the crate as if from outside.
#[cfg(test)]
extern crate self as wxgate;

#[cfg(test)]
#[path = "../tests/fuzz/replay.rs"]
mod replay;
