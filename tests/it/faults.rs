//! Gateways that share a store, under load, while the store fails.
//!
//! Users log in, send requests and log out at any gateway. Every request is recorded, and the whole
//! history is checked afterwards (`history.rs`).

mod fleet;
mod history;
mod traffic;

use std::time::{Duration, Instant};

use redis::cmd;
use tokio::time::sleep;

use self::fleet::Fleet;
use self::history::{Conditions, Verdict, judge, quantile};
use self::traffic::Traffic;
use crate::harness::PATIENCE;
use crate::harness::fault_proxy::{FaultProxy, Way};
use crate::harness::redis::{
    RedisServer, SENTINELS_ADDRESS, cluster, is_well, replicated, sentinels,
};

/// `session.redis.near_cache_ttl`
const BOUND: Duration = Duration::from_secs(1);

/// The address that replicas connect from, so that they can be cut off.
const REPLICAS_ADDRESS: &str = "127.0.0.2";

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// A single server stops responding, and continues later.
    Stopped,
    /// Replies of a single server come later than the timeout.
    Slow,
    /// The server is unreachable.
    Cut,
    /// One gateway cannot reach the server, without an error.
    OneCutOff,
    /// The primary is killed, and Sentinels promote another one.
    PrimaryKilled,
    /// The primary hangs until another one is promoted, and comes back.
    PrimaryStopped,
    /// One gateway is cut off together with a primary that the others have replaced.
    SplitBrain,
    /// The primary is killed, and its replicas lack its last second.
    ReplicasBehind,
    /// A node of a cluster is killed, and its replica is promoted.
    NodeKilled,
    /// A node hangs until its replica is promoted, and comes back.
    NodeStopped,
}

const ALL: [Fault; 10] = [
    Fault::Stopped,
    Fault::Slow,
    Fault::Cut,
    Fault::OneCutOff,
    Fault::PrimaryKilled,
    Fault::PrimaryStopped,
    Fault::SplitBrain,
    Fault::ReplicasBehind,
    Fault::NodeKilled,
    Fault::NodeStopped,
];

/// How much is done, and for how long.
#[derive(Clone, Copy)]
struct Load {
    gateways: usize,
    changing: usize,
    steady: usize,
    before: Duration,
    after: Duration,
    /// TOML.
    more: &'static str,
}

/// For a busy machine: assertions under this load do not depend on time.
const LIGHT: Load = Load {
    gateways: 2,
    changing: 12,
    steady: 1,
    before: Duration::from_millis(1000),
    after: Duration::from_millis(1500),
    more: "",
};

/// Runs a fault, from its `begin` to its end, under load.
async fn run(
    urls: &[String],
    load: Load,
    is_lossy: bool,
    fault: impl AsyncFnOnce(),
) -> (Verdict, Duration) {
    let ttl = format!("session.redis.near_cache_ttl = \"{}ms\"\n", BOUND.as_millis());
    let fleet = Fleet::start(urls, &(ttl + load.more)).await;
    let traffic = Traffic::start(fleet.addresses(), BOUND, load.changing, load.steady);
    sleep(load.before).await;
    let begun = Instant::now();
    fault().await;
    let back = Instant::now();
    sleep(load.after.max(Duration::from_secs(2))).await;
    sleep(load.after).await;
    let history = traffic.stop().await;
    let faulty = (begun, back + Duration::from_secs(2));
    let started = begun - load.before;
    // A replica lags by at most a second.
    let lossy = is_lossy.then(|| (begun - Duration::from_secs(1), faulty.1));
    (judge(&history, &Conditions { bound: BOUND, started, faulty, lossy }), back - begun)
}

async fn suffer(fault: Fault, load: Load) -> (Verdict, Duration) {
    match fault {
        Fault::Stopped | Fault::Slow | Fault::Cut | Fault::OneCutOff => single(fault, load).await,
        Fault::PrimaryKilled | Fault::PrimaryStopped => failover(fault, load).await,
        Fault::SplitBrain | Fault::ReplicasBehind => apart(fault, load).await,
        Fault::NodeKilled | Fault::NodeStopped => shard(fault, load).await,
    }
}

/// How long a fault lasts that the test ends.
const LASTS: Duration = Duration::from_secs(2);

