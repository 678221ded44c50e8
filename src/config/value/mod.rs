//! Values that several sections have, each with how it is written and what is wrong with it.

pub mod headers;
pub mod host;
pub mod listeners;
pub mod name;
pub mod path;
pub mod pem;
pub mod rate;
pub mod secret;
