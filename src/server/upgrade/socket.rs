//! The socket at which a new process connects to take over.
//!
//! The process that gets the sockets and the sessions is the gateway from then on. So the socket's
//! file is for its owner only (the configuration checks its directory), and both sides check who
//! the other is: the old process gives only to its own user or root, the new one takes only from
//! its own.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use rustix::process::geteuid;
#[cfg(target_os = "linux")]
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_blocking;

use crate::clock::Clock;
use crate::listener::accepting;
use crate::listener::unix_socket::{SocketFile, UnixSocket};
use crate::telemetry::log_throttle::LogThrottle;

/// The socket at which this process waits for a new one. Its file is removed when this is dropped,
/// unless another process has replaced it.
pub struct UpgradeSocket {
    listener: UnixListener,
    file: SocketFile,
    rejected: LogThrottle,
}

/// A new process.
pub struct NewProcess {
    pub stream: UnixStream,
    /// `None`: unknown, for example in another PID namespace.
    pub pid: Option<i32>,
}

/// The process at the other end of a connection, as the system knows it.
pub struct OtherProcess(Option<Arc<OwnedFd>>);

/// Why this process cannot take over.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no process serves at {0}")]
    Nobody(String),
    #[error("cannot connect to {0}: {1}")]
    Io(String, io::Error),
    #[error("the process at {path} has the user ID {other}, not {own}")]
    Foreign { path: String, other: u32, own: u32 },
}

impl UpgradeSocket {
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be registered with it.
    pub fn new(socket: UnixSocket, clock: Clock) -> io::Result<Self> {
        let UnixSocket { listener, file } = socket;
        let listener = UnixListener::from_std(listener)?;
        Ok(Self { listener, file, rejected: LogThrottle::new(clock) })
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The next process that may take over. Others are closed and logged.
    pub async fn accept(&self) -> NewProcess {
        let own = own_uid();
        self.accept_from(|new| may_take(new, own)).await
    }

    async fn accept_from(&self, may_take: impl Fn(u32) -> bool) -> NewProcess {
        loop {
            let accepted = self.listener.accept().await;
            let accepted = accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream)));
            match accepted {
                Ok((other, stream)) if may_take(other.uid()) => {
                    return NewProcess { stream, pid: other.pid().filter(|pid| *pid > 0) };
                }
                Ok((other, _)) => self.log_rejected(other.uid(), other.pid()),
                Err(error) => {
                    if let Some(suppressed) = self.rejected.suppressed() {
                        tracing::warn!(%error, suppressed, "cannot accept at the upgrade socket");
                    }
                    tokio::time::sleep(accepting::PAUSE).await;
                }
            }
        }
    }

    fn log_rejected(&self, uid: u32, pid: Option<i32>) {
        if let Some(suppressed) = self.rejected.suppressed() {
            tracing::warn!(
                uid,
                pid,
                suppressed,
                "rejected a process of another user at the upgrade socket"
            );
        }
    }
}

/// Connects to the process that serves.
///
/// # Errors
/// When there is none, or it belongs to another user.
pub async fn connect(path: &Path) -> Result<UnixStream, ConnectError> {
    connect_as(path, own_uid()).await
}

async fn connect_as(path: &Path, own: u32) -> Result<UnixStream, ConnectError> {
    let shown = || path.display().to_string();
    let connected = async {
        let stream = UnixStream::connect(path).await?;
        Ok((stream.peer_cred()?.uid(), stream))
    };
    let (other, stream) = connected.await.map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ConnectError::Nobody(shown()),
        _ => ConnectError::Io(shown(), error),
    })?;
    if may_give(other, own) {
        Ok(stream)
    } else {
        Err(ConnectError::Foreign { path: shown(), other, own })
    }
}

impl OtherProcess {
    /// The process that has opened the other end.
    pub fn of(stream: &UnixStream) -> Self {
        let pid = stream.peer_cred().ok().and_then(|other| Pid::from_raw(other.pid()?));
        Self(pid.and_then(Self::handle))
    }

    #[cfg(target_os = "linux")]
    fn handle(pid: Pid) -> Option<Arc<OwnedFd>> {
        pidfd_open(pid, PidfdFlags::empty()).ok().map(Arc::new)
    }

    #[cfg(not(target_os = "linux"))]
    fn handle(_: Pid) -> Option<Arc<OwnedFd>> {
        None
    }

    /// Waits until it ends, at most this long. `false`: it lives, or it is unknown here, for
    /// example in another PID namespace.
    pub async fn ends_within(&self, limit: Duration) -> bool {
        let (Some(handle), Ok(limit)) = (self.0.clone(), Timespec::try_from(limit)) else {
            return false;
        };
        // The system reports the end as a readable descriptor (`man pidfd_open`).
        let wait = move || poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit));
        spawn_blocking(wait).await.is_ok_and(|ended| ended == Ok(1))
    }
}

fn own_uid() -> u32 {
    geteuid().as_raw()
}

/// Whether a process of user `new` may take over from one of user `own`.
fn may_take(new: u32, own: u32) -> bool {
    new == own || new == 0
}

/// Whether a process of user `own` takes over from one of user `old`. Root does not take from
/// others: what they give would decide what root serves.
fn may_give(old: u32, own: u32) -> bool {
    old == own
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn bind(path: &Path) -> UpgradeSocket {
        UpgradeSocket::new(UnixSocket::bind_private(path).unwrap(), Clock::manual()).unwrap()
    }

    #[test]
    fn sockets_and_sessions_stay_with_one_user() {
        assert!(may_take(1000, 1000) && may_give(1000, 1000));
        assert!(may_take(0, 1000), "root may take from everybody");
        assert!(!may_give(1000, 0), "root takes nothing from others");
        assert!(!may_take(1001, 1000) && !may_give(1001, 1000));
        assert!(!may_take(1000, 0) && !may_give(0, 1000));
    }

    #[tokio::test]
    async fn processes_of_other_users_are_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = bind(&path);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let rejected = Cell::new(0);
        let accept = socket.accept_from(|uid| {
            assert_eq!(uid, own_uid());
            rejected.set(rejected.get() + 1);
            rejected.get() > 2
        });
        let connect = async {
            for _ in 0..2 {
                let mut stream = connect(&path).await.unwrap();
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            }
            connect(&path).await.unwrap()
        };
        let (mut new, mut old) = tokio::join!(accept, connect);
        assert_eq!(new.pid, Some(std::process::id().try_into().unwrap()));
        new.stream.write_all(b"x").await.unwrap();
        assert_eq!(old.read_u8().await.unwrap(), b'x');

        let own = own_uid();
        let error = connect_as(&path, own + 1).await.unwrap_err().to_string();
        let path = path.display();
        let expected = format!("the process at {path} has the user ID {own}, not {}", own + 1);
        assert_eq!(error, expected);
    }

    #[tokio::test]
    async fn where_nobody_listens_there_is_nothing_to_take_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let nobody = |outcome| matches!(outcome, Err(ConnectError::Nobody(_)));
        assert!(nobody(connect(&path).await));
        // What a killed process leaves behind, and the next one replaces.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(nobody(connect(&path).await));
        let socket = bind(&path);
        assert!(connect(&path).await.is_ok());
        drop(socket);
        assert!(!path.exists());
    }
}
