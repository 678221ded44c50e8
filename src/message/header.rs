//! Reads header names and values as other HTTP software does.

pub mod cache_control;
pub mod lines;
pub mod reserved;
pub mod syntax;

use http::header::{CONNECTION, HeaderName};
use http::{HeaderMap, HeaderValue};

/// The header lines of a message, in any representation.
pub trait Headers {
    /// The values of a header, one for each of its lines.
    fn values_of<'a>(&'a self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]>;

    /// The name of every line; a name with several lines may be returned only once.
    fn names(&self) -> impl Iterator<Item = &[u8]>;

    /// The value of the header's first line.
    fn first<'a>(&'a self, name: &HeaderName) -> Option<&'a [u8]> {
        self.values_of(name).next()
    }

    /// The value of a header that has exactly one line.
    fn only<'a>(&'a self, name: &HeaderName) -> Option<&'a [u8]> {
        let mut values = self.values_of(name);
        let value = values.next()?;
        values.next().is_none().then_some(value)
    }
}

/// Header lines that can be changed before they are sent.
pub trait HeadersMut: Headers {
    /// Removes every line for which `holds` is true, by name and value.
    fn remove_if(&mut self, holds: impl FnMut(&[u8], &[u8]) -> bool);

    /// Adds a line after the existing ones.
    fn add(&mut self, name: &HeaderName, value: &HeaderValue);
}

impl Headers for HeaderMap {
    fn values_of<'a>(&'a self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.keys().map(|name| name.as_str().as_bytes())
    }
}

impl HeadersMut for HeaderMap {
    fn remove_if(&mut self, mut holds: impl FnMut(&[u8], &[u8]) -> bool) {
        let kept =
            self.iter().filter(|(name, value)| !holds(name.as_str().as_bytes(), value.as_bytes()));
        *self = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    }

    fn add(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.append(name.clone(), value.clone());
    }
}

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

/// The elements of a list, without blanks at their ends and without empty elements (RFC 9110,
/// section 5.6.1). Not for lists whose elements may contain quoted strings.
pub fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').map(trim).filter(|element| !element.is_empty())
}

/// The names that the `Connection` lines nominate: these headers are not forwarded.
pub fn nominated<H: Headers>(headers: &H) -> impl Iterator<Item = &[u8]> {
    headers.values_of(&CONNECTION).flat_map(elements)
}

/// The elements of a list whose quoted strings may contain commas, without blanks at their ends
/// (RFC 9110, sections 5.6.1 and 5.6.4). Empty elements are included.
pub fn quoted_elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let split = list.split(move |byte| {
        let was_escaped = std::mem::take(&mut is_escaped);
        match byte {
            b'\\' if is_quoted => is_escaped = !was_escaped,
            b'"' if !was_escaped => is_quoted = !is_quoted,
            b',' => return !is_quoted,
            _ => {}
        }
        false
    });
    split.map(trim)
}

/// Whether an `Upgrade` line names WebSocket, alone or among others, with or without a version.
pub fn offers_websocket(upgrade: &[u8]) -> bool {
    elements(upgrade)
        .filter_map(|offer| offer.split(|b| *b == b'/').next())
        .any(|name| trim(name).eq_ignore_ascii_case(b"websocket"))
}

/// Whether `holds` is true for every byte. It tests all bytes, many at once: stopping early would
/// rarely help, because few inputs are rejected.
pub fn all(bytes: &[u8], holds: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |so_far, byte| so_far & holds(*byte))
}

pub fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// A set of header names, compared folded. Folding does not change the length, so a name is
/// compared only with names of the same length, which is the index.
#[derive(Default)]
pub struct FoldedNames(Vec<Vec<Box<[u8]>>>);

impl FoldedNames {
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut set = Self::default();
        names.for_each(|name| set.insert(name));
        set
    }

    pub fn insert(&mut self, name: &str) {
        let name: Box<[u8]> = name.bytes().map(fold).collect();
        self.0.resize_with(self.0.len().max(name.len() + 1), Vec::new);
        if let Some(same_length) = self.0.get_mut(name.len()) {
            same_length.push(name);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, name: impl AsRef<[u8]>) -> bool {
        let name = name.as_ref();
        self.0.get(name.len()).is_some_and(|same_length| {
            same_length
                .iter()
                .any(|own| own.iter().zip(name).all(|(own, byte)| *own == fold(*byte)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_one_name_holds_it() {
        let one = FoldedNames::new(["x-one"].into_iter());
        assert!(one.contains("X_One") && !one.contains("x-two") && !one.contains("x-onee"));
    }
}
