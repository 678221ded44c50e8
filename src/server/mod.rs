//! The composition root: starts the gateway from a configuration, and stops it.
//!
//! [`Server::bind`] does almost everything that can fail at the start, including binding the
//! listeners; [`Server::run`] starts the worker threads, and serves until a command to stop.
//! pingora's server is not used: it closes every listener at once, and then always waits for its
//! whole grace period.

#[cfg(test)]
mod cancelled;
mod commands;
mod listeners;
pub mod reload;
pub mod signals;
mod start_log;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use humantime::format_duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use self::commands::{Commands, keep_reopening};
use self::listeners::{InternalListener, Listener, into_tokio, listen, listen_internal};
use self::reload::{Origin, Reloader};
use self::start_log::{ConfigSummary, StartLog};
use self::workers::Workers;
use crate::admin;
use crate::clock::Clock;
use crate::config::{Config, LogDestination, LogSection, ServerSection};
use crate::edge::forward_auth::ForwardAuth;
use crate::edge::{Edge, ListenerKind};
use crate::identity::secret::SealKey;
use crate::internal_api::InternalApi;
use crate::internal_api::listener as internal_listener;
use crate::listener::small_server::{self, Dropped};
use crate::listener::tls;
use crate::policy::lifecycle::Lifecycle;
use crate::policy::{Policies, Policy, PolicyError, Process};
use crate::session::Sessions;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;
use crate::upstream::Network;

/// How often ended sessions are freed.
const MAINTENANCE: Duration = Duration::from_secs(1);

/// A command to a running gateway; in production, a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// SIGTERM: finish requests in flight, then end. A second one is [`Command::Stop`].
    Drain,
    /// SIGINT: end at once.
    Stop,
    /// SIGHUP.
    Reload,
    /// SIGQUIT, with which pingora's server hands over to a new process. Here it is only logged.
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
    #[error("log.access: cannot open the file: {0}")]
    AccessLog(io::Error),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("cannot create keys for TLS session tickets: {0}")]
    Tickets(rustls::Error),
    #[error("cannot set up the metrics: {0}")]
    Metrics(String),
    #[error("cannot start worker threads: {0}")]
    Workers(io::Error),
}

/// A gateway with bound listeners.
pub struct Server {
    public: Vec<(Listener, ListenerKind)>,
    forward_auth: Vec<Listener>,
    admin: Listener,
    internal: Option<InternalListener>,
    edge: Arc<Edge>,
    process: Arc<Process>,
    policies: Arc<Policies>,
    origin: Option<Origin>,
    workers: usize,
    summary: ConfigSummary,
}

