//! Everybody logs in at once: `cargo bench --bench login_storm`
//!
//! Ten thousand phones log in together, as after a restart, against a WeChat that takes
//! 200 ms for each exchange. Each obeys `Retry-After`. All must be in within a minute, and
//! WeChat never asked by more than `wechat.max_in_flight` at once. Gateway and WeChat are
//! processes of their own; meanwhile one client asks for something proxied.

#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to say")]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use self::support::{Client, hello, quantile, resident, start, start_gateway};

const PHONES: usize = 10_000;
const REQUESTS: usize = 2000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let (_wechat, wechat) = start(&["sandbox", "--listen", "127.0.0.1:0", "--latency", "200ms"]);
    let service = hello().await;
    let keys = "limits = { max_requests_per_connection = 1000000, max_connections = 15000 }";
    let (gateway_process, gateway) = start_gateway(wechat, service, keys);

    let mut client = Client::connect(gateway, "").await;
    client.round(REQUESTS).await;
    let quiet = client.round(REQUESTS).await;
    let memory = resident(gateway_process.id());

    let began = Instant::now();
    let mut phones = JoinSet::new();
    for number in 0..PHONES {
        phones.spawn(async move {
            let mut tries = 1;
            while let Some(wait) = log_in(gateway, number, tries).await {
                tries += 1;
                tokio::time::sleep(wait).await;
            }
            (began.elapsed().as_secs_f64(), tries)
        });
    }
    let stormy = client.round(REQUESTS).await;
    let logged_in = phones.join_all().await;
    let mut times: Vec<f64> = logged_in.iter().map(|(time, _)| *time).collect();
    times.sort_by(f64::total_cmp);
    let tries: usize = logged_in.iter().map(|(_, tries)| tries).sum();
    let stats = reqwest::Client::builder().no_proxy().build().unwrap();
    let stats = stats.get(format!("http://{wechat}/sandbox/stats")).send().await.unwrap();

    println!("all {PHONES} in after:      {:.1} s", times.last().unwrap());
    println!("half of them after:      {:.1} s", quantile(&times, 0.5));
    println!("tries of a phone:        {}.{:02}", tries / PHONES, tries % PHONES / 100);
    println!("WeChat says:             {}", stats.text().await.unwrap());
    for share in [0.5, 0.99] {
        let (quiet, stormy) = (quantile(&quiet, share), quantile(&stormy, share));
        let (quiet, stormy) = (quiet * 1e6, stormy * 1e6);
        println!("proxied, {share}:           {quiet:.0} us quiet, {stormy:.0} us in the storm");
    }
    let grown = resident(gateway_process.id()).saturating_sub(memory);
    println!("memory grown by:         {} MiB", grown >> 20);
}

/// One try; how long to wait before the next, if it was not the last.
async fn log_in(gateway: SocketAddr, number: usize, tries: usize) -> Option<Duration> {
    let body = format!("{{\"code\":\"user-u{number}-{tries}\"}}");
    let head = format!(
        "POST /login HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    if answer.starts_with("HTTP/1.1 200") {
        return None;
    }
    let answer = answer.to_ascii_lowercase();
    let wait = answer.split("retry-after: ").nth(1).unwrap().split("\r\n").next().unwrap();
    Some(Duration::from_secs(wait.parse().unwrap()))
}
