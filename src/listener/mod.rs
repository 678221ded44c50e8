//! What comes before a request on a connection, and the server of listeners that are not public.
//!
//! `proxy_protocol` reads the PROXY header of a load balancer, `tls` does the handshake with
//! clients, and `internal` is a small HTTP server for operators, the sandbox and the demo.

pub mod internal;
pub(crate) mod proxy_protocol;
pub mod tls;
