//! The process after the first one of a stack: after a restart, or by an upgrade.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wxgate::clock::Clock;
use wxgate::config::{Config, Loaded, Secrets};
use wxgate::server::reload::Origin;
use wxgate::server::upgrade::Predecessor;
use wxgate::server::{Command, Server, StartError};
use wxgate::telemetry::metrics::Metrics;

use super::{PATIENCE, Process, Stack, lay_over, until};

/// Changes with which a gateway can be replaced.
pub const UPGRADES: &str = "server.upgrade_socket = \"{dir}/upgrade.sock\"\n";

/// A gateway that was replaced by another one.
pub struct Replaced {
    /// It ends when they are dropped.
    _commands: mpsc::Sender<Command>,
    pub ended: JoinHandle<Result<(), StartError>>,
}

const FROM_UPGRADES: &str = "wxgate_sessions_restored_total{source=\"upgrade\"}";

impl Stack {
    /// Starts another gateway that takes over from this one, at the same addresses. Returns the old
    /// one, which drains. Needs [`UPGRADES`] and a session.
    pub async fn upgrade(&mut self, changes: &str) -> Replaced {
        let server = self.successor(changes).await.unwrap();
        self.upgrade_to(server).await
    }

    /// The same with a gateway that has begun to take over.
    pub async fn upgrade_to(&mut self, server: Server) -> Replaced {
        let (commands, receiver) = mpsc::channel(4);
        let ended = tokio::spawn(server.run(receiver));
        let commands = std::mem::replace(&mut self.commands, commands);
        let ended = std::mem::replace(&mut self.ended, ended);
        // The old one no longer answers here.
        until("the new gateway serves", async || {
            self.ended.is_finished() || self.metric(FROM_UPGRADES).await > 0.0
        })
        .await;
        Replaced { _commands: commands, ended }
    }

    /// A gateway that has begun to take over from this one.
    pub async fn successor(&self, changes: &str) -> Result<Server, StartError> {
        let addresses = |addresses: &[SocketAddr]| {
            addresses.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ")
        };
        let mut changes: toml::Table =
            changes.replace("{dir}", &self.directory.path().display().to_string()).parse().unwrap();
        let mut same = format!(
            "server.listen = [{}]\nadmin.listen = \"{}\"\n",
            addresses(&self.public),
            self.admin
        );
        if let Some(address) = self.forward_auth {
            same += &format!("forward_auth.listen = \"{address}\"\n");
        }
        if let Some(address) = self.internal {
            same += &format!("internal.listen = \"{address}\"\n");
        }
        lay_over(&mut changes, same.parse().unwrap());
        self.write_config(&changes.to_string());
        let path = self.config_file();
        let Loaded { config, files } = Config::read(&path, Secrets::Load, None);
        let config = Arc::new(config.unwrap_or_else(|problems| panic!("{problems}")));
        let socket = config.server.upgrade_socket.as_deref();
        let predecessor = Predecessor::find(socket).await?;
        let (clock, metrics) = (self.clock.clone(), Metrics::new().unwrap());
        let server = Server::bind_after(predecessor, &config, clock, metrics)?;
        Ok(server.following(Origin { path, config, files, log: None }))
    }

    /// Ends the process by a command.
    pub async fn stop(&mut self, command: Command) {
        self.commands.send(command).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, &mut self.ended).await;
        ended.expect("an end in time").unwrap().unwrap();
    }

    /// Ends the process by a command, and starts another one with the same configuration, on other
    /// ports and with another clock. The files of sessions may be in use for a moment.
    pub async fn restart(&mut self, command: Command) {
        self.stop(command).await;
        self.start_again().await;
    }

    /// Starts another process after the last one has ended.
    pub async fn start_again(&mut self) {
        while !self.try_start_again().await {}
    }

    /// The same, without waiting for it to be ready.
    pub async fn start_again_unready(&mut self) {
        // As late as in the last process, so that no time of a session is before its beginning.
        let clock = Clock::manual();
        clock.advance(self.clock.now() + Duration::from_millis(rand::random_range(1..10_000)));
        self.clock = clock;
        let process = Process::start(&self.config_file(), &self.clock);
        self.gateway = process.public[0];
        self.public = process.public;
        self.admin = process.admin;
        self.forward_auth = process.forward_auth;
        self.internal = process.internal;
        self.commands = process.commands;
        self.ended = process.ended;
    }

    /// Returns whether the files were free.
    async fn try_start_again(&mut self) -> bool {
        self.start_again_unready().await;
        tokio::select! {
            ended = &mut self.ended => {
                let error = ended.unwrap().unwrap_err();
                assert!(matches!(error, StartError::SessionFiles(_)), "{error}");
                false
            }
            () = until("the gateway is ready", async || is_ready(self.admin).await) => true,
        }
    }
}

/// Whether a gateway says that it is ready. One that has ended is not.
async fn is_ready(admin: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(admin).await else { return false };
    let mut response = Vec::new();
    let request = b"GET /readyz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let _ = stream.write_all(request).await;
    let _ = stream.read_to_end(&mut response).await;
    response.starts_with(b"HTTP/1.1 200 ")
}
