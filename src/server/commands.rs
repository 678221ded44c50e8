//! Carries out commands for a running gateway.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Command;
use crate::clock::Clock;
use crate::telemetry::log_file::LogFile;
use crate::telemetry::log_throttle::LogThrottle;

/// Time between attempts to reopen a log file.
const REOPEN_RETRY: Duration = Duration::from_secs(1);

/// Commands, and the tasks that carry them out.
pub struct Commands {
    pub receiver: mpsc::Receiver<Command>,
    /// `None`: there is no file to reload or reopen. A command is dropped if one of its kind is
    /// already waiting.
    pub reload: Option<mpsc::Sender<()>>,
    pub reopen: Option<mpsc::Sender<()>>,
}

impl Commands {
    /// Waits for [`Command::Drain`] or [`Command::Stop`]. Also returns `Stop` when the channel of
    /// commands is closed.
    pub async fn wait_for_stop(&mut self) -> Command {
        loop {
            match self.receiver.recv().await {
                Some(command @ (Command::Drain | Command::Stop)) => return command,
                Some(Command::Reload) => match &self.reload {
                    // A reload that is already waiting will read the current files.
                    Some(reload) => drop(reload.try_send(())),
                    None => tracing::warn!("SIGHUP ignored: no configuration file"),
                },
                Some(Command::ReopenLogs) => match &self.reopen {
                    Some(reopen) => drop(reopen.try_send(())),
                    None => tracing::info!("SIGUSR1 ignored: no log file"),
                },
                Some(Command::HandOver) => {
                    tracing::warn!("SIGQUIT ignored: no handover to a new process");
                }
                Some(Command::Ignored { name, number }) => {
                    tracing::info!(name, number, "signal ignored");
                }
                None => return Command::Stop,
            }
        }
    }
}

/// Reopens a log file on each command, and retries until it succeeds.
pub async fn keep_reopening(file: Arc<LogFile>, clock: Clock, mut requests: mpsc::Receiver<()>) {
    let failed = LogThrottle::new(clock);
    while requests.recv().await.is_some() {
        loop {
            let (done, reopened) = oneshot::channel();
            let opened = file.clone();
            // Not a thread of the runtime, which would wait for it at its end: a file system may
            // never respond.
            std::thread::spawn(move || drop(done.send(opened.reopen())));
            let Ok(outcome) = reopened.await else { break };
            let path = file.path().display();
            match outcome {
                Ok(()) => {
                    tracing::info!(file = %path, "access log reopened");
                    break;
                }
                Err(error) => {
                    if let Some(suppressed) = failed.suppressed() {
                        tracing::error!(
                            file = %path,
                            %error,
                            suppressed,
                            "cannot reopen the access log: still writing to the old file, \
                             retrying every second"
                        );
                    }
                }
            }
            let again = tokio::time::timeout(REOPEN_RETRY, requests.recv()).await;
            if again == Ok(None) {
                return;
            }
        }
    }
}
