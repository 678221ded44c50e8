//! The life of a process: what it starts, in which order, and how it ends.
//!
//! Sessions that outlive a process are there before the first connection is accepted: those of its
//! files, or those of the process that it replaces. It ends by a command, or when another process
//! serves instead.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use humantime::format_duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::commands::{Commands, keep_reopening};
use super::listeners::{Listener, Listeners, ListeningSockets, into_tokio};
use super::reload::{self, Reloader};
use super::service_manager::ServiceManager;
use super::start_log::StartLog;
use super::upgrade::{Giver, Successor};
use super::workers::Workers;
use super::{Command, Server, StartError};
use crate::admin;
use crate::edge::Edge;
use crate::edge::forward_auth::ForwardAuth;
use crate::internal_api::InternalApi;
use crate::internal_api::listener as internal_listener;
use crate::listener::small_server::{self, Dropped, LAST_REQUEST};
use crate::policy::lifecycle::Lifecycle;
use crate::policy::{Policies, Policy, Process};
use crate::telemetry::log_throttle::LogThrottle;

/// How often ended sessions are freed.
const MAINTENANCE: Duration = Duration::from_secs(1);

/// How much longer than the drain the last snapshot may take.
const LAST_SNAPSHOT: Duration = Duration::from_secs(10);

/// Why a process ends.
enum End {
    Command(Command),
    Replaced(Successor),
}

/// A process that serves.
struct Serving {
    process: Arc<Process>,
    policies: Arc<Policies>,
    manager: Arc<ServiceManager>,
    commands: Commands,
    /// For a new process. They listen for as long as these are kept.
    sockets: ListeningSockets,
    accepting: JoinSet<()>,
    /// Ends `accepting`, after the connections that wait in the kernel's queue.
    accepting_ends: CancellationToken,
    connections: TaskTracker,
    admin_closing: CancellationToken,
    /// What serves the admin listener and its connections.
    admin: TaskTracker,
    /// What only one of two processes does: reloads, snapshots, the watchdog.
    leading: JoinSet<()>,
    background: JoinSet<()>,
    /// Their threads end when this is dropped.
    _workers: Workers,
}

