//! One jar: the cookies that one service has set for one session.
//!
//! The cookies are kept as user agents keep them (RFC 6265, section 5.3), except that all of them
//! belong to one service, so that `Domain` has no meaning. A jar is never changed: a change makes a
//! new one. For a shared store it is encoded as bytes.

use crate::message::set_cookie::{LONGEST_ATTRIBUTE, SetCookie, default_path, matches_path};

/// Maximum bytes of all names, values and paths in a jar.
const MOST_BYTES: usize = 8 << 10;

/// Maximum cookies in a jar. Browsers keep about as many of one host.
const MOST_COOKIES: usize = 180;

/// Approximate memory of a jar, and of each cookie besides its text, in bytes.
const JAR_BYTES: usize = 200;
const COOKIE_BYTES: usize = 120;

/// Format version of encoded jars. Other versions are not read.
const VERSION: u8 = 1;

/// Bits of an encoded cookie.
const SECURE: u8 = 1;
const EXPIRES: u8 = 2;

/// The cookies of one session at one service. It is not `Debug`, because cookies are secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Jar {
    /// The one that was set longest ago comes first.
    cookies: Vec<Cookie>,
}

#[derive(Clone, PartialEq, Eq)]
struct Cookie {
    name: Box<[u8]>,
    value: Box<[u8]>,
    path: Box<[u8]>,
    /// In milliseconds since 1970; `None`: with the session.
    expires: Option<u64>,
    is_secure: bool,
    /// Greater than that of every cookie that was first set before. Stays when it is set again.
    created: u64,
}

impl Cookie {
    fn length(&self) -> usize {
        self.name.len() + self.value.len() + self.path.len()
    }

    fn is_live(&self, now: u64) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

impl Jar {
    pub fn is_empty(&self) -> bool {
        self.cookies.is_empty()
    }

    /// Approximate memory, in bytes.
    pub fn weight(&self) -> usize {
        JAR_BYTES + self.cookies.iter().map(|cookie| COOKIE_BYTES + cookie.length()).sum::<usize>()
    }

    /// This jar after a response to a request for `path` has set cookies. `now` is in milliseconds
    /// since 1970.
    #[must_use]
    pub fn with<'a>(
        &self,
        set: impl Iterator<Item = SetCookie<'a>>,
        path: &[u8],
        now: u64,
    ) -> Self {
        let mut jar = self.clone();
        for cookie in set {
            jar.set(&cookie, default_path(path), now);
        }
        jar.cookies.retain(|cookie| cookie.is_live(now));
        let mut bytes: usize = jar.cookies.iter().map(Cookie::length).sum();
        let mut left = jar.cookies.len();
        jar.cookies.retain(|oldest| {
            let is_kept = bytes <= MOST_BYTES && left <= MOST_COOKIES;
            if !is_kept {
                bytes -= oldest.length();
                left -= 1;
            }
            is_kept
        });
        jar
    }

    fn set(&mut self, set: &SetCookie<'_>, default_path: &[u8], now: u64) {
        let path = set.path.unwrap_or(default_path);
        if path.len() > LONGEST_ATTRIBUTE {
            return;
        }
        let is_it = |cookie: &Cookie| *cookie.name == *set.name && *cookie.path == *path;
        let known = self.cookies.iter().position(is_it);
        let next = self
            .cookies
            .iter()
            .map(|cookie| cookie.created.saturating_add(1))
            .max()
            .unwrap_or_default();
        let mut cookie = Cookie {
            name: set.name.into(),
            value: set.value.into(),
            path: path.into(),
            expires: set.expires,
            is_secure: set.is_secure,
            created: next,
        };
        if let Some(known) = known {
            cookie.created = self.cookies.get(known).map_or(next, |known| known.created);
            if self.cookies.get(known) == Some(&cookie) {
                // Nothing to write to a store.
                return;
            }
            self.cookies.remove(known);
        }
        if cookie.is_live(now) {
            self.cookies.push(cookie);
        }
    }

    /// Names and values of the cookies for a request, in the order in which they are sent (RFC
    /// 6265, section 5.4). `path` is without the query.
    pub fn sent(&self, path: &[u8], is_https: bool, now: u64) -> Vec<(&[u8], &[u8])> {
        let mut found: Vec<&Cookie> = self
            .cookies
            .iter()
            .filter(|cookie| {
                cookie.is_live(now)
                    && (is_https || !cookie.is_secure)
                    && matches_path(path, &cookie.path)
            })
            .collect();
        found.sort_by_key(|cookie| (std::cmp::Reverse(cookie.path.len()), cookie.created));
        found.into_iter().map(|cookie| (&*cookie.name, &*cookie.value)).collect()
    }

    /// The jar as bytes, for a store.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        for cookie in &self.cookies {
            let secure = if cookie.is_secure { SECURE } else { 0 };
            let expires = if cookie.expires.is_some() { EXPIRES } else { 0 };
            out.push(secure | expires);
            out.extend(cookie.expires.map(u64::to_be_bytes).into_iter().flatten());
            out.extend(cookie.created.to_be_bytes());
            for text in [&cookie.name, &cookie.value, &cookie.path] {
                // None is longer than `MOST_BYTES`.
                out.extend(u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
                out.extend_from_slice(text);
            }
        }
        out
    }

    /// The reverse of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[VERSION], mut rest) = bytes.split_first_chunk()? else { return None };
        let mut jar = Self::default();
        while !rest.is_empty() {
            jar.cookies.push(decode(&mut rest)?);
        }
        Some(jar)
    }
}

