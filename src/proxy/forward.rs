//! Forwards a request to a server, and the response to the client.
//!
//! The request body and the response are forwarded independently: a server may respond before it
//! has read the body. A connection to a server is reused only after a complete response to a
//! complete request, with nothing after it.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderName;
use http::header::EXPECT;
use tokio::time::{Instant, timeout};

use super::body::{BodySource, BodyTarget, Broken, Limits, Relay, Wait, WriteTrailers};
use super::client::{Client, Left};
use super::failure::{Failed, Stop, UNASKED, of_request_body, of_response_body};
use super::request::{CONTINUE, Request};
use super::service::{Service, keep_idle, take_idle};
use super::trailers::{self, Trailers};
use super::{After, Gateway, buffers, compose};
use crate::access::websocket;
use crate::message::chunked::Chunked;
use crate::message::header::Headers;
use crate::message::header::lines::{Line, Lines};
use crate::message::rejection::Rejection;
use crate::message::request_header;
use crate::message::response_header::{self, Fault, Framing as ResponseFraming, ResponseHead};

/// Maximum number of servers that are tried for one request.
const MOST_TRIES: usize = 8;

/// Maximum number of informational responses (1xx) to one request.
const MOST_INFORMATIONAL: usize = 100;

/// How long a service may take to ask for a body that the client holds back.
const EXPECTATION: Duration = Duration::from_secs(1);

/// Maximum size of an HTTP/2 frame, unless the receiver allows more (RFC 9113, section 4.2).
const FRAME: usize = 16 << 10;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// A response whose header has been received.
pub(super) struct Response {
    pub head: ResponseHead,
    pub lines: Lines,
    /// Bytes received after the header.
    pub rest: Vec<u8>,
}

impl Gateway {
    /// Forwards a request and its response.
    pub(super) async fn forward(
        &self,
        client: &mut Client,
        request: &mut Request,
    ) -> Result<After, Stop> {
        let mut out = buffers::take();
        compose::request(request, client, &mut out).ok_or(Rejection::InternalError)?;
        let mut upload = upload(request, out);
        request.is_begun = !upload.has_come();
        if !client.held.is_empty() {
            let taken = upload.take(&mut client.held, &mut to_service(request));
            taken.map_err(of_request_body)?;
        }
        let service = self.connect(request, false).await?;
        let upload = &mut upload;
        let (is_taking, has_continued) = (true, false);
        let mut exchange = Exchange { client, request, upload, service, is_taking, has_continued };
        let mut response = exchange.response().await;
        if let Err(stop) = &response
            && exchange.can_repeat(stop)
        {
            exchange.upload.repeat();
            exchange.is_taking = true;
            exchange.service = self.connect(exchange.request, true).await?;
            response = exchange.response().await;
        }
        let response = response?;
        if response.head.status == 101 {
            return Box::pin(self.tunnel(exchange, response)).await;
        }
        self.relay(exchange, response).await
    }

    /// Connects to the next server, and to another one if that fails.
    async fn connect(&self, request: &mut Request, is_second: bool) -> Result<Service, Stop> {
        loop {
            let Some(pool) = request.pool().cloned() else {
                return Err(Rejection::InternalError.into());
            };
            let Some(address) = pool.next(&request.tried) else {
                return Err(Failed::NoServer.into());
            };
            request.server = Some(address);
            request.is_reused = false;
            if !is_second && let Some(service) = take_idle(address) {
                request.is_reused = true;
                return Ok(service);
            }
            let timeouts = request.route().map(|route| route.timeouts).unwrap_or_default();
            let Some(peer) = pool.peer_at(address, &timeouts) else {
                // It was just removed from the upstream.
                request.tried.push(address);
                continue;
            };
            // Boxed: its future is large, and new connections are rare.
            match Box::pin(self.connector.new_stream(&*peer)).await {
                Ok(io) => return Ok(Service::new(io, address)),
                Err(error) => {
                    request.tried.push(address);
                    let failed = Failed::Connect(error.into_up());
                    if request.tried.len() >= MOST_TRIES || !pool.has_untried(&request.tried) {
                        return Err(failed.into());
                    }
                    self.failures.log_passed_over(&request.failure(&failed));
                }
            }
        }
    }

