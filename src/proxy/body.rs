//! Forwards a body from one connection to another.
//!
//! The sender's framing is removed, and the body is framed anew: chunk sizes, extensions and line
//! ends are never copied. The end of the body is written once, and only after all of it was
//! received, so that the receiver can see when a body breaks off. At most one read is buffered:
//! while the receiver accepts nothing, nothing is read.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::buffers;
use crate::message::chunked::{Chunked, Part};

/// Waiting time before a minimum rate applies, because connections start slowly.
const GRACE: Duration = Duration::from_secs(5);

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
}

impl Incoming for pingora::protocols::Stream {}

/// Why a body was not forwarded completely.
#[derive(Debug)]
pub enum Broken {
    /// The sender's connection failed.
    Read(io::Error),
    /// The sender closed its connection before the end of the body.
    Ended,
    /// The sender's framing or a trailer is malformed.
    Malformed,
    /// The body is longer than allowed.
    TooLarge,
    /// The trailers are longer than allowed.
    TrailersTooLarge,
    /// The sender is too slow.
    TooSlow,
    /// The receiver's connection failed.
    Write(io::Error),
    /// The receiver is too slow.
    ReceiverTooSlow,
}

/// What a body waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Sender,
    Receiver,
}

/// Writes the trailers of a chunked body, which are given as received: each line with its CR LF.
pub trait WriteTrailers: FnMut(&[u8], &mut Vec<u8>) -> Result<(), BadTrailers> {}
impl<F: FnMut(&[u8], &mut Vec<u8>) -> Result<(), BadTrailers>> WriteTrailers for F {}

/// Trailers that cannot be forwarded.
pub enum BadTrailers {
    Malformed,
    /// Together with the header, they exceed the limits for a header.
    TooLarge,
}

impl From<BadTrailers> for Broken {
    fn from(bad: BadTrailers) -> Self {
        match bad {
            BadTrailers::Malformed => Self::Malformed,
            BadTrailers::TooLarge => Self::TrailersTooLarge,
        }
    }
}

/// Limits on a body.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Maximum bytes of the whole body.
    pub bytes: u64,
    /// The longest wait for bytes from the sender.
    pub read_timeout: Duration,
    /// The longest time in which the receiver may accept nothing.
    pub write_timeout: Duration,
    /// Bytes per second that the sender must send, after [`GRACE`]; 0: no minimum.
    pub min_rate: u64,
    /// Bytes per second that the receiver must accept, after [`GRACE`]; 0: no minimum.
    pub min_taken: u64,
    /// Maximum bytes of one read; not more than [`buffers::LARGE`].
    pub read: usize,
}

impl Limits {
    pub const NONE: Self = Self {
        bytes: u64::MAX,
        read_timeout: Duration::MAX,
        write_timeout: Duration::MAX,
        min_rate: 0,
        min_taken: 0,
        read: buffers::LARGE,
    };
}

/// How far a body has been forwarded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Coming,
    /// All of it was received, and its end is in `output`.
    Come,
    Sent,
}

/// One body, from its first byte to its last.
pub struct Relay {
    source: BodySource,
    target: BodyTarget,
    limits: Limits,
    /// Bytes to be sent, including a header before the body, and how many of them were sent.
    pub output: Vec<u8>,
    sent: usize,
    is_flushed: bool,
    /// Whether `output` still has everything from the first byte, so that it can be sent again.
    is_held: bool,
    stage: Stage,
    /// Received trailers, each with its CR LF.
    trailers: Vec<u8>,
    /// Trailers to be sent, for [`BodyTarget::Stream`].
    pub tail: Vec<u8>,
    /// Bytes of the body received, without framing.
    pub passed: u64,
    waits_for: Wait,
    /// When the current wait began; `None` while there is none.
    waiting_since: Option<Instant>,
    /// Time spent waiting for the sender.
    waited: Duration,
    /// Time spent waiting for the receiver, and bytes that it accepted.
    waited_to_send: Duration,
    taken: u64,
}

impl Relay {
    /// `output` is sent before the body.
    pub fn new(source: BodySource, target: BodyTarget, limits: Limits, output: Vec<u8>) -> Self {
        let is_over = matches!(source, BodySource::Length(0));
        let stage = if is_over { Stage::Come } else { Stage::Coming };
        Self {
            source,
            target,
            limits,
            output,
            sent: 0,
            is_flushed: true,
            is_held: true,
            stage,
            trailers: Vec::new(),
            tail: Vec::new(),
            passed: 0,
            waits_for: Wait::Sender,
            waiting_since: None,
            waited: Duration::ZERO,
            waited_to_send: Duration::ZERO,
            taken: 0,
        }
    }

    /// Whether the whole body was received.
    pub fn has_come(&self) -> bool {
        self.stage != Stage::Coming
    }

