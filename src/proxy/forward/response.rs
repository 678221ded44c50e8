//! Forwards a response to the client, while the rest of the request is sent to the server.
//!
//! The two bodies are forwarded independently. The connection to the server is kept for another
//! request only after a complete response to a complete request, with nothing after it.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderName;
use http::header::EXPECT;
use tokio::time::Instant;

use super::{ForwardedRequest, Response, poll_upload};
use crate::message::chunked::Chunked;
use crate::message::header::Headers;
use crate::message::header::lines::Lines;
use crate::message::rejection::Rejection;
use crate::message::response_header::{Framing, ResponseHeader};
use crate::proxy::body::{BodySource, BodyTarget, Broken, Limits, Transfer, Wait};
use crate::proxy::failure::{Failed, Stop, of_response_body};
use crate::proxy::request::Request;
use crate::proxy::trailers::Trailers;
use crate::proxy::{After, Gateway, buffers, compose};

/// Maximum size of an HTTP/2 frame, unless the receiver allows more (RFC 9113, section 4.2).
const FRAME: usize = 16 << 10;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

impl Gateway {
    /// Sends a response to the client while the rest of the request is sent to the server.
    pub(super) async fn forward_response(
        &self,
        forwarded: ForwardedRequest<'_>,
        response: Response,
    ) -> Result<After, Stop> {
        let received_at = response.received_at;
        let (mut outgoing, begun) = self.begin(forwarded, response)?;
        let mut has_waited = false;
        let ended = match begun {
            Ok(()) => {
                poll_fn(|cx| {
                    let ended = outgoing.poll(cx);
                    has_waited |= ended.is_pending();
                    ended
                })
                .await
            }
            Err(broken) => {
                // What was received before the fault is sent, so that the client sees a truncated
                // response.
                let ForwardedRequest { client, request, .. } = &mut outgoing.forwarded;
                let patience = request.policy.limits.write_timeout;
                let _ = client.send(&outgoing.download.output, patience).await;
                Err(of_response_body(broken))
            }
        };
        // Most responses come in one piece.
        let now = if has_waited { Instant::now() } else { received_at };
        outgoing.forwarded.request.ended_at = Some(now);
        self.end(outgoing, ended, now)
    }

    /// Begins a response with its header and the first bytes of its body. Not `async`: its
    /// variables would make the future of every connection larger.
    fn begin<'a>(
        &self,
        forwarded: ForwardedRequest<'a>,
        response: Response,
    ) -> Result<(ForwardedResponse<'a>, Result<(), Broken>), Stop> {
        let Response { mut header, mut lines, rest: mut input, received_at } = response;
        let ForwardedRequest {
            client,
            request,
            upload,
            connection,
            mut is_reading,
            has_continued,
            sent_at,
        } = forwarded;
        request.upstream_status = Some(header.status);
        // A client that waits for 100 (Continue) may never send its body. Even after a 100 it does
        // not have to, because it now has a response.
        let is_body_awaited = !upload.is_received() && upload.received == 0;
        let may_wait = is_body_awaited && request.lines.first(&EXPECT).is_some();
        is_reading &= !may_wait || has_continued;
        request.closes |= may_wait || self.process.lifecycle.is_draining();
        request.closes |= !is_reading && !upload.is_sent();
        if upload.is_sent() {
            // It was kept for another attempt.
            buffers::give(std::mem::take(&mut upload.output));
        }
        let idle_time = idle_time(request, &header, &lines);
        // The request is not sent again.
        upload.hold(0);
        if connection.io.ends_with_header() {
            end_with_header(request, &mut header);
        }
        let trailers = Trailers::new(request, &header, &lines);
        let mut out = buffers::take();
        let framed = compose::response(request, &header, &mut lines, &mut out);
        let (text, list) = lines.into_parts();
        client.spare_of_response = list;
        buffers::give(text);
        request.status = Some(header.status);
        let is_bodyless = header.framing == Framing::Length(0);
        client.io.begin(&mut out, is_bodyless).map_err(|_| Stop::Disconnected)?;
        let is_http2 = connection.io.is_http2();
        let mut download = download(request, &header, is_http2, framed.target, out);
        let begun = download.take(&mut input, &mut trailers.to_client(request));
        let forwarded = ForwardedRequest {
            client,
            request,
            upload,
            connection,
            is_reading,
            has_continued,
            sent_at,
        };
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
            moved: 0,
            moved_at: received_at,
        };
        Ok((outgoing, begun))
    }

    /// Keeps the connection to the server if it can serve another request, and returns the buffers.
    fn end(
        &self,
        outgoing: ForwardedResponse<'_>,
        ended: Result<(), Stop>,
        now: Instant,
    ) -> Result<After, Stop> {
        let ForwardedResponse { forwarded, download, input, idle_time, is_by_close, .. } = outgoing;
        let ForwardedRequest { client, request, upload, connection, is_reading, .. } = forwarded;
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
        if let Some(time) = idle_time.filter(|_| is_silent && is_whole)
            && let Some(pool) = request.pool()
        {
            pool.keep_idle(connection, now, time, self.most_idle);
        }
        Ok(match (is_whole, request.closes) {
            (true, false) => After::KeepAlive,
            (true, true) if client.held.is_empty() => After::Close,
            _ => After::Linger,
        })
    }
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
    /// For gRPC: how much both sides have sent, and when the last of it came.
    moved: u64,
    moved_at: Instant,
}

