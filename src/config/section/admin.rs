//! `[admin]`: the listener for operators.

use std::net::SocketAddr;

use super::RestartOnly;
use crate::config::Secrets;
use crate::config::document::table::{Located, Table};
use crate::config::value::listeners::overlap;
use crate::config::value::secret::read_any_secret;
use crate::identity::secret::Secret;

/// The section `[admin]`.
#[derive(Debug, PartialEq, Eq)]
pub struct AdminSection {
    pub listen: SocketAddr,
    /// Without it, sessions of users can be neither listed nor revoked.
    pub token: Option<Secret>,
}

/// Keys that a reload cannot change.
pub const RESTART_ONLY: &[RestartOnly] =
    &[("admin.listen", |a, b| a.admin.listen == b.admin.listen)];

/// In characters.
const SHORTEST_TOKEN: usize = 32;

/// Reads the section. `public` are the listeners of `[server]`; the admin listener must not be one
/// of them.
pub fn read(section: Table<'_>, public: &[Located<SocketAddr>], secrets: Secrets) -> AdminSection {
    const HELP: &str = "metrics must not be public: choose another port";
    let default = SocketAddr::from(([127, 0, 0, 1], 9464));
    let given = section.get::<SocketAddr>("listen");
    let listen = given.as_ref().map_or(default, |given| given.value);
    if let Some(public) = public.iter().find(|public| overlap(public.value, listen)) {
        match &given {
            Some(given) => section.problem(given, "is also a public listener", HELP),
            None => section.problem(public, "is the default address of admin.listen", HELP),
        }
    }
    let token = read_any_secret(&section, "token", secrets);
    if let Some(token) = &token
        && secrets == Secrets::Load
        && token.value.expose().len() < SHORTEST_TOKEN
    {
        let message = format!("is shorter than {SHORTEST_TOKEN} characters");
        section.problem(token, message, "create one with: openssl rand -base64 32");
    }
    section.finish();
    AdminSection { listen, token: token.map(|token| token.value) }
}
