//! Whether proxied requests notice that WeChat hangs: `cargo bench --bench hanging_wechat`
//!
//! One gateway, one keep-alive client. Rounds of requests alternate between quiet and a
//! crowd of logins that hang; each pair gives a ratio of medians. Pairs of quiet rounds
//! show how far two equal rounds lie apart on this machine.

#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to say")]

mod support;

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use self::support::{Gateway, quantile, spread};

const REQUESTS: usize = 3000;
const PAIRS: usize = 15;
const HANGING: usize = 200;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.round(REQUESTS).await;

    let mut equal = Vec::new();
    let mut hanging = Vec::new();
    for _ in 0..PAIRS {
        let first = quantile(&client.round(REQUESTS).await, 0.5);
        let second = quantile(&client.round(REQUESTS).await, 0.5);
        equal.push(second / first);
        let crowd = crowd(&gateway).await;
        let crowded = quantile(&client.round(REQUESTS).await, 0.5);
        drop(crowd);
        hanging.push(crowded / second);
        // Those that left are noticed when their exchange ends; new rounds add to them.
    }
    println!("p50 ratio, quiet / quiet:            {}", spread(&mut equal));
    println!("p50 ratio, WeChat hanging / quiet:   {}", spread(&mut hanging));
    println!("({PAIRS} pairs of {REQUESTS} requests, {HANGING} more hanging logins in each)");
}

/// Logins that hang, all of them with WeChat when this returns.
async fn crowd(gateway: &Gateway) -> Vec<TcpStream> {
    let before = gateway.sandbox.exchanges();
    let mut crowd = Vec::new();
    for number in 0..HANGING {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let body = format!("{{\"code\":\"hang-{number}\"}}");
        let head =
            format!("POST /login HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        crowd.push(stream);
    }
    while gateway.sandbox.exchanges() < before + HANGING as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    crowd
}
