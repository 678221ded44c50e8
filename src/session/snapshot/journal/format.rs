//! The bytes of a journal.
//!
//! `WXGATESJ`, a byte of version, a salt; then records. A record is its header (the length of what
//! follows, a number, and a checksum of both) and its contents, sealed. The first record is written
//! with the file. Each further one is written and synced at once, so only the last can be torn, and
//! nobody was told that it is durable.
//!
//! What is torn must be told from what is damaged, or damage would end a journal too early and
//! bring ended sessions back. A record is torn if the file ends in it and its header is whole or
//! cut off: the checksum finds a header with a wrong length, which would reach beyond the end, too.
//! After a power failure, a file can also have its new size but zeros in blocks that were never
//! written. Everything else is damage.
//!
//! The number is the nonce. It is never used again, not even for a record whose write failed; so it
//! can skip some. The place of the record is associated data, so that none can be moved or missing.

use std::io::{self, BufReader, Read};
use std::sync::Arc;

use rand::Rng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::identity::secret::SealKey;
use crate::session::snapshot::LoadError;
use crate::session::snapshot::seal::{FileKey, Purpose, SALT, TAG};

const MAGIC: &[u8; 8] = b"WXGATESJ";
const VERSION: u8 = 1;
const FILE_HEADER: usize = MAGIC.len() + 1 + SALT;

const CHECKSUM: usize = 4;
const HEADER: usize = 4 + 8 + CHECKSUM;

/// The longest sealed contents, in bytes. A group is much shorter.
const LONGEST: u32 = 1 << 20;

/// What a disk writes whole or not at all.
const BLOCK: usize = 512;

/// Fewer zeros can be sealed contents by chance.
const FEWEST_ZEROS: usize = 4;

/// Writes a journal's records, in their order.
pub struct Sealer {
    seal: FileSeal,
    /// Records that are in the file.
    index: u64,
    /// The next number.
    number: u64,
}

/// The key of a file, and what it is bound to.
#[derive(Clone)]
struct FileSeal {
    key: Arc<FileKey>,
    salt: [u8; SALT],
}

impl Sealer {
    /// For a new journal, and the start of the file.
    pub fn new(keys: &[SealKey]) -> io::Result<(Self, Vec<u8>)> {
        let mut salt = [0; SALT];
        rand::rng().fill_bytes(&mut salt);
        Self::with_salt(keys, salt)
    }

    fn with_salt(keys: &[SealKey], salt: [u8; SALT]) -> io::Result<(Self, Vec<u8>)> {
        let key = keys.first().and_then(|key| FileKey::derive(key, Purpose::Journal, &salt));
        let key = key.ok_or_else(|| io::Error::other("no key to seal with"))?.into();
        let start = [&MAGIC[..], &[VERSION], &salt].concat();
        Ok((Self { seal: FileSeal { key, salt }, index: 0, number: 0 }, start))
    }

    /// The next record.
    pub fn seal(&mut self, contents: &[u8]) -> io::Result<Vec<u8>> {
        let number = self.number;
        self.number += 1;
        let mut sealed = contents.to_vec();
        let associated = self.seal.associated(self.index);
        self.seal.key.seal(number, &associated, &mut sealed).map_err(io::Error::other)?;
        let length = u32::try_from(sealed.len()).ok().filter(|length| *length <= LONGEST);
        let length = length.ok_or_else(|| io::Error::other("a record is too long"))?;
        let mut record = self.seal.header(self.index, length, number).to_vec();
        record.extend(sealed);
        Ok(record)
    }

    /// The record that was sealed last is in the file.
    pub fn written(&mut self) {
        self.index += 1;
    }

    /// Reads records of this file again: those after the first `index`, which are the `length`
    /// bytes of `input`.
    pub fn reader<R: Read>(&self, input: R, length: u64, index: u64) -> Reader<R> {
        Reader { input: BufReader::new(input), at: 0, length, index, seal: self.seal.clone() }
    }

    /// Records that are in the file.
    pub fn index(&self) -> u64 {
        self.index
    }
}

impl FileSeal {
    fn associated(&self, index: u64) -> [u8; SALT + 8] {
        let mut associated = [0; SALT + 8];
        let (start, end) = associated.split_at_mut(SALT);
        start.copy_from_slice(&self.salt);
        end.copy_from_slice(&index.to_be_bytes());
        associated
    }

    fn header(&self, index: u64, length: u32, number: u64) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let (start, checksum) = header.split_at_mut(HEADER - CHECKSUM);
        let (first, second) = start.split_at_mut(4);
        first.copy_from_slice(&length.to_be_bytes());
        second.copy_from_slice(&number.to_be_bytes());
        let hash = Sha256::new().chain_update(self.associated(index)).chain_update(&*start);
        if let Some(hash) = hash.finalize().first_chunk::<CHECKSUM>() {
            checksum.copy_from_slice(hash);
        }
        header
    }

    /// The length and the number in a header. `None` if its checksum is wrong.
    fn read_header(&self, index: u64, header: &[u8; HEADER]) -> Option<(u32, u64)> {
        let (length, rest) = header.split_first_chunk()?;
        let (length, number) =
            (u32::from_be_bytes(*length), u64::from_be_bytes(*rest.first_chunk()?));
        (self.header(index, length, number) == *header).then_some((length, number))
    }
}

