//! One file for each section of the configuration file. Each has the section's type, its
//! restart-only keys, and `read`, which reads the section's keys with their defaults and checks.
//!
//! To add a key, add a field to the type and a line to `read`. A test requires the key in
//! `config/reference.toml`, too.

pub mod admin;
pub mod app;
pub mod browser;
pub mod endpoints;
pub mod errors;
pub mod forward_auth;
pub mod identity;
pub mod internal;
pub mod limits;
pub mod log;
pub mod login;
pub mod open_data;
pub mod route;
pub mod scan;
pub mod server;
pub mod session;
pub mod ticket;
pub mod upstream;
pub mod wechat;

use super::Config;

/// A restart-only key, and whether two configurations agree on it.
pub type RestartOnly = (&'static str, fn(&Config, &Config) -> bool);
