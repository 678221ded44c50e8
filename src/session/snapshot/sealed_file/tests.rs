use std::net::IpAddr;

use super::*;
use crate::identity::session_key::SessionKey;
use crate::identity::token::TokenDigest;
use crate::identity::{AppId, Identity, OpenId, UnionId, User, UserId};
use crate::session::entry::{BlockEntry, KeysEntry, SessionEntry};
use crate::session::{KnownUser, LoginKey};

fn facts() -> Facts {
    Facts { clock: 1000, wall: 2000, boot: "boot".into(), uptime: 3000, idle_timeout: Some(4000) }
}

fn user(number: u64) -> User {
    User {
        app_id: AppId::parse("wx0123456789abcdef").unwrap(),
        openid: OpenId::parse(&format!("oPENID-{number:021}")).unwrap(),
    }
}

fn session(number: u64) -> Entry {
    let User { app_id, openid } = user(number);
    let unionid = UnionId::parse(&format!("oUNION-{number:021}"));
    let user_id = UserId::parse(&format!("{number}")).filter(|_| number.is_multiple_of(3));
    let mut digest = [7; 32];
    digest[..8].copy_from_slice(&number.to_be_bytes());
    Entry::Session(SessionEntry {
        digest: TokenDigest::from_bytes(digest),
        identity: Identity { app_id, openid, unionid, user_id },
        client: IpAddr::from([10, 0, 0, 1]),
        created: number,
        ends: 1_700_000_000_000 + number,
        used: 2 * number,
    })
}

fn block(number: u64) -> Entry {
    let known = KnownUser { user: user(number), user_id: None };
    Entry::Block(BlockEntry { known, until: 5000 })
}

fn keys(number: u64) -> Entry {
    let session_key = SessionKey::from_bytes(&[5; 16]);
    let keys = vec![LoginKey { session_key, logged_in_at_millis: 900 }];
    Entry::Keys(KeysEntry { user: user(number), keys })
}

type File = SnapshotWriter<Vec<u8>>;

fn file(keys: &[SealKey], id: u8) -> File {
    SnapshotWriter::new(Vec::new(), keys, [id; SALT], &facts()).unwrap()
}

/// A file with some entries in three chunks, besides the first and the last.
fn small(seal_key: &SealKey, id: u8) -> Vec<u8> {
    let mut file = file(std::slice::from_ref(seal_key), id);
    for entries in [&[session(1), session(2)][..], &[block(1)], &[keys(1), session(3)]] {
        for entry in entries {
            file.write(entry).unwrap();
        }
        file.write_chunk(0).unwrap();
    }
    file.finish().unwrap().0
}

/// The parts of a file: its header and its chunks.
fn split(file: &[u8]) -> Vec<Vec<u8>> {
    let (header, mut rest) = file.split_at(HEADER);
    let mut parts = vec![header.to_vec()];
    while !rest.is_empty() {
        let length = u32::from_be_bytes(*rest.first_chunk().unwrap()) as usize;
        let (chunk, after) = rest.split_at(5 + length);
        parts.push(chunk.to_vec());
        rest = after;
    }
    parts
}

fn read(file: &[u8], keys: &[SealKey]) -> Result<Vec<Entry>, LoadError> {
    let chunks = SnapshotReader::open(file, keys)?.read(Vec::push)?;
    Ok(chunks.flatten().collect())
}

/// Writes a list as a chunk of a file.
fn write_list(file: &mut File, flags: u8, list: &Writer) {
    for field in fields::read(list.as_bytes()) {
        let field = field.unwrap();
        file.entries.bytes(field.number, field.value);
    }
    file.write_chunk(flags).unwrap();
}

#[test]
fn everything_comes_back_in_its_order_from_as_many_chunks_as_it_takes() {
    let seal_keys = [SealKey::random()];
    let entries: Vec<Entry> = (0..3000)
        .map(|number| match number % 10 {
            0 => block(number),
            1 => keys(number),
            _ => session(number),
        })
        .collect();
    let mut writer = file(&seal_keys, 1);
    for entry in &entries {
        writer.write(entry).unwrap();
    }
    let (written, counts) = writer.finish().unwrap();
    assert_eq!(counts, Counts { sessions: 2400, blocks: 300, keys: 300 });
    assert!(written.starts_with(b"WXGATESN\x01"));
    let parts = split(&written);
    assert!(parts.len() > 5 && parts.iter().all(|part| part.len() <= CHUNK + SPARE));

    let reader = SnapshotReader::open(&written[..], &seal_keys).unwrap();
    assert_eq!((reader.id(), reader.facts()), ([1; SALT], &facts()));
    assert!(read(&written, &seal_keys).unwrap() == entries);
    for secret in ["wx0123456789abcdef", "oPENID", "boot"] {
        assert!(!written.windows(secret.len()).any(|part| part == secret.as_bytes()));
    }
}

