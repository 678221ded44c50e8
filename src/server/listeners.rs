//! Opens listening sockets: their options, and what an operator reads if one cannot be opened.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};

use tokio::net::{TcpListener, UnixListener};

use super::StartError;
use crate::config::InternalAddress;
use crate::internal_api::listener as internal_listener;
use crate::listener::unix_socket::UnixSocket;

/// Connections that may wait to be accepted, up to the system's limit (`somaxconn`).
const BACKLOG: i32 = 4096;

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

/// Opens a listening socket.
///
/// # Errors
/// When the address cannot be used.
pub fn listen(address: SocketAddr) -> Result<Listener, StartError> {
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
pub fn listen_internal(address: &InternalAddress) -> Result<InternalListener, StartError> {
    match address {
        InternalAddress::Tcp(address) => listen(*address).map(InternalListener::Tcp),
        InternalAddress::Unix(path) => {
            UnixSocket::bind(path).map(InternalListener::Unix).map_err(|error| {
                let reason = match error.kind() {
                    io::ErrorKind::AddrInUse => "another process listens there".to_owned(),
                    _ => error.to_string(),
                };
                StartError::ListenUnix { path: path.clone(), reason }
            })
        }
    }
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

/// Registers the socket with the current tokio runtime.
///
/// # Errors
/// When it cannot be registered.
pub fn into_tokio(listener: Listener) -> Result<TcpListener, StartError> {
    let Listener { socket, address } = listener;
    TcpListener::from_std(socket)
        .map_err(|error| StartError::Listen { address, reason: error.to_string() })
}
