//! Records with a short life that gateways share. Their flows are tested elsewhere.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::cmd;
use wxgate::clock::Clock;
use wxgate::config::{Config, Secrets};
use wxgate::handover::peer::Peer;
use wxgate::identity::{AppId, OpenId, User};
use wxgate::session::{RecordKind, Records, Sessions};
use wxgate::telemetry::metrics::Metrics;

use crate::harness::redis::{RedisServer, cluster, until};
use crate::harness::{PATIENCE, SECRET, install_provider};

const KIND: RecordKind = RecordKind::Ticket;
const LIFE: Duration = Duration::from_secs(600);
const KEYS: [&str; 2] = ["5ea1", "0dd1"];

/// The records of a gateway with these seal keys, the current one first.
async fn records(url: &str, keys: &[&str]) -> Records {
    install_provider();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        format!("{{ file = \"{}\" }}", path.display())
    };
    let mut sealing = keys.iter().map(|key| file(key, &key.repeat(16)));
    let (seal_key, previous) = (sealing.next().unwrap(), sealing.collect::<Vec<_>>().join(", "));
    let text = format!(
        r#"
        server.listen = "127.0.0.1:1"
        app = [{{ app_id = "wx0123456789abcdef", app_secret = {} }}]
        upstream = [{{ name = "u", servers = ["127.0.0.1:2"] }}]
        route = [{{ path = "/", upstream = "u", auth = "required" }}]
        session.seal_key = {seal_key}
        session.previous_seal_keys = [{previous}]
        session.redis.url = "{url}"
        session.redis.timeout = "2s"
        "#,
        file("secret", SECRET)
    );
    let config = Config::parse("gateway.toml", &text, Secrets::Load).unwrap();
    let metrics = Metrics::new().unwrap();
    metrics.register_store().unwrap();
    let sessions = Sessions::new(&config.session, Clock::system(), metrics, Peer::default(), 0);
    let running = sessions.clone();
    tokio::spawn(async move { running.run().await });
    let begun = Instant::now();
    while !sessions.was_reached() {
        assert!(begun.elapsed() < PATIENCE, "the store is not reached");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sessions.records().clone()
}

