use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::event::{Event, answer, control, credit, piece, question};
use super::*;
use crate::handover::fields::Writer;
use crate::server::upgrade::frames::LONGEST;
use crate::server::upgrade::frames::{Incoming, Kind, header};

/// One side, with its handler.
fn side<H, F>(stream: UnixStream, handler: H) -> (Peer, Channel, JoinHandle<Ended>)
where
    H: Fn(Topic, Vec<u8>) -> F + Send + 'static,
    F: Future<Output = Vec<u8>> + Send + 'static,
{
    let peer = Peer::default();
    let (channel, running) = Channel::open(stream, &peer, handler);
    (peer, channel, tokio::spawn(running))
}

async fn echo(topic: Topic, body: Vec<u8>) -> Vec<u8> {
    tokio::task::yield_now().await;
    [&[topic as u8], &*body].concat()
}

/// Never asked.
fn silent(_: Topic, _: Vec<u8>) -> std::future::Ready<Vec<u8>> {
    unreachable!()
}

fn frame(kind: Kind, body: &Writer) -> Vec<u8> {
    [&header(kind, body.as_bytes()).unwrap(), body.as_bytes()].concat()
}

/// The paused clock moves on when nothing else happens, but does not count what is on its way
/// through a socket. Here it stands still, so that a busy machine is no dead process.
fn hold_time() {
    tokio::time::pause();
    tokio::spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
}

/// How a channel ends that gets these bytes and then the end of the stream.
async fn end_after(bytes: &[u8]) -> String {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (peer, channel, running) = side(near, |_, _| pending());
    // It may have ended before it has read everything.
    drop(far.write_all(bytes).await);
    far.shutdown().await.unwrap();
    let ended = running.await.unwrap();
    assert!(!peer.is_linked());
    drop(channel);
    ended.to_string()
}

#[tokio::test]
async fn questions_of_both_sides_get_their_own_answers() {
    hold_time();
    let (near, far) = UnixStream::pair().unwrap();
    let sides = [side(near, echo), side(far, echo)];
    let mut asking = JoinSet::new();
    for (peer, ..) in &sides {
        // More than may wait for an answer at once.
        for number in 0..3000_u32 {
            let peer = peer.clone();
            asking.spawn(async move {
                let body = number.to_be_bytes().repeat(1 + number as usize % 100);
                let answer = peer.ask(Topic::Code, body.clone()).await.unwrap();
                assert_eq!(answer, [&[Topic::Code as u8], &*body].concat());
            });
        }
    }
    asking.join_all().await;
    assert!(sides.iter().all(|(peer, ..)| peer.is_linked()));
}

#[tokio::test]
async fn handlers_begin_in_the_order_of_the_questions_and_wait_together() {
    hold_time();
    let (near, far) = UnixStream::pair().unwrap();
    let begun = Arc::new(Mutex::new(Vec::new()));
    let last = Arc::new(Notify::new());
    let handler = {
        let begun = begun.clone();
        move |_, body: Vec<u8>| {
            let (begun, last) = (begun.clone(), last.clone());
            async move {
                begun.lock().push(body[0]);
                if body == [99] {
                    last.notify_waiters();
                } else {
                    last.notified().await;
                }
                body
            }
        }
    };
    let (peer, _near, _) = side(near, silent);
    let _far = side(far, handler);
    let asked: Vec<_> = (0..100).map(|number| peer.ask(Topic::Session, vec![number])).collect();
    let answers = futures_util::future::join_all(asked).await;
    assert_eq!(*begun.lock(), (0..100).collect::<Vec<u8>>());
    assert_eq!(answers, (0..100).map(|number| Some(vec![number])).collect::<Vec<_>>());
}

