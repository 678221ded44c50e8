//! Which keys of a user are kept, and how long: the same in memory and in a shared store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Barrier;
use wxgate::identity::{Identity, User};
use wxgate::session::LoginKey;

use super::{CLIENT, NONE, Stores, key, keys_of, login, login_to, user, user_of};
use crate::harness::OTHER_APP;

/// Each test once per kind of store.
macro_rules! wherever_they_are_kept {
    ($($name:ident($more:expr);)*) => {
        mod in_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Stores::in_memory($more).await).await;
            })*
        }

        mod on_redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Stores::on_redis($more).await).await;
            })*
        }
    };
}

wherever_they_are_kept! {
    the_newest_three_different_keys_are_kept_by_time_of_login("");
    a_key_that_is_issued_again_moves_to_its_later_login("");
    users_and_apps_do_not_share_keys("");
    keys_last_until_the_last_session_of_their_user_is_revoked("");
    keys_are_not_returned_after_the_sessions_have_expired(super::LIVES);
    a_login_after_all_sessions_have_ended_begins_anew(super::LIVES);
    a_replaced_session_leaves_its_key_to_its_user("session.max_per_user = 1");
    a_blocked_user_gets_no_key("");
    a_key_from_a_reset_becomes_the_newest("");
    nothing_is_kept_or_returned_while_it_is_off("");
    logins_at_the_same_moment_lose_no_key("session.max_per_user = 0");
    the_end_of_a_session_never_takes_the_key_of_a_login("session.max_per_user = 0");
}

const LIVES: &str = "session.ttl = \"1h\"\nsession.idle_timeout = \"30m\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_them_as_well() {
    let stores = Stores::on_cluster("session.max_per_user = 0").await;
    let session = stores.login(stores.here(), "alice", 1).await;
    let other = stores.login(stores.there(), "alice", 2).await;
    assert_eq!(stores.keys("alice").await.len(), 2);
    stores.here().revoke(session.digest()).await.unwrap();
    stores.there().revoke(other.digest()).await.unwrap();
    assert_eq!(stores.keys("alice").await, NONE);
    the_end_of_a_session_never_takes_the_key_of_a_login(stores).await;
}

async fn the_newest_three_different_keys_are_kept_by_time_of_login(stores: Stores) {
    let (here, there) = (stores.here(), stores.there());
    stores.clock.advance(Duration::from_secs(60));
    // Logins that overtook each other: the second number is the time of login.
    for (at, number, time) in [(here, 3, 30), (there, 1, 10), (here, 4, 40), (there, 2, 20)] {
        login(at, "alice", Some((number, time))).await;
    }
    assert_eq!(stores.keys("alice").await, [4, 3, 2]);
    // Older than all that are kept.
    login(there, "alice", Some((5, 5))).await;
    assert_eq!(stores.keys("alice").await, [4, 3, 2]);
    login(here, "alice", Some((6, 50))).await;
    login(here, "alice", None).await;
    assert_eq!(stores.keys("alice").await, [6, 4, 3]);
}

async fn a_key_that_is_issued_again_moves_to_its_later_login(stores: Stores) {
    let (here, there) = (stores.here(), stores.there());
    stores.clock.advance(Duration::from_secs(60));
    for (at, number, time) in [(here, 1, 10), (there, 2, 20), (here, 3, 30), (there, 1, 40)] {
        login(at, "alice", Some((number, time))).await;
    }
    assert_eq!(stores.keys("alice").await, [1, 3, 2]);
    // A slow login of before does not move it back.
    login(here, "alice", Some((1, 15))).await;
    assert_eq!(stores.keys("alice").await, [1, 3, 2]);
}

