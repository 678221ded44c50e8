//! A TCP proxy in front of a server: a test can slow down, stall or cut its connections, all of
//! them or those from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// How bytes are forwarded, in both directions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Each piece is delayed by this time.
    Slow(Duration),
    /// Bytes are held back without an error, as if packets were lost, until this ends.
    Silent,
    /// Connections are closed.
    Cut,
}

pub struct FaultProxy {
    pub port: u16,
    ways: watch::Sender<HashMap<IpAddr, Way>>,
    _accepting: AbortOnDropHandle<()>,
}

impl FaultProxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let (ways, receiver) = watch::channel(HashMap::new());
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (client, from) = listener.accept().await.unwrap();
                connections.spawn(pass(client, port, from.ip(), receiver.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { port: own_port, ways, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// From now on, for clients at 127.0.0.1, as gateways and tests are.
    pub fn set(&self, way: Way) {
        self.set_from("127.0.0.1", way);
    }

    pub fn set_from(&self, address: &str, way: Way) {
        self.ways.send_modify(|ways| {
            ways.insert(address.parse().unwrap(), way);
        });
    }
}

type Ways = watch::Receiver<HashMap<IpAddr, Way>>;

fn way(ways: &HashMap<IpAddr, Way>, from: IpAddr) -> Way {
    ways.get(&from).copied().unwrap_or(Way::Open)
}

async fn pass(client: TcpStream, port: u16, from: IpAddr, mut ways: Ways) {
    let is_let_in = ways.wait_for(|ways| way(ways, from) != Way::Silent).await;
    if is_let_in.is_ok_and(|ways| way(&ways, from) == Way::Cut) {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let ((client_reads, client_writes), (server_reads, server_writes)) =
        (client.into_split(), server.into_split());
    let mut cut = ways.clone();
    tokio::select! {
        () = copy(client_reads, server_writes, from, ways.clone()) => {}
        () = copy(server_reads, client_writes, from, ways) => {}
        _ = cut.wait_for(|ways| way(ways, from) == Way::Cut) => {}
    }
}

async fn copy(mut reads: OwnedReadHalf, mut writes: OwnedWriteHalf, from: IpAddr, mut ways: Ways) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = reads.read(&mut buffer).await {
        let opened = ways.wait_for(|ways| way(ways, from) != Way::Silent).await;
        let now = opened.map(|ways| way(&ways, from));
        if let Ok(Way::Slow(pause)) = now {
            tokio::time::sleep(pause).await;
        }
        if writes.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
}
