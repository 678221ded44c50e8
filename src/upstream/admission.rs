//! Which servers may be used now, and how much they may be given.
//!
//! A request is sent to a server that passes its health checks, is not ejected, and has a place
//! left among its `max_connections`. If servers are usable but all places are taken, requests wait
//! for one in turn ([`Waiting`]). How an attempt ended is reported here, and decides whether its
//! server is ejected.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;
use tokio::time::Instant;

use super::connection::{Connection, take_idle};
use super::ejection::{Admission, Ejected, most_out};
use super::pending::Waiting;
use super::server::{Lease, Server};
use super::{Outcome, Pool};
use crate::config::Protocol;
use crate::telemetry::metrics::{RetryOutcome, UpstreamState};

/// A server for one attempt.
pub struct Choice {
    pub server: Arc<Server>,
    /// An idle connection to it.
    pub connection: Option<Connection>,
    /// A place for a new connection, if their number is limited.
    pub lease: Option<Lease>,
    /// Set if the attempt decides whether the server returns.
    pub trial: Option<Trial>,
}

/// Why there is no server for an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// None is known, or all are unhealthy or ejected.
    NoServer,
    /// All places are taken.
    Full,
}

/// The trial of an ejected server. If it is dropped without a verdict, another attempt becomes the
/// trial.
pub struct Trial(Option<Arc<Server>>);

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(server) = &self.0 {
            server.ejection.trial_dropped();
        }
    }
}

impl Pool {
    /// Whether [`Self::admit`] would probably admit an attempt. Changes nothing.
    pub(super) fn prospect(&self, server: &Server) -> Result<(), Unavailable> {
        let is_in_use = server.health.is_healthy()
            && (!self.is_ejected(server)
                || server.ejection.would_admit(self.network.clock.now_millis()));
        let most = self.section.max_connections;
        let has_place =
            most == 0 || server.open_connections() < most || server.idle_connections() > 0;
        match (is_in_use, has_place) {
            (false, _) => Err(Unavailable::NoServer),
            (true, false) => Err(Unavailable::Full),
            (true, true) => Ok(()),
        }
    }

    /// Takes a server for an attempt, if it may be used. `needs_new`: idle connections are not
    /// used.
    pub(super) fn admit(
        &self,
        server: &Arc<Server>,
        needs_new: bool,
        now: Instant,
    ) -> Result<Choice, Unavailable> {
        if !server.health.is_healthy() {
            return Err(Unavailable::NoServer);
        }
        let trial = if self.is_ejected(server) {
            match server.ejection.admit(self.network.clock.now_millis()) {
                Admission::In => None,
                Admission::Trial => Some(Trial(Some(server.clone()))),
                Admission::Out => return Err(Unavailable::NoServer),
            }
        } else {
            None
        };
        let most = self.section.max_connections;
        let (connection, lease) = if self.section.protocol == Protocol::Http2 {
            share(server, most, needs_new).ok_or(Unavailable::Full)?
        } else if most == 0 {
            (if needs_new { None } else { take_idle(server, now) }, None)
        } else {
            self.place(server, most, needs_new, now).ok_or(Unavailable::Full)?
        };
        Ok(Choice { server: server.clone(), connection, lease, trial })
    }

    /// An idle connection, or a place for a new one.
    fn place(
        &self,
        server: &Arc<Server>,
        most: usize,
        needs_new: bool,
        now: Instant,
    ) -> Option<(Option<Connection>, Option<Lease>)> {
        // Those of the worker itself are from before a reload that set the limit.
        let idle = self.lasting.idle.take(server, now).or_else(|| take_idle(server, now));
        // If a new one is needed, the idle one makes room for it.
        if let Some(connection) = idle.filter(|_| !needs_new) {
            return Some((Some(connection), None));
        }
        Lease::take(server, most).map(|lease| (None, Some(lease)))
    }

    /// Whether a new request must wait because others wait already.
    pub fn has_queue(&self) -> bool {
        self.section.max_connections > 0 && self.lasting.pending.len() > 0
    }

    /// Waits for a place behind all other requests. `None`: `max_pending` requests wait.
    pub fn wait(&self) -> Option<Waiting> {
        self.lasting.pending.enter(self.section.max_pending)
    }

    /// Keeps a connection for `time` from `now` on for the next request. `most`: how many
    /// connections of all upstreams a worker keeps; those whose number is limited are not counted.
    pub fn keep_idle(&self, connection: Connection, now: Instant, time: Duration, most: usize) {
        if self.section.max_connections == 0 {
            connection.keep_idle(now, time, most);
        } else {
            self.lasting.idle.keep(connection, now, time);
            self.lasting.pending.notify();
        }
    }

