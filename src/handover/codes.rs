//! One-time codes on their way to another process: the digest of each, and until when it counts.

use super::claims::CodeDigest;
use super::fields::{Malformed, Writer, read};

/// Numbers of the fields of a piece.
mod field {
    /// Digests of 32 bytes, each followed by the time of its end, in milliseconds of the clock.
    pub const CODES: u32 = 1;
}

/// Codes in one piece, of 40 bytes each.
const CODES_IN_A_PIECE: usize = 6_000;

/// Writes codes, in pieces of at most 256 KiB.
pub fn write_codes(codes: &[(CodeDigest, u64)], mut give: impl FnMut(&mut Writer)) {
    for codes in codes.chunks(CODES_IN_A_PIECE) {
        let code =
            |(digest, until): &(CodeDigest, u64)| [&digest[..], &until.to_be_bytes()].concat();
        let codes: Vec<u8> = codes.iter().flat_map(code).collect();
        give(Writer::new().bytes(field::CODES, &codes));
    }
}

/// The codes of a piece.
///
/// # Errors
/// When it is malformed.
pub fn read_codes(piece: &[u8]) -> Result<Vec<(CodeDigest, u64)>, Malformed> {
    let mut codes = Vec::new();
    for field in read(piece) {
        let field = field?;
        if field.number != field::CODES {
            continue;
        }
        let (found, []) = field.value.as_chunks::<40>() else { return Err(Malformed) };
        for code in found {
            let (digest, until) = code.split_first_chunk().ok_or(Malformed)?;
            let until = u64::from_be_bytes(until.try_into().map_err(|_| Malformed)?);
            codes.push((*digest, until));
        }
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back_and_a_piece_that_is_cut_off_is_refused() {
        let code = |number: u64| ([u8::try_from(number % 251).unwrap(); 32], number);
        let codes: Vec<_> = (0..6_001).map(code).collect();
        let mut pieces = Vec::new();
        write_codes(&codes, |piece| pieces.push(piece.as_bytes().to_vec()));
        assert!(pieces.len() == 2 && pieces.iter().all(|piece| piece.len() <= 256 << 10));
        let read: Result<Vec<_>, _> = pieces.iter().map(|piece| read_codes(piece)).collect();
        assert_eq!(read.unwrap().concat(), codes);
        for length in 1..pieces[1].len() {
            assert_eq!(read_codes(&pieces[1][..length]), Err(Malformed), "{length}");
        }
        let mut odd = Writer::new();
        odd.bytes(99, b"of a newer program");
        assert_eq!(read_codes(odd.as_bytes()), Ok(Vec::new()));
        odd.bytes(field::CODES, &[0; 41]);
        assert_eq!(read_codes(odd.as_bytes()), Err(Malformed));
    }
}
