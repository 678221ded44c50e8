//! However an upstream reads a path that is accepted, it is for the same route or endpoint.
//!
//! The first byte of an input chooses a gateway, a host and how the path begins; the rest is
//! the path. What upstreams may read is written here anew, layer by layer as known servers do it, and what
//! a reading is for is found segment by segment; nothing is taken from the code under test.

#![cfg_attr(fuzzing, no_main)]

use std::sync::LazyLock;

use wxgate::config::{Config, Secrets};
use wxgate::route::{Endpoint, MatchError, RouteLookup, Routes};

/// What a gateway serves.
struct Table {
    login: &'static [&'static str],
    logout: &'static [&'static str],
    session: &'static [&'static str],
    health: &'static [&'static str],
    hosts: &'static [&'static str],
    routes: &'static [&'static str],
}

const TABLES: [Table; 3] = [
    Table {
        login: &["/login"],
        logout: &["/logout"],
        session: &["/session"],
        health: &["/healthz"],
        hosts: &[],
        routes: &["/", "/public", "/public/admin/"],
    },
    Table {
        login: &["/wx/login", "/login"],
        logout: &[],
        session: &["/wx/session"],
        health: &[],
        hosts: &["shop.example"],
        routes: &["/a", "/a/b/c", "/a/b", "/wx", "/login"],
    },
    // Nothing but open doors in a house that is shut.
    Table {
        login: &["/login"],
        logout: &["/logout"],
        session: &["/session"],
        health: &["/a/health"],
        hosts: &[],
        routes: &["/", "/a", "/a/b", "/a/a/", "/b", "/b/a/b"],
    },
];

/// A Host, and whether it is `shop.example`.
const HOSTS: [(Option<&str>, bool); 6] = [
    (None, false),
    (Some("shop.example"), true),
    (Some("SHOP.example.:443"), true),
    (Some("shop.example:"), true),
    (Some("shop.example.org"), false),
    (Some("[::1]:80"), false),
];

/// Most paths are for the longest way that leads nowhere, unless they are helped.
const BEGINNINGS: [&str; 4] = ["/a/b", "/public", "", "/a"];

static GATEWAYS: LazyLock<Vec<Routes>> = LazyLock::new(|| TABLES.iter().map(routes).collect());

fn routes(table: &Table) -> Routes {
    let mut text = format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        [endpoints]
        login = {:?}
        logout = {:?}
        session = {:?}
        health = {:?}
        hosts = {:?}
        [[app]]
        app_id = "wx1"
        app_secret = {{ env = "X" }}
        [[upstream]]
        name = "u"
        servers = ["127.0.0.1:1"]
        "#,
        table.login, table.logout, table.session, table.health, table.hosts
    );
    for route in table.routes {
        text.push_str(&format!("[[route]]\npath = {route:?}\nupstream = \"u\"\n"));
    }
    let config = Config::parse("fuzz", &text, Secrets::Ignore).expect("the table is valid");
    Routes::new(&config.endpoints, &config.routes)
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Some((choice, path)) = input.split_first() else { return };
    let Ok(path) = std::str::from_utf8(path) else { return };
    let mut choose = usize::from(*choice);
    let mut choice = |among: usize| {
        let chosen = choose % among;
        choose /= among;
        chosen
    };
    let chosen = choice(TABLES.len());
    let (host, is_shop) = HOSTS[choice(HOSTS.len())];
    let path = &*format!("{}{path}", BEGINNINGS[choice(BEGINNINGS.len())]);
    let table = &TABLES[chosen];
    let serves_own = table.hosts.is_empty() || is_shop;
    let meets = |reading: &[u8]| endpoint(table, reading, serves_own);

    let (method, headers) = (&http::Method::GET, &http::HeaderMap::new());
    let verdict = GATEWAYS[chosen].resolve(&RouteLookup { path, host, method, headers });
    match verdict {
        Ok(accepted) => {
            check_legal(path.as_bytes());
            for reading in readings(path.as_bytes()) {
                assert_eq!(
                    meets(&reading),
                    accepted,
                    "an upstream may read {path} as {}",
                    reading.escape_ascii()
                );
            }
        }
        Err(MatchError::Malformed | MatchError::Ambiguous) => {
            assert!(!is_plain(path), "{path} is refused: {verdict:?}");
        }
        Err(MatchError::AmbiguousHeader) => panic!("no route asks for a header"),
    }
}

