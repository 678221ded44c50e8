//! Frames: what the bytes between the two processes are.
//!
//! A frame is the length of its body (four bytes, big-endian), its kind (one byte) and its body,
//! which is a list of fields. A kind from 128 on that is unknown is ignored, with its body: a newer
//! program may send it. Any other unknown kind is an error.
//!
//! Frames can contain session keys, so buffers are wiped when they are dropped or replaced.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use crate::handover::fields::Writer;

/// The longest body, in bytes.
pub const LONGEST: usize = 16 << 20;

/// Length and kind, in bytes.
pub const HEADER: usize = 5;

/// Room for at least this many bytes is made before each read.
const READ: usize = 64 << 10;

/// A buffer that has become larger is replaced when it is empty.
const KEPT: usize = 1 << 20;

/// What a frame is. The numbers are a part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Hello = 1,
    Welcome = 2,
    Refused = 3,
    Sockets = 4,
    Begin = 5,
    Question = 16,
    Answer = 17,
    Control = 18,
    Bulk = 19,
    Credit = 20,
}

impl Kind {
    /// `None`: the frame is ignored.
    ///
    /// # Errors
    /// When the kind is unknown and must not be ignored.
    pub fn parse(number: u8) -> Result<Option<Self>, Malformed> {
        const ALL: [Kind; 10] = [
            Kind::Hello,
            Kind::Welcome,
            Kind::Refused,
            Kind::Sockets,
            Kind::Begin,
            Kind::Question,
            Kind::Answer,
            Kind::Control,
            Kind::Bulk,
            Kind::Credit,
        ];
        match ALL.into_iter().find(|kind| *kind as u8 == number) {
            None if number < 128 => Err(Malformed("an unknown kind of frame")),
            known => Ok(known),
        }
    }
}

/// The other process sent something impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other process sent {0}")]
pub struct Malformed(pub &'static str);

/// A frame was to be sent that is longer than [`LONGEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message to the other process is too long")]
pub struct TooLong;

/// The length of the body, and the kind.
///
/// # Errors
/// When the body is longer than `longest`.
pub fn parse_header(header: [u8; HEADER], longest: usize) -> Result<(usize, u8), Malformed> {
    let [a, b, c, d, kind] = header;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > longest {
        return Err(Malformed("a frame that is too long"));
    }
    Ok((length, kind))
}

/// # Errors
/// When the body is too long.
pub fn header(kind: Kind, body: &[u8]) -> Result<[u8; HEADER], TooLong> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= LONGEST).ok_or(TooLong)?;
    let [a, b, c, d] = length.to_be_bytes();
    Ok([a, b, c, d, kind as u8])
}

/// Bytes as they were received.
#[derive(Default)]
pub struct Incoming {
    buffer: Zeroizing<Vec<u8>>,
    begin: usize,
}

impl Incoming {
    /// Reads once. Returns zero at the end of the stream. Loses nothing if it is dropped.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn read_from<R: AsyncRead + Unpin>(&mut self, stream: &mut R) -> io::Result<usize> {
        self.make_room();
        stream.read_buf(&mut *self.buffer).await
    }

    /// The next whole frame that is not ignored.
    ///
    /// # Errors
    /// When no frame begins here.
    pub fn take_frame(&mut self) -> Result<Option<(Kind, &[u8])>, Malformed> {
        loop {
            let rest = self.buffer.get(self.begin..).unwrap_or_default();
            let Some((header, after)) = rest.split_first_chunk() else { return Ok(None) };
            let (length, number) = parse_header(*header, LONGEST)?;
            let kind = Kind::parse(number)?;
            if after.len() < length {
                return Ok(None);
            }
            let body = self.begin + HEADER..self.begin + HEADER + length;
            self.begin = body.end;
            if let Some(kind) = kind {
                return Ok(Some((kind, self.buffer.get(body).unwrap_or_default())));
            }
        }
    }

    /// Whether no frame has begun.
    pub fn is_empty(&self) -> bool {
        self.begin == self.buffer.len()
    }

    /// Bytes of memory.
    #[cfg(any(fuzzing, test))]
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn make_room(&mut self) {
        if self.is_empty() && self.buffer.capacity() > KEPT {
            self.buffer = Zeroizing::default();
        } else if self.begin > 0 {
            let rest = self.buffer.len() - self.begin;
            self.buffer.copy_within(self.begin.., 0);
            self.buffer.truncate(rest);
        }
        self.begin = 0;
        grow(&mut self.buffer, READ);
    }
}

/// Frames that wait to be sent.
#[derive(Default)]
pub struct Outgoing {
    buffer: Zeroizing<Vec<u8>>,
    sent: usize,
}

