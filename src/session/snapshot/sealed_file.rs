//! The format of a snapshot.
//!
//! A header: `WXGATESN`, a byte of version, the salt of the file. Then chunks: the length of what
//! was sealed (four bytes, the highest first), a byte of flags, and what was sealed. The number of
//! a chunk is its nonce; header and flags are associated data. So a chunk that is missing,
//! repeated, moved or of another file does not open. The first chunk has the [`Facts`], the
//! following ones have entries, and the last, which alone has the flag [`FINAL`], has their counts.
//! Nothing follows it. A reader must not use anything of a file before its end.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use parking_lot::Mutex;
use rand::Rng;
use zeroize::Zeroizing;

use super::facts::Facts;
use super::seal::{FileKey, Purpose, SALT, SealError, TAG};
use crate::handover::fields::{self, Malformed, Writer};
use crate::identity::secret::SealKey;
use crate::session::entry::{AppIds, Entry};
use crate::session::parallel::in_parallel;

const MAGIC: &[u8; 8] = b"WXGATESN";

/// Files with another version byte are not read. A field or a kind of entry that is new, and that
/// an older program may ignore, is no new version.
const VERSION: u8 = 1;

const HEADER: usize = MAGIC.len() + 1 + SALT;

/// The flag of the last chunk.
const FINAL: u8 = 1;

/// Bytes of entries in a chunk. The writer has one in memory, and a reader one for each thread.
const CHUNK: usize = 64 << 10;

/// Room for an entry, or for what a chunk has besides entries. Buffers with plain text have it, so
/// that they need not move.
const SPARE: usize = 4 << 10;

/// The longest chunk that is read. A later version may write longer ones.
const LONGEST_CHUNK: usize = 1 << 20;

/// The field of a chunk that is an entry.
const ENTRY: u32 = 1;

const SESSIONS: u32 = 1;
const BLOCKS: u32 = 2;
const KEYS: u32 = 3;
const CHUNKS: u32 = 4;

/// The salt of a snapshot, by which a journal names it.
pub type SnapshotId = [u8; SALT];

/// The id of a new snapshot. Every file needs a new one, one that replaces a failed file as well.
pub fn new_id() -> SnapshotId {
    let mut id = [0; SALT];
    rand::rng().fill_bytes(&mut id);
    id
}

/// Why a file was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("not a file of sessions")]
    Foreign,
    #[error("has version {0} of the format, which this program does not know")]
    Version(u8),
    #[error("sealed with another key than those of session.seal_key, or damaged at its start")]
    UnknownKey,
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

impl From<Malformed> for LoadError {
    fn from(_: Malformed) -> Self {
        Self::Damaged("malformed fields")
    }
}

/// How many entries of each kind a snapshot has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub sessions: u64,
    pub blocks: u64,
    /// Users with session keys.
    pub keys: u64,
}

impl Counts {
    fn add_all(&mut self, other: Self) {
        let Self { sessions, blocks, keys } = other;
        self.sessions += sessions;
        self.blocks += blocks;
        self.keys += keys;
    }

    fn add(&mut self, entry: &Entry) {
        *match entry {
            Entry::Session(_) => &mut self.sessions,
            Entry::Block(_) => &mut self.blocks,
            Entry::Keys(_) => &mut self.keys,
        } += 1;
    }
}

/// Writes a snapshot. It makes large writes only.
pub struct SnapshotWriter<W> {
    writer: W,
    key: FileKey,
    id: SnapshotId,
    counts: Counts,
    chunks: u64,
    /// Entries of the next chunk.
    entries: Writer,
    entry: Writer,
    sealed: Vec<u8>,
}

impl<W: Write> SnapshotWriter<W> {
    /// Starts a file, sealed with the first of `keys`. `id` is of [`new_id`].
    ///
    /// # Errors
    /// When `writer` fails, or there is no key.
    pub fn new(mut writer: W, keys: &[SealKey], id: SnapshotId, facts: &Facts) -> io::Result<Self> {
        let key = keys.first().and_then(|key| FileKey::derive(key, Purpose::Snapshot, &id));
        let key = key.ok_or_else(|| io::Error::other(SealError))?;
        let associated = associated(&id, 0);
        writer.write_all(associated.split_last().map_or(&[], |(_, header)| header))?;
        let mut entries = Writer::with_capacity(CHUNK + SPARE);
        facts.encode(&mut entries);
        let mut file = Self {
            writer,
            key,
            id,
            counts: Counts::default(),
            chunks: 0,
            entries,
            entry: Writer::with_capacity(SPARE),
            sealed: Vec::new(),
        };
        file.write_chunk(0)?;
        Ok(file)
    }

