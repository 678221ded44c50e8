//! Accepts the connections of services: TCP, TLS, or a Unix socket.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::InternalApi;
use crate::listener::accepting;
use crate::listener::small_server::{ConnectionLimits, Dropped, Request, serve_connection};
use crate::listener::unix_socket::SocketFile;
use crate::telemetry::log_throttle::LogThrottle;

/// Concurrent connections at most, if `limits.max_connections` allows as many.
const MAX_CONNECTIONS: usize = 2048;

/// How many connections there may be.
struct Permits {
    most: usize,
    free: Arc<Semaphore>,
    full: LogThrottle,
    failed: LogThrottle,
}

/// Where connections come from.
pub enum Listener {
    Tcp(TcpListener),
    /// The file is removed when no more connections are accepted.
    Unix(UnixListener, SocketFile),
}

/// Accepts connections until `closing` is cancelled, and then those that wait in the kernel's
/// queue. `connections` tracks them to their end.
pub async fn serve(
    listener: Listener,
    api: Arc<InternalApi>,
    connections: TaskTracker,
    closing: CancellationToken,
) {
    // File descriptors are shared with the public listeners.
    let most = (api.policies.current().limits.max_connections / 2).clamp(1, MAX_CONNECTIONS);
    let permits = Permits {
        most,
        free: Arc::new(Semaphore::new(most)),
        full: LogThrottle::new(api.process.clock.clone()),
        failed: LogThrottle::new(api.process.clock.clone()),
    };
    match listener {
        Listener::Tcp(listener) => {
            let serve = |stream, peer: SocketAddr| {
                let Some(permit) = permits.acquire() else { return };
                let peer = peer.ip().to_canonical();
                connections.spawn(serve_tcp(api.clone(), stream, peer, permit));
            };
            let accept = async {
                loop {
                    let Some((stream, peer)) = permits.next(listener.accept()).await else {
                        continue;
                    };
                    serve(stream, peer);
                }
            };
            closing.run_until_cancelled(accept).await;
            let Ok(listener) = listener.into_std() else { return };
            for (stream, peer) in accepting::waiting(|| listener.accept()) {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    serve(stream, peer);
                }
            }
        }
        Listener::Unix(listener, _file) => {
            let serve = |stream| {
                let Some(permit) = permits.acquire() else { return };
                let api = api.clone();
                connections.spawn(async move {
                    serve_stream(&api, stream, None).await;
                    drop(permit);
                });
            };
            let accept = async {
                loop {
                    let Some((stream, _)) = permits.next(listener.accept()).await else { continue };
                    serve(stream);
                }
            };
            closing.run_until_cancelled(accept).await;
            let Ok(listener) = listener.into_std() else { return };
            for (stream, _) in accepting::waiting(|| listener.accept()) {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = UnixStream::from_std(stream)
                {
                    serve(stream);
                }
            }
        }
    }
}

impl Permits {
    /// The next connection. After a failure, waits until file descriptors may be free again.
    async fn next<T>(&self, accepted: impl Future<Output = io::Result<T>>) -> Option<T> {
        match accepted.await {
            Ok(accepted) => Some(accepted),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => None,
            Err(error) => {
                if let Some(suppressed) = self.failed.suppressed() {
                    tracing::error!(%error, suppressed, "cannot accept connections of services");
                }
                tokio::time::sleep(accepting::PAUSE).await;
                None
            }
        }
    }

    /// Permission for one more connection; without it, the connection is closed.
    fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.free.clone().try_acquire_owned().ok();
        if permit.is_none()
            && let Some(suppressed) = self.full.suppressed()
        {
            tracing::warn!(
                most = self.most,
                suppressed,
                "services have too many connections: new ones are closed; logged once a minute"
            );
        }
        permit
    }
}

async fn serve_tcp(
    api: Arc<InternalApi>,
    stream: TcpStream,
    peer: IpAddr,
    _permit: OwnedSemaphorePermit,
) {
    // Responses are flushed whole: waiting for more data would only delay them.
    let _ = stream.set_nodelay(true);
    let tls = api.policies.read(|policy| policy.internal.as_ref().map(|one| one.tls.clone()));
    match tls {
        // Without its section there is no such listener.
        None => {}
        Some(None) => serve_stream(&api, stream, Some(peer)).await,
        Some(Some(tls)) => {
            if let Some(stream) = tls.accept(stream).await {
                serve_stream(&api, stream, Some(peer)).await;
            }
        }
    }
}

async fn serve_stream<S>(api: &InternalApi, stream: S, peer: Option<IpAddr>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = api.policies.read(|policy| ConnectionLimits {
        // Services keep connections for their next call.
        header_timeout: policy.limits.idle_timeout,
        write_timeout: policy.limits.write_timeout,
        max_header: policy.limits.max_header + policy.limits.max_target,
    });
    let mut closing = api.process.lifecycle.closing();
    let closing = async move {
        // Cannot fail: the sender lives as long as the process.
        drop(closing.wait_for(|closing| *closing).await);
    };
    let handler =
        |request: Request| async move { Ok::<_, Dropped>(api.respond(request, peer).await) };
    serve_connection(stream, limits, closing, handler).await;
}
