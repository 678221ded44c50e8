//! A name server for tests, on UDP sockets of its own.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{CNAME, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::Resolver;

/// How the server responds to a name.
#[derive(Clone)]
pub enum Reply {
    /// These addresses, with this TTL in seconds.
    Addresses(Vec<IpAddr>, u32),
    /// The same, but they do not fit into a datagram: only over TCP.
    ManyAddresses(Vec<IpAddr>, u32),
    /// An alias with a TTL; the name behind it is in the same response if it is known.
    Alias(&'static str, u32),
    /// The name exists without an address.
    Empty,
    /// With the TTL of the negative response.
    NoSuchName(Option<u32>),
    Failure(ResponseCode),
    /// None at all.
    Silence,
    /// Addresses for A; nothing for AAAA.
    SilenceForIpv6(Vec<IpAddr>, u32),
}

/// Addresses, as they are written.
pub fn addresses(written: &[&str]) -> Vec<IpAddr> {
    written.iter().map(|address| address.parse().unwrap()).collect()
}

/// Names that do not exist are denied for a minute.
pub struct DnsServer {
    pub port: u16,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    /// The names of the queries, with the record type, in order.
    asked: Arc<Mutex<Vec<String>>>,
    files: TempDir,
}

impl DnsServer {
    /// On 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, 0).await.unwrap()
    }

    /// On another loopback address, with the same port as an earlier one.
    pub async fn start_at(address: Ipv4Addr, port: u16) -> std::io::Result<Self> {
        let (listener, socket) = loop {
            let listener = TcpListener::bind(SocketAddr::from((address, port))).await?;
            match UdpSocket::bind(listener.local_addr()?).await {
                Ok(socket) => break (listener, socket),
                // Another one has this port.
                Err(_) if port == 0 => {}
                Err(error) => return Err(error),
            }
        };
        let port = socket.local_addr()?.port();
        let replies: Arc<Mutex<HashMap<String, Reply>>> = Arc::default();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        tokio::spawn(serve(socket, replies.clone(), asked.clone()));
        tokio::spawn(serve_tcp(listener, replies.clone()));
        Ok(Self { port, replies, asked, files: tempfile::tempdir()? })
    }

    /// How it responds to a full name from now on.
    pub fn set(&self, name: &str, reply: Reply) {
        self.replies.lock().insert(format!("{name}."), reply);
    }

    /// The queries since the last call, in order and without repetitions.
    pub fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock());
        asked.dedup();
        asked
    }

    /// A resolver that asks this server.
    pub fn resolver(&self) -> Arc<Resolver> {
        self.resolver_with("nameserver 127.0.0.1\n", "")
    }

    /// The same with other contents of the two files.
    pub fn resolver_with(&self, resolv_conf: &str, hosts: &str) -> Arc<Resolver> {
        let path = |name: &str| self.files.path().join(name);
        self.write("resolv.conf", resolv_conf);
        self.write("hosts", hosts);
        Arc::new(Resolver::with(path("resolv.conf"), path("hosts"), self.port))
    }

    /// Replaces a file of the resolver.
    pub fn write(&self, name: &str, content: &str) {
        std::fs::write(self.files.path().join(name), content).unwrap();
    }
}

async fn serve(
    socket: UdpSocket,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<Vec<String>>>,
) {
    let mut buffer = [0; 2048];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let question = &query.queries[0];
        let name = question.name().to_ascii().to_ascii_lowercase();
        asked.lock().push(format!("{name} {}", question.query_type()));
        let response = respond(&query, &replies.lock(), false);
        if let Some(response) = response {
            let _ = socket.send_to(&response.to_vec().unwrap(), peer).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, replies: Arc<Mutex<HashMap<String, Reply>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        while let Ok(length) = stream.read_u16().await {
            let mut buffer = vec![0; length.into()];
            stream.read_exact(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer).unwrap();
            let response = respond(&query, &replies.lock(), true);
            let response = response.unwrap().to_vec().unwrap();
            stream.write_u16(response.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&response).await.unwrap();
        }
    }
}

fn respond(query: &Message, replies: &HashMap<String, Reply>, is_tcp: bool) -> Option<Message> {
    let question = &query.queries[0];
    let mut response = Message::new(query.id, MessageType::Response, query.op_code);
    response.add_query(question.clone());
    response.metadata.recursion_desired = true;
    response.metadata.recursion_available = true;
    let deny = |response: &mut Message, ttl| {
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 3600, 600, 86400, ttl);
        response.add_authority(Record::from_rdata(root, ttl, RData::SOA(soa)));
    };
    let mut name = question.name().clone();
    loop {
        let reply = replies.get(&name.to_ascii().to_ascii_lowercase());
        match reply.cloned().unwrap_or(Reply::NoSuchName(Some(60))) {
            Reply::SilenceForIpv6(..) if question.query_type() == RecordType::AAAA => return None,
            Reply::ManyAddresses(..) if !is_tcp => response.metadata.truncation = true,
            Reply::Addresses(addresses, ttl)
            | Reply::ManyAddresses(addresses, ttl)
            | Reply::SilenceForIpv6(addresses, ttl) => {
                let records = addresses
                    .into_iter()
                    .map(|address| Record::from_rdata(name.clone(), ttl, RData::from(address)))
                    .filter(|record| record.record_type() == question.query_type());
                response.add_answers(records);
                if response.answers.is_empty() {
                    deny(&mut response, 60);
                }
            }
            Reply::Alias(target, ttl) => {
                let target = Name::from_ascii(format!("{target}.")).unwrap();
                let alias = RData::CNAME(CNAME(target.clone()));
                response.add_answer(Record::from_rdata(name, ttl, alias));
                name = target;
                continue;
            }
            Reply::Empty => deny(&mut response, 60),
            Reply::NoSuchName(ttl) => {
                response.metadata.response_code = ResponseCode::NXDomain;
                if let Some(ttl) = ttl {
                    deny(&mut response, ttl);
                }
            }
            Reply::Failure(code) => response.metadata.response_code = code,
            Reply::Silence => return None,
        }
        return Some(response);
    }
}
