//! A response header that passes has one reading: by plain rules, by another parser, and however
//! it comes in pieces.
//!
//! An input is what a service sends.

#![cfg_attr(fuzzing, no_main)]

use wxgate::fuzzing::response::{Framing, LONGEST, read as judge};
use wxgate::fuzzing::{Fault, ResponseHeader};

/// Lines of a response header.
const MOST_LINES: usize = 256;

/// Bytes of an input that are tried at every length.
const LONGEST_TRIED: usize = 600;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

/// Name and value of each line.
type Lines = Vec<(Vec<u8>, Vec<u8>)>;

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    length: usize,
    status: u16,
    reason: Vec<u8>,
    lines: Lines,
    framing: Framing,
    content_length: Option<u64>,
    persists: bool,
    nominates: bool,
    has_keep_alive: bool,
}

pub fn check(input: &[u8]) {
    check_response(input, false);
    check_response(input, true);
}

fn check_response(input: &[u8], is_to_head: bool) {
    let whole = verdict(input, is_to_head);
    let mut before = Ok(None);
    for end in (0..=input.len().min(LONGEST_TRIED)).chain([input.len()]) {
        let now = verdict(&input[..end], is_to_head);
        match &before {
            Ok(None) => {}
            Ok(Some(_)) => assert_eq!(now, before, "what has passed stays so"),
            Err(_) => assert!(now.is_err(), "a rejection is final"),
        }
        before = now;
    }
    assert_eq!(before, whole);

    let has_ended = input.windows(4).any(|four| four == b"\r\n\r\n");
    match whole {
        Ok(None) => assert!(!has_ended && input.len() <= LONGEST),
        Ok(Some(reading)) => {
            assert_eq!(Some(&reading), plain(input, is_to_head).as_ref(), "{}", shown(input));
            compare(&input[..reading.length], &reading);
        }
        Err(Fault::TooLarge) => assert!(input.len() > LONGEST),
        Err(fault) => {
            let words = fault.to_string();
            assert!(words.len() < 200 && words.bytes().all(|b| matches!(b, 0x20..=0x7e)));
            for end in ["", "\r\n\r\n", "\n\r\n\r\n", " \r\n\r\n"] {
                let text = [input, end.as_bytes()].concat();
                assert_eq!(plain(&text, is_to_head), None, "{}: {words}", shown(input));
                if has_ended {
                    break;
                }
            }
        }
    }
}

fn shown(input: &[u8]) -> String {
    input.escape_ascii().to_string()
}

fn verdict(read: &[u8], is_to_head: bool) -> Result<Option<Reading>, Fault> {
    let mut lines = Vec::new();
    let judged = judge(read, is_to_head, |line| {
        lines.push((line.name.of(read).to_vec(), line.value.of(read).to_vec()));
    })?;
    Ok(judged.map(|head| {
        assert_eq!(head.lines, lines.len());
        let ResponseHeader { length, status, reason, framing, content_length, .. } = head;
        Reading {
            length,
            status,
            reason: reason.of(read).to_vec(),
            lines,
            framing,
            content_length,
            persists: head.persists,
            nominates: head.nominates,
            has_keep_alive: head.has_keep_alive,
        }
    }))
}

/// The rules, on a whole header: RFC 9112, sections 4 to 6, without what it leaves to the reader.
fn plain(read: &[u8], is_to_head: bool) -> Option<Reading> {
    let length = read.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    // One byte a character, so that nothing is lost.
    let text: String = read[..length - 4].iter().map(|byte| char::from(*byte)).collect();
    let bytes = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<u8>>();
    // No byte of a line is a control byte, and so no line end is within one.
    let is_text = |c: char| c == '\t' || c >= ' ' && c != '\x7f';
    if !text.split("\r\n").all(|line| line.chars().all(is_text)) {
        return None;
    }
    let mut lines = text.split("\r\n");
    let first = lines.next()?;
    let (is_http_11, rest) = match first.split_once(' ')? {
        ("HTTP/1.1", rest) => (true, rest),
        ("HTTP/1.0", rest) => (false, rest),
        _ => return None,
    };
    // Services leave out the blank where there is no reason phrase.
    let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    if status.len() != 3 || !status.chars().all(|c| c.is_ascii_digit()) || status.starts_with('0') {
        return None;
    }
    let status: u16 = status.parse().ok()?;

    let mut fields: Vec<(&str, &str)> = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) {
            return None;
        }
        fields.push((name, value.trim_matches([' ', '\t'])));
    }
    if fields.len() > MOST_LINES {
        return None;
    }
    // All elements of the lists of a name, empty ones too.
    let all = |wanted: &str| -> Vec<String> {
        fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .flat_map(|(_, value)| value.split(','))
            .map(|one| one.trim_matches([' ', '\t']).to_ascii_lowercase())
            .collect()
    };

    let mut lengths = Vec::new();
    for one in all("content-length") {
        if one.is_empty() || one.len() > 18 || !one.chars().all(|c| c.is_ascii_digit()) {
            return None;
        }
        lengths.push(one.parse::<u64>().ok()?);
    }
    lengths.dedup();
    if lengths.len() > 1 {
        return None;
    }
    let mut codings = all("transfer-encoding");
    codings.retain(|coding| !coding.is_empty() && coding != "identity");
    let is_chunked = match &*codings {
        [] => false,
        [coding] if coding == "chunked" => true,
        _ => return None,
    };
    let mut persists = is_http_11;
    if is_chunked && (!is_http_11 || !lengths.is_empty()) {
        lengths.clear();
        persists = false;
    }
    let content_length = lengths.pop();
    let framing = match content_length {
        _ if is_to_head || matches!(status, 100..=199 | 204 | 304) => Framing::Length(0),
        _ if is_chunked => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::Close,
    };
    let mut options = all("connection");
    options.retain(|option| !option.is_empty());
    persists &= framing != Framing::Close && !options.iter().any(|option| option == "close");
    let nominates = options.iter().any(|option| !["close", "keep-alive"].contains(&&**option));
    Some(Reading {
        length,
        status,
        reason: bytes(reason),
        lines: fields.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
        framing,
        content_length,
        persists,
        nominates,
        has_keep_alive: fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("keep-alive")),
    })
}

/// Another parser reads the same.
fn compare(read: &[u8], reading: &Reading) {
    let mut fields = [httparse::EMPTY_HEADER; MOST_LINES];
    let mut response = httparse::Response::new(&mut fields);
    let status = response.parse(read);
    assert_eq!(status, Ok(httparse::Status::Complete(read.len())), "{}", shown(read));
    assert_eq!(response.code, Some(reading.status));
    assert_eq!(response.headers.len(), reading.lines.len());
    for (field, (name, value)) in response.headers.iter().zip(&reading.lines) {
        assert_eq!(field.name.as_bytes(), name);
        assert_eq!(field.value.trim_ascii(), value);
    }
}
