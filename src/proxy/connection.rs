//! The requests of an HTTP/1 connection, one after another, and when the connection ends.

use std::pin::pin;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Gateway;
use super::client::{ClientConnection, NextRequest};
use super::request::Request;

/// What happens to a connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    KeepAlive,
    /// It is closed; the client has sent its whole request.
    Close,
    /// It is closed; the client may still be sending.
    Linger,
    /// It is reset: the response is incomplete, and nothing else would show that.
    Reset,
}

/// Resolves when idle connections must end.
pub async fn closed(closing: &mut watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = closing.wait_for(|closing| *closing).await;
}

impl Gateway {
    /// Serves the requests of a connection. `begun` is the deadline of a request header whose first
    /// bytes have already been received.
    pub async fn serve(
        &self,
        client: &mut ClientConnection,
        mut closing: watch::Receiver<bool>,
        mut begun: Option<Instant>,
    ) {
        // Created once for all requests of the connection, since each of them waits for it.
        let mut closed = pin!(closed(&mut closing));
        for number in 1.. {
            let wait = client.next_request(&self.policies, number == 1, begun.take());
            let wait = tokio::select! {
                biased;
                wait = wait => wait,
                () = &mut closed => return,
            };
            let (header, policy) = match wait {
                NextRequest::Header(header, policy) => (header, policy),
                NextRequest::Rejected(rejection) => return self.reject(client, &rejection).await,
                NextRequest::Ended => return,
            };
            let is_last = number >= policy.limits.max_requests_per_connection;
            let mut request = Request::new(policy, self.process.clone(), header, client);
            request.closes |= is_last;
            let after = self.serve_request(client, &mut request).await;
            request.recycle(client);
            match after {
                After::KeepAlive => {}
                After::Close => return client.close(false).await,
                After::Linger => return client.close(true).await,
                After::Reset => return client.reset(),
            }
        }
    }
}
