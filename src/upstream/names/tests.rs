use super::dns_server::{DnsServer, Reply, addresses};
use super::*;
use crate::config::{Balance, Ejection, Protocol, Retry, ServerEntry, UpstreamHost};

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn host(host: &str, port: u16) -> ServerAddress {
    ServerAddress::Host { host: host.to_owned(), port }
}

fn names(servers: &[ServerAddress], clock: &Clock, resolver: Arc<Resolver>) -> Names {
    let entry = |address: &ServerAddress| ServerEntry { address: address.clone(), weight: 1 };
    let section = Upstream {
        name: "shop".to_owned(),
        servers: servers.iter().map(entry).collect(),
        protocol: Protocol::default(),
        balance: Balance::default(),
        host: UpstreamHost::default(),
        buffer_body: 0,
        max_connections: 0,
        max_pending: 0,
        pending_timeout: seconds(1),
        connect_timeout: seconds(2),
        read_timeout: seconds(60),
        write_timeout: seconds(60),
        idle_timeout: None,
        tls: None,
        cookie_jar: false,
        health_check: None,
        ejection: Ejection::default(),
        retry: Retry::default(),
    };
    Names::new(&section, clock.clone(), resolver)
}

/// One name, its name server and a clock.
struct Fixture {
    server: DnsServer,
    clock: Clock,
    names: Names,
}

impl Fixture {
    async fn new(reply: Reply) -> Self {
        let (server, clock) = (DnsServer::start().await, Clock::manual());
        server.set("shop.internal", reply);
        let names = names(&[host("shop.internal", 3000)], &clock, server.resolver());
        Self { server, clock, names }
    }

    fn set(&self, reply: Reply) {
        self.server.set("shop.internal", reply);
    }

    /// The addresses, and in how many seconds they are looked up again.
    async fn resolve(&self) -> (Vec<String>, u64) {
        let (found, again) = self.names.resolve().await;
        let address = |(address, _): &(SocketAddr, usize)| address.to_string();
        (found.iter().map(address).collect(), again.unwrap().as_secs())
    }

    /// The same after some seconds.
    async fn resolve_after(&self, count: u64) -> (Vec<String>, u64) {
        self.clock.advance(seconds(count));
        self.resolve().await
    }
}

fn found(addresses: &[&str], again: u64) -> (Vec<String>, u64) {
    (addresses.iter().map(|address| (*address).to_owned()).collect(), again)
}

#[tokio::test]
async fn a_name_is_resolved_again_when_its_ttl_ends() {
    let name = Fixture::new(Reply::Addresses(addresses(&["10.0.0.2", "10.0.0.1"]), 30)).await;
    assert_eq!(name.resolve().await, found(&["10.0.0.1:3000", "10.0.0.2:3000"], 30));
    name.set(Reply::Addresses(addresses(&["10.0.0.3", "fd00::1"]), 20));
    assert_eq!(name.resolve_after(29).await, found(&["10.0.0.1:3000", "10.0.0.2:3000"], 1));
    assert_eq!(name.resolve_after(1).await, found(&["10.0.0.3:3000", "[fd00::1]:3000"], 20));
    name.set(Reply::Addresses(addresses(&["fd00::1"]), 86400));
    assert_eq!(name.resolve_after(20).await, found(&["[fd00::1]:3000"], 300));
}

#[tokio::test]
async fn a_name_with_a_ttl_of_zero_is_resolved_once_a_second() {
    let name = Fixture::new(Reply::Addresses(addresses(&["10.0.0.1"]), 0)).await;
    assert_eq!(name.resolve().await, found(&["10.0.0.1:3000"], 1));
    name.server.asked();
    for _ in 0..10 {
        assert_eq!(name.resolve().await, found(&["10.0.0.1:3000"], 1));
    }
    assert_eq!(name.server.asked(), [] as [&str; 0]);
    name.set(Reply::Addresses(addresses(&["10.0.0.2"]), 0));
    assert_eq!(name.resolve_after(1).await, found(&["10.0.0.2:3000"], 1));
}