/// Takes one cookie from the start of `rest`.
fn decode(rest: &mut &[u8]) -> Option<Cookie> {
    let [bits] = take(rest)?;
    let expires = if bits & EXPIRES == 0 { None } else { Some(u64::from_be_bytes(take(rest)?)) };
    let created = u64::from_be_bytes(take(rest)?);
    let mut text = || {
        let length = u16::from_be_bytes(take(rest)?);
        let (text, after) = rest.split_at_checked(usize::from(length))?;
        *rest = after;
        Some(Box::from(text))
    };
    let (name, value, path) = (text()?, text()?, text()?);
    Some(Cookie { name, value, path, expires, is_secure: bits & SECURE != 0, created })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn with(jar: &Jar, path: &str, lines: &[&str]) -> Jar {
        let set = lines.iter().filter_map(|line| SetCookie::parse(line.as_bytes(), NOW));
        jar.with(set, path.as_bytes(), NOW)
    }

    fn at(jar: &Jar, path: &str, is_https: bool, now: u64) -> String {
        let sent = jar.sent(path.as_bytes(), is_https, now);
        let text = |bytes| std::str::from_utf8(bytes).unwrap();
        let pairs = sent.into_iter().map(|(name, value)| format!("{}={}", text(name), text(value)));
        pairs.collect::<Vec<_>>().join("; ")
    }

    fn sent(jar: &Jar, path: &str) -> String {
        at(jar, path, false, NOW)
    }

    #[test]
    fn longer_paths_come_first_then_older_cookies() {
        let jar = with(&Jar::default(), "/x/y", &["a=1; Path=/", "b=2", "c=3; Path=/", "d=4"]);
        assert_eq!(sent(&jar, "/x/z"), "b=2; d=4; a=1; c=3");
        assert_eq!(sent(&jar, "/"), "a=1; c=3");
        // A cookie that is set again keeps its age.
        let jar = with(&jar, "/x/y", &["a=5; Path=/", "b=6"]);
        assert_eq!(sent(&jar, "/x"), "b=6; d=4; a=5; c=3");
        // The same name with another path is another cookie.
        let jar = with(&jar, "/", &["b=7"]);
        assert_eq!(sent(&jar, "/x"), "b=6; d=4; a=5; c=3; b=7");
    }

    #[test]
    fn a_cookie_ends_by_its_attributes() {
        let jar = with(&Jar::default(), "/", &["a=1; Max-Age=10", "b=2"]);
        assert_eq!(at(&jar, "/", false, NOW + 9_999), "a=1; b=2");
        assert_eq!(at(&jar, "/", false, NOW + 10_000), "b=2");
        for gone in ["a=; Max-Age=0", "a=x; Expires=Thu, 01-Jan-1970 00:00:01 GMT"] {
            assert_eq!(sent(&with(&jar, "/", &[gone]), "/"), "b=2", "{gone}");
            // Only that of the same path.
            assert_eq!(sent(&with(&jar, "/x/y", &[gone]), "/"), "a=1; b=2", "{gone}");
        }
        assert!(with(&jar, "/", &["a=; Max-Age=0", "b=; Max-Age=-1"]).is_empty());
    }

    #[test]
    fn secure_cookies_are_sent_over_https_only() {
        let jar = with(&Jar::default(), "/", &["a=1; Secure", "b=2"]);
        assert_eq!(at(&jar, "/", true, NOW), "a=1; b=2");
        assert_eq!(at(&jar, "/", false, NOW), "b=2");
    }

    #[test]
    fn a_full_jar_drops_the_oldest_cookies() {
        let value = "x".repeat(4000);
        let line = |name: &str| format!("{name}={value}");
        let mut jar = with(&Jar::default(), "/", &[&line("a"), &line("b")]);
        assert_eq!(jar.sent(b"/", false, NOW).len(), 2);
        // Now `b` is the one that was set longest ago.
        jar = with(&jar, "/", &[&format!("a=y{}", &value[1..]), &line("c")]);
        let names = |jar: &Jar| {
            let sent = jar.sent(b"/", false, NOW);
            sent.iter().map(|(name, _)| name[0]).collect::<Vec<_>>()
        };
        assert_eq!(names(&jar), b"ac");
        for number in 0..10_000 {
            jar = with(&jar, "/", &[&format!("{number}=x")]);
        }
        assert_eq!(jar.cookies.len(), MOST_COOKIES);
        assert_eq!(*jar.cookies[MOST_COOKIES - 1].name, *b"9999");
        let long = with(&jar, "/", &[&line("a"), &line("b"), &line("c")]);
        assert!(long.cookies.iter().map(Cookie::length).sum::<usize>() <= MOST_BYTES);
        assert!(long.weight() < 2 * MOST_BYTES);
        assert_eq!(names(&long), b"bc");
    }

    #[test]
    fn nothing_changes_if_the_same_is_set_again() {
        let jar = with(&Jar::default(), "/", &["a=1", "b=2; Secure"]);
        assert!(with(&jar, "/", &["a=1"]) == jar);
        assert!(with(&jar, "/", &["a=1; Secure"]) != jar);
        assert!(with(&jar, "/", &["c=; Max-Age=0"]) == jar);
    }

    #[test]
    fn a_jar_is_the_same_after_it_was_stored() {
        let lines = ["a=1", "b=; Secure; Path=/x; Max-Age=60", "c=\u{4e2d}"];
        let jar = with(&Jar::default(), "/", &lines);
        let bytes = jar.encode();
        assert!(Jar::decode(&bytes).unwrap() == jar);
        assert!(Jar::decode(&Jar::default().encode()).unwrap().is_empty());
        for length in 0..bytes.len() {
            // The end of a cookie is the end of a shorter jar.
            assert!(Jar::decode(&bytes[..length]).is_none_or(|shorter| shorter != jar));
        }
        assert!(Jar::decode(&[2]).is_none() && Jar::decode(&[]).is_none());
    }
}
