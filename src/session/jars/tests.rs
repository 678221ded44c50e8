//! Tests of jars in memory.

use super::*;
use crate::handover::claims::tests::join;
use crate::message::set_cookie::SetCookie;
use crate::session::entry::Change;
use crate::session::tests::Store;
use crate::session::transfer::entry_of;

fn name() -> JarName {
    JarName::of("shop")
}

async fn set(store: &Store, session: &Session, name: JarName, line: &str) {
    let change =
        |jar: &Jar, now| jar.with(SetCookie::parse(line.as_bytes(), now).into_iter(), b"/", now);
    store.sessions.change_jar(session, name, change).await;
}

async fn sent(store: &Store, session: &Session, name: JarName) -> String {
    let jar = store.sessions.jar(session, name).await.unwrap();
    let sent = jar.sent(b"/", false, store.sessions.wall_millis());
    let pair = |(name, value): (&[u8], &[u8])| [name, b"=", value].concat();
    let pairs: Vec<Vec<u8>> = sent.into_iter().map(pair).collect();
    String::from_utf8(pairs.join(&b"; "[..])).unwrap()
}

#[tokio::test]
async fn a_jar_is_of_one_session_and_one_upstream_and_ends_with_the_session() {
    let store = Store::new(100);
    store.sessions.keep_jars_of(name());
    let (one, other) = (store.login().await, store.login().await);
    let one = store.sessions.get(&one).await.unwrap().unwrap();
    let other = store.sessions.get(&other).await.unwrap().unwrap();
    set(&store, &one, name(), "a=1").await;
    set(&store, &one, name(), "b=2; Max-Age=5").await;
    assert_eq!(sent(&store, &one, name()).await, "a=1; b=2");
    assert_eq!(sent(&store, &other, name()).await, "");
    assert_eq!(sent(&store, &one, JarName::of("shop2")).await, "");
    store.clock.advance(std::time::Duration::from_secs(5));
    assert_eq!(sent(&store, &one, name()).await, "a=1");
    store.sessions.revoke(one.digest()).await.unwrap();
    assert_eq!(sent(&store, &one, name()).await, "");
    // A response that comes later brings nothing back.
    set(&store, &one, name(), "a=3").await;
    assert_eq!(sent(&store, &one, name()).await, "");
}

#[tokio::test]
async fn jars_are_handed_over_with_their_sessions() {
    let [old, new] = [Store::new(100), Store::new(100)];
    old.sessions.keep_jars_of(name());
    let (kept, ended) = (old.login().await, old.login().await);
    let kept = old.sessions.get(&kept).await.unwrap().unwrap();
    let ended = old.sessions.get(&ended).await.unwrap().unwrap();
    let long = format!("long={}", "x".repeat(3000));
    for session in [&kept, &ended] {
        set(&old, session, name(), "a=1").await;
        set(&old, session, name(), &long).await;
    }
    let mut pieces = Vec::new();
    old.sessions.export_jars(|piece| pieces.push(piece.as_bytes().to_vec()));
    let here = |digest: &TokenDigest| (digest == kept.digest()).then(|| kept.clone());
    let Backend::Memory(memory) = &new.sessions.backend else { panic!() };
    for piece in &pieces {
        assert_eq!(new.sessions.import_jars(&piece[..piece.len() - 1]), Err(Malformed));
        for field in read(piece) {
            memory.jars.import(field.unwrap().value, false, here).unwrap();
        }
    }
    assert_eq!(sent(&new, &kept, name()).await, format!("a=1; {long}"));
    assert_eq!(sent(&new, &ended, name()).await, "");
    // They end with their sessions there, too, though no configuration has named the upstream.
    memory.jars.remove_all(kept.digest());
    assert_eq!(sent(&new, &kept, name()).await, "");
    // Without its session, none is taken.
    new.sessions.import_jars(&pieces[0]).unwrap();
    assert_eq!(sent(&new, &kept, name()).await, "");
}

/// Two processes, and one session as each of them has it.
async fn two() -> [(Store, Arc<Session>); 2] {
    let [here, there] = [Store::new(100), Store::new(100)];
    let digest = here.login().await;
    let session = here.sessions.get(&digest).await.unwrap().unwrap();
    there.sessions.apply(Change::Created { session: entry_of(&session), key: None }).await;
    let other = there.sessions.get(&digest).await.unwrap().unwrap();
    let sessions = [here.sessions.clone(), there.sessions.clone()];
    join([here.sessions.peer(), there.sessions.peer()], move |asked, question| {
        let _ = sessions[asked].take_jar(question);
        Vec::new()
    });
    [(here, session), (there, other)]
}

