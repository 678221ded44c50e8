//! State that another process gives is taken as it says, or refused; nothing in it locks anybody
//! out for longer than this process could have.
//!
//! The first byte of an input chooses of what the rest is the state: the rate of an app, the rate
//! of users or addresses, records, keys of tickets, or codes; or which question it is: an operation
//! on a record, or one about a code. Fields are read here anew.

#![cfg_attr(fuzzing, no_main)]

use std::num::NonZeroU32;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::server::ProducesTickets;
use wxgate::clock::Clock;
use wxgate::config::Rate;
use wxgate::fuzzing::state::{
    AppRateLimit, MemoryRecords, Operation, Outcome, OwnedRecords, RateLimit, RecordKind,
    SentCodes, TicketKeys,
};
use wxgate::handover::claims::{CodeKind, Wanted};
use wxgate::handover::peer::Peer;

/// Three in six seconds.
const COUNT: u32 = 3;
const PERIOD: Duration = Duration::from_secs(6);

/// What the clock shows, in milliseconds.
const NOW: u64 = 1_000_000;

const MINUTE: Duration = Duration::from_secs(60);
const TEN_MINUTES: Duration = Duration::from_secs(600);

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    match choice % 7 {
        0 => check_app_rate(rest),
        1 => check_rate(rest),
        2 => check_records(rest),
        3 => check_tickets(rest),
        4 => check_codes(rest),
        5 => check_operation(rest),
        _ => check_wanted(rest),
    }
}

fn clock() -> Clock {
    let clock = Clock::manual();
    clock.advance(Duration::from_millis(NOW));
    clock
}

fn rate() -> Rate {
    Rate { count: NonZeroU32::new(COUNT).expect("not zero"), period: PERIOD }
}

fn check_app_rate(state: &[u8]) {
    let is_legal = fields(state).is_some_and(|fields| {
        let are_numbers =
            fields.iter().all(|(number, value)| !(1..=6).contains(number) || value.len() == 8);
        let count = number(&fields, 1).unwrap_or(1);
        let most = u32::try_from(count).map(|count| f64::from(count.max(1)));
        let bucket = number(&fields, 3).map(f64::from_bits);
        let is_in_range = |bucket| most.is_ok_and(|most| bucket >= 0.0 && bucket <= most);
        are_numbers && bucket.is_some_and(is_in_range) && number(&fields, 4).is_some()
    });
    let clock = clock();
    let limit = AppRateLimit::carried_over(None, Some(rate()), &clock);
    assert_eq!(limit.import(state).is_ok(), is_legal);
    while limit.check().is_ok() {}
    drop(limit.admit_call());
    // The longest time without quota, and half of the rate after that.
    clock.advance(MINUTE);
    assert_eq!((limit.check(), limit.admit_call()), (Ok(()), Ok(())));
}

fn check_rate(state: &[u8]) {
    let number =
        |fields: &Fields, name| last(fields, name)?.try_into().ok().map(u64::from_be_bytes);
    let own = [u64::from(COUNT), PERIOD.as_nanos() as u64, 1000];
    let expected = fields(state).and_then(|fields| {
        let given = [number(&fields, 1)?, number(&fields, 2)?, number(&fields, 3)?];
        let is_legal = last(&fields, 4)?.len() == 16 && last(&fields, 5)?.len() % 16 == 0;
        is_legal.then_some(given == own)
    });
    let clock = clock();
    let limit = RateLimit::new(rate(), 1000, clock.clone());
    assert_eq!(limit.import(state).ok(), expected);
    // The next process takes the same.
    let next = RateLimit::new(rate(), 1000, clock.clone());
    for piece in exported_rate(&limit) {
        assert_eq!(next.import(&piece), Ok(true));
    }
    assert_eq!(buckets(&next), buckets(&limit));
    for client in 0..=COUNT {
        let outcomes = [0; COUNT as usize + 1].map(|_| limit.check(&client).is_ok());
        assert_eq!(outcomes.iter().filter(|is_allowed| **is_allowed).count(), COUNT as usize);
    }
}

fn exported_rate(limit: &RateLimit) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    limit.export(|piece| pieces.push(piece.as_bytes().to_vec()));
    pieces
}

/// The buckets that are not full, sorted. One that was given twice lacks both; the next process
/// takes as much as one can lack.
fn buckets(limit: &RateLimit) -> Vec<(Vec<u8>, u64)> {
    let mut buckets = Vec::new();
    for piece in exported_rate(limit) {
        let fields = fields(&piece).expect("a list");
        let (own, []) = last(&fields, 5).expect("one").as_chunks::<16>() else { panic!("a rest") };
        buckets.extend(own.iter().map(|bucket| {
            let full_at = u64::from_be_bytes(bucket[8..].try_into().expect("eight"));
            (bucket[..8].to_vec(), full_at.min(NOW * 1_000_000 + PERIOD.as_nanos() as u64))
        }));
    }
    buckets.sort();
    buckets
}

