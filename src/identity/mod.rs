//! Verified identities: who a user is, and of which app.
//!
//! An identity reaches services as header values, so its ids are validated here, once, when WeChat
//! returns them. This module does not know how an identity is verified, carried or written.

mod id;
pub mod secret;
pub mod session_key;
pub mod signing_key;
pub(crate) mod token;

pub use self::id::{AppId, OpenId, UnionId, UserId};

/// The identity of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub app_id: AppId,
    pub openid: OpenId,
    pub unionid: Option<UnionId>,
    /// The user id, if the login hook gave one.
    pub user_id: Option<UserId>,
}

impl Identity {
    pub fn user(&self) -> User {
        User { app_id: self.app_id.clone(), openid: self.openid.clone() }
    }
}

/// A user, whose sessions are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    pub app_id: AppId,
    pub openid: OpenId,
}
