//! The gateway's own cookies in the headers of requests and responses.
//!
//! A cookie is the gateway's if its name is that of a session cookie in the configuration, or
//! begins with it and `-`. Such cookies are never sent to services, and services cannot set them;
//! all other cookies stay as they are, byte for byte. Names are case-sensitive, and blanks around
//! them do not matter (RFC 6265, section 5.2).

use std::borrow::Cow;

use http::header::COOKIE;

use crate::message::header::{Headers, trim};

/// The names of the gateway's cookies.
#[derive(Default)]
pub struct OwnCookies(Vec<Box<[u8]>>);

impl OwnCookies {
    /// `names` are those of the session cookies.
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut own = Self::default();
        for name in names.map(|name| Box::from(name.as_bytes())) {
            if !own.0.contains(&name) {
                own.0.push(name);
            }
        }
        own
    }

    /// Whether there are any: without a `[[browser]]` there are none.
    pub fn are_on(&self) -> bool {
        !self.0.is_empty()
    }

    pub fn contain(&self, name: &[u8]) -> bool {
        self.0.iter().any(|own| {
            name.strip_prefix(&**own).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"-"))
        })
    }

    /// A `Cookie` value without the gateway's cookies; empty if no other is left.
    pub fn without_own<'a>(&self, value: &'a [u8]) -> Cow<'a, [u8]> {
        without(value, |name| self.contain(name))
    }

    /// Whether a `Set-Cookie` value sets one of the gateway's cookies. Browsers send a cookie
    /// without a name as its value alone, which may look like another cookie.
    pub fn is_set_by(&self, value: &[u8]) -> bool {
        let mut pair = value.split(|b| *b == b';').next().unwrap_or_default();
        loop {
            match split(pair) {
                (b"", rest) if !rest.is_empty() => pair = rest,
                (name, _) => return self.contain(name),
            }
        }
    }
}

/// A `Cookie` value without the cookies for whose names `is_removed` is true; empty if no other is
/// left.
pub fn without(value: &[u8], is_removed: impl Fn(&[u8]) -> bool) -> Cow<'_, [u8]> {
    if !pairs(value).any(|(name, _)| is_removed(name)) {
        return Cow::Borrowed(value);
    }
    let kept = value.split(|b| *b == b';').filter(|pair| !is_removed(split(pair).0));
    let kept: Vec<&[u8]> = kept.collect();
    Cow::Owned(trim(&kept.join(&b';')).to_vec())
}

/// The names and values of all cookies of a request.
pub fn all(headers: &impl Headers) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.values_of(&COOKIE).flat_map(pairs)
}

/// The names and values of a `Cookie` line.
pub fn pairs(value: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    value.split(|b| *b == b';').map(split)
}

fn split(pair: &[u8]) -> (&[u8], &[u8]) {
    let at = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
    let (name, value) = pair.split_at(at);
    (trim(name), trim(value.strip_prefix(b"=").unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> OwnCookies {
        OwnCookies::new(["__Host-wxgate", "wxgate", "wxgate"].into_iter())
    }

    #[test]
    fn own_cookies_are_removed_and_others_are_not_touched() {
        for (given, expected) in [
            ("a=1; b=\"2\"", "a=1; b=\"2\""),
            ("", ""),
            (";", ";"),
            ("wxgate=x", ""),
            ("a=1; wxgate=x; b=2", "a=1; b=2"),
            ("wxgate=x; a=1;b=2 ", "a=1;b=2"),
            ("a=1; wxgate-scan=x", "a=1"),
            (" a=1 ;\twxgate = x;b", "a=1 ;b"),
            ("wxgate", ""),
            ("__Host-wxgate=1; __Host-wxgate-abc=2; wxgate=3; x=4", "x=4"),
            (
                "wxgatex=1; Wxgate=2; xwxgate=3; __host-wxgate=4",
                "wxgatex=1; Wxgate=2; xwxgate=3; __host-wxgate=4",
            ),
        ] {
            let own = own();
            let kept = own.without_own(given.as_bytes());
            assert_eq!(std::str::from_utf8(&kept).unwrap(), expected, "{given}");
        }
    }

    #[test]
    fn a_service_cannot_set_them() {
        let own = own();
        for given in
            ["wxgate=x", " wxgate =x; Path=/", "__Host-wxgate-abc=", "wxgate", "wxgate;a=b"]
        {
            assert!(own.is_set_by(given.as_bytes()), "{given}");
        }
        // Without a name.
        for given in ["=wxgate=x", " = wxgate=x; Path=/", "==wxgate-scan=x", "=wxgate"] {
            assert!(own.is_set_by(given.as_bytes()), "{given}");
        }
        for given in ["a=wxgate", "x; wxgate=1", "wxgat=1", "WXGATE=1", "", "=", "=a=wxgate"] {
            assert!(!own.is_set_by(given.as_bytes()), "{given}");
        }
        assert!(!OwnCookies::default().is_set_by(b"wxgate=x"));
    }
}
