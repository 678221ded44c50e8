//! Opens listening sockets, or takes those that the process was given: their options, and what an
//! operator reads if one cannot be opened.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use tokio::net::{TcpListener, UnixListener};

use super::StartError;
use super::received_sockets::ReceivedSockets;
use crate::config::InternalAddress;
use crate::edge::ListenerKind;
use crate::internal_api::listener as internal_listener;
use crate::listener::accepting::BACKLOG;
use crate::listener::unix_socket::{Ownership, UnixSocket};

/// A TCP socket that listens.
pub struct Listener {
    socket: StdListener,
    pub address: SocketAddr,
}

/// The bound listener of the internal API.
pub enum InternalListener {
    Tcp(Listener),
    Unix(UnixSocket),
}

/// The bound listeners, except that of operators.
pub struct Listeners {
    pub public: Vec<(Listener, ListenerKind)>,
    pub forward_auth: Vec<Listener>,
    pub internal: Option<InternalListener>,
}

/// Duplicates of the listening sockets of a server, for a new process. A socket listens for as long
/// as its duplicate is kept.
#[derive(Default)]
pub struct ListeningSockets {
    sockets: Vec<OwnedFd>,
    files: Vec<Ownership>,
}

/// Opens a listening socket, unless the process was given one for this address.
///
/// # Errors
/// When the address cannot be used.
pub fn listen(address: SocketAddr, received: &mut ReceivedSockets) -> Result<Listener, StartError> {
    if let Some(socket) = received.take_tcp(address) {
        return Ok(Listener { socket, address });
    }
    let listen_error = |error: io::Error| {
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => "address in use".to_owned(),
            io::ErrorKind::AddrNotAvailable => "no such address on this machine".to_owned(),
            io::ErrorKind::PermissionDenied => {
                "permission denied (ports below 1024 need CAP_NET_BIND_SERVICE)".to_owned()
            }
            _ => error.to_string(),
        };
        StartError::Listen { address, reason }
    };
    let bind = || {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM.nonblocking(),
            Some(socket2::Protocol::TCP),
        )?;
        // A restart does not have to wait for the connections of the previous process.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = StdListener::from(socket);
        let address = socket.local_addr()?;
        Ok(Listener { socket, address })
    };
    bind().map_err(listen_error)
}

/// Listens where services connect.
pub fn listen_internal(
    address: &InternalAddress,
    received: &mut ReceivedSockets,
) -> Result<InternalListener, StartError> {
    match address {
        InternalAddress::Tcp(address) => listen(*address, received).map(InternalListener::Tcp),
        InternalAddress::Unix(path) => {
            if let Some(socket) = received.take_unix(path) {
                return Ok(InternalListener::Unix(socket));
            }
            let socket = UnixSocket::bind(path).map_err(|error| unix_error(path, &error))?;
            Ok(InternalListener::Unix(socket))
        }
    }
}

/// Listens where a new process connects to take over.
pub fn listen_upgrade(
    path: &Path,
    received: &mut ReceivedSockets,
) -> Result<UnixSocket, StartError> {
    if let Some(socket) = received.take_unix(path) {
        return Ok(socket);
    }
    UnixSocket::bind_private(path).map_err(|error| unix_error(path, &error))
}

/// What an operator reads if a Unix socket cannot be opened.
fn unix_error(path: &Path, error: &io::Error) -> StartError {
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there".to_owned(),
        _ => error.to_string(),
    };
    StartError::ListenUnix { path: path.to_owned(), reason }
}

impl InternalListener {
    /// An IP address and port, or `unix:` and a path.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.address.to_string(),
            Self::Unix(socket) => format!("unix:{}", socket.path().display()),
        }
    }

    pub fn into_tokio(self) -> Result<internal_listener::Listener, StartError> {
        match self {
            Self::Tcp(listener) => into_tokio(listener).map(internal_listener::Listener::Tcp),
            Self::Unix(UnixSocket { listener, file }) => {
                let failed = |error: io::Error| StartError::ListenUnix {
                    path: file.path().to_owned(),
                    reason: error.to_string(),
                };
                let listener = UnixListener::from_std(listener).map_err(failed)?;
                Ok(internal_listener::Listener::Unix(listener, file))
            }
        }
    }
}

impl ListeningSockets {
    /// # Errors
    /// When the process may open no more files.
    pub fn of(
        listeners: &Listeners,
        admin: &Listener,
        upgrade: Option<&UnixSocket>,
    ) -> io::Result<Self> {
        let mut all = Self::default();
        let Listeners { public, forward_auth, internal } = listeners;
        for listener in public.iter().map(|(listener, _)| listener).chain(forward_auth) {
            all.add_tcp(listener)?;
        }
        all.add_tcp(admin)?;
        match internal {
            Some(InternalListener::Tcp(listener)) => all.add_tcp(listener)?,
            Some(InternalListener::Unix(socket)) => all.add_unix(socket)?,
            None => {}
        }
        upgrade.map_or(Ok(()), |socket| all.add_unix(socket))?;
        Ok(all)
    }

    fn add_tcp(&mut self, listener: &Listener) -> io::Result<()> {
        self.sockets.push(listener.socket.try_clone()?.into());
        Ok(())
    }

    fn add_unix(&mut self, socket: &UnixSocket) -> io::Result<()> {
        self.sockets.push(socket.listener.try_clone()?.into());
        self.files.push(socket.file.ownership());
        Ok(())
    }

    pub fn descriptors(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    /// Sets whether this process removes the files of its Unix sockets at its end. It does so from
    /// the start, unless it was given the socket. A file that the service manager has made is never
    /// removed.
    pub fn own_files(&self, is_owner: bool) {
        self.files.iter().for_each(|file| file.set(is_owner));
    }
}

/// Registers the socket with the current tokio runtime.
///
/// # Errors
/// When it cannot be registered.
pub fn into_tokio(listener: Listener) -> Result<TcpListener, StartError> {
    let Listener { socket, address } = listener;
    TcpListener::from_std(socket)
        .map_err(|error| StartError::Listen { address, reason: error.to_string() })
}
