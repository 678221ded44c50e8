//! Whether proxied requests notice what WeChat does: `cargo bench --bench misbehaving_wechat`
//!
//! One gateway, one keep-alive client. Rounds of requests alternate between quiet and a
//! hundred logins a second that WeChat hangs on, drops, or answers with nonsense, or where it
//! has a wrong certificate or is not there; each pair gives a ratio. Pairs of quiet rounds show
//! how far two equal rounds lie apart here, and the same logins with a good WeChat what logins
//! take by themselves. All of it once with a call for every login, and once with the breaker as
//! it is by default.

#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to say")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use self::support::{Client, Gateway, quantile, resident, spread};

const REQUESTS: usize = 3000;
const PAIRS: usize = 10;

/// What WeChat does, the answer that a login must get, and within how long.
const MISBEHAVIOURS: [(&str, &str, Duration); 8] = [
    // Not at all.
    ("user", "200", Duration::from_secs(2)),
    // The timeout is five seconds.
    ("hang", "504", Duration::from_secs(7)),
    ("drop", "504", Duration::from_secs(2)),
    ("status-500", "504", Duration::from_secs(2)),
    ("garbage", "502", Duration::from_secs(2)),
    ("half", "502", Duration::from_secs(2)),
    ("huge", "502", Duration::from_secs(2)),
    ("status-302", "502", Duration::from_secs(2)),
];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    for keys in ["breaker_failures = 0", ""] {
        println!("wechat = {{ {keys} }}");
        measure(keys).await;
    }
    println!("({PAIRS} pairs of {REQUESTS} requests each)");
}

async fn measure(keys: &str) {
    let gateway = Gateway::start_with(keys).await;
    let mut client = gateway.client().await;
    client.round(REQUESTS).await;

    let mut equal = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let (first, second) = (round(&mut client).await, round(&mut client).await);
        equal.0.push(second.0 / first.0);
        equal.1.push(second.1 / first.1);
    }
    println!("quiet / quiet: p50 {}", spread(&mut equal.0));
    println!("               p99 {}", spread(&mut equal.1));
    for (kind, status, limit) in MISBEHAVIOURS {
        compare(&gateway, &mut client, kind, status, limit).await;
    }
    let impostor = format!("https://{}", impostor().await);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (kind, status, base_url) in
        [("wrong certificate", "502", impostor), ("nothing", "503", format!("http://{nobody}"))]
    {
        let gateway = Gateway::start_at(Some(&base_url), keys).await;
        let mut client = Client::connect(gateway.address, "").await;
        client.round(REQUESTS).await;
        compare(&gateway, &mut client, kind, status, Duration::from_secs(2)).await;
    }
}

/// Rounds with and without a storm, in turn.
async fn compare(
    gateway: &Gateway,
    client: &mut Client,
    kind: &'static str,
    status: &'static str,
    limit: Duration,
) {
    let (memory, calls) = (resident(std::process::id()), gateway.sandbox.exchanges());
    let mut ratios = (Vec::new(), Vec::new());
    let mut logins = 0;
    for pair in 0..PAIRS {
        let quiet = round(client).await;
        let storm = tokio::spawn(storm(gateway.address, kind, status, limit, pair));
        // The storm has begun.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let stormy = round(client).await;
        ratios.0.push(stormy.0 / quiet.0);
        ratios.1.push(stormy.1 / quiet.1);
        logins += storm.await.unwrap();
    }
    let calls = gateway.sandbox.exchanges() - calls;
    let grown = resident(std::process::id()).saturating_sub(memory) >> 20;
    println!("{kind} / quiet: p50 {}", spread(&mut ratios.0));
    println!("    p99 {}; {logins} logins, {calls} calls, {grown} MiB more", spread(&mut ratios.1));
}

/// Somebody who says to be WeChat, with a certificate of their own; where they listen.
async fn impostor() -> SocketAddr {
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
        }
    });
    address
}

/// Median and 99th percentile of a round.
async fn round(client: &mut Client) -> (f64, f64) {
    let times = client.round(REQUESTS).await;
    (quantile(&times, 0.5), quantile(&times, 0.99))
}

/// A hundred logins a second for one second, each of which must be answered as documented;
/// how many there were.
async fn storm(
    gateway: SocketAddr,
    kind: &'static str,
    status: &'static str,
    limit: Duration,
    pair: usize,
) -> u64 {
    let mut ticks = interval(Duration::from_millis(10));
    let mut logins = JoinSet::new();
    for number in 0..100 {
        ticks.tick().await;
        logins.spawn(async move {
            let code = format!("{kind}-{pair}-{number}").replace(' ', "-");
            let body = format!("{{\"code\":\"{code}\"}}");
            let head = format!(
                "POST /login HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let began = Instant::now();
            let mut stream = TcpStream::connect(gateway).await.unwrap();
            stream.write_all((head + &body).as_bytes()).await.unwrap();
            let mut answer = String::new();
            timeout(limit, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
            // While the breaker is open nobody is asked.
            let is_right = [status, "503"].iter().any(|status| answer.get(9..12) == Some(*status));
            assert!(is_right, "{kind}: {answer}");
            assert!(began.elapsed() < limit);
        });
    }
    let count = logins.len() as u64;
    logins.join_all().await;
    count
}
