//! Tells the service manager, such as systemd, what state the process is in (`man sd_notify`).
//!
//! A message is one datagram of assignments to the Unix socket that `NOTIFY_SOCKET` names. Nothing
//! depends on its arrival: without a service manager nothing is sent, and a failure is logged.
//!
//! The service manager expects messages of the main process only. During an upgrade that is the old
//! process, until it names the new one.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{SendFlags, SocketAddrUnix, sendto};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};

/// How long a message may wait for the service manager, which then does not get it.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the environment says about the process that it was made for, and not about its children.
const OF_ONE_PROCESS: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// The service manager, if there is one.
#[derive(Default)]
pub struct ServiceManager {
    socket: Option<(UnixDatagram, SocketAddrUnix)>,
    watchdog_timeout: Option<Duration>,
    has_successor: AtomicBool,
    cannot_keep_alive: AtomicBool,
}

impl ServiceManager {
    /// The one that has started this process. An address that cannot be used is logged.
    pub fn from_environment() -> Self {
        let Some(address) = address_in_environment() else { return Self::default() };
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_watched = std::env::var_os("WATCHDOG_PID").is_none()
            || number("WATCHDOG_PID") == Some(std::process::id().into());
        let timeout =
            number("WATCHDOG_USEC").filter(|microseconds| is_watched && *microseconds > 0);
        Self::at(&address, timeout.map(Duration::from_micros)).unwrap_or_else(|error| {
            tracing::warn!(address = %address.display(), %error, "NOTIFY_SOCKET cannot be used");
            Self::default()
        })
    }

    pub fn is_in_environment() -> bool {
        address_in_environment().is_some()
    }

