//! The old process: gives to a new one what it needs to serve, and goes on if that fails.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::channel::{Channel, Ended, Message};
use super::descriptors::send_sockets;
use super::hello::{self, HandshakeError, VERSIONS, Welcome, common_version};
use super::socket::{NewProcess, OtherProcess, UpgradeSocket};
use super::{Bulk, ENTRY, READY_WITHIN, STEP, Said, answer, stay_in_touch};
use crate::handover::fields::Writer;
use crate::listener::unix_socket::UnixSocket;
use crate::policy::{Policies, Process, handover};
use crate::server::listeners::ListeningSockets;
use crate::server::service_manager::ServiceManager;
use crate::session::{Frozen, Records};

/// Entries are collected to about this many bytes before they are sent.
const PIECE: usize = 256 << 10;

/// Gives to new processes.
pub struct Giver {
    socket: UpgradeSocket,
    process: Arc<Process>,
    policies: Arc<Policies>,
    manager: Arc<ServiceManager>,
    /// The channel of the last attempt.
    running: Option<JoinHandle<Ended>>,
}

/// The new process, which serves. This process must stop accepting.
pub struct Successor {
    pid: Option<u32>,
    channel: Channel,
    process: Arc<Process>,
    manager: Arc<ServiceManager>,
    /// When it began to take the sessions, in milliseconds of the clock.
    since: u64,
}

/// Why a new process has not taken over.
#[derive(Debug, thiserror::Error)]
enum GiveError {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("it speaks versions {0} to {1} of the protocol, this process {2} to {3}")]
    Version(u64, u64, u64, u64),
    #[error("the process before this one still drains")]
    NotYet,
    #[error("it was not ready within {} s", READY_WITHIN.as_secs())]
    NotReady,
    #[error("it did not serve within {} s", STEP.as_secs())]
    NotServing,
    #[error("it is gone")]
    Gone,
    #[error("it said something unexpected")]
    Unexpected,
    #[error("cannot read the sessions: {0}")]
    Sessions(#[from] JoinError),
}

impl Giver {
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be registered with it.
    pub fn new(
        socket: UnixSocket,
        process: Arc<Process>,
        policies: Arc<Policies>,
        manager: Arc<ServiceManager>,
    ) -> io::Result<Self> {
        let socket = UpgradeSocket::new(socket, process.clock.clone())?;
        Ok(Self { socket, process, policies, manager, running: None })
    }

    /// Waits until a new process serves instead of this one. `sockets` are all that listen.
    pub async fn give(mut self, sockets: &ListeningSockets) -> Successor {
        loop {
            let new = self.socket.accept().await;
            let (pid, deadline) = (new.pid, Instant::now() + READY_WITHIN);
            match self.try_giving(new, sockets, deadline).await {
                Ok(successor) => {
                    // Before the socket is dropped.
                    sockets.own_files(false);
                    return successor;
                }
                Err(error) => {
                    let ended = self.take_back().await;
                    tracing::error!(
                        pid,
                        %error,
                        connection = ended.map(tracing::field::display),
                        "the new process has not taken over: this one goes on serving"
                    );
                }
            }
        }
    }

    async fn try_giving(
        &mut self,
        new: NewProcess,
        sockets: &ListeningSockets,
        deadline: Instant,
    ) -> Result<Successor, GiveError> {
        let NewProcess { mut stream, pid } = new;
        let other = OtherProcess::of(&stream);
        let hello = hello::receive_hello(&mut stream).await?;
        if self.process.peer.is_linked() {
            hello::refuse(&mut stream, "the last upgrade has not ended: try again later").await?;
            return Err(GiveError::NotYet);
        }
        tracing::info!(pid, version = hello.program, "a new process asks to take over");
        let Some(version) = common_version(&VERSIONS, &hello.versions) else {
            let (oldest, newest) = (*hello.versions.start(), *hello.versions.end());
            let error = GiveError::Version(oldest, newest, *VERSIONS.start(), *VERSIONS.end());
            hello::refuse(&mut stream, "no version of the protocol in common").await?;
            return Err(error);
        };
        let welcome = Welcome {
            version,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            clock_offset: self.process.clock.offset(),
            state_key: self.process.state_key.clone(),
            has_shared_store: self.process.sessions.are_shared(),
            sessions: self.process.sessions.count(),
            idle_timeout: Some(self.process.sessions.idle_timeout()),
        };
        hello::welcome(&mut stream, &welcome).await?;
        let descriptors: Vec<_> = sockets.descriptors().collect();
        send_sockets(&mut stream, &descriptors).await?;
        // Before that it answers no questions.
        let begun = timeout_at(deadline, hello::receive_begin(&mut stream)).await;
        begun.map_err(|_: Elapsed| GiveError::NotReady)??;
        let (channel, running) =
            Channel::open(stream, &self.process.peer, answer(&self.process, &self.policies));
        self.running = Some(tokio::spawn(running));
        let pid = pid.and_then(|pid| u32::try_from(pid).ok());
        let (process, manager) = (self.process.clone(), self.manager.clone());
        let since = process.clock.now_millis();
        let mut successor = Successor { pid, channel, process, manager, since };
        let ready = async {
            successor.send_sessions().await?;
            successor.expect(Said::Ready).await
        };
        timeout_at(deadline, ready).await.map_err(|_: Elapsed| GiveError::NotReady)??;
        let records = self.process.sessions.records().clone();
        let serving = async {
            let frozen = successor.yield_to_it(&self.policies, &records).await?;
            successor.expect(Said::CanServe).await?;
            successor.send(Bulk::Serve, &[]).await?;
            frozen.given();
            Ok::<_, GiveError>(())
        };
        timeout(STEP, serving).await.map_err(|_: Elapsed| GiveError::NotServing)??;
        match timeout(STEP, successor.expect(Said::Serving)).await {
            Ok(Ok(())) => Ok(successor),
            _ if other.ends_within(STEP).await => Err(GiveError::Gone),
            // It may serve, so this process must not.
            _ => Ok(successor),
        }
    }

