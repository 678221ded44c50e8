//! Secrets that cannot be printed.
//!
//! Holds what must never reach a log, an error, a metric or an answer: app secrets, keys,
//! login codes. `Debug` is redacted, memory is wiped on drop, and the text comes out only
//! through [`Secret::expose`], which is called where the secret goes onto a socket or into
//! a digest, and nowhere else. It does not know where a secret came from.

use std::fmt;

use zeroize::Zeroizing;

/// A secret text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself. Every call is a place to review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}
