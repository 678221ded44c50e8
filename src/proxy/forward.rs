//! Forwards a request to a server, and the response to the client.
//!
//! The request body and the response are forwarded independently: a server may respond before it
//! has read the body. A connection to a server is reused only after a complete response to a
//! complete request, with nothing after it. `await_response` has what happens until the response
//! begins.

mod await_response;

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderName;
use http::header::EXPECT;

use super::body::{BodySource, BodyTarget, Broken, Limits, Transfer, Wait, WriteTrailers};
use super::client::{ClientConnection, Disconnected};
use super::failure::{Failed, Stop, of_request_body, of_response_body};
use super::request::Request;
use super::service::{Service, keep_idle, take_idle};
use super::trailers::{self, Trailers};
use super::{After, Gateway, buffers, compose};
use crate::message::chunked::Chunked;
use crate::message::header::Headers;
use crate::message::header::lines::Lines;
use crate::message::rejection::Rejection;
use crate::message::request_header;
use crate::message::response_header::{Framing as ResponseFraming, ResponseHeader};

/// Maximum number of servers that are tried for one request.
const MOST_TRIES: usize = 8;

/// Maximum size of an HTTP/2 frame, unless the receiver allows more (RFC 9113, section 4.2).
const FRAME: usize = 16 << 10;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// A response whose header has been received.
pub(super) struct Response {
    pub header: ResponseHeader,
    pub lines: Lines,
    /// Bytes received after the header.
    pub rest: Vec<u8>,
}

impl Gateway {
    /// Forwards a request and its response.
    pub(super) async fn forward(
        &self,
        client: &mut ClientConnection,
        request: &mut Request,
    ) -> Result<After, Stop> {
        let mut out = buffers::take();
        compose::request(request, client, &mut out).ok_or(Rejection::InternalError)?;
        let mut upload = upload(request, out);
        request.is_begun = !upload.is_received();
        if !client.held.is_empty() {
            let received = upload.take(&mut client.held, &mut to_service(request));
            received.map_err(of_request_body)?;
        }
        let service = self.connect(request, false).await?;
        let upload = &mut upload;
        let (is_reading, has_continued) = (true, false);
        let mut forwarded =
            ForwardedRequest { client, request, upload, service, is_reading, has_continued };
        let mut response = forwarded.response().await;
        if let Err(stop) = &response
            && forwarded.can_repeat(stop)
        {
            forwarded.upload.repeat();
            forwarded.is_reading = true;
            forwarded.service = self.connect(forwarded.request, true).await?;
            response = forwarded.response().await;
        }
        let response = response?;
        if response.header.status == 101 {
            return Box::pin(self.tunnel(forwarded, response)).await;
        }
        self.forward_response(forwarded, response).await
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
                    self.failures.log_failed_connect(&request.failure(&failed));
                }
            }
        }
    }

    /// Sends a response to the client while the rest of the request is sent to the server.
    async fn forward_response(
        &self,
        forwarded: ForwardedRequest<'_>,
        response: Response,
    ) -> Result<After, Stop> {
        let (mut outgoing, begun) = self.begin(forwarded, response)?;
        let ended = match begun {
            Ok(()) => poll_fn(|cx| outgoing.poll(cx)).await,
            Err(broken) => {
                // What was received before the fault is sent, so that the client sees a truncated
                // response.
                let ForwardedRequest { client, request, .. } = &mut outgoing.forwarded;
                let patience = request.policy.limits.write_timeout;
                let _ = client.send(&outgoing.download.output, patience).await;
                Err(of_response_body(broken))
            }
        };
        self.end(outgoing, ended)
    }

    /// Begins a response with its header and the first bytes of its body. Not `async`: its
    /// variables would make the future of every connection larger.
    fn begin<'a>(
        &self,
        forwarded: ForwardedRequest<'a>,
        response: Response,
    ) -> Result<(ForwardedResponse<'a>, Result<(), Broken>), Stop> {
        let Response { header, mut lines, rest: mut input } = response;
        let ForwardedRequest { client, request, upload, service, mut is_reading, has_continued } =
            forwarded;
        request.upstream_status = Some(header.status);
        // A client that waits for 100 (Continue) may never send its body. Even after a 100 it does
        // not have to, because it now has a response.
        let is_body_awaited = !upload.is_received() && upload.received == 0;
        let may_wait = is_body_awaited && request.lines.first(&EXPECT).is_some();
        is_reading &= !may_wait || has_continued;
        request.closes |= may_wait || self.process.lifecycle.is_draining();
        request.closes |= !is_reading && !upload.is_sent();
        if upload.is_sent() {
            // It was kept for a second try.
            buffers::give(std::mem::take(&mut upload.output));
        }
        let idle_time = idle_time(request, &header, &lines);
        let trailers = Trailers::new(request, &header, &lines);
        let mut out = buffers::take();
        let framed = compose::response(request, &header, &mut lines, &mut out);
        let (text, list) = lines.into_parts();
        client.spare_of_response = list;
        buffers::give(text);
        request.status = Some(header.status);
        let is_bodyless = header.framing == ResponseFraming::Length(0);
        client.io.begin(&mut out, is_bodyless).map_err(|_| Stop::Disconnected)?;
        let mut download = download(request, &header, framed.target, out);
        let begun = download.take(&mut input, &mut trailers.to_client(request));
        let forwarded =
            ForwardedRequest { client, request, upload, service, is_reading, has_continued };
        let is_by_close = framed.by_close;
        let is_over = false;
        let outgoing = ForwardedResponse {
            forwarded,
            download,
            input,
            trailers,
            idle_time,
            is_by_close,
            is_over,
        };
        Ok((outgoing, begun))
    }

    /// Keeps the connection to the server if it can serve another request, and returns the buffers.
    fn end(&self, outgoing: ForwardedResponse<'_>, ended: Result<(), Stop>) -> Result<After, Stop> {
        let ForwardedResponse { forwarded, download, input, idle_time, is_by_close, .. } = outgoing;
        let ForwardedRequest { client, request, upload, service, is_reading, .. } = forwarded;
        let is_silent = input.is_empty();
        let is_whole = is_reading && upload.is_sent();
        request.bytes_out = download.received;
        request.bytes_in = upload.received;
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
                Stop::Disconnected => None,
            };
            return Ok(After::Reset);
        }
        if let Some(time) = idle_time.filter(|_| is_silent && is_whole) {
            keep_idle(service, time, self.most_idle);
        }
        Ok(match (is_whole, request.closes) {
            (true, false) => After::KeepAlive,
            (true, true) if client.held.is_empty() => After::Close,
            _ => After::Linger,
        })
    }
}

