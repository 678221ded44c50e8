//! The rate limits of a configuration, by names that stay the same in another process.

use std::sync::Arc;

use super::Policy;
use crate::access::rate_limiter::RateLimit;

impl Policy {
    /// All limits by user or address that requests count in, with their names.
    pub(super) fn rate_limits(&self) -> impl Iterator<Item = (String, &Arc<RateLimit>)> {
        let login = self.login_rate.as_ref().map(|limit| ("login".to_owned(), limit));
        let scans = self.scans.as_ref().map(|scans| ("scan".to_owned(), &scans.start_rate));
        let of_routes = self.routes.iter().filter_map(|route| self.routes.named(&route.name));
        let of_routes = of_routes.flat_map(|served| {
            let name = &served.route.name;
            let user = served.state.rate_per_user.as_ref();
            let address = served.state.rate_per_address.as_ref();
            let user = user.map(|limit| (format!("user of {name}"), limit));
            user.into_iter().chain(address.map(|limit| (format!("address at {name}"), limit)))
        });
        login.into_iter().chain(scans).chain(of_routes)
    }
}
