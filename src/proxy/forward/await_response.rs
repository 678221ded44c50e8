//! Waits for the response of a service while the request is sent to it.
//!
//! What happens until the final response begins is decided here: which informational responses are
//! forwarded, who sends the 100 (Continue) for which a client waits, how long the service may take,
//! and whether a request whose connection was closed is sent again.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{ForwardedRequest, Response, poll_upload};
use crate::access::websocket;
use crate::message::header::lines::{Line, Lines};
use crate::message::rejection::Rejection;
use crate::message::response_header::{self, Fault, ResponseHeader};
use crate::proxy::body::Wait;
use crate::proxy::failure::{Failed, Stop, UNREQUESTED_UPGRADE};
use crate::proxy::request::CONTINUE;
use crate::proxy::{buffers, compose};
use crate::upstream::http2;

/// Maximum number of informational responses (1xx) to one request.
const MOST_INFORMATIONAL: usize = 100;

/// How long a service may take to request a body that the client holds back.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

impl ForwardedRequest<'_> {
    /// Reads the header of the response, or of the 101 that accepts a WebSocket. Earlier
    /// informational responses are forwarded.
    pub(super) async fn response(&mut self) -> Result<Response, Stop> {
        let mut read: Vec<u8> = Vec::new();
        let mut list = std::mem::take(&mut self.client.spare_of_response);
        let mut informational = 0;
        let mut is_expecting = self.is_expecting();
        let mut since = self.sent_at;
        loop {
            let header = poll_fn(|cx| self.poll_header(cx, &mut read, &mut list, &mut since));
            let got = if is_expecting {
                match Box::pin(timeout(CONTINUE_TIMEOUT, header)).await {
                    Ok(got) => got,
                    // Some services never send a 100, and some clients wait for it forever (RFC
                    // 9110, section 10.1.1).
                    Err(_) => {
                        (is_expecting, since) = (false, None);
                        self.send_continue().await?;
                        continue;
                    }
                }
            } else {
                header.await
            };
            self.request.bytes_in = self.upload.received;
            let header = got?;
            let mut rest = Vec::new();
            if read.len() > header.length {
                rest = buffers::take();
                rest.extend_from_slice(read.get(header.length..).unwrap_or_default());
                read.truncate(header.length);
            }
            let lines = Lines::new(read, list);
            if header.status >= 200 {
                return Ok(Response { header, lines, rest, received_at: Instant::now() });
            }
            if header.status == 101 {
                let fault = if self.request.is_websocket {
                    websocket::fault(&self.request.lines, &lines)
                } else {
                    Some(UNREQUESTED_UPGRADE)
                };
                return match fault {
                    Some(fault) => Err(Fault::Rejected(fault).into()),
                    None => Ok(Response { header, lines, rest, received_at: Instant::now() }),
                };
            }
            informational += 1;
            if informational > MOST_INFORMATIONAL {
                return Err(Fault::Rejected("too many informational responses").into());
            }
            if header.status == 100 {
                is_expecting = false;
                // Some clients take a second 100 for the response.
                if !std::mem::replace(&mut self.has_continued, true) {
                    self.send_informational(&header, lines).await?;
                }
            } else {
                self.send_informational(&header, lines).await?;
            }
            (read, list, since) = (rest, Vec::new(), None);
        }
    }

    /// Reads a response header while the request body is sent. `since` is the time when the server
    /// had the whole request, or last sent something.
    fn poll_header(
        &mut self,
        cx: &mut Context<'_>,
        read: &mut Vec<u8>,
        list: &mut Vec<Line>,
        since: &mut Option<Instant>,
    ) -> Poll<Result<ResponseHeader, Stop>> {
        let Self { client, request, upload, connection, is_reading, .. } = self;
        let was_sent = upload.is_sent();
        if !was_sent
            && let Poll::Ready(stop) =
                poll_upload(cx, client, request, upload, connection, is_reading)
        {
            return Poll::Ready(Err(stop));
        }
        loop {
            list.clear();
            match response_header::read(read, request.is_head(), |line| list.push(line)) {
                Ok(Some(header)) => return Poll::Ready(Ok(header)),
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Err(fault.into())),
            }
            if read.capacity() == 0 {
                *read = buffers::take();
            }
            match buffers::poll_read(&mut connection.io, cx, read, buffers::SMALL) {
                Poll::Ready(Ok(1..)) => {
                    connection.has_received = true;
                    *since = None;
                }
                Poll::Ready(end) => return Poll::Ready(Err(ended(end, read.is_empty()).into())),
                Poll::Pending => break,
            }
        }
        if read.is_empty() {
            buffers::give(std::mem::take(read));
        }
        if was_sent && client.poll_disconnect(cx).is_ready() {
            return Poll::Ready(Err(Stop::Disconnected));
        }
        let is_sent = upload.is_sent() || !*is_reading;
        let mut is_per_try = false;
        let (wait, due) = match upload.due().filter(|_| !is_sent) {
            Some((wait, due)) => (Some(wait), due),
            None => {
                let since = *since.get_or_insert_with(Instant::now);
                let patience = &request.patience;
                let is_first = !connection.has_received && !patience.per_try.is_zero();
                is_per_try = is_first && patience.per_try < patience.read;
                (None, since + if is_per_try { patience.per_try } else { patience.read })
            }
        };
        let end = request.deadline.filter(|end| *end < due);
        client.deadline.set(end.unwrap_or(due));
        client.deadline.poll_over(cx).map(|()| {
            Err(match wait {
                _ if end.is_some() => Failed::TimedOut.into(),
                Some(Wait::Sender) => Rejection::RequestTimeout.into(),
                Some(Wait::Receiver) => Failed::RequestNotAccepted.into(),
                None if is_per_try => Failed::NoFirstByte.into(),
                None => Failed::NoResponse.into(),
            })
        })
    }

    /// Whether the client waits for 100 (Continue) before it sends the body.
    fn is_expecting(&self) -> bool {
        !self.upload.is_received() && self.upload.received == 0 && self.request.expects_continue()
    }

    /// Requests the body from the client in place of the service, unless the client is already
    /// sending it.
    async fn send_continue(&mut self) -> Result<(), Stop> {
        if self.upload.is_received() || self.upload.received > 0 || !self.is_reading {
            return Ok(());
        }
        self.has_continued = true;
        let patience = self.request.policy.limits.write_timeout;
        let sent = self.client.send_informational(CONTINUE, patience).await;
        sent.map_err(|_| Stop::Disconnected)
    }

    /// Forwards an informational response.
    async fn send_informational(
        &mut self,
        header: &ResponseHeader,
        mut lines: Lines,
    ) -> Result<(), Stop> {
        if let Some(jar) = &mut self.request.jar {
            jar.take(&self.request.policy.identity_headers.cookies, &mut lines);
        }
        if self.request.is_http_10() {
            return Ok(());
        }
        let mut out = buffers::take();
        compose::informational(self.request, header, &mut lines, &mut out);
        let patience = self.request.policy.limits.write_timeout;
        let sent = self.client.send_informational(&out, patience).await;
        buffers::give(out);
        sent.map_err(|_| Stop::Disconnected)
    }
}

/// The failure when a server's connection ends before a response. `has_nothing`: not one byte of
/// the response was received.
fn ended(end: io::Result<usize>, has_nothing: bool) -> Failed {
    let error = match end {
        Ok(_) if has_nothing => return Failed::Closed,
        Ok(_) => return Failed::ClosedInHeader,
        // With TLS, an end that is not announced is an error.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return if has_nothing { Failed::Closed } else { Failed::ClosedInHeader };
        }
        Err(error) => error,
    };
    match http2::Fault::of(&error) {
        Some(http2::Fault::NotProcessed) => Failed::NotProcessed,
        Some(fault @ http2::Fault::Protocol(_)) => Failed::Http2(fault),
        _ if has_nothing => Failed::Write(error),
        _ => Failed::Read(error),
    }
}
