//! Reads a `Set-Cookie` line as user agents do (RFC 6265, section 5.2), and matches paths.
//!
//! Services send lines that no grammar allows: bytes that are not UTF-8, dates in old forms,
//! unknown attributes. What browsers accept is accepted here too. The crate `cookie` is not used:
//! it reads only UTF-8, and only dates in four forms. `Domain`, `HttpOnly` and `SameSite` have no
//! meaning for a cookie that never reaches a browser.

mod date;

use crate::message::header::syntax::is_value;
use crate::message::header::trim;

/// Maximum bytes of a name and its value together. Browsers have the same limit.
pub const LONGEST: usize = 4096;

/// Maximum bytes of an attribute that is used. Browsers have the same limit.
pub const LONGEST_ATTRIBUTE: usize = 1024;

/// A cookie as a service sets it. Names and values are any bytes that a header can have, without
/// `;`; only a value may contain `=`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SetCookie<'a> {
    pub name: &'a [u8],
    pub value: &'a [u8],
    /// Begins with `/`; `None`: the default path of the request.
    pub path: Option<&'a [u8]>,
    /// In milliseconds since 1970; `None`: it ends with the session.
    pub expires: Option<u64>,
    /// Whether it is sent over HTTPS only.
    pub is_secure: bool,
}

impl<'a> SetCookie<'a> {
    /// Reads the value of a `Set-Cookie` line. `now` is in milliseconds since 1970. `None`: the
    /// line sets no cookie, because it has no name, is too long, contains control characters, or
    /// its name begins with `__Secure-` or `__Host-` without the attributes that this requires.
    pub fn parse(line: &'a [u8], now: u64) -> Option<Self> {
        if !is_value(line) {
            return None;
        }
        let mut parts = line.split(|byte| *byte == b';');
        let (name, value) = pair(parts.next()?)?;
        if name.is_empty() || name.len() + value.len() > LONGEST {
            return None;
        }
        let mut cookie = Self { name, value, path: None, expires: None, is_secure: false };
        let (mut max_age, mut has_domain) = (None, false);
        for part in parts {
            let (attribute, value) = pair(part).unwrap_or((trim(part), b""));
            if value.len() > LONGEST_ATTRIBUTE {
                continue;
            }
            let is = |name: &[u8]| attribute.eq_ignore_ascii_case(name);
            if is(b"path") {
                cookie.path = Some(value).filter(|path| path.starts_with(b"/"));
            } else if is(b"max-age") {
                max_age = seconds(value).or(max_age);
            } else if is(b"expires") {
                cookie.expires = date::parse(value).or(cookie.expires);
            } else if is(b"secure") {
                cookie.is_secure = true;
            } else if is(b"domain") {
                has_domain = !value.is_empty();
            }
        }
        if let Some(seconds) = max_age {
            cookie.expires = Some(match seconds {
                0 => 0,
                seconds => now.saturating_add(seconds.saturating_mul(1000)),
            });
        }
        cookie.keeps_prefix(has_domain).then_some(cookie)
    }

