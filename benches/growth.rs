//! Memory and lookup time by number of sessions: `cargo bench --bench growth > benches/GROWTH.md`
//!
//! Memory and the time of a lookup with ten thousand, a million and ten million sessions, each
//! in a process of its own; memory of ten thousand idle connections; the cost of a login.
//! Gateway and WeChat are processes of their own. Needs 6 GB of memory, and `ulimit -n 20000`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    reason = "a bench that cannot be set up has nothing to say"
)]

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Instant;

use tokio::task::JoinSet;
use wxgate::clock::Clock;
use wxgate::config::{Config, Secrets};
use wxgate::handover::peer::Peer;
use wxgate::identity::{AppId, Identity, OpenId, UnionId};
use wxgate::session::Sessions;
use wxgate::telemetry::metrics::Metrics;

use self::support::{Client, Process, cpu, hello, quantile, resident, start, start_gateway};

// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SIZES: [usize; 3] = [10_000, 1_000_000, 10_000_000];
const ROUNDS: usize = 5;
const LOOK_UPS: usize = 200_000;
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, word, size] = &words[..]
        && word == "hold"
    {
        return hold(size.parse().unwrap()).await;
    }
    println!(
        "# Memory and lookup time by number of sessions\n\n\
         Printed by `cargo bench --bench growth`. Each session has openid, unionid, app and idle timeout.\n\
         {LOOK_UPS} lookups in random order, {ROUNDS} rounds, median (minimum to maximum). Every 64th lookup also\n\
         does the book-keeping of the store for the lookups before it; this is the 99th percentile. The\n\
         last column compares two measurements of the same sessions.\n\n\
         | sessions | bytes each | lookup, ns: median | 99th percentile | second / first measurement |\n\
         |---|---|---|---|---|"
    );
    for size in SIZES {
        let program = std::env::current_exe().unwrap();
        let output = Command::new(program).args(["hold", &size.to_string()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        print!("{}", String::from_utf8(output.stdout).unwrap());
    }
    serve().await;
}

/// Holds so many sessions, and looks them up in an order that nobody can foresee.
async fn hold(size: usize) {
    let text = include_str!("../config/gateway.toml");
    let mut config = Config::parse("bench", text, Secrets::Ignore).unwrap();
    config.session.capacity = 20_000_000;
    let sessions = Sessions::new(
        &config.session,
        Clock::system(),
        Metrics::new().unwrap(),
        Peer::default(),
        0,
    );
    let app_id = AppId::parse("wx0123456789abcdef").unwrap();
    let identity = |number: usize| Identity {
        app_id: app_id.clone(),
        openid: OpenId::parse(&format!("oAbCdEfGhIjKlMnOpQr{number:09}")).unwrap(),
        unionid: UnionId::parse(&format!("uAbCdEfGhIjKlMnOpQr{number:09}")),
        user_id: None,
    };
    // In memory before what is measured.
    let mut digests =
        vec![sessions.create(identity(0), CLIENT, None).await.unwrap().0.digest(); size];
    let before = resident(std::process::id());
    for (number, digest) in digests.iter_mut().enumerate() {
        *digest = sessions.create(identity(number), CLIENT, None).await.unwrap().0.digest();
        if number % 1000 == 0 {
            sessions.maintain();
        }
    }
    sessions.maintain();
    let each = resident(std::process::id()).saturating_sub(before) as f64 / size as f64;

    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut rounds = Vec::new();
    for _ in 0..2 * ROUNDS {
        let mut times = Vec::with_capacity(LOOK_UPS);
        for _ in 0..LOOK_UPS {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let digest = &digests[usize::try_from(state).unwrap() % size];
            let began = Instant::now();
            let found = sessions.get(digest).await.unwrap();
            times.push(began.elapsed().as_nanos() as f64);
            assert!(found.is_some());
        }
        times.sort_by(f64::total_cmp);
        rounds.push((quantile(&times, 0.5), quantile(&times, 0.99)));
    }
    let (first, second) = rounds.split_at(ROUNDS);
    let sorted = |values: &mut dyn Iterator<Item = f64>| {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let p50 = sorted(&mut first.iter().map(|(p50, _)| *p50));
    let p99 = sorted(&mut first.iter().map(|(_, p99)| *p99));
    let same = sorted(&mut first.iter().zip(second).map(|((_, a), (_, b))| b / a));
    println!(
        "| {size} | {each:.0} | {:.0} | {:.0} ({:.0} to {:.0}) | {:.2} ({:.2} to {:.2}) |",
        quantile(&p50, 0.5),
        quantile(&p99, 0.5),
        p99[0],
        p99[ROUNDS - 1],
        quantile(&same, 0.5),
        same[0],
        same[ROUNDS - 1],
    );
}

const CONNECTIONS: usize = 10_000;
const LOGINS: usize = 20_000;
const REQUESTS: usize = 20_000;
const CLIENTS: usize = 32;

/// What connections and logins cost a gateway.
async fn serve() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let (_wechat, wechat) =
        start(&["sandbox", "--listen", "127.0.0.1:0", "--user-quota", "1000000"]);
    let service = hello().await;
    let keys = r#"
        login = { rate_per_app = "off" }
        limits = { max_requests_per_connection = 1000000, max_connections = 11000, idle_timeout = "10m" }
    "#;
    let (process, gateway) = start_gateway(wechat, service, keys);

    // The pool of connections to the service is there before what is measured.
    Client::connect(gateway, "").await.round(REQUESTS).await;
    let before = resident(process.id());
    let mut idle = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut client = Client::connect(gateway, "").await;
        client.round(1).await;
        idle.push(client);
    }
    let each = resident(process.id()).saturating_sub(before) / CONNECTIONS;
    println!("\n| gateway | |\n|---|---|");
    println!(
        "| memory of an idle connection: {CONNECTIONS} connections, after one request each | {each} bytes |"
    );
    drop(idle);

    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let of_request = timed(&process, REQUESTS, |_| client.get(format!("http://{gateway}/"))).await;
    let of_login = timed(&process, LOGINS, |number| {
        let body = format!("{{\"code\":\"user-u{number}-1\"}}");
        client.post(format!("http://{gateway}/login")).body(body)
    })
    .await;
    for (what, (cpu, rate)) in [("proxied request", of_request), ("login", of_login)] {
        println!("| CPU of a {what} | {cpu:.1} us |");
        println!(
            "| {what}s per second, {CLIENTS} clients, everything on the same cores | {rate:.0} |"
        );
    }
}

/// CPU of each in microseconds, and how many in a second.
async fn timed(
    process: &Process,
    count: usize,
    request: impl Fn(usize) -> reqwest::RequestBuilder,
) -> (f64, f64) {
    let mut clients = JoinSet::new();
    let (before, began) = (cpu(process.id()), Instant::now());
    for client in 0..CLIENTS {
        let requests: Vec<_> = (client..count).step_by(CLIENTS).map(&request).collect();
        clients.spawn(async move {
            for request in requests {
                let answer = request.send().await.unwrap();
                assert!(answer.status().is_success());
                answer.bytes().await.unwrap();
            }
        });
    }
    clients.join_all().await;
    let used = cpu(process.id()) - before;
    (used / count as f64 * 1e6, count as f64 / began.elapsed().as_secs_f64())
}
