//! Who may send a request, and which identity its service gets.
//!
//! `authenticator` finds the session of a request, or rejects the request. `browsers` has the hosts
//! of web pages, `cookies` reads and removes the gateway's cookies, and `cross_site` decides which
//! requests of a browser its cookie may authenticate. `trusted_proxies` decides from which peers
//! `X-Forwarded-*` headers are used, and `identity_headers` which headers only the gateway may
//! write; `signed_identity` signs the identity. `rate_limiter` limits how often a user or an
//! address may send requests, and `websocket` decides when a request may be upgraded to a
//! WebSocket.

pub mod authenticator;
pub(crate) mod browsers;
pub(crate) mod cookies;
pub(crate) mod cross_site;
pub mod identity_headers;
pub(crate) mod rate_limiter;
pub(crate) mod signed_identity;
pub mod trusted_proxies;
pub(crate) mod websocket;
