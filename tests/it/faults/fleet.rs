//! Gateways as separate processes, with the simulated WeChat and the service that they use.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;
use wxgate::clock::Clock;
use wxgate::listener::small_server::{response, serve};
use wxgate::wechat::sandbox::Sandbox;

use crate::harness::command::wxgate;
use crate::harness::{APP, PATIENCE, SECRET, client, config_text};

pub struct Fleet {
    gateways: Vec<Gateway>,
    _around: [AbortOnDropHandle<()>; 2],
}

struct Gateway {
    address: SocketAddr,
    admin: SocketAddr,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Fleet {
    /// A gateway for each URL of a store, all with the same `more`, TOML.
    pub async fn start(urls: &[String], more: &str) -> Self {
        let wechat = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", wechat.local_addr().unwrap());
        let sandbox = Sandbox::new(vec![(APP.to_owned(), SECRET.to_owned())], Clock::system());
        let wechat = tokio::spawn(sandbox.serve(wechat));
        let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = service.local_addr().unwrap();
        let service = tokio::spawn(async move {
            match serve(service, |_| async { Ok(response(200, "text/plain", "hello")) }).await {}
        });
        let gateways = urls.iter().map(|url| Gateway::start(url, &base_url, upstream, more));
        let gateways: Vec<_> = gateways.collect();
        for gateway in &gateways {
            gateway.until_ready().await;
        }
        Self { gateways, _around: [wechat, service].map(AbortOnDropHandle::new) }
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(|gateway| gateway.address).collect()
    }
}

impl Gateway {
    fn start(url: &str, base_url: &str, upstream: SocketAddr, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [address, admin] = [free_address(), free_address()];
        let key = directory.path().join("seal");
        std::fs::write(&key, "5ea1".repeat(16)).unwrap();
        let changes = format!(
            "server.listen = \"{address}\"\nadmin.listen = \"{admin}\"\n\
             session.seal_key = {{ file = \"{}\" }}\nsession.redis.url = \"{url}\"\n{more}",
            key.display()
        );
        let file = directory.path().join("gateway.toml");
        std::fs::write(&file, config_text(directory.path(), base_url, upstream, &changes)).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = wxgate()
            .args(["run", "--config", file.to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { address, admin, child, _directory: directory }
    }

    async fn until_ready(&self) {
        let begun = Instant::now();
        let is_up = async || tokio::net::TcpStream::connect(self.admin).await.is_ok();
        while !is_up().await || client::get(self.admin, "/readyz").await.status != 200 {
            assert!(begun.elapsed() < PATIENCE, "a gateway is not ready in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
