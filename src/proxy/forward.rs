//! Forwards a request to a server, and the response to the client.
//!
//! The request body and the response are forwarded independently: a server may respond before it
//! has read the body. Here a request is sent, again if that is allowed. `await_response` handles
//! everything before the response begins, and `response` the rest.

mod await_response;
mod response;

use std::task::{Context, Poll};

use tokio::time::Instant;

use super::attempts::Attempts;
use super::body::{BodySource, BodyTarget, Broken, Incoming, Limits, Transfer, WriteTrailers};
use super::buffered::BufferShare;
use super::client::{ClientConnection, Disconnected};
use super::endpoints::read_body;
use super::failure::{Failed, Stop, of_request_body};
use super::request::Request;
use super::{After, Gateway, buffers, compose, trailers};
use crate::config::{Protocol, UpstreamHost};
use crate::message::chunked::Chunked;
use crate::message::header::lines::Lines;
use crate::message::rejection::Rejection;
use crate::message::request_header;
use crate::message::response_header::ResponseHeader;
use crate::upstream::connection::Connection;
use crate::upstream::http2;
use crate::upstream::io::Io;
use crate::upstream::server::Server;

/// A response whose header has been received.
pub(super) struct Response {
    pub header: ResponseHeader,
    pub lines: Lines,
    /// Bytes received after the header.
    pub rest: Vec<u8>,
    pub received_at: Instant,
}

impl Incoming for Io {
    fn take_trailers(&mut self) -> Vec<u8> {
        Self::take_trailers(self)
    }

    fn gather(&mut self, cx: &mut Context<'_>) {
        Self::gather(self, cx);
    }
}

impl Gateway {
    /// Forwards a request and its response.
    pub(super) async fn forward(
        &self,
        client: &mut ClientConnection,
        request: &mut Request,
    ) -> Result<After, Stop> {
        if let Some(upstream) = request.pool.and_then(|pool| request.policy.jar_of(pool)) {
            // Boxed, like the other call: it would make the future of every request larger.
            Box::pin(self.open_jar(request, upstream)).await?;
        }
        let mut attempts = Attempts::new(request).ok_or(Rejection::InternalError)?;
        let most = attempts.most_collected(request);
        let is_collected = request.header.framing == request_header::Framing::Chunked && most > 0;
        let mut share = BufferShare::new(self);
        if is_collected {
            Box::pin(collect(client, request, most, &mut share)).await?;
            attempts.has_waited();
        }
        let mut header = buffers::take();
        compose::request(request, client, None, &mut header).ok_or(Rejection::InternalError)?;
        let protocol = attempts.protocol();
        if protocol == Protocol::Http2 && target_of(&header).len() > http2::MOST_TARGET {
            return Err(Rejection::HeadersTooLarge.into());
        }
        let mut upload = upload(request, protocol, header);
        upload.hold(attempts.most_held(request));
        request.is_begun = !upload.is_received();
        if !client.held.is_empty() {
            let received = upload.take(&mut client.held, &mut to_service(request));
            received.map_err(of_request_body)?;
        }
        let mut connection = self.connect(client, request, &mut attempts).await?;
        let has_host = has_host_of_server(request);
        if has_host {
            compose_anew(client, request, &mut upload, connection.server())?;
        }
        let mut has_continued = is_collected;
        let (forwarded, response) = loop {
            let mut forwarded = ForwardedRequest {
                client: &mut *client,
                request: &mut *request,
                upload: &mut upload,
                connection,
                is_reading: true,
                has_continued,
                sent_at: None,
            };
            forwarded.sent_at = attempts.sent_at(&forwarded);
            let response = forwarded.response().await;
            attempts.record(&response, &forwarded);
            if !attempts.may_repeat(&response, &forwarded) {
                break (forwarded, response);
            }
            has_continued = forwarded.has_continued;
            let is_reading = forwarded.is_reading;
            let last = forwarded.connection;
            if let Err(Stop::Failed(failed)) = &response {
                attempts.log(&self.failures, request, failed);
            }
            let server = last.server().clone();
            // The connection of a response is kept, because the response is passed on if no other
            // follows. A failed one is closed first, so that it takes no place.
            let kept = response.is_ok().then_some(last);
            attempts.repeat(server.clone(), kept.is_none());
            match self.connect(client, request, &mut attempts).await {
                Ok(next) => connection = next,
                Err(stop) => match (kept, response, stop) {
                    (Some(connection), response, _) => {
                        request.server = Some(server);
                        let upload = &mut upload;
                        let forwarded = ForwardedRequest {
                            client,
                            request,
                            upload,
                            connection,
                            is_reading,
                            has_continued,
                            sent_at: None,
                        };
                        break (forwarded, response);
                    }
                    // No other server failed: the failure is that of the last attempt.
                    (None, Err(last), Stop::Failed(Failed::NoServer | Failed::QueueFull)) => {
                        return Err(last);
                    }
                    (None, _, stop) => return Err(stop),
                },
            }
            // The signed identity may have ended during the last attempt.
            if has_host || request.policy.signed_identity.is_some() {
                compose_anew(client, request, &mut upload, connection.server())?;
            }
            upload.repeat();
        };
        drop(attempts);
        let mut response = response?;
        if forwarded.request.jar.is_some() {
            Box::pin(self.fill_jar(forwarded.request, &mut response.lines)).await;
        }
        if forwarded.upload.is_sent() {
            drop(share);
        }
        if response.header.status == 101 {
            return Box::pin(self.tunnel(forwarded, response)).await;
        }
        self.forward_response(forwarded, response).await
    }
}

