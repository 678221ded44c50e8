//! Active health checks: when servers are checked, how, and what follows.
//!
//! One task for each upstream checks one server after another, so that each is checked once in an
//! interval, and the checks are spread over it. A check opens a connection of its own, which does
//! not count towards `max_connections`: a server that is only busy is not unhealthy. Until the
//! first check of an upstream succeeds, all its servers stay in use: a wrong path must not take a
//! service down.

use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::HeaderValue;
use humantime::format_duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Pool;
use super::connection::ConnectError;
use super::io::Io;
use super::server::Server;
use crate::config::{CheckKind, HealthCheck, Protocol};
use crate::message::response_header;

/// How long the rest of the response to a check is read.
const REST_TIMEOUT: Duration = Duration::from_millis(100);

/// What is known from the checks of one server. At the start it is healthy.
#[derive(Default)]
pub struct HealthState {
    is_unhealthy: AtomicBool,
    /// Consecutive checks with the same outcome: successful ones count up from 0, failed ones down.
    in_row: AtomicI64,
    is_checking: AtomicBool,
    /// Grows with each check of the upstream: the server with the smallest is checked next.
    turn: AtomicU64,
}

impl HealthState {
    pub fn is_healthy(&self) -> bool {
        !self.is_unhealthy.load(Ordering::Relaxed)
    }

    /// Records a check. Returns what the server becomes, if that changes: healthy or not.
    /// `is_proven`: a check of the upstream with this configuration has succeeded; before that,
    /// failures are counted, but the server stays in use.
    pub fn record(&self, is_ok: bool, section: &HealthCheck, is_proven: bool) -> Option<bool> {
        let before = self.in_row.load(Ordering::Relaxed);
        let in_row = if is_ok { before.max(0) + 1 } else { before.min(0) - 1 };
        // One task checks a server, so that nothing is lost between the two.
        self.in_row.store(in_row, Ordering::Relaxed);
        let is_healthy = self.is_healthy();
        let changes = if is_ok {
            !is_healthy && in_row >= section.healthy_after.into()
        } else {
            is_healthy && is_proven && -in_row >= section.unhealthy_after.into()
        };
        if changes {
            self.is_unhealthy.store(!is_ok, Ordering::Relaxed);
        }
        changes.then_some(is_ok)
    }

    /// Forgets the checks of another configuration.
    pub(super) fn reset(&self) {
        self.in_row.store(0, Ordering::Relaxed);
        self.is_unhealthy.store(false, Ordering::Relaxed);
    }

    /// Whether at least as many checks have failed in a row as make a server unhealthy.
    fn fails(&self, section: &HealthCheck) -> bool {
        -self.in_row.load(Ordering::Relaxed) >= section.unhealthy_after.into()
    }
}

/// A check that runs, until it is dropped.
struct Checking(Arc<Server>);

impl Checking {
    /// `None`: the last check still runs.
    fn begin(server: &Arc<Server>, turn: u64) -> Option<Self> {
        server.health.turn.store(turn, Ordering::Relaxed);
        let was_checking = server.health.is_checking.swap(true, Ordering::Relaxed);
        (!was_checking).then(|| Self(server.clone()))
    }
}

impl Drop for Checking {
    fn drop(&mut self) {
        self.0.health.is_checking.store(false, Ordering::Relaxed);
    }
}

impl Pool {
    /// Checks the servers of a pool until the pool is dropped or a later one of the same upstream
    /// begins its checks. Called after the first resolution, also if nothing is to be checked.
    pub async fn keep_checking(pool: Weak<Self>) {
        let Some(number) = pool.upgrade().map(|pool| pool.begin_checks()) else { return };
        let mut checks = JoinSet::new();
        // Several upstreams, and several gateways, begin at different moments.
        let mut share = rand::random::<f64>();
        loop {
            let Some(interval) = pool.upgrade().and_then(|pool| pool.check_interval(number)) else {
                return;
            };
            sleep(interval.mul_f64(share)).await;
            share = 1.0;
            while checks.try_join_next().is_some() {}
            let Some(pool) = pool.upgrade() else { return };
            if let Some(checking) = pool.next_to_check() {
                checks.spawn(async move {
                    let checked = pool.check(&checking.0).await;
                    if let Some(checked) = checked
                        && pool.lasting.checking.load(Ordering::Relaxed) == number
                    {
                        pool.record(&checking.0, checked);
                    }
                });
            }
        }
    }

