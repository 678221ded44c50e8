//! Forwards a body from one connection to another.
//!
//! The sender's framing is removed, and the body is framed anew: chunk sizes, extensions and line
//! ends are never copied. The end of the body is written once, and only after all of it was
//! received, so that the receiver can detect a truncated body. At most one read is buffered: while
//! the receiver accepts nothing, nothing is read. `limits` decides how long each side may
//! take.

mod broken;
mod limits;
mod trailers;

use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

pub use self::broken::Broken;
use self::limits::Pace;
pub use self::limits::{Limits, Wait};
pub use self::trailers::{BadTrailers, WriteTrailers};
use super::buffers;
use crate::message::chunked::{Chunked, Part};

/// Maximum bytes of trailers that are held until they can be sent.
const MOST_TRAILERS: usize = 64 << 10;

/// How the end of a received body is marked.
pub enum BodySource {
    /// The number of bytes left.
    Length(u64),
    Chunked(Chunked),
    /// By the end of the connection.
    Close,
}

/// How the end of a sent body is marked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BodyTarget {
    /// By the announced length, or by the end of the connection.
    Plain,
    Chunked,
    /// By HTTP/2, which sends the trailers separately.
    Stream,
}

/// Where a body comes from.
pub trait Incoming: AsyncRead + Unpin {
    /// The trailers of a body that has ended, in HTTP/1 form. Empty if trailers are part of the
    /// bytes that are read.
    fn take_trailers(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// Called while what was read waits for the receiver.
    fn gather(&mut self, _: &mut Context<'_>) {}
}

/// How far a body has been forwarded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Receiving,
    /// All of it was received, and its end is in `output`.
    Received,
    Sent,
}

/// Forwards one body, from its first byte to its last.
pub struct Transfer {
    source: BodySource,
    target: BodyTarget,
    limits: Limits,
    /// Bytes to be sent, including a header before the body, and how many of them were sent.
    pub output: Vec<u8>,
    /// Bytes of the header.
    header: usize,
    sent: usize,
    is_flushed: bool,
    /// Whether `output` still has everything from the first byte, so that it can be sent again.
    is_held: bool,
    /// Bytes of a body that are held after they were sent.
    most_held: u64,
    stage: Stage,
    /// Received trailers, each with its CR LF.
    trailers: Vec<u8>,
    /// Trailers to be sent, for [`BodyTarget::Stream`].
    pub tail: Vec<u8>,
    /// Bytes of the body received, without framing.
    pub received: u64,
    pace: Pace,
}

impl Transfer {
    /// `output` is sent before the body.
    pub fn new(source: BodySource, target: BodyTarget, limits: Limits, output: Vec<u8>) -> Self {
        let is_over = matches!(source, BodySource::Length(0));
        let stage = if is_over { Stage::Received } else { Stage::Receiving };
        Self {
            source,
            target,
            limits,
            header: output.len(),
            output,
            sent: 0,
            is_flushed: true,
            is_held: true,
            most_held: 0,
            stage,
            trailers: Vec::new(),
            tail: Vec::new(),
            received: 0,
            pace: Pace::new(),
        }
    }

    /// Whether the whole body was received.
    pub fn is_received(&self) -> bool {
        self.stage != Stage::Receiving
    }

    /// Whether the whole body was sent.
    pub fn is_sent(&self) -> bool {
        self.stage == Stage::Sent
    }

    /// Holds a body of up to `most` bytes after it was sent, so that it can be sent again.
    pub fn hold(&mut self, most: u64) {
        self.most_held = most;
    }

    /// Whether everything sent is still held, so that it can be sent again.
    pub fn can_repeat(&self) -> bool {
        self.is_held
    }

    /// Starts again with the held bytes.
    pub fn repeat(&mut self) {
        self.sent = 0;
        self.is_flushed = true;
        if self.stage == Stage::Sent {
            self.stage = Stage::Received;
        }
        self.pace.stop_waiting();
    }

