//! Finds the end of a chunked body.
//!
//! Follows the framing of a body while its bytes pass (RFC 9112, section 7.1). It is strict: sizes
//! are hexadecimal digits and nothing else, lines end with CR LF, extensions and trailers are short
//! and contain no control bytes. Whatever two parsers could read differently is an error. The first
//! byte after the body is known exactly, so that the next request is not read as a part of this
//! one.

/// Maximum hexadecimal digits of a size: enough for 2^60 bytes.
const MOST_DIGITS: u8 = 15;

/// Maximum bytes of an extension.
const LONGEST_EXTENSION: u32 = 4 << 10;

/// Maximum bytes of all trailers. `proxy::body`, which keeps them, has a smaller limit.
const LONGEST_TRAILERS: u32 = 1 << 20;

/// The position in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunked {
    state: State,
    /// Bytes left of the current chunk.
    left: u64,
    digits: u8,
    /// Bytes of the current extension so far, or of the trailers.
    extra: u32,
}

/// The kind of a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Sizes, extensions and line ends.
    Framing,
    Data,
    /// Trailer lines with their line ends, and the empty line after them.
    Trailers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    /// At the beginning of a trailer or of the empty line.
    TrailerStart,
    Trailer,
    TrailerLineFeed,
    EndLineFeed,
    End,
}

/// The framing of the body is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Default for Chunked {
    fn default() -> Self {
        Self::new()
    }
}

impl Chunked {
    pub fn new() -> Self {
        Self { state: State::Size, left: 0, digits: 0, extra: 0 }
    }

    pub fn is_over(&self) -> bool {
        self.state == State::End
    }