    /// Ends the checks of the pool before a reload. Returns the number of this one.
    fn begin_checks(&self) -> u64 {
        let number = self.lasting.checking.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.keeps_health {
            self.servers.load().iter().for_each(|server| server.health.reset());
            self.lasting.pending.notify();
        }
        number
    }

    /// The time between two checks of the pool: each server has its turn within the interval of the
    /// section. `None`: there are no more checks.
    fn check_interval(&self, number: u64) -> Option<Duration> {
        let section = self.section.health_check.as_ref()?;
        let servers = u32::try_from(self.servers.load().len()).unwrap_or(u32::MAX).max(1);
        let is_current = self.lasting.checking.load(Ordering::Relaxed) == number;
        is_current.then(|| section.interval / servers)
    }

    /// The server whose last check began the longest ago, unless that check still runs.
    fn next_to_check(&self) -> Option<Checking> {
        let servers = self.servers.load();
        let turn = |server: &Arc<Server>| server.health.turn.load(Ordering::Relaxed);
        let last = servers.iter().map(turn).max().unwrap_or(0);
        Checking::begin(servers.iter().min_by_key(|server| turn(server))?, last + 1)
    }

    /// Checks a server once. `None`: the gateway has no socket left, which says nothing about it.
    async fn check(&self, server: &Server) -> Option<Result<(), Cow<'static, str>>> {
        let section = self.section.health_check.as_ref()?;
        let (connector, tls) = (&self.network.connector, self.tls.as_ref());
        let checked = async {
            let protocol = match section.kind {
                CheckKind::Http { .. } => self.section.protocol,
                // Nothing is sent on it.
                CheckKind::Connect => Protocol::Http1,
            };
            match connector.connect(server, protocol, tls, section.timeout).await {
                Ok(io) => Some(check_on(io, server, section).await),
                Err(ConnectError::TimedOut(_) | ConnectError::TlsTimedOut(_)) => {
                    Some(Err(too_slow(section)))
                }
                Err(error) if error.is_own() => None,
                Err(error) => Some(Err(error.cause().into())),
            }
        };
        let in_time = timeout(section.timeout, checked).await;
        in_time.unwrap_or_else(|_| Some(Err(too_slow(section))))
    }

    fn record(&self, server: &Server, checked: Result<(), Cow<'static, str>>) {
        let Some(section) = &self.section.health_check else { return };
        self.lasting.metrics.health_checked(checked.is_ok());
        if checked.is_ok() {
            self.is_proven.store(true, Ordering::Relaxed);
        }
        let is_proven = self.is_proven.load(Ordering::Relaxed);
        let changed = server.health.record(checked.is_ok(), section, is_proven);
        if changed.is_some() {
            // Requests that wait may have another server now, or none.
            self.lasting.pending.notify();
        }
        self.log(server, changed, checked.err().as_deref(), section);
    }

    fn log(
        &self,
        server: &Server,
        changed: Option<bool>,
        cause: Option<&str>,
        section: &HealthCheck,
    ) {
        let event = match changed {
            Some(true) => "healthy",
            Some(false) => "unhealthy",
            None if !self.is_proven.load(Ordering::Relaxed) && server.health.fails(section) => {
                "unproven"
            }
            None => return,
        };
        // While no check has succeeded, all servers fail: one line for them is enough.
        let about = if event == "unproven" { String::new() } else { server.address.to_string() };
        let Some(suppressed) = self.lasting.log.suppressed((about, event)) else { return };
        let (upstream, server) = (&self.section.name, &server.address);
        match changed {
            Some(true) => {
                tracing::info!(upstream, %server, suppressed, "server is healthy again");
            }
            Some(false) => tracing::warn!(
                upstream,
                %server,
                cause,
                suppressed,
                "server is unhealthy: it gets no requests"
            ),
            None => tracing::error!(
                upstream,
                %server,
                cause,
                suppressed,
                "no health check of this upstream has succeeded yet, so all its servers stay in \
                 use: check upstream.health_check"
            ),
        }
    }
}

