//! What pingora reads of a connection is what was judged: the same head, and a body that ends
//! where the next request begins.
//!
//! An input is what comes over a connection. Of the body of a request as much comes with its
//! head as the length of the input says.

#![cfg_attr(fuzzing, no_main)]

use std::io::Cursor;
use std::sync::LazyLock;

use bytes::BytesMut;
use http::HeaderValue;
use pingora::protocols::http::v1::server::HttpSession;
use tokio::runtime::{Builder, Runtime};
use wxgate::fuzzing::Chunked;
use wxgate::message::request_header::{self, Framing, HeaderLimits};

const LIMITS: HeaderLimits = HeaderLimits { bytes: 1024, lines: 12, target: 100 };

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread().enable_time().build().expect("a runtime can be built")
});

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Ok(Some(head)) = request_header::read(input, LIMITS, |_| false, |_| {}) else { return };
    let rest = &input[head.length..];
    let Some(length) = body_length(rest, head.framing) else { return };
    let (head, body) = (&input[..head.length], (&rest[..length], head.framing));

    let early = input.len() % (length + 1);
    let (first, later) = input[..head.len() + length].split_at(head.len() + early);
    let expected = match body {
        (framed, Framing::Chunked) => without_chunks(framed),
        (bytes, Framing::Length(_)) => bytes.to_vec(),
    };
    assert_eq!(RUNTIME.block_on(read(first, later, head)), expected, "{}", input.escape_ascii());
}

/// Bytes of a body that has come whole.
fn body_length(rest: &[u8], framing: Framing) -> Option<usize> {
    match framing {
        Framing::Length(length) => {
            usize::try_from(length).ok().filter(|length| *length <= rest.len())
        }
        Framing::Chunked => {
            let mut body = Chunked::new();
            body.follow(rest).ok().filter(|_| body.is_over())
        }
    }
}

/// Has pingora read a request as the edge hands it over; returns the body.
async fn read(first: &[u8], later: &[u8], head: &[u8]) -> Vec<u8> {
    let mut session = HttpSession::new(Box::new(Cursor::new(later.to_vec())));
    session.set_pipelined_prefix(BytesMut::from(first));
    let read = session.read_request().await.expect("pingora takes the head too");
    assert!(read.is_some());
    check_head(&session, head);
    let mut body = Vec::new();
    while let Some(bytes) = session.read_body_bytes().await.expect("pingora takes the body too") {
        body.extend_from_slice(&bytes);
    }
    body
}

fn check_head(session: &HttpSession, head: &[u8]) {
    let text = head.strip_prefix(b"\r\n").unwrap_or(head);
    let mut lines = text.split(|b| *b == b'\n').map(|line| line.trim_ascii_end());
    let words: Vec<&[u8]> = lines.next().unwrap_or_default().split(|b| *b == b' ').collect();
    let request = session.req_header();
    assert_eq!(words[..2], [request.method.as_str().as_bytes(), request.raw_path()]);

    let fields: Vec<(&[u8], &[u8])> = lines
        .take_while(|line| !line.is_empty())
        .map(|line| {
            let colon = line.iter().position(|b| *b == b':').expect("a field");
            (&line[..colon], line[colon + 1..].trim_ascii())
        })
        .collect();
    assert_eq!(request.headers.len(), fields.len());
    for name in request.headers.keys() {
        let sent = fields.iter().filter(|(sent, _)| sent.eq_ignore_ascii_case(name.as_ref()));
        let read = request.headers.get_all(name).iter().map(HeaderValue::as_bytes);
        assert!(read.map(<[u8]>::trim_ascii).eq(sent.map(|(_, value)| *value)), "{name}");
    }
}

fn without_chunks(mut framed: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let digits: String =
            framed.iter().map(|b| char::from(*b)).take_while(char::is_ascii_hexdigit).collect();
        let size = usize::from_str_radix(&digits, 16).expect("a size");
        if size == 0 {
            return body;
        }
        let data = framed.iter().position(|b| *b == b'\n').expect("a line") + 1;
        body.extend_from_slice(&framed[data..data + size]);
        framed = &framed[data + size + 2..];
    }
}
