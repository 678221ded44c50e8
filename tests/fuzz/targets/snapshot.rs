//! A snapshot gives back what was written in it, or fails; so does the list of an entry or a change.
//!
//! The first byte of an input chooses what the rest is: the list of an entry or a change, or the
//! script of one; what is in the chunks of a file, which are sealed here anew; or what happens to a
//! file that was written, before it is read. Lists, entries and counts are read here anew.

#![cfg_attr(fuzzing, no_main)]

use wxgate::fuzzing::session::{
    AppIds, Change, Entry, Facts, FileKey, Purpose, SnapshotReader, SnapshotWriter,
};
use wxgate::handover::fields::Writer;
use wxgate::identity::secret::SealKey;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const ID: [u8; 32] = *b"0123456789abcdef0123456789abcdef";

/// The last byte of what belongs to a chunk is its flags.
const FINAL: u8 = 1;

/// A kind; the fields that it needs, may have, and may have several times.
type Kind = (u8, &'static [u64], &'static [u64], &'static [u64]);

const ENTRIES: [Kind; 3] = [
    (1, &[2, 3, 4, 7, 8, 9, 10], &[5, 6], &[]),
    (2, &[3, 4, 9], &[6], &[]),
    (3, &[3, 4], &[], &[11]),
];

const CHANGES: [Kind; 8] = [
    (11, &[2], &[], &[]),
    (12, &[3, 4, 9], &[6], &[]),
    (13, &[3, 4], &[], &[]),
    (14, &[2, 3, 4, 7, 8, 9, 10], &[5, 6, 11], &[]),
    (15, &[3, 4, 11], &[], &[]),
    (16, &[], &[], &[12]),
    (17, &[], &[], &[]),
    (18, &[2], &[], &[]),
];

/// Fields, sorted by their numbers.
type Fields = Vec<(u64, Vec<u8>)>;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    match choice % 4 {
        0 => drop(check_list(rest)),
        1 => drop(check_list(&compose(rest))),
        2 => check_chunks(choice >> 2, rest),
        _ => check_damage(rest),
    }
}

/// The outer `None` is an error, and the inner an unknown kind.
fn check_list(list: &[u8]) -> Option<Option<Fields>> {
    let entry = Entry::decode(list, &mut AppIds::default());
    let entry = entry.ok().map(|entry| entry.map(|entry| written(|list| entry.encode(list))));
    let expected = expected(list, &ENTRIES);
    assert_eq!(entry, expected, "as an entry");
    let change = Change::decode(list, &mut AppIds::default());
    let change = change.ok().map(|change| change.map(|change| written(|list| change.encode(list))));
    assert_eq!(change, self::expected(list, &CHANGES), "as a change");
    expected
}

fn written(encode: impl Fn(&mut Writer)) -> Fields {
    let mut list = Writer::new();
    encode(&mut list);
    let mut fields = fields(list.as_bytes()).expect("a list");
    fields.sort_by_key(|(number, _)| *number);
    fields
}

/// What is written of a list that was read.
fn expected(list: &[u8], kinds: &[Kind]) -> Option<Option<Fields>> {
    // What follows an unknown kind may be anything.
    let (first, after) = first_field(list)?;
    let (1, &[kind]) = first else { return None };
    let Some((_, needed, optional, several)) = kinds.iter().find(|known| known.0 == kind) else {
        return Some(None);
    };
    let mut found = fields(after)?;
    let count = |number: u64| found.iter().filter(|field| field.0 == number).count();
    let is_single =
        |number: u64| number <= 10 || needed.contains(&number) || optional.contains(&number);
    let is_legal = found.iter().all(|(number, value)| is_legal(*number, value))
        && needed.iter().all(|number| count(*number) == 1)
        && (1..=12).all(|number| !is_single(number) || count(number) <= 1);
    if !is_legal {
        return None;
    }
    found
        .retain(|(number, _)| [needed, optional, several].iter().any(|some| some.contains(number)));
    found.push((1, vec![kind]));
    found.sort_by_key(|(number, _)| *number);
    Some(Some(found))
}