/// What a check does on its connection.
async fn check_on(
    mut io: Io,
    server: &Server,
    section: &HealthCheck,
) -> Result<(), Cow<'static, str>> {
    let CheckKind::Http { path, host, status } = &section.kind else { return Ok(()) };
    let got = get(&mut io, path, host.as_ref().unwrap_or(&server.host)).await?;
    if status.iter().any(|range| range.contains(&got)) {
        return Ok(());
    }
    Err(format!("status {got}").into())
}

fn too_slow(section: &HealthCheck) -> Cow<'static, str> {
    let time = format_duration(section.timeout);
    format!("not complete within health_check.timeout ({time})").into()
}

/// Sends a GET request, and returns the status of the response.
async fn get(io: &mut Io, path: &str, host: &HeaderValue) -> Result<u16, Cow<'static, str>> {
    let broken = |error: io::Error| Cow::from(format!("connection broken: {error}"));
    let mut header = format!("GET {path} HTTP/1.1\r\nHost: ").into_bytes();
    header.extend_from_slice(host.as_bytes());
    header.extend_from_slice(b"\r\nUser-Agent: wxgate\r\nAccept: */*\r\n");
    if matches!(io, Io::Http1(_)) {
        header.extend_from_slice(b"Connection: close\r\n");
    }
    header.extend_from_slice(b"\r\n");
    io.announce(true, false);
    io.write_all(&header).await.map_err(broken)?;
    io.flush().await.map_err(broken)?;
    let mut read = Vec::new();
    loop {
        match response_header::read(&read, false, |_| {}) {
            Ok(Some(header)) if header.status >= 200 => {
                // If the rest were left unread, the server would see a reset.
                let rest = async { while matches!(io.read(&mut [0; 1024]).await, Ok(1..)) {} };
                let _ = timeout(REST_TIMEOUT, rest).await;
                return Ok(header.status);
            }
            Ok(Some(header)) => drop(read.drain(..header.length)),
            // A header that is too large is a fault.
            Ok(None) => match io.read_buf(&mut read).await {
                Ok(0) => return Err("connection closed before a response".into()),
                Ok(_) => {}
                Err(error) => return Err(broken(error)),
            },
            Err(fault) => return Err(fault.to_string().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::CheckKind;

    const SECTION: HealthCheck = HealthCheck {
        kind: CheckKind::Connect,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        unhealthy_after: 3,
        healthy_after: 2,
    };

    fn record(state: &HealthState, outcomes: &[bool]) -> Vec<Option<bool>> {
        outcomes.iter().map(|ok| state.record(*ok, &SECTION, true)).collect()
    }

    #[test]
    fn consecutive_checks_change_the_state() {
        let state = HealthState::default();
        let outcomes = [false, false, true, false, false, false, false];
        let changes = [None, None, None, None, None, Some(false), None];
        assert_eq!(record(&state, &outcomes), changes);
        assert!(!state.is_healthy());
        let outcomes = [true, false, true, true, true];
        assert_eq!(record(&state, &outcomes), [None, None, None, Some(true), None]);
        assert!(state.is_healthy());
    }

    #[test]
    fn before_the_check_is_proven_nothing_leaves() {
        let state = HealthState::default();
        for _ in 0..100 {
            assert_eq!(state.record(false, &SECTION, false), None);
        }
        assert!(state.is_healthy());
        assert_eq!(state.record(false, &SECTION, true), Some(false));
    }
}
