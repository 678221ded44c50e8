//! Whether requests notice a crowd that drips its heads: `cargo bench --bench slowloris`
//!
//! Two thousand connections each send a byte of a head a second. Each must be cut when
//! `limits.header_timeout`, 10 s, is over, and a client with real requests must not notice.

#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to say")]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use self::support::{Gateway, quantile, spread};

const DRIPPING: usize = 2000;
const REQUESTS: usize = 5000;
const PAIRS: usize = 10;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.round(REQUESTS).await;

    let (mut equal, mut dripped) = (Vec::new(), Vec::new());
    let (mut lives, mut answered) = (Vec::new(), 0);
    for _ in 0..PAIRS {
        let first = quantile(&client.round(REQUESTS).await, 0.99);
        let second = quantile(&client.round(REQUESTS).await, 0.99);
        equal.push(second / first);
        let mut crowd = JoinSet::new();
        for number in 0..DRIPPING {
            crowd.spawn(drip(gateway.address, number));
        }
        // All of them are connected, and none is cut yet.
        tokio::time::sleep(Duration::from_secs(2)).await;
        dripped.push(quantile(&client.round(REQUESTS).await, 0.99) / second);
        for (life, was_answered) in crowd.join_all().await {
            lives.push(life);
            answered += usize::from(was_answered);
        }
    }
    println!("p99 ratio, quiet / quiet:      {}", spread(&mut equal));
    println!("p99 ratio, dripped / quiet:    {}", spread(&mut dripped));
    println!("seconds until a head is cut:   {}", spread(&mut lives));
    println!("answered with 408:             {answered} of {}", lives.len());
    println!("({PAIRS} pairs of {REQUESTS} requests, {DRIPPING} dripping connections in each)");
}

/// Drips a head until the gateway has had enough; after how many seconds, and whether it
/// said why.
async fn drip(gateway: SocketAddr, number: usize) -> (f64, bool) {
    // Spread over a second, as a crowd is.
    tokio::time::sleep(Duration::from_micros(number as u64 * 500)).await;
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    for byte in b"GET / HTTP/1.1\r\nHost: h\r\nX-Endless: ".iter().chain([b'x'; 1000].iter()) {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        let read = stream.read_buf(&mut answer);
        if tokio::time::timeout(Duration::from_secs(1), read).await.is_ok() {
            break;
        }
    }
    (began.elapsed().as_secs_f64(), answer.starts_with(b"HTTP/1.1 408"))
}