    /// Replaces the held header.
    pub fn replace_header(&mut self, header: &[u8]) {
        let length = self.header.min(self.output.len());
        self.output.splice(..length, header.iter().copied());
        self.header = header.len();
    }

    /// Which side is waited for, and the deadline.
    pub fn due(&self) -> Option<(Wait, Instant)> {
        self.pace.due(&self.limits)
    }

    /// Whether the rest of the body has been waited for, for so long that the receiver may have
    /// given up.
    pub fn has_stalled(&self) -> bool {
        !self.is_received() && self.pace.has_sender_stalled()
    }

    /// Moves the bytes of the body from `input` to `output`, with the new framing.
    ///
    /// # Errors
    /// [`Broken::Malformed`], [`Broken::TooLarge`] and [`Broken::TrailersTooLarge`].
    pub fn take(
        &mut self,
        input: &mut Vec<u8>,
        trailers: &mut impl WriteTrailers,
    ) -> Result<(), Broken> {
        let before = self.received;
        let mut moved = 0;
        let mut is_over = false;
        match &mut self.source {
            BodySource::Length(left) => {
                moved = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= moved as u64;
                is_over = *left == 0;
                self.received += moved as u64;
                move_bytes(input, moved, &mut self.output);
            }
            BodySource::Close => {
                let length = input.len();
                self.received += length as u64;
                match self.target {
                    BodyTarget::Plain | BodyTarget::Stream => {
                        move_bytes(input, length, &mut self.output);
                    }
                    BodyTarget::Chunked if length > 0 => {
                        write_chunk(input, &mut self.output);
                        input.clear();
                    }
                    BodyTarget::Chunked => {}
                }
            }
            BodySource::Chunked(chunked) => {
                if self.output.capacity() == 0 {
                    self.output = buffers::take();
                }
                while let Some((part, length)) = chunked
                    .next(input.get(moved..).unwrap_or_default())
                    .map_err(|_| Broken::Malformed)?
                {
                    let bytes = input.get(moved..moved + length).unwrap_or_default();
                    moved += length;
                    match part {
                        Part::Framing => {}
                        Part::Data => {
                            self.received += length as u64;
                            match self.target {
                                BodyTarget::Plain | BodyTarget::Stream => {
                                    self.output.extend_from_slice(bytes);
                                }
                                BodyTarget::Chunked => write_chunk(bytes, &mut self.output),
                            }
                        }
                        Part::Trailers => {
                            if self.trailers.len() + length > MOST_TRAILERS {
                                return Err(Broken::TrailersTooLarge);
                            }
                            self.trailers.extend_from_slice(bytes);
                        }
                    }
                }
                is_over = chunked.is_over();
                if is_over {
                    // The empty line after the trailers is not a trailer.
                    self.trailers.truncate(self.trailers.len().saturating_sub(2));
                }
                input.drain(..moved);
            }
        }
        if self.received > self.limits.bytes && self.received > before {
            return Err(Broken::TooLarge);
        }
        if is_over {
            self.end(trailers)?;
        }
        Ok(())
    }

    /// Writes the end of the body and its trailers.
    fn end(&mut self, write: &mut impl WriteTrailers) -> Result<(), Broken> {
        let end = self.output.len();
        if self.target == BodyTarget::Chunked {
            self.output.extend_from_slice(b"0\r\n");
        }
        let trailers = std::mem::take(&mut self.trailers);
        // Trailers are checked even if they cannot be sent.
        let begin = self.output.len();
        if !trailers.is_empty()
            && let Err(bad) = write(&trailers, &mut self.output)
        {
            self.output.truncate(end);
            return Err(bad.into());
        }
        self.stage = Stage::Received;
        match self.target {
            BodyTarget::Chunked => self.output.extend_from_slice(b"\r\n"),
            BodyTarget::Plain => self.output.truncate(begin),
            BodyTarget::Stream => self.tail = self.output.split_off(begin),
        }
        Ok(())
    }