/// A request that is being forwarded, until its response begins.
pub(super) struct ForwardedRequest<'a> {
    pub client: &'a mut ClientConnection,
    pub request: &'a mut Request,
    upload: &'a mut Transfer,
    pub service: Service,
    /// Whether the server still reads the body. If not, it may already have responded.
    is_reading: bool,
    /// Whether the client has been sent a 100 (Continue).
    has_continued: bool,
}

/// A response that is being forwarded to the client.
struct ForwardedResponse<'a> {
    forwarded: ForwardedRequest<'a>,
    download: Transfer,
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

impl ForwardedResponse<'_> {
    /// Forwards both bodies. Ready when the response and the request are complete.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        let Self { forwarded, download, input, trailers, is_over, .. } = self;
        let ForwardedRequest { client, request, upload, service, is_reading, .. } = forwarded;
        if !*is_over {
            let mut to_client = trailers.to_client(request);
            match download.poll(cx, &mut service.io, input, &mut client.io, &mut to_client) {
                Poll::Ready(Ok(())) if client.io.finish(&download.tail).is_ok() => *is_over = true,
                Poll::Ready(Ok(())) => return Poll::Ready(Err(Stop::Disconnected)),
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(of_response_body(broken))),
                Poll::Pending => {}
            }
        }
        if *is_over && (upload.is_sent() || !*is_reading) {
            return Poll::Ready(Ok(()));
        }
        match poll_upload(cx, client, request, upload, service, is_reading) {
            // The client already has its response.
            Poll::Ready(_) if *is_over => {
                *is_reading = false;
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(stop) => return Poll::Ready(Err(stop)),
            Poll::Pending if *is_over && (upload.is_sent() || !*is_reading) => {
                return Poll::Ready(Ok(()));
            }
            Poll::Pending => {}
        }
        let of_download = download.due().filter(|_| !*is_over);
        let of_upload = upload.due().filter(|_| *is_reading && !upload.is_sent());
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
                *is_reading = false;
                Ok(())
            }
            (true, Wait::Sender) => Err(Rejection::RequestTimeout.into()),
            (true, Wait::Receiver) => Err(Failed::RequestNotAccepted.into()),
            (false, Wait::Sender) => Err(Failed::BodyStalled.into()),
            (false, Wait::Receiver) => Err(Stop::Disconnected),
        })
    }
}

/// Sends more of the request body. Once it is sent, or the server reads no more of it, watches
/// whether the client is still connected. Ready when the request must end.
fn poll_upload(
    cx: &mut Context<'_>,
    client: &mut ClientConnection,
    request: &Request,
    upload: &mut Transfer,
    service: &mut Service,
    is_reading: &mut bool,
) -> Poll<Stop> {
    if *is_reading && !upload.is_sent() {
        let (io, held) = (&mut client.io, &mut client.held);
        match upload.poll(cx, io, held, &mut service.io, &mut to_service(request)) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(Broken::Write(_))) => *is_reading = false,
            Poll::Ready(Err(broken)) => return Poll::Ready(of_request_body(broken)),
            Poll::Pending => return Poll::Pending,
        }
    }
    client.poll_disconnect(cx).map(|Disconnected| Stop::Disconnected)
}

/// Writes the trailers of a request.
fn to_service(request: &Request) -> impl WriteTrailers {
    |lines: &[u8], out: &mut Vec<u8>| trailers::write_to_service(request, lines, out)
}

/// How long to keep the connection after a response; `None`: it is closed.
fn idle_time(request: &Request, header: &ResponseHeader, lines: &Lines) -> Option<Duration> {
    let pool = request.pool().filter(|_| header.persists)?;
    if header.has_keep_alive {
        return pool.idle_time(lines.values_of(&KEEP_ALIVE));
    }
    pool.idle_time(std::iter::empty())
}

/// The body of a response, preceded by its header.
fn download(
    request: &Request,
    header: &ResponseHeader,
    target: BodyTarget,
    output: Vec<u8>,
) -> Transfer {
    let source = match header.framing {
        ResponseFraming::Length(length) => BodySource::Length(length),
        ResponseFraming::Chunked => BodySource::Chunked(Chunked::new()),
        ResponseFraming::Close => BodySource::Close,
    };
    let limits = &request.policy.limits;
    let limits = Limits {
        read_timeout: request.patience().read,
        write_timeout: limits.write_timeout,
        min_accept_rate: limits.min_response_rate,
        // `h2` buffers one frame as well.
        read: if request.is_http2 { FRAME } else { buffers::LARGE },
        ..Limits::NONE
    };
    Transfer::new(source, target, limits, output)
}

/// The body of a request, preceded by its header.
fn upload(request: &Request, output: Vec<u8>) -> Transfer {
    let (source, target) = match request.header.framing {
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
        min_send_rate: limits.min_body_rate,
        ..Limits::NONE
    };
    Transfer::new(source, target, limits, output)
}