    /// Follows more bytes of a connection; returns how many of them belong to the body.
    ///
    /// # Errors
    /// At the first byte that makes the framing invalid.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while let Some((_, length)) = self.next(bytes.get(at..).unwrap_or_default())? {
            at += length;
        }
        Ok(at)
    }

    /// The kind of the next bytes, and how many there are; `None` at the end of the body or of the
    /// bytes.
    ///
    /// # Errors
    /// As [`Chunked::follow`].
    pub fn next(&mut self, bytes: &[u8]) -> Result<Option<(Part, usize)>, Malformed> {
        if bytes.is_empty() || self.state == State::End {
            return Ok(None);
        }
        if self.state == State::Data {
            let passed = self.left.min(bytes.len() as u64);
            self.left -= passed;
            if self.left == 0 {
                self.state = State::DataReturn;
            }
            return Ok(Some((Part::Data, usize::try_from(passed).unwrap_or(bytes.len()))));
        }
        let part = self.part();
        let mut passed = 0;
        for byte in bytes {
            if self.state == State::End || self.part() != part {
                break;
            }
            self.step(*byte)?;
            passed += 1;
        }
        Ok(Some((part, passed)))
    }

    fn part(&self) -> Part {
        match self.state {
            State::Data => Part::Data,
            State::TrailerStart | State::Trailer | State::TrailerLineFeed | State::EndLineFeed => {
                Part::Trailers
            }
            _ => Part::Framing,
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        self.state = match (self.state, byte) {
            (State::Size, b'\r') if self.digits > 0 => State::SizeLineFeed,
            (State::Size, b';') if self.digits > 0 => self.begin_extra(State::Extension),
            (State::Size, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                if self.digits == MOST_DIGITS {
                    return Err(Malformed);
                }
                self.digits += 1;
                self.left = self.left << 4 | u64::from(digit);
                State::Size
            }
            (State::Extension, b'\r') => State::SizeLineFeed,
            (State::Extension | State::Trailer, b'\t' | 0x20..=0x7e | 0x80..) => self.extend()?,
            (State::SizeLineFeed, b'\n') if self.left > 0 => State::Data,
            (State::SizeLineFeed, b'\n') => self.begin_extra(State::TrailerStart),
            (State::DataReturn, b'\r') => State::DataLineFeed,
            (State::DataLineFeed, b'\n') => {
                self.digits = 0;
                State::Size
            }
            (State::TrailerStart, b'\r') => State::EndLineFeed,
            // A name. A blank would continue the previous line (obsolete folding).
            (State::TrailerStart, 0x21..=0x7e) => {
                self.state = State::Trailer;
                self.extend()?
            }
            (State::Trailer, b'\r') => State::TrailerLineFeed,
            (State::TrailerLineFeed, b'\n') => State::TrailerStart,
            (State::EndLineFeed, b'\n') => State::End,
            _ => return Err(Malformed),
        };
        Ok(())
    }

    fn begin_extra(&mut self, state: State) -> State {
        self.extra = 0;
        state
    }

    fn extend(&mut self) -> Result<State, Malformed> {
        self.extra += 1;
        let longest =
            if self.state == State::Extension { LONGEST_EXTENSION } else { LONGEST_TRAILERS };
        if self.extra > longest { Err(Malformed) } else { Ok(self.state) }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// The length of the body if it is complete, or the error.
    fn end(text: &str) -> Result<Option<usize>, Malformed> {
        let mut body = Chunked::new();
        let passed = body.follow(text.as_bytes())?;
        Ok(body.is_over().then_some(passed))
    }

    #[test]
    fn the_end_of_a_body_is_found() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\n",
            "5;name=\"value\"\r\nhello\r\n0\r\n\r\n",
            "0\r\nX-Trailer: a\r\nY: b\r\n\r\n",
        ] {
            assert_eq!(end(body), Ok(Some(body.len())), "{body:?}");
            assert_eq!(end(&format!("{body}GET /")), Ok(Some(body.len())), "{body:?}");
            assert_eq!(end(&body[..body.len() - 1]), Ok(None), "{body:?}");
        }
    }

    #[test]
    fn framing_that_two_parsers_could_read_differently_is_rejected() {
        for body in [
            "0x5\r\n",
            "+5\r\n",
            "-1\r\n",
            " 5\r\n",
            "5 \r\n",
            "5\t\r\n",
            "5_0\r\n",
            "5,\r\n",
            "1234567890abcdef\r\n",
            ";a\r\n",
            "\r\n",
            "5\n",
            "5;\nhello",
            "5;a=\n",
            "5;\0",
            "5;a\rb",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "0\r\n\n",
            "0\r\nX: a\n",
            "0\r\n folded\r\n",
            "0\r\nX\0: a\r\n",
        ] {
            assert_eq!(end(body), Err(Malformed), "{body:?}");
        }
        let long = "x".repeat(5000);
        assert_eq!(end(&format!("5;{long}")), Err(Malformed));
        let long = "x".repeat(1 << 20);
        assert_eq!(end(&format!("0\r\nX: {long}")), Err(Malformed));
        let many = "X: y\r\n".repeat(1 << 19);
        assert_eq!(end(&format!("0\r\n{many}")), Err(Malformed));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_bytes_are_cut(
            chunks in prop::collection::vec("[a-z\r\n0-9]{1,40}", 0..5),
            cuts in prop::collection::vec(1..20usize, 1..200),
        ) {
            let mut text = String::new();
            for chunk in &chunks {
                write!(text, "{:x}\r\n{chunk}\r\n", chunk.len()).unwrap();
            }
            text.push_str("0\r\n\r\n");
            let whole = text.len();
            text.push_str("GET / HTTP/1.1");
            let mut body = Chunked::new();
            let mut rest = text.as_bytes();
            let mut passed = 0;
            for cut in cuts.iter().cycle() {
                let (part, after) = rest.split_at((*cut).min(rest.len()));
                rest = after;
                passed += body.follow(part).unwrap();
                if body.is_over() {
                    break;
                }
            }
            prop_assert_eq!(passed, whole);
        }
    }
}
