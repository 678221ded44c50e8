//! One-time codes while two processes run: only one of the two sends a code to WeChat.
//!
//! Before a process sends a code, it asks the other one for it. A process that has the code already
//! does not give it. If both ask at once, the process with the greater number has the code,
//! whatever arrives first: each has drawn a random number for this. Without an answer a process
//! goes on alone.

use std::sync::atomic::{AtomicU8, Ordering};

use super::fields::{Writer, read};
use super::peer::{Peer, Topic};

/// SHA-256 of a code, and of what belongs to it.
pub type CodeDigest = [u8; 32];

/// Numbers of the fields of a question.
mod field {
    pub const KIND: u32 = 1;
    pub const DIGEST: u32 = 2;
    pub const NUMBER: u32 = 3;
}

/// What a code is for. The numbers are a part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CodeKind {
    Login = 1,
    PhoneNumber = 2,
}

/// Who may send a code: asked of the other process.
#[derive(Clone)]
pub struct Claims {
    kind: CodeKind,
    peer: Peer,
    number: [u8; 16],
}

/// The state of one code that this process wants to send.
#[derive(Debug, Default)]
pub struct Claim(AtomicU8);

/// The other process is being asked.
const ASKING: u8 = 0;
/// This process has the code.
const OURS: u8 = 1;
/// The other process has the code, or had it.
const THEIRS: u8 = 2;

/// A question of the other process, which wants to send a code.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `None`: of a newer program, and unknown here.
    pub kind: Option<CodeKind>,
    pub digest: CodeDigest,
    number: [u8; 16],
}

impl Claims {
    /// For the codes of one kind.
    pub fn new(kind: CodeKind, peer: Peer) -> Self {
        Self { kind, peer, number: rand::random() }
    }

    /// Whether this process may send a code.
    pub async fn claim(&self, digest: &CodeDigest, claim: &Claim) -> bool {
        if self.peer.is_linked() {
            let mut question = Writer::new();
            question
                .bytes(field::KIND, &[self.kind as u8])
                .bytes(field::DIGEST, digest)
                .bytes(field::NUMBER, &self.number);
            let answer = self.peer.ask(Topic::Code, question.as_bytes().to_vec()).await;
            // Without an answer there is nobody else any more.
            if answer.is_some_and(|answer| answer != answer_to_wanted(true)) {
                claim.0.store(THEIRS, Ordering::Release);
                return false;
            }
        }
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        claim.0.compare_exchange(ASKING, OURS, success, failure).is_ok()
    }

    /// Whether the other process may send a code that this process has, or wants to have.
    pub fn give(&self, claim: &Claim, wanted: &Wanted) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        if wanted.number > self.number {
            let _ = claim.0.compare_exchange(ASKING, THEIRS, success, failure);
        }
        claim.is_theirs()
    }
}

impl Claim {
    /// The code of another process.
    pub fn theirs() -> Self {
        Self(AtomicU8::new(THEIRS))
    }

    pub fn is_theirs(&self) -> bool {
        self.0.load(Ordering::Acquire) == THEIRS
    }
}

impl Wanted {
    /// `None` if the question is malformed: then the answer is no.
    pub fn parse(question: &[u8]) -> Option<Self> {
        let (mut kind, mut digest, mut number) = (None, None, None);
        for field in read(question) {
            let field = field.ok()?;
            match field.number {
                field::KIND => kind = field.array().map(|[kind]| kind),
                field::DIGEST => digest = field.array(),
                field::NUMBER => number = field.array(),
                _ => {}
            }
        }
        let kind = kind?;
        let known = [CodeKind::Login, CodeKind::PhoneNumber];
        let kind = known.into_iter().find(|known| *known as u8 == kind);
        Some(Self { kind, digest: digest?, number: number? })
    }
}

