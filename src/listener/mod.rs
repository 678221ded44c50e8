//! What comes before a request on a connection, and the server of listeners that are not public.
//!
//! `proxy_protocol` reads the PROXY header of a load balancer, `tls` does the handshake with
//! clients, `unix_socket` listens on a path, `accepting` is what accept loops have in common, and
//! `small_server` is a small HTTP server for operators, services, the sandbox and the demo.

pub(crate) mod accepting;
pub(crate) mod proxy_protocol;
pub mod small_server;
pub mod tls;
pub(crate) mod unix_socket;