    /// Forwards as much of the body as possible without waiting. `input` has the bytes read from
    /// the sender's connection; those after the end of the body are left in it.
    pub fn poll<R: Incoming, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        input: &mut Vec<u8>,
        writer: &mut W,
        trailers: &mut impl WriteTrailers,
    ) -> Poll<Result<(), Broken>> {
        loop {
            while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
                let Poll::Ready(written) = Pin::new(&mut *writer).poll_write(cx, rest) else {
                    if input.is_empty() {
                        buffers::give(std::mem::take(input));
                    }
                    reader.gather(cx);
                    return self.pace.wait_for(Wait::Receiver);
                };
                match written {
                    Ok(0) => {
                        return Poll::Ready(Err(Broken::Write(io::ErrorKind::WriteZero.into())));
                    }
                    Ok(length) => {
                        self.sent += length;
                        self.is_flushed = false;
                        if self.pace.is_receiver_too_slow(length, &self.limits) {
                            return Poll::Ready(Err(Broken::ReceiverTooSlow));
                        }
                    }
                    Err(error) => return Poll::Ready(Err(Broken::Write(error))),
                }
            }
            if !self.is_flushed && (self.is_received() || input.is_empty()) {
                match Pin::new(&mut *writer).poll_flush(cx) {
                    Poll::Ready(Ok(())) => {
                        self.is_flushed = true;
                        self.pace.stop_waiting();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Write(error))),
                    Poll::Pending => return self.pace.wait_for(Wait::Receiver),
                }
            }
            if self.is_received() {
                self.stage = Stage::Sent;
                return Poll::Ready(Ok(()));
            }
            if self.most_held == 0 || self.received > self.most_held || !self.is_held {
                self.is_held &= self.output.is_empty();
                self.output.clear();
                self.sent = 0;
            }
            if !input.is_empty() {
                self.take(input, trailers)?;
                // Everything sent so far is flushed before waiting for more.
                let is_sent = self.sent == self.output.len();
                if self.is_received() || !is_sent || !self.is_flushed {
                    continue;
                }
            }
            ready!(self.poll_more(cx, reader, input, trailers))?;
        }
    }

    fn poll_more<R: Incoming>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        input: &mut Vec<u8>,
        trailers: &mut impl WriteTrailers,
    ) -> Poll<Result<(), Broken>> {
        if input.capacity() == 0 {
            // All of `output` was sent, so one buffer is enough for both.
            let is_enough = self.output.capacity() >= self.limits.read;
            *input = if is_enough && self.output.is_empty() {
                std::mem::take(&mut self.output)
            } else {
                buffers::take_for(self.limits.read)
            };
        }
        let Poll::Ready(read) = buffers::poll_read(reader, cx, input, self.limits.read) else {
            // A body that waits for its sender holds no buffer.
            if input.is_empty() {
                buffers::give(std::mem::take(input));
            }
            if self.output.is_empty() {
                buffers::give(std::mem::take(&mut self.output));
            }
            return self.pace.wait_for(Wait::Sender);
        };
        self.pace.sender_sent();
        match read {
            Ok(0) if matches!(self.source, BodySource::Close) => {
                self.trailers = reader.take_trailers();
                self.end(trailers)?;
            }
            Ok(0) => return Poll::Ready(Err(Broken::Ended)),
            Ok(_) => {
                let bytes = self.received + input.len() as u64;
                if self.pace.is_sender_too_slow(bytes, &self.limits) {
                    return Poll::Ready(Err(Broken::TooSlow));
                }
            }
            Err(error) => return Poll::Ready(Err(Broken::Read(error))),
        }
        Poll::Ready(Ok(()))
    }
}

/// Moves the first `length` bytes of `from` to the end of `to`.
fn move_bytes(from: &mut Vec<u8>, length: usize, to: &mut Vec<u8>) {
    if length == from.len() && to.is_empty() {
        std::mem::swap(from, to);
    } else {
        to.extend_from_slice(from.get(..length).unwrap_or_default());
        from.drain(..length);
    }
}

fn write_chunk(data: &[u8], out: &mut Vec<u8>) {
    out.reserve(data.len() + 20);
    // Writing to a vector cannot fail.
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}
