//! A small HTTP/1 server for listeners that are not public.
//!
//! The admin listener, the internal API, the sandbox and the demo's echo service serve trusted
//! people, scrapers and services. They share this use of hyper. Public traffic never reaches it.

pub(crate) mod write_timeout;

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::write_timeout::WriteTimeout;
use super::accepting;

pub type Request = http::Request<Incoming>;
pub type Response = http::Response<Full<Bytes>>;

/// The address of the peer, in the extensions of a request.
#[derive(Clone, Copy)]
pub struct Peer(pub IpAddr);

/// Time to receive a complete request header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The smallest buffer that hyper accepts for a request header.
const LEAST_BUFFER: usize = 8 << 10;

/// How long an open connection may still begin a request after its listener was closed. Until then
/// the request gets its response, and with that the client learns that the connection is closed.
pub const LAST_REQUEST: Duration = Duration::from_secs(1);

/// The handler's signal to drop the connection.
#[derive(Debug)]
pub struct Dropped;

impl fmt::Display for Dropped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("dropped")
    }
}

impl Error for Dropped {}

/// Limits of one connection.
#[derive(Clone, Copy)]
pub struct ConnectionLimits {
    /// Time to receive a complete request header, from the end of the request before.
    pub header_timeout: Duration,
    /// How long the peer may accept none of the bytes sent to it.
    pub write_timeout: Duration,
    /// Bytes of a request header.
    pub max_header: usize,
}

/// Serves connections until the future is dropped.
pub async fn serve<H, F>(listener: TcpListener, handler: H) -> Infallible
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response, Dropped>> + Send + 'static,
{
    serve_until(listener, CancellationToken::new(), handler).await;
    std::future::pending().await
}

/// Serves connections until `closing` is cancelled. Those that are open end a second later, or after
/// the request that is in flight then.
pub async fn serve_until<H, F>(listener: TcpListener, closing: CancellationToken, handler: H)
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response, Dropped>> + Send + 'static,
{
    let handler = Arc::new(handler);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => break,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(accepting::PAUSE).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let handler = handler.clone();
        let service = service_fn(move |mut request: Request| {
            request.extensions_mut().insert(Peer(peer.ip()));
            handler(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let closing = closing.clone();
        let closing = async move {
            closing.cancelled().await;
            tokio::time::sleep(LAST_REQUEST).await;
        };
        connections.spawn(until_closing(connection, closing));
    }
    drop(listener);
    connections.join_all().await;
}

/// Serves one connection to its end. When `closing` completes, it ends after the request in flight.
pub async fn serve_connection<S, H, F, B>(
    stream: S,
    limits: ConnectionLimits,
    closing: impl Future<Output = ()>,
    handler: H,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request) -> F,
    F: Future<Output = Result<http::Response<B>, Dropped>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let stream = TokioIo::new(WriteTimeout::new(stream, limits.write_timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.max_header.max(LEAST_BUFFER))
        .serve_connection(stream, service_fn(handler));
    until_closing(connection, closing).await;
}

/// Serves a connection to its end. When `closing` completes, it ends after the request in flight.
async fn until_closing<S, H, B>(
    connection: http1::Connection<TokioIo<S>, H>,
    closing: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    H: HttpService<Incoming, ResBody = B>,
    H::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        // A broken connection is the client's problem.
        _ = connection.as_mut() => return,
        () = closing => {}
    }
    connection.as_mut().graceful_shutdown();
    drop(connection.await);
}

/// A response with a complete body.
pub fn response(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() =
        http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