    /// Whether the cookie has the attributes that the prefix of its name requires. As in browsers,
    /// the case of a prefix does not matter: a service may not be as exact.
    fn keeps_prefix(&self, has_domain: bool) -> bool {
        let begins = |prefix: &[u8]| {
            let start = self.name.get(..prefix.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        if begins(b"__host-") {
            return self.is_secure && !has_domain && self.path == Some(b"/");
        }
        self.is_secure || !begins(b"__secure-")
    }
}

/// The two sides of the first `=`; `None` if there is none.
fn pair(part: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, value) = part.split_at_checked(memchr::memchr(b'=', part)?)?;
    Some((trim(name), trim(value.get(1..)?)))
}

/// The seconds of a `Max-Age`; 0 if it is negative.
fn seconds(value: &[u8]) -> Option<u64> {
    let (is_negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    if is_negative {
        return Some(0);
    }
    Some(digits.iter().fold(0_u64, |number, digit| {
        number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
    }))
}

/// The path of a cookie that has none (RFC 6265, section 5.1.4). `path` is that of the request,
/// without the query.
pub fn default_path(path: &[u8]) -> &[u8] {
    match memchr::memrchr(b'/', path) {
        Some(at @ 1..) if path.starts_with(b"/") => path.get(..at).unwrap_or(b"/"),
        _ => b"/",
    }
}

/// Whether a cookie is sent with requests for this path (RFC 6265, section 5.1.4).
pub fn matches_path(path: &[u8], of_cookie: &[u8]) -> bool {
    path.strip_prefix(of_cookie)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || of_cookie.ends_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn parse(line: &str) -> Option<SetCookie<'_>> {
        SetCookie::parse(line.as_bytes(), NOW)
    }

    fn plain<'a>(name: &'a str, value: &'a str) -> SetCookie<'a> {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        SetCookie { name, value, path: None, expires: None, is_secure: false }
    }

    #[track_caller]
    fn assert_reads(line: &str, expected: SetCookie<'_>) {
        assert!(parse(line) == Some(expected), "{line}");
    }

    #[test]
    fn a_line_is_read_as_browsers_read_it() {
        for (line, name, value) in [
            ("a=b", "a", "b"),
            (" a = b ", "a", "b"),
            ("a=b=c==", "a", "b=c=="),
            ("a=", "a", ""),
            ("a=\"b\"", "a", "\"b\""),
            ("a=b;", "a", "b"),
            ("a=b; HttpOnly; SameSite=Strict; Partitioned; x=y; ;;", "a", "b"),
            ("a=b; Domain=other.example", "a", "b"),
            ("a b,c=d", "a b,c", "d"),
            ("a=\u{4e2d}", "a", "\u{4e2d}"),
            ("a=b; Path", "a", "b"),
            ("a=b; Path=x", "a", "b"),
            ("a=b; Max-Age=x; Expires=never", "a", "b"),
            ("a=b; Max-Age=; Max-Age=-; Max-Age=1.5", "a", "b"),
        ] {
            assert_reads(line, plain(name, value));
        }
        let gbk = b"a=\xd6\xd0";
        assert!(SetCookie::parse(gbk, NOW).is_some_and(|cookie| cookie.value == b"\xd6\xd0"));
        for line in ["", ";", "=", "=b", "a", "a; b=c", " =b", "a=b\u{7f}", "a=b\r\nX: y", "a\0=b"]
        {
            assert!(parse(line).is_none(), "{line:?}");
        }
    }

    #[test]
    fn the_last_attribute_of_a_name_counts() {
        let with = |path| SetCookie { path: Some(path), ..plain("a", "b") };
        assert_reads("a=b; Path=/x; PATH = /y", with(b"/y"));
        assert_reads("a=b; Path=/x; Path=y", plain("a", "b"));
        let secure = SetCookie { is_secure: true, ..plain("a", "b") };
        assert_reads("a=b; sEcUrE=x", secure);
        let long = format!("a=b; Path=/{}", "x".repeat(LONGEST_ATTRIBUTE));
        assert_reads(&long, plain("a", "b"));
    }

    #[test]
    fn max_age_comes_before_expires() {
        let ends = |expires| SetCookie { expires: Some(expires), ..plain("a", "b") };
        let date = "Expires=Wed, 21 Oct 2015 07:28:00 GMT";
        assert_reads(&format!("a=b; {date}"), ends(1_445_412_480_000));
        assert_reads(&format!("a=b; Max-Age=60; {date}"), ends(NOW + 60_000));
        assert_reads(&format!("a=b; {date}; Max-Age=60"), ends(NOW + 60_000));
        assert_reads(&format!("a=b; {date}; Max-Age=x"), ends(1_445_412_480_000));
        for gone in ["0", "-1", "-99999999999999999999"] {
            assert_reads(&format!("a=b; Max-Age={gone}"), ends(0));
        }
        assert_reads("a=b; Max-Age=99999999999999999999", ends(u64::MAX));
    }

    #[test]
    fn a_cookie_has_a_limit() {
        let fits = format!("a={}", "x".repeat(LONGEST - 1));
        assert!(parse(&fits).is_some() && parse(&format!("{fits}x")).is_none());
    }

    #[test]
    fn a_prefix_requires_its_attributes() {
        for line in [
            "__Secure-a=b; Secure",
            "__Host-a=b; Secure; Path=/",
            "__Host-a=b; Secure; Path=/; Domain=",
            "_Secure-a=b",
            "__Hos-a=b",
        ] {
            assert!(parse(line).is_some(), "{line}");
        }
        for line in [
            "__Secure-a=b",
            "__secure-a=b; Path=/",
            "__Host-a=b; Secure",
            "__HOST-a=b; Path=/",
            "__Host-a=b; Secure; Path=/x",
            "__Host-a=b; Secure; Path=/; Domain=h",
        ] {
            assert!(parse(line).is_none(), "{line}");
        }
    }

    #[test]
    fn a_path_matches_whole_segments() {
        for (path, default) in [
            ("/", "/"),
            ("", "/"),
            ("*", "/"),
            ("x/y/z", "/"),
            ("/a", "/"),
            ("/a/", "/a"),
            ("/a/b", "/a"),
            ("/a//b", "/a/"),
        ] {
            assert_eq!(default_path(path.as_bytes()), default.as_bytes(), "{path}");
        }
        for (path, of_cookie, expected) in [
            ("/", "/", true),
            ("/a", "/", true),
            ("/a", "/a", true),
            ("/a/b", "/a", true),
            ("/a/b", "/a/", true),
            ("/a", "/a/", false),
            ("/ab", "/a", false),
            ("/A", "/a", false),
            ("/b", "/a", false),
        ] {
            let matches = matches_path(path.as_bytes(), of_cookie.as_bytes());
            assert_eq!(matches, expected, "{path} {of_cookie}");
        }
    }
}