async fn users_and_apps_do_not_share_keys(stores: Stores) {
    let (here, there) = (stores.here(), stores.there());
    let session = stores.login(here, "alice", 1).await;
    stores.login(there, "bob", 2).await;
    login_to(here, OTHER_APP, "alice", Some((3, stores.now()))).await;
    let others = user_of(OTHER_APP, "alice");
    here.revoke(session.digest()).await.unwrap();
    assert_eq!(stores.keys("alice").await, NONE);
    assert_eq!(stores.keys("bob").await, [2]);
    assert_eq!(keys_of(there, &others).await, [3]);
    assert_eq!(stores.keys("carol").await, NONE);
}

async fn keys_last_until_the_last_session_of_their_user_is_revoked(stores: Stores) {
    let (here, there) = (stores.here(), stores.there());
    let first = stores.login(here, "alice", 1).await;
    stores.clock.advance(Duration::from_millis(1));
    let second = stores.login(there, "alice", 2).await;
    there.revoke(second.digest()).await.unwrap();
    there.revoke(second.digest()).await.unwrap();
    assert_eq!(stores.keys("alice").await, [2, 1], "the phone may still use it");
    here.revoke(first.digest()).await.unwrap();
    assert_eq!(stores.keys("alice").await, NONE);
    assert_eq!(stores.stored(), 0);
    stores.login(there, "alice", 3).await;
    assert_eq!(stores.keys("alice").await, [3]);
}

async fn keys_are_not_returned_after_the_sessions_have_expired(stores: Stores) {
    let (here, there) = (stores.here(), stores.there());
    let used = stores.login(here, "alice", 1).await;
    stores.login(there, "bob", 2).await;
    for _ in 0..2 {
        stores.clock.advance(Duration::from_secs(25 * 60));
        assert!(here.get(used.digest()).await.unwrap().is_some());
        // What the other gateway needs to know comes to the store.
        while there.of_user(&user("alice")).await.unwrap()[0].last_used() < stores.now() {
            tokio::task::yield_now().await;
        }
        assert_eq!(stores.keys("alice").await, [1]);
    }
    assert_eq!(stores.keys("bob").await, NONE, "not used");
    stores.clock.advance(Duration::from_secs(10 * 60));
    assert_eq!(stores.keys("alice").await, NONE, "past its absolute end");
}

async fn a_login_after_all_sessions_have_ended_begins_anew(stores: Stores) {
    let (here, there) = (stores.here(), stores.there());
    stores.login(here, "alice", 1).await;
    stores.clock.advance(Duration::from_secs(20 * 60));
    stores.login(there, "alice", 2).await;
    assert_eq!(stores.keys("alice").await, [2, 1]);
    stores.clock.advance(Duration::from_secs(40 * 60));
    stores.login(here, "alice", 3).await;
    assert_eq!(stores.keys("alice").await, [3]);
    stores.clock.advance(Duration::from_secs(40 * 60));
    // Whatever its session_key looked like.
    login(there, "alice", None).await;
    assert_eq!(stores.keys("alice").await, NONE);
    assert_eq!(stores.stored(), 0);
}

async fn a_replaced_session_leaves_its_key_to_its_user(stores: Stores) {
    let first = stores.login(stores.here(), "alice", 1).await;
    stores.clock.advance(Duration::from_millis(1));
    stores.login(stores.there(), "alice", 2).await;
    assert!(!stores.there().contains(first.digest()).await.unwrap());
    assert_eq!(stores.keys("alice").await, [2, 1]);
}

async fn a_blocked_user_gets_no_key(stores: Stores) {
    let here = stores.here();
    here.block(&user("alice").into(), Duration::from_secs(3600)).await.unwrap();
    let User { app_id, openid } = user("alice");
    let identity = Identity { app_id, openid, unionid: None, user_id: None };
    let login = LoginKey { session_key: key(1), logged_in_at_millis: stores.now() };
    assert!(stores.there().create(identity, CLIENT, Some(login)).await.is_err());
    assert_eq!(stores.keys("alice").await, NONE);
    assert_eq!(stores.stored(), 0);
}