#[tokio::test]
async fn the_last_addresses_are_used_for_five_minutes_whatever_the_failure_is() {
    for failure in [
        Reply::Empty,
        Reply::NoSuchName(Some(60)),
        Reply::NoSuchName(None),
        Reply::Alias("nowhere.internal", 5),
        Reply::Failure(hickory_resolver::proto::op::ResponseCode::ServFail),
    ] {
        let name = Fixture::new(Reply::Addresses(addresses(&["10.0.0.1"]), 5)).await;
        assert_eq!(name.resolve().await, found(&["10.0.0.1:3000"], 5));
        name.set(failure);
        let kept = name.resolve_after(5).await;
        assert_eq!(kept.0, ["10.0.0.1:3000"]);
        assert!((1..=30).contains(&kept.1), "{kept:?}");
        let last = name.resolve_after(299).await;
        assert_eq!(last, found(&["10.0.0.1:3000"], 1), "not later than the end");
        assert_eq!(name.resolve_after(1).await, found(&[], 1));
        // Then it resolves again, and fails again: five minutes begin anew.
        name.set(Reply::Addresses(addresses(&["10.0.0.2"]), 5));
        assert_eq!(name.resolve_after(1).await, found(&["10.0.0.2:3000"], 5));
        name.set(Reply::NoSuchName(None));
        assert_eq!(name.resolve_after(299).await.0, ["10.0.0.2:3000"]);
        assert_eq!(name.resolve_after(299).await.0, ["10.0.0.2:3000"]);
        assert_eq!(name.resolve_after(1).await.0, [] as [&str; 0]);
    }
}

#[tokio::test]
async fn a_failure_that_ends_in_time_changes_nothing() {
    let name = Fixture::new(Reply::Addresses(addresses(&["10.0.0.1"]), 5)).await;
    name.resolve().await;
    for _ in 0..3 {
        name.set(Reply::NoSuchName(Some(2)));
        assert_eq!(name.resolve_after(200).await, found(&["10.0.0.1:3000"], 2));
        name.set(Reply::Addresses(addresses(&["10.0.0.1"]), 5));
        assert_eq!(name.resolve_after(200).await, found(&["10.0.0.1:3000"], 5));
    }
}

#[tokio::test]
async fn a_name_server_that_does_not_respond_leaves_the_addresses_in_use() {
    let name = Fixture::new(Reply::Addresses(addresses(&["10.0.0.1"]), 5)).await;
    name.resolve().await;
    name.set(Reply::Silence);
    // Time jumps to the next timeout from here on.
    tokio::time::pause();
    name.clock.advance(seconds(5));
    let begin = tokio::time::Instant::now();
    assert_eq!(name.resolve().await, found(&["10.0.0.1:3000"], 0), "the look-up continues");
    assert_eq!(begin.elapsed().as_secs(), 1, "others wait for one second");
    let mut last = found(&[], 0);
    while last.1 == 0 {
        last = name.resolve().await;
        assert!(begin.elapsed() <= seconds(11));
    }
    assert_eq!(last, found(&["10.0.0.1:3000"], 1));
}

#[tokio::test]
async fn a_name_that_does_not_resolve_at_first_is_asked_for_every_second() {
    let name = Fixture::new(Reply::NoSuchName(Some(60))).await;
    assert_eq!(name.resolve().await, found(&[], 1));
    assert_eq!(name.resolve_after(1).await, found(&[], 1));
    name.set(Reply::Addresses(addresses(&["10.0.0.1"]), 60));
    assert_eq!(name.resolve_after(1).await, found(&["10.0.0.1:3000"], 60));
}

#[tokio::test]
async fn the_first_resolution_waits_for_a_slow_name_but_not_for_long() {
    let name = Fixture::new(Reply::Silence).await;
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    assert_eq!(name.resolve().await, found(&[], 0));
    assert!(begin.elapsed() >= PATIENCE.0 && begin.elapsed() < seconds(5));
}

