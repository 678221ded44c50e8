//! Values that several sections hold: secrets by reference, PEM files.

pub mod pem;
pub mod secret;
