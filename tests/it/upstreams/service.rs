//! A service of few lines that speaks TLS, or listens where the recorder does not.
//!
//! It reads each request and responds with its name, and counts connections.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::harness::certificate::{Authority, Issued};
use crate::harness::install_provider;

pub struct Service {
    /// As it is written in the configuration.
    pub address: String,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

struct State {
    name: String,
    tls: Mutex<Option<Arc<ServerConfig>>>,
    /// Sent instead of a response, before the connection is closed.
    last: Mutex<Option<&'static str>>,
    /// Connections on which at least one request came.
    used: AtomicUsize,
    /// Handshakes with a client certificate.
    presented: AtomicUsize,
}

impl State {
    fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            tls: Mutex::default(),
            last: Mutex::default(),
            used: AtomicUsize::new(0),
            presented: AtomicUsize::new(0),
        })
    }
}

impl Service {
    /// On TCP. `address` has port 0.
    pub async fn tcp(name: &str, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = State::new(name);
        let served = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, served.clone()));
            }
        });
        Self { address, state, accepting }
    }

    /// On a unix socket.
    pub fn unix(name: &str, path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let state = State::new(name);
        let served = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, served.clone()));
            }
        });
        Self { address: format!("unix:{}", path.display()), state, accepting }
    }

    /// Sends these bytes instead of a response, and closes the connection: with TLS, without
    /// announcing its end.
    pub fn end_with(&self, bytes: &'static str) {
        *self.state.last.lock().unwrap() = Some(bytes);
    }

    /// Uses this certificate for new connections.
    pub fn certify(&self, issued: &Issued) {
        self.certify_with(issued, None, &[]);
    }

    /// The same; only clients with a certificate of `clients` are served. `alpn`: the protocols to
    /// choose from.
    pub fn certify_with(&self, issued: &Issued, clients: Option<&Authority>, alpn: &[&str]) {
        install_provider();
        let builder = match clients {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.certificate.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
                ServerConfig::builder().with_client_cert_verifier(verifier)
            }
            None => ServerConfig::builder().with_no_client_auth(),
        };
        let key = issued.key.serialize_der().try_into().unwrap();
        let mut config = builder.with_single_cert(vec![issued.der().clone()], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        *self.state.tls.lock().unwrap() = Some(Arc::new(config));
    }

    /// Connections on which at least one request came.
    pub fn used(&self) -> usize {
        self.state.used.load(Ordering::SeqCst)
    }

    /// Handshakes with a client certificate.
    pub fn presented(&self) -> usize {
        self.state.presented.load(Ordering::SeqCst)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    let config = state.tls.lock().unwrap().clone();
    let Some(config) = config else { return respond(stream, &state).await };
    let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
    if stream.get_ref().1.peer_certificates().is_some() {
        state.presented.fetch_add(1, Ordering::SeqCst);
    }
    respond(stream, &state).await;
}

async fn respond(mut stream: impl AsyncRead + AsyncWrite + Unpin, state: &State) {
    let mut is_used = false;
    let mut read = Vec::new();
    loop {
        while !is_whole(&read) {
            if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
                return;
            }
        }
        if !std::mem::replace(&mut is_used, true) {
            state.used.fetch_add(1, Ordering::SeqCst);
        }
        let last = *state.last.lock().unwrap();
        let (length, name) = (state.name.len(), &state.name);
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
        let bytes = last.unwrap_or(&response).as_bytes();
        if stream.write_all(bytes).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        if last.is_some() {
            return;
        }
        read.clear();
    }
}

/// Whether this is a request with its body, which has a length if there is one.
fn is_whole(read: &[u8]) -> bool {
    let end = read.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    end.is_some_and(|end| {
        let header = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
        let length = header.lines().find_map(|line| line.strip_prefix("content-length: "));
        read.len() == end + 4 + length.map_or(0, |length| length.parse::<usize>().unwrap())
    })
}
