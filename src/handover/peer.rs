//! The other process during an upgrade.
//!
//! While the old and the new process both run, each asks the other about what must not differ
//! between them: a login or a logout in one is known to the other before it is answered. A question
//! waits at most a second. Then the other process counts as dead, and this one goes on alone. How
//! questions are sent is decided in `server`; what they say, where the state is kept.
//!
//! One of the two processes is the owner of what only one can have: the files of sessions, and the
//! records (callbacks, tickets, scans). That is the old one, until the new one is ready.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Questions that may wait to be sent.
const WAITING: usize = 4096;

/// What a question is about. The numbers are a part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Topic {
    /// A change of sessions, session keys or blocks.
    Session = 1,
    /// A one-time code that is about to be sent to WeChat.
    Code = 2,
    /// An operation on records (callbacks, tickets, scans).
    Record = 3,
    /// Uses of a rate limit. There is nothing to answer.
    Rate = 4,
    /// A jar that has changed. There is nothing to answer.
    Jar = 5,
}

impl Topic {
    /// `None`: the other process is newer and asks about something unknown here.
    pub fn parse(number: u8) -> Option<Self> {
        let all = [Self::Session, Self::Code, Self::Record, Self::Rate, Self::Jar];
        all.into_iter().find(|topic| *topic as u8 == number)
    }
}

/// A question to the other process.
pub struct Question {
    pub topic: Topic,
    pub body: Vec<u8>,
    /// Dropped without an answer if the other process is dead.
    pub answer: oneshot::Sender<Vec<u8>>,
}

/// The other process, if there is one. Clones share it.
#[derive(Clone)]
pub struct Peer(Arc<State>);

struct State {
    link: ArcSwapOption<mpsc::Sender<Question>>,
    is_owner: watch::Sender<bool>,
    linked: watch::Sender<bool>,
}

impl Default for Peer {
    /// No other process.
    fn default() -> Self {
        Self(Arc::new(State {
            link: ArcSwapOption::empty(),
            is_owner: watch::Sender::new(true),
            linked: watch::Sender::new(false),
        }))
    }
}

impl Peer {
    /// Whether there is another process.
    pub fn is_linked(&self) -> bool {
        self.0.link.load().is_some()
    }

    /// Whether this process writes the files of sessions and keeps the records.
    pub fn is_owner(&self) -> bool {
        *self.0.is_owner.borrow()
    }

    pub fn set_owner(&self, is_owner: bool) {
        self.0.is_owner.send_replace(is_owner);
    }

    /// Returns when this process is the owner.
    pub async fn owning(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.is_owner.subscribe().wait_for(|is_owner| *is_owner).await;
    }

    /// Asks the other process, and waits for its answer. `None`: there is none, or it did not
    /// answer in time. From then on it counts as dead.
    pub async fn ask(&self, topic: Topic, body: Vec<u8>) -> Option<Vec<u8>> {
        let link = self.0.link.load_full()?;
        let (answer, answered) = oneshot::channel();
        let question = Question { topic, body, answer };
        let asked = async {
            link.send(question).await.ok()?;
            answered.await.ok()
        };
        let answer = timeout(PATIENCE, asked).await.ok().flatten();
        if answer.is_none() {
            self.unlink_from(&link);
        }
        answer
    }

    /// From now on there is another process. Questions to it are received from the channel.
    pub fn link(&self) -> mpsc::Receiver<Question> {
        let (link, questions) = mpsc::channel(WAITING);
        self.0.link.store(Some(Arc::new(link)));
        self.0.linked.send_replace(true);
        questions
    }

    /// There is no other process any more: this one is alone, and the owner.
    pub fn unlink(&self) {
        self.0.link.store(None);
        self.set_owner(true);
        self.0.linked.send_replace(false);
    }

    /// Unlinks the process that did not answer, not one that was linked since.
    fn unlink_from(&self, dead: &Arc<mpsc::Sender<Question>>) {
        let current = self.0.link.load_full();
        if current.is_some_and(|current| Arc::ptr_eq(&current, dead)) {
            self.unlink();
        }
    }

    /// Returns when there is no other process.
    pub async fn unlinked(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.linked.subscribe().wait_for(|linked| !linked).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_answer_within_a_second_is_dead() {
        let peer = Peer::default();
        assert_eq!(peer.ask(Topic::Session, vec![1]).await, None);
        let mut questions = peer.link();
        peer.set_owner(false);
        let answering = tokio::spawn(async move {
            let first: Question = questions.recv().await.unwrap();
            first.answer.send([&first.body[..], b"!"].concat()).unwrap();
            // The second question gets no answer.
            let second = questions.recv().await;
            std::future::pending::<()>().await;
            drop(second);
        });
        assert_eq!(peer.ask(Topic::Code, b"a".to_vec()).await, Some(b"a!".to_vec()));
        assert!(peer.is_linked() && !peer.is_owner());
        assert_eq!(peer.ask(Topic::Code, b"b".to_vec()).await, None);
        assert!(!peer.is_linked() && peer.is_owner());
        peer.unlinked().await;
        answering.abort();
    }
}
