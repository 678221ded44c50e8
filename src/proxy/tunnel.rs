//! A request that was upgraded to a WebSocket: bytes are forwarded both ways until one side closes,
//! a time limit is reached, or the session ends.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};

use super::body::{BodySource, BodyTarget, Limits, Transfer};
use super::failure::Stop;
use super::forward::{ForwardedRequest, Response};
use super::{After, Gateway, buffers, compose};

/// How often to check that the session has not ended.
const SESSION_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// How long both sides may take to close properly after a WebSocket was ended.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);

impl Gateway {
    /// Forwards bytes both ways until one side closes, the session ends, or the connection has
    /// reached `limits.websocket_idle_timeout` or `limits.websocket_lifetime`.
    pub(super) async fn tunnel(
        &self,
        forwarded: ForwardedRequest<'_>,
        response: Response,
    ) -> Result<After, Stop> {
        let ForwardedRequest { client, request, connection: mut service, .. } = forwarded;
        let Response { header, mut lines, rest: mut from_service, .. } = response;
        request.upstream_status = Some(101);
        let mut out = buffers::take();
        compose::switching(request, &header, &mut lines, &mut out);
        let sent = client.send(&out, request.policy.limits.write_timeout).await;
        buffers::give(out);
        sent.map_err(|_| Stop::Disconnected)?;
        request.status = Some(101);

        let (idle, lifetime) = (
            request.policy.limits.websocket_idle_timeout,
            request.policy.limits.websocket_lifetime,
        );
        let raw = || {
            // Messages are short, and there may be many tunnels.
            let limits = Limits { read: buffers::SMALL, ..Limits::NONE };
            Transfer::new(BodySource::Close, BodyTarget::Plain, limits, Vec::new())
        };
        let (mut up, mut down) = (raw(), raw());
        let session = request.verdict.session.clone();
        // Runs concurrently, so that a slow store does not delay the bytes.
        let watch = async {
            let started = Instant::now();
            while started.elapsed() < lifetime {
                sleep(SESSION_CHECK_INTERVAL.min(lifetime)).await;
                if let Some(session) = &session
                    && !self.process.sessions.is_still_live(session).await
                {
                    return;
                }
            }
        };
        let mut watch = pin!(watch);
        let mut none = |_: &[u8], _: &mut Vec<u8>| Ok(());
        client.deadline.set(Instant::now() + idle);
        poll_fn(|cx| {
            let before = (up.received, down.received);
            let io = &mut client.io;
            let sent = up.poll(cx, io, &mut client.held, &mut service.io, &mut none);
            let read = down.poll(cx, &mut service.io, &mut from_service, io, &mut none);
            if let Some(session) = session.as_ref().filter(|_| up.received > before.0) {
                // Bytes from the client count as a use of the session.
                self.process.sessions.touch(session);
            }
            if sent.is_ready() || read.is_ready() {
                return Poll::Ready(());
            }
            if before != (up.received, down.received) {
                client.deadline.set(Instant::now() + idle);
            }
            if client.deadline.poll_over(cx).is_ready() {
                return Poll::Ready(());
            }
            watch.as_mut().poll(cx)
        })
        .await;
        // The service is notified of the end, and what it still sends is forwarded.
        let end = async {
            let _ = service.io.shutdown().await;
            let io = &mut client.io;
            let rest =
                poll_fn(|cx| down.poll(cx, &mut service.io, &mut from_service, io, &mut none));
            let _ = rest.await;
            let _ = client.io.shutdown().await;
        };
        let _ = timeout(CLOSE_TIMEOUT, end).await;
        (request.bytes_in, request.bytes_out) = (up.received, down.received);
        Ok(After::Close)
    }
}