fn is_legal(number: u64, value: &[u8]) -> bool {
    let is_id = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    match number {
        1 => false,
        2 => value.len() == 32,
        3..=5 => (1..=128).contains(&value.len()) && value.iter().all(is_id),
        6 => (1..=256).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic),
        7 => [4, 16].contains(&value.len()),
        8..=10 => value.len() == 8,
        11 => value.len() == 24,
        12 => value.len() == 40,
        _ => true,
    }
}

fn fields(mut list: &[u8]) -> Option<Fields> {
    let mut fields = Vec::new();
    while !list.is_empty() {
        let ((number, value), rest) = first_field(list)?;
        fields.push((number, value.to_vec()));
        list = rest;
    }
    Some(fields)
}

/// A number and a value.
type RawField<'a> = (u64, &'a [u8]);

fn first_field(list: &[u8]) -> Option<(RawField<'_>, &[u8])> {
    let (number, rest) = varint(list)?;
    let (length, rest) = varint(rest)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= rest.len())?;
    let (value, rest) = rest.split_at(length);
    Some(((number, value), rest))
}

/// LEB128 of 32 bits.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let last = bytes.iter().position(|byte| *byte < 0x80).filter(|last| *last < 5)?;
    let (digits, rest) = bytes.split_at(last + 1);
    let value = digits.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
    (value <= u64::from(u32::MAX)).then_some((value, rest))
}

fn put(list: &mut Vec<u8>, number: u8, value: &[u8]) {
    list.push(number);
    list.extend([value.len() as u8 & 0x7f | 0x80, (value.len() >> 7) as u8]);
    list.extend(value);
}

/// A list from a script: a kind, then for each field a byte that says its number and its length,
/// and one that it consists of.
fn compose(script: &[u8]) -> Vec<u8> {
    let mut list = Vec::new();
    let Some((kind, steps)) = script.split_first() else { return list };
    put(&mut list, 1, &[*kind]);
    for step in steps.chunks(2) {
        let (number, more) = (step[0] & 15, usize::from(step[0] >> 4));
        let length = match number {
            2 => 32,
            3..=6 => more,
            7 => {
                if more % 2 == 0 {
                    4
                } else {
                    16
                }
            }
            8..=10 => 8,
            11 => 24,
            12 => 40,
            _ => more,
        };
        let length = if more == 15 { length + 1 } else { length };
        put(&mut list, number, &vec![*step.get(1).unwrap_or(&b'a'); length]);
    }
    list
}

/// The first chunk, some with entries, and the last.
fn check_chunks(choice: u8, rest: &[u8]) {
    let is = |bit: u8| choice & bit != 0;
    let mut texts: Vec<Vec<u8>> = rest.split(|byte| *byte == 0xff).map(<[u8]>::to_vec).collect();
    let facts = if is(1) { texts.remove(0) } else { facts() };
    let end = if is(2) { texts.pop() } else { None };
    if is(4) {
        // Scripts of entries.
        for text in &mut texts {
            let mut list = Vec::new();
            for script in text.split(|byte| *byte == 0xfe) {
                put(&mut list, 1, &compose(script));
            }
            *text = list;
        }
    }
    let entries = entries_of(&texts);
    let mut counts = [0, 0, 0, texts.len() as u64 + 1];
    for entry in entries.iter().flatten() {
        counts[usize::from(entry[0].1[0]) - 1] += 1;
    }
    let end = end.unwrap_or_else(|| {
        let mut list = Vec::new();
        for (number, count) in (1..).zip(counts) {
            put(&mut list, number, &u64::to_be_bytes(count));
        }
        list
    });

    let mut file = header();
    let key = SealKey::parse(KEY).expect("a key");
    let key = FileKey::derive(&key, Purpose::Snapshot, &ID).expect("a key");
    let chunks = [&[facts.clone()][..], &texts, std::slice::from_ref(&end)].concat();
    for (number, text) in chunks.iter().enumerate() {
        let flags = if number == chunks.len() - 1 { FINAL } else { 0 };
        let mut sealed = text.clone();
        let associated = [&header()[..], &[flags]].concat();
        key.seal(number as u64, &associated, &mut sealed).expect("small");
        file.extend((sealed.len() as u32).to_be_bytes());
        file.push(flags);
        file.extend(sealed);
    }
    if is(8) {
        file.push(0);
    }

    let is_whole = are_facts(&facts) && numbers(&end) == Some(counts.map(Some)) && !is(8);
    assert_eq!(read(&file), entries.filter(|_| is_whole));
}