#[tokio::test]
async fn addresses_come_with_their_entry_and_only_once() {
    let (server, clock) = (DnsServer::start().await, Clock::manual());
    server.set("shop.internal", Reply::Addresses(addresses(&["10.0.0.1", "10.0.0.2"]), 30));
    server.set("more.internal", Reply::Addresses(addresses(&["10.0.0.2", "10.0.0.3"]), 10));
    let literal: SocketAddr = "10.0.0.3:3000".parse().unwrap();
    let servers = [
        ServerAddress::Unix("/run/shop.sock".into()),
        host("shop.internal", 3000),
        ServerAddress::Socket(literal),
        host("more.internal", 3000),
        host("shop.internal", 3001),
    ];
    let names = names(&servers, &clock, server.resolver());
    let (found, again) = names.resolve().await;
    let found: Vec<_> =
        found.iter().map(|(address, entry)| (address.to_string(), *entry)).collect();
    let expected = [
        ("10.0.0.1:3000", 1),
        ("10.0.0.2:3000", 1),
        ("10.0.0.3:3000", 2),
        ("10.0.0.1:3001", 4),
        ("10.0.0.2:3001", 4),
    ];
    assert_eq!(found, expected.map(|(address, entry)| (address.to_owned(), entry)));
    assert_eq!(again, Some(seconds(10)));
    // One of the two names is due; the other is not asked for.
    server.asked();
    clock.advance(seconds(10));
    names.resolve().await;
    assert!(server.asked().iter().all(|asked| asked.starts_with("more.")));
}

#[tokio::test]
async fn a_reload_keeps_what_is_known_of_a_name() {
    let old = Fixture::new(Reply::Addresses(addresses(&["10.0.0.1"]), 30)).await;
    old.resolve().await;
    // No name server knows it any more.
    old.set(Reply::NoSuchName(None));
    old.clock.advance(seconds(100));
    old.resolve().await;
    old.clock.advance(seconds(100));
    let servers = [host("other.internal", 80), host("shop.internal", 3001)];
    let new = names(&servers, &old.clock, old.server.resolver());
    new.inherit(&old.names);
    let found = new.resolve().await.0;
    assert_eq!(found, [("10.0.0.1:3001".parse().unwrap(), 1)]);
    // The five minutes go on.
    old.clock.advance(seconds(200));
    assert_eq!(new.resolve().await.0, []);
}

#[tokio::test]
async fn without_names_nothing_is_ever_resolved() {
    let server = DnsServer::start().await;
    let address: SocketAddr = "[::1]:3000".parse().unwrap();
    let names = names(&[ServerAddress::Socket(address)], &Clock::manual(), server.resolver());
    assert_eq!(names.resolve().await, (vec![(address, 0)], None));
}

/// Returns what is logged by `done`.
fn logged(done: impl FnOnce()) -> String {
    let path = tempfile::NamedTempFile::new().unwrap();
    let lines = tracing_subscriber::fmt().with_writer(Arc::new(path.reopen().unwrap()));
    tracing::subscriber::with_default(lines.finish(), done);
    std::fs::read_to_string(path.path()).unwrap()
}

#[test]
fn a_name_that_does_not_resolve_is_logged_once_a_minute_and_once_when_it_does_again() {
    let clock = Clock::manual();
    let resolver = Arc::new(Resolver::with("/nonexistent", "/nonexistent", 53));
    let names = names(&[host("shop.internal", 80)], &clock, resolver);
    let find = || names.record(0, Ok((addresses(&["127.0.0.1"]), seconds(5))));
    let fail = || names.record(0, Err(LookUpError::NoSuchName(None)));
    assert_eq!(logged(find), "");
    let log = logged(|| {
        for _ in 0..100 {
            fail();
            assert_eq!(names.addresses().len(), 1, "the last addresses are kept");
        }
    });
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("there is no such name") && log.contains("kept=1"), "{log}");
    clock.advance(seconds(60));
    assert!(logged(fail).contains("suppressed=99"));
    let log = logged(|| (find(), find()).0);
    assert_eq!(log.matches("resolves again").count(), 1, "{log}");
    // A name that fails now and then must not flood the log either.
    let log = logged(|| {
        for _ in 0..100 {
            fail();
            find();
        }
    });
    assert_eq!(log, "");
    // The end of its addresses is an event of its own.
    fail();
    clock.advance(seconds(300));
    let log = logged(|| (fail(), fail()).0);
    assert_eq!(log.matches("no longer used").count(), 1, "{log}");
}
