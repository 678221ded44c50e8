//! The ways in which servers read a path.
//!
//! Some servers decode escapes once or, behind another proxy, twice, and some of them keep escaped
//! slashes. Some drop `;parameters`, treat `\` as `/`, merge `//`, resolve dot segments, treat the
//! text after `//` as a host, or cut at a decoded `?`, each in its own order. The readings of a
//! path are the results of all of these steps in any order, with at most two decodings. A normal
//! path has few readings; one with very many is rejected.

use memchr::memmem;

use super::MatchError;

/// A path with more readings has no clear meaning.
const MOST_READINGS: usize = 64;

/// Whether every server reads the path exactly as it is written. Agrees with [`readings`]: a plain
/// path has one reading, itself.
pub fn is_plain(path: &str) -> bool {
    let mut previous = 0;
    for byte in path.bytes() {
        match byte {
            b'%' | b';' | b'\\' | b'#' | b'?' | 0..=0x20 | 0x7f.. => return false,
            // A segment that begins with a dot may be a dot segment: left to `readings`.
            b'/' | b'.' if previous == b'/' => return false,
            _ => previous = byte,
        }
    }
    path.starts_with('/')
}

/// Whether the rest of a path keeps its meaning for every server when its prefix is replaced: no
/// step looks beyond a segment, and no escape decodes to a character that a step depends on. Plain
/// paths are rewritable.
pub fn is_rewritable(path: &str) -> bool {
    let harmless = |meant: u8| !matches!(meant, b'/' | b'\\' | b'.' | b'%' | b';' | b'?' | b'#');
    let bytes = path.as_bytes();
    let are_escapes_harmless =
        memchr::memchr_iter(b'%', bytes).all(|at| escape(bytes, at).is_some_and(harmless));
    check_raw(path).is_ok()
        && decode(bytes, kind::ALL).is_ok()
        && are_escapes_harmless
        && !bytes.iter().any(|b| matches!(b, b';' | b'\\'))
        && !path.contains("//")
        && !segments(bytes).any(|segment| matches!(segment, b"." | b".."))
}

/// All readings of a path; the path itself comes first.
///
/// # Errors
/// When it is not a path, or has too many readings.
pub fn readings(path: &str) -> Result<Vec<Vec<u8>>, MatchError> {
    check_raw(path)?;
    let mut readings: Vec<(u8, Vec<u8>)> = vec![(0, path.as_bytes().to_vec())];
    let mut next = 0;
    while let Some((decoded, reading)) = readings.get(next).cloned() {
        let mut found: Vec<(u8, Vec<u8>)> = STEPS
            .iter()
            .filter(|(marks, _)| marks.iter().any(|mark| memmem::find(&reading, mark).is_some()))
            .map(|(_, step)| (decoded, step(&reading)))
            .collect();
        let kinds = escaped_kinds(&reading);
        for (index, decoding) in DECODINGS.iter().enumerate().take_while(|_| decoded < 2) {
            let is_like_another =
                DECODINGS.iter().take(index).any(|other| other & kinds == decoding & kinds);
            if decoding & kinds != 0 && !is_like_another {
                found.push((decoded + 1, decode(&reading, *decoding)?));
            }
        }
        for (decoded, reading) in found {
            // A known reading with fewer decodings leads to all readings that this one leads to.
            if !readings.iter().any(|(times, other)| *times <= decoded && *other == reading) {
                readings.push((decoded, reading));
            }
        }
        if readings.len() > MOST_READINGS {
            return Err(MatchError::Ambiguous);
        }
        next += 1;
    }
    Ok(readings.into_iter().map(|(_, reading)| reading).collect())
}

/// Rejects what no path has: no leading slash, bytes outside printable ASCII, a fragment, malformed
/// escapes.
fn check_raw(path: &str) -> Result<(), MatchError> {
    let bytes = path.as_bytes();
    let is_legal = bytes.first() == Some(&b'/')
        && bytes.iter().all(|b| matches!(b, 0x21..=0x7e) && !matches!(b, b'#' | b'?'));
    let are_escapes = bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'%')
        .all(|(at, _)| escape(bytes, at).is_some());
    if is_legal && are_escapes { Ok(()) } else { Err(MatchError::Malformed) }
}

