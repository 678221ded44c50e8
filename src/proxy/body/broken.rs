//! Why a body could not be forwarded completely.

use std::io;

/// Why a body was not forwarded completely.
#[derive(Debug)]
pub enum Broken {
    /// The sender's connection failed.
    Read(io::Error),
    /// The sender closed its connection before the end of the body.
    Ended,
    /// The sender's framing or a trailer is malformed.
    Malformed,
    /// The body is longer than allowed.
    TooLarge,
    /// The trailers are longer than allowed.
    TrailersTooLarge,
    /// The sender is too slow.
    TooSlow,
    /// The receiver's connection failed.
    Write(io::Error),
    /// The receiver is too slow.
    ReceiverTooSlow,
}
