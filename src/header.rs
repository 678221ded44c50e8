//! How header names and values are read by everybody else.

/// A byte of a header name as a CGI-like server sees it: such servers turn names into
/// variables, where case is lost and everything but letters and digits becomes `_`.
pub fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'_' }
}

/// A value without blanks at its ends (RFC 9110, section 5.5).
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = value
        && is_blank(*first)
    {
        value = rest;
    }
    while let [rest @ .., last] = value
        && is_blank(*last)
    {
        value = rest;
    }
    value
}

/// Whether it holds for every byte. Looks at all of them, many at once: what is refused is rare.
pub fn all(bytes: &[u8], holds: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |so_far, byte| so_far & holds(*byte))
}

pub fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}