#[tokio::test]
async fn a_jar_that_changes_in_one_of_two_processes_changes_in_the_other() {
    let both @ [here, there] = &two().await;
    for (n, (store, session)) in both.iter().cycle().take(4).enumerate() {
        set(store, session, name(), &format!("c{n}={n}")).await;
    }
    set(&here.0, &here.1, name(), "c1=; Max-Age=0").await;
    for (store, session) in both {
        assert_eq!(sent(store, session, name()).await, "c0=0; c2=2; c3=3");
    }
    // Of several at once, the other process has the last one, too.
    let lines: Vec<_> = (0..100).map(|n| format!("c0={n}")).collect();
    let all = lines.iter().map(|line| set(&there.0, &there.1, name(), line));
    futures_util::future::join_all(all).await;
    let [left, right] = [sent(&here.0, &here.1, name()), sent(&there.0, &there.1, name())];
    assert_eq!(left.await, right.await);
    assert!(here.0.sessions.peer().is_linked() && there.0.sessions.peer().is_linked());
    // It ends with its session.
    here.0.sessions.peer().unlink();
    there.0.sessions.peer().unlink();
    there.0.sessions.revoke(there.1.digest()).await.unwrap();
    assert_eq!(sent(&there.0, &there.1, name()).await, "");
}

#[tokio::test]
async fn a_jar_that_was_told_is_not_replaced_by_an_older_one_that_comes_later() {
    let [here, there] = &two().await;
    set(&here.0, &here.1, name(), "a=1").await;
    let mut pieces = Vec::new();
    here.0.sessions.export_jars(|piece| pieces.push(piece.as_bytes().to_vec()));
    for (line, expected) in [("a=2", "a=2"), ("a=; Max-Age=0", "")] {
        set(&here.0, &here.1, name(), line).await;
        there.0.sessions.import_jars(&pieces[0]).unwrap();
        assert_eq!(sent(&there.0, &there.1, name()).await, expected);
    }
}

#[tokio::test]
async fn a_jar_is_told_only_if_it_has_changed_and_taken_only_with_its_session() {
    let (store, other) = (Store::new(100), Store::new(100));
    let digest = store.login().await;
    let session = store.sessions.get(&digest).await.unwrap().unwrap();
    let mut questions = store.sessions.peer().link();
    let told = async {
        let told = questions.recv().await.unwrap();
        told.answer.send(Vec::new()).unwrap();
        told.body
    };
    let (body, ()) = tokio::join!(told, set(&store, &session, name(), "a=1"));
    set(&store, &session, name(), "a=1").await;
    assert!(questions.try_recv().is_err());
    for length in 1..body.len() {
        assert_eq!(other.sessions.take_jar(&body[..length]), Err(Malformed), "{length}");
    }
    other.sessions.take_jar(&body).unwrap();
    let Backend::Memory(memory) = &other.sessions.backend else { panic!() };
    assert_eq!(memory.jars.cache.iter().count(), 0);
}

#[tokio::test]
async fn a_jar_that_is_being_told_delays_no_jar_of_another_session() {
    let store = Store::new(1000);
    let mut sessions = Vec::new();
    for _ in 0..100 {
        let digest = store.login().await;
        sessions.push(store.sessions.get(&digest).await.unwrap().unwrap());
    }
    let mut questions = store.sessions.peer().link();
    let all = sessions.iter().map(|session| set(&store, session, name(), "a=1"));
    let told = async {
        // Two of a hundred sessions may share a lock, but not all of them.
        let unanswered = [questions.recv().await.unwrap(), questions.recv().await.unwrap()];
        drop((unanswered, questions));
    };
    tokio::join!(futures_util::future::join_all(all), told);
    assert!(!store.sessions.peer().is_linked());
}

#[tokio::test]
async fn an_evicted_session_takes_its_jars_along() {
    let store = Store::new(1);
    store.sessions.keep_jars_of(name());
    let first = store.login().await;
    let first = store.sessions.get(&first).await.unwrap().unwrap();
    set(&store, &first, name(), "a=1").await;
    assert_eq!(sent(&store, &first, name()).await, "a=1");
    store.login().await;
    store.sessions.maintain();
    assert_eq!(sent(&store, &first, name()).await, "");
}

#[test]
fn the_least_recently_used_jars_are_dropped() {
    let known = KnownJars::default();
    known.add(name());
    let jars = Jars::new(100_000, known);
    let digests: Vec<_> = (0..100_u8).map(|n| TokenDigest::from_bytes([n; 32])).collect();
    let line = format!("a={}", "x".repeat(2000));
    let cookie = SetCookie::parse(line.as_bytes(), 0).unwrap();
    let jar = Arc::new(Jar::default().with([cookie].into_iter(), b"/", 0));
    for digest in &digests {
        jars.cache.insert((*digest, name()), jar.clone());
        // The first is used all the time.
        assert!(jars.cache.get(&(digests[0], name())).is_some());
        jars.maintain();
    }
    let kept = digests.iter().filter(|digest| jars.cache.contains_key(&(**digest, name())));
    assert!((40..=43).contains(&kept.count()));
    assert!(jars.cache.contains_key(&(digests[0], name())));
    assert!(!jars.cache.contains_key(&(digests[1], name())));
    assert!(jars.cache.weighted_size() <= 100_000);
}
