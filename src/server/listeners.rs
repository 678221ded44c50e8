//! Opens listening sockets: their options, and what an operator reads if one cannot be opened.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};

use tokio::net::TcpListener;

use super::StartError;

/// Connections that may wait to be accepted, up to the system's limit (`somaxconn`).
const BACKLOG: i32 = 4096;

/// A socket that listens.
pub struct Listener {
    pub socket: StdListener,
    pub address: SocketAddr,
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

/// Registers the socket with the current tokio runtime.
///
/// # Errors
/// When it cannot be registered.
pub fn into_tokio(listener: Listener) -> Result<TcpListener, StartError> {
    let Listener { socket, address } = listener;
    TcpListener::from_std(socket)
        .map_err(|error| StartError::Listen { address, reason: error.to_string() })
}