async fn single(fault: Fault, load: Load) -> (Verdict, Duration) {
    let server = RedisServer::start();
    let mut proxies = Vec::new();
    for _ in 0..load.gateways {
        proxies.push(FaultProxy::to(server.port).await);
    }
    let urls: Vec<_> =
        proxies.iter().map(|proxy| format!("redis://127.0.0.1:{}", proxy.port)).collect();
    run(&urls, load, false, async || {
        let set = |proxies: &[FaultProxy], way| proxies.iter().for_each(|proxy| proxy.set(way));
        match fault {
            Fault::Slow => set(&proxies, Way::Slow(Duration::from_millis(600))),
            Fault::Cut => set(&proxies, Way::Cut),
            Fault::OneCutOff => set(&proxies[..1], Way::Silent),
            _ => server.stop(),
        }
        sleep(LASTS).await;
        server.go_on();
        set(&proxies, Way::Open);
    })
    .await
}

fn sentinel_url(ports: impl Iterator<Item = u16>) -> String {
    let addresses: Vec<_> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
    format!("redis+sentinel://{}/main", addresses.join(","))
}

/// Waits until most Sentinels name another primary than the one at this port, and it responds.
async fn until_replaced(sentinels: &[RedisServer; 3], port: u16) {
    let begun = Instant::now();
    let named = |sentinel: &RedisServer| {
        let named = cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg("main")
            .query::<(String, u16)>(&mut sentinel.connection());
        named.is_ok_and(|(_, named)| {
            let primary = redis::Client::open(format!("redis://127.0.0.1:{named}")).unwrap();
            named != port
                && primary.get_connection().is_ok_and(|mut primary| {
                    let role = cmd("ROLE").query::<redis::Value>(&mut primary);
                    role.is_ok_and(|role| format!("{role:?}").contains("master"))
                })
        })
    };
    while sentinels.iter().filter(|sentinel| named(sentinel)).count() < 2 {
        assert!(begun.elapsed() < PATIENCE, "no failover in time");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn failover(fault: Fault, load: Load) -> (Verdict, Duration) {
    let (mut primary, _replicas, sentinels) = replicated();
    let url = sentinel_url(sentinels.iter().map(|sentinel| sentinel.port));
    let port = primary.port;
    run(&vec![url; load.gateways], load, true, async || {
        match fault {
            Fault::PrimaryKilled => primary.kill(),
            _ => primary.stop(),
        }
        until_replaced(&sentinels, port).await;
        if matches!(fault, Fault::PrimaryStopped) {
            primary.go_on();
        }
    })
    .await
}

/// Replicas and Sentinels on one side, the primary on the other; the first gateway stays with
/// it if the Sentinels are cut off, too.
async fn apart(fault: Fault, load: Load) -> (Verdict, Duration) {
    let mut primary = RedisServer::start();
    let door = FaultProxy::to(primary.port).await;
    let replicas = [(); 2].map(|()| RedisServer::replica_through(door.port, REPLICAS_ADDRESS));
    let sentinels = sentinels(door.port, replicas.len());
    let mut ways = Vec::new();
    for sentinel in &sentinels {
        ways.push(FaultProxy::to(sentinel.port).await);
    }
    let mut urls = vec![sentinel_url(ways.iter().map(|way| way.port))];
    let direct = sentinel_url(sentinels.iter().map(|sentinel| sentinel.port));
    urls.resize(load.gateways, direct);
    run(&urls, load, true, async || {
        if matches!(fault, Fault::ReplicasBehind) {
            door.set_from(REPLICAS_ADDRESS, Way::Silent);
            sleep(BOUND).await;
            primary.kill();
            until_replaced(&sentinels, door.port).await;
            return;
        }
        let set = |way: Way| {
            door.set_from(REPLICAS_ADDRESS, way);
            door.set_from(SENTINELS_ADDRESS, way);
            ways.iter().for_each(|one| one.set(way));
        };
        set(Way::Silent);
        until_replaced(&sentinels, door.port).await;
        // Long enough to cache what is no longer true.
        sleep(LASTS).await;
        set(Way::Open);
    })
    .await
}

async fn shard(fault: Fault, load: Load) -> (Verdict, Duration) {
    let mut nodes = cluster();
    let addresses: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let url = format!("redis+cluster://{}", addresses.join(","));
    run(&vec![url; load.gateways], load, true, async || {
        match fault {
            Fault::NodeKilled => nodes[0].kill(),
            _ => nodes[0].stop(),
        }
        let begun = Instant::now();
        let is_over = |nodes: &[RedisServer]| {
            let roles = nodes[1..].iter().filter(|node| is_well(node)).filter(|node| {
                let role = cmd("ROLE").query::<redis::Value>(&mut node.connection());
                role.is_ok_and(|role| format!("{role:?}").contains("master"))
            });
            roles.count() == 3
        };
        while !is_over(&nodes) {
            assert!(begun.elapsed() < PATIENCE, "no failover in time");
            sleep(Duration::from_millis(20)).await;
        }
        if matches!(fault, Fault::NodeStopped) {
            nodes[0].go_on();
        }
    })
    .await
}

/// What holds however slow the machine is.
fn assert_safe(verdict: &Verdict) {
    assert!(verdict.logins > 12 && verdict.logouts > 5 && verdict.requests > 200, "{verdict:?}");
    assert_eq!(verdict.revived, [""; 0]);
    assert_eq!(verdict.lost, [""; 0]);
    assert!(verdict.unavailable > 0, "the fault had no effect");
}

/// `cargo test --release --test it figures_of_faults -- --ignored --nocapture`: six minutes. What
/// it prints is kept in `benches/FAULTS.md`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes six minutes, and its figures mean nothing on a busy machine"]
async fn figures_of_faults() {
    const HEAVY: Load = Load {
        gateways: 0,
        changing: 16,
        steady: 2,
        before: Duration::from_secs(5),
        after: Duration::from_secs(3),
        more: "",
    };
    println!(
        "| fault | gateways | it lasted, s | logins | logouts | other requests | 503 | 503 out of place | \
         hits not let in | p99 of hits, ms: before (its halves) | in the fault | latest 200 after an \
         acknowledged logout, ms | undone logouts | lost logins | of the declared time |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for gateways in [2, 4] {
        for fault in ALL {
            let (verdict, lasted) = suffer(fault, Load { gateways, ..HEAVY }).await;
            let p99 = |hits: &[Duration]| quantile(hits, 0.99);
            let [one, other] = &verdict.hits_before;
            println!(
                "| {fault:?} | {gateways} | {:.1} | {} | {} | {} | {} | {} | {} | {:.2}, {:.2} | {:.2} | {} | {} | {} | {} |",
                lasted.as_secs_f64(),
                verdict.logins,
                verdict.logouts,
                verdict.requests,
                verdict.unavailable,
                verdict.out_of_place.len(),
                verdict.missed_hits.len(),
                p99(one),
                p99(other),
                p99(&verdict.hits_during),
                verdict.longest_afterlife.as_millis(),
                verdict.revived.len(),
                verdict.lost.len(),
                verdict.declared_lost,
            );
            for one in verdict.out_of_place.iter().chain(&verdict.missed_hits).take(5) {
                println!("{one}");
            }
            assert_safe(&verdict);
        }
    }
}

macro_rules! faults {
    ($($name:ident: $fault:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            assert_safe(&suffer($fault, LIGHT).await.0);
        })*
    };
}

faults! {
    no_end_is_undone_and_no_login_lost_while_the_server_stands_still: Fault::Stopped;
    no_end_is_undone_and_no_login_lost_while_the_server_is_slow: Fault::Slow;
    no_end_is_undone_and_no_login_lost_while_the_server_is_out_of_reach: Fault::Cut;
    no_end_is_undone_and_no_login_lost_while_one_gateway_is_cut_off: Fault::OneCutOff;
    no_end_is_undone_by_a_failover: Fault::PrimaryKilled;
    no_end_is_undone_by_a_primary_that_comes_back: Fault::PrimaryStopped;
    no_end_is_undone_by_a_primary_that_was_replaced: Fault::SplitBrain;
    no_end_is_undone_by_replicas_that_are_behind: Fault::ReplicasBehind;
    no_end_is_undone_by_the_loss_of_a_node: Fault::NodeKilled;
    no_end_is_undone_by_a_node_that_comes_back: Fault::NodeStopped;
}
