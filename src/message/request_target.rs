//! The target of a request: which bytes it may have, and where its parts are.

use super::request_header::{HeadLimits, Messages};
use crate::message::header::all;
use crate::message::rejection::Rejection;

pub(super) fn judge_target(
    target: &[u8],
    limits: HeadLimits,
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
    let is_http = [&b"http"[..], b"https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    rest.strip_prefix(b"://").filter(|_| is_http)
}
