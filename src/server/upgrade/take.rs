//! The new process: takes over from the one that serves.

use std::mem;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::channel::{Channel, Message};
use super::descriptors::receive_sockets;
use super::hello::{self, HandshakeError, Hello, Welcome};
use super::socket::{ConnectError, OtherProcess, connect};
use super::{Bulk, ENTRY, READY_WITHIN, STEP, Said, answer, stay_in_touch};
use crate::clock::Clock;
use crate::handover::fields::{self, Malformed};
use crate::policy::{Policies, Process, handover};
use crate::server::Inherited;
use crate::server::received_sockets::{ReceivedSockets, SocketError};
use crate::session::{AppIds, Entry, Incoming, Restoring, TooManyChanges};
use crate::telemetry::metrics::RestoredFrom;

/// A process that is being replaced by this one.
pub struct Predecessor {
    stream: UnixStream,
    process: OtherProcess,
    welcome: Welcome,
    sockets: ReceivedSockets,
}

/// A process whose state this one has: this one must serve now.
pub struct Yielded {
    channel: Channel,
    old: OtherProcess,
}

/// Why this process cannot take over.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("server.upgrade_socket is not set, so no process can be replaced")]
    NotConfigured,
    #[error("a process with PID 1 cannot be replaced: its end would end the container")]
    FirstProcess,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Sockets(#[from] SocketError),
    #[error("the old process keeps sessions {0}, this one does not: restart instead")]
    OtherStore(&'static str),
    #[error("the old process is gone")]
    Gone,
    #[error("the old process did not yield in time")]
    TimedOut,
    #[error("the old process sent something impossible")]
    Malformed,
    #[error(transparent)]
    Changes(#[from] TooManyChanges),
    #[error("cannot open the files of sessions: {0}")]
    Files(String),
    #[error("the old process has taken everything back")]
    TakenBack,
    #[error("cannot take the sessions: {0}")]
    Sessions(#[from] JoinError),
}

impl From<Malformed> for TakeError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Predecessor {
    /// Connects to the process that serves, and gets its sockets.
    ///
    /// # Errors
    /// When there is none, or it refuses.
    pub async fn find(socket: Option<&Path>) -> Result<Self, TakeError> {
        let socket = socket.ok_or(TakeError::NotConfigured)?;
        if std::process::id() == 1 {
            return Err(TakeError::FirstProcess);
        }
        let mut stream = connect(socket).await?;
        let process = OtherProcess::of(&stream);
        let welcome = hello::introduce(&mut stream, &Hello::own()).await?;
        tracing::info!(version = welcome.program, "taking over from the process that serves");
        let sockets = receive_sockets(&mut stream).await?;
        let sockets = ReceivedSockets::from_peer(sockets)?;
        Ok(Self { stream, process, welcome, sockets })
    }

    /// The clock of this process, which continues that of the other one.
    pub fn clock(&self) -> Clock {
        Clock::continuing(self.welcome.clock_offset)
    }

    /// What this process begins with, on a clock that continues that of the other one.
    pub fn inherited(&self, clock: Clock) -> Inherited {
        let Welcome { state_key, sessions, .. } = &self.welcome;
        Inherited { clock, state_key: state_key.clone(), sessions: *sessions }
    }

    /// The sockets, once.
    pub fn take_sockets(&mut self) -> ReceivedSockets {
        mem::take(&mut self.sockets)
    }

    /// Takes the state of the other process. When this returns, the other one has yielded, and this
    /// one must serve.
    ///
    /// # Errors
    /// The other process goes on serving then.
    pub async fn take_state(
        mut self,
        process: &Arc<Process>,
        policies: &Arc<Policies>,
    ) -> Result<Yielded, TakeError> {
        if self.welcome.has_shared_store != process.sessions.are_shared() {
            let where_old = if self.welcome.has_shared_store { "in Redis" } else { "in memory" };
            return Err(TakeError::OtherStore(where_old));
        }
        if let Some(idle_timeout) = self.welcome.idle_timeout {
            process.sessions.share_idle_timeout(idle_timeout);
        }
        // Before the other process is told that questions are answered.
        let restoring = process.sessions.begin_restoring(RestoredFrom::Upgrade);
        hello::begin(&mut self.stream).await?;
        // Until the other process yields, it has the files and the records.
        let handler = answer(process, policies);
        let (channel, running) = Channel::open(self.stream, &process.peer, handler);
        process.peer.set_owner(false);
        tokio::spawn(running);
        let mut yielded = Yielded { channel, old: self.process };
        let taken = yielded.take_sessions(restoring);
        timeout(READY_WITHIN, taken).await.map_err(|_| TakeError::TimedOut)??;
        yielded.say(Said::Ready).await?;
        let state = yielded.take_rest(process, policies);
        timeout(STEP, state).await.map_err(|_| TakeError::TimedOut)??;
        Ok(yielded)
    }
}

impl Yielded {
    async fn take_sessions(&mut self, restoring: Restoring) -> Result<(), TakeError> {
        let bulk_in = mem::replace(&mut self.channel.bulk_in, mpsc::channel(1).1);
        // In a thread, because questions are answered meanwhile.
        let taken = spawn_blocking(move || {
            let bulk_in = take_entries(&restoring, bulk_in)?;
            Ok::<_, TakeError>((bulk_in, restoring.finish()?))
        });
        let (bulk_in, restored) = taken.await??;
        self.channel.bulk_in = bulk_in;
        tracing::info!(
            sessions = restored.sessions,
            blocks = restored.blocks,
            "took over the sessions of the old process"
        );
        Ok(())
    }

    /// Takes what changes with every request, and becomes the owner.
    async fn take_rest(
        &mut self,
        process: &Arc<Process>,
        policies: &Arc<Policies>,
    ) -> Result<(), TakeError> {
        let policy = policies.current();
        loop {
            let message = self.next().await?;
            if message.kind == Bulk::Yielded as u8 {
                break;
            }
            if message.kind != Bulk::State as u8 {
                return Err(TakeError::Malformed);
            }
            handover::import(process, &policy, &message.body)?;
        }
        handover::note_uses(&policy, true);
        let files = process.sessions.take_files().await;
        files.map_err(|error| TakeError::Files(error.to_string()))?;
        process.peer.set_owner(true);
        Ok(())
    }

    /// Waits until this process is told to serve. Until then the other one can take everything back.
    /// There is no limit of time here; the other process has one.
    ///
    /// # Errors
    /// When the other process goes on serving.
    pub async fn may_serve(&mut self) -> Result<(), TakeError> {
        let told = async {
            self.say(Said::CanServe).await?;
            self.next().await
        };
        match told.await {
            Ok(message) if message.kind == Bulk::Serve as u8 => Ok(()),
            _ if self.old.ends_within(STEP).await => {
                tracing::warn!("the old process has ended before it drained");
                Ok(())
            }
            _ => Err(TakeError::TakenBack),
        }
    }

    /// Says that this process accepts connections, and waits until the other one has named it to
    /// the service manager. If the other one is gone, there is nothing to wait for.
    pub async fn serves(&mut self) {
        let drains = async {
            self.say(Said::Serving).await?;
            self.next().await
        };
        match timeout(STEP, drains).await {
            Ok(Ok(message)) if message.kind == Bulk::Drains as u8 => {}
            _ => tracing::warn!("the old process has not said that it drains"),
        }
    }

    /// Stays in touch with the other process while it drains.
    pub async fn stay(mut self, process: Arc<Process>, policies: Arc<Policies>) {
        let (since, never) = (process.clock.now_millis(), CancellationToken::new());
        tokio::select! {
            () = stay_in_touch(&process, &policies, since, &never) => {}
            _ = self.channel.bulk_in.recv() => {}
        }
        handover::note_uses(&policies.current(), false);
        tracing::info!("the old process has ended");
        // All of its uses are known.
        let sessions = process.sessions.clone();
        drop(spawn_blocking(move || sessions.use_own_idle_timeout()).await);
    }

    async fn next(&mut self) -> Result<Message, TakeError> {
        self.channel.bulk_in.recv().await.ok_or(TakeError::Gone)
    }

    async fn say(&self, said: Said) -> Result<(), TakeError> {
        let message = Message::new(said as u8, &[]);
        self.channel.control_out.send(message).await.map_err(|_| TakeError::Gone)
    }
}

/// Takes all sessions, in several threads. Returns where what follows them comes in.
fn take_entries(
    restoring: &Restoring,
    bulk_in: mpsc::Receiver<Message>,
) -> Result<mpsc::Receiver<Message>, TakeError> {
    // And whether the end has come.
    let bulk_in = Mutex::new((bulk_in, false));
    let next_message = || -> Result<_, TakeError> {
        let (bulk_in, is_at_end) = &mut *bulk_in.lock();
        if *is_at_end {
            return Ok(None);
        }
        let message = bulk_in.blocking_recv().ok_or(TakeError::Gone)?;
        // Then no other thread must wait for more.
        *is_at_end = message.kind != Bulk::Sessions as u8;
        match message.kind {
            kind if kind == Bulk::Sessions as u8 => Ok(Some(message)),
            kind if kind == Bulk::EndOfSessions as u8 => Ok(None),
            _ => Err(TakeError::Malformed),
        }
    };
    let next = || -> Result<_, TakeError> {
        let Some(message) = next_message()? else { return Ok(None) };
        let (mut incoming, mut apps) = (Incoming::default(), AppIds::default());
        for field in fields::read(&message.body) {
            let field = field?;
            if field.number == ENTRY
                && let Some(entry) = Entry::decode(field.value, &mut apps)?
            {
                incoming.add(entry);
            }
        }
        Ok(Some(incoming))
    };
    restoring.insert_all(next)?;
    Ok(bulk_in.into_inner().0)
}
