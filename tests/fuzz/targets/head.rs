//! A request header that passes has one reading: by plain rules, by another parser, and however it
//! comes in pieces.
//!
//! An input is what comes over a connection.

#![cfg_attr(fuzzing, no_main)]

use pingora::http::RequestHeader;
use wxgate::fuzzing::Rejection;
use wxgate::message::request_header::{self, Framing, HeaderLimits};

const LIMITS: HeaderLimits = HeaderLimits { bytes: 1024, lines: 12, target: 100 };
const HEALTH: &[u8] = b"/healthz";

/// Bytes of an input that are tried at every length.
const LONGEST_TRIED: usize = 600;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let whole = verdict(input);
    let mut before = Ok(None);
    for end in (0..=input.len().min(LONGEST_TRIED)).chain([input.len()]) {
        let now = verdict(&input[..end]);
        match &before {
            Ok(None) => {}
            Ok(Some(_)) => assert_eq!(now, before, "what has passed stays so"),
            Err(_) => assert!(now.is_err(), "a refusal is final"),
        }
        before = now;
    }
    assert_eq!(before, whole);

    match whole {
        Ok(None) => assert!(input.len() <= LIMITS.bytes && !ends(input)),
        Ok(Some(header)) => {
            assert_eq!(Some(header), plain(input), "{}", input.escape_ascii());
            compare(&input[..header.length], header);
            compare_target(input);
        }
        Err(Rejection::BadRequest(_)) => {
            assert_eq!(plain(input), None, "{}", input.escape_ascii());
        }
        Err(Rejection::HeadersTooLarge) => assert!(is_large(input)),
        Err(other) => panic!("{other:?} is no answer to a header"),
    }
}

/// What is read out of a header, for comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    length: usize,
    framing: Framing,
    wants_websocket: bool,
}

fn verdict(read: &[u8]) -> Result<Option<Reading>, Rejection> {
    let header = request_header::read(read, LIMITS, |path| path == HEALTH, |_| {})?;
    Ok(header.map(|header| Reading {
        length: header.length,
        framing: header.framing,
        wants_websocket: header.wants_websocket,
    }))
}

fn ends(read: &[u8]) -> bool {
    let text = read.strip_prefix(b"\r\n").unwrap_or(read);
    text.windows(4).any(|four| four == b"\r\n\r\n")
}

fn is_large(read: &[u8]) -> bool {
    let lines = read.split(|b| *b == b'\n').count();
    let target = read.split(|b| *b == b' ').nth(1).unwrap_or_default();
    read.len() > LIMITS.bytes || lines > LIMITS.lines || target.len() > LIMITS.target
}