#[test]
fn a_snapshot_may_be_empty() {
    let seal_keys = [SealKey::random()];
    let (written, counts) = file(&seal_keys, 1).finish().unwrap();
    assert_eq!(counts, Counts::default());
    assert!(read(&written, &seal_keys).unwrap().is_empty());
}

#[test]
fn a_file_that_is_truncated_anywhere_fails() {
    let seal_keys = [SealKey::random()];
    let whole = small(&seal_keys[0], 1);
    assert_eq!(read(&whole, &seal_keys).unwrap().len(), 5);
    for length in 0..whole.len() {
        match read(&whole[..length], &seal_keys) {
            Err(LoadError::Foreign) => assert!(length < MAGIC.len()),
            Err(LoadError::Damaged("truncated")) => assert!(length >= MAGIC.len()),
            _ => panic!("{length}"),
        }
    }
}

#[test]
fn a_file_with_any_bit_flipped_fails() {
    let seal_keys = [SealKey::random()];
    let whole = small(&seal_keys[0], 1);
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            assert!(read(&flipped, &seal_keys).is_err(), "{at} {bit}");
        }
    }
}

#[test]
fn chunks_that_are_moved_missing_repeated_or_of_another_file_fail() {
    let seal_keys = [SealKey::random()];
    let parts = split(&small(&seal_keys[0], 1));
    let other = split(&small(&seal_keys[0], 2));
    assert_eq!(parts.len(), 6);
    assert!(read(&parts.concat(), &seal_keys).is_ok());
    for at in 0..parts.len() {
        let mut missing = parts.clone();
        let part = missing.remove(at);
        assert!(read(&missing.concat(), &seal_keys).is_err(), "{at} is missing");
        let mut repeated = parts.clone();
        repeated.insert(at, part);
        assert!(read(&repeated.concat(), &seal_keys).is_err(), "{at} is repeated");
        let mut mixed = parts.clone();
        mixed[at].clone_from(&other[at]);
        assert!(read(&mixed.concat(), &seal_keys).is_err(), "{at} is of another file");
        let mixed = [&parts[..at], &other[at..]].concat().concat();
        assert_eq!(read(&mixed, &seal_keys).is_ok(), at == 0, "another file from {at} on");
        for to in 0..at {
            let mut moved = parts.clone();
            moved.swap(at, to);
            assert!(read(&moved.concat(), &seal_keys).is_err(), "{at} and {to} are exchanged");
        }
    }
    // The last chunk says that nothing follows it.
    let followed = [&parts.concat()[..], b"\0"].concat();
    assert!(matches!(read(&followed, &seal_keys), Err(LoadError::Damaged(_))));
}

#[test]
fn any_of_the_seal_keys_opens_what_the_first_has_sealed() {
    let (new, old) = (SealKey::random(), SealKey::random());
    let before = small(&old, 1);
    let both = [new.clone(), old.clone()];
    assert_eq!(read(&before, &both).unwrap().len(), 5);
    let after = file(&both, 2).finish().unwrap().0;
    assert!(read(&after, std::slice::from_ref(&new)).is_ok());
    for (file, keys) in [(&after, &[old][..]), (&before, &[new][..]), (&before, &[])] {
        assert!(matches!(read(file, keys), Err(LoadError::UnknownKey)));
    }
    assert!(SnapshotWriter::new(Vec::new(), &[], [1; SALT], &facts()).is_err());
}

#[test]
fn a_newer_version_and_a_foreign_file_are_named() {
    let seal_keys = [SealKey::random()];
    let mut newer = small(&seal_keys[0], 1);
    newer[MAGIC.len()] = 2;
    let error = read(&newer, &seal_keys).unwrap_err();
    assert!(matches!(error, LoadError::Version(2)), "{error}");
    for foreign in [&b""[..], b"{}", b"WXGATESJ\x01", &[0; 100]] {
        assert!(matches!(read(foreign, &seal_keys), Err(LoadError::Foreign)));
    }
}

