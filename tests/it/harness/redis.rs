//! Real servers of Redis, each on a port and in a directory of its own, that end with the test.
//!
//! `deploy/dev test` installs them.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let directory = tempfile::tempdir().unwrap();
        let mut server = Self { port, directory, child: None, arguments };
        server.run();
        server
    }

    pub fn replica_of(primary: &Self) -> Self {
        let primary = primary.port.to_string();
        let replica = Self::start_with(&["--replicaof", "127.0.0.1", &primary]);
        until("the replica follows", || {
            let info: String =
                cmd("INFO").arg("replication").query(&mut replica.connection()).unwrap();
            info.contains("master_link_status:up")
        });
        replica
    }

    fn run(&mut self) {
        // A Sentinel writes to it.
        let config = self.directory.path().join("redis.conf");
        std::fs::write(&config, "").unwrap();
        let mut command = Command::new("redis-server");
        command.arg(config).args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        if self.arguments != ["--sentinel"] {
            command.args(["--save", "", "--repl-diskless-sync-delay", "0"]);
            command.args(["--dir", self.directory.path().to_str().unwrap()]);
        }
        let child = command
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server runs (deploy/dev test installs it)");
        self.child = Some(child);
        let client = self.client();
        until("the server answers", || {
            let connection = client.get_connection();
            connection.is_ok_and(|mut connection| cmd("PING").exec(&mut connection).is_ok())
        });
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

    /// Ends it at once, with what it held.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// It answers no more, and its connections stay.
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

/// Three Sentinels that look after a primary, called `main`.
pub fn sentinels(primary: &RedisServer, replicas: usize) -> [RedisServer; 3] {
    let sentinels = std::array::from_fn(|_| {
        let sentinel = RedisServer::start_with(&["--sentinel"]);
        let mut connection = sentinel.connection();
        for words in [
            format!("MONITOR main 127.0.0.1 {} 2", primary.port),
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
    }
    sentinels
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what} not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}
