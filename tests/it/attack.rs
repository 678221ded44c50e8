//! Attacks, and what must hold after each of them.
//!
//! The cases are tables: bytes, and what they must come to. A [`siege::Siege`] runs them and
//! looks at everything that they could have reached.

mod exhaustion;
mod frames;
mod framing;
mod http2;
mod identity;
mod login;
mod path;
mod service;
mod siege;
mod token;
pub mod wechat;
