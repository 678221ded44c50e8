//! A chunked body ends where a plain reading of the whole says, however its bytes are cut.

#![cfg_attr(fuzzing, no_main)]

use std::hash::{DefaultHasher, Hash, Hasher};

use wxgate::fuzzing::{Chunked, Malformed};

/// Where a body ends; `Ok(None)` while more must come.
type End = Result<Option<usize>, Malformed>;

const MOST_DIGITS: usize = 15;
const LONGEST_EXTENSION: usize = 4 << 10;
const LONGEST_TRAILERS: usize = 1 << 20;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let whole = follow(input, |rest| rest.len());
    assert_eq!(whole, plain(input), "{}", input.escape_ascii());
    assert_eq!(whole, follow(input, |_| 1));
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let cut = |rest: &[u8]| {
        rest.len().hash(&mut hasher);
        // An empty read changes nothing.
        usize::from(hasher.finish() as u8 % 24)
    };
    assert_eq!(whole, follow(input, cut));

    if let Ok(Some(end)) = whole {
        check_sizes(&input[..end]);
        assert_eq!(follow(&input[..end], |rest| rest.len()), Ok(Some(end)));
        assert_eq!(follow(&input[..end - 1], |rest| rest.len()), Ok(None));
    }
}

/// Follows the input in pieces; what is said after each must not be taken back.
fn follow(input: &[u8], mut cut: impl FnMut(&[u8]) -> usize) -> End {
    let mut body = Chunked::new();
    let mut passed = 0;
    while passed < input.len() {
        let rest = &input[passed..];
        let piece = &rest[..cut(rest).min(rest.len())];
        let taken = body.follow(piece)?;
        assert!(taken <= piece.len());
        passed += taken;
        if body.is_over() {
            assert_eq!(body.follow(rest), Ok(0), "the next request is not the body's");
            return Ok(Some(passed));
        }
        assert_eq!(taken, piece.len(), "what is not over takes everything");
    }
    Ok(None)
}

/// RFC 9112, section 7.1, on all bytes at once.
fn plain(input: &[u8]) -> End {
    let mut at = 0;
    loop {
        let digits = input[at..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits > MOST_DIGITS {
            return Err(Malformed);
        }
        let size = input[at..at + digits]
            .iter()
            .fold(0, |size, digit| size * 16 + u64::from(char::from(*digit).to_digit(16).unwrap()));
        at += digits;
        match input.get(at) {
            None => return Ok(None),
            Some(_) if digits == 0 => return Err(Malformed),
            Some(b';') => {
                let extension = input[at + 1..].iter().take_while(|b| is_text(**b)).count();
                if extension > LONGEST_EXTENSION {
                    return Err(Malformed);
                }
                at += 1 + extension;
            }
            Some(_) => {}
        }
        let Some(after) = line_end(input, at)? else { return Ok(None) };
        at = after;
        if size == 0 {
            return trailers(input, at);
        }
        let Some(data) = usize::try_from(size).ok().filter(|size| *size <= input.len() - at) else {
            return Ok(None);
        };
        at += data;
        let Some(after) = line_end(input, at)? else { return Ok(None) };
        at = after;
    }
}

fn trailers(input: &[u8], mut at: usize) -> End {
    let mut total = 0;
    loop {
        let line = input[at..].iter().take_while(|b| is_text(**b)).count();
        if line > 0 && !input[at].is_ascii_graphic() {
            return Err(Malformed);
        }
        total += line;
        if total > LONGEST_TRAILERS {
            return Err(Malformed);
        }
        let Some(after) = line_end(input, at + line)? else { return Ok(None) };
        at = after;
        if line == 0 {
            return Ok(Some(at));
        }
    }
}

/// Where the next line begins, if all of CR LF has come.
fn line_end(input: &[u8], at: usize) -> Result<Option<usize>, Malformed> {
    match &input[at..] {
        [] | [b'\r'] => Ok(None),
        [b'\r', b'\n', ..] => Ok(Some(at + 2)),
        _ => Err(Malformed),
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

/// Another parser finds the same chunks.
fn check_sizes(body: &[u8]) {
    let mut rest = body;
    loop {
        let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(rest) else {
            panic!("httparse finds no chunk in {}", rest.escape_ascii());
        };
        rest = &rest[line..];
        if size == 0 {
            return;
        }
        rest = rest[usize::try_from(size).unwrap()..].strip_prefix(b"\r\n").expect("CR LF");
    }
}