impl ForwardedResponse<'_> {
    /// Forwards both bodies. Ready when the response and the request are complete.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        let Self { forwarded, download, input, trailers, is_over, .. } = self;
        let ForwardedRequest { client, request, upload, connection, is_reading, .. } = forwarded;
        if !*is_over {
            let mut to_client = trailers.to_client(request);
            match download.poll(cx, &mut connection.io, input, &mut client.io, &mut to_client) {
                Poll::Ready(Ok(())) if client.io.finish(&download.tail).is_ok() => *is_over = true,
                Poll::Ready(Ok(())) => return Poll::Ready(Err(Stop::Disconnected)),
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(of_response_body(broken))),
                Poll::Pending => {}
            }
        }
        if *is_over && (upload.is_sent() || !*is_reading) {
            return Poll::Ready(Ok(()));
        }
        match poll_upload(cx, client, request, upload, connection, is_reading) {
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
        let (of_download, of_upload) = if request.is_grpc {
            let moved = download.received + upload.received + u64::from(upload.is_sent());
            if std::mem::replace(&mut self.moved, moved) != moved {
                self.moved_at = Instant::now();
            }
            // A gRPC stream is idle only if neither side sends.
            let idle = self.moved_at.checked_add(request.patience.read);
            let later = |due| match (due, idle) {
                (Some((Wait::Sender, due)), Some(idle)) => Some((Wait::Sender, idle.max(due))),
                (due, _) => due,
            };
            (later(of_download), later(of_upload))
        } else {
            (of_download, of_upload)
        };
        let waiting = match (of_download, of_upload) {
            (Some((_, down)), Some((wait, up))) if up < down => Some((true, wait, up)),
            (Some((wait, down)), _) => Some((false, wait, down)),
            (None, upload) => upload.map(|(wait, up)| (true, wait, up)),
        };
        let due = waiting.map(|(_, _, due)| due);
        let end = request.deadline.filter(|end| due.is_none_or(|due| *end < due));
        let Some(at) = end.or(due) else { return Poll::Pending };
        client.deadline.set(at);
        std::task::ready!(client.deadline.poll_over(cx));
        if *is_over {
            *is_reading = false;
            return Poll::Ready(Ok(()));
        }
        let Some((is_of_upload, wait, _)) = waiting.filter(|_| end.is_none()) else {
            return Poll::Ready(Err(Failed::TimedOut.into()));
        };
        Poll::Ready(match (is_of_upload, wait) {
            (true, Wait::Sender) => Err(Rejection::RequestTimeout.into()),
            (true, Wait::Receiver) => Err(Failed::RequestNotAccepted.into()),
            (false, Wait::Sender) => Err(Failed::BodyStalled.into()),
            (false, Wait::Receiver) => Err(Stop::Disconnected),
        })
    }
}

/// How long to keep the connection after a response; `None`: it is closed.
fn idle_time(request: &Request, header: &ResponseHeader, lines: &Lines) -> Option<Duration> {
    let pool = request.pool().filter(|_| header.persists)?;
    if header.has_keep_alive {
        return pool.idle_time(lines.values_of(&KEEP_ALIVE));
    }
    pool.idle_time(std::iter::empty())
}

/// A response that HTTP/2 ended with its header has no body. HTTP/1 needs a length that says so.
fn end_with_header(request: &Request, header: &mut ResponseHeader) {
    let has_none = request.is_head() || matches!(header.status, 204 | 304);
    if !has_none && !request.is_http2 {
        header.content_length = Some(0);
    }
    header.framing = Framing::Length(0);
}

/// The body of a response, preceded by its header.
fn download(
    request: &Request,
    header: &ResponseHeader,
    is_from_http2: bool,
    target: BodyTarget,
    output: Vec<u8>,
) -> Transfer {
    let source = match header.framing {
        // Its end is the end of the stream, after the trailers. `h2` checks the length.
        Framing::Length(1..) if is_from_http2 => BodySource::Close,
        Framing::Length(length) => BodySource::Length(length),
        Framing::Chunked => BodySource::Chunked(Chunked::new()),
        Framing::Close => BodySource::Close,
    };
    let limits = &request.policy.limits;
    let limits = Limits {
        read_timeout: request.patience.read,
        write_timeout: limits.write_timeout,
        min_accept_rate: limits.min_response_rate,
        // `h2` buffers one frame as well.
        read: if request.is_http2 { FRAME } else { buffers::LARGE },
        ..Limits::NONE
    };
    Transfer::new(source, target, limits, output)
}