    /// Sends a response to the client while the rest of the request is sent to the server.
    async fn relay(&self, exchange: Exchange<'_>, response: Response) -> Result<After, Stop> {
        let (mut relaying, taken) = self.begin(exchange, response)?;
        let ended = match taken {
            Ok(()) => poll_fn(|cx| relaying.poll(cx)).await,
            Err(broken) => {
                // What was received before the fault is sent, so that the client sees the response
                // break off.
                let Exchange { client, request, .. } = &mut relaying.exchange;
                let patience = request.policy.limits.write_timeout;
                let _ = client.send(&relaying.download.output, patience).await;
                Err(of_response_body(broken))
            }
        };
        self.end(relaying, ended)
    }

    /// Begins a response with its header and the first bytes of its body. Not `async`: its
    /// variables would make the future of every connection larger.
    fn begin<'a>(
        &self,
        exchange: Exchange<'a>,
        response: Response,
    ) -> Result<(Relaying<'a>, Result<(), Broken>), Stop> {
        let Response { head, mut lines, rest: mut input } = response;
        let Exchange { client, request, upload, service, mut is_taking, has_continued } = exchange;
        request.upstream_status = Some(head.status);
        // A client that waits for 100 (Continue) may never send its body. Even after a 100 it does
        // not have to, because it now has a response.
        let is_body_awaited = !upload.has_come() && upload.passed == 0;
        let may_wait = is_body_awaited && request.lines.first(&EXPECT).is_some();
        is_taking &= !may_wait || has_continued;
        request.closes |= may_wait || self.process.lifecycle.is_draining();
        request.closes |= !is_taking && !upload.is_sent();
        if upload.is_sent() {
            // It was kept for a second try.
            buffers::give(std::mem::take(&mut upload.output));
        }
        let idle_time = idle_time(request, &head, &lines);
        let trailers = Trailers::new(request, &head, &lines);
        let mut out = buffers::take();
        let framed = compose::response(request, &head, &mut lines, &mut out);
        let (text, list) = lines.into_parts();
        client.spare_of_response = list;
        buffers::give(text);
        request.status = Some(head.status);
        let is_bodyless = head.framing == ResponseFraming::Length(0);
        client.io.begin(&mut out, is_bodyless).map_err(|_| Stop::Left)?;
        let mut download = download(request, &head, framed.target, out);
        let taken = download.take(&mut input, &mut trailers.to_client(request));
        let exchange = Exchange { client, request, upload, service, is_taking, has_continued };
        let is_by_close = framed.by_close;
        let is_over = false;
        let relaying =
            Relaying { exchange, download, input, trailers, idle_time, is_by_close, is_over };
        Ok((relaying, taken))
    }

    /// Keeps the connection to the server if it can serve another request, and returns the buffers.
    fn end(&self, relaying: Relaying<'_>, ended: Result<(), Stop>) -> Result<After, Stop> {
        let Relaying { exchange, download, input, idle_time, is_by_close, .. } = relaying;
        let Exchange { client, request, upload, service, is_taking, .. } = exchange;
        let is_silent = input.is_empty();
        let is_whole = is_taking && upload.is_sent();
        request.bytes_out = download.passed;
        request.bytes_in = upload.passed;
        for buffer in [download.output, std::mem::take(&mut upload.output), input] {
            buffers::give(buffer);
        }
        if let Err(stop) = ended {
            if !is_by_close {
                return Err(stop);
            }
            // Only a reset shows that the response is incomplete.
            request.rejection = match stop {
                Stop::Failed(failed) => {
                    self.failures.log(&request.failure(&failed));
                    Some(failed.rejection())
                }
                Stop::Rejected(rejection) => Some(rejection),
                Stop::Left => None,
            };
            return Ok(After::Resets);
        }
        if let Some(time) = idle_time.filter(|_| is_silent && is_whole) {
            keep_idle(service, time, self.most_idle);
        }
        Ok(match (is_whole, request.closes) {
            (true, false) => After::GoesOn,
            (true, true) if client.held.is_empty() => After::Closes,
            _ => After::Lingers,
        })
    }
}

