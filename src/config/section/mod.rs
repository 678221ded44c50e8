//! One file for each section of the configuration file: its type, and `read`, which has its keys,
//! their defaults and what is checked, with the keys that a reload cannot change.
//!
//! A new key is a field of the type and a line in `read`; tests ask for it in
//! `config/reference.toml`, too.

pub mod admin;
pub mod app;
pub mod endpoints;
pub mod errors;
pub mod forward_auth;
pub mod identity;
pub mod limits;
pub mod log;
pub mod login;
pub mod route;
pub mod server;
pub mod session;
pub mod upstream;
pub mod wechat;

use super::Config;

/// A key that a reload cannot change, and whether two configurations agree on it.
pub type RestartOnly = (&'static str, fn(&Config, &Config) -> bool);
