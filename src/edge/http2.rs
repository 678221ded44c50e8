//! One HTTP/2 connection, from its preface to its end.
//!
//! `h2` frames it and pingora serves its streams. What is decided here is how long it may
//! be idle, how its end is announced, and when a stream or the whole connection is more of
//! a burden than a request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{self, H2Accept, H2Options, HttpSession};
use pingora::protocols::{Digest, GetSocketDigest};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connection::Connection;
use super::{Edge, closed, pace};
use crate::config::LimitsSection;
use crate::progress::{Pace, Progress};

/// How an HTTP/2 connection begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Of what is no request, so much is borne on one connection.
const MOST_MALFORMED: usize = 32;

/// A request that is given up sooner than this was hardly meant.
const EARLY: Duration = Duration::from_secs(1);

/// A client gets so long to read what is on its way, and to close, when its connection ends.
const GOODBYE: Duration = Duration::from_secs(5);

/// How often it is looked whether everything has been sent.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes of an answer that wait for the client's window.
const SEND_BUFFER: usize = 64 << 10;

impl Edge {
    /// Whether a plain connection begins as HTTP/2 (RFC 9113, section 3.3). What is read to
    /// find out is held.
    pub(super) async fn begins_as_http2(connection: &mut Connection) -> bool {
        loop {
            let held = connection.held();
            if held.starts_with(PREFACE) {
                return true;
            }
            if !PREFACE.starts_with(held) {
                return false;
            }
            if !matches!(connection.read_more().await, Ok(1..)) {
                return false;
            }
        }
    }

    pub(super) async fn serve_http2(
        &self,
        mut connection: Connection,
        peer: std::net::SocketAddr,
        mut closing: watch::Receiver<bool>,
        limits: LimitsSection,
    ) {
        if self.takes_lane.load(std::sync::atomic::Ordering::Relaxed) {
            let (transport, held) = connection.into_parts();
            return self.lane.serve_http2(transport, held, peer, closing, limits).await;
        }
        connection.begin_http2();
        let pace = pace(&limits);
        let socket_digest = connection.get_socket_digest();
        let traffic = connection.traffic();
        let digest = Arc::new(Digest { socket_digest, ..Digest::default() });
        let handshake = server::handshake(Box::new(connection), Some(options(&limits)));
        let shaken = tokio::select! {
            shaken = timeout(limits.header_timeout, handshake) => shaken,
            () = closed(&mut closing) => return,
        };
        let Ok(Ok(mut connection)) = shaken else { return };
        let mut streams = JoinSet::new();
        let (mut malformed, mut early, mut total) = (0, 0, 0);
        let mut patience = limits.header_timeout;
        let mut ending = None;
        let (mut sent, mut sent_at) = (0, Instant::now());
        loop {
            // What was served may still be on its way to the client.
            let is_sending = streams.is_empty() && connection.has_streams();
            if !is_sending || traffic.sent() > sent {
                (sent, sent_at) = (traffic.sent(), Instant::now());
            }
            let time = match (is_sending, ending) {
                (true, _) => LOOK,
                (false, Some(_)) => GOODBYE,
                (false, None) => patience,
            };
            tokio::select! {
                biased;
                () = closed(&mut closing), if ending.is_none() => {
                    connection.graceful_shutdown();
                    ending = Some(Instant::now());
                }
                Some(was_left_early) = streams.join_next() => {
                    early += usize::from(was_left_early.unwrap_or(false));
                    if early > limits.max_early_resets && early > total / 2 {
                        break;
                    }
                }
                accepted = HttpSession::from_h2_conn(&mut connection, digest.clone()) => {
                    match accepted {
                        // Dropped, so that it is reset: the client was told long ago.
                        Ok(Some(H2Accept::Session(_)))
                            if ending.is_some_and(|since: Instant| since.elapsed() > GOODBYE) => {}
                        Ok(Some(H2Accept::Session(session))) => {
                            patience = limits.idle_timeout;
                            total += 1;
                            streams.spawn(self.serve_stream(session, pace, closing.clone()));
                        }
                        Ok(Some(H2Accept::Rejected)) if malformed < MOST_MALFORMED => {
                            malformed += 1;
                        }
                        _ => break,
                    }
                }
                () = sleep(time), if streams.is_empty() => {
                    if is_sending && sent_at.elapsed() < limits.write_timeout {
                        continue;
                    }
                    if ending.is_some() || is_sending {
                        break;
                    }
                    connection.graceful_shutdown();
                    ending = Some(Instant::now());
                }
            }
        }
        // Closed now, so that what is still being served learns that nobody waits for it.
        drop(connection);
        while streams.join_next().await.is_some() {}
    }

    /// Serves a request to its end; tells whether the client gave it up at once.
    fn serve_stream(
        &self,
        mut session: HttpSession,
        pace: Pace,
        closing: watch::Receiver<bool>,
    ) -> impl Future<Output = bool> + Send + 'static {
        let request = session.req_header_mut();
        let target = request.uri.path_and_query().cloned();
        let progress = Arc::new(Progress::new(request.method.clone(), target));
        request.extensions_mut().insert(progress.clone());
        let proxy = self.proxy.clone();
        async move {
            let began = Instant::now();
            let has_body = !session.is_body_empty();
            let served = proxy.process_new_http(ServerSession::new_http2(session), &closing);
            tokio::select! {
                _ = served => {}
                // What is dropped with the request resets its stream.
                () = progress.stalls(pace), if has_body => {}
            }
            progress.is_left() && began.elapsed() < EARLY
        }
    }
}

/// A fresh `H2Options` has none of pingora's own bounds, so each is set here.
fn options(limits: &LimitsSection) -> H2Options {
    let mut options = H2Options::new();
    options.max_concurrent_streams(limits.max_streams);
    // What h2 holds for a client that takes nothing, of each stream.
    options.max_send_buffer_size(SEND_BUFFER);
    options.max_pending_accept_reset_streams(limits.max_early_resets);
    options.max_header_list_size(u32::try_from(limits.max_header).unwrap_or(u32::MAX));
    options
}
