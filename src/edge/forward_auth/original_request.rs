//! Reads the headers in which a proxy describes the original request of a decision.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::access::identity_headers::{
    FORWARDED_FOR, FORWARDED_HOST, FORWARDED_METHOD, FORWARDED_PROTO, FORWARDED_URI,
};
use crate::message::rejection::Rejection;

/// The original request, as a trusted proxy describes it.
pub struct OriginalRequest<'a> {
    pub method: &'a [u8],
    pub target: &'a [u8],
    pub host: &'a [u8],
}

impl<'a> OriginalRequest<'a> {
    /// Reads the headers that describe it.
    ///
    /// # Errors
    /// When one is missing or repeated.
    pub fn read(headers: &'a HeaderMap) -> Result<Self, Rejection> {
        // The name is passed as text too, because messages are static.
        macro_rules! once {
            ($name:ident, $text:literal) => {{
                let missing = concat!($text, " is missing");
                let repeated = concat!($text, " is repeated");
                only(headers, &$name, missing, repeated)
            }};
        }
        let has = |name| headers.contains_key(name);
        if has(&FORWARDED_PROTO) {
            once!(FORWARDED_PROTO, "X-Forwarded-Proto")?;
        }
        if has(&FORWARDED_FOR) {
            once!(FORWARDED_FOR, "X-Forwarded-For")?;
        }
        Ok(Self {
            method: once!(FORWARDED_METHOD, "X-Forwarded-Method")?.as_bytes(),
            target: once!(FORWARDED_URI, "X-Forwarded-Uri")?.as_bytes(),
            host: once!(FORWARDED_HOST, "X-Forwarded-Host")?.as_bytes(),
        })
    }
}

/// The value of a header that must occur exactly once.
pub fn only<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    missing: &'static str,
    repeated: &'static str,
) -> Result<&'a HeaderValue, Rejection> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(Rejection::BadRequest(missing))?;
    if values.next().is_some() { Err(Rejection::BadRequest(repeated)) } else { Ok(value) }
}