async fn a_key_from_a_reset_becomes_the_newest(stores: Stores) {
    let (here, there) = (stores.here(), stores.there());
    there.replace_session_key(&user("alice"), key(1)).await.unwrap();
    assert_eq!(stores.stored(), 0, "a user without a session has no key");
    let now = stores.now();
    // As of another gateway, whose clock is ahead.
    let session = login(here, "alice", Some((2, now + 5000))).await;
    there.replace_session_key(&user("alice"), key(3)).await.unwrap();
    assert_eq!(stores.keys("alice").await, [3, 2]);
    here.replace_session_key(&user("alice"), key(4)).await.unwrap();
    here.replace_session_key(&user("alice"), key(5)).await.unwrap();
    there.replace_session_key(&user("alice"), key(3)).await.unwrap();
    assert_eq!(stores.keys("alice").await, [3, 5, 4]);
    here.revoke(session.digest()).await.unwrap();
    here.replace_session_key(&user("alice"), key(6)).await.unwrap();
    assert_eq!(stores.keys("alice").await, NONE);
    assert_eq!(stores.stored(), 0);
    // Of a session whose login had no usable key.
    login(there, "bob", None).await;
    here.replace_session_key(&user("bob"), key(7)).await.unwrap();
    assert_eq!(stores.keys("bob").await, [7]);
}

async fn nothing_is_kept_or_returned_while_it_is_off(stores: Stores) {
    let switch = |is_on| stores.all.iter().for_each(|store| store.keep_session_keys(is_on));
    switch(false);
    stores.login(stores.here(), "alice", 1).await;
    stores.here().replace_session_key(&user("alice"), key(2)).await.unwrap();
    assert_eq!(stores.stored(), 0);
    switch(true);
    assert_eq!(stores.keys("alice").await, NONE);
    stores.login(stores.there(), "alice", 3).await;
    switch(false);
    assert_eq!(stores.keys("alice").await, NONE);
}

async fn logins_at_the_same_moment_lose_no_key(stores: Stores) {
    let stores = Arc::new(stores);
    for round in 0..20 {
        let (start, name) = (Arc::new(Barrier::new(3)), format!("user{round}"));
        let logins = [(1, 30), (2, 20), (3, 10)].map(|(number, time)| {
            let (stores, start, name) = (stores.clone(), start.clone(), name.clone());
            tokio::spawn(async move {
                let at = if number == 2 { stores.here() } else { stores.there() };
                start.wait().await;
                login(at, &name, Some((number, time))).await;
            })
        });
        for login in logins {
            login.await.unwrap();
        }
        assert_eq!(stores.keys(&name).await, [1, 2, 3], "round {round}");
    }
}

async fn the_end_of_a_session_never_takes_the_key_of_a_login(stores: Stores) {
    let stores = Arc::new(stores);
    for round in 0..100 {
        let name = format!("user{round}");
        let ends = stores.login(stores.here(), &name, 1).await;
        stores.clock.advance(Duration::from_millis(1));
        let start = Arc::new(Barrier::new(2));
        let (revoking, begin) = (stores.clone(), start.clone());
        let revocation = tokio::spawn(async move {
            begin.wait().await;
            revoking.here().revoke(ends.digest()).await.unwrap();
        });
        let (logging_in, of) = (stores.clone(), name.clone());
        let login = tokio::spawn(async move {
            start.wait().await;
            // Every other time the same key again.
            let number = if round % 2 == 0 { 2 } else { 1 };
            logging_in.login(logging_in.there(), &of, number).await
        });
        revocation.await.unwrap();
        let stays = login.await.unwrap();
        let number = if round % 2 == 0 { 2 } else { 1 };
        assert_eq!(stores.keys(&name).await.first(), Some(&number), "round {round}");
        stores.there().revoke(stays.digest()).await.unwrap();
        assert_eq!(stores.keys(&name).await, NONE, "round {round}");
    }
    assert_eq!(stores.stored(), 0);
}