/// A request that is being forwarded, until its response begins.
pub(super) struct Exchange<'a> {
    pub client: &'a mut Client,
    pub request: &'a mut Request,
    upload: &'a mut Relay,
    pub service: Service,
    /// Whether the server still reads the body. If not, it may already have responded.
    is_taking: bool,
    /// Whether the client has been sent a 100 (Continue).
    has_continued: bool,
}

impl Exchange<'_> {
    /// Whether to repeat the request on a new connection. A server may close an idle connection
    /// while the request is on its way (RFC 9112, section 9.3.1).
    fn can_repeat(&self, stop: &Stop) -> bool {
        matches!(stop, Stop::Failed(Failed::Closed | Failed::Write(_)))
            && self.service.is_reused
            && !self.service.has_spoken
            && self.request.method.is_idempotent()
            && self.upload.can_repeat()
    }

    /// Reads the header of the response, or of the 101 that accepts a WebSocket. Earlier
    /// informational responses are forwarded.
    async fn response(&mut self) -> Result<Response, Stop> {
        let mut read: Vec<u8> = Vec::new();
        let mut list = std::mem::take(&mut self.client.spare_of_response);
        let mut informational = 0;
        let mut is_expecting = self.is_expecting();
        loop {
            let mut since = None;
            let head = poll_fn(|cx| self.poll_head(cx, &mut read, &mut list, &mut since));
            let got = if is_expecting {
                match Box::pin(timeout(EXPECTATION, head)).await {
                    Ok(got) => got,
                    // Some services never send a 100, and some clients wait for it forever (RFC
                    // 9110, section 10.1.1).
                    Err(_) => {
                        is_expecting = false;
                        self.send_continue().await?;
                        continue;
                    }
                }
            } else {
                head.await
            };
            self.request.bytes_in = self.upload.passed;
            let head = got?;
            let mut rest = Vec::new();
            if read.len() > head.length {
                rest = buffers::take();
                rest.extend_from_slice(read.get(head.length..).unwrap_or_default());
                read.truncate(head.length);
            }
            let lines = Lines::new(read, list);
            if head.status >= 200 {
                return Ok(Response { head, lines, rest });
            }
            if head.status == 101 {
                let fault = if self.request.is_websocket {
                    websocket::fault(&self.request.lines, &lines)
                } else {
                    Some(UNASKED)
                };
                return match fault {
                    Some(fault) => Err(Fault::Rejected(fault).into()),
                    None => Ok(Response { head, lines, rest }),
                };
            }
            informational += 1;
            if informational > MOST_INFORMATIONAL {
                return Err(Fault::Rejected("too many informational responses").into());
            }
            if head.status == 100 {
                is_expecting = false;
                // Some clients take a second 100 for the response.
                if !std::mem::replace(&mut self.has_continued, true) {
                    self.announce(&head, lines).await?;
                }
            } else {
                self.announce(&head, lines).await?;
            }
            (read, list) = (rest, Vec::new());
        }
    }

    /// Reads a response header while the request body is sent. `since` is the time when the server
    /// had the whole request, or last sent something.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        read: &mut Vec<u8>,
        list: &mut Vec<Line>,
        since: &mut Option<Instant>,
    ) -> Poll<Result<ResponseHead, Stop>> {
        let Self { client, request, upload, service, is_taking, .. } = self;
        let was_sent = upload.is_sent();
        if !was_sent
            && let Poll::Ready(stop) = poll_upload(cx, client, request, upload, service, is_taking)
        {
            return Poll::Ready(Err(stop));
        }
        loop {
            list.clear();
            match response_header::read(read, request.is_head(), |line| list.push(line)) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Err(fault.into())),
            }
            if read.capacity() == 0 {
                *read = buffers::take();
            }
            match buffers::poll_read(&mut service.io, cx, read, buffers::SMALL) {
                Poll::Ready(Ok(1..)) => {
                    service.has_spoken = true;
                    *since = None;
                }
                Poll::Ready(end) => return Poll::Ready(Err(ended(end, read.is_empty()).into())),
                Poll::Pending => break,
            }
        }
        if read.is_empty() {
            buffers::give(std::mem::take(read));
        }
        if was_sent && client.poll_left(cx).is_ready() {
            return Poll::Ready(Err(Stop::Left));
        }
        let is_sent = upload.is_sent() || !*is_taking;
        let (wait, due) = match upload.due().filter(|_| !is_sent) {
            Some((wait, due)) => (Some(wait), due),
            None => {
                let since = *since.get_or_insert_with(Instant::now);
                (None, since + request.patience().read)
            }
        };
        client.deadline.set(due);
        client.deadline.poll_over(cx).map(|()| {
            Err(match wait {
                Some(Wait::Sender) => Rejection::RequestTimeout.into(),
                Some(Wait::Receiver) => Failed::RequestNotTaken.into(),
                None => Failed::NoResponse.into(),
            })
        })
    }

    /// Whether the client waits for 100 (Continue) before it sends the body.
    fn is_expecting(&self) -> bool {
        !self.upload.has_come() && self.upload.passed == 0 && self.request.expects_continue()
    }

    /// Asks the client for the body in place of the service, unless the client is already sending
    /// it.
    async fn send_continue(&mut self) -> Result<(), Stop> {
        if self.upload.has_come() || self.upload.passed > 0 || !self.is_taking {
            return Ok(());
        }
        self.has_continued = true;
        let patience = self.request.policy.limits.write_timeout;
        let sent = self.client.announce(CONTINUE, patience).await;
        sent.map_err(|_| Stop::Left)
    }

    /// Forwards an informational response.
    async fn announce(&mut self, head: &ResponseHead, mut lines: Lines) -> Result<(), Stop> {
        if self.request.is_http_10() {
            return Ok(());
        }
        let mut out = buffers::take();
        compose::informational(self.request, head, &mut lines, &mut out);
        let patience = self.request.policy.limits.write_timeout;
        let sent = self.client.announce(&out, patience).await;
        buffers::give(out);
        sent.map_err(|_| Stop::Left)
    }
}

