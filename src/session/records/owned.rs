//! Records in memory, of which only one process has the copy that counts.
//!
//! While two processes run, the owner has the records, and the other one asks it for each
//! operation. When they are handed over, operations wait until they are there, so that none is
//! lost and none is done twice. If the owner dies, its records are lost: whoever asks for one
//! begins again.

use tokio::sync::watch;

use super::operation::{Action, Operation, Outcome};
use crate::clock::Clock;
use crate::handover::fields::{Malformed, Writer};
use crate::handover::peer::{Peer, Topic};
use crate::session::StoreError;
use crate::session::memory::records::MemoryRecords;

/// The records of a process.
pub struct OwnedRecords {
    memory: MemoryRecords,
    peer: Peer,
    /// Whether they are being handed over.
    is_frozen: watch::Sender<bool>,
}

/// While this exists, operations on the records of a process wait.
pub struct Frozen<'a>(Option<&'a OwnedRecords>);

impl OwnedRecords {
    pub fn new(clock: Clock, peer: Peer) -> Self {
        let memory = MemoryRecords::new(clock);
        Self { memory, peer, is_frozen: watch::Sender::new(false) }
    }

    /// # Errors
    /// When the other process has the records and its answer cannot be read.
    pub async fn run(&self, operation: Operation<'_>) -> Result<Outcome, StoreError> {
        loop {
            {
                // While this is borrowed, they cannot be frozen.
                let is_frozen = self.is_frozen.borrow();
                if !*is_frozen && self.peer.is_owner() {
                    return Ok(self.run_here(&operation));
                }
            }
            let _ = self.is_frozen.subscribe().wait_for(|is_frozen| !is_frozen).await;
            if self.peer.is_owner() {
                continue;
            }
            let question = operation.encode().as_bytes().to_vec();
            match self.peer.ask(Topic::Record, question).await {
                Some(answer) => return Outcome::decode(&answer).ok_or(StoreError),
                // This process is the owner now. It is one at once even if nobody has said so.
                None if self.peer.is_owner() => {}
                None => return Ok(self.run_here(&operation)),
            }
        }
    }

    /// Answers the other process. Empty if the question cannot be read.
    pub async fn answer(&self, question: &[u8]) -> Vec<u8> {
        let Some(operation) = Operation::decode(question) else { return Vec::new() };
        // It asks as soon as it has written its records, which may not be here yet.
        self.peer.owning().await;
        self.run_here(&operation).encode().as_bytes().to_vec()
    }

    fn run_here(&self, operation: &Operation<'_>) -> Outcome {
        let Operation { kind, digest, action } = operation;
        let (memory, kind, digest) = (&self.memory, *kind, *digest);
        let done = |is_done| Outcome { is_done, ..Outcome::default() };
        let found = |record| Outcome { record, ..Outcome::default() };
        match action {
            Action::Insert { value, life } => done(memory.insert(kind, digest, value, *life)),
            Action::Get => found(memory.get(kind, &digest)),
            Action::Take => found(memory.take(kind, &digest)),
            Action::Replace { read, value, life } => {
                done(memory.replace(kind, digest, *read, value, *life))
            }
            Action::Count { user, most, life } => {
                match memory.count(kind, user, *most, digest, *life) {
                    Ok(()) => done(true),
                    Err(wait) => Outcome { wait, ..Outcome::default() },
                }
            }
            Action::Uncount { user } => {
                memory.uncount(kind, user, &digest);
                done(true)
            }
        }
    }

    pub fn freeze(&self) -> Frozen<'_> {
        self.is_frozen.send_replace(true);
        Frozen(Some(self))
    }

    pub fn export(&self, give: impl FnMut(&mut Writer)) {
        self.memory.export(give);
    }

    pub fn import(&self, piece: &[u8]) -> Result<(), Malformed> {
        self.memory.import(piece)
    }
}

impl Frozen<'_> {
    /// For records that are not in memory: nothing waits.
    pub fn nothing() -> Self {
        Self(None)
    }

    /// The other process has the records, and is their owner. Here they are gone: if the other
    /// process dies, none of them can be used a second time.
    pub fn given(self) {
        if let Some(records) = self.0 {
            records.memory.clear();
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Some(records) = self.0 {
            records.is_frozen.send_replace(false);
        }
    }
}