impl Server {
    /// Serves until a command to stop, until the channel of commands is closed, or until another
    /// process serves instead.
    ///
    /// # Errors
    /// When a thread cannot be started, a listener cannot be served, the files of sessions are in
    /// use, or the process that was to be replaced does not yield.
    pub async fn run(mut self, commands: mpsc::Receiver<Command>) -> Result<(), StartError> {
        let upgrade_socket = self.upgrade_socket.take();
        let giver = upgrade_socket.map(|socket| {
            let path = socket.path().to_owned();
            let (process, policies) = (self.process.clone(), self.policies.clone());
            Giver::new(socket, process, policies, self.manager.clone())
                .map_err(|error| StartError::ListenUnix { path, reason: error.to_string() })
        });
        let giver = giver.transpose()?;
        if giver.is_none() {
            self.invocation = None;
        }
        let Some(mut serving) = self.start(commands).await? else {
            tracing::info!("stopped");
            return Ok(());
        };
        let Serving { commands, sockets, .. } = &mut serving;
        let replaced = async {
            match giver {
                Some(giver) => giver.give(sockets).await,
                None => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            command = commands.wait_for_stop() => End::Command(command),
            successor = replaced => End::Replaced(successor),
        };
        match end {
            End::Command(command) => serving.end(command).await,
            End::Replaced(successor) => serving.retire(successor).await,
        }
        Ok(())
    }

    /// `None`: it was stopped before it served.
    async fn start(self, commands: mpsc::Receiver<Command>) -> Result<Option<Serving>, StartError> {
        let start_log = StartLog::new(&self);
        let Self { process, policies, manager, sockets, .. } = self;
        let workers = Workers::start(self.workers).map_err(StartError::Workers)?;
        let (mut background, mut leading) = (JoinSet::new(), JoinSet::new());
        reload::resolve(&policies.current().pools, &mut background).await;
        let sessions = process.sessions.clone();
        background.spawn(async move { sessions.run().await });
        background.spawn(keep_maintaining(process.clone(), policies.clone()));
        let (reopen, reopen_requests) = mpsc::channel(1);
        let reopen = process.access_log.file().map(|file| {
            background.spawn(keep_reopening(file.clone(), process.clock.clone(), reopen_requests));
            reopen
        });
        let (reload, reload_requests) = mpsc::channel(1);
        let reload = self.origin.map(|origin| {
            let reloader =
                Reloader::new(origin, process.clone(), policies.clone(), manager.clone());
            leading.spawn(reloader.run(reload_requests));
            reload
        });
        let mut commands =
            Commands { receiver: commands, reload, reopen, successor: self.invocation };

        let connections = TaskTracker::new();
        let (listeners, accepting_ends) = (self.listeners, CancellationToken::new());
        let accepting = listeners.accept(
            &workers,
            &self.edge,
            &process,
            &policies,
            &connections,
            &accepting_ends,
        )?;
        let admin_closing = CancellationToken::new();
        let admin_serving = serve_admin(self.admin, admin_closing.clone(), &process, &policies)?;
        let admin = TaskTracker::new();
        let admin_serving = admin.track_future(admin_serving);
        let mut predecessor = None;
        if let Some(found) = self.predecessor {
            let taken = found.take_state(&process, &policies);
            let taken = commands.unless_stopped(taken).await.ok_or(StartError::Stopped)?;
            let mut taken = taken?;
            let told = commands.unless_stopped(taken.may_serve()).await;
            told.ok_or(StartError::Stopped)??;
            sockets.own_files(true);
            background.spawn(admin_serving);
            predecessor = Some(taken);
        } else {
            // Until the sessions are loaded, `/readyz` says that the process is not ready.
            background.spawn(admin_serving);
            match commands.unless_stopped(process.sessions.restore()).await {
                Some(restored) => restored?,
                None => return Ok(None),
            }
        }
        let accepting = accepting.into_iter().collect();
        process.lifecycle.set_ready();
        start_log.write();
        if let Some(mut predecessor) = predecessor {
            predecessor.serves().await;
            background.spawn(predecessor.stay(process.clone(), policies.clone()));
        }
        manager.ready("serving");
        let (watched, watchdog) = (workers.probe(), manager.clone());
        leading.spawn(async move { watchdog.keep_alive(|| watched.respond()).await });
        let sessions = process.sessions.clone();
        leading.spawn(async move { sessions.keep_saving().await });
        Ok(Some(Serving {
            process,
            policies,
            manager,
            commands,
            sockets,
            accepting,
            accepting_ends,
            connections,
            admin_closing,
            admin,
            leading,
            background,
            _workers: workers,
        }))
    }
}

impl Serving {
    /// Ends by a command: at once, or when the requests in flight have ended.
    async fn end(mut self, command: Command) {
        self.manager.stopping();
        if command == Command::Stop {
            tracing::info!("stopped");
            return;
        }
        let Policy { shutdown_delay, drain_timeout, .. } = *self.policies.current();
        tracing::info!(
            in_flight = self.process.metrics.requests_in_flight(),
            shutdown_delay = %format_duration(shutdown_delay),
            drain_timeout = %format_duration(drain_timeout),
            "draining"
        );
        self.process.lifecycle.drain();
        let is_stopped = tokio::select! {
            () = sleep(shutdown_delay) => false,
            _ = self.commands.wait_for_stop() => true,
        };
        // Ends the accept loops, and thereby the listeners.
        drop(std::mem::take(&mut self.sockets));
        self.accepting_ends.cancel();
        while self.accepting.join_next().await.is_some() {}
        self.connections.close();
        let is_drained = if is_stopped {
            false
        } else {
            let finished = async {
                let drained = drained(&self.process.lifecycle, &self.connections, drain_timeout);
                let drained = timeout(drain_timeout, drained);
                let saved = async {
                    // A new process may have begun to take over.
                    drop(self.process.sessions.take_files().await);
                    self.process.sessions.save().await
                };
                let (drained, _) = tokio::join!(drained, saved);
                // Logins during the drain.
                self.process.sessions.save_logins().await;
                drained.is_ok()
            };
            let finished = timeout(drain_timeout + LAST_SNAPSHOT, finished);
            self.commands.unless_stopped(finished).await == Some(Ok(true))
        };
        self.stopped(is_drained).await;
    }

