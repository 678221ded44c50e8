//! A listener on a Unix socket, and the life of its file.
//!
//! The file appears under its name only when it can be connected to and has its mode. It replaces
//! the file of a process that no longer listens, and is removed at the end.
//!
//! A socket can be given to a new process. Then the process that serves at the end removes the
//! file. No process removes the file of a socket that the service manager has made.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

use super::accepting;

/// Owner and group may connect.
const SHARED: u32 = 0o660;

/// Only the owner may connect.
const PRIVATE: u32 = 0o600;

/// What a name ends in until the socket can be connected to. The system goes on to report this name
/// as the socket's address.
const NEW: &str = ".new";

/// A bound socket. Its file is removed when this is dropped.
pub struct UnixSocket {
    pub listener: UnixListener,
    pub file: SocketFile,
}

/// The file of a socket, removed when this is dropped if this process owns it.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: another process may have replaced the file. `None`: never removed.
    identity: Option<(u64, u64)>,
    ownership: Ownership,
}

/// Whether this process removes the file at its end.
#[derive(Clone)]
pub struct Ownership(Arc<AtomicBool>);

impl UnixSocket {
    /// Listens on a path. Owner and group may connect.
    ///
    /// # Errors
    /// When another process listens there, something else than a socket is there, or the socket
    /// cannot be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Self::bind_with_mode(path, SHARED)
    }

    /// Listens on a path. Only the owner may connect.
    ///
    /// # Errors
    /// Those of [`UnixSocket::bind`].
    pub fn bind_private(path: &Path) -> io::Result<Self> {
        Self::bind_with_mode(path, PRIVATE)
    }

    fn bind_with_mode(path: &Path, mode: u32) -> io::Result<Self> {
        if existing_socket(path)? {
            match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(error) => return Err(error),
            }
        }
        let new = new_name(path);
        // What a process left behind that was killed just here.
        if existing_socket(&new)? {
            fs::remove_file(&new)?;
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        // The file gets the mode of the socket, less the umask.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
        socket.bind(&SockAddr::unix(&new)?)?;
        let placed = fs::set_permissions(&new, fs::Permissions::from_mode(mode))
            .and_then(|()| socket.listen(accepting::BACKLOG))
            .and_then(|()| fs::symlink_metadata(&new))
            .and_then(|metadata| fs::rename(&new, path).map(|()| metadata));
        let metadata = placed.inspect_err(|_| drop(fs::remove_file(&new)))?;
        let identity = Some((metadata.dev(), metadata.ino()));
        let ownership = Ownership::new(true);
        let listener = UnixListener::from(OwnedFd::from(socket));
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), identity, ownership } })
    }

    /// A socket of another process that [`is_bound_to`] this path. The file is not owned yet.
    pub fn received(listener: UnixListener, path: &Path) -> Self {
        // One that is bound to the path itself was not made by this program.
        let is_foreign = listener
            .local_addr()
            .is_ok_and(|address| address.as_pathname().is_none_or(|bound| bound == path));
        let metadata = fs::symlink_metadata(path).ok().filter(|_| !is_foreign);
        let identity = metadata.map(|metadata| (metadata.dev(), metadata.ino()));
        let ownership = Ownership::new(false);
        Self { listener, file: SocketFile { path: path.to_owned(), identity, ownership } }
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

/// Whether a socket with this address is the one for a path.
pub fn is_bound_to(address: &Path, path: &Path) -> bool {
    address == path || address == new_name(path)
}

fn new_name(path: &Path) -> PathBuf {
    let mut new = path.as_os_str().to_owned();
    new.push(NEW);
    PathBuf::from(new)
}

/// Whether there is a socket. Any other file is an error.
fn existing_socket(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(true),
        Ok(_) => {
            let message = format!("{} is not a socket", path.display());
            Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl SocketFile {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn ownership(&self) -> Ownership {
        self.ownership.clone()
    }
}

impl Ownership {
    fn new(is_owner: bool) -> Self {
        Self(Arc::new(AtomicBool::new(is_owner)))
    }

    pub fn set(&self, is_owner: bool) {
        self.0.store(is_owner, Ordering::Release);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_same = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| Some((metadata.dev(), metadata.ino())) == self.identity);
        if is_same && self.ownership.0.load(Ordering::Acquire) {
            drop(fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_never() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        // What a killed process leaves behind.
        drop(UnixListener::bind(&path).unwrap());
        let socket = UnixSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, SHARED);
        let error = UnixSocket::bind(&path).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        assert!(UnixSocket::bind(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn only_a_socket_is_replaced_under_the_name_for_new_ones() {
        let directory = tempfile::tempdir().unwrap();
        let (path, new) = (directory.path().join("s"), directory.path().join("s.new"));
        // What a process leaves behind that is killed while it starts.
        drop(UnixListener::bind(&new).unwrap());
        drop(UnixSocket::bind(&path).unwrap());
        assert!(!new.exists());
        fs::write(&new, "precious").unwrap();
        let error = UnixSocket::bind(&path).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&new).unwrap(), b"precious");
    }

    #[test]
    fn the_file_of_a_successor_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let first = UnixSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = UnixSocket::bind(&path).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_file_that_was_given_away_is_removed_by_the_process_that_owns_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let first = UnixSocket::bind(&path).unwrap();
        let second = UnixSocket::received(first.listener.try_clone().unwrap(), &path);
        let third = UnixSocket::received(first.listener.try_clone().unwrap(), &path);
        // It never became the owner.
        drop(third);
        assert!(path.exists());
        first.file.ownership().set(false);
        second.file.ownership().set(true);
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn the_file_of_a_socket_that_another_program_has_bound_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = UnixSocket::received(UnixListener::bind(&path).unwrap(), &path);
        socket.file.ownership().set(true);
        drop(socket);
        assert!(path.exists());
    }
}