#[tokio::test]
async fn messages_of_every_size_arrive_whole_and_in_their_order() {
    hold_time();
    let (near, far) = UnixStream::pair().unwrap();
    let (_, near, _) = side(near, silent);
    let (_, mut far, _) = side(far, silent);
    let sizes = [0, 1, PIECE - 1, PIECE, PIECE + 1, 40 * PIECE, 3, 2 * PIECE, LONGEST];
    let body = move |index: usize| vec![u8::try_from(index).unwrap(); sizes[index]];
    let bulk = near.bulk_out.clone();
    tokio::spawn(async move {
        for index in 0..sizes.len() {
            bulk.send(Message::new(7, &body(index))).await.unwrap();
        }
    });
    for index in 0..sizes.len() {
        let number = [u8::try_from(index).unwrap()];
        near.control_out.send(Message::new(9, &number)).await.unwrap();
        assert_eq!(far.control_in.recv().await, Some(Message::new(9, &number)));
        assert!(far.bulk_in.recv().await == Some(Message::new(7, &body(index))), "{index}");
    }
}

#[tokio::test]
async fn a_bulk_that_nobody_takes_delays_nothing_else() {
    hold_time();
    let (near, far) = UnixStream::pair().unwrap();
    let (near_peer, near, _) = side(near, echo);
    let (far_peer, mut far, _) = side(far, echo);
    // More than the window and the queues of both ends.
    let kinds = || (0..=u8::MAX).cycle().take(2 * usize::try_from(WINDOW).unwrap() + 4 * BULKS);
    let sending = tokio::spawn(async move {
        for kind in kinds() {
            near.bulk_out.send(Message::new(kind, &vec![kind; PIECE])).await.unwrap();
        }
        near
    });
    for _ in 0..100 {
        assert!(near_peer.ask(Topic::Record, vec![1]).await.is_some());
        assert!(far_peer.ask(Topic::Record, vec![2]).await.is_some());
    }
    assert!(!sending.is_finished(), "the sender waits for the receiver");
    for kind in kinds() {
        assert_eq!(far.bulk_in.recv().await.unwrap().kind, kind);
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn questions_are_answered_between_the_messages_of_a_bulk() {
    const MESSAGES: usize = 20_000;
    hold_time();
    let (near, far) = UnixStream::pair().unwrap();
    let (near_peer, near, _) = side(near, echo);
    let (far_peer, mut far, _) = side(far, echo);
    tokio::spawn(async move {
        for number in 0..MESSAGES {
            near.bulk_out.send(Message::new(1, &number.to_be_bytes())).await.unwrap();
        }
    });
    let taken = Arc::new(AtomicUsize::new(0));
    let progress = taken.clone();
    let taking = tokio::spawn(async move {
        while progress.load(Ordering::Relaxed) < MESSAGES {
            let message = far.bulk_in.recv().await.unwrap();
            let number = progress.fetch_add(1, Ordering::Relaxed);
            assert_eq!(*message.body, number.to_be_bytes());
        }
    });
    let mut asked = 0;
    while !taking.is_finished() {
        for peer in [&near_peer, &far_peer] {
            let before = taken.load(Ordering::Relaxed);
            assert!(peer.ask(Topic::Session, vec![0; 100]).await.is_some());
            let between = taken.load(Ordering::Relaxed) - before;
            assert!(between < 1000, "the question waited for {between} messages");
            asked += 1;
        }
    }
    taking.await.unwrap();
    assert!(asked > 20, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_reads_nothing_is_dead_after_a_second() {
    let (near, _far) = UnixStream::pair().unwrap();
    let (peer, near, running) = side(near, silent);
    let start = Instant::now();
    // More than the system keeps.
    near.bulk_out.send(Message::new(1, &vec![0; 10 * PIECE])).await.unwrap();
    let ended = running.await.unwrap();
    assert!(matches!(ended, Ended::Stalled), "{ended}");
    assert_eq!(start.elapsed().as_secs(), 1);
    assert!(!peer.is_linked());
    assert_eq!(peer.ask(Topic::Code, vec![]).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_not_answer_is_dead_after_a_second() {
    let (near, far) = UnixStream::pair().unwrap();
    let (peer, _near, running) = side(near, silent);
    let (far_peer, _far, far_running) = side(far, |_, _| pending());
    let start = Instant::now();
    assert_eq!(peer.ask(Topic::Code, vec![]).await, None);
    assert_eq!(start.elapsed().as_secs(), 1);
    let ended = running.await.unwrap();
    assert!(matches!(ended, Ended::NoAnswer), "{ended}");
    let ended = far_running.await.unwrap();
    assert!(matches!(ended, Ended::ClosedByOther), "{ended}");
    assert!(!far_peer.is_linked());
}

#[tokio::test]
async fn a_process_is_dead_as_well_when_no_more_questions_may_be_asked() {
    hold_time();
    let (near, mut far) = UnixStream::pair().unwrap();
    let (peer, _near, running) = side(near, silent);
    let mut asking = JoinSet::new();
    for _ in 0..QUESTIONS + 100 {
        let peer = peer.clone();
        asking.spawn(async move { peer.ask(Topic::Code, vec![]).await });
    }
    let mut incoming = Incoming::default();
    let mut asked = 0;
    while asked < QUESTIONS {
        assert_ne!(incoming.read_from(&mut far).await.unwrap(), 0);
        while incoming.take_frame().unwrap().is_some() {
            asked += 1;
        }
    }
    tokio::time::advance(2 * PATIENCE).await;
    let ended = running.await.unwrap();
    assert!(matches!(ended, Ended::NoAnswer), "{ended}");
    assert!(asking.join_all().await.iter().all(Option::is_none));
    assert_eq!(incoming.read_from(&mut far).await.unwrap(), 0, "no more than {QUESTIONS}");
}

#[tokio::test]
async fn questions_that_wait_fail_when_the_other_process_dies() {
    hold_time();
    let (near, mut far) = UnixStream::pair().unwrap();
    let (peer, mut near, running) = side(near, silent);
    let asking = {
        let peer = peer.clone();
        tokio::spawn(async move { peer.ask(Topic::Session, vec![1]).await })
    };
    far.read_u8().await.unwrap();
    drop(far);
    // Not only when the answer is overdue.
    let ended = running.await.unwrap();
    assert!(matches!(ended, Ended::ClosedByOther), "{ended}");
    assert_eq!(asking.await.unwrap(), None);
    assert!(!peer.is_linked() && peer.is_owner());
    assert_eq!(near.control_in.recv().await, None);
    assert_eq!(near.bulk_in.recv().await, None);
    assert!(near.bulk_out.send(Message::new(1, b"")).await.is_err());
}

#[tokio::test]
async fn a_channel_ends_at_the_first_impossible_frame() {
    hold_time();
    let mut malformed = Writer::new();
    malformed.u64(1, 1).bytes(2, &[1, 2]);
    let pieces = |count| frame(Kind::Bulk, &piece(1, b"x", true)).repeat(count);
    let mixed = [pieces(1), frame(Kind::Bulk, &piece(2, b"x", false))].concat();
    let whole = frame(Kind::Question, &question(1, 1, b"q"));
    for (bytes, expected) in [
        (vec![], "the other process closed the connection"),
        (whole[..3].to_vec(), "the other process sent only a part of a frame"),
        (whole[..whole.len() - 1].to_vec(), "the other process sent only a part of a frame"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "the other process sent a frame that is too long"),
        (vec![1, 0, 0, 1, Kind::Bulk as u8], "the other process sent a frame that is too long"),
        (vec![0, 0, 0, 0, 127], "the other process sent an unknown kind of frame"),
        (vec![0, 0, 0, 1, Kind::Question as u8, 1], "the other process sent a malformed frame"),
        (frame(Kind::Control, &malformed), "the other process sent a malformed frame"),
        (frame(Kind::Hello, &Writer::new()), "the other process sent a malformed frame"),
        (frame(Kind::Credit, &credit(1)), "the other process sent more credit than there is"),
        (
            frame(Kind::Answer, &answer(1, b"")),
            "the other process sent an answer without a question",
        ),
        (mixed, "the other process sent parts that do not belong together"),
        (whole.repeat(QUESTIONS), "the other process closed the connection"),
        (whole.repeat(QUESTIONS + 1), "the other process sent too many questions at once"),
        (
            frame(Kind::Control, &control(&Message::new(1, b""))).repeat(CONTROLS + 1),
            "the other process sent too many control messages",
        ),
    ] {
        assert_eq!(
            end_after(&bytes).await,
            expected,
            "{}",
            bytes[..bytes.len().min(99)].escape_ascii()
        );
    }
}

#[tokio::test]
async fn more_bulk_than_was_allowed_ends_the_channel() {
    hold_time();
    let whole = frame(Kind::Bulk, &piece(1, b"x", false));
    // One message is in the queue, and the next one's place is not free.
    let allowed = usize::try_from(WINDOW).unwrap();
    let ended = end_after(&whole.repeat(allowed)).await;
    assert_eq!(ended, "the other process closed the connection");
    let ended = end_after(&whole.repeat(3 * allowed)).await;
    assert_eq!(ended, "the other process sent more than was allowed");
}

#[tokio::test]
async fn what_a_newer_program_may_add_is_ignored() {
    hold_time();
    let (near, mut far) = UnixStream::pair().unwrap();
    let (_, _near, _) = side(near, echo);
    let mut body = question(5, Topic::Code as u8, b"known");
    body.text(77, "a new field");
    let mut bytes = vec![0, 0, 0, 3, 128, 1, 2, 3];
    bytes.extend(frame(Kind::Question, &body));
    bytes.extend(frame(Kind::Question, &question(6, 250, b"a new topic")));
    far.write_all(&bytes).await.unwrap();
    let mut answers = Vec::new();
    let mut incoming = Incoming::default();
    while answers.len() < 2 {
        assert_ne!(incoming.read_from(&mut far).await.unwrap(), 0);
        while let Some((kind, body)) = incoming.take_frame().unwrap() {
            let Event::Answer { number, body } = Event::decode(kind, body).unwrap() else {
                panic!("{kind:?}")
            };
            answers.push((number, body));
        }
    }
    answers.sort();
    assert_eq!(answers, [(5, b"\x02known".to_vec()), (6, vec![])]);
}

#[tokio::test]
async fn what_was_given_to_a_channel_is_sent_before_it_closes() {
    hold_time();
    let (near, far) = UnixStream::pair().unwrap();
    let (_, near, running) = side(near, silent);
    let (peer, mut far, far_running) = side(far, silent);
    near.control_out.send(Message::new(1, &vec![1; 1 << 20])).await.unwrap();
    near.control_out.send(Message::new(2, b"last")).await.unwrap();
    drop(near);
    assert_eq!(far.control_in.recv().await.unwrap().body.len(), 1 << 20);
    assert_eq!(far.control_in.recv().await, Some(Message::new(2, b"last")));
    assert_eq!(far.control_in.recv().await, None);
    assert!(matches!(running.await.unwrap(), Ended::Closed));
    assert!(matches!(far_running.await.unwrap(), Ended::ClosedByOther));
    assert!(!peer.is_linked());
}

#[tokio::test]
async fn what_the_other_process_said_before_it_closed_arrives() {
    hold_time();
    let (near, mut far) = UnixStream::pair().unwrap();
    let (_, mut near, running) = side(near, silent);
    let last = control(&Message::new(3, b"last"));
    far.write_all(&frame(Kind::Control, &last)).await.unwrap();
    drop(far);
    // The channel may find out by writing.
    near.control_out.try_send(Message::new(1, b"")).unwrap();
    assert_eq!(near.control_in.recv().await, Some(Message::new(3, b"last")));
    assert!(matches!(running.await.unwrap(), Ended::ClosedByOther));
}

#[tokio::test]
async fn a_handler_comes_to_its_end_though_the_channel_has_ended() {
    hold_time();
    let (near, mut far) = UnixStream::pair().unwrap();
    let (begun, go_on, ended) =
        (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let all = (begun.clone(), go_on.clone(), ended.clone());
    let handler = move |_, _| {
        let (begun, go_on, ended) = all.clone();
        async move {
            begun.notify_one();
            go_on.notified().await;
            ended.notify_one();
            Vec::new()
        }
    };
    let (_, _near, running) = side(near, handler);
    far.write_all(&frame(Kind::Question, &question(1, 1, b""))).await.unwrap();
    begun.notified().await;
    drop(far);
    running.await.unwrap();
    go_on.notify_one();
    ended.notified().await;
}

#[tokio::test]
async fn a_channel_that_is_dropped_leaves_no_peer() {
    hold_time();
    let (near, _far) = UnixStream::pair().unwrap();
    let peer = Peer::default();
    let (_channel, running) = Channel::open(near, &peer, |_, _| ready(Vec::new()));
    assert!(peer.is_linked());
    drop(running);
    assert!(!peer.is_linked());
}
