use super::*;
use crate::identity::{AppId, OpenId};

const KIND: RecordKind = RecordKind::Ticket;
const LIFE: Duration = Duration::from_secs(30);

fn user(openid: &str) -> User {
    User { app_id: AppId::parse("wx1").unwrap(), openid: OpenId::parse(openid).unwrap() }
}

#[tokio::test]
async fn a_record_lives_by_the_clock_of_the_process() {
    let clock = Clock::manual();
    let records = Records::in_memory(clock.clone(), Peer::default());
    assert!(records.insert(KIND, "id", b"one", LIFE).await.unwrap());
    assert!(!records.insert(KIND, "id", b"other", LIFE).await.unwrap());
    assert!(records.get(RecordKind::Scan, "id").await.unwrap().is_none());
    clock.advance(LIFE.checked_sub(Duration::from_millis(1)).unwrap());
    let read = records.get(KIND, "id").await.unwrap().unwrap();
    assert_eq!(read.value.as_slice(), b"one");
    clock.advance(Duration::from_millis(1));
    assert!(records.get(KIND, "id").await.unwrap().is_none());
    assert!(!records.replace(KIND, "id", &read, b"two", LIFE).await.unwrap());
    assert!(records.take(KIND, "id").await.unwrap().is_none());
    assert!(records.insert(KIND, "id", b"other", LIFE).await.unwrap());
}

#[tokio::test]
async fn a_record_is_replaced_only_as_it_was_read_and_taken_once() {
    let records = Records::in_memory(Clock::manual(), Peer::default());
    assert!(records.insert(KIND, "id", b"one", LIFE).await.unwrap());
    let read = records.get(KIND, "id").await.unwrap().unwrap();
    assert!(records.replace(KIND, "id", &read, b"two", LIFE).await.unwrap());
    // Equal values, but another write.
    assert!(!records.replace(KIND, "id", &read, b"one", LIFE).await.unwrap());
    assert_eq!(records.take(KIND, "id").await.unwrap().unwrap().value.as_slice(), b"two");
    assert!(records.take(KIND, "id").await.unwrap().is_none());
    assert!(!records.replace(KIND, "id", &read, b"three", LIFE).await.unwrap());
}

#[tokio::test]
async fn the_records_of_a_user_are_counted_while_they_live() {
    let clock = Clock::manual();
    let records = Records::in_memory(clock.clone(), Peer::default());
    let count = async |openid: &str, id: &str| {
        records.count(KIND, &user(openid), 2, id, LIFE).await.unwrap()
    };
    assert_eq!(count("o1", "a").await, Ok(()));
    clock.advance(Duration::from_secs(10));
    assert_eq!(count("o1", "b").await, Ok(()));
    assert_eq!(count("o1", "c").await, Err(Duration::from_secs(20)));
    assert_eq!(count("o2", "c").await, Ok(()));
    records.uncount(KIND, &user("o1"), "b").await.unwrap();
    assert_eq!(count("o1", "c").await, Ok(()));
    assert_eq!(count("o1", "d").await, Err(Duration::from_secs(20)));
    clock.advance(Duration::from_secs(20));
    assert_eq!(count("o1", "d").await, Ok(()));
}

/// Two processes that know each other. The first is the owner.
fn two_processes(clock: &Clock) -> ([Records; 2], [Peer; 2]) {
    let peers = [Peer::default(), Peer::default()];
    let processes = peers.each_ref().map(|peer| Records::in_memory(clock.clone(), peer.clone()));
    for (asked, peer) in [(1, &peers[0]), (0, &peers[1])] {
        let (mut questions, asked) = (peer.link(), processes[asked].clone());
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                let asked = asked.clone();
                tokio::spawn(async move {
                    let _ = question.answer.send(asked.answer(&question.body).await);
                });
            }
        });
    }
    peers[1].set_owner(false);
    (processes, peers)
}

fn hand_over([old, new]: [&Records; 2], [old_peer, new_peer]: [&Peer; 2]) {
    let frozen = old.freeze();
    old.export(|piece| new.import(piece.as_bytes()).unwrap());
    new_peer.set_owner(true);
    old_peer.set_owner(false);
    frozen.given();
}

async fn insert(records: &Records, id: &str) -> bool {
    records.insert(KIND, id, id.as_bytes(), LIFE).await.unwrap()
}