/// A response that is being forwarded to the client.
struct Relaying<'a> {
    exchange: Exchange<'a>,
    download: Relay,
    /// Read from the server's connection, but not yet processed.
    input: Vec<u8>,
    trailers: Trailers,
    /// How long the server's connection is kept afterwards; `None`: it is closed.
    idle_time: Option<Duration>,
    /// Whether the end of the response is the end of the client's connection.
    is_by_close: bool,
    /// Whether the client has received all of it.
    is_over: bool,
}

impl Relaying<'_> {
    /// Forwards both bodies. Ready when the response and the request are complete.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        let Self { exchange, download, input, trailers, is_over, .. } = self;
        let Exchange { client, request, upload, service, is_taking, .. } = exchange;
        if !*is_over {
            let mut to_client = trailers.to_client(request);
            match download.poll(cx, &mut service.io, input, &mut client.io, &mut to_client) {
                Poll::Ready(Ok(())) if client.io.finish(&download.tail).is_ok() => *is_over = true,
                Poll::Ready(Ok(())) => return Poll::Ready(Err(Stop::Left)),
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(of_response_body(broken))),
                Poll::Pending => {}
            }
        }
        if *is_over && (upload.is_sent() || !*is_taking) {
            return Poll::Ready(Ok(()));
        }
        match poll_upload(cx, client, request, upload, service, is_taking) {
            // The client already has its response.
            Poll::Ready(_) if *is_over => {
                *is_taking = false;
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(stop) => return Poll::Ready(Err(stop)),
            Poll::Pending if *is_over && (upload.is_sent() || !*is_taking) => {
                return Poll::Ready(Ok(()));
            }
            Poll::Pending => {}
        }
        let of_download = download.due().filter(|_| !*is_over);
        let of_upload = upload.due().filter(|_| *is_taking && !upload.is_sent());
        let (is_of_upload, wait, due) = match (of_download, of_upload) {
            (Some((_, down)), Some((wait, up))) if up < down => (true, wait, up),
            (Some((wait, down)), _) => (false, wait, down),
            (None, Some((wait, up))) => (true, wait, up),
            (None, None) => return Poll::Pending,
        };
        client.deadline.set(due);
        std::task::ready!(client.deadline.poll_over(cx));
        Poll::Ready(match (is_of_upload, wait) {
            _ if *is_over => {
                *is_taking = false;
                Ok(())
            }
            (true, Wait::Sender) => Err(Rejection::RequestTimeout.into()),
            (true, Wait::Receiver) => Err(Failed::RequestNotTaken.into()),
            (false, Wait::Sender) => Err(Failed::BodyStalled.into()),
            (false, Wait::Receiver) => Err(Stop::Left),
        })
    }
}

