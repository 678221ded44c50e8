//! A body arrives as it was sent: framed anew, ended once and only when all of it came, with what
//! follows it left where it was; however it is cut, and however the receiver takes it.
//!
//! The first byte of an input chooses how the body is framed, the second is its length, the third
//! says how many bytes after it say how much is read and written at a time; the rest is what the
//! sender sends, or of what a chunked body is made.

#![cfg_attr(fuzzing, no_main)]

mod chunks;

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wxgate::fuzzing::Chunked;
use wxgate::fuzzing::body::{
    BadTrailers, BodySource, BodyTarget, Broken, Incoming, Limits, Transfer,
};

use self::chunks::{Body, End, without_chunks};

const HEADER: &[u8] = b"HTTP/1.1 200\r\n\r\n";

/// Bytes that a body may have, where that is limited.
const LIMIT: u64 = 48;

/// Reads before which it is looked whether everything was sent.
const LOOKED_AT: usize = 20;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let [choice, length, steps, rest @ ..] = input else { return };
    let steps = usize::from(*steps % 32).min(rest.len());
    let (steps, rest) = rest.split_at(steps);
    let is = |bit: u8| choice & bit != 0;
    let framing = match choice % 4 {
        0 => From::Length(u64::from(*length)),
        1 => From::Close,
        _ => From::Chunked,
    };
    let sent = if choice % 4 == 3 { compose(*length, rest) } else { rest.to_vec() };
    let case = Case {
        framing,
        target: if is(4) && framing != From::Length(u64::from(*length)) {
            BodyTarget::Chunked
        } else {
            BodyTarget::Plain
        },
        limit: if is(8) { LIMIT } else { u64::MAX },
        early: if is(16) { usize::from(*length).min(sent.len()) } else { 0 },
        is_taken_early: is(32),
        breaks_after: is(64).then_some(steps.len() * 7),
        header: if is(128) { HEADER } else { b"" },
        steps,
        sent: &sent,
    };
    case.run();
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Length(u64),
    Chunked,
    Close,
}

/// One body, and how it is sent and taken.
struct Case<'a> {
    framing: From,
    target: BodyTarget,
    limit: u64,
    /// Bytes that were read before.
    early: usize,
    /// Whether those are taken before anything moves.
    is_taken_early: bool,
    /// The receiver's connection breaks after so many bytes.
    breaks_after: Option<usize>,
    header: &'static [u8],
    steps: &'a [u8],
    sent: &'a [u8],
}

