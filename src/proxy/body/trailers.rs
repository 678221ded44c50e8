//! How the trailers of a body are written, and why they cannot be.

use super::Broken;

/// Writes the trailers of a chunked body, which are given as received: each line with its CR LF.
pub trait WriteTrailers: FnMut(&[u8], &mut Vec<u8>) -> Result<(), BadTrailers> {}
impl<F: FnMut(&[u8], &mut Vec<u8>) -> Result<(), BadTrailers>> WriteTrailers for F {}

/// Trailers that cannot be forwarded.
pub enum BadTrailers {
    Malformed,
    /// Together with the header, they exceed the limits for a header.
    TooLarge,
}

impl From<BadTrailers> for Broken {
    fn from(bad: BadTrailers) -> Self {
        match bad {
            BadTrailers::Malformed => Self::Malformed,
            BadTrailers::TooLarge => Self::TrailersTooLarge,
        }
    }
}
