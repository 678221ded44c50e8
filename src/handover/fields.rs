//! Lists of numbered fields.
//!
//! A field is its number, the length of its value and the value; numbers and lengths are variable
//! (LEB128, at most 5 bytes). A reader ignores numbers that it does not know, so that an older
//! program can read what a newer one has written. A number is never used again for something else.

use zeroize::Zeroizing;

/// The longest value, in bytes.
pub const LONGEST: usize = 16 << 20;

/// Writes a list. Its memory is wiped when it is dropped, because it may contain keys.
#[derive(Default)]
pub struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Up to `bytes` the list does not move, which would leave a copy behind that is not wiped.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    pub fn bytes(&mut self, number: u32, value: &[u8]) -> &mut Self {
        put_varint(&mut self.0, number);
        // No value is longer than `LONGEST`.
        put_varint(&mut self.0, u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value);
        self
    }

    pub fn text(&mut self, number: u32, value: &str) -> &mut Self {
        self.bytes(number, value.as_bytes())
    }

    pub fn u64(&mut self, number: u32, value: u64) -> &mut Self {
        self.bytes(number, &value.to_be_bytes())
    }

    /// A list as a field of another.
    pub fn list(&mut self, number: u32, value: &Self) -> &mut Self {
        self.bytes(number, &value.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Empties the list and keeps its memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// A field as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub number: u32,
    pub value: &'a [u8],
}

impl<'a> Field<'a> {
    /// `None` if the value is not UTF-8.
    pub fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.value).ok()
    }

    /// `None` if the value has not eight bytes.
    pub fn u64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_be_bytes)
    }

    /// `None` if the value has not this length.
    pub fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.value.try_into().ok()
    }
}

/// The list is cut off or has an impossible length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed list of fields")]
pub struct Malformed;

/// The fields of a list, in their order. Ends after the first error.
pub fn read(list: &[u8]) -> impl Iterator<Item = Result<Field<'_>, Malformed>> {
    let mut rest = list;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = take_field(&mut rest).ok_or(Malformed);
        if field.is_err() {
            rest = &[];
        }
        Some(field)
    })
}

fn take_field<'a>(rest: &mut &'a [u8]) -> Option<Field<'a>> {
    let number = take_varint(rest)?;
    let length = usize::try_from(take_varint(rest)?).ok().filter(|length| *length <= LONGEST)?;
    let (value, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(Field { number, value })
}

fn put_varint(buffer: &mut Vec<u8>, mut value: u32) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            buffer.push(low & 0x7f);
            return;
        }
        buffer.push(low | 0x80);
    }
}

fn take_varint(rest: &mut &[u8]) -> Option<u32> {
    let mut value = 0u64;
    for shift in [0, 7, 14, 21, 28] {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(value).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_their_order_whatever_their_numbers_and_lengths() {
        let long = vec![7; 70_000];
        let mut inner = Writer::new();
        inner.text(1, "inner");
        let mut writer = Writer::new();
        writer.u64(1, u64::MAX).text(300, "text").bytes(u32::MAX, &long).bytes(2, b"");
        writer.list(127, &inner).bytes(128, b"x");
        let read: Vec<_> = read(writer.as_bytes()).collect::<Result<_, _>>().unwrap();
        let numbers: Vec<_> = read.iter().map(|field| field.number).collect();
        assert_eq!(numbers, [1, 300, u32::MAX, 2, 127, 128]);
        assert_eq!(read[0].u64(), Some(u64::MAX));
        assert_eq!(read[1].text(), Some("text"));
        assert_eq!(read[2].value, long);
        assert_eq!(read[3].value, b"");
        assert_eq!(super::read(read[4].value).next().unwrap().unwrap().text(), Some("inner"));
    }

    #[test]
    fn a_list_that_is_cut_off_is_an_error_and_ends() {
        let mut writer = Writer::new();
        writer.text(1, "one").text(1000, "two");
        let whole = writer.as_bytes();
        for length in 1..whole.len() {
            let outcomes: Vec<_> = read(&whole[..length]).collect();
            let is_field_end = length == 5;
            assert_eq!(outcomes.last().unwrap().is_err(), !is_field_end, "{length}");
        }
        assert_eq!(read(&[0xff; 6]).next(), Some(Err(Malformed)));
        assert_eq!(read(&[1, 0xff, 0xff, 0xff, 0xff, 0x7f]).next(), Some(Err(Malformed)));
    }
}
