//! What the shared store holds of session keys: how long, and under which seal key.

use std::time::Duration;

use redis::cmd;
use wxgate::clock::Clock;

use super::{NONE, SEAL_KEYS, Stores, key, keys, login, store, user};
use crate::harness::redis::RedisServer;
use crate::shared_store::url;

/// The remaining lifetime of the only user's keys.
fn life(server: &RedisServer) -> Duration {
    let mut connection = server.connection();
    let names: Vec<String> = cmd("KEYS").arg("*k:*").query(&mut connection).unwrap();
    let [name] = &names[..] else { panic!("{names:?}") };
    Duration::from_millis(cmd("PTTL").arg(name).query(&mut connection).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_store_keys_last_as_long_as_the_longest_session() {
    let minute = Duration::from_secs(60);
    let stores = Stores::on_redis("session.ttl = \"1h\"\nsession.idle_timeout = \"10m\"").await;
    let (server, here) = (&stores.servers[0], stores.here());
    stores.login(here, "alice", 1).await;
    assert!((59 * minute..=62 * minute).contains(&life(server)), "{:?}", life(server));
    // Later logins extend it, even without a key of their own, and shorter ones do not shorten it.
    for store in &stores.all {
        store.set_ttl(120 * minute);
    }
    login(stores.there(), "alice", None).await;
    assert!((119 * minute..=122 * minute).contains(&life(server)), "{:?}", life(server));
    here.set_ttl(5 * minute);
    stores.login(here, "alice", 2).await;
    assert!(life(server) >= 119 * minute);
    // A store that has lost the keys: the longest session counts, not the new key.
    cmd("FLUSHALL").exec(&mut server.connection()).unwrap();
    stores.login(stores.there(), "alice", 3).await;
    let names: Vec<String> = cmd("KEYS").arg("*k:*").query(&mut server.connection()).unwrap();
    cmd("DEL").arg(names).exec(&mut server.connection()).unwrap();
    here.replace_session_key(&user("alice"), key(4)).await.unwrap();
    assert!((119 * minute..=122 * minute).contains(&life(server)), "{:?}", life(server));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_outlive_a_change_of_the_seal_key() {
    let server = RedisServer::start();
    let clock = Clock::manual();
    let [new, old] = SEAL_KEYS;
    let (before, _run) = store(&url(&server), "", &clock, &[old]).await;
    let first = login(&before, "alice", Some((1, 10))).await;
    login(&before, "alice", Some((2, 20))).await;
    // First all gateways can read the new key, then they seal with it.
    let (reads, _run) = store(&url(&server), "", &clock, &[old, new]).await;
    let (seals, _run) = store(&url(&server), "", &clock, &[new, old]).await;
    let second = login(&seals, "alice", Some((3, 30))).await;
    login(&seals, "alice", Some((4, 15))).await;
    login(&seals, "alice", Some((1, 40))).await;
    for store in [&reads, &seals] {
        assert_eq!(keys(store, "alice").await, [1, 3, 2]);
    }
    assert_eq!(keys(&before, "alice").await, [2, 1], "it has the old key only");
    // What cannot be read may be another gateway's, and is not taken for ended.
    before.revoke(first.digest()).await.unwrap();
    before.revoke(second.digest()).await.unwrap();
    assert_eq!(keys(&seals, "alice").await, [1, 3, 2]);
    for session in seals.of_user(&user("alice")).await.unwrap() {
        seals.revoke(session.digest()).await.unwrap();
    }
    assert_eq!(keys(&reads, "alice").await, NONE);
    assert!(server.keys().iter().all(|key| !key.starts_with("wxgate:k:")));
}
