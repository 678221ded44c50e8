//! Real Redis servers, each with its own port and directory, which are stopped at the test's end.
//!
//! `deploy/dev test` installs them.

use std::collections::HashMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt;
use redis::{Client, Connection, cmd};
use rustix::process::{Pid, Signal, kill_process};

use super::PATIENCE;

pub struct RedisServer {
    pub port: u16,
    directory: tempfile::TempDir,
    child: Option<Child>,
    arguments: Vec<String>,
}

impl RedisServer {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        let port = free_port();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let directory = tempfile::tempdir().unwrap();
        let mut server = Self { port, directory, child: None, arguments };
        server.run();
        server
    }

    pub fn replica_of(primary: &Self) -> Self {
        Self::replica_through(primary.port, "127.0.0.1")
    }

    /// A replica of the primary behind a port; it connects from this address.
    pub fn replica_through(port: u16, address: &str) -> Self {
        let port = port.to_string();
        let arguments = ["--replicaof", "127.0.0.1", &port, "--bind-source-addr", address];
        let replica = Self::start_with(&arguments);
        until("the replica follows", || {
            let info: String =
                cmd("INFO").arg("replication").query(&mut replica.connection()).unwrap();
            info.contains("master_link_status:up")
        });
        let client = Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let mut primary = client.get_connection().unwrap();
        let online = format!("port={},state=online", replica.port);
        until("the primary sees the replica", || {
            let info: String = cmd("INFO").arg("replication").query(&mut primary).unwrap();
            info.contains(&online)
        });
        replica
    }

    fn run(&mut self) {
        self.begin();
        let client = self.client();
        until("the server responds", || {
            let connection = client.get_connection();
            connection.is_ok_and(|mut connection| cmd("PING").exec(&mut connection).is_ok())
        });
    }

    fn begin(&mut self) {
        // A Sentinel writes to it.
        let config = self.directory.path().join("redis.conf");
        std::fs::write(&config, "").unwrap();
        let mut command = Command::new("redis-server");
        command.arg(config).args(["--port", &self.port.to_string()]);
        // Callers come from several addresses; protected mode would trust one only.
        command.args(["--bind", "127.0.0.1", SENTINELS_ADDRESS, "--protected-mode", "no"]);
        if !self.arguments.iter().any(|argument| argument == "--sentinel") {
            command.args(["--save", "", "--repl-diskless-sync-delay", "0"]);
            command.args(["--dir", self.directory.path().to_str().unwrap()]);
        }
        let child = command
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server runs (deploy/dev test installs it)");
        self.child = Some(child);
    }

    fn client(&self) -> Client {
        Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap()
    }

    pub fn connection(&self) -> Connection {
        self.client().get_connection().unwrap()
    }

    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = cmd("KEYS").arg("*").query(&mut self.connection()).unwrap();
        keys.sort();
        keys
    }

    /// Kills it; its data is lost.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Saves its data for the next restart.
    pub fn save(&self) {
        cmd("SAVE").exec(&mut self.connection()).unwrap();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// The same, without waiting for it to respond.
    pub fn begin_restart(&mut self) {
        self.kill();
        self.begin();
    }

    /// It no longer responds; its connections stay open.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        kill_process(Pid::from_raw(id.try_into().unwrap()).unwrap(), signal).unwrap();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The address that Sentinels connect from, and gateways never.
pub const SENTINELS_ADDRESS: &str = "127.0.0.3";

/// Three Sentinels that watch the primary behind a port, called `main`.
pub fn sentinels(primary: u16, replicas: usize) -> [RedisServer; 3] {
    sentinels_with(primary, replicas, &[])
}

pub fn sentinels_with(primary: u16, replicas: usize, arguments: &[&str]) -> [RedisServer; 3] {
    let sentinels = std::array::from_fn(|_| {
        let own = ["--sentinel", "--bind-source-addr", SENTINELS_ADDRESS];
        let sentinel = RedisServer::start_with(&[&own, arguments].concat());
        let mut connection = sentinel.connection();
        for words in [
            format!("MONITOR main 127.0.0.1 {primary} 2"),
            "SET main down-after-milliseconds 500".to_owned(),
            "SET main failover-timeout 2000".to_owned(),
        ] {
            let words: Vec<_> = words.split(' ').collect();
            cmd("SENTINEL").arg(words).exec(&mut connection).unwrap();
        }
        sentinel
    });
    for sentinel in &sentinels {
        let mut connection = sentinel.connection();
        until("the Sentinels know each other", || {
            let info: String = cmd("INFO").arg("sentinel").query(&mut connection).unwrap();
            info.contains(&format!("slaves={replicas},sentinels=3"))
        });
        until("the Sentinels know that the replicas follow", || {
            let all: Vec<HashMap<String, String>> =
                cmd("SENTINEL").arg("REPLICAS").arg("main").query(&mut connection).unwrap();
            all.iter().all(|replica| replica["master-link-status"] == "ok")
        });
    }
    sentinels
}

/// A primary, two replicas of it, and Sentinels.
pub fn replicated() -> (RedisServer, [RedisServer; 2], [RedisServer; 3]) {
    let primary = RedisServer::start();
    let replicas = [RedisServer::replica_of(&primary), RedisServer::replica_of(&primary)];
    let sentinels = sentinels(primary.port, replicas.len());
    (primary, replicas, sentinels)
}

/// Three primaries, then their replicas, of one cluster.
pub fn cluster() -> Vec<RedisServer> {
    cluster_with(&[])
}

pub fn cluster_with(arguments: &[&str]) -> Vec<RedisServer> {
    let nodes: Vec<_> = (0..6)
        .map(|_| {
            let bus = free_port().to_string();
            let own = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                "1000",
                "--cluster-replica-validity-factor",
                "0",
            ];
            RedisServer::start_with(&[&own, arguments].concat())
        })
        .collect();
    let addresses: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let created = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(addresses)
        .args(["--cluster-replicas", "1", "--cluster-yes"])
        .output()
        .unwrap();
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
    until("the cluster is well", || nodes.iter().all(is_well));
    until("each replica follows", || {
        nodes.iter().all(|node| {
            let info: String =
                cmd("INFO").arg("replication").query(&mut node.connection()).unwrap();
            info.contains("connected_slaves:1") || info.contains("master_link_status:up")
        })
    });
    nodes
}

/// Whether a node of a cluster reports each slot as served.
pub fn is_well(node: &RedisServer) -> bool {
    let info = cmd("CLUSTER").arg("INFO").query::<String>(&mut node.connection());
    info.is_ok_and(|info| info.contains("cluster_state:ok"))
}

/// Not one of the ports that the system uses for connections, which might take it first.
pub fn free_port() -> u16 {
    loop {
        let port = rand::rng().random_range(10_000..32_768);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what} not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}
