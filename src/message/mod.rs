//! HTTP messages: what a header says, how a body is framed, and the responses that the gateway makes
//! itself.
//!
//! `request_header` and `response_header` judge whether a header has only one reading, and
//! `chunked` where a body ends. `header` is how names and values are read, `caching` the headers
//! about caches. `own_response` is a response of the gateway's own; `rejection` is the closed list
//! of errors, and `error_body` their body.

pub(crate) mod caching;
pub mod chunked;
pub(crate) mod error_body;
pub mod header;
pub(crate) mod own_response;
pub(crate) mod rejection;
pub mod request_header;
pub mod response_header;
