//! The composition root: starts the gateway from a configuration, and stops it.
//!
//! [`Server::bind`] does almost everything that can fail at the start, including binding the
//! listeners; [`Server::run`] starts the worker threads, and serves until a command to stop or
//! until another process takes over (`serving`, `upgrade`). pingora's server is not used: it closes
//! every listener at once, and then always waits for its whole grace period.

#[cfg(test)]
mod cancelled;
mod commands;
#[cfg(test)]
mod handed_over;
pub mod listeners;
pub mod received_sockets;
pub mod reload;
pub mod service_manager;
mod serving;
pub mod signals;
mod start_log;
pub mod upgrade;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use self::listeners::{
    InternalListener, Listener, Listeners, ListeningSockets, listen, listen_internal,
    listen_upgrade,
};
use self::received_sockets::{ReceivedSockets, SocketError};
use self::reload::Origin;
use self::service_manager::ServiceManager;
use self::start_log::ConfigSummary;
use self::upgrade::{Invocation, Predecessor, TakeError};
use crate::clock::Clock;
use crate::config::{Config, LogDestination, LogSection, ServerSection};
use crate::edge::{Edge, ListenerKind};
use crate::handover::claims::CodeKind;
use crate::handover::peer::Peer;
use crate::identity::secret::SealKey;
use crate::listener::tls::TicketKeys;
use crate::listener::unix_socket::UnixSocket;
use crate::policy::lifecycle::Lifecycle;
use crate::policy::{Policies, Policy, PolicyError, Process};
use crate::session::{FilesError, Sessions};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;
use crate::upstream::Network;
use crate::wechat::sent_codes::SentCodes;