    fn at(address: &OsStr, watchdog_timeout: Option<Duration>) -> io::Result<Self> {
        let address = match address.as_bytes() {
            #[cfg(target_os = "linux")]
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            path @ [b'/', ..] => SocketAddrUnix::new(path)?,
            // Such as "vsock:", with which a virtual machine reports to its host.
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "not a Unix socket")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket: Some((socket, address)), watchdog_timeout, ..Self::default() })
    }

    /// The process serves, or goes on to serve after a reload, whatever its outcome. `status` is
    /// shown to the operator.
    pub fn ready(&self, status: &str) {
        self.report(&format!("READY=1\nSTATUS={status}"));
    }

    /// A reload begins. [`Self::ready`] says that it has ended.
    pub fn reloading(&self) {
        // A service manager that waits for a reload compares the time with that of its own request.
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.report(&format!(
            "RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS=reloading the configuration"
        ));
    }

    /// The process will end.
    pub fn stopping(&self) {
        self.report("STOPPING=1\nSTATUS=draining");
    }

    /// The new process of an upgrade is the main process from now on, and this one sends nothing
    /// more. There is no way back: the service manager takes no more messages from this process,
    /// and stops the service if the new one ends. So this must not be called before the new process
    /// serves, and the new one calls [`Self::ready`] after this.
    pub fn main_pid(&self, pid: u32) {
        self.report(&format!("MAINPID={pid}"));
        self.has_successor.store(true, Ordering::Release);
    }

    /// Removes from a child's environment what is meant for this process alone. A child that
    /// becomes the main process reports to the same service manager, and is watched as this one.
    pub fn clean_environment(command: &mut Command) {
        for name in OF_ONE_PROCESS {
            command.env_remove(name);
        }
    }

    /// Reports at half of the service manager's timeout that the process works, for as long as
    /// `probe` completes. Returns at once if the service manager does not ask for it.
    pub async fn keep_alive<F: Future<Output = ()>>(&self, probe: impl Fn() -> F) {
        let Some(timeout) = self.watchdog_timeout else { return };
        let mut ticks = interval((timeout / 2).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            probe().await;
            // Waiting here would delay requests.
            let sent = self.send("WATCHDOG=1", SendFlags::DONTWAIT);
            if let Err(error) = sent
                && !self.cannot_keep_alive.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(%error, "cannot tell the service manager that the process works");
            }
        }
    }

    fn report(&self, message: &str) {
        if let Err(error) = self.send(message, SendFlags::empty()) {
            let message = message.lines().next();
            tracing::warn!(message, %error, "cannot report to the service manager");
        }
    }

    fn send(&self, message: &str, flags: SendFlags) -> io::Result<()> {
        match &self.socket {
            Some((socket, address)) if !self.has_successor.load(Ordering::Acquire) => {
                sendto(socket, message.as_bytes(), flags, address)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn address_in_environment() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use tempfile::TempDir;
    use tokio::time::{Instant, advance};

    use super::*;
    use crate::server::workers::Workers;

    /// What a service manager receives.
    struct Receiver {
        socket: tokio::net::UnixDatagram,
        directory: TempDir,
    }

    impl Receiver {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let socket = tokio::net::UnixDatagram::bind(directory.path().join("notify")).unwrap();
            Self { socket, directory }
        }

        fn manager(&self, watchdog_timeout: Option<Duration>) -> ServiceManager {
            let path = self.directory.path().join("notify");
            ServiceManager::at(path.as_os_str(), watchdog_timeout).unwrap()
        }

        async fn next(&self) -> String {
            let mut buffer = [0; 1024];
            let length = self.socket.recv(&mut buffer).await.unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        }

        fn is_empty(&self) -> bool {
            let received = self.socket.try_recv(&mut [0; 1024]);
            received.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        }
    }

    #[tokio::test]
    async fn the_old_process_of_an_upgrade_names_the_new_one_and_says_nothing_more() {
        let receiver = Receiver::new();
        let manager = receiver.manager(None);
        manager.ready("serving");
        assert_eq!(receiver.next().await, "READY=1\nSTATUS=serving");
        manager.main_pid(42);
        manager.stopping();
        assert_eq!(receiver.next().await, "MAINPID=42");
        assert!(receiver.is_empty());
    }

    #[test]
    fn a_child_gets_the_service_manager_but_nothing_that_is_meant_for_this_process() {
        let mut command = Command::new("env");
        let kept = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "PATH"];
        command.env_clear().envs(OF_ONE_PROCESS.iter().chain(&kept).map(|name| (name, "1")));
        ServiceManager::clean_environment(&mut command);
        let set = command.get_envs().filter(|(_, value)| value.is_some());
        let mut names: Vec<_> = set.map(|(name, _)| name.to_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["NOTIFY_SOCKET", "PATH", "WATCHDOG_USEC"]);
    }

    #[test]
    fn addresses_of_other_kinds_are_not_used() {
        for address in ["vsock:2:1234", "relative", &format!("/{}", "x".repeat(200))] {
            assert!(ServiceManager::at(OsStr::new(address), None).is_err(), "{address}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_told_at_half_of_its_timeout_and_not_while_a_worker_hangs() {
        let receiver = Receiver::new();
        let manager = Arc::new(receiver.manager(Some(Duration::from_secs(20))));
        let workers = Workers::start(2).unwrap();
        let probe = workers.probe();
        tokio::spawn(async move { manager.keep_alive(|| probe.respond()).await });
        let started = Instant::now();
        for beat in 0..3 {
            assert_eq!(receiver.next().await, "WATCHDOG=1");
            let expected = Duration::from_secs(10) * beat;
            let late = started.elapsed().checked_sub(expected).expect("not too early");
            assert!(late < Duration::from_millis(10), "{late:?}");
        }

        let (hangs, hanging) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        workers.spawn_on(1, async move {
            hangs.send(()).unwrap();
            let _ = released.recv();
        });
        hanging.recv().unwrap();
        for _ in 0..10 {
            advance(Duration::from_secs(10)).await;
            assert!(receiver.is_empty());
        }
        drop(release);
        assert_eq!(receiver.next().await, "WATCHDOG=1");
    }
}
