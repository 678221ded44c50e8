//! A service that speaks HTTP/2 without TLS, made with `h2`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::PATIENCE;

/// A request, and where to respond to it.
pub struct Call {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
}

pub struct Http2Service {
    pub address: SocketAddr,
    calls: mpsc::UnboundedReceiver<Call>,
    /// Connections so far, and those that are open.
    opened: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    closing: watch::Sender<usize>,
}

impl Http2Service {
    pub async fn start() -> Self {
        Self::start_with(Builder::new()).await
    }

    pub async fn start_with(builder: Builder) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, calls) = mpsc::unbounded_channel();
        let (opened, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let closing = watch::Sender::new(0);
        let (counted, counted_open, closes) = (opened.clone(), open.clone(), closing.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                counted_open.fetch_add(1, Ordering::Relaxed);
                let (builder, sender, open) =
                    (builder.clone(), sender.clone(), counted_open.clone());
                let mut closing = closes.subscribe();
                tokio::spawn(async move {
                    if let Ok(mut connection) = builder.handshake(stream).await {
                        loop {
                            tokio::select! {
                                accepted = connection.accept() => {
                                    let Some(Ok((request, respond))) = accepted else { break };
                                    let _ = sender.send(Call { request, respond });
                                }
                                Ok(()) = closing.changed() => connection.graceful_shutdown(),
                            }
                        }
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, calls, opened, open, closing }
    }

    /// The next request.
    pub async fn call(&mut self) -> Call {
        timeout(PATIENCE, self.calls.recv()).await.expect("a request in time").unwrap()
    }

    /// Responds to every request with 200 and its body.
    pub fn echo(mut self) -> SocketAddr {
        let address = self.address;
        tokio::spawn(async move {
            while let Some(call) = self.calls.recv().await {
                tokio::spawn(call.echo());
            }
        });
        address
    }

    pub fn connections(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Announces on all connections that they end (GOAWAY).
    pub fn go_away(&self) {
        self.closing.send_modify(|times| *times += 1);
    }

    /// The configuration of an upstream `recorder` with this service and these keys.
    pub fn section(&self, keys: &str) -> String {
        section(self.address, keys)
    }
}

/// The configuration of an upstream `recorder` that speaks HTTP/2, with these keys.
pub fn section(address: SocketAddr, keys: &str) -> String {
    format!(
        "[[upstream]]\nname = \"recorder\"\nservers = [\"{address}\"]\nprotocol = \"h2\"\n{keys}\n"
    )
}

impl Call {
    /// The whole body, and the trailers.
    pub async fn body(&mut self) -> (Vec<u8>, Option<HeaderMap>) {
        read(self.request.body_mut()).await.unwrap()
    }

    /// Begins a response with a body.
    pub fn begin(&mut self, lines: &[(&'static str, &str)]) -> SendStream<Bytes> {
        self.respond.send_response(response(200, lines), false).unwrap()
    }

    pub async fn echo(mut self) {
        let mut send = self.begin(&[]);
        let body = self.request.body_mut();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            if send_all(&mut send, data).await.is_err() {
                return;
            }
        }
        let _ = send.send_data(Bytes::new(), true);
    }
}

pub fn response(status: u16, lines: &[(&'static str, &str)]) -> Response<()> {
    let mut response = Response::builder().status(status);
    for (name, value) in lines {
        response = response.header(*name, *value);
    }
    response.body(()).unwrap()
}

/// Sends bytes as the window allows.
pub async fn send_all(send: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
        let Some(capacity) = capacity else { return Err(h2::Reason::CANCEL.into()) };
        let length = capacity?.min(bytes.len());
        send.send_data(bytes.split_to(length), false)?;
    }
    Ok(())
}

/// Reads a body to its end.
pub async fn read(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    let whole = async {
        while let Some(data) = body.data().await {
            let data = data?;
            let _ = body.flow_control().release_capacity(data.len());
            bytes.extend_from_slice(&data);
        }
        body.trailers().await
    };
    let trailers = timeout(PATIENCE, whole).await.expect("a body in time")?;
    Ok((bytes, trailers))
}
