//! Listening sockets that this process was given, by the service manager or by the process that it
//! replaces.
//!
//! A socket is used for the listener whose address it is bound to, so that neither side has to name
//! its sockets. The service manager passes descriptors from 3 on and describes them in `LISTEN_FDS`
//! and `LISTEN_PID` (`man sd_listen_fds`).

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::{env, fmt, io, mem};

use listenfd::ListenFd;
use socket2::{Socket, Type};

use crate::listener::unix_socket::{UnixSocket, is_bound_to};

/// Sockets that one process can be given by `LISTEN_FDS`.
const MOST: usize = 1024;

/// Sockets that no listener has taken yet.
#[derive(Default)]
pub struct ReceivedSockets {
    waiting: Vec<(Address, Socket)>,
    /// Whether it is an error if no listener takes a socket.
    must_fit: bool,
}

/// What a received socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Why received sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("LISTEN_FDS: \"{0}\" is not a number of sockets")]
    Count(String),
    #[error("received socket {number} is not a listening TCP or Unix socket: {reason}")]
    NoListener { number: usize, reason: io::Error },
    #[error(
        "LISTEN_FDS: received a socket that listens on {0}, which is the address of no listener \
         in the configuration"
    )]
    FitsNone(String),
}

impl ReceivedSockets {
    /// Sockets of the service manager. None if `LISTEN_PID` is missing or not this process. Removes
    /// `LISTEN_FDS` and `LISTEN_PID` from the environment, and must therefore be called before
    /// there are other threads, and before anything else is opened.
    ///
    /// # Errors
    /// When a descriptor is not a listening socket.
    pub fn from_environment() -> Result<Self, SocketError> {
        // Without LISTEN_PID, listenfd would take the sockets of any process.
        let is_ours = env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
        let count = env::var("LISTEN_FDS").unwrap_or_default();
        if !is_ours || count.is_empty() {
            return Ok(Self::default());
        }
        if !count.parse().is_ok_and(|count| (0..=MOST).contains(&count)) {
            return Err(SocketError::Count(count));
        }
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let taken = match passed.take_unix_listener(index) {
                Ok(taken) => Ok(taken.map(OwnedFd::from)),
                Err(_) => passed.take_tcp_listener(index).map(|taken| taken.map(OwnedFd::from)),
            };
            let failed = |reason| SocketError::NoListener { number: index + 1, reason };
            sockets.extend(taken.map_err(failed)?);
        }
        Ok(Self { must_fit: true, ..Self::from_peer(sockets)? })
    }

    /// Sockets of the process that this one replaces. Those that no listener takes are closed.
    ///
    /// # Errors
    /// When a descriptor is not a listening socket.
    pub fn from_peer(sockets: Vec<OwnedFd>) -> Result<Self, SocketError> {
        let with_address = |(index, socket)| {
            let socket = Socket::from(socket);
            match prepare(&socket) {
                Ok(address) => Ok((address, socket)),
                Err(reason) => Err(SocketError::NoListener { number: index + 1, reason }),
            }
        };
        let waiting =
            sockets.into_iter().enumerate().map(with_address).collect::<Result<_, _>>()?;
        Ok(Self { waiting, must_fit: false })
    }

    /// The socket that is bound to this address.
    pub fn take_tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        self.take(|bound| *bound == Address::Tcp(address)).map(TcpListener::from)
    }

    /// The socket that is bound to this path. Its file is not removed at the end, unless
    /// [`ListeningSockets::own_files`](super::listeners::ListeningSockets::own_files) says so.
    pub fn take_unix(&mut self, path: &Path) -> Option<UnixSocket> {
        let fits = |bound: &Address| matches!(bound, Address::Unix(at) if is_bound_to(at, path));
        self.take(fits).map(|socket| UnixSocket::received(UnixListener::from(socket), path))
    }

    fn take(&mut self, fits: impl Fn(&Address) -> bool) -> Option<Socket> {
        let index = self.waiting.iter().position(|(address, _)| fits(address))?;
        Some(self.waiting.remove(index).1)
    }

    /// Called when every listener has taken its socket; closes the others.
    ///
    /// # Errors
    /// When the service manager has passed a socket that fits no listener.
    pub fn finish(&mut self) -> Result<(), SocketError> {
        let left = mem::take(&mut self.waiting);
        match left.first() {
            Some((address, _)) if self.must_fit => Err(SocketError::FitsNone(address.to_string())),
            _ => Ok(()),
        }
    }
}

/// Makes sure that the socket listens, and sets what depends on who opened it.
fn prepare(socket: &Socket) -> io::Result<Address> {
    let invalid = |problem| Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    if socket.r#type()? != Type::STREAM {
        return invalid("another type of socket");
    }
    #[cfg(target_os = "linux")]
    if !socket.is_listener()? {
        return invalid("it does not listen");
    }
    socket.set_nonblocking(true)?;
    socket.set_cloexec(true)?;
    let address = socket.local_addr()?;
    if let Some(address) = address.as_socket() {
        return Ok(Address::Tcp(address));
    }
    match address.as_pathname() {
        Some(path) => Ok(Address::Unix(path.to_owned())),
        None => invalid("it has neither an IP address nor a path"),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use rustix::fs::{OFlags, fcntl_getfl};
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    use super::*;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn a_received_socket_is_taken_once_by_its_address_and_neither_blocks_nor_is_inherited() {
        let (first, address) = listener();
        let (second, other) = listener();
        fcntl_setfd(&first, FdFlags::empty()).unwrap();
        let mut received = ReceivedSockets::from_peer(vec![second.into(), first.into()]).unwrap();
        let wildcard = SocketAddr::from(([0, 0, 0, 0], address.port()));
        assert!(received.take_tcp(wildcard).is_none());
        let taken = received.take_tcp(address).unwrap();
        assert_eq!(taken.local_addr().unwrap(), address);
        assert!(received.take_tcp(address).is_none());
        assert!(fcntl_getfl(taken.as_fd()).unwrap().contains(OFlags::NONBLOCK));
        assert!(fcntl_getfd(taken.as_fd()).unwrap().contains(FdFlags::CLOEXEC));

        // What no listener of the new process has is closed, and no error.
        received.finish().unwrap();
        assert!(std::net::TcpStream::connect(other).is_err());
    }

    #[test]
    fn a_received_unix_socket_is_taken_by_the_path_under_which_it_is_connected_to() {
        let directory = tempfile::tempdir().unwrap();
        let (own, foreign) = (directory.path().join("own"), directory.path().join("foreign"));
        let sockets = vec![
            UnixSocket::bind(&own).unwrap().listener.into(),
            UnixListener::bind(&foreign).unwrap().into(),
        ];
        let mut received = ReceivedSockets::from_peer(sockets).unwrap();
        assert!(received.take_unix(&directory.path().join("ow")).is_none());
        assert_eq!(received.take_unix(&own).unwrap().path(), own);
        assert_eq!(received.take_unix(&foreign).unwrap().path(), foreign);
    }

    #[test]
    fn only_listening_sockets_are_received() {
        let (listener, address) = listener();
        let connection = std::net::TcpStream::connect(address).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let datagrams = UnixDatagram::unbound().unwrap();
        for wrong in [connection.into(), file.into(), OwnedFd::from(datagrams)] {
            let given = vec![listener.try_clone().unwrap().into(), wrong];
            let error = ReceivedSockets::from_peer(given).err().unwrap().to_string();
            assert!(error.starts_with("received socket 2 is not a listening"), "{error}");
        }
    }
}
