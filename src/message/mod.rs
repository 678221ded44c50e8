//! HTTP messages: headers, the framing of bodies, and the gateway's own responses.
//!
//! `request_header` and `response_header` check that a header can be read in only one way, and
//! `chunked` finds the end of a chunked body. `header` reads names and values, and `caching` writes
//! the headers for caches. `own_response` is a response of the gateway itself; `rejection` is the
//! closed list of errors, and `error_body` their body. `set_cookie` reads the cookies of services,
//! and `html` escapes text for pages.

pub(crate) mod caching;
pub mod chunked;
pub(crate) mod error_body;
pub mod header;
pub(crate) mod html;
pub(crate) mod own_response;
pub(crate) mod rejection;
pub mod request_header;
mod request_target;
pub mod response_header;
pub(crate) mod set_cookie;
