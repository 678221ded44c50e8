//! Types of values that several sections share: how each is written and what is checked.

pub mod base_url;
pub mod headers;
pub mod host;
pub mod listeners;
pub mod name;
pub mod path;
pub mod pem;
pub mod percent;
pub mod private_directory;
pub mod rate;
pub mod secret;
