//! A listener on a Unix socket, and the life of its file.
//!
//! The file appears under its name only when it can be connected to and has its mode. It replaces
//! the file of a process that no longer listens, and is removed at the end.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// A bound socket. Its file is removed when this is dropped.
pub struct UnixSocket {
    pub listener: UnixListener,
    pub file: SocketFile,
}

/// The file of a socket, removed when this is dropped.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: another process may have replaced the file.
    identity: (u64, u64),
}

impl UnixSocket {
    /// Listens on a path.
    ///
    /// # Errors
    /// When another process listens there, something else than a socket is there, or the socket
    /// cannot be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if existing_socket(path)? {
            match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(error) => return Err(error),
            }
        }
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        // What a process left behind that was killed just here.
        if existing_socket(&new)? {
            fs::remove_file(&new)?;
        }
        let listener = UnixListener::bind(&new)?;
        listener.set_nonblocking(true)?;
        let placed = fs::set_permissions(&new, fs::Permissions::from_mode(MODE))
            .and_then(|()| fs::symlink_metadata(&new))
            .and_then(|metadata| fs::rename(&new, path).map(|()| metadata));
        let metadata = placed.inspect_err(|_| drop(fs::remove_file(&new)))?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), identity } })
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }
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
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_own = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if is_own {
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
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
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
}
