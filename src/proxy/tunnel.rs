//! A request that has become a WebSocket, and its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::http::RequestHeader;
use tokio_util::task::AbortOnDropHandle;

use super::Gateway;
use super::context::RequestContext;
use crate::progress::Progress;

/// A tunnel is cut so soon after its session has ended.
const TUNNEL_WATCH: Duration = Duration::from_millis(500);

impl Gateway {
    /// Lets bytes pass, and watches over them until their session or their time ends.
    pub(super) fn open_tunnel(&self, request: &RequestHeader, context: &mut RequestContext) {
        let Some(tunnel) = context.tunnel.clone() else { return };
        tunnel.open();
        let progress = Progress::new(request.method.clone(), request.uri.path_and_query().cloned());
        progress.answer(101);
        context.progress = Some(Arc::new(progress));
        let lifetime = context.policy.limits.websocket_lifetime;
        let session = context.verdict.session.clone();
        let process = self.process.clone();
        context.watch = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let started = Instant::now();
            while started.elapsed() < lifetime {
                if let Some(session) = &session
                    && !process.sessions.lives_on(session).await
                {
                    break;
                }
                tokio::time::sleep(TUNNEL_WATCH.min(lifetime)).await;
            }
            tunnel.cut();
        })));
    }
}