    /// # Errors
    /// When `writer` fails. Then the file cannot be finished.
    pub fn write(&mut self, entry: &Entry) -> io::Result<()> {
        self.entry.clear();
        entry.encode(&mut self.entry);
        if self.entries.as_bytes().len() + self.entry.as_bytes().len() > CHUNK {
            self.write_chunk(0)?;
        }
        self.entries.list(ENTRY, &self.entry);
        self.counts.add(entry);
        Ok(())
    }

    /// Ends the file. It is not flushed.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn finish(mut self) -> io::Result<(W, Counts)> {
        if !self.entries.as_bytes().is_empty() {
            self.write_chunk(0)?;
        }
        let counts = self.counts;
        self.entries.u64(SESSIONS, counts.sessions).u64(BLOCKS, counts.blocks);
        self.entries.u64(KEYS, counts.keys).u64(CHUNKS, self.chunks);
        self.write_chunk(FINAL)?;
        Ok((self.writer, counts))
    }

    fn write_chunk(&mut self, flags: u8) -> io::Result<()> {
        self.sealed.clear();
        self.sealed.extend_from_slice(self.entries.as_bytes());
        self.entries.clear();
        let sealed = self.key.seal(self.chunks, &associated(&self.id, flags), &mut self.sealed);
        sealed.map_err(io::Error::other)?;
        self.chunks += 1;
        let length = u32::try_from(self.sealed.len()).map_err(io::Error::other)?;
        let [a, b, c, d] = length.to_be_bytes();
        self.writer.write_all(&[a, b, c, d, flags])?;
        self.writer.write_all(&self.sealed)
    }
}

/// Reads a snapshot.
pub struct SnapshotReader<R> {
    chunks: Chunks<R>,
    key: FileKey,
    id: SnapshotId,
    facts: Facts,
}

/// The chunks of a file, in their order.
struct Chunks<R> {
    reader: R,
    next: u64,
    /// After the last chunk, or after an error.
    is_at_end: bool,
    /// The last one, with its number.
    last: Option<(u64, Sealed)>,
}

/// What was sealed of a chunk. Wiped, because it is opened in place.
type Sealed = Zeroizing<Vec<u8>>;

impl<R: Read> Chunks<R> {
    /// The next chunk, with its number. `None` at the last one, which is kept, and from then on; also
    /// after an error, so that no other thread finds another one.
    fn next(&mut self) -> Result<Option<(u64, Sealed)>, LoadError> {
        if self.is_at_end {
            return Ok(None);
        }
        self.is_at_end = true;
        let mut sealed = Zeroizing::new(Vec::with_capacity(CHUNK + SPARE));
        let flags = read_chunk(&mut self.reader, &mut sealed)?;
        let numbered = (self.next, sealed);
        self.next += 1;
        if flags == 0 {
            self.is_at_end = false;
            return Ok(Some(numbered));
        }
        if (&mut self.reader).take(1).read_to_end(&mut Vec::new())? != 0 {
            return Err(LoadError::Damaged("something follows the last chunk"));
        }
        self.last = Some(numbered);
        Ok(None)
    }
}

