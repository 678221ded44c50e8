//! Writes the headers that the gateway sends: of requests to services, and of responses to clients.
//!
//! Forwarded lines are rewritten as `name: value`. Framing lines are never copied, but written from
//! the framing that was judged. The gateway's own lines come after the forwarded ones, and nothing
//! is removed after them. No other code writes these headers, except for responses to requests
//! without a route (`unrouted`).

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use http::header::{CACHE_CONTROL, DATE, REFERRER_POLICY, SET_COOKIE, UPGRADE};

use super::body::BodyTarget;
use super::client::ClientConnection;
use super::grpc;
use super::request::Request;
use super::trailers;
use crate::access::authenticator::CookieUse;
use crate::access::browsers::BrowserHost;
use crate::access::identity_headers::REQUEST_ID;
use crate::config::UpstreamHost;
use crate::message::caching;
use crate::message::header::lines::{Lines, write_line};
use crate::message::header::reserved::HOP_BY_HOP;
use crate::message::header::{Headers, HeadersMut, nominated};
use crate::message::own_response::OwnResponse;
use crate::message::request_header::Framing;
use crate::message::response_header::ResponseHeader;
use crate::route::Route;
use crate::upstream::server::Server;

/// For responses to URLs with a ticket, which must not appear in a `Referer`.
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");

/// Whether a header is about framing, or is a hop-by-hop header. Such lines are never copied.
pub fn is_of_connection(name: &[u8]) -> bool {
    let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
    match name.len() {
        14 => is(b"content-length") || is(b"http2-settings"),
        2 | 7 | 10 | 16..=19 => HOP_BY_HOP.iter().any(|other| is(other.as_bytes())),
        _ => false,
    }
}

/// The names listed in `Connection`.
pub fn nominations(lines: &Lines) -> Vec<Box<[u8]>> {
    nominated(lines).map(Box::from).collect()
}

