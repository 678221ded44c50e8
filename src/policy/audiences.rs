//! Whom a signed identity is for: the upstream of a request or, if its route has none, the route.
//!
//! An audience is known by a number: upstreams have their index, and the routes without an upstream
//! follow.

use std::sync::Arc;

use super::{Policy, Process, ServedRoute};
use crate::access::signed_identity::SignedIdentity;
use crate::config::{self, Config, Target, Upstream};
use crate::session::Session;

/// The names of those that a signed identity can be for: the upstreams by their index, then the
/// routes without one.
fn audiences(config: &Config) -> impl Iterator<Item = &str> {
    let upstreams = config.upstreams.iter().map(|upstream| upstream.name.as_str());
    let routes =
        config.routes.iter().filter(|route| is_alone(route)).map(|route| route.name.as_str());
    upstreams.chain(routes)
}

/// Numbers the routes without an upstream, in the order of [`audiences`].
pub struct OwnAudiences(usize);

impl OwnAudiences {
    pub fn after(upstreams: &[Upstream]) -> Self {
        Self(upstreams.len())
    }

    /// The audience of the next route; `None` if it has an upstream.
    pub fn next_of(&mut self, route: &config::Route) -> Option<usize> {
        if !is_alone(route) {
            return None;
        }
        self.0 += 1;
        self.0.checked_sub(1)
    }
}

fn is_alone(route: &config::Route) -> bool {
    matches!(route.target, Target::ForwardAuthOnly)
}

pub fn signed_identity(
    config: &Config,
    process: &Process,
    previous: Option<&Policy>,
) -> Option<Arc<SignedIdentity>> {
    let section = config.identity.jwt.as_ref()?;
    let audiences = audiences(config).map(|name| section.audience(name).to_owned()).collect();
    let previous = previous.and_then(|previous| previous.signed_identity.as_ref());
    let key = config.session.seal_keys.first().unwrap_or(&process.state_key);
    SignedIdentity::carried_over(previous, section, audiences, key, &process.clock)
}

impl ServedRoute {
    /// The audience of a request that has this session.
    pub fn audience(&self, session: &Session) -> Option<usize> {
        self.route.pool(Some(&session.identity)).or(self.state.audience)
    }
}
