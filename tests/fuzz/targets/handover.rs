//! What a process reads from another during an upgrade.
//!
//! The first byte of an input chooses what the rest is: frames (the byte also says in which pieces
//! they arrive), or the body of one frame. Bytes are never read in another way than by the simple
//! parser here, and memory grows only with what has arrived.

#![cfg_attr(fuzzing, no_main)]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use wxgate::fuzzing::upgrade::{Event, Hello, Incoming, Kind, LONGEST, Welcome, common_version};
use wxgate::fuzzing::upgrade::{count_of_sockets, refusal};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    match choice {
        0..=127 => check_frames(usize::from(*choice) + 1, rest),
        128 => check_hello(rest),
        129 => check_welcome(rest),
        130 => {
            let text = fields(rest).filter(|fields| is_text(fields, 1)).and_then(|fields| {
                last(&fields, 1).map(|text| String::from_utf8(text.to_vec()).unwrap())
            });
            assert_eq!(refusal(rest).ok(), text);
        }
        131 => {
            let numbers = fields(rest).and_then(|fields| {
                let (count, more) = (number(&fields, 1)?, number(&fields, 2)?);
                Some((count?, more? != 0))
            });
            assert_eq!(count_of_sockets(rest).ok(), numbers);
        }
        _ => {
            let kinds = [Kind::Question, Kind::Answer, Kind::Control, Kind::Bulk, Kind::Credit];
            let kind = kinds[usize::from(*choice) % kinds.len()];
            check_event(kind, rest);
        }
    }
}

/// The frames until the first that is impossible, and whether there is one.
fn frames(mut bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, bool) {
    let mut frames = Vec::new();
    while let [a, b, c, d, kind, rest @ ..] = bytes {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        if length > LONGEST || !matches!(kind, 1..=5 | 16..=20 | 128..) {
            return (frames, true);
        }
        if rest.len() < length {
            break;
        }
        if *kind < 128 {
            frames.push((*kind, rest[..length].to_vec()));
        }
        bytes = &rest[length..];
    }
    (frames, false)
}

fn check_frames(size: usize, bytes: &[u8]) {
    let (expected, is_malformed) = frames(bytes);
    let mut incoming = Incoming::default();
    let mut found = Vec::new();
    for mut piece in bytes.chunks(size) {
        while !piece.is_empty() {
            ready(incoming.read_from(&mut piece)).expect("a slice does not fail");
        }
        loop {
            match incoming.take_frame() {
                Ok(Some((kind, body))) => {
                    found.push((kind as u8, body.to_vec()));
                    drop(Event::decode(kind, body));
                }
                Ok(None) => break,
                Err(_) => {
                    assert!(is_malformed);
                    assert_eq!(found, expected);
                    return;
                }
            }
        }
        assert!(incoming.capacity() <= 3 * bytes.len() + (256 << 10));
    }
    assert!(!is_malformed);
    assert_eq!(found, expected);
}

fn check_hello(body: &[u8]) {
    let found = Hello::decode(body).ok();
    let expected = fields(body).filter(|fields| is_text(fields, 3)).and_then(|fields| {
        let (oldest, newest) = (number(&fields, 1)?, number(&fields, 2)?);
        last(&fields, 3)?;
        Some((oldest?, newest?))
    });
    assert_eq!(found.as_ref().map(|hello| hello.versions.clone().into_inner()), expected);
    let Some(hello) = found else { return };
    assert_eq!(Hello::decode(hello.encode().as_bytes()).unwrap(), hello);
    // The newest version that both know.
    for own in [0..=0, 1..=1, 1..=9, 3..=5] {
        let common = own.clone().rev().find(|version| hello.versions.contains(version));
        assert_eq!(common_version(&own, &hello.versions), common);
    }
}

