//! One file for each section of the configuration file: its type, and its reading with keys,
//! defaults and checks.

pub mod advice;
pub mod errors;
pub mod route;
pub mod server;
pub mod session;
pub mod shape;
pub mod wechat;
