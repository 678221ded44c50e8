//! Gateways that share a store: `cargo bench --bench shared_store > benches/SHARED_STORE.md`
//!
//! Memory and CPU of a real `redis-server` for each session and each operation, and, with simulated
//! users, how many requests need the store. Runs the gateway's session store without its HTTP side.
//! Takes one minute.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    reason = "a bench that cannot be set up has nothing to say"
)]

mod support;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::poll_immediate;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redis::cmd;
use tokio::task::JoinSet;
use wxgate::clock::Clock;
use wxgate::config::{Config, Secrets};
use wxgate::handover::peer::Peer;
use wxgate::identity::{AppId, Identity, OpenId, UnionId};
use wxgate::session::Sessions;
use wxgate::telemetry::metrics::Metrics;

use self::support::resident;

// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Sessions of users with one each.
const HELD: usize = 200_000;
/// Questions under way at once.
const AT_ONCE: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!(
        "# Gateways that share a store\n\n\
         Printed by `cargo bench --bench shared_store`. Each session has openid, unionid, app and idle\n\
         timeout. The store is one `redis-server` {} without replicas and persistence.\n",
        version()
    );
    costs().await;
    println!(
        "\n{USERS} simulated users open a page every {} s on average, at random times, with {REQUESTS} requests within\n\
         {} s. Gateways cache a session for {} s (`near_cache_ttl`). Counted for {} minutes of simulated\n\
         time. Store operations are lookups and writes of the last use.\n\n\
         | gateways | a user's requests go | served from the cache | store operations per request |\n\
         |---|---|---|---|",
        PAGE_EVERY.as_secs(),
        PAGE.as_secs(),
        BELIEVED.as_secs(),
        COUNTED.as_secs() / 60,
    );
    for gateways in [1, 2, 4, 8, 16] {
        simulate(gateways, false).await;
    }
    simulate(16, true).await;
}

async fn costs() {
    let server = Server::start();
    let one = Gateway::start(&server, "1m", &Clock::system()).await;
    let empty = (server.memory(), server.cpu(), resident(std::process::id()));
    let began = Instant::now();
    let digests = at_once(HELD, move |number| {
        let sessions = one.sessions.clone();
        async move { sessions.create(identity(number), CLIENT, None).await.unwrap().0.digest() }
    })
    .await;
    let took = began.elapsed();
    let share = |total: f64| total / HELD as f64;
    let row = |what: &str, figure: String| println!("| {what} | {figure} |");
    println!("| | |\n|---|---|");
    let held = server.memory() - empty.0;
    row(
        "memory in the store of a session, with its user's list",
        format!("{:.0} bytes", share(held)),
    );
    let known = resident(std::process::id()).saturating_sub(empty.2) as f64;
    let digests_take = size_of_val(&digests[0]) as f64;
    row(
        "memory in a gateway of a cached session",
        format!("{:.0} bytes", share(known) - digests_take),
    );
    let costs = |what: &str, before: f64, took: Duration| {
        row(
            &format!("CPU of the store for a {what}"),
            format!("{:.1} us", share(server.cpu() - before) * 1e6),
        );
        row(
            &format!("{what}s per second, {AT_ONCE} at once, gateway and store on one machine"),
            format!("{:.0}", 1.0 / share(took.as_secs_f64())),
        );
    };
    costs("login", empty.1, took);

    let other = Gateway::start(&server, "1m", &Clock::system()).await;
    let digests = Arc::new(digests);
    let (before, began) = (server.cpu(), Instant::now());
    let (sessions, asked) = (other.sessions.clone(), digests.clone());
    let found = at_once(HELD, move |number| {
        let (sessions, digest) = (sessions.clone(), asked[number]);
        async move { sessions.get(&digest).await.unwrap().is_some() }
    })
    .await;
    assert!(found.iter().all(|is_found| *is_found));
    costs("lookup", before, began.elapsed());

    let (before, began) = (server.cpu(), Instant::now());
    let sessions = other.sessions.clone();
    at_once(HELD, move |number| {
        let (sessions, digest) = (sessions.clone(), digests[number]);
        async move { sessions.revoke(&digest).await.unwrap() }
    })
    .await;
    costs("logout", before, began.elapsed());
}

/// Does something so often, [`AT_ONCE`] at once, and returns the outcomes in order.
async fn at_once<T: Send + 'static, F: Future<Output = T> + Send>(
    times: usize,
    what: impl Fn(usize) -> F + Send + Sync + 'static,
) -> Vec<T> {
    let (next, what) = (Arc::new(AtomicUsize::new(0)), Arc::new(what));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (next, what) = (next.clone(), what.clone());
        workers.spawn(async move {
            let mut outcomes = Vec::with_capacity(times / AT_ONCE);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= times {
                    return outcomes;
                }
                outcomes.push((number, what(number).await));
            }
        });
    }
    let mut outcomes = workers.join_all().await.into_iter().flatten().collect::<Vec<_>>();
    outcomes.sort_by_key(|(number, _)| *number);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

const USERS: usize = 3000;
const REQUESTS: usize = 5;
const PAGE_EVERY: Duration = Duration::from_secs(30);
const PAGE: Duration = Duration::from_secs(2);
const BELIEVED: Duration = Duration::from_secs(5);
const WARMING: Duration = Duration::from_secs(120);
const COUNTED: Duration = Duration::from_secs(240);

