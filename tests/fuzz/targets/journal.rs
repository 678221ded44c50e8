//! A journal gives back every change that was written, or fails; only a torn last record is ignored.
//!
//! The first byte of an input chooses what the rest is: what is in the records of a journal, which
//! is written here; or what happens to a journal of four records before it is read. Records are
//! read, and what is torn is told from what is damaged, here anew.

#![cfg_attr(fuzzing, no_main)]

use wxgate::fuzzing::session::{AppIds, Change, LoadedJournal, sealed_journal};
use wxgate::handover::fields::Writer;
use wxgate::identity::secret::SealKey;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const SALT: [u8; 32] = *b"0123456789abcdef0123456789abcdef";
const SNAPSHOTS: [[u8; 32]; 2] = [[b'a'; 32], [b'b'; 32]];

/// Before the first record, and before the contents of each.
const FILE_HEADER: usize = 8 + 1 + 32;
const HEADER: usize = 4 + 8 + 4;
const BLOCK: usize = 512;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    match choice % 2 {
        0 => check_contents(choice >> 1, rest),
        _ => check_damage(choice >> 1, rest),
    }
}

fn key() -> SealKey {
    SealKey::parse(KEY).expect("a key")
}

fn seal(records: &[Vec<u8>]) -> Vec<u8> {
    sealed_journal(&key(), SALT, records).expect("short records")
}

/// The changes since each of the snapshots, and since none. The outer `None`: it is not loaded.
type Found = Option<[Option<Vec<Vec<u8>>>; 3]>;

fn read(file: &[u8]) -> Found {
    let load = || LoadedJournal::read(file, file.len() as u64, &[key()]).ok();
    load()?;
    Some([Some(SNAPSHOTS[0]), Some(SNAPSHOTS[1]), None].map(|snapshot| {
        let changes = load().expect("the same file").since(snapshot).ok()?;
        Some(changes.iter().map(written).collect())
    }))
}

fn written(change: &Change) -> Vec<u8> {
    let mut list = Writer::new();
    change.encode(&mut list);
    list.as_bytes().to_vec()
}

/// Records are between bytes 0xff, as they are or as scripts: a byte for each field.
fn check_contents(choice: u8, rest: &[u8]) {
    let mut records: Vec<Vec<u8>> = rest.split(|byte| *byte == 0xff).map(<[u8]>::to_vec).collect();
    if choice & 1 != 0 {
        records.iter_mut().for_each(|record| *record = compose(record));
    }
    if choice & 2 != 0 {
        records.insert(0, compose(b"fa"));
    }
    assert_eq!(read(&seal(&records)), expected(&records));
}

fn compose(script: &[u8]) -> Vec<u8> {
    let mut list = Vec::new();
    for step in script {
        match step {
            b'a' => put(&mut list, 1, &SNAPSHOTS[0]),
            b'b' => put(&mut list, 1, &SNAPSHOTS[1]),
            b'n' => put(&mut list, 1, &[]),
            b's' => put(&mut list, 1, &[1; 31]),
            b'f' => put(&mut list, 2, &facts()),
            b'u' => put(&mut list, 3, &[1, 1, 200]),
            b'm' => put(&mut list, 3, &[1, 1, 11]),
            byte if *byte < 0x60 => put(&mut list, 3, &revoked(*byte)),
            byte => put(&mut list, *byte & 0x7f, &[*byte]),
        }
    }
    list
}

fn put(list: &mut Vec<u8>, number: u8, value: &[u8]) {
    list.extend([number, value.len() as u8]);
    list.extend(value);
}

fn facts() -> Vec<u8> {
    let mut list = Vec::new();
    put(&mut list, 1, &[0; 8]);
    put(&mut list, 2, &[0; 8]);
    put(&mut list, 3, b"boot");
    put(&mut list, 4, &[0; 8]);
    list
}

fn revoked(byte: u8) -> Vec<u8> {
    let mut list = vec![1, 1, 11];
    put(&mut list, 2, &[byte; 32]);
    list
}

