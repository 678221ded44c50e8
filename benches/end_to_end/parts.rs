//! What `benches/end_to_end` needs besides the peers' packages: an empty pingora proxy, an auth
//! server for nginx's `auth_request`, a load of a fixed rate, and one of TLS handshakes.
//!
//! ```text
//! parts empty LISTEN SERVICE
//! parts auth LISTEN USERS            lines of "TOKEN OPENID"
//! parts pace TARGET RATE SECONDS CONNECTIONS TOKENS
//! parts handshakes TARGET SECONDS CLIENTS full|resumed
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench that cannot be set up has nothing to say"
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::Empty;
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsConnector;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["empty", listen, service] => empty_proxy(listen, service.parse().unwrap()),
        ["auth", listen, users] => block_on(auth_server(listen, users)),
        ["pace", target, rate, seconds, connections, tokens] => block_on(pace(
            target.parse().unwrap(),
            rate.parse().unwrap(),
            Duration::from_secs_f64(seconds.parse().unwrap()),
            connections.parse().unwrap(),
            tokens,
        )),
        ["handshakes", target, seconds, clients, kind] => block_on(handshakes(
            target.parse().unwrap(),
            Duration::from_secs_f64(seconds.parse().unwrap()),
            clients.parse().unwrap(),
            kind == "resumed",
        )),
        // Cargo runs every bench; this one is a tool.
        _ => {}
    }
}

fn block_on<F: Future<Output = ()>>(future: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

struct EmptyProxy(SocketAddr);

#[async_trait]
impl ProxyHttp for EmptyProxy {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    fn init_downstream_modules(&self, _: &mut pingora::modules::http::HttpModules) {}

    async fn upstream_peer(
        &self,
        _: &mut Session,
        (): &mut Self::CTX,
    ) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

/// pingora with nothing in it, on one thread.
fn empty_proxy(listen: &str, service: SocketAddr) {
    let conf = ServerConf {
        threads: 1,
        work_stealing: false,
        upstream_keepalive_pool_size: 1024,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let mut proxy = http_proxy_service(&server.configuration, EmptyProxy(service));
    proxy.add_tcp(listen);
    server.add_service(proxy);
    server.run_forever();
}

/// Looks tokens up in a map, and says whose they are.
async fn auth_server(listen: &str, users: &str) {
    let text = std::fs::read_to_string(users).unwrap();
    let users: HashMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(token, openid)| (token.to_owned(), openid.to_owned()))
        .collect();
    let users = Arc::new(users);
    let listener = TcpListener::bind(listen).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let users = users.clone();
        let answer = service_fn(move |request: hyper::Request<Incoming>| {
            let token = request.headers().get("x-3rd-session");
            let openid = token.and_then(|token| users.get(token.to_str().ok()?));
            let answer = match openid {
                Some(openid) => Response::builder().header("x-openid", openid),
                None => Response::builder().status(401),
            };
            let answer = answer.body(Empty::<Bytes>::new());
            async move { answer }
        });
        tokio::spawn(async move {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            drop(connection.await);
        });
    }
}

/// Requests at a fixed rate, whatever becomes of them; prints how many there were, and the
/// median and the 99th percentile of their times in microseconds. Who waits for its turn on a
/// connection that is still busy waits on the clock.
async fn pace(target: SocketAddr, rate: f64, duration: Duration, connections: u32, tokens: &str) {
    let tokens = std::fs::read_to_string(tokens).unwrap();
    let tokens: Arc<Vec<String>> = Arc::new(tokens.lines().map(str::to_owned).collect());
    let interval = Duration::from_secs_f64(f64::from(connections) / rate);
    let begin = Instant::now() + Duration::from_millis(50);
    let clients: Vec<_> = (0..connections)
        .map(|number| {
            let first = begin + interval.mul_f64(f64::from(number) / f64::from(connections));
            let tokens = tokens.clone();
            tokio::spawn(async move {
                client(target, first, interval, begin + duration, &tokens, number as usize).await
            })
        })
        .collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.unwrap());
    }
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_micros();
    println!("{} {} {}", times.len(), at(50), at(99));
}

async fn client(
    target: SocketAddr,
    mut due: Instant,
    interval: Duration,
    end: Instant,
    tokens: &[String],
    number: usize,
) -> Vec<Duration> {
    let mut stream = TcpStream::connect(target).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut times = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    for turn in 0.. {
        if due >= end {
            break;
        }
        let mut began = due;
        if Instant::now() < due {
            sleep_until(due).await;
            // The timer's own lateness is nobody's fault.
            began = Instant::now();
        }
        let token = &tokens[(number * 7919 + turn) % tokens.len()];
        let request = format!(
            "GET /api/orders/{turn}?page=2 HTTP/1.1\r\nHost: api.example.com\r\n\
             User-Agent: Mozilla/5.0 (iPhone) MicroMessenger/8.0.66\r\n\
             Content-Type: application/json\r\nX-3rd-Session: {token}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = 0;
        // The service's answer ends so, and has a Content-Length.
        while !buffer[..read].ends_with(b"\"page\":2}") {
            let count = stream.read(&mut buffer[read..]).await.unwrap();
            assert_ne!(count, 0, "closed");
            read += count;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"));
        times.push(began.elapsed());
        due += interval;
    }
    times
}

/// Connections with one handshake and one request each; prints how many there were. All are
/// full, or all but the first of each client are resumed.
async fn handshakes(target: SocketAddr, duration: Duration, clients: usize, resumed: bool) {
    let end = Instant::now() + duration;
    let clients: Vec<_> = (0..clients)
        .map(|_| {
            tokio::spawn(async move {
                let connector = connector(resumed);
                let mut count = 0;
                while Instant::now() < end {
                    let kind = handshake(target, &connector).await;
                    assert_eq!(kind == HandshakeKind::Resumed, resumed && count > 0, "{kind:?}");
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for client in clients {
        count += client.await.unwrap();
    }
    println!("{count}");
}

fn connector(resumes: bool) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    if !resumes {
        config.resumption = Resumption::disabled();
    }
    TlsConnector::from(Arc::new(config))
}

async fn handshake(target: SocketAddr, connector: &TlsConnector) -> HandshakeKind {
    let stream = TcpStream::connect(target).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    // Tickets come with the answer.
    let mut answer = Vec::new();
    // Not all servers say that they close.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    stream.get_ref().1.handshake_kind().unwrap()
}

/// Believes any certificate, at no cost: measured is the server.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
