//! A complete stack in the test's process: gateway, simulated WeChat, recording service.
//!
//! Everything listens on a free port, and ends when the [`Stack`] is dropped. Lifetimes are
//! measured by a clock that tests advance.

pub mod browser;
pub mod canary;
pub mod certificate;
pub mod client;
pub mod command;
pub mod fault_proxy;
pub mod http2_service;
pub mod more_identity;
mod next_process;
pub mod process_log;
pub mod program;
pub mod redis;
mod response;
pub mod strict;
pub mod upstream;
pub mod wechat_api;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wxgate::clock::Clock;
use wxgate::config::{Config, Loaded, Secrets};
use wxgate::server::reload::Origin;
use wxgate::server::{Command, Server, StartError};
use wxgate::telemetry::metrics::Metrics;
use wxgate::wechat::sandbox::{self, DEFAULT_APP, Sandbox};

use self::client::{Request, Response};
pub use self::next_process::{Replaced, UPGRADES};
use self::upstream::Upstream;

pub const APP: &str = DEFAULT_APP.0;

/// A second app, which the simulated WeChat knows, too.
pub const OTHER_APP: &str = "wxfedcba9876543210";

pub const SECRET: &str = DEFAULT_APP.1;

/// Changes with the routes `/required`, `/optional` and `/none`.
pub const THREE_ROUTES: &str = r#"
    [[route]]
    path = "/required"
    upstream = "recorder"
    auth = "required"
    [[route]]
    path = "/optional"
    upstream = "recorder"
    auth = "optional"
    [[route]]
    path = "/none"
    upstream = "recorder"
    auth = "none"
"#;

/// Changes with both apps; the first is the default one.
pub const TWO_APPS: &str = r#"
    [[app]]
    app_id = "wx0123456789abcdef"
    app_secret = { file = "{dir}/wechat-secret" }
    default = true
    [[app]]
    app_id = "wxfedcba9876543210"
    app_secret = { file = "{dir}/wechat-secret" }
"#;

/// The text of `{dir}/operator`, for `admin.token`.
pub const OPERATOR: &str = "an-operator-s-token-of-so-many-letters";

/// The tokens of services, each the text of the file `{dir}/NAME`, for `internal.token`.
pub const SERVICES: [(&str, &str); 3] = [
    ("any", "a-service-s-token-that-may-do-everything"),
    ("orders", "the-token-of-the-service-of-the-orders"),
    ("mail", "the-token-of-the-service-that-sends-mail"),
];

pub struct Stack {
    pub gateway: SocketAddr,
    /// All public listeners, the gateway's first.
    pub public: Vec<SocketAddr>,
    pub admin: SocketAddr,
    pub forward_auth: Option<SocketAddr>,
    /// The internal listener, if it is on TCP.
    pub internal: Option<SocketAddr>,
    pub sandbox: Arc<Sandbox>,
    pub upstream: Upstream,
    pub clock: Clock,
    pub directory: tempfile::TempDir,
    pub commands: mpsc::Sender<Command>,
    pub ended: JoinHandle<Result<(), StartError>>,
    pub wechat_address: SocketAddr,
    wechat: JoinHandle<()>,
}

impl Stack {
    /// Routes: `/` requires a session; the `auth` of `/optional` and `/none` is their name.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same with `changes`, TOML that is merged into the configuration: tables are merged,
    /// everything else is replaced. `{dir}` is replaced with the directory of the stack,
    /// `{upstream}` for the address of the recorder.
    pub async fn start_with(changes: &str) -> Self {
        let stack = Self::start_unready_with(changes).await;
        stack.until_ready().await;
        stack
    }