#[test]
fn an_older_program_reads_the_file_of_a_newer_one() {
    let seal_keys = [SealKey::random()];
    let mut file = file(&seal_keys, 1);
    let (mut known, mut unknown, mut chunk) = (Writer::new(), Writer::new(), Writer::new());
    session(1).encode(&mut known);
    known.text(99, "new");
    unknown.bytes(1, &[200]).text(99, "new").text(2, "not a digest");
    chunk.list(ENTRY, &unknown).text(99, "new").list(ENTRY, &known);
    write_list(&mut file, 0, &chunk);
    let mut counts = Writer::new();
    counts.u64(SESSIONS, 1).u64(BLOCKS, 0).u64(KEYS, 0).u64(CHUNKS, 2).u64(99, 1);
    write_list(&mut file, FINAL, &counts);
    assert!(read(&file.writer, &seal_keys).unwrap() == [session(1)]);
}

#[test]
fn counts_that_differ_or_are_missing_fail() {
    let seal_keys = [SealKey::random()];
    for (counts, is_right) in [
        (&[1, 0, 0, 2][..], true),
        (&[2, 0, 0, 2], false),
        (&[1, 1, 0, 2], false),
        (&[1, 0, 1, 2], false),
        (&[1, 0, 0, 3], false),
        (&[1, 0, 0], false),
        (&[], false),
    ] {
        let mut file = file(&seal_keys, 1);
        file.write(&session(1)).unwrap();
        file.write_chunk(0).unwrap();
        let mut list = Writer::new();
        for (number, count) in (1..).zip(counts) {
            list.u64(number, *count);
        }
        write_list(&mut file, FINAL, &list);
        assert_eq!(read(&file.writer, &seal_keys).is_ok(), is_right, "{counts:?}");
    }
}

#[test]
fn a_malformed_entry_fails_the_file_although_its_seal_is_right() {
    let seal_keys = [SealKey::random()];
    let mut file = file(&seal_keys, 1);
    let (mut entry, mut chunk) = (Writer::new(), Writer::new());
    entry.bytes(1, &[1]).text(3, "wx1");
    chunk.list(ENTRY, &entry);
    write_list(&mut file, 0, &chunk);
    let error = read(&file.finish().unwrap().0, &seal_keys).unwrap_err();
    assert!(matches!(error, LoadError::Damaged("malformed fields")), "{error}");
}

#[test]
fn a_length_that_is_announced_reserves_no_memory() {
    let seal_keys = [SealKey::random()];
    let parts = split(&small(&seal_keys[0], 1));
    let start = parts[..2].concat();
    let longest = u32::try_from(LONGEST_CHUNK + TAG).unwrap();
    for length in [0, 15, longest + 1, u32::MAX, longest] {
        let file = [&start[..], &length.to_be_bytes(), &[0]].concat();
        let error = read(&file, &seal_keys).unwrap_err();
        assert_eq!(matches!(error, LoadError::Damaged("truncated")), length == longest);
        let mut chunk = Zeroizing::new(Vec::new());
        read_chunk(&mut &file[start.len()..], &mut chunk).unwrap_err();
        assert!(chunk.capacity() <= CHUNK, "{}", chunk.capacity());
    }
}

/// Fails after some bytes.
struct Failing(usize);

impl Failing {
    fn take(&mut self, length: usize) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let taken = length.min(self.0);
        self.0 -= taken;
        Ok(taken)
    }
}

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.take(buffer.len())
    }
}

#[test]
fn errors_of_the_disk_are_passed_on_and_are_not_damage() {
    let seal_keys = [SealKey::random()];
    let whole = small(&seal_keys[0], 1);
    for length in [0, HEADER, HEADER + 20, whole.len() - 1] {
        let write = || {
            let mut file = SnapshotWriter::new(Failing(length), &seal_keys, [1; SALT], &facts())?;
            for number in 1..=5 {
                file.write(&session(number))?;
            }
            file.finish().map(drop)
        };
        assert_eq!(write().unwrap_err().kind(), io::ErrorKind::StorageFull);
        let reader = whole[..length].chain(Failing(0));
        let reads = || SnapshotReader::open(reader, &seal_keys)?.read(Vec::push).map(drop);
        assert!(matches!(reads(), Err(LoadError::Io(_))), "{length}");
    }
}

#[test]
fn after_an_error_no_thread_reads_on() {
    let mut chunks = Chunks { reader: &b"cut"[..], next: 1, is_at_end: false, last: None };
    assert!(matches!(chunks.next(), Err(LoadError::Damaged("truncated"))));
    assert!(chunks.next().unwrap().is_none());
}