    /// Ends because another process serves.
    async fn retire(mut self, successor: Successor) {
        self.accepting.shutdown().await;
        drop(std::mem::take(&mut self.sockets));
        self.admin_closing.cancel();
        self.admin.close();
        self.leading.shutdown().await;
        successor.announce().await;
        let drain_timeout = self.policies.current().drain_timeout;
        tracing::info!(
            in_flight = self.process.metrics.requests_in_flight(),
            drain_timeout = %format_duration(drain_timeout),
            "draining: the new process has taken over"
        );
        self.process.lifecycle.drain();
        self.connections.close();
        let drained = async {
            drained(&self.process.lifecycle, &self.connections, drain_timeout).await;
            self.admin.wait().await;
        };
        let drained = self.commands.drains_in_time(drained, drain_timeout);
        let is_drained = successor.stay(&self.process, &self.policies, drained).await;
        self.stopped(is_drained).await;
    }

    async fn stopped(mut self, is_drained: bool) {
        if !is_drained {
            let cut = self.process.metrics.requests_in_flight();
            tracing::warn!(cut, "drain ended early: requests in flight are cut off");
        }
        tracing::info!("stopped");
        self.leading.shutdown().await;
        self.background.shutdown().await;
    }
}

/// Waits until all connections have ended. Those without a request are closed after the time for a
/// last one, which is at most half the drain.
async fn drained(lifecycle: &Lifecycle, connections: &TaskTracker, drain_timeout: Duration) {
    let last_request = LAST_REQUEST.min(drain_timeout / 2);
    if timeout(last_request, connections.wait()).await.is_err() {
        lifecycle.close();
        connections.wait().await;
    }
}

impl Listeners {
    /// What accepts the connections of all listeners, as soon as it is polled.
    fn accept(
        self,
        workers: &Workers,
        edge: &Arc<Edge>,
        process: &Arc<Process>,
        policies: &Arc<Policies>,
        connections: &TaskTracker,
        closing: &CancellationToken,
    ) -> Result<Vec<BoxFuture<'static, ()>>, StartError> {
        let mut accepting: Vec<BoxFuture<'static, ()>> = Vec::new();
        let cannot_accept = Arc::new(LogThrottle::new(process.clock.clone()));
        for (listener, kind) in self.public {
            let socket = into_tokio(listener)?;
            let edge = edge.clone();
            let serve = move |stream, peer| {
                let edge = edge.clone();
                async move { edge.serve(stream, peer, kind).await }
            };
            let (connections, closing) = (connections.clone(), closing.clone());
            let throttle = cannot_accept.clone();
            accepting.push(Box::pin(workers.accept(socket, serve, connections, throttle, closing)));
        }
        let decisions = Arc::new(ForwardAuth::new(process.clone(), policies.clone()));
        for listener in self.forward_auth {
            let socket = into_tokio(listener)?;
            let decisions = decisions.clone();
            let serve = move |stream, peer| {
                let decisions = decisions.clone();
                async move { decisions.serve(stream, peer).await }
            };
            let (connections, closing) = (connections.clone(), closing.clone());
            let throttle = cannot_accept.clone();
            accepting.push(Box::pin(workers.accept(socket, serve, connections, throttle, closing)));
        }
        if let Some(listener) = self.internal {
            let listener = listener.into_tokio()?;
            let api = InternalApi::new(process.clone(), policies.clone(), connections.clone());
            let (connections, closing) = (connections.clone(), closing.clone());
            let serve = internal_listener::serve(listener, Arc::new(api), connections, closing);
            accepting.push(Box::pin(serve));
        }
        Ok(accepting)
    }
}

/// Serves metrics, probes and operators.
fn serve_admin(
    listener: Listener,
    closing: CancellationToken,
    process: &Arc<Process>,
    policies: &Arc<Policies>,
) -> Result<impl Future<Output = ()> + Send + use<>, StartError> {
    let socket = into_tokio(listener)?;
    let (process, policies) = (process.clone(), policies.clone());
    Ok(async move {
        let respond = move |request| {
            let (process, policy) = (process.clone(), policies.current());
            // A client that disconnects does not cancel its operation.
            let response =
                tokio::spawn(async move { admin::respond(&process, &policy, &request).await });
            async move { response.await.map_err(|_| Dropped) }
        };
        small_server::serve_until(socket, closing, respond).await;
    })
}

async fn keep_maintaining(process: Arc<Process>, policies: Arc<Policies>) {
    loop {
        sleep(MAINTENANCE).await;
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