/// Reads a journal's records.
pub struct Reader<R> {
    input: BufReader<R>,
    /// Bytes that were read.
    at: u64,
    length: u64,
    index: u64,
    seal: FileSeal,
}

impl<R: Read> Reader<R> {
    /// Reads the journal in the `length` bytes of `input`. Returns the contents of the first record
    /// as well.
    pub fn open(
        input: R,
        length: u64,
        keys: &[SealKey],
    ) -> Result<(Self, Zeroizing<Vec<u8>>), LoadError> {
        let mut input = BufReader::new(input);
        let mut start = [0; FILE_HEADER];
        let known = start.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        input.read_exact(start.get_mut(..known).unwrap_or_default())?;
        let Some((MAGIC, [version, salt @ ..])) = start.split_first_chunk() else {
            return Err(LoadError::Foreign);
        };
        if *version != VERSION && known > MAGIC.len() {
            return Err(LoadError::Version(*version));
        }
        let salt: [u8; SALT] = salt.try_into().unwrap_or_default();
        let (Some(first), true) = (keys.first(), known == FILE_HEADER) else {
            return Err(LoadError::Damaged("it is too short"));
        };
        let key = FileKey::derive(first, Purpose::Journal, &salt).ok_or(LoadError::UnknownKey)?;
        let seal = FileSeal { key: key.into(), salt };
        let mut reader = Self { input, at: FILE_HEADER as u64, length, index: 0, seal };
        let Some((number, sealed)) = reader.read_whole()? else {
            return Err(LoadError::Damaged("it is too short"));
        };
        let associated = reader.seal.associated(0);
        let purpose = (Purpose::Journal, &salt);
        let (key, contents) = FileKey::find(keys, purpose, number, &associated, &sealed)
            .ok_or(LoadError::UnknownKey)?;
        reader.seal.key = key.into();
        reader.index = 1;
        Ok((reader, contents))
    }

    /// The contents of the next record. `None`: there is no more, or it is torn.
    pub fn next(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, LoadError> {
        let start = self.at;
        let Some((number, sealed)) = self.read_whole()? else { return Ok(None) };
        let mut contents = Zeroizing::new(sealed);
        let associated = self.seal.associated(self.index);
        let has_hole = self.at == self.length && has_hole(&contents, start + HEADER as u64);
        match self.seal.key.open(number, &associated, &mut contents).map(<[u8]>::len) {
            Some(length) => contents.truncate(length),
            None if has_hole => return Ok(None),
            None => return Err(LoadError::Damaged("a record does not open")),
        }
        self.index += 1;
        Ok(Some(contents))
    }

    /// Whether no bytes are left after the records that were read.
    pub fn is_at_end(&self) -> bool {
        self.at == self.length
    }

    /// The number and the sealed contents of the next record, if it is not torn.
    fn read_whole(&mut self) -> Result<Option<(u64, Vec<u8>)>, LoadError> {
        let start = self.at;
        let mut header = [0; HEADER];
        if self.length - self.at < HEADER as u64 {
            return Ok(None);
        }
        self.read(&mut header)?;
        let Some((length, number)) = self.seal.read_header(self.index, &header) else {
            return if self.is_unwritten(&header, start)? {
                Ok(None)
            } else {
                Err(LoadError::Damaged("a record has a damaged header"))
            };
        };
        if length > LONGEST || (length as usize) < TAG {
            return Err(LoadError::Damaged("a record has an impossible length"));
        }
        if self.length - self.at < length.into() {
            return Ok(None);
        }
        let mut sealed = vec![0; length as usize];
        self.read(&mut sealed)?;
        Ok(Some((number, sealed)))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(buffer)?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    /// Whether everything from a header on is zeros, or from the next block on.
    fn is_unwritten(&mut self, header: &[u8; HEADER], start: u64) -> io::Result<bool> {
        let is_zero = header.iter().all(|byte| *byte == 0);
        let written = if is_zero { 0 } else { to_block_end(start) };
        let rest = self.input.by_ref().take(self.length - self.at).bytes();
        let mut zeros = 0;
        for byte in header.iter().map(|byte| Ok(*byte)).chain(rest).skip(written) {
            if byte? != 0 {
                return Ok(false);
            }
            zeros += 1;
        }
        Ok(zeros >= FEWEST_ZEROS)
    }
}

/// Bytes from a place in a file to the end of its block.
fn to_block_end(at: u64) -> usize {
    BLOCK - usize::try_from(at % BLOCK as u64).unwrap_or(0)
}

/// Whether a block, or the part of it that is in these bytes, is only zeros.
fn has_hole(mut bytes: &[u8], mut at: u64) -> bool {
    while !bytes.is_empty() {
        let (block, rest) = bytes.split_at(to_block_end(at).min(bytes.len()));
        if block.len() >= FEWEST_ZEROS && block.iter().all(|byte| *byte == 0) {
            return true;
        }
        at += block.len() as u64;
        bytes = rest;
    }
    false
}

/// A journal whose records have these contents.
#[cfg(any(fuzzing, test))]
pub fn sealed_journal(key: &SealKey, salt: [u8; SALT], records: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    let (mut sealer, mut file) = Sealer::with_salt(std::slice::from_ref(key), salt)?;
    for contents in records {
        file.extend(sealer.seal(contents)?);
        sealer.written();
    }
    Ok(file)
}