/// Users whose time is the clock's, and passes as fast as their requests are answered.
async fn simulate(gateways: usize, is_sticky: bool) {
    let server = Server::start();
    let clock = Clock::manual();
    let mut fleet = Vec::new();
    for _ in 0..gateways {
        fleet.push(Gateway::start(&server, &format!("{}s", BELIEVED.as_secs()), &clock).await);
    }
    let mut random = SmallRng::seed_from_u64(1);
    let mut digests = Vec::new();
    // What happens next: when, in milliseconds, to whom, and whether it opens a page.
    let mut events = BinaryHeap::new();
    for user in 0..USERS {
        let at = &fleet[user % gateways].sessions;
        digests.push(at.create(identity(user), CLIENT, None).await.unwrap().0.digest());
        events.push(Reverse((pause(&mut random), user, true)));
    }
    let (warm, end) = (WARMING.as_millis(), (WARMING + COUNTED).as_millis());
    let (mut now, mut requests, mut hits) = (0, 0_usize, 0_usize);
    let mut before = None;
    while let Some(Reverse((when, user, opens))) = events.pop() {
        if when > end {
            break;
        }
        clock.advance(Duration::from_millis(u64::try_from(when - now).unwrap()));
        now = when;
        let is_counted = now > warm;
        if is_counted && before.is_none() {
            before = Some(questions(&fleet));
        }
        if opens {
            for _ in 0..REQUESTS {
                let within = random.random_range(0..PAGE.as_millis());
                events.push(Reverse((now + within, user, false)));
            }
            events.push(Reverse((now + pause(&mut random), user, true)));
            continue;
        }
        let at = if is_sticky { user % gateways } else { random.random_range(0..gateways) };
        let mut look_up = pin!(fleet[at].sessions.get(&digests[user]));
        // Only the store is waited for.
        let (found, is_hit) = match poll_immediate(&mut look_up).await {
            Some(found) => (found, true),
            None => (look_up.await, false),
        };
        assert!(found.unwrap().is_some());
        if is_counted {
            requests += 1;
            hits += usize::from(is_hit);
        }
        // The write of a last use goes on by itself.
        tokio::task::yield_now().await;
    }
    let share = |count: f64| count / requests as f64;
    println!(
        "| {gateways} | {} | {:.0} % | {:.2} |",
        if is_sticky { "to the same gateway" } else { "to any gateway" },
        share(hits as f64) * 100.0,
        share(questions(&fleet) - before.unwrap()),
    );
}

/// Until a user opens the next page, in milliseconds: exponential.
fn pause(random: &mut SmallRng) -> u128 {
    let share: f64 = random.random_range(f64::MIN_POSITIVE..1.0);
    PAGE_EVERY.mul_f64(-share.ln()).as_millis()
}

fn questions(fleet: &[Gateway]) -> f64 {
    fleet.iter().map(Gateway::questions).sum()
}

fn identity(number: usize) -> Identity {
    Identity {
        app_id: AppId::parse("wx0123456789abcdef").unwrap(),
        openid: OpenId::parse(&format!("oAbCdEfGhIjKlMnOpQr{number:09}")).unwrap(),
        unionid: UnionId::parse(&format!("uAbCdEfGhIjKlMnOpQr{number:09}")),
        user_id: None,
    }
}

/// The part of a gateway that keeps sessions.
struct Gateway {
    sessions: Sessions,
    metrics: Arc<Metrics>,
}

impl Gateway {
    async fn start(server: &Server, believed: &str, clock: &Clock) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let seal_key = directory.path().join("seal");
        std::fs::write(&seal_key, "5ea1".repeat(16)).unwrap();
        let text = format!(
            r#"
            server.listen = "127.0.0.1:1"
            app = [{{ app_id = "wx0123456789abcdef", app_secret = {{ file = "{key}" }} }}]
            upstream = [{{ name = "u", servers = ["127.0.0.1:1"] }}]
            route = [{{ path = "/", upstream = "u", auth = "required" }}]
            [session]
            seal_key = {{ file = "{key}" }}
            [session.redis]
            url = "redis://127.0.0.1:{}"
            timeout = "10s"
            near_cache_ttl = "{believed}"
            "#,
            server.port,
            key = seal_key.display(),
        );
        let config = Config::parse("bench", &text, Secrets::Load).unwrap();
        let metrics = Metrics::new().unwrap();
        metrics.register_store().unwrap();
        let sessions =
            Sessions::new(&config.session, clock.clone(), metrics.clone(), Peer::default(), 0);
        let running = sessions.clone();
        tokio::spawn(async move { running.run().await });
        while !sessions.was_reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { sessions, metrics }
    }

    /// What it has asked the store.
    fn questions(&self) -> f64 {
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let name = "wxgate_store_duration_seconds_count ";
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
    }
}

/// A real one, which ends with the bench.
struct Server {
    port: u16,
    child: Child,
}

impl Server {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is there");
        let server = Self { port, child };
        while server.connection().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    fn connection(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        client.get_connection().ok()
    }

    fn info(&self, section: &str, field: &str) -> f64 {
        let info: String = cmd("INFO").arg(section).query(&mut self.connection().unwrap()).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().parse().unwrap()
    }

    /// Bytes.
    fn memory(&self) -> f64 {
        self.info("memory", "used_memory")
    }

    /// Seconds, the system's included.
    fn cpu(&self) -> f64 {
        self.info("cpu", "used_cpu_user") + self.info("cpu", "used_cpu_sys")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn version() -> String {
    let output = Command::new("redis-server").arg("--version").output();
    let text = String::from_utf8(output.expect("redis-server is there").stdout).unwrap();
    text.split("v=").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}
