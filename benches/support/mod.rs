//! A gateway in the bench's own process, and a client that measures rounds of requests.

#![allow(dead_code, reason = "each bench needs another part of it")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use wxgate::clock::Clock;
use wxgate::config::{Config, Secrets};
use wxgate::identity::secret::Secret;
use wxgate::listener::small_server::{self, response};
use wxgate::server::Server;
use wxgate::telemetry::metrics::Metrics;
use wxgate::wechat::sandbox::{DEFAULT_APP, Sandbox};

/// A gateway with one worker between a simulated WeChat and a service that says hello.
pub struct Gateway {
    pub address: SocketAddr,
    pub sandbox: Arc<Sandbox>,
    _commands: mpsc::Sender<wxgate::server::Command>,
}

impl Gateway {
    pub async fn start() -> Self {
        Self::start_with("timeout = \"60s\"").await
    }

    /// With these keys of `[wechat]`.
    pub async fn start_with(wechat_keys: &str) -> Self {
        Self::start_at(None, wechat_keys).await
    }

    /// With this WeChat instead of the simulated one; nobody must log in.
    pub async fn start_at(base_url: Option<&str>, wechat_keys: &str) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let wechat = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = hello().await;
        let simulated = format!("http://{}", wechat.local_addr().unwrap());
        let auth = if base_url.is_some() { "none" } else { "required" };
        let base_url = base_url.unwrap_or(&simulated);
        let text = format!(
            r#"
            server = {{ listen = "127.0.0.1:0", threads = 1 }}
            admin = {{ listen = "127.0.0.1:0" }}
            wechat = {{ base_url = "{base_url}", {wechat_keys} }}
            log = {{ access = "off" }}
            limits = {{ max_requests_per_connection = 1000000 }}
            app = [{{ app_id = "{}", app_secret = {{ env = "UNUSED" }} }}]
            upstream = [{{ name = "u", servers = ["{}"] }}]
            route = [{{ path = "/", upstream = "u", auth = "{auth}" }}]
            "#,
            DEFAULT_APP.0, service
        );
        let mut config = Config::parse("bench", &text, Secrets::Ignore).unwrap();
        config.apps.iter_mut().for_each(|app| app.secret = Secret::new(DEFAULT_APP.1.to_owned()));
        let apps = vec![(DEFAULT_APP.0.to_owned(), DEFAULT_APP.1.to_owned())];
        let sandbox = Sandbox::new(apps, Clock::system());
        tokio::spawn(Arc::clone(&sandbox).serve(wechat));
        let server = Server::bind(&config, Clock::system(), Metrics::new().unwrap()).unwrap();
        let address = *server.public_addresses().first().unwrap();
        let (commands, receiver) = mpsc::channel(1);
        tokio::spawn(server.run(receiver));
        Self { address, sandbox, _commands: commands }
    }

    /// A client that is logged in.
    pub async fn client(&self) -> Client {
        let url = format!("http://{}/login", self.address);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.post(url).body(r#"{"code":"user-a"}"#).send().await.unwrap();
        let body: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        let token = body.get("token").unwrap().as_str().unwrap();
        Client::connect(self.address, &format!("X-3rd-Session: {token}\r\n")).await
    }
}

/// A service that says hello; where it listens.
pub async fn hello() -> SocketAddr {
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = service.local_addr().unwrap();
    tokio::spawn(async move {
        let hello = |_| async { Ok(response(200, "text/plain", "hello")) };
        match small_server::serve(service, hello).await {}
    });
    address
}

/// One keep-alive connection.
pub struct Client {
    stream: TcpStream,
    request: String,
}

impl Client {
    /// With these header lines on each request.
    pub async fn connect(gateway: SocketAddr, lines: &str) -> Self {
        let stream = TcpStream::connect(gateway).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, request: format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n") }
    }

    /// Times of so many requests, in seconds, the shortest first.
    pub async fn round(&mut self, requests: usize) -> Vec<f64> {
        let mut times = Vec::with_capacity(requests);
        let mut buffer = [0; 4096];
        for _ in 0..requests {
            let started = Instant::now();
            self.stream.write_all(self.request.as_bytes()).await.unwrap();
            let mut read = 0;
            while !buffer.get(..read).unwrap().ends_with(b"hello") {
                let count = self.stream.read(buffer.get_mut(read..).unwrap()).await.unwrap();
                assert_ne!(count, 0, "the gateway closed the connection");
                read += count;
            }
            times.push(started.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        times
    }
}

/// A process that ends with the bench.
pub struct Process(Child);

impl Process {
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts the program; where it listens.
pub fn start(arguments: &[&str]) -> (Process, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wxgate"))
        .args(arguments)
        .env("BENCH_SECRET", DEFAULT_APP.1)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let is_gateway = arguments.first() == Some(&"run");
    let lines: Box<dyn std::io::Read> = if is_gateway {
        Box::new(child.stderr.take().unwrap())
    } else {
        Box::new(child.stdout.take().unwrap())
    };
    let process = Process(child);
    let address = BufReader::new(lines)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split(['"', '/', ' ']).find_map(|word| word.parse().ok()));
    (process, address.unwrap())
}

/// Starts a gateway with one worker and these keys besides; where it listens.
pub fn start_gateway(wechat: SocketAddr, service: SocketAddr, keys: &str) -> (Process, SocketAddr) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.toml");
    let text = format!(
        r#"
        server = {{ listen = "127.0.0.1:0", threads = 1 }}
        admin = {{ listen = "127.0.0.1:0" }}
        wechat = {{ base_url = "http://{wechat}" }}
        log = {{ access = "off" }}
        app = [{{ app_id = "{}", app_secret = {{ env = "BENCH_SECRET" }} }}]
        upstream = [{{ name = "u", servers = ["{service}"] }}]
        route = [{{ path = "/", upstream = "u", auth = "none" }}]
        {keys}
        "#,
        DEFAULT_APP.0
    );
    std::fs::write(&file, text).unwrap();
    start(&["run", "-c", file.to_str().unwrap()])
}

/// Bytes of memory that a process holds.
pub fn resident(process: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A share of sorted values lies at or below this one.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a short list"
    )]
    let index = (share * (sorted.len() - 1) as f64).round() as usize;
    *sorted.get(index).unwrap()
}

/// Seconds of CPU that a process has had, the system's included.
pub fn cpu(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at).unwrap().parse::<f64>().unwrap();
    // The kernel counts hundredths for everybody.
    (ticks(11) + ticks(12)) / 100.0
}

pub fn spread(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let (least, median, most) =
        (quantile(values, 0.0), quantile(values, 0.5), quantile(values, 1.0));
    format!("median {median:.3}, from {least:.3} to {most:.3}")
}