/// One server and a cluster, each with its URL.
fn stores() -> [(String, Vec<RedisServer>); 2] {
    let server = RedisServer::start();
    let nodes = cluster();
    let addresses: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    [
        (format!("redis://127.0.0.1:{}", server.port), vec![server]),
        (format!("redis+cluster://{}", addresses.join(",")), nodes),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn of_all_that_change_a_shared_record_one_succeeds() {
    for (url, _servers) in stores() {
        let gateways = [records(&url, &KEYS[..1]).await, records(&url, &KEYS[..1]).await];
        let [here, there] = &gateways;
        for round in 0..5 {
            let id = format!("id-{round}");
            let each = || (0..40).map(|number| &gateways[number % 2]);

            let inserted = each().map(|one| one.insert(KIND, &id, b"first", LIFE));
            let inserted =
                join_all(inserted).await.into_iter().filter(|one| *one.as_ref().unwrap());
            assert_eq!(inserted.count(), 1);

            let read = here.get(KIND, &id).await.unwrap().unwrap();
            assert_eq!(read.value.as_slice(), b"first");
            let replaced = each().map(|one| one.replace(KIND, &id, &read, b"second", LIFE));
            let replaced =
                join_all(replaced).await.into_iter().filter(|one| *one.as_ref().unwrap());
            assert_eq!(replaced.count(), 1);
            assert!(here.get(RecordKind::Scan, &id).await.unwrap().is_none());

            let taken = join_all(each().map(|one| one.take(KIND, &id))).await;
            let taken: Vec<_> = taken.into_iter().filter_map(Result::unwrap).collect();
            assert_eq!(taken.len(), 1);
            assert_eq!(taken[0].value.as_slice(), b"second");
            assert!(there.get(KIND, &id).await.unwrap().is_none());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_records_of_a_user_are_counted_in_one_step() {
    let user = |openid: &str| User {
        app_id: AppId::parse("wx1").unwrap(),
        openid: OpenId::parse(openid).unwrap(),
    };
    for (url, _servers) in stores() {
        let gateways = [records(&url, &KEYS[..1]).await, records(&url, &KEYS[..1]).await];
        let (alice, bob) = (user("o-alice"), user("o-bob"));
        let ids: Vec<_> = (0..60).map(|number| format!("id-{number}")).collect();
        let count = |at: usize, user| gateways[at % 2].count(KIND, user, 50, &ids[at], LIFE);
        let counted = join_all((0..60).map(|at| count(at, &alice))).await;
        let counted: Vec<_> = counted.into_iter().map(Result::unwrap).collect();
        let rejected: Vec<_> = counted.iter().filter_map(|one| one.err()).collect();
        assert_eq!(rejected.len(), 10);
        assert!(rejected.iter().all(|left| *left <= LIFE && *left > LIFE / 2), "{rejected:?}");
        assert_eq!(count(0, &bob).await.unwrap(), Ok(()));
        let first = counted.iter().position(Result::is_ok).unwrap();
        gateways[0].uncount(KIND, &alice, &ids[first]).await.unwrap();
        assert_eq!(count(first, &alice).await.unwrap(), Ok(()));
        assert!(gateways[1].count(KIND, &alice, 50, "another", LIFE).await.unwrap().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_record_is_sealed_expires_and_survives_a_change_of_the_seal_key() {
    let server = RedisServer::start();
    let url = format!("redis://127.0.0.1:{}", server.port);
    let old = records(&url, &KEYS[..1]).await;
    assert!(old.insert(KIND, "the-id", b"what-is-kept", LIFE).await.unwrap());
    let key = server.keys().into_iter().find(|key| key.starts_with("wxgate:o:t")).unwrap();
    assert!(!key.contains("the-id"));
    let stored: Vec<u8> = cmd("GET").arg(&key).query(&mut server.connection()).unwrap();
    assert!(!stored.windows(4).any(|window| window == b"what"));
    let left: u64 = cmd("PTTL").arg(&key).query(&mut server.connection()).unwrap();
    assert!((300_000..=600_000).contains(&left), "{left}");

    let without = records(&url, &KEYS[1..]).await;
    assert!(without.get(KIND, "the-id").await.unwrap().is_none());
    let rotated = records(&url, &[KEYS[1], KEYS[0]]).await;
    let read = rotated.get(KIND, "the-id").await.unwrap().unwrap();
    assert_eq!(read.value.as_slice(), b"what-is-kept");
    assert!(rotated.replace(KIND, "the-id", &read, b"sealed-anew", LIFE).await.unwrap());
    assert!(old.get(KIND, "the-id").await.unwrap().is_none());
    assert_eq!(without.take(KIND, "the-id").await.unwrap().unwrap().value.len(), 11);
    assert!(!server.keys().contains(&key));

    // A record cannot be moved to another id.
    assert!(old.insert(KIND, "here", b"record", LIFE).await.unwrap());
    let from = server.keys().into_iter().find(|key| key.starts_with("wxgate:o:t")).unwrap();
    assert!(old.insert(KIND, "there", b"other", LIFE).await.unwrap());
    let to = server.keys().into_iter().find(|key| key.starts_with("wxgate:o:t") && *key != from);
    cmd("COPY").arg(from).arg(to).arg("REPLACE").exec(&mut server.connection()).unwrap();
    assert!(old.get(KIND, "there").await.unwrap().is_none());
    assert!(old.insert(KIND, "brief", b"record", Duration::from_millis(1)).await.unwrap());
    until("the record expires", || {
        server.keys().iter().filter(|key| key.contains("o:t")).count() == 2
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_every_operation_on_a_record_is_an_error() {
    let mut server = RedisServer::start();
    let records = records(&format!("redis://127.0.0.1:{}", server.port), &KEYS[..1]).await;
    assert!(records.insert(KIND, "id", b"one", LIFE).await.unwrap());
    let read = records.get(KIND, "id").await.unwrap().unwrap();
    server.kill();
    let user = User { app_id: AppId::parse("wx1").unwrap(), openid: OpenId::parse("o1").unwrap() };
    assert!(records.get(KIND, "id").await.is_err());
    assert!(records.insert(KIND, "new", b"one", LIFE).await.is_err());
    assert!(records.take(KIND, "id").await.is_err());
    assert!(records.remove(KIND, "id").await.is_err());
    assert!(records.replace(KIND, "id", &read, b"two", LIFE).await.is_err());
    assert!(records.count(KIND, &user, 1, "id", LIFE).await.is_err());
    assert!(records.uncount(KIND, &user, "id").await.is_err());
}
