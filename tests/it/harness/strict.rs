//! A strict HTTP/1.1 parser, for both sides of the gateway: the service's and the client's.
//!
//! Whatever the gateway frames itself has exactly one form. Any other form is a fault.

use std::fmt;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Header lines or trailers, by their exact names.
pub type Lines = Vec<(String, String)>;

/// A body as it came.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pub bytes: Vec<u8>,
    pub trailers: Lines,
}

/// How the end of a response is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It has no body, whatever its headers are.
    Nothing,
    Length,
    Chunked,
    /// It ends with its connection.
    Close,
}

/// A response as the client got it.
#[derive(Clone)]
pub struct StrictResponse {
    pub status_line: String,
    pub status: u16,
    pub lines: Lines,
    pub framing: Framing,
    pub body: Body,
    /// Whether the body came to its announced end.
    pub is_whole: bool,
}

impl StrictResponse {
    /// All values of a header, by its name in any case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        values(&self.lines, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body.bytes).into_owned()
    }
}

/// Its body as text.
impl fmt::Debug for StrictResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status_line, lines, framing, body, is_whole, .. } = self;
        let whole = if *is_whole { "whole" } else { "broken off" };
        let text = body.bytes[..body.bytes.len().min(200)].escape_ascii();
        let trailers = &body.trailers;
        write!(f, "{status_line} {lines:?} {framing:?} {whole} \"{text}\" {trailers:?}")
    }
}

pub fn values<'a>(lines: &'a Lines, name: &str) -> Vec<&'a str> {
    let named = lines.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.as_str()).collect()
}

pub fn fault(what: &str, bytes: &[u8]) -> String {
    format!("{what}: {}", bytes.escape_ascii())
}

pub fn is_token(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(legal)
}

/// Reads more; `None` if the connection has ended.
pub async fn more(stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(read).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}

/// Reads a header without its empty line; `None` if the connection ends before one begins.
pub async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
    read: &mut Vec<u8>,
) -> Result<Option<Vec<u8>>, String> {
    let end = loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if more(stream, read).await.is_none() {
            let is_clean = read.is_empty();
            return if is_clean { Ok(None) } else { Err(fault("half a header", read)) };
        }
    };
    Ok(Some(read.drain(..end + 4).take(end).collect()))
}

/// The first line of a header, and the others.
pub fn split_header(header: &[u8]) -> Result<(String, Lines), String> {
    let text = String::from_utf8_lossy(header);
    if text.replace("\r\n", "").contains(|c: char| c.is_control() && c != '\t') {
        return Err(fault("control bytes", header));
    }
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let lines: Option<Lines> = lines.map(split_line).collect();
    Ok((first, lines.ok_or_else(|| fault("no header line", header))?))
}

fn split_line(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(": ")?;
    let is_trimmed = value.trim_matches([' ', '\t']) == value;
    (is_token(name) && is_trimmed).then(|| (name.to_owned(), value.to_owned()))
}

/// The framing in a message's header lines: at most one of the two, and without doubt.
pub fn framing(lines: &Lines) -> Option<Framing> {
    match (&values(lines, "content-length")[..], &values(lines, "transfer-encoding")[..]) {
        ([], []) => Some(Framing::Nothing),
        ([], ["chunked"]) => Some(Framing::Chunked),
        ([length], []) => {
            let is_number = length.bytes().all(|b| b.is_ascii_digit()) && !length.is_empty();
            (is_number && length.len() < 19).then_some(Framing::Length)
        }
        _ => None,
    }
}

/// Reads a body of the length in these lines; `None` if the connection ends within it.
pub async fn read_length(
    stream: &mut (impl AsyncRead + Unpin),
    read: &mut Vec<u8>,
    lines: &Lines,
    body: &mut Body,
) -> Option<()> {
    let length = values(lines, "content-length").first().map_or(0, |value| value.parse().unwrap());
    while read.len() < length {
        if more(stream, read).await.is_none() {
            body.bytes.append(read);
            return None;
        }
    }
    body.bytes.extend(read.drain(..length));
    Some(())
}

