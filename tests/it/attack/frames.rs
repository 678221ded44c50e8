//! HTTP/2 as bytes: frames that no library would send, and the responses to them.
//!
//! Header lines are written as literals without indexing and without Huffman coding (RFC 7541,
//! section 6.2.2). Of the gateway's responses, only the bodies are decoded.

use std::collections::BTreeMap;

use tokio::io::{AsyncRead, AsyncReadExt};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A field of a header block.
pub type Field<'a> = (&'a [u8], &'a [u8]);

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

pub fn block(fields: &[Field<'_>]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            push_length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// RFC 7541, section 5.1, with a prefix of seven bits.
fn push_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        return block.push(u8::try_from(length).unwrap());
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// A whole request without a body.
pub fn request(stream: u32, fields: &[Field<'_>]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields))
}

/// The state of a stream.
#[derive(Debug, Default)]
pub struct Stream {
    pub body: Vec<u8>,
    pub has_ended: bool,
    pub is_reset: bool,
}

impl Stream {
    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.has_ended || self.is_reset
    }
}

/// Everything that the gateway has sent.
#[derive(Debug, Default)]
pub struct FramesRead {
    pub streams: BTreeMap<u32, Stream>,
    pub went_away: bool,
    pub has_ended: bool,
    /// Responses to PING.
    pub pongs: usize,
    bytes: Vec<u8>,
}

impl FramesRead {
    /// Reads until `is_enough`, or to the end.
    pub async fn read_until(
        &mut self,
        wire: &mut (impl AsyncRead + Unpin),
        is_enough: impl Fn(&FramesRead) -> bool,
    ) {
        while !self.has_ended && !is_enough(self) {
            self.has_ended = !matches!(wire.read_buf(&mut self.bytes).await, Ok(1..));
            while self.take_frame() {}
        }
    }

    fn take_frame(&mut self) -> bool {
        let Some((header, rest)) = self.bytes.split_first_chunk::<9>() else { return false };
        let [a, b, c, kind, flags, stream @ ..] = *header;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let Some(payload) = rest.get(..length) else { return false };
        let stream = u32::from_be_bytes(stream);
        match kind {
            DATA | HEADERS => {
                let read = self.streams.entry(stream).or_default();
                if kind == DATA {
                    read.body.extend_from_slice(payload);
                }
                read.has_ended |= flags & END_STREAM != 0;
            }
            RST_STREAM => self.streams.entry(stream).or_default().is_reset = true,
            GOAWAY => self.went_away = true,
            PING if flags & ACK != 0 => self.pongs += 1,
            _ => {}
        }
        self.bytes.drain(..9 + length);
        true
    }
}