impl Case<'_> {
    fn run(&self) {
        let expected = self.read();
        let wire = Rc::new(RefCell::new(Wire::new(self)));
        let (mut reader, mut writer) = (Reader(wire.clone()), Writer(wire.clone()));
        let source = match self.framing {
            From::Length(length) => BodySource::Length(length),
            From::Chunked => BodySource::Chunked(Chunked::new()),
            From::Close => BodySource::Close,
        };
        let time = Duration::from_secs(1);
        let limits =
            Limits { bytes: self.limit, read_timeout: time, write_timeout: time, ..Limits::NONE };
        let mut transfer = Transfer::new(source, self.target, limits, self.header.to_vec());
        let mut input = self.sent[..self.early].to_vec();
        let mut trailers = |lines: &[u8], out: &mut Vec<u8>| match write_trailers(lines, out) {
            true => Ok(()),
            false => Err(BadTrailers::Malformed),
        };

        let mut ended = Ok(());
        if self.is_taken_early {
            ended = transfer.take(&mut input, &mut trailers);
            if ended.is_err() {
                // What was fine until then is sent.
                wire.borrow_mut().written.extend_from_slice(&transfer.output);
            }
        }
        let mut cx = Context::from_waker(Waker::noop());
        if ended.is_ok() {
            let mut polls = 0;
            ended = loop {
                let moved =
                    transfer.poll(&mut cx, &mut reader, &mut input, &mut writer, &mut trailers);
                if let Poll::Ready(ended) = moved {
                    break ended;
                }
                polls += 1;
                let most = 100 + 64 * (self.sent.len() + self.header.len());
                assert!(polls < most, "the body does not move on");
                assert!(transfer.due().is_some(), "what is waited for has a limit");
            };
        }

        let taken = wire.borrow().written.clone();
        let out = taken.strip_prefix(self.header);
        let is_large = expected.data.len() as u64 > self.limit;
        let may_repeat = matches!(ended, Ok(()) | Err(Broken::Write(_)));
        match ended {
            Ok(()) => {
                assert!(!is_large && transfer.is_sent() && transfer.is_received());
                assert!(wire.borrow().is_flushed);
                let End::At(end) = expected.end else { panic!("{:?} ended", expected.end) };
                self.check_whole(out.expect("the header"), &expected);
                assert_eq!(transfer.received, expected.data.len() as u64);
                let unread = &self.sent[wire.borrow().read..];
                assert_eq!([&*input, unread].concat(), self.sent[end..], "what follows is left");
                let again =
                    transfer.poll(&mut cx, &mut reader, &mut input, &mut writer, &mut trailers);
                assert!(matches!(again, Poll::Ready(Ok(()))));
                assert_eq!(wire.borrow().written, taken, "nothing follows the end");
            }
            Err(Broken::Write(_)) => {
                assert!(self.breaks_after.is_some());
                if let Some(out) = out {
                    self.check_part(out, &expected, true);
                }
            }
            Err(broken) => {
                let is_expected = match broken {
                    Broken::TooLarge => is_large,
                    Broken::Malformed => expected.end == End::Malformed,
                    Broken::Ended => {
                        !is_large && expected.end == End::Missing && self.framing != From::Close
                    }
                    _ => false,
                };
                assert!(is_expected, "{broken:?}, but {expected:?}");
                let out = out.expect("the header");
                self.check_part(out, &expected, false);
                if matches!(broken, Broken::Ended) {
                    assert_eq!(self.data(out), expected.data, "what came is sent");
                }
            }
        }
        self.check_held(&wire.borrow());

        if may_repeat && transfer.can_repeat() {
            let mut second = Writer(Rc::new(RefCell::new(Wire::new(self))));
            second.0.borrow_mut().breaks_after = None;
            transfer.repeat();
            while transfer
                .poll(&mut cx, &mut reader, &mut input, &mut second, &mut trailers)
                .is_pending()
            {}
            let second = &second.0.borrow().written;
            let out = second.strip_prefix(self.header).expect("the header again");
            self.check_whole(out, &expected);
            assert!(second.starts_with(&taken));
        }
    }

    /// What the sender's bytes say.
    fn read(&self) -> Body {
        self.read_part(self.sent, true)
    }

    /// The same, of the first bytes.
    fn read_part(&self, sent: &[u8], is_all: bool) -> Body {
        match self.framing {
            From::Length(length) => {
                let length = usize::try_from(length).unwrap();
                let end = if length <= sent.len() { End::At(length) } else { End::Missing };
                let data = sent[..length.min(sent.len())].to_vec();
                Body { data, end, ..Body::default() }
            }
            From::Close => {
                let end = if is_all { End::At(sent.len()) } else { End::Missing };
                Body { data: sent.to_vec(), end, ..Body::default() }
            }
            From::Chunked => {
                let mut body = without_chunks(sent);
                let lines = std::mem::take(&mut body.trailers);
                if !write_trailers(&lines, &mut body.trailers) {
                    body.end = End::Malformed;
                }
                body
            }
        }
    }

    /// All of a body was sent, ended once, and nothing after it.
    fn check_whole(&self, out: &[u8], expected: &Body) {
        assert!(matches!(expected.end, End::At(_)));
        match self.target {
            BodyTarget::Plain | BodyTarget::Stream => {
                assert_eq!(out.escape_ascii().to_string(), shown(&expected.data))
            }
            BodyTarget::Chunked => {
                let (data, rest) = own_chunks(out);
                assert_eq!(data, expected.data);
                let end = [b"0\r\n", &*expected.trailers, b"\r\n"].concat();
                assert_eq!(shown(rest), shown(&end));
            }
        }
    }

    /// A part of a body was sent, and no end. The last chunk may be cut.
    fn check_part(&self, out: &[u8], expected: &Body, may_be_cut: bool) {
        let data = self.data(out);
        assert!(expected.data.starts_with(&data), "{} was sent", shown(out));
        if self.target == BodyTarget::Chunked && !may_be_cut {
            let (_, rest) = own_chunks(out);
            assert_eq!(shown(rest), "", "a truncated body has no end");
        }
    }

    /// What whole chunks hold, or all of a body that has none.
    fn data(&self, out: &[u8]) -> Vec<u8> {
        match self.target {
            BodyTarget::Plain | BodyTarget::Stream => out.to_vec(),
            BodyTarget::Chunked => own_chunks(out).0,
        }
    }

    /// Nothing was read while anything was to be sent.
    fn check_held(&self, wire: &Wire) {
        for (read, written, is_flushed) in wire.looks.iter().take(LOOKED_AT) {
            let before = self.read_part(&self.sent[..*read], false);
            assert!(*is_flushed, "what is sent is not held back");
            let out = wire.written[..*written].strip_prefix(self.header).expect("the header");
            assert_eq!(self.data(out), before.data);
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Chunks as the gateway writes them, strictly: their data, and what follows the last.
fn own_chunks(mut out: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut data = Vec::new();
    loop {
        let Some(end) = out.windows(2).position(|two| two == b"\r\n") else { return (data, out) };
        let digits = std::str::from_utf8(&out[..end]).expect("a size");
        let size = usize::from_str_radix(digits, 16).expect("a size");
        assert_eq!(digits, format!("{size:x}"), "a size has one spelling");
        let after = &out[end + 2..];
        if size == 0 || after.len() < size + 2 {
            return (data, out);
        }
        data.extend_from_slice(&after[..size]);
        out = after[size..].strip_prefix(b"\r\n").expect("CR LF");
    }
}

/// Writes trailers anew, without those whose names begin with `d`; false at one without a colon.
fn write_trailers(lines: &[u8], out: &mut Vec<u8>) -> bool {
    for line in lines.split_inclusive(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r\n").expect("CR LF");
        let Some(colon) = line.iter().position(|b| *b == b':') else { return false };
        if !line.starts_with(b"d") {
            out.extend_from_slice(&line[..colon]);
            out.extend_from_slice(b": ");
            out.extend_from_slice(line[colon + 1..].trim_ascii());
            out.extend_from_slice(b"\r\n");
        }
    }
    true
}

/// A chunked body, and a request after it. Bytes that are changed at random seldom leave one.
fn compose(choice: u8, mut rest: &[u8]) -> Vec<u8> {
    let mut sent = Vec::new();
    while let [kind, after @ ..] = rest {
        let size = (1 + usize::from(kind % 32)).min(after.len());
        let (data, after) = after.split_at(size);
        rest = after;
        let line = match kind >> 5 {
            _ if size == 0 => break,
            0 => format!("{size:X};a"),
            1 => format!("{size:x};name=\"value\""),
            2 => format!("{size:04x}"),
            _ => format!("{size:x}"),
        };
        sent.extend_from_slice(line.as_bytes());
        sent.extend_from_slice(b"\r\n");
        sent.extend_from_slice(data);
        sent.extend_from_slice(b"\r\n");
    }
    let end: &[u8] = match choice % 8 {
        0 => b"0\r\n\r\n",
        1 => b"000;last\r\n\r\nGET / HTTP/1.1\r\n",
        2 => b"0\r\nX-A: 1\r\n\r\n",
        3 => b"0\r\na:1\r\ndropped: 2\r\nb:\t3 \r\n\r\n0\r\n\r\n",
        4 => b"0\r\nX-A: 1\r\nno colon\r\n\r\n",
        5 => b"0\r\nX-A: 1\r\n",
        6 => b"0\r\n\n",
        _ => b"",
    };
    sent.extend_from_slice(end);
    sent
}

/// Both connections.
struct Wire {
    sent: Vec<u8>,
    read: usize,
    written: Vec<u8>,
    is_flushed: bool,
    breaks_after: Option<usize>,
    steps: Vec<u8>,
    at: usize,
    waits: usize,
    /// What was read, what was written and whether it was flushed, before each read.
    looks: Vec<(usize, usize, bool)>,
}

impl Wire {
    fn new(case: &Case<'_>) -> Self {
        Self {
            sent: case.sent.to_vec(),
            read: case.early,
            written: Vec::new(),
            is_flushed: true,
            breaks_after: case.breaks_after,
            steps: case.steps.to_vec(),
            at: 0,
            waits: 0,
            looks: Vec::new(),
        }
    }

    /// How many bytes move now.
    fn step(&mut self) -> Poll<usize> {
        if self.steps.is_empty() {
            return Poll::Ready(usize::MAX);
        }
        let step = self.steps[self.at % self.steps.len()];
        self.at += 1;
        if step.is_multiple_of(4) && self.waits < 2 {
            self.waits += 1;
            return Poll::Pending;
        }
        self.waits = 0;
        Poll::Ready(1 + usize::from(step / 4))
    }
}

struct Reader(Rc<RefCell<Wire>>);

impl Incoming for Reader {}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &mut *self.0.borrow_mut();
        let Poll::Ready(most) = wire.step() else { return Poll::Pending };
        let rest = &wire.sent[wire.read..];
        let length = most.min(rest.len()).min(buffer.remaining());
        buffer.put_slice(&rest[..length]);
        let look = (wire.read, wire.written.len(), wire.is_flushed);
        wire.looks.push(look);
        wire.read += length;
        Poll::Ready(Ok(()))
    }
}

struct Writer(Rc<RefCell<Wire>>);

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wire = &mut *self.0.borrow_mut();
        let Poll::Ready(most) = wire.step() else { return Poll::Pending };
        let left = wire.breaks_after.map_or(usize::MAX, |end| end - wire.written.len());
        let length = most.min(bytes.len()).min(left);
        if length == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        wire.written.extend_from_slice(&bytes[..length]);
        wire.is_flushed = false;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = &mut *self.0.borrow_mut();
        if wire.step().is_pending() {
            return Poll::Pending;
        }
        wire.is_flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        panic!("a body does not close a connection");
    }
}
