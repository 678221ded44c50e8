//! The apps of a configuration, and the state of their logins.

use std::sync::Arc;

use super::app_rate_limit::AppRateLimit;
use super::rejected_codes::RejectedCodes;
use crate::clock::Clock;
use crate::config::App;
use crate::identity::AppId;

/// Why a login with a code is not for an app.
const BY_REDIRECT: &str = "users of this app log in by a redirect";

/// The apps for which logins are accepted.
pub struct Apps(Vec<Arc<ServedApp>>);

/// An app, and the state of its logins.
pub struct ServedApp {
    pub app: App,
    pub rejected_codes: Arc<RejectedCodes>,
    pub rate_limit: Arc<AppRateLimit>,
}

impl ServedApp {
    pub fn app_id(&self) -> &AppId {
        &self.app.app_id
    }
}

impl Apps {
    /// Apps that `previous` had keep their state, and their rate limit if the rate is the same.
    pub fn new(apps: &[App], previous: Option<&Self>, clock: &Clock) -> Self {
        let served = |app: &App| {
            let before = previous.and_then(|previous| previous.get(app.app_id.as_str()));
            let rejected_codes = before.map(|before| before.rejected_codes.clone());
            Arc::new(ServedApp {
                app: app.clone(),
                rejected_codes: rejected_codes
                    .unwrap_or_else(|| Arc::new(RejectedCodes::new(clock.clone()))),
                rate_limit: AppRateLimit::carried_over(
                    before.map(|before| &before.rate_limit),
                    app.login_rate,
                    clock,
                ),
            })
        };
        Self(apps.iter().map(served).collect())
    }

    /// The app that a login with a code names, or the default app.
    ///
    /// # Errors
    /// Why there is none, for the client.
    pub fn find(&self, app_id: Option<&str>) -> Result<&Arc<ServedApp>, &'static str> {
        let served = self.named(app_id)?;
        if served.app.kind.sends_codes() { Ok(served) } else { Err(BY_REDIRECT) }
    }

    /// An app of any kind, or the default app if none is named: of the apps whose clients send
    /// codes, the one that is marked as the default, or the only one.
    ///
    /// # Errors
    /// Why there is none, for the client.
    pub fn named(&self, app_id: Option<&str>) -> Result<&Arc<ServedApp>, &'static str> {
        if let Some(app_id) = app_id {
            return self.get(app_id).ok_or("unknown app_id");
        }
        let mut senders = self.0.iter().filter(|served| served.app.kind.sends_codes());
        if let Some(default) = senders.clone().find(|served| served.app.is_default) {
            return Ok(default);
        }
        match (senders.next(), senders.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(BY_REDIRECT),
            (Some(_), Some(_)) => Err("app_id is missing: there are several apps and no default"),
        }
    }

    /// The app of a login by redirects.
    pub fn find_redirected(&self, app_id: &AppId) -> Option<&Arc<ServedApp>> {
        self.get(app_id.as_str()).filter(|served| !served.app.kind.sends_codes())
    }

    pub fn iter(&self) -> impl Iterator<Item = &ServedApp> {
        self.0.iter().map(Arc::as_ref)
    }

    /// Whether there is an app with this id.
    pub fn contains(&self, app_id: &str) -> bool {
        self.get(app_id).is_some()
    }

    /// The app with this id, of any kind.
    pub fn get(&self, app_id: &str) -> Option<&Arc<ServedApp>> {
        self.0.iter().find(|served| served.app_id().as_str() == app_id)
    }
}
