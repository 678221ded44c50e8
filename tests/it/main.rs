//! Tests of the whole gateway from outside, over real sockets, by what services and clients
//! receive.

#![allow(clippy::pedantic, reason = "tests read best as they are written")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod hand_over;
mod harness;

mod access;
mod access_token;
mod admin;
mod architecture;
mod attack;
mod browser;
mod caches;
mod certificates;
mod check;
mod command;
mod config;
mod cookie_jar;
mod edge;
mod exchange;
mod explain;
mod failures;
mod faults;
mod forward_auth;
mod forwarding;
mod framing;
mod http2;
mod http2_bodies;
mod identity;
mod internal_api;
mod keep_alive;
mod login;
mod login_hook;
mod login_log;
mod operation;
mod panics;
mod pass_through;
mod peers;
mod proxy_protocol;
mod rate_limits;
mod redirect;
mod relay;
mod reload;
mod response_headers;
mod response_rate;
mod routes;
mod sandbox;
mod scan;
mod server_api;
mod service_manager;
mod session;
mod session_keys;
mod shared_store;
mod shutdown;
mod signed_identity;
mod snapshot;
mod store_access;
mod store_failover;
mod stores;
mod storm;
mod tickets;
mod tls;
mod upgrade;
mod upstreams;
mod websocket;
