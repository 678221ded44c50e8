//! Chunked bodies in plain words: RFC 9112, section 7.1, on all bytes at once.

const MOST_DIGITS: usize = 15;
const LONGEST_EXTRA: usize = 4 << 10;

/// What a body says, as far as it came.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pub data: Vec<u8>,
    /// Lines with their ends, once all have come.
    pub trailers: Vec<u8>,
    pub end: End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// More must come.
    #[default]
    Missing,
    Malformed,
    /// After so many bytes.
    At(usize),
}

pub fn without_chunks(sent: &[u8]) -> Body {
    let mut body = Body::default();
    body.end = read(sent, &mut body).unwrap_or_else(|end| end);
    body
}

fn read(sent: &[u8], body: &mut Body) -> Result<End, End> {
    let mut at = 0;
    loop {
        let digits = sent[at..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits > MOST_DIGITS {
            return Err(End::Malformed);
        }
        let size = std::str::from_utf8(&sent[at..at + digits]).expect("digits");
        let size = u64::from_str_radix(size, 16);
        at += digits;
        match sent.get(at) {
            None => return Err(End::Missing),
            Some(_) if digits == 0 => return Err(End::Malformed),
            Some(b';') => {
                let extension = text_length(&sent[at + 1..]);
                if extension > LONGEST_EXTRA {
                    return Err(End::Malformed);
                }
                at += 1 + extension;
            }
            Some(_) => {}
        }
        at = line_end(sent, at)?;
        let size = usize::try_from(size.expect("digits")).expect("64 bits");
        if size == 0 {
            break;
        }
        let came = size.min(sent.len() - at);
        body.data.extend_from_slice(&sent[at..at + came]);
        at += came;
        if came < size {
            return Err(End::Missing);
        }
        at = line_end(sent, at)?;
    }
    let begin = at;
    let mut total = 0;
    loop {
        let line = text_length(&sent[at..]);
        if line > 0 && !sent[at].is_ascii_graphic() {
            return Err(End::Malformed);
        }
        total += line;
        if total > LONGEST_EXTRA {
            return Err(End::Malformed);
        }
        at = line_end(sent, at + line)?;
        if line == 0 {
            body.trailers = sent[begin..at - 2].to_vec();
            return Ok(End::At(at));
        }
    }
}

/// Where the line after a CR LF begins.
fn line_end(sent: &[u8], at: usize) -> Result<usize, End> {
    match &sent[at..] {
        [] | [b'\r'] => Err(End::Missing),
        [b'\r', b'\n', ..] => Ok(at + 2),
        _ => Err(End::Malformed),
    }
}

fn text_length(text: &[u8]) -> usize {
    text.iter().take_while(|b| **b == b'\t' || **b >= b' ' && **b != 0x7f).count()
}