/// What a path is for, read as it stands.
fn endpoint(table: &Table, path: &[u8], serves_own: bool) -> Endpoint {
    let is_one_of = |paths: &[&str]| paths.iter().any(|own| own.as_bytes() == path);
    if is_one_of(table.health) {
        return Endpoint::Health;
    }
    for (paths, endpoint) in [
        (table.login, Endpoint::Login),
        (table.logout, Endpoint::Logout),
        (table.session, Endpoint::Session),
    ] {
        if serves_own && is_one_of(paths) {
            return endpoint;
        }
    }
    let segments: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    let mut best = (0, Endpoint::None);
    for (index, route) in table.routes.iter().enumerate() {
        let route: Vec<&[u8]> = route.trim_end_matches('/').split('/').map(str::as_bytes).collect();
        if segments.starts_with(&route) && route.len() > best.0 {
            best = (route.len(), Endpoint::Route(index));
        }
    }
    best.1
}

/// Nobody could misread it: unreserved characters only (RFC 3986, section 2.3), no segment
/// but the last is empty, none is of dots alone.
fn is_plain(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let unreserved = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    let segments: Vec<&str> = rest.split('/').collect();
    let last = segments.len() - 1;
    segments.iter().enumerate().all(|(index, segment)| {
        segment.chars().all(unreserved)
            && !matches!(*segment, "." | "..")
            && (index == last || !segment.is_empty())
    })
}

/// What is refused wherever it leads.
fn check_legal(path: &[u8]) {
    assert!(path.starts_with(b"/"));
    assert!(path.iter().all(u8::is_ascii_graphic), "{} is accepted", path.escape_ascii());
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        let digits = path.get(at + 1..at + 3).unwrap_or_default();
        assert!(digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit), "a broken escape");
    }
    let once = decoded(path, |_| true);
    for decoded in [&once, &decoded(&once, |_| true)] {
        assert!(!decoded.iter().any(u8::is_ascii_control), "a control byte is accepted");
        assert!(!has_overlong(decoded), "overlong UTF-8 is accepted");
    }
}

/// Whether a character stands in more bytes than it takes, also in the sequences of five and
/// six bytes that UTF-8 once had (RFC 2279, section 2).
fn has_overlong(text: &[u8]) -> bool {
    (0..text.len()).any(|at| {
        let (length, bits, least) = match text[at] {
            lead @ 0xc0..=0xdf => (1, u32::from(lead & 0x1f), 0x80),
            lead @ 0xe0..=0xef => (2, u32::from(lead & 0x0f), 0x800),
            lead @ 0xf0..=0xf7 => (3, u32::from(lead & 0x07), 0x1_0000),
            lead @ 0xf8..=0xfb => (4, u32::from(lead & 0x03), 0x20_0000),
            lead @ 0xfc..=0xfd => (5, u32::from(lead & 0x01), 0x400_0000),
            _ => return false,
        };
        let Some(rest) = text.get(at + 1..=at + length) else { return false };
        rest.iter().all(|byte| byte & 0xc0 == 0x80)
            && rest.iter().fold(bits, |bits, byte| bits << 6 | u32::from(byte & 0x3f)) < least
    })
}