/// The byte for which the escape at `at` stands.
fn escape(text: &[u8], at: usize) -> Option<u8> {
    let digit = |offset| char::from(*text.get(at + offset)?).to_digit(16);
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

/// Makes one reading from another.
type Step = fn(&[u8]) -> Vec<u8>;

/// All steps except decoding, each with the bytes without which it changes nothing.
const STEPS: [(&[&[u8]], Step); 7] = [
    (&[b";"], without_parameters),
    (&[b";"], without_last_parameters),
    (&[b"\\"], with_slashes),
    (&[b"//"], merged),
    (&[b"//"], without_authority),
    (&[b"/."], resolved),
    (&[b"?", b"#"], cut),
];

/// Kinds of bytes for which an escape can stand.
mod kind {
    pub const SLASH: u8 = 1;
    pub const BACKSLASH: u8 = 2;
    /// Needs no escape (RFC 3986, section 2.3).
    pub const UNRESERVED: u8 = 4;
    pub const OTHER: u8 = 8;
    pub const ALL: u8 = SLASH | BACKSLASH | UNRESERVED | OTHER;

    pub fn of(byte: u8) -> u8 {
        match byte {
            b'/' => SLASH,
            b'\\' => BACKSLASH,
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => UNRESERVED,
            _ => OTHER,
        }
    }
}

/// Which kinds servers decode. Some keep escaped slashes in a segment, or backslashes too, but
/// decode the dots beside them (Apache's `AllowEncodedSlashes NoDecode`, Tomcat); some decode only
/// what needs no escape (RFC 3986, section 6.2.2.2), as every URL parser does for dot segments.
const DECODINGS: [u8; 4] = [
    kind::ALL,
    kind::BACKSLASH | kind::UNRESERVED | kind::OTHER,
    kind::UNRESERVED | kind::OTHER,
    kind::UNRESERVED,
];

/// The kinds of all escaped bytes.
fn escaped_kinds(text: &[u8]) -> u8 {
    memchr::memchr_iter(b'%', text)
        .filter_map(|at| escape(text, at))
        .fold(0, |kinds, byte| kinds | kind::of(byte))
}

/// Decodes once. A `%` that begins no escape is kept: `100%25` is a valid name for a file.
fn decode(text: &[u8], kinds: u8) -> Result<Vec<u8>, MatchError> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match escape(text, at).filter(|meant| *byte == b'%' && kinds & kind::of(*meant) != 0) {
            Some(meant) => {
                decoded.push(meant);
                at += 3;
            }
            None => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    if decoded.iter().any(u8::is_ascii_control) || has_overlong(&decoded) {
        return Err(MatchError::Malformed);
    }
    Ok(decoded)
}

/// Whether a character is encoded in more bytes of UTF-8 than necessary (RFC 3629, section 3;
/// including the longer sequences of RFC 2279), which some decoders turn into `/` or `.`. Other
/// encodings, such as GBK, are allowed.
fn has_overlong(text: &[u8]) -> bool {
    text.windows(2).any(|pair| {
        matches!(
            pair,
            [0xc0 | 0xc1, 0x80..=0xbf]
                | [0xe0, 0x80..=0x9f]
                | [0xf0, 0x80..=0x8f]
                | [0xf8, 0x80..=0x87]
                | [0xfc, 0x80..=0x83]
        )
    })
}

fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/')
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let kept: Vec<&[u8]> = segments(path)
        .map(|segment| segment.split(|b| *b == b';').next().unwrap_or(segment))
        .collect();
    kept.join(&b'/')
}

/// Parameters of the last segment only, as in Python's `urlparse` (RFC 1808, section 2.1).
fn without_last_parameters(path: &[u8]) -> Vec<u8> {
    let last = path.iter().rposition(|b| *b == b'/').unwrap_or_default();
    let (before, last) = path.split_at(last);
    [before, last.split(|b| *b == b';').next().unwrap_or(last)].concat()
}

fn with_slashes(path: &[u8]) -> Vec<u8> {
    path.iter().map(|b| if *b == b'\\' { b'/' } else { *b }).collect()
}

fn merged(path: &[u8]) -> Vec<u8> {
    let mut merged = path.to_vec();
    merged.dedup_by(|a, b| *a == b'/' && *b == b'/');
    merged
}