pub fn is_among(names: &[Box<[u8]>], name: &[u8]) -> bool {
    names.iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Writes a request header for a server. As long as the server is not known, `Host` is that of the
/// client, even if the upstream's `host` is `server`. `None` is an internal error.
pub fn request(
    request: &Request,
    client: &ClientConnection,
    server: Option<&Server>,
    out: &mut Vec<u8>,
) -> Option<()> {
    let policy = request.policy.clone();
    let route = request.route()?;
    let host = match &request.pool()?.section().host {
        UpstreamHost::Client => None,
        UpstreamHost::Server => server.map(|server| &server.host),
        UpstreamHost::Fixed(host) => Some(host),
    };
    let is_trusted = request.client.is_trusted;
    // Read before any line is removed.
    let forwarding = is_trusted.then(|| {
        let id = request.id.clone();
        request.client.forwarding(&request.lines, id, &policy.proto, None)
    });
    let nominated = if request.header.nominates { nominations(&request.lines) } else { Vec::new() };
    let announced = trailers::announced_by_client(request);

    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b' ');
    write_target(request, route, out)?;
    out.extend_from_slice(b" HTTP/1.1\r\n");

    let edits = &route.request_edits;
    if let Some(host) = host {
        write_line(out, b"host", host.as_bytes());
    }
    let cookies = &policy.identity_headers.cookies;
    let jar = request.jar.as_deref();
    let mut beside_jar: Vec<&[u8]> = Vec::new();
    let may_change = jar.is_some() || cookies.are_on();
    for (name, value) in request.lines.iter() {
        let is_removed = is_of_connection(name)
            || host.is_some() && name.eq_ignore_ascii_case(b"host")
            || is_among(&nominated, name)
            || policy.identity_headers.strips(name, value, is_trusted)
            || edits.removes(name);
        if is_removed {
            continue;
        }
        if may_change && name.eq_ignore_ascii_case(b"cookie") {
            if jar.is_some() {
                beside_jar.push(value);
                continue;
            }
            write_cookies(name, &cookies.without_own(value), value, out);
        } else {
            write_line(out, name, value);
        }
    }
    match request.header.framing {
        Framing::Chunked => {
            write_line(out, b"transfer-encoding", b"chunked");
            if let Some(names) = &announced {
                write_line(out, b"trailer", names);
            }
        }
        Framing::Length(length) if request.header.content_length.is_some() || length > 0 => {
            write_number(out, b"content-length", length);
        }
        Framing::Length(_) => {}
    }
    if request.is_websocket {
        write_line(out, b"connection", b"Upgrade");
        write_line(out, b"upgrade", b"websocket");
    }
    match &forwarding {
        Some(forwarding) => policy.identity_headers.write(forwarding, out),
        None => {
            write_line(out, b"x-request-id", request.id.as_bytes());
            let address = client.address_value.as_bytes();
            write_line(out, b"x-forwarded-for", address);
            write_line(out, b"x-forwarded-proto", policy.proto.as_bytes());
            write_line(out, b"x-real-ip", address);
            if let Some(host) = request.header.host {
                write_line(out, b"x-forwarded-host", host.of(request.lines.text()));
            }
        }
    }
    if let Some(session) = &request.verdict.session {
        policy.identity_headers.write_identity(session, request.pool?, out).ok()?;
    }
    if let Some(jar) = jar {
        jar.write(&beside_jar, cookies, route, out);
    }
    for (name, value) in edits.set() {
        write_line(out, name.as_str().as_bytes(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    Some(())
}

/// Writes a `Cookie` line of a client without the gateway's cookies, unless they were all of it.
// Not in the loop over all lines: few requests have one.
#[inline(never)]
fn write_cookies(name: &[u8], kept: &[u8], received: &[u8], out: &mut Vec<u8>) {
    if !kept.is_empty() || received.is_empty() {
        write_line(out, name, kept);
    }
}

/// Writes path and query without the ticket. `None` is an internal error.
fn write_target(request: &Request, route: &Route, out: &mut Vec<u8>) -> Option<()> {
    let target = request.header.path_and_query.of(request.lines.text());
    // A target in absolute form may have no path.
    let slash = if target.starts_with(b"/") { "" } else { "/" };
    if request.ticket.is_none() && !route.rewrites() {
        out.extend_from_slice(slash.as_bytes());
        out.extend_from_slice(target);
        return Some(());
    }
    let (target, after_ticket) = match request.ticket {
        None => (target, &[][..]),
        Some(ticket) => ticket.around(target),
    };
    let target = String::from_utf8([slash.as_bytes(), target, after_ticket].concat()).ok()?;
    out.extend_from_slice(route.rewritten(&target).as_deref().unwrap_or(&target).as_bytes());
    Some(())
}

/// How a response is framed.
pub struct Framed {
    pub target: BodyTarget,
    /// Whether the end of the connection marks the end of the body.
    pub by_close: bool,
}

/// Writes the header of a service's response for the client. `lines` are the service's header
/// lines.
pub fn response(
    request: &mut Request,
    header: &ResponseHeader,
    lines: &mut Lines,
    out: &mut Vec<u8>,
) -> Framed {
    use crate::message::response_header::Framing as Of;

    let policy = request.policy.clone();
    write_status(out, header.status, header.reason.of(lines.text()));
    let announces = header.framing == Of::Chunked && request.header.accepts_trailers;
    let names = announces.then(|| trailers::announced_by_service(request, lines)).flatten();
    policy.identity_headers.clean_response(header.status, lines);
    lines.remove_if(|name, _| is_of_connection(name) || name.eq_ignore_ascii_case(b"x-request-id"));

    if let Some(route) = request.route() {
        route.response_edits.remove_from(lines);
        route.response_edits.write_to(lines);
        if let Some(cors) = &route.cors {
            cors.mark(&request.lines, lines);
        }
        // Comes last, so that no edit can remove it.
        route.caching.mark(lines, request.verdict.session.is_some());
    }
    if request.ticket.is_some() {
        caching::make_private(lines);
        caching::replace(lines, &REFERRER_POLICY, &NO_REFERRER);
    }
    let cleared = cleared_cookie(request);
    if cleared.is_some() {
        // A response that changes the session cookie is not stored.
        lines.remove_if(|name, _| name.eq_ignore_ascii_case(b"cache-control"));
    }
    lines.write_to(out);
    if let Some(cookie) = cleared {
        write_line(out, b"cache-control", b"no-store");
        write_line(out, b"set-cookie", cookie.as_bytes());
    }
    if lines.first(&DATE).is_none() {
        write_date(out);
    }
    let is_old = request.is_http_10();
    let framed = match header.framing {
        _ if request.is_http2 => Framed { target: BodyTarget::Stream, by_close: false },
        Of::Length(_) => Framed { target: BodyTarget::Plain, by_close: false },
        Of::Chunked | Of::Close if is_old => Framed { target: BodyTarget::Plain, by_close: true },
        Of::Chunked | Of::Close => Framed { target: BodyTarget::Chunked, by_close: false },
    };
    request.closes |= framed.by_close;
    if framed.target == BodyTarget::Chunked {
        write_line(out, b"transfer-encoding", b"chunked");
        if let Some(names) = &names {
            write_line(out, b"trailer", names);
        }
    } else if let Some(length) = header.content_length
        && header.status != 204
    {
        write_number(out, b"content-length", length);
    }
    end(request, out);
    framed
}

/// Writes an informational response: a status of 100 to 199, except 101.
pub fn informational(
    request: &Request,
    header: &ResponseHeader,
    lines: &mut Lines,
    out: &mut Vec<u8>,
) {
    write_status(out, header.status, header.reason.of(lines.text()));
    request.policy.identity_headers.clean_response(header.status, lines);
    lines.remove_if(|name, _| is_of_connection(name));
    lines.write_to(out);
    out.extend_from_slice(b"\r\n");
}

/// Writes the 101 that accepts a WebSocket.
pub fn switching(request: &Request, header: &ResponseHeader, lines: &mut Lines, out: &mut Vec<u8>) {
    write_status(out, header.status, header.reason.of(lines.text()));
    request.policy.identity_headers.clean_response(header.status, lines);
    let everywhere = request.route().map(|route| &route.response_headers[..]).unwrap_or_default();
    lines.remove_if(|name, _| {
        is_of_connection(name)
            || name.eq_ignore_ascii_case(b"x-request-id")
            || everywhere
                .iter()
                .any(|(other, _)| other.as_str().as_bytes().eq_ignore_ascii_case(name))
    });
    lines.write_to(out);
    if let Some(cookie) = cleared_cookie(request) {
        write_line(out, b"set-cookie", cookie.as_bytes());
    }
    for (name, value) in everywhere {
        write_line(out, name.as_str().as_bytes(), value.as_bytes());
    }
    write_line(out, b"connection", b"Upgrade");
    write_line(out, b"upgrade", b"websocket");
    write_line(out, REQUEST_ID.as_str().as_bytes(), request.id.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes one of the gateway's own responses, with its body.
///
/// Returns the length of the header.
pub fn own_response(request: &Request, mut response: OwnResponse, out: &mut Vec<u8>) -> usize {
    let mut everywhere = &request.policy.response_headers;
    if let Some(route) = request.route() {
        if let Some(cors) = &route.cors
            && !request.is_preflight
        {
            cors.mark_own_response(&request.lines, &mut response);
        }
        route.caching.mark_own_response(&mut response, request.verdict.session.is_some());
        everywhere = &route.response_headers;
    }
    if request.ticket.is_some() {
        caching::make_own_private(&mut response);
        response.replace(REFERRER_POLICY, NO_REFERRER);
    }
    response.add_missing(everywhere);
    if let Some(cookie) = cleared_cookie(request) {
        response.replace(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response.header(SET_COOKIE, cookie);
    }
    let is_trailers_only = match &request.rejection {
        Some(rejection) if request.is_grpc => {
            grpc::trailers_only(&mut response, rejection.message());
            true
        }
        _ => false,
    };
    let reason = http::StatusCode::from_u16(response.status).ok();
    let reason = reason.and_then(|status| status.canonical_reason()).unwrap_or_default();
    write_status(out, response.status, reason.as_bytes());
    let mut upgrades = false;
    for (name, value) in &response.headers {
        upgrades |= *name == UPGRADE;
        write_line(out, name.as_str().as_bytes(), value.as_bytes());
    }
    write_date(out);
    if response.status != 204 && !is_trailers_only {
        write_number(out, b"content-length", response.body.len() as u64);
    }
    if upgrades {
        // `Upgrade` concerns the connection, and must be listed in `Connection` (RFC 9110, section
        // 7.8).
        write_line(out, b"connection", b"Upgrade");
    }
    end(request, out);
    let header = out.len();
    if !request.is_head() {
        out.extend_from_slice(&response.body);
    }
    header
}

/// The `Set-Cookie` that removes a session cookie whose session has ended.
fn cleared_cookie(request: &Request) -> Option<HeaderValue> {
    if request.verdict.cookie != CookieUse::Ended {
        return None;
    }
    request.browser().map(BrowserHost::cleared_session)
}

/// Writes the last lines of a response.
fn end(request: &Request, out: &mut Vec<u8>) {
    write_line(out, b"x-request-id", request.id.as_bytes());
    let connection: &[u8] = if request.closes { b"close" } else { b"keep-alive" };
    write_line(out, b"connection", connection);
    out.extend_from_slice(b"\r\n");
}

fn write_status(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    let digits = [status / 100 % 10, status / 10 % 10, status % 10];
    out.extend(digits.map(|digit| b'0' + u8::try_from(digit).unwrap_or_default()));
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

fn write_number(out: &mut Vec<u8>, name: &[u8], number: u64) {
    out.extend_from_slice(name);
    // Writing to a vector cannot fail.
    let _ = write!(out, ": {number}\r\n");
}

/// Writes the current `Date`, for a message without one (RFC 9110, section 6.6.1). The text is
/// formatted once a second.
fn write_date(out: &mut Vec<u8>) {
    thread_local! {
        static LAST: RefCell<(Duration, String)> = const { RefCell::new((Duration::ZERO, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST.with_borrow_mut(|(last, text)| {
        if last.as_secs() != second || text.is_empty() {
            *last = Duration::from_secs(second);
            *text = httpdate::fmt_http_date(now);
        }
        write_line(out, DATE.as_str().as_bytes(), text.as_bytes());
    });
}
