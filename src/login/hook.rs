//! The login hook: a service of the operator that is called before each session is made.
//!
//! Decides what a response means for a login, and how many calls are made. The hook is called once
//! for each session, after WeChat has verified the user, and never again for the same login: a
//! service may create an account. Its id for the user is kept with the session. A refusal always
//! stands. Everything else that is not an acceptance is a failure of the hook, and
//! `login.hook.on_failure` decides what a failure means. Calls beyond `wechat.max_in_flight` wait
//! within their time, because the code of the login is used up: a short burst must not cost users a
//! second login. Neither the user, the token, the URL's path nor the response gets into a log.

mod call;

use std::sync::Arc;

use reqwest::Url;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

pub use self::call::HookError;
use self::call::{Caller, Decision, Failure};
use crate::clock::Clock;
use crate::config::{AppKind, Config, HookSection, OnFailure};
use crate::identity::Identity;
use crate::message::rejection::{Rejection, jittered};
use crate::telemetry::log_throttle::LogThrottles;
use crate::telemetry::metrics::Metrics;

/// The outcomes in the metric.
const OUTCOMES: [&str; 6] = [
    "ok",
    "refused",
    Failure::TIMEOUT,
    Failure::TRANSPORT,
    Failure::MALFORMED,
    Failure::OVERLOADED,
];

/// The hook of one configuration.
pub struct Hook {
    section: HookSection,
    caller: Caller,
    /// Calls that may be in flight, and those that may wait besides.
    limits: Limits,
    in_flight: Semaphore,
    waiting: Semaphore,
    failures: LogThrottles<Failure>,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Limits {
    in_flight: usize,
    waiting: usize,
}

impl Hook {
    /// The hook of a configuration, if it has one: that from before a reload if the section and the
    /// limits have not changed.
    ///
    /// # Errors
    /// When there are no root certificates to verify it with, or the client cannot be created.
    pub fn carried_over(
        previous: Option<&Arc<Self>>,
        config: &Config,
        clock: &Clock,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Arc<Self>>, HookError> {
        let Some(section) = &config.login.hook else { return Ok(None) };
        let limits =
            Limits { in_flight: config.wechat.max_in_flight, waiting: config.wechat.queue };
        if let Some(same) =
            previous.filter(|hook| hook.section == *section && hook.limits == limits)
        {
            return Ok(Some(same.clone()));
        }
        let caller = Caller::new(section)?;
        metrics.login_hook.from_start(&OUTCOMES);
        Ok(Some(Arc::new(Self {
            section: section.clone(),
            caller,
            limits,
            in_flight: Semaphore::new(limits.in_flight),
            waiting: Semaphore::new(limits.waiting),
            failures: LogThrottles::new(clock.clone()),
            metrics: metrics.clone(),
        })))
    }

    /// Calls the hook for a user who is about to get a session, and sets the user's id to that in
    /// the response: to none if the response has none, or if the hook has failed and logins are
    /// allowed nevertheless.
    ///
    /// # Errors
    /// When the hook refuses the user, or has failed and logins are not allowed.
    pub async fn admit(
        &self,
        identity: &mut Identity,
        kind: AppKind,
        request_id: &str,
    ) -> Result<(), Rejection> {
        let decision = self.call(identity, kind).await;
        let outcome = match &decision {
            Ok(Decision::Accepted(_)) => "ok",
            Ok(Decision::Refused(_)) => "refused",
            Err(failure) => failure.outcome(),
        };
        self.metrics.login_hook.count(outcome);
        identity.user_id = None;
        let app_id = identity.app_id.as_str();
        match decision {
            Ok(Decision::Accepted(user_id)) => {
                identity.user_id = user_id;
                Ok(())
            }
            Ok(Decision::Refused(message)) => {
                tracing::debug!(
                    request_id,
                    app_id,
                    "login rejected: the login hook refuses the user"
                );
                Err(Rejection::LoginRefused(message))
            }
            Err(failure) => {
                self.log(failure, app_id, request_id);
                match self.section.on_failure {
                    OnFailure::Allow => Ok(()),
                    OnFailure::Refuse => {
                        Err(Rejection::LoginUnavailable { retry_after: jittered(1, 5) })
                    }
                }
            }
        }
    }

    async fn call(&self, identity: &Identity, kind: AppKind) -> Result<Decision, Failure> {
        let deadline = Instant::now() + self.section.timeout;
        let _permit = self.permit(deadline).await?;
        let began = Instant::now();
        let decision = self.caller.call(identity, kind, deadline).await;
        self.metrics.login_hook.took(began.elapsed());
        decision
    }

    async fn permit(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Failure> {
        if let Ok(permit) = self.in_flight.try_acquire() {
            return Ok(permit);
        }
        let _place = self.waiting.try_acquire().map_err(|_| Failure::Overloaded)?;
        match timeout_at(deadline, self.in_flight.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed; if it were, no call would be allowed.
            Ok(Err(_)) | Err(_) => Err(Failure::Overloaded),
        }
    }

    fn log(&self, failure: Failure, app_id: &str, request_id: &str) {
        let Some(suppressed) = self.failures.suppressed(failure) else { return };
        let hook = origin(&self.section.url);
        let error = tracing::field::display(failure);
        match self.section.on_failure {
            OnFailure::Refuse => tracing::error!(
                request_id,
                app_id,
                hook,
                error,
                suppressed,
                "login failed: the login hook has failed; logged once a minute"
            ),
            OnFailure::Allow => tracing::warn!(
                request_id,
                app_id,
                hook,
                error,
                suppressed,
                "login without a user id: the login hook has failed; logged once a minute"
            ),
        }
    }
}

/// Scheme, host and port: path and query may be secrets.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}