/// A request that is being forwarded, until its response begins.
pub(super) struct ForwardedRequest<'a> {
    pub client: &'a mut ClientConnection,
    pub request: &'a mut Request,
    pub upload: &'a mut Transfer,
    pub connection: Connection,
    /// Whether the server still reads the body. If not, it may already have responded.
    is_reading: bool,
    /// Whether the client has been sent a 100 (Continue).
    has_continued: bool,
    /// When the whole request was sent, if that is known before it is.
    sent_at: Option<Instant>,
}

/// Sends more of the request body. Once it is sent, or the server reads no more of it, watches
/// whether the client is still connected. Ready when the request must end.
fn poll_upload(
    cx: &mut Context<'_>,
    client: &mut ClientConnection,
    request: &Request,
    upload: &mut Transfer,
    connection: &mut Connection,
    is_reading: &mut bool,
) -> Poll<Stop> {
    if *is_reading && !upload.is_sent() {
        let (io, held) = (&mut client.io, &mut client.held);
        match upload.poll(cx, io, held, &mut connection.io, &mut to_service(request)) {
            Poll::Ready(Ok(())) if connection.io.finish(&upload.tail).is_err() => {
                *is_reading = false;
            }
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(Broken::Write(_))) => *is_reading = false,
            Poll::Ready(Err(broken)) => return Poll::Ready(of_request_body(broken)),
            Poll::Pending => return Poll::Pending,
        }
    }
    client.poll_disconnect(cx).map(|Disconnected| Stop::Disconnected)
}

/// Whether the `Host` of a request depends on the server that it is sent to.
fn has_host_of_server(request: &Request) -> bool {
    request.pool().is_some_and(|pool| pool.section().host == UpstreamHost::Server)
}

/// Writes the header of a request anew, for this server.
fn compose_anew(
    client: &ClientConnection,
    request: &Request,
    upload: &mut Transfer,
    server: &Server,
) -> Result<(), Stop> {
    let mut header = buffers::take();
    compose::request(request, client, Some(server), &mut header).ok_or(Rejection::InternalError)?;
    upload.replace_header(&header);
    buffers::give(header);
    Ok(())
}

/// Receives the whole body of a request whose length is unknown, so that it can be sent with
/// `Content-Length`. Trailers are dropped, because only a chunked body can have them.
async fn collect(
    client: &mut ClientConnection,
    request: &mut Request,
    most: u64,
    share: &mut BufferShare<'_>,
) -> Result<(), Stop> {
    let max_body = request.route().map_or(0, |route| route.max_body);
    let time = request.policy.limits.body_timeout;
    let body = match read_body(client, request, most, time, Some(share)).await {
        Err(Stop::Rejected(Rejection::BodyTooLarge)) if most < max_body => {
            return Err(Rejection::LengthRequired.into());
        }
        body => body?,
    };
    let length = body.len() as u64;
    request.header.framing = request_header::Framing::Length(length);
    request.header.content_length = Some(length);
    request.is_read = false;
    let next = std::mem::replace(&mut client.held, body);
    client.held.extend_from_slice(&next);
    buffers::give(next);
    Ok(())
}

/// Writes the trailers of a request.
fn to_service(request: &Request) -> impl WriteTrailers {
    |lines: &[u8], out: &mut Vec<u8>| trailers::write_to_service(request, lines, out)
}

/// The target in a request header.
fn target_of(header: &[u8]) -> &[u8] {
    header.split(|byte| *byte == b' ').nth(1).unwrap_or_default()
}

/// The body of a request, preceded by its header.
fn upload(request: &Request, protocol: Protocol, output: Vec<u8>) -> Transfer {
    let target = match protocol {
        Protocol::Http1 => BodyTarget::Chunked,
        Protocol::Http2 => BodyTarget::Stream,
    };
    let (source, target) = match request.header.framing {
        request_header::Framing::Length(length) => (BodySource::Length(length), BodyTarget::Plain),
        request_header::Framing::Chunked if request.is_http2 => (BodySource::Close, target),
        request_header::Framing::Chunked => (BodySource::Chunked(Chunked::new()), target),
    };
    let limits = &request.policy.limits;
    let mut limits = Limits {
        bytes: request.route().map_or(0, |route| route.max_body),
        read_timeout: limits.body_timeout,
        write_timeout: request.patience.write,
        min_send_rate: limits.min_body_rate,
        ..Limits::NONE
    };
    if request.is_grpc {
        // Not an upload: a client may have nothing to say for as long as its call lasts, while it
        // waits for messages of the service, or sends a small one now and then.
        (limits.read_timeout, limits.min_send_rate) = (request.patience.read, 0);
    }
    Transfer::new(source, target, limits, output)
}