const KINDS: [RecordKind; 3] = [RecordKind::Callback, RecordKind::Ticket, RecordKind::Scan];

/// A record in a piece: its kind, digest and value, and when it ends.
type Given = (RecordKind, [u8; 32], Vec<u8>, u64);

fn check_records(piece: &[u8]) {
    let clock = clock();
    let records = MemoryRecords::new(clock.clone());
    let (given, is_legal) = given_records(piece);
    // Memory is freed in real time, so a short life may be over before it is looked for.
    let minute = NOW + MINUTE.as_millis() as u64;
    if given.iter().any(|record| (NOW + 1..minute).contains(&record.3)) {
        return;
    }
    assert_eq!(records.import(piece).is_ok(), is_legal);
    for (at, (kind, digest, value, ends_at)) in given.iter().enumerate() {
        let is_same = |later: &Given| (later.0, later.1) == (*kind, *digest);
        if given[at + 1..].iter().any(is_same) {
            continue;
        }
        let found = records.get(*kind, digest).map(|record| record.value.to_vec());
        assert_eq!(found, (NOW < *ends_at).then(|| value.clone()));
    }
    let next = MemoryRecords::new(clock.clone());
    for piece in exported_records(&records) {
        next.import(&piece).expect("as it was exported");
    }
    assert_eq!(parts(&next), parts(&records));
}

fn exported_records(records: &MemoryRecords) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    records.export(|piece| pieces.push(piece.as_bytes().to_vec()));
    pieces
}

/// All records and counts, sorted.
fn parts(records: &MemoryRecords) -> Vec<(u32, Vec<u8>)> {
    let pieces = exported_records(records);
    let mut parts: Vec<_> =
        pieces.iter().flat_map(|piece| fields(piece).expect("a list")).collect();
    parts.sort();
    parts
}

/// The records of a piece until the first malformed part, and whether there is none.
fn given_records(mut piece: &[u8]) -> (Vec<Given>, bool) {
    let mut given = Vec::new();
    while !piece.is_empty() {
        let Some((number, value)) = take_field(&mut piece) else { return (given, false) };
        if number == 1 || number == 2 {
            match given_record(number == 2, value) {
                Some(record) => given.extend(record),
                None => return (given, false),
            }
        }
    }
    (given, true)
}

/// The inner `None` is one of an unknown kind, or a count.
fn given_record(is_count: bool, list: &[u8]) -> Option<Option<Given>> {
    let fields = fields(list)?;
    let eight = |name| Some(u64::from_be_bytes(last(&fields, name)?.try_into().ok()?));
    let &[kind] = last(&fields, 1)? else { return None };
    let (digest, ends_at) = (last(&fields, 2)?.try_into().ok()?, eight(5)?);
    let Some(kind) = KINDS.get(usize::from(kind).wrapping_sub(1)) else { return Some(None) };
    if is_count {
        is_id(last(&fields, 6)?).then_some(())?;
        is_id(last(&fields, 7)?).then_some(())?;
        return Some(None);
    }
    eight(4)?;
    Some(Some((*kind, digest, last(&fields, 3)?.to_vec(), ends_at)))
}

fn is_id(value: &[u8]) -> bool {
    let is_legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    (1..=128).contains(&value.len()) && value.iter().all(is_legal)
}