    /// This process has everything again. Returns why the connection ended, if it did.
    async fn take_back(&mut self) -> Option<Ended> {
        // Before it was opened, nothing was given.
        let running = self.running.take()?;
        running.abort();
        let ended = running.await.ok();
        self.process.peer.unlink();
        handover::note_uses(&self.policies.current(), false);
        // A failure is logged there, and tried again.
        drop(self.process.sessions.take_files().await);
        ended
    }
}

impl Successor {
    /// Sends all sessions. Logins and logouts meanwhile are told by `session::relay`.
    async fn send_sessions(&self) -> Result<(), GiveError> {
        let (sessions, bulk) = (self.process.sessions.clone(), self.channel.bulk_out.clone());
        let send = move || {
            let (mut list, mut entry) = (Writer::new(), Writer::new());
            sessions.hand_over(|exported| {
                entry.clear();
                exported.encode(&mut entry);
                list.list(ENTRY, &entry);
                if list.as_bytes().len() < PIECE {
                    return Ok(());
                }
                let sent = bulk.blocking_send(message(Bulk::Sessions, list.as_bytes()));
                list.clear();
                sent
            })?;
            bulk.blocking_send(message(Bulk::Sessions, list.as_bytes()))
        };
        spawn_blocking(send).await?.map_err(|_| GiveError::Gone)?;
        // Until the new process has the files, logouts wait: not for a whole snapshot as well.
        self.process.sessions.pause_saving().await;
        self.send(Bulk::EndOfSessions, &[]).await
    }

    /// From here on the new process has what only one can have. Operations on records wait until it
    /// serves, and are sent to it from then on.
    async fn yield_to_it<'a>(
        &self,
        policies: &Policies,
        records: &'a Records,
    ) -> Result<Frozen<'a>, GiveError> {
        self.process.sessions.hand_over_files().await;
        let frozen = records.freeze();
        let (process, policy) = (self.process.clone(), policies.current());
        handover::note_uses(&policy, true);
        // Copies up to some hundred megabytes.
        let pieces = spawn_blocking(move || handover::export(&process, &policy)).await?;
        for piece in pieces {
            self.send(Bulk::State, piece.as_bytes()).await?;
        }
        self.send(Bulk::Yielded, &[]).await?;
        self.process.peer.set_owner(false);
        Ok(frozen)
    }

    async fn send(&self, bulk: Bulk, body: &[u8]) -> Result<(), GiveError> {
        self.channel.bulk_out.send(message(bulk, body)).await.map_err(|_| GiveError::Gone)
    }

    async fn expect(&mut self, said: Said) -> Result<(), GiveError> {
        match self.channel.control_in.recv().await {
            Some(message) if message.kind == said as u8 => Ok(()),
            Some(_) => Err(GiveError::Unexpected),
            None => Err(GiveError::Gone),
        }
    }

    /// Names the new process to the service manager. This process must not listen any more.
    pub async fn announce(&self) {
        if let Some(pid) = self.pid {
            self.manager.main_pid(pid);
        }
        tracing::info!(pid = self.pid, "the new process serves");
        if self.send(Bulk::Drains, &[]).await.is_err() {
            tracing::warn!("the new process is gone");
        }
    }

    /// Stays in touch with the new process while this one drains. Then that one knows everything.
    pub async fn stay<T>(
        self,
        process: &Process,
        policies: &Policies,
        drained: impl Future<Output = T>,
    ) -> T {
        let ending = CancellationToken::new();
        let mut drained = pin!(drained);
        let mut telling = pin!(async {
            stay_in_touch(process, policies, self.since, &ending).await;
            // Ends the channel.
            drop(self);
        });
        let drained = tokio::select! {
            drained = &mut drained => drained,
            () = &mut telling => return drained.await,
        };
        ending.cancel();
        // A slow process must not keep this one.
        let _ = timeout(STEP, telling).await;
        drained
    }
}

fn message(bulk: Bulk, body: &[u8]) -> Message {
    Message::new(bulk as u8, body)
}
