//! Attacks, and what must hold after each of them.
//!
//! The cases are tables of bytes and the expected outcome. A [`siege::Siege`] runs them, and checks
//! everything that they could have affected.

mod browser;
mod early_response;
mod exhaustion;
mod frames;
mod framing;
mod http2;
mod identity;
mod login;
mod more_identity;
mod path;
mod request_line;
mod scan;
mod service;
mod siege;
mod tickets;
mod token;
pub mod wechat;
