//! A request that was upgraded to a WebSocket: bytes are forwarded both ways until one side closes,
//! or until the time limit or the session ends.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};

use super::body::{BodySource, BodyTarget, Limits, Relay};
use super::failure::Stop;
use super::forward::{Exchange, Response};
use super::{After, Gateway, buffers, compose};

/// How often to check that the session has not ended.
const WATCH: Duration = Duration::from_millis(500);

/// How long both sides may take to close properly after a WebSocket was ended.
const ORDERLY_END: Duration = Duration::from_millis(250);

impl Gateway {
    /// Forwards bytes both ways until one side closes, or until the session or the time of the
    /// tunnel ends.
    pub(super) async fn tunnel(
        &self,
        exchange: Exchange<'_>,
        response: Response,
    ) -> Result<After, Stop> {
        let Exchange { client, request, mut service, .. } = exchange;
        let Response { head, mut lines, rest: mut from_service } = response;
        request.upstream_status = Some(101);
        let mut out = buffers::take();
        compose::switching(request, &head, &mut lines, &mut out);
        let sent = client.send(&out, request.policy.limits.write_timeout).await;
        buffers::give(out);
        sent.map_err(|_| Stop::Left)?;
        request.status = Some(101);

        let (idle, lifetime) = (
            request.policy.limits.websocket_idle_timeout,
            request.policy.limits.websocket_lifetime,
        );
        let raw = || {
            // Messages are short, and there may be many tunnels.
            let limits = Limits { read: buffers::SMALL, ..Limits::NONE };
            Relay::new(BodySource::Close, BodyTarget::Plain, limits, Vec::new())
        };
        let (mut up, mut down) = (raw(), raw());
        let session = request.verdict.session.clone();
        // Runs concurrently, so that a slow store does not delay the bytes.
        let watch = async {
            let started = Instant::now();
            while started.elapsed() < lifetime {
                sleep(WATCH.min(lifetime)).await;
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
            let before = (up.passed, down.passed);
            let io = &mut client.io;
            let sent = up.poll(cx, io, &mut client.held, &mut service.io, &mut none);
            let read = down.poll(cx, &mut service.io, &mut from_service, io, &mut none);
            if let Some(session) = session.as_ref().filter(|_| up.passed > before.0) {
                // Bytes from the client count as a use of the session.
                self.process.sessions.touch(session);
            }
            if sent.is_ready() || read.is_ready() {
                return Poll::Ready(());
            }
            if before != (up.passed, down.passed) {
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
        let _ = timeout(ORDERLY_END, end).await;
        (request.bytes_in, request.bytes_out) = (up.passed, down.passed);
        Ok(After::Closes)
    }
}