fn check_tickets(state: &[u8]) {
    let is_key = |value: &[u8]| {
        fields(value).is_some_and(|fields| {
            [(1, 16), (2, 32), (3, 8)].iter().all(|(name, length)| {
                last(&fields, *name).is_some_and(|value| value.len() == *length)
            })
        })
    };
    let is_legal = fields(state).is_some_and(|fields| {
        let are_keys =
            fields.iter().all(|(number, value)| !(1..=2).contains(number) || is_key(value));
        let rotates = last(&fields, 3).is_some_and(|value| value.len() == 8);
        are_keys && last(&fields, 1).is_some() && rotates
    });
    let clock = clock();
    let keys = TicketKeys::new(clock.clone()).expect("random bytes");
    let before = keys.encrypt(b"before").expect("a ticket");
    assert_eq!(keys.import(state).is_ok(), is_legal);
    if !is_legal {
        assert_eq!(keys.decrypt(&before).as_deref(), Some(&b"before"[..]));
    }
    let ticket = keys.encrypt(b"session").expect("a ticket");
    let next = TicketKeys::new(clock.clone()).expect("random bytes");
    next.import(keys.export().as_bytes()).expect("as it was exported");
    for keys in [&keys, &next] {
        assert_eq!(keys.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
    }
    // Twice the time that a key makes tickets.
    clock.advance(Duration::from_secs(12 * 60 * 60));
    assert_eq!(keys.decrypt(&ticket), None);
}

fn check_codes(piece: &[u8]) {
    let clock = clock();
    let codes = SentCodes::new(CodeKind::PhoneNumber, Peer::default(), clock.clone());
    let mut given: Vec<(&[u8], u64)> = Vec::new();
    let mut rest = piece;
    let mut is_legal = true;
    while is_legal && !rest.is_empty() {
        match take_field(&mut rest) {
            Some((1, value)) if value.len() % 40 == 0 => {
                let code = |code: &[u8]| u64::from_be_bytes(code[32..].try_into().expect("eight"));
                let all = value.chunks(40).map(|bytes| (&bytes[..32], code(bytes)));
                given.extend(all);
            }
            Some((1, _)) | None => is_legal = false,
            Some(_) => {}
        }
    }
    assert_eq!(codes.import(piece).is_ok(), is_legal);
    let digests: Vec<[u8; 32]> = given.iter().map(|code| code.0.try_into().expect("32")).collect();
    for (digest, until) in digests.iter().zip(given.iter().map(|code| code.1)) {
        // The first one is known; a later one with the same digest may end earlier.
        let is_first = digests.iter().position(|other| other == digest)
            == given.iter().position(|code| code.0 == digest && code.1 == until);
        if is_first && until > NOW {
            assert!(codes.add(*digest).is_err());
        }
    }
    clock.advance(TEN_MINUTES);
    let unique: std::collections::BTreeSet<_> = digests.into_iter().collect();
    assert!(unique.into_iter().all(|digest| codes.add(digest).is_ok()));
}

fn check_operation(question: &[u8]) {
    let operation = Operation::decode(question);
    let written = operation.as_ref().map(|operation| operation.encode().as_bytes().to_vec());
    if let Some(written) = &written {
        let again = Operation::decode(written).expect("as it was encoded");
        assert_eq!(again.encode().as_bytes(), &written[..]);
    }
    let records = OwnedRecords::new(clock(), Peer::default());
    // The second time it may find what the first has done.
    for _ in 0..2 {
        let answer = ready(records.answer(question));
        assert_eq!(Outcome::decode(&answer).is_some(), written.is_some());
        assert_eq!(answer.is_empty(), written.is_none());
    }
    drop(Outcome::decode(question));
}

fn check_wanted(question: &[u8]) {
    let expected = fields(question).and_then(|fields| {
        let &[kind] = last(&fields, 1)? else { return None };
        let digest: [u8; 32] = last(&fields, 2)?.try_into().ok()?;
        (last(&fields, 3)?.len() == 16).then_some((kind, digest))
    });
    let found = Wanted::parse(question);
    assert_eq!(found.as_ref().map(|wanted| wanted.digest), expected.map(|(_, digest)| digest));
    let Some((wanted, (kind, digest))) = found.zip(expected) else { return };
    let known = [CodeKind::Login, CodeKind::PhoneNumber];
    let known = known.into_iter().find(|known| *known as u8 == kind);
    assert_eq!(wanted.kind, known);
    // Whoever asks first has the code.
    let codes = SentCodes::new(CodeKind::PhoneNumber, Peer::default(), clock());
    assert!(codes.give(&wanted));
    assert!(codes.add(digest).is_err());
    codes.forget(&digest);
    assert!(codes.add(digest).is_ok());
}

/// Numbers and values.
type Fields = Vec<(u32, Vec<u8>)>;

/// `None` if the list is malformed.
fn fields(mut list: &[u8]) -> Option<Fields> {
    let mut fields = Vec::new();
    while !list.is_empty() {
        let (number, value) = take_field(&mut list)?;
        fields.push((number, value.to_vec()));
    }
    Some(fields)
}

fn take_field<'a>(list: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    let number = varint(list)?;
    let length = varint(list)? as usize;
    if length > list.len() {
        return None;
    }
    let (value, rest) = list.split_at(length);
    *list = rest;
    Some((number, value))
}

/// LEB128 of 32 bits.
fn varint(list: &mut &[u8]) -> Option<u32> {
    let last = list.iter().position(|byte| *byte < 0x80).filter(|last| *last < 5)?;
    let (digits, rest) = list.split_at(last + 1);
    *list = rest;
    let value = digits.iter().rev().fold(0_u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    u32::try_from(value).ok()
}

/// A field that is there twice has its last value.
fn last(fields: &Fields, name: u32) -> Option<&[u8]> {
    fields.iter().rfind(|(number, _)| *number == name).map(|(_, value)| value.as_slice())
}

fn number(fields: &Fields, name: u32) -> Option<u64> {
    Some(u64::from_be_bytes(last(fields, name)?.try_into().ok()?))
}

/// Nothing here waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}
