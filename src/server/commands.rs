//! Carries out commands for a running gateway.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Command;
use super::upgrade::Invocation;
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
    /// How a new process is started. `None`: none can take over.
    pub successor: Option<Invocation>,
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
                Some(Command::HandOver) => self.start_successor(),
                Some(Command::Ignored { name, number }) => {
                    tracing::info!(name, number, "signal ignored");
                }
                None => return Command::Stop,
            }
        }
    }

    /// The result of `operation`, unless a command to stop comes first.
    pub async fn unless_stopped<T>(&mut self, operation: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = operation => Some(done),
            _ = self.wait_for_stop() => None,
        }
    }

    /// Whether the drain of a process that was replaced completes within `limit`. The first SIGTERM
    /// changes nothing: a service manager sends it to the old and the new process alike.
    pub async fn drains_in_time(
        &mut self,
        drained: impl Future<Output = ()>,
        limit: Duration,
    ) -> bool {
        let stopped = async {
            if self.wait_for_stop().await == Command::Drain {
                self.wait_for_stop().await;
            }
        };
        tokio::select! {
            done = timeout(limit, drained) => done.is_ok(),
            () = stopped => false,
        }
    }

    fn start_successor(&self) {
        let Some(successor) = &self.successor else {
            let reason = if std::process::id() == 1 {
                "the end of the process with PID 1 would end the container"
            } else {
                "server.upgrade_socket is not set"
            };
            tracing::warn!(
                "SIGQUIT ignored: {reason}, so no new process can take over. To stop the gateway, \
                 send SIGTERM"
            );
            return;
        };
        if let Err(error) = successor.start() {
            tracing::error!(%error, "cannot start a new process");
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

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_drain_of_a_replaced_process_goes_on_after_one_command_to_drain() {
        let limit = Duration::from_secs(25);
        for (sent, longest) in [
            (vec![], limit),
            (vec![Command::Drain], limit),
            (vec![Command::Drain, Command::Drain], Duration::ZERO),
            (vec![Command::Stop], Duration::ZERO),
        ] {
            let (sender, receiver) = mpsc::channel(2);
            let mut commands = Commands { receiver, reload: None, reopen: None, successor: None };
            assert!(commands.drains_in_time(ready(()), limit).await);
            for command in &sent {
                sender.send(*command).await.unwrap();
            }
            let started = tokio::time::Instant::now();
            assert!(!commands.drains_in_time(pending(), limit).await);
            assert!(started.elapsed().abs_diff(longest) < Duration::from_millis(10), "{sent:?}");
        }
    }
}