/// To a service that parses the target as a URL, a path with two leading slashes is a reference to
/// another host (RFC 3986, section 4.2). By the rules of browsers, more slashes mean the same.
fn without_authority(path: &[u8]) -> Vec<u8> {
    let Some(rest) = path.strip_prefix(b"//") else { return path.to_vec() };
    let begin = rest.iter().position(|b| *b != b'/').unwrap_or(rest.len());
    let rest = rest.get(begin..).unwrap_or_default();
    match rest.iter().position(|b| *b == b'/') {
        Some(end) => rest.get(end..).unwrap_or_default().to_vec(),
        None => b"/".to_vec(),
    }
}

/// Cuts at a decoded `?` or `#`, as a server does that splits off query and fragment after
/// decoding.
fn cut(path: &[u8]) -> Vec<u8> {
    path.split(|b| matches!(b, b'?' | b'#')).next().unwrap_or(path).to_vec()
}

/// Resolves dot segments (RFC 3986, section 5.2.4).
fn resolved(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut ends_open = false;
    for segment in segments(path).skip(1) {
        ends_open = matches!(segment, b"." | b"..");
        match segment {
            b"." => {}
            b".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    if ends_open {
        kept.push(b"");
    }
    let mut resolved = Vec::with_capacity(path.len());
    for segment in &kept {
        resolved.push(b'/');
        resolved.extend_from_slice(segment);
    }
    if resolved.is_empty() {
        resolved.push(b'/');
    }
    resolved
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_plain_path_has_one_reading(path in "/[a-zA-Z0-9/._~!$&'()*+,=:@%;\\\\-]{0,24}") {
            if is_plain(&path) {
                prop_assert_eq!(readings(&path).unwrap(), vec![path.into_bytes()]);
            }
        }

        #[test]
        fn any_text_is_judged_without_a_panic(path in "\\PC{0,64}", prefix in "/?") {
            let path = prefix + &path;
            let _ = is_plain(&path);
            let _ = readings(&path);
        }

        #[test]
        fn a_step_without_its_marks_changes_nothing(path in "/[ab.;/\\\\?#]{0,12}") {
            for (marks, step) in STEPS {
                if !marks.iter().any(|mark| memmem::find(path.as_bytes(), mark).is_some()) {
                    prop_assert_eq!(step(path.as_bytes()), path.as_bytes());
                }
            }
        }

        /// For every sequence of steps that a server takes, its reading is among those judged.
        #[test]
        fn every_order_of_steps_is_among_the_readings(
            path in "/([a-b.;/\\\\]|%2e|%2f|%5c|%3b|%3f|%25){0,8}",
            steps in prop::collection::vec((0..8u8, prop::sample::select(DECODINGS.to_vec())), 0..8),
        ) {
            let Ok(all) = readings(&path) else { return Ok(()) };
            let mut reading = path.into_bytes();
            let mut decoded = 0;
            for (step, decoding) in steps {
                reading = match step {
                    0 => without_parameters(&reading),
                    1 => with_slashes(&reading),
                    2 => merged(&reading),
                    3 => resolved(&reading),
                    4 => cut(&reading),
                    5 => without_last_parameters(&reading),
                    6 => without_authority(&reading),
                    _ if decoded < 2 => {
                        decoded += 1;
                        decode(&reading, decoding).unwrap()
                    }
                    _ => reading,
                };
            }
            prop_assert!(all.contains(&reading), "{:?}", String::from_utf8_lossy(&reading));
        }
    }

    /// They are served without computing their readings.
    #[test]
    fn everyday_paths_are_plain() {
        for path in
            ["/", "/a", "/api/orders/1234", "/v1.2/file.tar.gz", "/a/b/", "/@me/~x", "/a-b_c"]
        {
            assert!(is_plain(path), "{path}");
        }
        for path in ["", "a", "//", "/a//b", "/.well-known/x", "/a/..", "/%41", "/a;b", "/a\\b"] {
            assert!(!is_plain(path), "{path}");
        }
    }

    #[test]
    fn a_path_built_to_have_many_readings_is_rejected() {
        let path = "/a;b%2fc%5cd%3be/..;%2e%2e\\x//y%252f%255c..%253b/./z%2f%2e%2e//..\\%252e";
        assert!(readings(path) == Err(MatchError::Ambiguous));
    }
}