/// Reads chunks to the end of the trailers; `None` when the connection ends within them.
pub async fn read_chunked(
    stream: &mut (impl AsyncRead + Unpin),
    read: &mut Vec<u8>,
    body: &mut Body,
) -> Result<Option<()>, String> {
    loop {
        let Some(line) = read_line(stream, read).await else { return Ok(None) };
        let size = std::str::from_utf8(&line).ok();
        let is_plain =
            |size: &&str| !size.is_empty() && size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = size.filter(is_plain).and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.ok_or_else(|| fault("no size of a chunk", &line))?;
        if size == 0 {
            return read_trailers(stream, read, body).await;
        }
        while read.len() < size + 2 {
            if more(stream, read).await.is_none() {
                return Ok(None);
            }
        }
        body.bytes.extend_from_slice(&read[..size]);
        if &read[size..size + 2] != b"\r\n" {
            return Err(fault("no end of a chunk", read));
        }
        read.drain(..size + 2);
    }
}

async fn read_trailers(
    stream: &mut (impl AsyncRead + Unpin),
    read: &mut Vec<u8>,
    body: &mut Body,
) -> Result<Option<()>, String> {
    loop {
        let Some(line) = read_line(stream, read).await else { return Ok(None) };
        if line.is_empty() {
            return Ok(Some(()));
        }
        let text = String::from_utf8_lossy(&line);
        let is_plain = !text.contains(|c: char| c.is_control() && c != '\t');
        let trailer = split_line(&text).filter(|_| is_plain);
        body.trailers.push(trailer.ok_or_else(|| fault("no trailer", &line))?);
    }
}

/// A line without its end.
async fn read_line(stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = loop {
        if let Some(at) = read.windows(2).position(|window| window == b"\r\n") {
            break at;
        }
        more(stream, read).await?;
    };
    let line: Vec<u8> = read.drain(..end + 2).collect();
    Some(line[..end].to_vec())
}

/// Reads a response; `None` when the connection ends before one begins.
pub async fn read_response(
    stream: &mut (impl AsyncRead + Unpin),
    read: &mut Vec<u8>,
    is_to_head: bool,
) -> Result<Option<StrictResponse>, String> {
    let Some(header) = read_header(stream, read).await? else { return Ok(None) };
    let (status_line, lines) = split_header(&header)?;
    let status =
        status_line.strip_prefix("HTTP/1.1 ").filter(|rest| rest.as_bytes()[3..4] == *b" ");
    let status = status.and_then(|rest| rest[..3].parse().ok());
    let status: u16 = status.ok_or_else(|| fault("no status line", &header))?;
    let announced = framing(&lines).ok_or_else(|| fault("doubtful framing", &header))?;
    let framing = match (status, announced) {
        (100..=199 | 204, Framing::Length | Framing::Chunked) | (304, Framing::Chunked) => {
            return Err(fault("framing where there is no body", &header));
        }
        (100..=199 | 204 | 304, _) => Framing::Nothing,
        _ if is_to_head => Framing::Nothing,
        (_, Framing::Nothing) => Framing::Close,
        (_, announced) => announced,
    };
    let mut body = Body::default();
    let is_whole = match framing {
        Framing::Nothing => true,
        Framing::Length => read_length(stream, read, &lines, &mut body).await.is_some(),
        Framing::Chunked => read_chunked(stream, read, &mut body).await?.is_some(),
        Framing::Close => loop {
            match stream.read_buf(read).await {
                Ok(0) => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        },
    };
    if framing == Framing::Close {
        body.bytes.append(read);
    }
    Ok(Some(StrictResponse { status_line, status, lines, framing, body, is_whole }))
}

/// The same, with a timeout.
pub async fn within<T>(
    time: Duration,
    reading: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let read = tokio::time::timeout(time, reading).await;
    read.unwrap_or_else(|_| Err(format!("nothing whole within {time:?}")))
}