    /// The same, without waiting for the gateway to be ready.
    pub async fn start_unready_with(changes: &str) -> Self {
        install_provider();
        process_log::install();
        canary::plant(SECRET);
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual();
        let upstream = Upstream::start().await;
        let apps = [APP, OTHER_APP, browser::ACCOUNT, browser::WEBSITE]
            .map(|app_id| (app_id.to_owned(), SECRET.to_owned()));
        let sandbox = Sandbox::new(apps.to_vec(), clock.clone());
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wechat_address = socket.local_addr().unwrap();
        let base_url = format!("http://{wechat_address}");
        let wechat = tokio::spawn(sandbox.clone().serve(socket));

        let text = config_text(directory.path(), &base_url, upstream.address, changes);
        let path = directory.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        let process = Process::start(&path, &clock);
        Self {
            gateway: process.public[0],
            public: process.public,
            admin: process.admin,
            forward_auth: process.forward_auth,
            internal: process.internal,
            sandbox,
            upstream,
            clock,
            directory,
            commands: process.commands,
            ended: process.ended,
            wechat_address,
            wechat,
        }
    }

    /// The path of the gateway's configuration.
    pub fn config_file(&self) -> PathBuf {
        self.directory.path().join("gateway.toml")
    }

    /// Writes another configuration, as [`Stack::start_with`] would.
    pub fn write_config(&self, changes: &str) {
        let base_url = format!("http://{}", self.wechat_address);
        let text = config_text(self.directory.path(), &base_url, self.upstream.address, changes);
        std::fs::write(self.config_file(), text).unwrap();
    }

    /// Reloads with another configuration, and returns whether it was accepted.
    pub async fn reload(&self, changes: &str) -> bool {
        self.write_config(changes);
        self.order_reload().await
    }

    /// Reloads the configuration, and returns whether it was accepted.
    pub async fn order_reload(&self) -> bool {
        let before = self.metric(RELOAD_TIME).await;
        // A failed reload can be noticed only if the one before succeeded.
        let could_fail = self.metric(RELOAD_SUCCESSFUL).await > 0.0;
        self.commands.send(Command::Reload).await.unwrap();
        let ended = async {
            loop {
                if self.metric(RELOAD_TIME).await > before {
                    return true;
                }
                if could_fail && self.metric(RELOAD_SUCCESSFUL).await == 0.0 {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("a reload ends")
    }

    pub async fn until_ready(&self) {
        while client::get(self.admin, "/readyz").await.status != 200 {
            tokio::task::yield_now().await;
        }
    }

    pub fn request(&self, method: &str, path: &str) -> Request<'_> {
        Request::new(self, method, path)
    }

    pub fn get(&self, path: &str) -> Request<'_> {
        self.request("GET", path)
    }

    pub fn post(&self, path: &str) -> Request<'_> {
        self.request("POST", path)
    }

    /// Sends a login's body as JSON.
    pub async fn try_login(&self, code: &str) -> Response {
        self.post("/login").json(&serde_json::json!({ "code": code })).send().await
    }

    /// Logs a user of the default app in and returns the token.
    pub async fn login(&self, user: &str) -> String {
        let code: u64 = rand::random();
        let response = self.try_login(&format!("user-{user}-{code}")).await;
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()["token"].as_str().unwrap().to_owned()
    }

    /// A value of `/metrics`, by the whole name with its labels; 0 where there is none yet.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = client::get(self.admin, "/metrics").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The access log, as soon as it has so many lines.
    pub async fn access_log(&self, lines: usize) -> String {
        let path = self.directory.path().join("access.log");
        let read = || std::fs::read_to_string(&path).unwrap();
        until("the lines of the access log", async || read().lines().count() >= lines).await;
        read()
    }

    /// Waits until a metric has a value: some are counted after the response was sent.
    pub async fn until_metric(&self, name: &str, value: f64) {
        let reached = async {
            while (self.metric(name).await - value).abs() > 1e-9 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, reached).await.is_err() {
            panic!("{name} is {}, not {value}", self.metric(name).await);
        }
    }
}