impl<R: Read + Send> SnapshotReader<R> {
    /// Opens a file that was sealed with one of `keys`.
    ///
    /// # Errors
    /// When it is not a snapshot, or not one for this program and these keys.
    pub fn open(mut reader: R, keys: &[SealKey]) -> Result<Self, LoadError> {
        let mut magic = Vec::new();
        (&mut reader).take(MAGIC.len() as u64).read_to_end(&mut magic)?;
        if magic != MAGIC {
            return Err(LoadError::Foreign);
        }
        let mut version = [0];
        read_exact(&mut reader, &mut version)?;
        if version != [VERSION] {
            return Err(LoadError::Version(version[0]));
        }
        let mut id = [0; SALT];
        read_exact(&mut reader, &mut id)?;
        let mut chunks = Chunks { reader, next: 0, is_at_end: false, last: None };
        let Some((number, first)) = chunks.next()? else {
            return Err(LoadError::Damaged("it starts with its last chunk"));
        };
        let place = (Purpose::Snapshot, &id);
        let found = FileKey::find(keys, place, number, &associated(&id, 0), &first);
        let (key, facts) = found.ok_or(LoadError::UnknownKey)?;
        Ok(Self { chunks, key, id, facts: Facts::decode(&facts)? })
    }

    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The clocks that all times in the file are of.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Reads all entries, in several threads. Returns what `add` has collected of the entries of
    /// each chunk, in the order of the chunks.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn read<C: Default + Send>(
        self,
        add: impl Fn(&mut C, Entry) + Sync,
    ) -> Result<impl Iterator<Item = C>, LoadError> {
        let chunks = Mutex::new(self.chunks);
        let read = Mutex::new((Counts::default(), BTreeMap::new()));
        in_parallel(|| {
            let next = chunks.lock().next()?;
            let Some((number, mut sealed)) = next else { return Ok(false) };
            let list = open(&self.key, &self.id, (number, 0), &mut sealed)?;
            let (mut collected, mut counts) = (C::default(), Counts::default());
            let mut apps = AppIds::default();
            for field in fields::read(list) {
                let field = field?;
                if field.number == ENTRY
                    && let Some(entry) = Entry::decode(field.value, &mut apps)?
                {
                    counts.add(&entry);
                    add(&mut collected, entry);
                }
            }
            let (all_counts, all_collected) = &mut *read.lock();
            all_counts.add_all(counts);
            all_collected.insert(number, collected);
            Ok::<_, LoadError>(true)
        })?;
        let Some((number, mut sealed)) = chunks.into_inner().last else { return Err(TRUNCATED) };
        let list = open(&self.key, &self.id, (number, FINAL), &mut sealed)?;
        let (counts, collected) = read.into_inner();
        check_counts(list, counts, number)?;
        Ok(collected.into_values())
    }
}

/// Opens a chunk with its number and its flags.
fn open<'a>(
    key: &FileKey,
    id: &SnapshotId,
    (number, flags): (u64, u8),
    sealed: &'a mut Sealed,
) -> Result<&'a [u8], LoadError> {
    let opened = key.open(number, &associated(id, flags), sealed);
    opened.ok_or(LoadError::Damaged("a chunk is not the one that belongs there"))
}

/// The header of a file, and the flags of a chunk.
fn associated(id: &SnapshotId, flags: u8) -> [u8; HEADER + 1] {
    let mut associated = [0; HEADER + 1];
    let all = MAGIC.iter().chain(&[VERSION]).chain(id).copied().chain([flags]);
    for (place, byte) in associated.iter_mut().zip(all) {
        *place = byte;
    }
    associated
}

fn check_counts(list: &[u8], counts: Counts, chunks: u64) -> Result<(), LoadError> {
    let mut expected = [None; 4];
    for field in fields::read(list) {
        let field = field?;
        let place = match field.number {
            SESSIONS => &mut expected[0],
            BLOCKS => &mut expected[1],
            KEYS => &mut expected[2],
            CHUNKS => &mut expected[3],
            _ => continue,
        };
        *place = Some(field.u64().ok_or(Malformed)?);
    }
    let found = [counts.sessions, counts.blocks, counts.keys, chunks].map(Some);
    if expected == found { Ok(()) } else { Err(LoadError::Damaged("its counts differ")) }
}

/// Reads what was sealed of a chunk, and returns the flags. Its memory grows with what is read, not
/// with what is announced.
fn read_chunk(reader: &mut impl Read, chunk: &mut Zeroizing<Vec<u8>>) -> Result<u8, LoadError> {
    let mut start = [0; 5];
    read_exact(reader, &mut start)?;
    let [a, b, c, d, flags] = start;
    if flags > FINAL {
        return Err(LoadError::Damaged("unknown flags"));
    }
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if !(TAG..=LONGEST_CHUNK + TAG).contains(&length) {
        return Err(LoadError::Damaged("a chunk with an impossible length"));
    }
    chunk.clear();
    let read = reader.take(length as u64).read_to_end(chunk)?;
    if read == length { Ok(flags) } else { Err(TRUNCATED) }
}

const TRUNCATED: LoadError = LoadError::Damaged("truncated");

fn read_exact(reader: &mut impl Read, buffer: &mut [u8]) -> Result<(), LoadError> {
    reader.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => TRUNCATED,
        _ => LoadError::Io(error),
    })
}

#[cfg(test)]
mod tests;
