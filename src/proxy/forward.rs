//! A request on its way to a server, and the response on its way back.
//!
//! The request's body and the response move independently of each other: a server may respond
//! before it has read the body. A connection to a server is used again only after a whole response
//! to a whole request, with nothing after it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use http::HeaderName;
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::body::{Broken, Limits, READ as READ_BODY, Relay, Source, Target, Wait};
use super::client::Client;
use super::failure;
use super::failure::{Failed, Stop, of_request_body, of_response_body};
use super::request::Request;
use super::service::{Service, keep_idle, take_idle};
use super::{After, Gateway, buffers, compose};
use crate::chunked::Chunked;
use crate::head::response::{self, Fault, ResponseHead};
use crate::head::{self, response::Framing as ResponseFraming};
use crate::header::Headers;
use crate::header::lines::{Line, Lines};
use crate::rejection::Rejection;
use crate::websocket;

/// Servers that are tried for one request.
const MOST_TRIES: usize = 8;

/// Responses that only announce another, for one request.
const MOST_INFORMATIONAL: usize = 100;

/// Bytes of one read of a response.
const READ: usize = 4 << 10;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// A response whose header has come.
pub(super) struct Response {
    pub head: ResponseHead,
    pub lines: Lines,
    /// What followed the header.
    pub rest: Vec<u8>,
}

/// Whether the server still takes the body of the request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taking {
    Yes,
    /// Its connection takes no more. It may have responded before.
    No,
}

impl Gateway {
    /// Forwards a request, and its response.
    pub(super) async fn forward(
        &self,
        client: &mut Client,
        request: &mut Request,
    ) -> Result<After, Stop> {
        let mut out = buffers::take();
        compose::request(request, client, &mut out).ok_or(Rejection::InternalError)?;
        let mut upload = upload(request, out);
        if !client.held.is_empty() {
            let mut trailers =
                |lines: &[u8], out: &mut Vec<u8>| compose::request_trailers(request, lines, out);
            if let Err(broken) = upload.take(&mut client.held, &mut trailers) {
                // Nobody knows where it ends.
                request.closes = true;
                return Err(of_request_body(broken));
            }
        }
        let mut is_second = false;
        loop {
            let mut service = self.connect(request, is_second).await?;
            let mut taking = Taking::Yes;
            let got = self.respond(client, request, &mut upload, &mut service, &mut taking).await;
            request.bytes_in = upload.passed;
            let response = match got {
                Ok(response) => response,
                // The server closed the connection while the request was on its way, as it may
                // after some idle time (RFC 9112, section 9.3.1).
                Err(Stop::Failed(Failed::Closed | Failed::Write(_)))
                    if service.is_reused
                        && !service.has_spoken
                        && request.method.is_idempotent()
                        && upload.can_repeat()
                        && request.status.is_none() =>
                {
                    upload.repeat();
                    is_second = true;
                    continue;
                }
                Err(stop) => return Err(stop),
            };
            if response.head.status == 101 {
                return Box::pin(self.tunnel(client, request, service, response)).await;
            }
            let after = self.relay(client, request, &mut upload, service, response, taking).await;
            request.bytes_in = upload.passed;
            buffers::give(std::mem::take(&mut upload.output));
            return after;
        }
    }

