//! Whether proxied requests notice that WeChat hangs: `cargo bench --bench hanging_wechat`
//!
//! One gateway, one keep-alive client. Rounds of requests alternate between quiet and a
//! crowd of logins that hang; each pair gives a ratio of medians. Pairs of quiet rounds
//! show how far two equal rounds lie apart on this machine.

#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to say")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use wxgate::clock::Clock;
use wxgate::config::{Config, Secrets};
use wxgate::http_server::{self, response};
use wxgate::metrics::Metrics;
use wxgate::sandbox::{DEFAULT_APP, Sandbox};
use wxgate::secret::Secret;
use wxgate::server::Server;

const REQUESTS: usize = 3000;
const PAIRS: usize = 15;
const HANGING: usize = 200;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let wechat = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        r#"
        server = {{ listen = "127.0.0.1:0", threads = 1 }}
        admin = {{ listen = "127.0.0.1:0" }}
        wechat = {{ base_url = "http://{}", timeout = "60s" }}
        log = {{ access = "off" }}
        limits = {{ max_requests_per_connection = 1000000 }}
        app = [{{ app_id = "{}", app_secret = {{ env = "UNUSED" }} }}]
        upstream = [{{ name = "u", servers = ["{}"] }}]
        route = [{{ path = "/", upstream = "u" }}]
        "#,
        wechat.local_addr().unwrap(),
        DEFAULT_APP.0,
        service.local_addr().unwrap()
    );
    let mut config = Config::parse("bench", &text, Secrets::Ignore).unwrap();
    config.apps.iter_mut().for_each(|app| app.secret = Secret::new(DEFAULT_APP.1.to_owned()));
    let apps = vec![(DEFAULT_APP.0.to_owned(), DEFAULT_APP.1.to_owned())];
    let sandbox = Sandbox::new(apps, Clock::system());
    tokio::spawn(Arc::clone(&sandbox).serve(wechat));
    tokio::spawn(async move {
        match http_server::serve(service, |_| async { Ok(response(200, "text/plain", "hello")) })
            .await {}
    });
    let server = Server::bind(&config, Clock::system(), Metrics::new().unwrap()).unwrap();
    let gateway = *server.public_addresses().first().unwrap();
    let (_orders, receiver) = mpsc::channel(1);
    tokio::spawn(server.run(receiver));

    let token = login(gateway).await;
    let mut client = TcpStream::connect(gateway).await.unwrap();
    client.set_nodelay(true).unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\n\r\n");
    round(&mut client, &request).await;

    let mut equal = Vec::new();
    let mut hanging = Vec::new();
    for _ in 0..PAIRS {
        let first = round(&mut client, &request).await;
        let second = round(&mut client, &request).await;
        equal.push(second / first);
        let crowd = crowd(gateway, &sandbox).await;
        let crowded = round(&mut client, &request).await;
        drop(crowd);
        hanging.push(crowded / second);
        // Those that left are noticed when their exchange ends; new rounds add to them.
    }
    println!("p50 ratio, quiet / quiet:            {}", spread(&mut equal));
    println!("p50 ratio, WeChat hanging / quiet:   {}", spread(&mut hanging));
    println!("({PAIRS} pairs of {REQUESTS} requests, {HANGING} more hanging logins in each)");
}

/// The median time of a request, in seconds.
async fn round(client: &mut TcpStream, request: &str) -> f64 {
    let mut times = Vec::with_capacity(REQUESTS);
    let mut buffer = [0; 4096];
    for _ in 0..REQUESTS {
        let started = Instant::now();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut read = 0;
        while !buffer.get(..read).unwrap().ends_with(b"hello") {
            let count = client.read(buffer.get_mut(read..).unwrap()).await.unwrap();
            assert_ne!(count, 0, "the gateway closed the connection");
            read += count;
        }
        times.push(started.elapsed().as_secs_f64());
    }
    median(&mut times)
}

/// Logins that hang, all of them with WeChat when this returns.
async fn crowd(gateway: SocketAddr, sandbox: &Sandbox) -> Vec<TcpStream> {
    let before = sandbox.exchanges();
    let mut crowd = Vec::new();
    for number in 0..HANGING {
        let mut stream = TcpStream::connect(gateway).await.unwrap();
        let body = format!("{{\"code\":\"hang-{number}\"}}");
        let head =
            format!("POST /login HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        crowd.push(stream);
    }
    while sandbox.exchanges() < before + HANGING as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    crowd
}

async fn login(gateway: SocketAddr) -> String {
    let url = format!("http://{gateway}/login");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.post(url).body(r#"{"code":"user-a"}"#).send().await.unwrap();
    let body: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    body.get("token").unwrap().as_str().unwrap().to_owned()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    *values.get(values.len() / 2).unwrap()
}

fn spread(values: &mut [f64]) -> String {
    let median = median(values);
    let (least, most) = (values.first().unwrap(), values.last().unwrap());
    format!("median {median:.3}, from {least:.3} to {most:.3}")
}
