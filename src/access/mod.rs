//! Who may send a request, and what a service is told of it.
//!
//! `authenticator` gets from headers to a session, or to a rejection. `trusted_proxies` decides
//! which peers' word counts about where a request came from, and `identity_headers` which headers
//! only the gateway writes. `rate_limiter` limits how often somebody may send a request, and
//! `websocket` when a request may become a WebSocket.

pub mod authenticator;
pub mod identity_headers;
pub(crate) mod rate_limiter;
pub mod trusted_proxies;
pub(crate) mod websocket;