/// What servers may make of a path: one behind another, with two decodings in all.
fn readings(path: &[u8]) -> Vec<Vec<u8>> {
    let mut found = vec![(0, path.to_vec())];
    for _ in 0..2 {
        // Parameters are dropped before escapes are decoded (Tomcat, Jetty), of every segment
        // or of the last alone (Python's urlparse).
        layer(&mut found, 0, |path| vec![without_parameters(path), without_last_parameters(path)]);
        layer(&mut found, 1, |path| {
            vec![
                // nginx, PHP, WSGI
                decoded(path, |_| true),
                // Apache's AllowEncodedSlashes NoDecode, Tomcat's encodedSolidusHandling
                decoded(path, |byte| byte != b'/'),
                decoded(path, |byte| byte != b'/' && byte != b'\\'),
                // Normalised as RFC 3986, section 6.2.2.2, has it: Envoy, HAProxy
                decoded(path, |b| b.is_ascii_alphanumeric() || b"-._~".contains(&b)),
            ]
        });
        // IIS, and whoever parses a path as a URL.
        layer(&mut found, 0, |path| vec![with_slashes(path)]);
        // Spring, which drops them after decoding.
        layer(&mut found, 0, |path| vec![without_parameters(path)]);
        layer(&mut found, 0, |path| {
            let merged = merged(path);
            vec![without_dots(path, |_| false), without_dots(&merged, |_| false), merged]
        });
        // A URL's parser takes an escaped dot for a dot (WHATWG URL, section 4.1).
        layer(&mut found, 1, |path| {
            let is_escaped = |segment: &[u8]| segment.contains(&b'%');
            vec![without_dots(path, is_escaped), without_dots(&merged(path), is_escaped)]
        });
        layer(&mut found, 0, |path| vec![merged(path)]);
    }
    found.into_iter().map(|(_, reading)| reading).collect()
}

/// Adds what a server that does one thing more would read, and how often it has decoded.
fn layer(found: &mut Vec<(u8, Vec<u8>)>, decodings: u8, step: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
    for index in 0..found.len() {
        let decodings = found[index].0 + decodings;
        if decodings > 2 {
            continue;
        }
        for reading in step(&found[index].1) {
            if !found.iter().any(|(other, known)| *other <= decodings && *known == reading) {
                found.push((decodings, reading));
            }
        }
    }
}

fn decoded(text: &[u8], is_meant: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..2).filter(|d| *first == b'%' && d.iter().all(u8::is_ascii_hexdigit));
        let meant = digits
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
            .filter(|byte| is_meant(*byte));
        decoded.push(meant.unwrap_or(*first));
        rest = if meant.is_some() { &after[2..] } else { after };
    }
    decoded
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut is_parameter = false;
    for byte in path {
        match byte {
            b';' => is_parameter = true,
            b'/' => is_parameter = false,
            _ => {}
        }
        if !is_parameter {
            kept.push(*byte);
        }
    }
    kept
}

fn without_last_parameters(path: &[u8]) -> Vec<u8> {
    let last = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    let end = path[last..].iter().position(|b| *b == b';').map_or(path.len(), |at| last + at);
    path[..end].to_vec()
}

fn with_slashes(path: &[u8]) -> Vec<u8> {
    path.iter().map(|b| if *b == b'\\' { b'/' } else { *b }).collect()
}

fn merged(path: &[u8]) -> Vec<u8> {
    let mut merged: Vec<u8> = Vec::new();
    for byte in path {
        if *byte != b'/' || merged.last() != Some(&b'/') {
            merged.push(*byte);
        }
    }
    merged
}

/// Without `.` and `..`. `is_read` says whether a segment's escapes count.
fn without_dots(path: &[u8], is_read: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let segments: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    let mut kept: Vec<&[u8]> = Vec::new();
    for (index, segment) in segments.iter().enumerate().skip(1) {
        let is_last = index == segments.len() - 1;
        let read =
            if is_read(segment) { decoded(segment, |b| b == b'.') } else { segment.to_vec() };
        match &*read {
            b"." | b".." => {
                if &*read == b".." {
                    kept.pop();
                }
                if is_last {
                    kept.push(b"");
                }
            }
            _ => kept.push(segment),
        }
    }
    kept.iter().flat_map(|segment| [b"/", *segment].concat()).collect()
}
