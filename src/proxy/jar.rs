//! Cookies of services with `cookie_jar`: into requests, and out of responses.
//!
//! The client of such a service sees none of its cookies. What the service sets is taken out of
//! every response, and kept before the response is forwarded; without a session it is dropped. The
//! jar is read once for each request, so that all attempts send the same cookies.

use std::sync::Arc;

use http::header::{COOKIE, SET_COOKIE};

use super::Gateway;
use super::failure::Stop;
use super::request::Request;
use crate::access::cookies::{OwnCookies, without};
use crate::access::trusted_proxies::HTTPS;
use crate::message::header::HeadersMut;
use crate::message::header::lines::{Lines, write_line};
use crate::message::rejection::Rejection;
use crate::message::set_cookie::SetCookie;
use crate::route::Route;
use crate::session::{Jar, JarName};

/// Bytes of `Set-Cookie` values that are kept of one exchange, its informational responses
/// included.
const MOST_TAKEN: usize = 64 << 10;

/// The jar of a request, and what the responses to it have set.
pub struct RequestJar {
    upstream: JarName,
    /// Empty without a session.
    jar: Arc<Jar>,
    /// The path that the service gets, without the query.
    path: Box<[u8]>,
    is_https: bool,
    /// When the jar was read, in milliseconds since 1970.
    read_at: u64,
    /// `Set-Cookie` values.
    taken: Vec<Box<[u8]>>,
    bytes_taken: usize,
}

impl RequestJar {
    /// Writes the `Cookie` line: the cookies of the jar, then those of the client that have other
    /// names. `client` is its lines. Nothing is written if the route sets `Cookie` itself.
    pub fn write(&self, client: &[&[u8]], own: &OwnCookies, route: &Route, out: &mut Vec<u8>) {
        if route.request_edits.set().iter().any(|(name, _)| *name == COOKIE) {
            return;
        }
        let sent = self.jar.sent(&self.path, self.is_https, self.read_at);
        let is_removed =
            |name: &[u8]| own.contain(name) || sent.iter().any(|(one, _)| *one == name);
        let mut line: Vec<u8> = Vec::new();
        let mut add = |parts: &[&[u8]]| {
            if !line.is_empty() {
                line.extend_from_slice(b"; ");
            }
            for part in parts {
                line.extend_from_slice(part);
            }
        };
        for (name, value) in &sent {
            add(&[name, b"=", value]);
        }
        for value in client {
            let rest = without(value, is_removed);
            if !rest.is_empty() {
                add(&[&rest]);
            }
        }
        if !line.is_empty() {
            write_line(out, COOKIE.as_str().as_bytes(), &line);
        }
    }

    /// Takes what a response sets out of its header lines. The gateway's own names are not for
    /// services.
    pub fn take(&mut self, own: &OwnCookies, lines: &mut Lines) {
        lines.remove_if(|name, value| {
            let is_it = name.eq_ignore_ascii_case(SET_COOKIE.as_str().as_bytes());
            let has_room = self.bytes_taken + value.len() <= MOST_TAKEN;
            if is_it && has_room && !own.is_set_by(value) {
                self.bytes_taken += value.len();
                self.taken.push(value.into());
            }
            is_it
        });
    }
}

impl Gateway {
    /// Reads the jar of a request, if its upstream has jars.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub(super) async fn open_jar(
        &self,
        request: &mut Request,
        upstream: JarName,
    ) -> Result<(), Stop> {
        let sessions = &self.process.sessions;
        let jar = match &request.verdict.session {
            Some(session) => {
                let jar = sessions.jar(session, upstream).await;
                jar.map_err(|_| Rejection::StoreUnavailable)?
            }
            None => Arc::default(),
        };
        let path = match request.path() {
            // A target in absolute form may have no path.
            "" => "/",
            path => path,
        };
        let rewritten = request.route().and_then(|route| route.rewritten(path));
        let proto = request.client.proto(&request.lines, &request.policy.proto);
        request.jar = Some(Box::new(RequestJar {
            upstream,
            jar,
            path: rewritten.as_deref().unwrap_or(path).as_bytes().into(),
            is_https: proto.as_bytes() == HTTPS,
            read_at: sessions.wall_millis(),
            taken: Vec::new(),
            bytes_taken: 0,
        }));
        Ok(())
    }

    /// Takes what the final response sets out of it, and keeps it with what earlier responses to
    /// the request have set.
    pub(super) async fn fill_jar(&self, request: &mut Request, lines: &mut Lines) {
        let Some(opened) = &mut request.jar else { return };
        opened.take(&request.policy.identity_headers.cookies, lines);
        let taken = std::mem::take(&mut opened.taken);
        let Some(session) = request.verdict.session.as_ref().filter(|_| !taken.is_empty()) else {
            return;
        };
        let path = &opened.path;
        let change = |jar: &Jar, now| {
            let set = taken.iter().filter_map(|line| SetCookie::parse(line, now));
            jar.with(set, path, now)
        };
        self.process.sessions.change_jar(session, opened.upstream, change).await;
    }
}