/// The answer to the other process.
pub fn answer_to_wanted(is_given: bool) -> Vec<u8> {
    vec![u8::from(is_given)]
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Connects two processes. `answer` is called with the number of the process that is asked, and
    /// the question.
    pub fn join(
        peers: [&Peer; 2],
        answer: impl Fn(usize, &[u8]) -> Vec<u8> + Send + Sync + Clone + 'static,
    ) {
        for (asked, peer) in [(1, peers[0]), (0, peers[1])] {
            let (mut questions, answer) = (peer.link(), answer.clone());
            tokio::spawn(async move {
                while let Some(question) = questions.recv().await {
                    let _ = question.answer.send(answer(asked, &question.body));
                }
            });
        }
    }

    const DIGEST: CodeDigest = [7; 32];

    fn wanted(number: u8) -> Wanted {
        Wanted { kind: Some(CodeKind::Login), digest: DIGEST, number: [number; 16] }
    }

    fn claims(number: u8, peer: &Peer) -> Claims {
        Claims { kind: CodeKind::Login, peer: peer.clone(), number: [number; 16] }
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_is_alone_has_every_code() {
        let peer = Peer::default();
        let claims = claims(1, &peer);
        let claim = Claim::default();
        assert!(claims.claim(&DIGEST, &claim).await);
        // This process has the code, so it gives it to nobody.
        assert!(!claims.give(&claim, &wanted(2)));
        // One that does not answer is dead.
        let questions = peer.link();
        assert!(claims.claim(&DIGEST, &Claim::default()).await);
        assert!(!peer.is_linked());
        drop(questions);
    }

    #[tokio::test]
    async fn a_code_that_was_given_away_meanwhile_is_not_sent() {
        let peer = Peer::default();
        let (one, claim) = (claims(1, &peer), Claim::default());
        assert!(!one.give(&claim, &wanted(0)));
        assert!(one.give(&claim, &wanted(2)));
        // Even if the other process is dead now: it may have sent the code.
        assert!(!one.claim(&DIGEST, &claim).await);
        assert!(one.give(&claim, &wanted(0)));
    }

    /// In every order of the two questions and the two answers, one process gets the code.
    #[tokio::test]
    async fn of_two_processes_that_ask_at_once_one_gets_the_code() {
        for numbers in [[1, 2], [2, 1]] {
            for order in 0..6 {
                let peers = [Peer::default(), Peer::default()];
                let sides = [0, 1].map(|side: usize| claims(numbers[side], &peers[side]));
                let own = [Claim::default(), Claim::default()];
                let mut questions = [peers[0].link(), peers[1].link()];
                let asking = async {
                    let [one, two] = &sides;
                    tokio::join!(one.claim(&DIGEST, &own[0]), two.claim(&DIGEST, &own[1]))
                };
                let answering = async {
                    let first = questions[0].recv().await.unwrap();
                    let second = questions[1].recv().await.unwrap();
                    let give = |asked: usize, body: &[u8]| {
                        let wanted = Wanted::parse(body).unwrap();
                        answer_to_wanted(sides[asked].give(&own[asked], &wanted))
                    };
                    // Decisions first or answers first, and either side first.
                    let [(a, asked_a), (b, asked_b)] = if order % 2 == 0 {
                        [(first, 1), (second, 0)]
                    } else {
                        [(second, 0), (first, 1)]
                    };
                    match order / 2 {
                        0 => {
                            let (one, two) = (give(asked_a, &a.body), give(asked_b, &b.body));
                            a.answer.send(one).unwrap();
                            b.answer.send(two).unwrap();
                        }
                        1 => {
                            let (one, two) = (give(asked_a, &a.body), give(asked_b, &b.body));
                            b.answer.send(two).unwrap();
                            tokio::task::yield_now().await;
                            a.answer.send(one).unwrap();
                        }
                        _ => {
                            a.answer.send(give(asked_a, &a.body)).unwrap();
                            tokio::task::yield_now().await;
                            b.answer.send(give(asked_b, &b.body)).unwrap();
                        }
                    }
                };
                let (granted, ()) = tokio::join!(asking, answering);
                assert!(granted.0 != granted.1, "{numbers:?} {order} {granted:?}");
            }
        }
    }

    #[test]
    fn a_malformed_question_is_none() {
        let mut question = Writer::new();
        question.bytes(field::KIND, &[9]).bytes(field::DIGEST, &DIGEST);
        assert_eq!(Wanted::parse(question.as_bytes()), None);
        question.bytes(field::NUMBER, &[1; 16]).text(99, "newer");
        let parsed = Wanted::parse(question.as_bytes()).unwrap();
        assert_eq!(parsed, Wanted { kind: None, ..wanted(1) });
        assert_eq!(Wanted::parse(b"x"), None);
    }
}