/// The rules, on a whole header that is not too large: RFC 9112, sections 2 to 6, without what
/// it leaves to the reader.
fn plain(read: &[u8]) -> Option<Reading> {
    let skipped = if read.starts_with(b"\r\n") { 2 } else { 0 };
    let text = &read[skipped..];
    let length = text.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    // One byte a character, so that nothing is lost.
    let text: String = text[..length - 4].iter().map(|byte| char::from(*byte)).collect();
    let mut lines = text.split("\r\n");
    let request: Vec<&str> = lines.next()?.split(' ').collect();
    let [method, target, version] = *request else { return None };
    let is_method = |c: char| c.is_ascii_uppercase() || c == '-';
    if method.is_empty() || method.len() > 32 || method.starts_with('-') {
        return None;
    }
    if !method.chars().all(is_method) || ["CONNECT", "TRACE"].contains(&method) {
        return None;
    }
    if !["HTTP/1.1", "HTTP/1.0"].contains(&version) {
        return None;
    }
    if !target.chars().all(|c| c.is_ascii_graphic() && !"#\\\"<>".contains(c)) {
        return None;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path.contains('`') || query.len() > LIMITS.target {
        return None;
    }
    let after_scheme = path.split_once("://").and_then(|(scheme, rest)| {
        ["http", "https"].contains(&&*scheme.to_ascii_lowercase()).then_some(rest)
    });
    let (authority, path) = match after_scheme {
        _ if target.starts_with('/') => (None, path),
        Some(rest) => {
            let end = rest.find('/').unwrap_or(rest.len());
            (Some(&rest[..end]), &rest[end..])
        }
        None => return None,
    };

    let mut fields: Vec<(String, &str)> = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let is_text = |c: char| c == '\t' || c >= ' ' && c != '\x7f';
        if name.is_empty() || !name.chars().all(is_token) || !value.chars().all(is_text) {
            return None;
        }
        fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t'])));
    }
    let all = |wanted: &str| -> Vec<&str> {
        fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| *value).collect()
    };

    match *all("host") {
        [] if path.as_bytes() == HEALTH => {}
        [host] if is_host(host) && authority.is_none_or(|authority| authority == host) => {}
        _ => return None,
    }
    let framing = match (&*all("content-length"), &*all("transfer-encoding")) {
        ([], []) => Framing::Length(0),
        ([length], []) => {
            let is_number = length.chars().all(|c| c.is_ascii_digit()) && length.len() <= 18;
            Framing::Length(length.parse().ok().filter(|_| is_number)?)
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") && version == "HTTP/1.1" => {
            Framing::Chunked
        }
        _ => return None,
    };
    let options: Vec<String> = all("connection")
        .iter()
        .flat_map(|value| value.split(','))
        .map(|option| option.trim_matches([' ', '\t']).to_ascii_lowercase())
        .collect();
    let kept = ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
    if options.len() >= 10 || options.iter().any(|option| kept.contains(&option.as_str())) {
        return None;
    }
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if !options.iter().all(|option| option.chars().all(is_token)) {
        return None;
    }
    let is_websocket = |offer: &str| {
        let name = offer.split('/').next().unwrap_or_default();
        name.trim_matches([' ', '\t']).eq_ignore_ascii_case("websocket")
    };
    let offers = all("upgrade");
    let wants_websocket =
        version == "HTTP/1.1" && offers.iter().any(|value| value.split(',').any(is_websocket));
    Some(Reading { length: skipped + length, framing, wants_websocket })
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rfind(':') {
        Some(at) if !host.ends_with(']') => (&host[..at], Some(&host[at + 1..])),
        _ => (host, None),
    };
    let is_port = |port: &str| {
        port.is_empty() || port.chars().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok()
    };
    let is_name = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        }
    };
    is_name && port.is_none_or(is_port)
}

/// The path that will be judged is the one that will be forwarded.
fn compare_target(read: &[u8]) {
    let text = read.strip_prefix(b"\r\n").unwrap_or(read);
    let mut words = text.split(|b| *b == b' ');
    let (method, target) = (words.next().expect("a method"), words.next().expect("a target"));
    let method = std::str::from_utf8(method).expect("ASCII");
    let request = RequestHeader::build(method, target, None).expect("pingora takes it too");
    assert_eq!(request.raw_path(), target);
    let target = std::str::from_utf8(target).expect("ASCII");
    let path_and_query = match target.split_once("://") {
        // The proxy refuses what does not begin with a slash.
        Some((_, rest)) if !target.starts_with('/') => match rest.find(['/', '?']) {
            Some(at) if rest[at..].starts_with('/') => rest[at..].to_owned(),
            Some(at) => format!("/{}", &rest[at..]),
            None => return,
        },
        _ => target.to_owned(),
    };
    let path = path_and_query.split('?').next().unwrap_or_default();
    assert_eq!(request.uri.path(), path);
}

/// Another parser reads the same.
fn compare(read: &[u8], header: Reading) {
    let mut fields = [httparse::EMPTY_HEADER; LIMITS.lines];
    let mut request = httparse::Request::new(&mut fields);
    let status = request.parse(read);
    assert_eq!(status, Ok(httparse::Status::Complete(header.length)), "{}", read.escape_ascii());

    let text = read.strip_prefix(b"\r\n").unwrap_or(read);
    let mut lines =
        text.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = String::from_utf8(lines.next().expect("a request line").to_vec()).expect("ASCII");
    let version = if request.version == Some(1) { "HTTP/1.1" } else { "HTTP/1.0" };
    let (method, target) = (request.method.expect("parsed"), request.path.expect("parsed"));
    assert_eq!(first, format!("{method} {target} {version}"));
    let lines: Vec<&[u8]> = lines.take_while(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), request.headers.len());
    for (line, field) in lines.iter().zip(request.headers.iter()) {
        let colon = line.iter().position(|b| *b == b':').expect("a field");
        assert_eq!(&line[..colon], field.name.as_bytes());
        assert_eq!(line[colon + 1..].trim_ascii(), field.value.trim_ascii());
    }
}