/// Sends more of the request body. Once it is sent, or the server reads no more of it, watches
/// whether the client is still connected. Ready when the request must end.
fn poll_upload(
    cx: &mut Context<'_>,
    client: &mut Client,
    request: &Request,
    upload: &mut Relay,
    service: &mut Service,
    is_taking: &mut bool,
) -> Poll<Stop> {
    if *is_taking && !upload.is_sent() {
        let (io, held) = (&mut client.io, &mut client.held);
        match upload.poll(cx, io, held, &mut service.io, &mut to_service(request)) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(Broken::Write(_))) => *is_taking = false,
            Poll::Ready(Err(broken)) => return Poll::Ready(of_request_body(broken)),
            Poll::Pending => return Poll::Pending,
        }
    }
    client.poll_left(cx).map(|Left| Stop::Left)
}

/// The failure when a server's connection ends before a response. `has_nothing`: not one byte of
/// the response was received.
fn ended(end: io::Result<usize>, has_nothing: bool) -> Failed {
    match end {
        Ok(_) if has_nothing => Failed::Closed,
        Ok(_) => Failed::ClosedInHeader,
        Err(error) if has_nothing => Failed::Write(error),
        Err(error) => Failed::Read(error),
    }
}

/// Writes the trailers of a request.
fn to_service(request: &Request) -> impl WriteTrailers {
    |lines: &[u8], out: &mut Vec<u8>| trailers::write_to_service(request, lines, out)
}

/// How long to keep the connection after a response; `None`: it is closed.
fn idle_time(request: &Request, head: &ResponseHead, lines: &Lines) -> Option<Duration> {
    let pool = request.pool().filter(|_| head.persists)?;
    if head.has_keep_alive {
        return pool.idle_time(lines.values_of(&KEEP_ALIVE));
    }
    pool.idle_time(std::iter::empty())
}

/// The body of a response, preceded by its header.
fn download(request: &Request, head: &ResponseHead, target: BodyTarget, header: Vec<u8>) -> Relay {
    let source = match head.framing {
        ResponseFraming::Length(length) => BodySource::Length(length),
        ResponseFraming::Chunked => BodySource::Chunked(Chunked::new()),
        ResponseFraming::Close => BodySource::Close,
    };
    let limits = &request.policy.limits;
    let limits = Limits {
        read_timeout: request.patience().read,
        write_timeout: limits.write_timeout,
        min_taken: limits.min_response_rate,
        // `h2` buffers one frame as well.
        read: if request.is_http2 { FRAME } else { buffers::LARGE },
        ..Limits::NONE
    };
    Relay::new(source, target, limits, header)
}

/// The body of a request, preceded by its header.
fn upload(request: &Request, header: Vec<u8>) -> Relay {
    let (source, target) = match request.head.head.framing {
        request_header::Framing::Length(length) => (BodySource::Length(length), BodyTarget::Plain),
        request_header::Framing::Chunked if request.is_http2 => {
            (BodySource::Close, BodyTarget::Chunked)
        }
        request_header::Framing::Chunked => {
            (BodySource::Chunked(Chunked::new()), BodyTarget::Chunked)
        }
    };
    let limits = &request.policy.limits;
    let limits = Limits {
        bytes: request.route().map_or(0, |route| route.max_body),
        read_timeout: limits.body_timeout,
        write_timeout: request.patience().write,
        min_rate: limits.min_body_rate,
        ..Limits::NONE
    };
    Relay::new(source, target, limits, header)
}
