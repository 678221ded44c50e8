//! What WeChat gives to a user's phone for the app's back end: encrypted and signed data.
//!
//! The phone passes it to a service, and the service passes it here, because only the gateway has
//! the user's `session_key`s. This module knows the formats and the checks; it does not know where
//! keys are kept or who calls.
//!
//! Decrypted data is not authenticated: AES-CBC without a MAC. An attacker who can change the
//! encrypted data can change the plaintext to some degree.

mod decrypt;
mod signature;

pub use self::decrypt::{DecryptError, Encrypted, Freshness};
pub use self::signature::is_signed;
