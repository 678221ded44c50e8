//! More requests than the servers can serve.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{interval, sleep};

use super::upstream;
use crate::harness::Stack;
use crate::harness::client::get;

/// How long the service takes for a request: long, because the machine may be busy.
const SERVICE_TIME: Duration = Duration::from_millis(200);

/// Connections that the service serves at the same time.
const PLACES: u32 = 8;

/// A service that takes its time, as one does that waits for a database.
async fn service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut read = vec![0; 4096];
                while matches!(stream.read(&mut read).await, Ok(1..)) {
                    sleep(SERVICE_TIME).await;
                    let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    if stream.write_all(reply).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

/// Sends requests at a constant rate, whether or not they are served. Returns the status and time
/// of each, sorted by time.
async fn load(gateway: SocketAddr, a_second: u32, count: u32) -> Vec<(u16, Duration)> {
    let mut ticks = interval(Duration::from_secs(1) / a_second);
    let mut requests = Vec::new();
    for _ in 0..count {
        ticks.tick().await;
        requests.push(tokio::spawn(async move {
            let started = Instant::now();
            let response = get(gateway, "/none").await;
            assert!(matches!(response.status, 200 | 503), "{response:?}");
            (response.status, started.elapsed())
        }));
    }
    let mut ended = Vec::new();
    for request in requests {
        ended.push(request.await.unwrap());
    }
    ended.sort_by_key(|(_, time)| *time);
    ended
}

/// The time within which 99 % of the served requests end.
fn p99(requests: &[(u16, Duration)]) -> Duration {
    let served: Vec<_> = requests.iter().filter(|(status, _)| *status == 200).collect();
    served[served.len() * 99 / 100].1
}

/// What the service serves in a second, if each of its places has a client. A busy machine makes it
/// less than it should be.
async fn capacity(gateway: SocketAddr) -> f64 {
    let started = Instant::now();
    let rounds = 10;
    let client = move || async move {
        for _ in 0..rounds {
            assert_eq!(get(gateway, "/none").await.status, 200);
        }
    };
    let clients: Vec<_> = (0..PLACES).map(|_| tokio::spawn(client())).collect();
    for client in clients {
        client.await.unwrap();
    }
    f64::from(rounds * PLACES) / started.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_three_times_the_capacity_most_of_it_is_used_and_latency_is_bounded() {
    let keys = format!("max_connections = {PLACES}\npending_timeout = \"400ms\"\n");
    let stack = Stack::start_with(&upstream(&[service().await], &keys)).await;
    let nominal = PLACES * 1000 / u32::try_from(SERVICE_TIME.as_millis()).unwrap();
    let capacity = capacity(stack.gateway).await;
    let quiet = load(stack.gateway, nominal / 2, nominal).await;
    let started = Instant::now();
    let busy = load(stack.gateway, nominal * 3, nominal * 12).await;
    let took = started.elapsed();
    let served = busy.iter().filter(|(status, _)| *status == 200).count();
    let share = served as f64 / (capacity * took.as_secs_f64());
    let rejected = busy.iter().filter(|(status, _)| *status == 503).map(|(_, time)| *time);
    let figures = format!(
        "capacity {capacity:.0}/s; share used {share:.2}; p99 quiet {:?}, busy {:?}; {} rejected, \
         the last after {:?}",
        p99(&quiet),
        p99(&busy),
        busy.len() - served,
        rejected.max()
    );
    println!("{figures}");
    assert!(share >= 0.8, "{figures}");
    assert!(p99(&busy) <= p99(&quiet) * 5, "{figures}");
}
