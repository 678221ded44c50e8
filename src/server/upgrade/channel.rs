//! The channel between the old and the new process: both may send at any time.
//!
//! Four things share the stream:
//!
//! * Questions of [`Peer::ask`], and their answers. At most `QUESTIONS` wait for an answer; more
//!   wait here. The handler is called for each in the order in which they were asked, and runs
//!   until it first waits before it is called for the next. So changes of sessions are applied in
//!   their order, and what then waits for a disk waits with others.
//! * Control messages: small, and delivered in their order.
//! * Bulk: the state. A message is sent in pieces, each only when nothing else waits, so that a
//!   question waits for one piece at most. The receiver allows `WINDOW` pieces that nobody has
//!   taken yet; so one that is slow stops the bulk, and never what is behind it.
//!
//! Messages of one sort keep their order; those of different sorts overtake each other.
//!
//! The channel ends when the other process closes it, sends something impossible, or reads nothing
//! for a second while something waits to be written; also when a question was not answered in time.
//! Then this process is alone, and no question waits longer.

mod conversation;
pub mod event;
#[cfg(test)]
mod tests;

use std::io;

use tokio::net::UnixStream;
use tokio::sync::mpsc;

use self::conversation::{Conversation, Ends};
pub use self::event::Message;
use super::frames::{Malformed, TooLong};
use crate::handover::peer::{PATIENCE, Peer, Question, Topic};
use crate::listener::small_server::write_timeout::WriteTimeout;

/// Questions that wait for an answer.
const QUESTIONS: usize = 1024;

/// Bytes of a bulk message in one frame.
const PIECE: usize = 64 << 10;

/// Bulk messages that may wait at each end. On a busy machine each step between the two processes
/// takes milliseconds, so that the bulk would be slow if it had to wait for each of them.
const BULKS: usize = 16;

/// Pieces that the receiver accepts before one is taken. A part of the protocol.
const WINDOW: u64 = 256;

/// Control messages that may wait to be taken.
const CONTROLS: usize = 64;

/// While more bytes wait to be sent, no more questions and control messages are taken.
const ROOM: usize = 256 << 10;

/// The upgrade's end of the channel. Dropping `control_out` closes the channel, after everything
/// that was given to it has been sent.
pub struct Channel {
    pub control_out: mpsc::Sender<Message>,
    /// Ends with the channel.
    pub control_in: mpsc::Receiver<Message>,
    /// At most 16 MiB a message.
    pub bulk_out: mpsc::Sender<Message>,
    /// Ends with the channel; so the state needs an end of its own.
    pub bulk_in: mpsc::Receiver<Message>,
}

/// Why a channel ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("this process closed the connection")]
    Closed,
    #[error("the other process closed the connection")]
    ClosedByOther,
    #[error("the other process did not answer in time")]
    NoAnswer,
    #[error("the other process did not read in time")]
    Stalled,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("the connection to the other process is broken: {0}")]
    Io(io::Error),
}

impl Channel {
    /// Opens the channel on a stream on which the sockets have been sent, and links the other
    /// process. The future runs the channel, and completes at its end.
    ///
    /// An unknown topic gets an empty answer. A handler that still runs at the end of the channel
    /// is not stopped.
    pub fn open<H, F>(
        stream: UnixStream,
        peer: &Peer,
        handler: H,
    ) -> (Self, impl Future<Output = Ended> + Send + use<H, F>)
    where
        H: Fn(Topic, Vec<u8>) -> F + Send,
        F: Future<Output = Vec<u8>> + Send + 'static,
    {
        let (control_out, controls) = mpsc::channel(CONTROLS);
        let (control_to, control_in) = mpsc::channel(CONTROLS);
        let (bulk_out, bulks) = mpsc::channel(BULKS);
        let (bulk_to, bulk_in) = mpsc::channel(BULKS);
        let (reader, writer) = stream.into_split();
        let mut link = Link { questions: peer.link(), peer: Some(peer.clone()) };
        let mut conversation = Conversation::new(reader, handler, control_to);
        let mut ends = Ends { controls, bulks, bulk_to };
        let running = async move {
            let mut writer = WriteTimeout::new(writer, PATIENCE);
            let ended = conversation.run(&mut link, &mut ends, &mut writer).await;
            conversation.leave();
            ended
        };
        (Self { control_out, control_in, bulk_out, bulk_in }, running)
    }
}

/// Unlinks the other process when it is dropped.
struct Link {
    questions: mpsc::Receiver<Question>,
    /// `None`: it is unlinked already, and may be linked to another process.
    peer: Option<Peer>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(peer) = &self.peer {
            peer.unlink();
        }
    }
}