    /// Records how an attempt ended: after `took`, for the reason `cause`. `None`: not by the
    /// server.
    pub fn report(
        &self,
        server: &Arc<Server>,
        trial: Option<Trial>,
        outcome: Option<Outcome>,
        took: Duration,
        cause: impl FnOnce() -> Cow<'static, str>,
    ) {
        let Some(outcome) = outcome else { return };
        let is_trial = trial.is_some();
        match outcome {
            Outcome::Status(status) => {
                self.lasting.metrics.responded(status, took);
                if server.ejection.succeeded(is_trial) {
                    self.log_returned(server);
                    self.lasting.pending.notify();
                }
            }
            // It says nothing about the server.
            Outcome::NoSocket => return self.excuse(outcome),
            _ => {
                self.lasting.metrics.attempted(outcome);
                self.failed(server, is_trial, cause);
            }
        }
        if let Some(mut trial) = trial {
            trial.0 = None;
        }
    }

    /// Counts an attempt whose failure says nothing about the server.
    pub fn excuse(&self, outcome: Outcome) {
        self.lasting.metrics.attempted(outcome);
    }

    fn failed(
        &self,
        server: &Arc<Server>,
        is_trial: bool,
        cause: impl FnOnce() -> Cow<'static, str>,
    ) {
        let (section, now) = (&self.section.ejection, self.network.clock.now_millis());
        let ejected = server.ejection.failed(section, now, is_trial, || self.may_eject(server));
        if let Some(ejected) = ejected {
            self.log_ejected(server, ejected, &cause());
            // A request that waits may have no other server.
            self.lasting.pending.notify();
        }
    }

    /// Whether one more server may be out. No other one is ejected while the result is held.
    fn may_eject(&self, server: &Arc<Server>) -> Option<MutexGuard<'_, ()>> {
        let guard = self.ejecting.lock();
        let servers = self.servers.load();
        let is_out = |other: &&Arc<Server>| {
            !Arc::ptr_eq(other, server) && (!other.health.is_healthy() || self.is_ejected(other))
        };
        let out = servers.iter().filter(is_out).count();
        (out < most_out(servers.len(), self.section.ejection.max_percent)).then_some(guard)
    }

    /// Whether a server is out, or on trial. A reload may have turned ejection off.
    fn is_ejected(&self, server: &Server) -> bool {
        server.ejection.is_out() && self.section.ejection.failures > 0
    }

    /// Counts a request, which retries are a share of.
    pub fn count_request(&self) {
        self.lasting.budget.count_request();
    }

    /// Whether the budget allows one more retry. `budget` is in hundredths of a percent.
    pub fn take_retry(&self, budget: u32) -> bool {
        self.lasting.budget.take(budget)
    }

    /// Counts a request that was retried, or to which the budget refused it.
    pub fn retried(&self, outcome: RetryOutcome) {
        self.lasting.metrics.retried(outcome);
    }

    /// Called once a second.
    pub fn maintain(&self) {
        self.lasting.budget.tick();
        self.lasting.idle.sweep();
    }

    /// Sets the gauges of the upstream, for a scrape.
    pub fn update_metrics(&self) {
        let mut state =
            UpstreamState { pending: self.lasting.pending.len(), ..UpstreamState::default() };
        for server in self.servers.load().iter() {
            let (active, idle) = server.connections(self.section.protocol);
            state.active += active;
            state.idle += idle;
            state.in_flight += server.in_flight();
            if !server.health.is_healthy() {
                state.unhealthy += 1;
            } else if self.is_ejected(server) {
                state.ejected += 1;
            } else {
                state.healthy += 1;
            }
        }
        self.lasting.metrics.set(&state);
    }

    fn log_ejected(&self, server: &Server, ejected: Ejected, cause: &str) {
        let (event, failures) = match ejected {
            Ejected::Failures(failures) => ("ejected", Some(failures)),
            Ejected::Again => ("trial failed", None),
        };
        let address = server.address.to_string();
        let Some(suppressed) = self.lasting.log.suppressed((address, event)) else { return };
        tracing::warn!(
            upstream = self.section.name,
            server = %server.address,
            cause,
            failures,
            suppressed,
            "{}",
            match ejected {
                Ejected::Failures(_) => "server ejected after consecutive failures",
                Ejected::Again => "server stays ejected: its trial request failed",
            }
        );
    }

    fn log_returned(&self, server: &Server) {
        let address = server.address.to_string();
        let Some(suppressed) = self.lasting.log.suppressed((address, "returned")) else { return };
        tracing::info!(
            upstream = self.section.name,
            server = %server.address,
            suppressed,
            "ejected server is back: its trial request succeeded"
        );
    }
}

/// A place for a request, and a connection of HTTP/2 that it can share.
fn share(
    server: &Arc<Server>,
    most: usize,
    needs_new: bool,
) -> Option<(Option<Connection>, Option<Lease>)> {
    let most = if most == 0 { usize::MAX } else { most };
    let lease = Lease::take(server, most)?;
    if needs_new {
        return Some((None, Some(lease)));
    }
    Some(match Connection::share(lease) {
        Ok(connection) => (Some(connection), None),
        Err(lease) => (None, Some(lease)),
    })
}