/// What the records say. Changes and facts themselves are read as in the gateway: `snapshot` is the
/// target for these.
fn expected(records: &[Vec<u8>]) -> Found {
    let mut since: [Option<Vec<Vec<u8>>>; 3] = [None, None, None];
    let mut has_facts = false;
    for (index, record) in records.iter().enumerate() {
        for (number, value) in fields(record)? {
            match number {
                1 => {
                    let at = match value.len() {
                        0 => 2,
                        32 => match SNAPSHOTS.iter().position(|known| value == known) {
                            Some(at) => at,
                            None => continue,
                        },
                        _ => return None,
                    };
                    since[at] = Some(Vec::new());
                }
                2 => {
                    wxgate::fuzzing::session::Facts::decode(value).ok()?;
                    has_facts |= index == 0;
                }
                3 => {
                    let change = Change::decode(value, &mut AppIds::default()).ok()?;
                    for changes in since.iter_mut().flatten() {
                        changes.extend(change.as_ref().map(written));
                    }
                }
                _ => {}
            }
        }
    }
    has_facts.then_some(since)
}

fn fields(mut list: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let mut fields = Vec::new();
    while !list.is_empty() {
        let (number, rest) = varint(list)?;
        let (length, rest) = varint(rest)?;
        let length = usize::try_from(length).ok().filter(|length| *length <= rest.len())?;
        let (value, rest) = rest.split_at(length);
        fields.push((number, value));
        list = rest;
    }
    Some(fields)
}

/// LEB128 of 32 bits.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let last = bytes.iter().position(|byte| *byte < 0x80).filter(|last| *last < 5)?;
    let (digits, rest) = bytes.split_at(last + 1);
    let value = digits.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
    (value <= u64::from(u32::MAX)).then_some((value, rest))
}

/// Each three bytes of the script change a written file; what is left over is appended.
fn check_damage(choice: u8, script: &[u8]) {
    // The last record is as long as a block or more.
    let last: Vec<u8> = (0..3 * (choice % 16 + 1)).collect();
    let records = [&b"fa"[..], b"12", b"3b4", &last].map(compose);
    let whole = seal(&records);
    let mut ends = vec![FILE_HEADER];
    for record in &records {
        ends.push(ends.last().expect("one") + HEADER + record.len() + 16);
    }
    assert_eq!(ends.last(), Some(&whole.len()));

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
            5 if at <= file.len() => file[at..].fill(0),
            6 => file.extend(vec![0; usize::from(step[2])]),
            7 => {
                let block = at / BLOCK * BLOCK;
                let end = (block + BLOCK).min(file.len());
                file.get_mut(block..end).unwrap_or_default().fill(0);
            }
            _ if at < file.len() => file[at] = step[2],
            _ => {}
        }
        file.truncate(1 << 14);
    }
    file.extend(steps.remainder());

    // How many records are as they were.
    let intact = ends.iter().take_while(|end| file.get(..**end) == whole.get(..**end)).count();
    let is_loaded = intact >= 2 && is_torn(&file, &whole, ends[intact - 1]);
    let expected = expected(&records[..intact.saturating_sub(1)]).filter(|_| is_loaded);
    assert_eq!(read(&file), expected);
}

/// Whether what is in the file from the end of its last good record on was not written whole.
fn is_torn(file: &[u8], whole: &[u8], from: usize) -> bool {
    let rest = &file[from..];
    let zeros = |bytes: &[u8]| bytes.len() >= 4 && bytes.iter().all(|byte| *byte == 0);
    if rest.len() < HEADER {
        return true;
    }
    let is_header_good = whole.get(from..from + HEADER) == Some(&rest[..HEADER]);
    if !is_header_good {
        let next_block = (from / BLOCK + 1) * BLOCK;
        let starts_with_zeros = zeros(&rest[..HEADER]);
        let from = if starts_with_zeros { from } else { next_block };
        return zeros(file.get(from..).unwrap_or_default());
    }
    let length = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
    let end = from + HEADER + length;
    if file.len() <= end {
        let mut blocks: Vec<_> = (from + HEADER..end).filter(|at| at % BLOCK == 0).collect();
        blocks.insert(0, from + HEADER);
        blocks.push(end);
        let has_hole = |pair: &[usize]| zeros(&file[pair[0]..pair[1]]);
        return file.len() < end || blocks.windows(2).any(has_hole);
    }
    false
}
