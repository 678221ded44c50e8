//! Starts the process that takes over from this one.
//!
//! It is started as this one was: with the same arguments and `--upgrade`, in the same directory
//! and with the same environment. The path is the same, too, so a file that was replaced there is
//! the new program. The exit code is logged if it fails.
//!
//! A service manager has to be the parent of its main process: systemd kills any other main process
//! without waiting until it has drained. So under a service manager the new process starts itself
//! once more and ends, and the second one becomes a child of the service manager.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::service_manager::ServiceManager;

const UPGRADE: &str = "--upgrade";

/// In the environment of a process that only starts itself once more.
const START_AGAIN: &str = "WXGATE_START_AGAIN";

/// How this process was started.
pub struct Invocation {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Invocation {
    /// Must be called before the working directory changes.
    ///
    /// # Errors
    /// When the path of the program is unknown.
    pub fn of_this_process() -> io::Result<Self> {
        let mut arguments = env::args_os();
        let program = arguments.next().unwrap_or_default();
        let directories = env::var_os("PATH").unwrap_or_default();
        let program = find_program(&program, &directories)?;
        let mut arguments: Vec<_> = arguments.filter(|argument| argument != UPGRADE).collect();
        arguments.push(UPGRADE.into());
        Ok(Self { program, arguments })
    }

    /// Whether this process was started only to call [`Self::start_again`], and then to end.
    pub fn is_intermediate() -> bool {
        env::var_os(START_AGAIN).is_some()
    }

    /// Starts the process that takes over, which gets another parent when this one ends.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_again(&self) -> io::Result<()> {
        self.command().env_remove(START_AGAIN).spawn().map(drop)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        ServiceManager::clean_environment(&mut command);
        command
    }

    /// Starts the new process, and logs its end if it fails.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> io::Result<()> {
        let mut command = self.command();
        if ServiceManager::is_in_environment() {
            command.env(START_AGAIN, "1");
        }
        let mut child = command.spawn()?;
        let pid = child.id();
        tracing::info!(pid, program = %self.program.display(), "started a new process");
        // Waits for as long as the new process runs, at most until this one ends.
        std::thread::Builder::new().name("successor".to_owned()).spawn(move || {
            if let Ok(status) = child.wait()
                && !status.success()
            {
                tracing::error!(pid, %status, "the new process has failed");
            }
        })?;
        Ok(())
    }
}

/// The absolute path of a program, found as a shell does. Symbolic links are not resolved.
fn find_program(name: &OsStr, directories: &OsStr) -> io::Result<PathBuf> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, "its path is unknown");
    if name.is_empty() {
        return Err(unknown());
    }
    if name.as_encoded_bytes().contains(&b'/') {
        return std::path::absolute(name);
    }
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|of| of.is_file() && of.permissions().mode() & 0o111 != 0)
    };
    let found = env::split_paths(directories).map(|directory| directory.join(name));
    std::path::absolute(found.into_iter().find(|path| is_program(path)).ok_or_else(unknown)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_a_shell_finds_it_and_links_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("gateway");
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        std::fs::write(directory.path().join("text"), "").unwrap();
        let directories = env::join_paths([Path::new("/no/such"), directory.path()]).unwrap();
        let find = |name: &str| find_program(OsStr::new(name), &directories);
        assert_eq!(find("gateway").unwrap(), program);
        assert_eq!(find(program.to_str().unwrap()).unwrap(), program);
        assert_eq!(find("./gateway").unwrap(), env::current_dir().unwrap().join("gateway"));
        for unknown in ["", "text", "other"] {
            assert_eq!(find(unknown).unwrap_err().kind(), io::ErrorKind::NotFound, "{unknown}");
        }
    }
}
