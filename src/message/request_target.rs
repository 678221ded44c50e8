//! The target and the host of a request: which bytes they may have, and where their parts are.

use std::net::Ipv6Addr;

use super::request_header::{HeaderLimits, Messages};
use crate::message::header::all;
use crate::message::rejection::Rejection;

pub(super) fn judge_target(
    target: &[u8],
    limits: HeaderLimits,
    messages: &Messages,
) -> Result<(), Rejection> {
    if target.len() > limits.target {
        return Err(Rejection::HeadersTooLarge);
    }
    if !all(target, is_target_byte) {
        let is_ascii = target.is_ascii();
        let message = if is_ascii { messages.target_byte } else { messages.not_ascii };
        return Err(Rejection::BadRequest(message));
    }
    // The path of a URI may not contain a backtick (RFC 3986, section 3.3).
    if path_of(target).contains(&b'`') {
        return Err(Rejection::BadRequest(messages.backtick));
    }
    Ok(())
}

pub(super) fn path_of(path_and_query: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'?', path_and_query).unwrap_or(path_and_query.len());
    path_and_query.get(..end).unwrap_or_default()
}

/// Printable ASCII, except what servers cut off, rewrite or treat as `/`.
fn is_target_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && !matches!(byte, b'#' | b'\\' | b'"' | b'<' | b'>')
}

/// What follows the scheme of a target in absolute form. Schemes are case-insensitive (RFC 3986,
/// section 3.1).
pub(super) fn strip_scheme(target: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = target.split_at_checked(memchr::memchr(b':', target)?)?;
    let is_http = [&b"http"[..], b"https"].iter().any(|other| scheme.eq_ignore_ascii_case(other));
    rest.strip_prefix(b"://").filter(|_| is_http)
}

/// A host name or address, with or without a port.
pub(super) fn judge_host(host: &[u8], messages: &Messages) -> Result<(), Rejection> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    // Most hosts are a name without a port.
    let is_host =
        !host.is_empty() && all(host, is_plain) || std::str::from_utf8(host).is_ok_and(is_host);
    if is_host { Ok(()) } else { Err(Rejection::BadRequest(messages.host)) }
}

fn is_host(host: &str) -> bool {
    let (is_name, rest) = match host.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((address, rest)) => (address.parse::<Ipv6Addr>().is_ok(), rest),
            None => return false,
        },
        None => {
            let (name, rest) = host.split_at(host.find(':').unwrap_or(host.len()));
            let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            (!name.is_empty() && name.bytes().all(legal), rest)
        }
    };
    let is_number =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    // An empty port means the default (RFC 3986, section 3.2.3).
    let is_port = |port: &str| port.is_empty() || is_number(port);
    is_name && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}
