//! The signals, and the command for each.
//!
//! Every signal that would end the process by default is caught, except those that report a fault
//! of the program (such as SIGSEGV, SIGABRT or SIGSYS) and those that cannot be caught (SIGKILL,
//! and 32 and 33, which the C library reserves). Signals that stop a process until SIGCONT are left
//! as they are.

use std::io;

use rustix::process::Signal as Raw;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::server::Command;

/// Maximum number of waiting commands.
const QUEUE: usize = 8;

/// Real-time signals, by their numbers.
#[cfg(target_os = "linux")]
const REAL_TIME: std::ops::RangeInclusive<i32> = 32..=64;

/// Signals that no longer end the process.
pub struct Signals(Vec<(Signal, Command)>);

impl Signals {
    /// Catches all signals except SIGTERM and SIGINT, so that the process can still be ended during
    /// the start. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system does not allow a signal to be caught.
    pub fn catch() -> io::Result<Self> {
        let mut caught = Self(Vec::new());
        caught.add(SignalKind::hangup(), Command::Reload)?;
        caught.add(SignalKind::quit(), Command::HandOver)?;
        caught.add(SignalKind::user_defined1(), Command::ReopenLogs)?;
        let ignored = [
            (Raw::USR2, "SIGUSR2"),
            (Raw::ALARM, "SIGALRM"),
            (Raw::VTALARM, "SIGVTALRM"),
            (Raw::PROF, "SIGPROF"),
            // Limits of CPU time and file size: an operation beyond the limit fails by itself.
            (Raw::XCPU, "SIGXCPU"),
            (Raw::XFSZ, "SIGXFSZ"),
            (Raw::IO, "SIGIO"),
            #[cfg(target_os = "linux")]
            (Raw::POWER, "SIGPWR"),
            #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
            (Raw::STKFLT, "SIGSTKFLT"),
        ];
        for (kind, name) in ignored {
            let number = kind.as_raw();
            caught.add(SignalKind::from_raw(number), Command::Ignored { name, number })?;
        }
        #[cfg(target_os = "linux")]
        for number in REAL_TIME {
            let command = Command::Ignored { name: "a real-time signal", number };
            // The C library reserves some of them.
            let _ = caught.add(SignalKind::from_raw(number), command);
        }
        Ok(caught)
    }

    /// Also catches SIGTERM and SIGINT, and sends every signal as a command.
    ///
    /// # Errors
    /// When the system does not allow a signal to be caught.
    pub fn commands(mut self) -> io::Result<mpsc::Receiver<Command>> {
        self.add(SignalKind::terminate(), Command::Drain)?;
        self.add(SignalKind::interrupt(), Command::Stop)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        for (mut signals, command) in self.0 {
            let sender = sender.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() && sender.send(command).await.is_ok() {}
            });
        }
        Ok(receiver)
    }

    fn add(&mut self, kind: SignalKind, command: Command) -> io::Result<()> {
        self.0.push((signal(kind)?, command));
        Ok(())
    }
}