fn check_welcome(body: &[u8]) {
    let found = Welcome::decode(body).ok();
    let is_key = |field: &(u32, Vec<u8>)| field.0 != 4 || field.1.len() == 32;
    let is_valid = |fields: &Vec<(u32, Vec<u8>)>| is_text(fields, 2) && fields.iter().all(is_key);
    let expected = fields(body).filter(is_valid).and_then(|fields| {
        let all = [1, 3, 5].map(|name| number(&fields, name));
        last(&fields, 2)?;
        let key = last(&fields, 4)?.to_vec();
        let [version, clock, shared] = all;
        // An older program does not say these.
        let idle_timeout = number(&fields, 6)?;
        let sessions = number(&fields, 7)?.unwrap_or_default();
        Some((version??, clock??, key, shared?? != 0, idle_timeout, sessions))
    });
    let numbers = |welcome: &Welcome| {
        let nanoseconds = u64::try_from(welcome.clock_offset.as_nanos()).unwrap();
        let key = welcome.state_key.expose().to_vec();
        let idle_timeout =
            welcome.idle_timeout.map(|time| u64::try_from(time.as_millis()).unwrap());
        let (shared, sessions) = (welcome.has_shared_store, welcome.sessions);
        (welcome.version, nanoseconds, key, shared, idle_timeout, sessions)
    };
    assert_eq!(found.as_ref().map(numbers), expected);
    if let Some(welcome) = found {
        assert_eq!(Welcome::decode(welcome.encode().as_bytes()).unwrap(), welcome);
    }
}

fn check_event(kind: Kind, body: &[u8]) {
    let found = Event::decode(kind, body).ok();
    let expected = fields(body).and_then(|fields| {
        let (first, fourth) = (number(&fields, 1)?, number(&fields, 4)?);
        let is_byte = |field: &(u32, Vec<u8>)| field.0 != 2 || field.1.len() == 1;
        if !fields.iter().all(is_byte) {
            return None;
        }
        let (code, bytes) = (last(&fields, 2).map(|code| code[0]), last(&fields, 3));
        Some(match kind {
            Kind::Question => (first?, code?, bytes?.to_vec(), false),
            Kind::Answer => (first?, 0, bytes?.to_vec(), false),
            Kind::Control => (0, code?, bytes?.to_vec(), false),
            Kind::Bulk => (0, code?, bytes?.to_vec(), fourth? != 0),
            _ => (first?, 0, Vec::new(), false),
        })
    });
    let found = found.map(|event| match event {
        Event::Question { number, topic, body } => (number, topic, body, false),
        Event::Answer { number, body } => (number, 0, body, false),
        Event::Control(message) => (0, message.kind, message.body.to_vec(), false),
        Event::Piece { part, has_more } => (0, part.kind, part.body.to_vec(), has_more),
        Event::Credit(pieces) => (pieces, 0, Vec::new(), false),
    });
    assert_eq!(found, expected);
}

/// Numbers and values; `None` if the list is malformed.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u32, Vec<u8>)>> {
    fn varint(bytes: &mut &[u8]) -> Option<u32> {
        let length = bytes.iter().position(|byte| byte & 0x80 == 0)? + 1;
        let (digits, rest) = bytes.split_at(length);
        *bytes = rest;
        let digits = digits.iter().rev();
        let value = digits.fold(0_u128, |value, byte| value << 7 | u128::from(byte & 0x7f));
        (length <= 5).then(|| u32::try_from(value).ok())?
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let number = varint(&mut bytes)?;
        let length = varint(&mut bytes)? as usize;
        if length > bytes.len() {
            return None;
        }
        fields.push((number, bytes[..length].to_vec()));
        bytes = &bytes[length..];
    }
    Some(fields)
}

/// A field that is there twice has its last value.
fn last(fields: &[(u32, Vec<u8>)], name: u32) -> Option<&[u8]> {
    fields.iter().rfind(|(number, _)| *number == name).map(|(_, value)| value.as_slice())
}

/// Outside: `None` if a field of this number has not eight bytes. Inside: if there is none.
fn number(fields: &[(u32, Vec<u8>)], name: u32) -> Option<Option<u64>> {
    let mut found = None;
    for (_, value) in fields.iter().filter(|(number, _)| *number == name) {
        found = Some(u64::from_be_bytes(value.as_slice().try_into().ok()?));
    }
    Some(found)
}

fn is_text(fields: &[(u32, Vec<u8>)], name: u32) -> bool {
    let mut values = fields.iter().filter(|(number, _)| *number == name);
    values.all(|(_, value)| std::str::from_utf8(value).is_ok())
}

/// Nothing here waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a slice does not wait"),
    }
}