impl Server {
    /// Acquires everything that may be missing or in use on this machine.
    ///
    /// # Errors
    /// The first thing that is unavailable, by name.
    pub fn bind(config: &Config, clock: Clock, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let access_log =
            AccessLog::open(&config.log, &clock, &metrics).map_err(StartError::AccessLog)?;
        let (process, policy) = prepare(config, access_log, clock, metrics)?;
        let (process, policies) = (Arc::new(process), Arc::new(Policies::new(policy)));
        Ok(Self {
            public: public_listeners(&config.server)
                .map(|(address, kind)| listen(address).map(|listener| (listener, kind)))
                .collect::<Result<_, _>>()?,
            forward_auth: config
                .forward_auth
                .listen
                .iter()
                .map(|address| listen(*address))
                .collect::<Result<_, _>>()?,
            admin: listen(config.admin.listen)?,
            internal: config
                .internal
                .as_ref()
                .map(|section| listen_internal(&section.listen))
                .transpose()?,
            edge: Arc::new(Edge::new(process.clone(), policies.clone(), config.server.threads)),
            process,
            policies,
            origin: None,
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
        prepare(config, access_log, clock, metrics).map(drop)
    }

    /// Enables reloads from the file that the configuration came from.
    #[must_use]
    pub fn following(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
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
        self.public.iter().map(|(listener, _)| listener.address).collect()
    }

    /// The addresses of the forward-auth listeners, in the order of the configuration.
    pub fn forward_auth_addresses(&self) -> Vec<SocketAddr> {
        self.forward_auth.iter().map(|listener| listener.address).collect()
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address
    }

    /// The address of the internal listener: an IP address and port, or `unix:` and a path.
    pub fn internal_address(&self) -> Option<String> {
        self.internal.as_ref().map(InternalListener::address)
    }

    /// Serves until a command to stop, or until the channel of commands is closed.
    ///
    /// # Errors
    /// When a thread cannot be started or a listener cannot be served.
    #[expect(clippy::too_many_lines, reason = "one step after the other")]
    pub async fn run(self, commands: mpsc::Receiver<Command>) -> Result<(), StartError> {
        let start_log = StartLog::new(&self);
        let Self {
            public,
            forward_auth,
            admin,
            internal,
            edge,
            process,
            policies,
            origin,
            workers,
            ..
        } = self;
        let workers = Workers::start(workers).map_err(StartError::Workers)?;
        let mut background = JoinSet::new();
        reload::resolve(&policies.current().pools, &mut background).await;

        let admin_socket = into_tokio(admin)?;
        let (admin_process, admin_policies) = (process.clone(), policies.clone());
        background.spawn(async move {
            let respond = move |request| {
                let (process, policy) = (admin_process.clone(), admin_policies.current());
                // A client that disconnects does not cancel its operation.
                let response =
                    tokio::spawn(async move { admin::respond(&process, &policy, &request).await });
                async move { response.await.map_err(|_| Dropped) }
            };
            match small_server::serve(admin_socket, respond).await {}
        });
        let sessions = process.sessions.clone();
        background.spawn(async move { sessions.run().await });
        background.spawn(keep_maintaining(process.clone(), policies.clone()));
        let (reopen, reopen_requests) = mpsc::channel(1);
        let reopen = process.access_log.file().map(|file| {
            background.spawn(keep_reopening(file.clone(), process.clock.clone(), reopen_requests));
            reopen
        });
        let (reload, reload_requests) = mpsc::channel(1);
        let reload = origin.map(|origin| {
            let reloader = Reloader::new(origin, process.clone(), policies.clone());
            background.spawn(reloader.run(reload_requests));
            reload
        });

        let connections = TaskTracker::new();
        let mut accepting = JoinSet::new();
        let cannot_accept = Arc::new(LogThrottle::new(process.clock.clone()));
        for (listener, kind) in public {
            let socket = into_tokio(listener)?;
            let edge = edge.clone();
            let serve = move |stream, peer| {
                let edge = edge.clone();
                async move { edge.serve(stream, peer, kind).await }
            };
            let throttle = cannot_accept.clone();
            accepting.spawn(workers.accept(socket, serve, connections.clone(), throttle));
        }
        let decisions = Arc::new(ForwardAuth::new(process.clone(), policies.clone()));
        for listener in forward_auth {
            let socket = into_tokio(listener)?;
            let decisions = decisions.clone();
            let serve = move |stream, peer| {
                let decisions = decisions.clone();
                async move { decisions.serve(stream, peer).await }
            };
            let throttle = cannot_accept.clone();
            accepting.spawn(workers.accept(socket, serve, connections.clone(), throttle));
        }
        if let Some(listener) = internal {
            let listener = listener.into_tokio()?;
            let api = InternalApi::new(process.clone(), policies.clone(), connections.clone());
            let served = internal_listener::serve(listener, Arc::new(api), connections.clone());
            accepting.spawn(async move { match served.await {} });
        }
        process.lifecycle.set_ready();
        start_log.write();

        let mut commands = Commands { receiver: commands, reload, reopen };
        if commands.wait_for_stop().await == Command::Stop {
            tracing::info!("stopped");
            return Ok(());
        }
        let Policy { shutdown_delay, drain_timeout, .. } = *policies.current();
        tracing::info!(
            in_flight = process.metrics.requests_in_flight(),
            shutdown_delay = %format_duration(shutdown_delay),
            drain_timeout = %format_duration(drain_timeout),
            "draining"
        );
        process.lifecycle.drain();
        let is_stopped = tokio::select! {
            () = tokio::time::sleep(shutdown_delay) => false,
            _ = commands.wait_for_stop() => true,
        };
        // Ends the accept loops, and thereby the listeners.
        accepting.shutdown().await;
        process.lifecycle.close();
        connections.close();
        let in_time = async {
            tokio::select! {
                () = connections.wait() => true,
                () = tokio::time::sleep(drain_timeout) => false,
                _ = commands.wait_for_stop() => false,
            }
        };
        if is_stopped || !in_time.await {
            let cut = process.metrics.requests_in_flight();
            tracing::warn!(cut, "drain ended early: requests in flight are cut off");
        }
        tracing::info!("stopped");
        background.shutdown().await;
        Ok(())
    }
}

/// Everything needed to serve, except the listeners.
fn prepare(
    config: &Config,
    access_log: AccessLog,
    clock: Clock,
    metrics: Arc<Metrics>,
) -> Result<(Process, Policy), StartError> {
    if config.session.shared.is_some() {
        metrics.register_store().map_err(|error| StartError::Metrics(error.to_string()))?;
    }
    let sessions = Sessions::new(&config.session, clock.clone(), metrics.clone());
    sessions.keep_session_keys(config.open_data.enabled);
    let lifecycle = Lifecycle::default();
    let tickets = tls::tickets().map_err(StartError::Tickets)?;
    let process = Process {
        network: Arc::new(Network::new(clock.clone(), metrics.clone())),
        metrics,
        access_log,
        sessions,
        operator_refusals: LogThrottle::new(clock.clone()),
        clock,
        lifecycle,
        tickets,
        state_key: SealKey::random(),
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

async fn keep_maintaining(process: Arc<Process>, policies: Arc<Policies>) {
    loop {
        tokio::time::sleep(MAINTENANCE).await;
        process.sessions.maintain();
        let policy = policies.current();
        policy.login.maintain();
        policy.pools.iter().for_each(|pool| pool.maintain());
        if let Some(access_tokens) = &policy.access_tokens {
            access_tokens.maintain();
        }
        if let Some(signed) = &policy.signed_identity {
            signed.maintain();
        }
    }
}