fn header() -> Vec<u8> {
    [&b"WXGATESN\x01"[..], &ID].concat()
}

fn facts() -> Vec<u8> {
    let mut list = Vec::new();
    put(&mut list, 1, &[0; 8]);
    put(&mut list, 2, &[0; 8]);
    put(&mut list, 3, b"boot");
    put(&mut list, 4, &[0; 8]);
    list
}

fn are_facts(list: &[u8]) -> bool {
    let Some(fields) = fields(list) else { return false };
    let has_legal = |wanted: u64| {
        let is_legal = |value: &[u8]| match wanted {
            3 => std::str::from_utf8(value).is_ok(),
            _ => value.len() == 8,
        };
        let mut values = fields.iter().filter(|(number, _)| *number == wanted).peekable();
        // An older program has not written the fifth.
        (wanted == 5 || values.peek().is_some()) && values.all(|(_, value)| is_legal(value))
    };
    (1..=5).all(has_legal)
}

/// The numbers one to four of a list; of each the last.
fn numbers(list: &[u8]) -> Option<[Option<u64>; 4]> {
    let mut numbers = [None; 4];
    for (number, value) in fields(list)? {
        if let 1..=4 = number {
            numbers[number as usize - 1] = Some(u64::from_be_bytes(value.try_into().ok()?));
        }
    }
    Some(numbers)
}

fn entries_of(texts: &[Vec<u8>]) -> Option<Vec<Fields>> {
    let mut entries = Vec::new();
    for text in texts {
        for (number, value) in fields(text)? {
            if number == 1 {
                entries.extend(check_list(&value)?);
            }
        }
    }
    Some(entries)
}

fn read(file: &[u8]) -> Option<Vec<Fields>> {
    let keys = [SealKey::parse(KEY).expect("a key")];
    let chunks = SnapshotReader::open(file, &keys).ok()?.read(Vec::push).ok()?;
    Some(chunks.flatten().map(|entry| written(|list| entry.encode(list))).collect())
}

/// Each three bytes of the script change a written file; what is left over is appended.
fn check_damage(script: &[u8]) {
    let keys = [SealKey::parse(KEY).expect("a key")];
    let scripts: [&[u8]; 3] = [
        b"\x01\x02a\x13a\x14a\x07a\x08a\x09a\x0aa",
        b"\x02\x13a\x14a\x09a",
        b"\x03\x13a\x14a\x0ba\x0bb",
    ];
    let lists = scripts.map(compose);
    let facts = Facts::decode(&facts()).expect("facts");
    let mut writer = SnapshotWriter::new(Vec::new(), &keys, ID, &facts).expect("a key");
    for list in &lists {
        let entry = Entry::decode(list, &mut AppIds::default()).expect("legal").expect("known");
        writer.write(&entry).expect("in memory");
    }
    let (whole, _) = writer.finish().expect("in memory");
    let mut file = whole.clone();
    let mut steps = script.chunks_exact(3);
    for step in &mut steps {
        let at = usize::from(step[1]) << 4 | usize::from(step[0] >> 4);
        match step[0] & 15 {
            0 => file.truncate(at),
            1 if at < file.len() => drop(file.remove(at)),
            2 if at <= file.len() => file.insert(at, step[2]),
            3 if at <= file.len() => file.extend_from_within(at..),
            4 => file = [&whole[..at.min(whole.len())], &file[at.min(file.len())..]].concat(),
            _ if at < file.len() => file[at] = step[2],
            _ => {}
        }
        file.truncate(1 << 14);
    }
    file.extend(steps.remainder());
    let expected = (file == whole).then(|| {
        let fields = |list: &Vec<u8>| expected(list, &ENTRIES).flatten().expect("legal");
        lists.iter().map(fields).collect()
    });
    assert_eq!(read(&file), expected);
}
