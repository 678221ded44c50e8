//! What all loops that accept connections have in common.

use std::io;
use std::time::Duration;

/// Connections that may wait to be accepted, up to the system's limit (`somaxconn`).
pub const BACKLOG: i32 = 4096;

/// How long accepting pauses when no file descriptor is left.
pub const PAUSE: Duration = Duration::from_millis(100);

/// The connections that wait in the kernel's queue, which resets them when the listener is closed.
/// `accept` must not block. Ends at the first error, and after [`BACKLOG`] connections: clients
/// that keep connecting must not keep the listener open.
pub fn waiting<T>(mut accept: impl FnMut() -> io::Result<T>) -> impl Iterator<Item = T> {
    let next = move |_| match accept() {
        Ok(accepted) => Some(Some(accepted)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Some(None),
        Err(_) => None,
    };
    (0..BACKLOG).map_while(next).flatten()
}