/// A gateway that has been started.
struct Process {
    public: Vec<SocketAddr>,
    admin: SocketAddr,
    forward_auth: Option<SocketAddr>,
    internal: Option<SocketAddr>,
    commands: mpsc::Sender<Command>,
    ended: JoinHandle<Result<(), StartError>>,
}

impl Process {
    fn start(path: &Path, clock: &Clock) -> Self {
        let Loaded { config, files } = Config::read(path, Secrets::Load, None);
        let config = Arc::new(config.unwrap_or_else(|problems| panic!("{problems}")));
        let server = Server::bind(&config, clock.clone(), Metrics::new().unwrap()).unwrap();
        let server = server.following(Origin { path: path.to_owned(), config, files, log: None });
        let public = server.public_addresses();
        let admin = server.admin_address();
        let forward_auth = server.forward_auth_addresses().first().copied();
        let internal = server.internal_address().and_then(|address| address.parse().ok());
        let (commands, receiver) = mpsc::channel(4);
        let ended = tokio::spawn(server.run(receiver));
        Self { public, admin, forward_auth, internal, commands, ended }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.wechat.abort();
        let access_log = self.directory.path().join("access.log");
        let access_log = std::fs::read_to_string(access_log).unwrap_or_default();
        canary::search("the access log", &access_log);
        if !std::thread::panicking() {
            canary::assert_none_shown();
        }
    }
}

pub const RELOAD_TIME: &str = "wxgate_config_last_reload_success_timestamp_seconds";

pub const RELOAD_SUCCESSFUL: &str = "wxgate_config_last_reload_successful";

/// The timeout of tests: longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a condition holds.
pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let held = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, held).await.is_ok(), "not in time: {what}");
}

/// An address where nothing listens.
pub async fn unused_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Sends these bytes to each client that has sent something, and closes.
pub async fn serve_bytes(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = [0; 4096];
            let _ = stream.read(&mut read).await;
            let _ = stream.write_all(bytes).await;
        }
    });
    address
}

/// The openid that the sandbox gives a user of the default app.
pub fn openid(user: &str) -> String {
    sandbox::openid(APP, user)
}

pub fn install_provider() {
    // Only the first test of the process installs it.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// The text of a stack's configuration.
pub fn config_text(
    directory: &Path,
    base_url: &str,
    upstream: SocketAddr,
    changes: &str,
) -> String {
    let secret = directory.join("wechat-secret");
    std::fs::write(&secret, SECRET).unwrap();
    std::fs::write(directory.join("operator"), OPERATOR).unwrap();
    std::fs::write(directory.join("seal"), "00112233445566778899aabbccddeeff".repeat(2)).unwrap();
    for (name, token) in SERVICES {
        canary::plant(token);
        std::fs::write(directory.join(name), token).unwrap();
    }
    let base = format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        threads = 1
        watch_interval = "0s"
        [admin]
        listen = "127.0.0.1:0"
        [wechat]
        base_url = "{base_url}"
        [log]
        access = "{}"
        [[app]]
        app_id = "{APP}"
        app_secret = {{ file = "{}" }}
        [[upstream]]
        name = "recorder"
        servers = ["{upstream}"]
        [[route]]
        path = "/"
        upstream = "recorder"
        auth = "required"
        [[route]]
        path = "/optional"
        upstream = "recorder"
        auth = "optional"
        [[route]]
        path = "/none"
        upstream = "recorder"
        auth = "none"
        "#,
        directory.join("access.log").display(),
        secret.display()
    );
    let mut base: toml::Table = base.parse().unwrap();
    let changes = changes
        .replace("{dir}", &directory.display().to_string())
        .replace("{upstream}", &upstream.to_string());
    lay_over(&mut base, changes.parse().unwrap());
    base.to_string()
}

fn lay_over(base: &mut toml::Table, changes: toml::Table) {
    for (key, change) in changes {
        match (base.get_mut(&key), change) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => lay_over(under, over),
            (_, change) => {
                base.insert(key, change);
            }
        }
    }
}