    /// Whether the whole body was sent.
    pub fn is_sent(&self) -> bool {
        self.stage == Stage::Sent
    }

    /// Whether everything sent is still held, so that it can be sent again.
    pub fn can_repeat(&self) -> bool {
        self.has_come() && self.is_held
    }

    /// Starts again with the held bytes.
    pub fn repeat(&mut self) {
        self.sent = 0;
        self.stage = Stage::Come;
        self.waiting_since = None;
    }

    /// Which side is waited for, and the deadline.
    pub fn due(&self) -> Option<(Wait, Instant)> {
        let limit = match self.waits_for {
            Wait::Sender => self.limits.read_timeout,
            Wait::Receiver => self.limits.write_timeout,
        };
        Some((self.waits_for, self.waiting_since?.checked_add(limit)?))
    }

    /// Moves the bytes of the body from `input` to `output`, with the new framing.
    ///
    /// # Errors
    /// [`Broken::Malformed`] and [`Broken::TooLarge`].
    pub fn take(
        &mut self,
        input: &mut Vec<u8>,
        trailers: &mut impl WriteTrailers,
    ) -> Result<(), Broken> {
        let before = self.passed;
        let mut taken = 0;
        let mut is_over = false;
        match &mut self.source {
            BodySource::Length(left) => {
                taken = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= taken as u64;
                is_over = *left == 0;
                self.passed += taken as u64;
                move_bytes(input, taken, &mut self.output);
            }
            BodySource::Close => {
                let length = input.len();
                self.passed += length as u64;
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
                    .next(input.get(taken..).unwrap_or_default())
                    .map_err(|_| Broken::Malformed)?
                {
                    let bytes = input.get(taken..taken + length).unwrap_or_default();
                    taken += length;
                    match part {
                        Part::Framing => {}
                        Part::Data => {
                            self.passed += length as u64;
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
                input.drain(..taken);
            }
        }
        if self.passed > self.limits.bytes && self.passed > before {
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
        self.stage = Stage::Come;
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
                    return self.wait_for(Wait::Receiver);
                };
                match written {
                    Ok(0) => {
                        return Poll::Ready(Err(Broken::Write(io::ErrorKind::WriteZero.into())));
                    }
                    Ok(length) => {
                        self.sent += length;
                        self.is_flushed = false;
                        self.taken += length as u64;
                        if let Some(since) = self.waiting_since.take()
                            && self.waits_for == Wait::Receiver
                        {
                            self.waited_to_send += since.elapsed();
                            if is_too_slow(self.taken, self.waited_to_send, self.limits.min_taken) {
                                return Poll::Ready(Err(Broken::ReceiverTooSlow));
                            }
                        }
                    }
                    Err(error) => return Poll::Ready(Err(Broken::Write(error))),
                }
            }
            if !self.is_flushed && (self.has_come() || input.is_empty()) {
                match Pin::new(&mut *writer).poll_flush(cx) {
                    Poll::Ready(Ok(())) => {
                        self.is_flushed = true;
                        self.waiting_since = None;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Write(error))),
                    Poll::Pending => return self.wait_for(Wait::Receiver),
                }
            }
            if self.has_come() {
                self.stage = Stage::Sent;
                return Poll::Ready(Ok(()));
            }
            self.is_held &= self.output.is_empty();
            self.output.clear();
            self.sent = 0;
            if !input.is_empty() {
                self.take(input, trailers)?;
                // Everything sent so far is flushed before waiting for more.
                if self.has_come() || !self.output.is_empty() || !self.is_flushed {
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
            buffers::give(std::mem::take(&mut self.output));
            return self.wait_for(Wait::Sender);
        };
        if let Some(since) = self.waiting_since.take()
            && self.waits_for == Wait::Sender
        {
            self.waited += since.elapsed();
        }
        match read {
            Ok(0) if matches!(self.source, BodySource::Close) => {
                self.trailers = reader.take_trailers();
                self.end(trailers)?;
            }
            Ok(0) => return Poll::Ready(Err(Broken::Ended)),
            Ok(_) => {
                let came = self.passed + input.len() as u64;
                if is_too_slow(came, self.waited, self.limits.min_rate) {
                    return Poll::Ready(Err(Broken::TooSlow));
                }
            }
            Err(error) => return Poll::Ready(Err(Broken::Read(error))),
        }
        Poll::Ready(Ok(()))
    }

    fn wait_for<T>(&mut self, wait: Wait) -> Poll<T> {
        if self.waits_for != wait {
            self.waiting_since = None;
            self.waits_for = wait;
        }
        self.waiting_since.get_or_insert_with(Instant::now);
        Poll::Pending
    }
}

/// Whether `bytes` are too few after waiting for `waited`.
fn is_too_slow(bytes: u64, waited: Duration, least_a_second: u64) -> bool {
    waited > GRACE && bytes < least_a_second.saturating_mul(waited.as_secs())
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