impl Outgoing {
    /// # Errors
    /// When the body is too long.
    pub fn push(&mut self, kind: Kind, body: &Writer) -> Result<(), TooLong> {
        let body = body.as_bytes();
        let header = header(kind, body)?;
        extend(&mut self.buffer, &header);
        extend(&mut self.buffer, body);
        Ok(())
    }

    /// Writes once. Loses nothing if it is dropped.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn write_to<W: AsyncWrite + Unpin>(&mut self, stream: &mut W) -> io::Result<()> {
        let rest = self.buffer.get(self.sent..).unwrap_or_default();
        let written = stream.write(rest).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.sent += written;
        if self.is_empty() {
            self.sent = 0;
            if self.buffer.capacity() > KEPT {
                self.buffer = Zeroizing::default();
            } else {
                self.buffer.clear();
            }
        }
        Ok(())
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.buffer.len() - self.sent
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Adds bytes. If the buffer has to move, it leaves no copy behind.
pub fn extend(buffer: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    grow(buffer, bytes.len());
    buffer.extend_from_slice(bytes);
}

/// Makes room for more bytes.
fn grow(buffer: &mut Zeroizing<Vec<u8>>, more: usize) {
    let needed = buffer.len() + more;
    if needed > buffer.capacity() {
        let mut larger = Vec::with_capacity(needed.max(buffer.capacity().saturating_mul(2)));
        larger.extend_from_slice(buffer);
        *buffer = Zeroizing::new(larger);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Writer {
        let mut writer = Writer::new();
        writer.text(1, text);
        writer
    }

    #[tokio::test]
    async fn frames_are_the_same_in_whatever_pieces_they_arrive() {
        let long = "x".repeat(3 * READ);
        let texts = ["one", "", &long, "two"];
        let mut outgoing = Outgoing::default();
        for text in texts {
            outgoing.push(Kind::Question, &body(text)).unwrap();
        }
        let mut bytes = outgoing.buffer.to_vec();
        // A kind of a newer program.
        bytes.splice(0..0, [0, 0, 0, 2, 255, 7, 7]);
        for size in [1, 4, 5, 6, 1000, READ - 1, bytes.len()] {
            let mut incoming = Incoming::default();
            let mut found = Vec::new();
            for mut piece in bytes.chunks(size) {
                while !piece.is_empty() {
                    incoming.read_from(&mut piece).await.unwrap();
                }
                while let Some((kind, body)) = incoming.take_frame().unwrap() {
                    assert_eq!(kind, Kind::Question);
                    found.push(body.to_vec());
                }
            }
            assert!(
                found.iter().map(Vec::as_slice).eq(texts.map(body).iter().map(Writer::as_bytes))
            );
            assert!(incoming.is_empty());
        }
    }

    #[tokio::test]
    async fn memory_grows_with_what_arrives_and_not_with_what_is_announced() {
        let mut incoming = Incoming::default();
        let length = u32::try_from(LONGEST).unwrap().to_be_bytes();
        let header = [&length[..], &[Kind::Bulk as u8]].concat();
        incoming.read_from(&mut &*header).await.unwrap();
        assert_eq!(incoming.take_frame(), Ok(None));
        incoming.make_room();
        assert!(incoming.capacity() <= 3 * READ);
        let piece = vec![0; READ];
        while incoming.take_frame() == Ok(None) {
            incoming.read_from(&mut &*piece).await.unwrap();
            assert!(incoming.capacity() <= 3 * READ + 2 * incoming.buffer.len());
        }
        // All of it is given back.
        incoming.begin = incoming.buffer.len();
        incoming.make_room();
        assert!(incoming.capacity() <= KEPT);
    }

    #[test]
    fn a_frame_has_at_most_16_mib_and_a_known_kind_or_one_that_may_be_ignored() {
        let parsed = |length: u32, kind| {
            let [a, b, c, d] = length.to_be_bytes();
            parse_header([a, b, c, d, kind], LONGEST)
        };
        assert_eq!(parsed(16 << 20, 16), Ok((16 << 20, 16)));
        assert_eq!(parsed((16 << 20) + 1, 16), Err(Malformed("a frame that is too long")));
        assert!(parsed(u32::MAX, 255).is_err());
        assert!(header(Kind::Bulk, &vec![0; LONGEST]).is_ok());
        assert_eq!(header(Kind::Bulk, &vec![0; LONGEST + 1]), Err(TooLong));
        assert_eq!(Kind::parse(16), Ok(Some(Kind::Question)));
        for known in [0, 6, 15, 21, 127] {
            assert!(Kind::parse(known).is_err(), "{known}");
        }
        assert_eq!((128..=255).map(Kind::parse).filter(|kind| *kind == Ok(None)).count(), 128);
    }
}
