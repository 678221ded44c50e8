//! Attacks, and what must hold after each of them.
//!
//! The cases are tables: bytes, and the outcome that they must have. A [`siege::Siege`] runs
//! them and checks everything that they could have reached.

mod early_response;
mod exhaustion;
mod frames;
mod framing;
mod http2;
mod identity;
mod login;
mod path;
mod request_line;
mod service;
mod siege;
mod token;
pub mod wechat;
