//! The thread that writes the journal.

use std::sync::mpsc::Receiver;

use tokio::sync::oneshot;

use super::JournalError;
use super::file::{GROUP, JournalFile};
use super::load::CHANGE;
use crate::handover::fields;
use crate::session::snapshot::SnapshotId;
use crate::session::snapshot::facts::Facts;

/// What the thread is to do.
pub enum Task {
    Append(fields::Writer),
    Mark(SnapshotId),
    Fold(SnapshotId, Facts),
    Close,
}

pub type Answer = oneshot::Sender<Result<(), JournalError>>;

pub struct Request {
    pub task: Task,
    pub answer: Answer,
}

pub struct Writer {
    pub file: JournalFile,
    pub requests: Receiver<Request>,
}

impl Writer {
    /// Works until the journal is closed or dropped, and what waits is written.
    pub fn run(mut self) {
        // Those who append are told whether it can be written.
        let _ = self.file.open();
        let mut next = None;
        while let Some(Request { task, answer }) = next.take().or_else(|| self.requests.recv().ok())
        {
            let outcome = match task {
                Task::Append(change) => {
                    next = self.append(&change, answer);
                    continue;
                }
                Task::Mark(snapshot) => self.file.mark(snapshot),
                Task::Fold(snapshot, facts) => self.file.fold(snapshot, &facts),
                Task::Close => {
                    // The lock is free before the answer.
                    drop(self);
                    tell(answer, Ok(()));
                    return;
                }
            };
            tell(answer, outcome.map_err(JournalError::from));
        }
    }

    /// Writes a change and those that wait behind it. Returns what waits behind them.
    fn append(&mut self, change: &fields::Writer, answer: Answer) -> Option<Request> {
        let mut group = fields::Writer::new();
        group.list(CHANGE, change);
        let mut answers = vec![answer];
        let mut next = None;
        while group.as_bytes().len() < GROUP {
            match self.requests.try_recv() {
                Ok(Request { task: Task::Append(change), answer }) => {
                    group.list(CHANGE, &change);
                    answers.push(answer);
                }
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let outcome = self.file.add(&group).map_err(JournalError::from);
        for answer in answers {
            tell(answer, outcome.clone());
        }
        next
    }
}

fn tell(answer: Answer, outcome: Result<(), JournalError>) {
    // A caller that waits no longer has been told that it is not durable.
    let _ = answer.send(outcome);
}