/// A command to a running gateway; in production, a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// SIGTERM: finish requests in flight, then end. A second one is [`Command::Stop`].
    Drain,
    /// SIGINT: end at once.
    Stop,
    /// SIGHUP.
    Reload,
    /// SIGQUIT: start a new process, which takes over.
    HandOver,
    /// SIGUSR1.
    ReopenLogs,
    /// A signal that has no effect except a log line.
    Ignored { name: &'static str, number: i32 },
}

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: {reason}")]
    Listen { address: SocketAddr, reason: String },
    #[error("cannot listen on unix:{}: {reason}", .path.display())]
    ListenUnix { path: PathBuf, reason: String },
    #[error(transparent)]
    Received(#[from] SocketError),
    #[error("cannot duplicate the listening sockets: {0}")]
    Duplicate(io::Error),
    #[error("log.access: cannot open the file: {0}")]
    AccessLog(io::Error),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("cannot create keys for TLS session tickets: {0}")]
    Tickets(rustls::Error),
    #[error("cannot set up the metrics: {0}")]
    Metrics(String),
    #[error(transparent)]
    SessionFiles(#[from] FilesError),
    #[error("cannot take over: {0}")]
    TakeOver(#[from] TakeError),
    #[error("stopped before it has taken over")]
    Stopped,
    #[error("cannot start worker threads: {0}")]
    Workers(io::Error),
}

/// What a process begins with. If it replaces another one, it has this from there.
pub struct Inherited {
    pub clock: Clock,
    /// See `Process::state_key`.
    pub state_key: SealKey,
    /// About how many sessions will be handed over.
    pub sessions: u64,
}

impl Inherited {
    fn nothing(clock: Clock) -> Self {
        Self { clock, state_key: SealKey::random(), sessions: 0 }
    }
}

/// A gateway with bound listeners.
pub struct Server {
    listeners: Listeners,
    admin: Listener,
    upgrade_socket: Option<UnixSocket>,
    sockets: ListeningSockets,
    edge: Arc<Edge>,
    process: Arc<Process>,
    policies: Arc<Policies>,
    origin: Option<Origin>,
    manager: Arc<ServiceManager>,
    invocation: Option<Invocation>,
    /// The process that this one replaces.
    predecessor: Option<Predecessor>,
    workers: usize,
    summary: ConfigSummary,
}

impl Server {
    /// Acquires everything that may be missing or in use on this machine.
    ///
    /// # Errors
    /// The first thing that is unavailable, by name.
    pub fn bind(config: &Config, clock: Clock, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        Self::bind_with(config, clock, metrics, ReceivedSockets::default())
    }

    /// The same, with listening sockets of the service manager.
    ///
    /// # Errors
    /// As [`Server::bind`], and if one of the sockets fits no listener.
    pub fn bind_with(
        config: &Config,
        clock: Clock,
        metrics: Arc<Metrics>,
        received: ReceivedSockets,
    ) -> Result<Self, StartError> {
        Self::bind_all(config, Inherited::nothing(clock), metrics, received)
    }

    /// The same, in the place of another process, with its listening sockets. The clock must go on
    /// where the clock of that process is ([`Predecessor::clock`]).
    ///
    /// # Errors
    /// As [`Server::bind`]. The other process goes on serving then.
    pub fn bind_after(
        mut predecessor: Predecessor,
        config: &Config,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let sockets = predecessor.take_sockets();
        let inherited = predecessor.inherited(clock);
        let server = Self::bind_all(config, inherited, metrics, sockets)?;
        Ok(Self { predecessor: Some(predecessor), ..server })
    }

    fn bind_all(
        config: &Config,
        inherited: Inherited,
        metrics: Arc<Metrics>,
        mut received: ReceivedSockets,
    ) -> Result<Self, StartError> {
        let access_log = AccessLog::open(&config.log, &inherited.clock, &metrics)
            .map_err(StartError::AccessLog)?;
        let (process, policy) = prepare(config, access_log, inherited, metrics)?;
        let (process, policies) = (Arc::new(process), Arc::new(Policies::new(policy)));
        let mut listen = |address| listen(address, &mut received);
        let public = public_listeners(&config.server)
            .map(|(address, kind)| listen(address).map(|listener| (listener, kind)))
            .collect::<Result<Vec<_>, _>>()?;
        let forward_auth = config.forward_auth.listen.iter().copied().map(&mut listen);
        let forward_auth = forward_auth.collect::<Result<Vec<_>, _>>()?;
        let admin = listen(config.admin.listen)?;
        let internal = config.internal.as_ref();
        let internal =
            internal.map(|section| listen_internal(&section.listen, &mut received)).transpose()?;
        let upgrade_socket = config.server.upgrade_socket.as_ref();
        // The end of the process with PID 1 would end the container, and with it the new process.
        let is_first = std::process::id() == 1;
        if is_first && upgrade_socket.is_some() {
            tracing::warn!("server.upgrade_socket has no effect: this process has PID 1");
        }
        let upgrade_socket = upgrade_socket.filter(|_| !is_first);
        let upgrade_socket =
            upgrade_socket.map(|path| listen_upgrade(path, &mut received)).transpose()?;
        received.finish()?;
        let listeners = Listeners { public, forward_auth, internal };
        let sockets = ListeningSockets::of(&listeners, &admin, upgrade_socket.as_ref());
        Ok(Self {
            listeners,
            admin,
            upgrade_socket,
            sockets: sockets.map_err(StartError::Duplicate)?,
            edge: Arc::new(Edge::new(process.clone(), policies.clone(), config.server.threads)),
            process,
            policies,
            origin: None,
            manager: Arc::default(),
            invocation: None,
            predecessor: None,
            workers: config.server.threads,
            summary: ConfigSummary::new(config),
        })
    }

    /// Does what [`Server::bind`] does, except for the listeners and the access log's file, and
    /// drops the result. Opens no connections.
    ///
    /// # Errors
    /// The first thing that is unavailable, by name.
    pub fn rehearse(config: &Config, metrics: Arc<Metrics>) -> Result<(), StartError> {
        let log = LogSection { access: LogDestination::Off, ..config.log.clone() };
        let clock = Clock::system();
        let access_log = AccessLog::open(&log, &clock, &metrics).map_err(StartError::AccessLog)?;
        prepare(config, access_log, Inherited::nothing(clock), metrics).map(drop)
    }

    /// Enables reloads from the file that the configuration came from.
    #[must_use]
    pub fn following(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    /// Reports the state of the process to the service manager.
    #[must_use]
    pub fn reporting_to(mut self, manager: Arc<ServiceManager>) -> Self {
        self.manager = manager;
        self
    }

    /// Enables upgrades to a new process that is started as this one was.
    #[must_use]
    pub fn started_by(mut self, invocation: Invocation) -> Self {
        self.invocation = Some(invocation);
        self
    }

    /// Replaces the configuration before it is served, except for what listeners and worker threads
    /// were made from: for one that contains a port that the system has chosen.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn with_config(self, config: &Config) -> Result<Self, StartError> {
        let policy = Policy::new(config, &self.process, Some(&self.policies.current()))?;
        self.policies.replace(Arc::new(policy));
        Ok(Self { summary: ConfigSummary::new(config), ..self })
    }

    /// The addresses of the public listeners, in the order of the configuration, those of
    /// `server.redirect` last.
    pub fn public_addresses(&self) -> Vec<SocketAddr> {
        self.listeners.public.iter().map(|(listener, _)| listener.address).collect()
    }

    /// The addresses of the forward-auth listeners, in the order of the configuration.
    pub fn forward_auth_addresses(&self) -> Vec<SocketAddr> {
        self.listeners.forward_auth.iter().map(|listener| listener.address).collect()
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address
    }

    /// The address of the internal listener: an IP address and port, or `unix:` and a path.
    pub fn internal_address(&self) -> Option<String> {
        self.listeners.internal.as_ref().map(InternalListener::address)
    }
}

/// Everything needed to serve, except the listeners.
fn prepare(
    config: &Config,
    access_log: AccessLog,
    inherited: Inherited,
    metrics: Arc<Metrics>,
) -> Result<(Process, Policy), StartError> {
    if config.session.shared.is_some() {
        metrics.register_store().map_err(|error| StartError::Metrics(error.to_string()))?;
    }
    if config.session.snapshot.is_some() {
        metrics.register_snapshot().map_err(|error| StartError::Metrics(error.to_string()))?;
    }
    let Inherited { clock, state_key, sessions } = inherited;
    let peer = Peer::default();
    let sessions =
        Sessions::new(&config.session, clock.clone(), metrics.clone(), peer.clone(), sessions);
    sessions.keep_session_keys(config.open_data.enabled);
    let lifecycle = Lifecycle::default();
    let tickets = TicketKeys::new(clock.clone()).map_err(StartError::Tickets)?;
    let phone_codes = SentCodes::new(CodeKind::PhoneNumber, peer.clone(), clock.clone());
    let process = Process {
        network: Arc::new(Network::new(clock.clone(), metrics.clone())),
        metrics,
        access_log,
        sessions,
        peer,
        operator_refusals: LogThrottle::new(clock.clone()),
        clock,
        lifecycle,
        tickets: Arc::new(tickets),
        state_key,
        phone_codes: Arc::new(phone_codes),
    };
    let policy = Policy::new(config, &process, None)?;
    Ok((process, policy))
}

/// The addresses of the public listeners, with the kind of each.
fn public_listeners(section: &ServerSection) -> impl Iterator<Item = (SocketAddr, ListenerKind)> {
    let own = section.listen.iter().map(|address| {
        let is_behind_balancer = section.proxy_protocol.contains(address);
        (
            *address,
            if is_behind_balancer { ListenerKind::ProxyProtocol } else { ListenerKind::Client },
        )
    });
    own.chain(section.redirect.iter().map(|address| (*address, ListenerKind::Redirect)))
}