async fn take(records: &Records, id: &str) -> Option<Vec<u8>> {
    records.take(KIND, id).await.unwrap().map(|record| record.value.to_vec())
}

#[tokio::test]
async fn the_other_process_has_the_same_records_before_and_after_they_are_handed_over() {
    let clock = Clock::manual();
    let ([old, new], peers) = two_processes(&clock);
    assert!(insert(&old, "a").await && insert(&new, "b").await && insert(&new, "c").await);
    assert!(!insert(&new, "a").await && !insert(&old, "b").await);
    let read = old.get(KIND, "c").await.unwrap().unwrap();
    assert_eq!(old.count(KIND, &user("o1"), 1, "a", LIFE).await.unwrap(), Ok(()));
    hand_over([&old, &new], peers.each_ref());
    // What was read before can be replaced after.
    assert!(old.replace(KIND, "c", &read, b"changed", LIFE).await.unwrap());
    assert!(!new.replace(KIND, "c", &read, b"again", LIFE).await.unwrap());
    assert_eq!(take(&new, "c").await.unwrap(), b"changed");
    assert_eq!(take(&old, "a").await.unwrap(), b"a");
    assert_eq!(take(&new, "a").await, None);
    assert!(insert(&old, "a").await);
    assert_eq!(take(&new, "a").await.unwrap(), b"a");
    for process in [&old, &new] {
        let counted = process.count(KIND, &user("o1"), 1, "b", LIFE).await.unwrap();
        assert_eq!(counted, Err(LIFE));
    }
    old.uncount(KIND, &user("o1"), "a").await.unwrap();
    assert_eq!(new.count(KIND, &user("o1"), 1, "b", LIFE).await.unwrap(), Ok(()));
    clock.advance(LIFE);
    assert_eq!(take(&old, "b").await, None);
    assert_eq!(take(&new, "b").await, None);
}

#[tokio::test]
async fn operations_wait_while_records_are_handed_over() {
    let ([old, new], peers) = two_processes(&Clock::manual());
    assert!(insert(&old, "a").await);
    let frozen = old.freeze();
    let waiting = {
        let old = old.clone();
        tokio::spawn(async move { take(&old, "a").await })
    };
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    old.export(|piece| new.import(piece.as_bytes()).unwrap());
    peers[0].set_owner(false);
    frozen.given();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    // The other process has not taken all yet.
    assert!(!waiting.is_finished());
    peers[1].set_owner(true);
    assert_eq!(waiting.await.unwrap().unwrap(), b"a");
    assert_eq!(take(&new, "a").await, None);
}

#[tokio::test]
async fn records_that_were_not_taken_over_stay() {
    let ([old, new], _) = two_processes(&Clock::manual());
    assert!(insert(&old, "a").await);
    drop(old.freeze());
    assert_eq!(take(&new, "a").await.unwrap(), b"a");
}

#[tokio::test(start_paused = true)]
async fn records_of_a_dead_process_are_unknown() {
    let ([old, new], peers) = two_processes(&Clock::manual());
    assert!(insert(&old, "a").await && insert(&old, "b").await);
    hand_over([&old, &new], peers.each_ref());
    let hung = peers[0].link();
    assert_eq!(take(&old, "a").await, None);
    assert!(peers[0].is_owner());
    assert!(insert(&old, "a").await);
    assert_eq!(take(&old, "b").await, None);
    drop(hung);
}

#[tokio::test]
async fn records_are_handed_over_in_pieces_and_malformed_ones_are_refused() {
    let clock = Clock::manual();
    let [old, new] = [0, 1].map(|_| Records::in_memory(clock.clone(), Peer::default()));
    let value = vec![7; 4000];
    for id in 0..300 {
        assert!(old.insert(KIND, &id.to_string(), &value, LIFE).await.unwrap());
    }
    let mut pieces = Vec::new();
    old.export(|piece| pieces.push(piece.as_bytes().to_vec()));
    assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() < 300_000));
    for piece in &pieces {
        assert_eq!(new.import(&piece[..piece.len() - 1]), Err(Malformed));
        new.import(piece).unwrap();
    }
    for id in 0..300 {
        assert_eq!(take(&new, &id.to_string()).await.unwrap(), value);
    }
    assert!(old.answer(b"x").await.is_empty());
}