    /// A connection to the next server, or to another one where that fails.
    async fn connect(&self, request: &mut Request, is_second: bool) -> Result<Service, Stop> {
        loop {
            let Some(pool) = request.pool().cloned() else {
                return Err(Rejection::InternalError.into());
            };
            let Some(address) = pool.next(&request.tried) else {
                return Err(Failed::NoServer.into());
            };
            request.server = Some(address);
            if !is_second && let Some(service) = take_idle(address) {
                request.is_reused = true;
                return Ok(service);
            }
            request.is_reused = false;
            let timeouts = request.route().map(|route| route.timeouts).unwrap_or_default();
            let Some(peer) = pool.peer_at(address, &timeouts) else {
                // It went a moment ago.
                request.tried.push(address);
                continue;
            };
            match Box::pin(self.connector.new_stream(&*peer)).await {
                Ok(io) => return Ok(Service { io, address, is_reused: false, has_spoken: false }),
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

    /// Sends the request, and waits for the header of its response.
    async fn respond(
        &self,
        client: &mut Client,
        request: &Request,
        upload: &mut Relay,
        service: &mut Service,
        taking: &mut Taking,
    ) -> Result<Response, Stop> {
        let read_timeout = request.patience().read;
        let mut read: Vec<u8> = Vec::new();
        let mut list: Vec<Line> = std::mem::take(&mut client.spare_of_response);
        let mut trailers =
            |lines: &[u8], out: &mut Vec<u8>| compose::request_trailers(request, lines, out);
        let mut informational = 0;
        // When the server has all that it gets and was last heard of.
        let mut since: Option<Instant> = None;
        loop {
            let head = poll_fn(|cx| {
                if *taking == Taking::Yes && !upload.is_done() {
                    let moved = upload.poll(
                        cx,
                        &mut client.io,
                        &mut client.held,
                        &mut service.io,
                        &mut trailers,
                    );
                    match moved {
                        Poll::Ready(Err(Broken::Write(_))) => *taking = Taking::No,
                        Poll::Ready(Err(broken)) => {
                            return Poll::Ready(Err(of_request_body(broken)));
                        }
                        Poll::Ready(Ok(())) | Poll::Pending => {}
                    }
                }
                loop {
                    list.clear();
                    match response::read(&read, request.is_head(), |line| list.push(line)) {
                        Ok(Some(head)) => return Poll::Ready(Ok(head)),
                        Ok(None) => {}
                        Err(fault) => return Poll::Ready(Err(fault.into())),
                    }
                    if read.capacity() == 0 {
                        read = buffers::take();
                    }
                    read.reserve(READ / 2);
                    let got = poll_read_buf(Pin::new(&mut service.io), cx, &mut read);
                    match got {
                        Poll::Ready(Ok(0)) if read.is_empty() => {
                            return Poll::Ready(Err(Failed::Closed.into()));
                        }
                        Poll::Ready(Ok(0)) => {
                            return Poll::Ready(Err(Failed::ClosedInHeader.into()));
                        }
                        Poll::Ready(Ok(_)) => {
                            service.has_spoken = true;
                            since = None;
                        }
                        // Of a connection that was reset, nothing came either.
                        Poll::Ready(Err(error)) if is_reset(&error) && read.is_empty() => {
                            return Poll::Ready(Err(Failed::Write(error).into()));
                        }
                        Poll::Ready(Err(error)) => {
                            return Poll::Ready(Err(Failed::Read(error).into()));
                        }
                        Poll::Pending => break,
                    }
                }
                if read.is_empty() {
                    buffers::give(std::mem::take(&mut read));
                }
                let is_sent = upload.is_done() || *taking == Taking::No;
                if is_sent && client.poll_left(cx).is_ready() {
                    return Poll::Ready(Err(Stop::Left));
                }
                let (wait, due) = match upload.due().filter(|_| !is_sent) {
                    Some((wait, due)) => (Some(wait), due),
                    None => (None, *since.get_or_insert_with(Instant::now) + read_timeout),
                };
                client.deadline.set(due);
                client.deadline.poll_over(cx).map(|()| {
                    Err(match wait {
                        Some(Wait::Sender) => Rejection::RequestTimeout.into(),
                        Some(Wait::Receiver) => Failed::RequestNotTaken.into(),
                        None => Failed::NoResponse.into(),
                    })
                })
            })
            .await?;
            if head.status >= 200 {
                let mut rest = Vec::new();
                if read.len() > head.length {
                    rest = buffers::take();
                    rest.extend_from_slice(read.get(head.length..).unwrap_or_default());
                    read.truncate(head.length);
                }
                return Ok(Response { head, lines: Lines::new(read, list), rest });
            }
            let rest = read.split_off(head.length);
            let mut lines =
                Lines::new(std::mem::replace(&mut read, rest), std::mem::take(&mut list));
            if head.status == 101 {
                let fault = if request.is_websocket {
                    websocket::fault(&request.lines, &lines)
                } else {
                    Some(failure::UNASKED)
                };
                return match fault {
                    Some(fault) => Err(Fault::Rejected(fault).into()),
                    None => Ok(Response { head, lines, rest: read }),
                };
            }
            informational += 1;
            if informational > MOST_INFORMATIONAL {
                return Err(Fault::Rejected("too many informational responses").into());
            }
            since = None;
            if !request.head.is_http_10 {
                let mut out = buffers::take();
                compose::informational(request, &head, &mut lines, &mut out);
                let sent = client.announce(&out, request.policy.limits.write_timeout).await;
                buffers::give(out);
                sent.map_err(|_| Stop::Left)?;
            }
        }
    }

    /// Sends a response to the client, while the rest of the request goes to the server.
    async fn relay(
        &self,
        client: &mut Client,
        request: &mut Request,
        upload: &mut Relay,
        mut service: Service,
        response: Response,
        mut taking: Taking,
    ) -> Result<After, Stop> {
        let Response { head, mut lines, rest: mut input } = response;
        request.upstream_status = Some(head.status);
        request.closes |= self.process.lifecycle.is_draining();
        let idle_time = self.idle_time(request, &head, &lines);
        let nominated = if head.nominates { compose::nominations(&lines) } else { Vec::new() };
        let used = (head.length, head.lines);
        let mut out = buffers::take();
        let framed = compose::response(request, &head, &mut lines, &mut out);
        let (text, list) = lines.into_parts();
        client.spare_of_response = list;
        buffers::give(text);
        request.status = Some(head.status);
        let is_bodyless = head.framing == ResponseFraming::Length(0);
        client.io.begin(&mut out, is_bodyless).map_err(|_| Stop::Left)?;
        let source = match head.framing {
            ResponseFraming::Length(length) => Source::Length(length),
            ResponseFraming::Chunked => Source::Chunked(Chunked::new()),
            ResponseFraming::Close => Source::Close,
        };
        let limits = Limits {
            bytes: u64::MAX,
            read_timeout: request.patience().read,
            write_timeout: request.policy.limits.write_timeout,
            min_rate: 0,
            min_taken: request.policy.limits.min_response_rate,
            read: READ_BODY,
        };
        let mut download = Relay::new(source, framed.target, limits, out);
        let shared: &Request = request;
        let mut to_service =
            |lines: &[u8], out: &mut Vec<u8>| compose::request_trailers(shared, lines, out);
        let takes_trailers = shared.head.takes_trailers || shared.is_http2;
        let mut to_client = |lines: &[u8], out: &mut Vec<u8>| {
            let begin = out.len();
            compose::response_trailers(shared, lines, used, &nominated, out)?;
            if !takes_trailers {
                out.truncate(begin);
            }
            Ok(())
        };
        let mut ended = match download.take(&mut input, &mut to_client) {
            Ok(()) => Ok(()),
            Err(broken) => Err(of_response_body(broken)),
        };
        if ended.is_ok() {
            ended = poll_fn(|cx| {
                let moved =
                    download.poll(cx, &mut service.io, &mut input, &mut client.io, &mut to_client);
                if let Poll::Ready(moved) = moved {
                    return Poll::Ready(moved.map_err(of_response_body));
                }
                let mut upload_due = None;
                if taking == Taking::Yes && !upload.is_done() {
                    let moved = upload.poll(
                        cx,
                        &mut client.io,
                        &mut client.held,
                        &mut service.io,
                        &mut to_service,
                    );
                    match moved {
                        Poll::Ready(Err(Broken::Write(_))) => taking = Taking::No,
                        Poll::Ready(Err(broken)) => {
                            return Poll::Ready(Err(of_request_body(broken)));
                        }
                        Poll::Ready(Ok(())) => {}
                        Poll::Pending => upload_due = upload.due(),
                    }
                }
                if upload_due.is_none() && client.poll_left(cx).is_ready() {
                    return Poll::Ready(Err(Stop::Left));
                }
                let download_due = download.due();
                let Some((wait, due)) = download_due else { return Poll::Pending };
                client.deadline.set(due);
                client.deadline.poll_over(cx).map(|()| {
                    Err(match wait {
                        Wait::Sender => Failed::BodyStalled.into(),
                        Wait::Receiver => Stop::Left,
                    })
                })
            })
            .await;
            if ended.is_ok() && client.io.finish(&download.tail).is_err() {
                ended = Err(Stop::Left);
            }
        } else {
            // What was fine until then goes out, so that it is seen to break off.
            let _ = client.send(&download.output, limits.write_timeout).await;
        }
        let is_whole = upload.is_done();
        let is_silent = input.is_empty();
        request.bytes_out = download.passed;
        buffers::give(std::mem::take(&mut download.output));
        buffers::give(input);
        if let Err(stop) = ended {
            if let Stop::Failed(failed) = &stop
                && framed.by_close
            {
                self.failures.log(&request.failure(failed));
                request.rejection = Some(failed.rejection());
                return Ok(After::Resets);
            }
            return Err(stop);
        }
        if head.persists
            && is_silent
            && is_whole
            && let Some(time) = idle_time
        {
            keep_idle(service, time, self.most_idle);
        }
        Ok(match (is_whole, request.closes) {
            (true, false) => After::GoesOn,
            (true, true) if client.held.is_empty() => After::Closes,
            _ => After::Lingers,
        })
    }

    /// How long the connection of a response is kept; `None` when it is not.
    fn idle_time(
        &self,
        request: &Request,
        head: &ResponseHead,
        lines: &Lines,
    ) -> Option<std::time::Duration> {
        let pool = request.pool().filter(|_| head.persists)?;
        if head.has_keep_alive {
            pool.idle_time(lines.values_of(&KEEP_ALIVE))
        } else {
            pool.idle_time(std::iter::empty())
        }
    }
}

/// The body of a request, with its header before it.
fn upload(request: &Request, header: Vec<u8>) -> Relay {
    let (source, target) = match request.head.head.framing {
        head::Framing::Length(length) => (Source::Length(length), Target::Plain),
        head::Framing::Chunked if request.is_http2 => (Source::Close, Target::Chunked),
        head::Framing::Chunked => (Source::Chunked(Chunked::new()), Target::Chunked),
    };
    let limits = &request.policy.limits;
    let limits = Limits {
        bytes: request.route().map_or(0, |route| route.max_body),
        read_timeout: limits.body_timeout,
        write_timeout: request.patience().write,
        min_rate: limits.min_body_rate,
        min_taken: 0,
        read: READ_BODY,
    };
    Relay::new(source, target, limits, header)
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
