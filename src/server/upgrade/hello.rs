//! The handshake of two processes: who they are, and which version of the protocol they speak.
//!
//! The new process says which versions it knows. The old one chooses the newest that both know, or
//! refuses. So a release that adds a version can take over from one that does not know it, as long
//! as it still knows the older one. These frames are the same in all versions: fields may be added.

use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::frames::{self, HEADER, Kind, Malformed};
use crate::clock::millis;
use crate::handover::fields::{self, Writer};
use crate::identity::secret::SealKey;

/// The versions of the protocol that this program speaks.
pub const VERSIONS: RangeInclusive<u64> = 1..=1;

/// How long each step before the channel may take. Nobody waits for an answer yet.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The longest body of a frame before the channel, in bytes.
pub const LONGEST: usize = 64 << 10;

/// Numbers of the fields of each frame.
mod field {
    pub mod hello {
        pub const OLDEST: u32 = 1;
        pub const NEWEST: u32 = 2;
        pub const PROGRAM: u32 = 3;
    }

    pub mod welcome {
        pub const VERSION: u32 = 1;
        pub const PROGRAM: u32 = 2;
        /// In nanoseconds.
        pub const CLOCK_OFFSET: u32 = 3;
        pub const STATE_KEY: u32 = 4;
        pub const HAS_SHARED_STORE: u32 = 5;
        /// In milliseconds.
        pub const IDLE_TIMEOUT: u32 = 6;
        pub const SESSIONS: u32 = 7;
    }

    pub mod refusal {
        pub const TEXT: u32 = 1;
    }
}

/// Why the two processes cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the other process closed the connection")]
    Closed,
    #[error("the other process does not answer")]
    TimedOut,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the other process refuses: {0}")]
    Refused(String),
    #[error("the other process chose version {0} of the protocol, which is unknown here")]
    Version(u64),
}

/// What the new process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Of the protocol.
    pub versions: RangeInclusive<u64>,
    /// The version of the program.
    pub program: String,
}

/// What the old process says if it hands over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Of the protocol, from now on.
    pub version: u64,
    /// The version of the program.
    pub program: String,
    /// See [`Clock::offset`](crate::clock::Clock::offset); in whole nanoseconds.
    pub clock_offset: Duration,
    /// See `Process::state_key`.
    pub state_key: SealKey,
    /// Whether sessions are in a shared store, so that they are not handed over.
    pub has_shared_store: bool,
    /// See `Sessions::idle_timeout`; in whole milliseconds. `None`: the program is older.
    pub idle_timeout: Option<Duration>,
    /// About how many sessions are in memory. Zero if the program is older.
    pub sessions: u64,
}

/// The version that two programs speak with each other: the newest that both know.
pub fn common_version(own: &RangeInclusive<u64>, other: &RangeInclusive<u64>) -> Option<u64> {
    let newest = *own.end().min(other.end());
    (newest >= *own.start().max(other.start())).then_some(newest)
}

impl Hello {
    /// What this program says.
    pub fn own() -> Self {
        Self { versions: VERSIONS, program: env!("CARGO_PKG_VERSION").to_owned() }
    }

    pub fn encode(&self) -> Writer {
        use field::hello;
        let mut writer = Writer::new();
        writer
            .u64(hello::OLDEST, *self.versions.start())
            .u64(hello::NEWEST, *self.versions.end())
            .text(hello::PROGRAM, &self.program);
        writer
    }

    /// # Errors
    /// When a field is missing or impossible.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        use field::hello;
        const MALFORMED: Malformed = Malformed("a malformed hello");
        let (mut oldest, mut newest, mut program) = (None, None, None);
        for field in fields::read(body) {
            let field = field.map_err(|_| MALFORMED)?;
            match field.number {
                hello::OLDEST => oldest = Some(field.u64().ok_or(MALFORMED)?),
                hello::NEWEST => newest = Some(field.u64().ok_or(MALFORMED)?),
                hello::PROGRAM => program = Some(field.text().ok_or(MALFORMED)?.to_owned()),
                _ => {}
            }
        }
        let (Some(oldest), Some(newest), Some(program)) = (oldest, newest, program) else {
            return Err(MALFORMED);
        };
        Ok(Self { versions: oldest..=newest, program })
    }
}

impl Welcome {
    pub fn encode(&self) -> Writer {
        use field::welcome;
        let mut writer = Writer::new();
        // Enough for 500 years.
        let nanoseconds = u64::try_from(self.clock_offset.as_nanos()).unwrap_or(u64::MAX);
        writer
            .u64(welcome::VERSION, self.version)
            .text(welcome::PROGRAM, &self.program)
            .u64(welcome::CLOCK_OFFSET, nanoseconds)
            .bytes(welcome::STATE_KEY, self.state_key.expose())
            .u64(welcome::HAS_SHARED_STORE, self.has_shared_store.into())
            .u64(welcome::SESSIONS, self.sessions);
        if let Some(idle_timeout) = self.idle_timeout {
            writer.u64(welcome::IDLE_TIMEOUT, millis(idle_timeout));
        }
        writer
    }

    /// # Errors
    /// When a field is missing or impossible.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        use field::welcome;
        const MALFORMED: Malformed = Malformed("a malformed welcome");
        let (mut version, mut program, mut clock_offset) = (None, None, None);
        let (mut state_key, mut shared, mut idle_timeout) = (None, None, None);
        let mut sessions = 0;
        for field in fields::read(body) {
            let field = field.map_err(|_| MALFORMED)?;
            match field.number {
                welcome::VERSION => version = Some(field.u64().ok_or(MALFORMED)?),
                welcome::PROGRAM => program = Some(field.text().ok_or(MALFORMED)?.to_owned()),
                welcome::CLOCK_OFFSET => clock_offset = Some(field.u64().ok_or(MALFORMED)?),
                welcome::STATE_KEY => {
                    state_key = Some(SealKey::from_bytes(field.array().ok_or(MALFORMED)?));
                }
                welcome::HAS_SHARED_STORE => shared = Some(field.u64().ok_or(MALFORMED)?),
                welcome::IDLE_TIMEOUT => idle_timeout = Some(field.u64().ok_or(MALFORMED)?),
                welcome::SESSIONS => sessions = field.u64().ok_or(MALFORMED)?,
                _ => {}
            }
        }
        let decoded = || {
            Some(Self {
                version: version?,
                program: program?,
                clock_offset: Duration::from_nanos(clock_offset?),
                state_key: state_key?,
                has_shared_store: shared? != 0,
                idle_timeout: idle_timeout.map(Duration::from_millis),
                sessions,
            })
        };
        decoded().ok_or(MALFORMED)
    }
}

/// The text of a refusal.
///
/// # Errors
/// When it is missing or not UTF-8.
pub fn decode_refusal(body: &[u8]) -> Result<String, Malformed> {
    const MALFORMED: Malformed = Malformed("a malformed refusal");
    let mut text = None;
    for field in fields::read(body) {
        let field = field.map_err(|_| MALFORMED)?;
        if field.number == field::refusal::TEXT {
            text = Some(field.text().ok_or(MALFORMED)?.to_owned());
        }
    }
    text.ok_or(MALFORMED)
}

/// The new process: says hello, and gets the answer.
///
/// # Errors
/// When the other process refuses, or cannot be understood, or does not answer.
pub async fn introduce(stream: &mut UnixStream, hello: &Hello) -> Result<Welcome, HandshakeError> {
    send(stream, Kind::Hello, &hello.encode()).await?;
    let (kind, body) = receive(stream).await?;
    match kind {
        Kind::Welcome => {
            let welcome = Welcome::decode(&body)?;
            if hello.versions.contains(&welcome.version) {
                Ok(welcome)
            } else {
                Err(HandshakeError::Version(welcome.version))
            }
        }
        Kind::Refused => Err(HandshakeError::Refused(decode_refusal(&body)?)),
        _ => Err(Malformed("no answer to the hello").into()),
    }
}

/// The old process: waits for the hello of a new one.
///
/// # Errors
/// When the other process cannot be understood, or says nothing.
pub async fn receive_hello(stream: &mut UnixStream) -> Result<Hello, HandshakeError> {
    match receive(stream).await? {
        (Kind::Hello, body) => Ok(Hello::decode(&body)?),
        _ => Err(Malformed("no hello").into()),
    }
}

/// The old process: hands over.
///
/// # Errors
/// When the connection is broken.
pub async fn welcome(stream: &mut UnixStream, welcome: &Welcome) -> Result<(), HandshakeError> {
    send(stream, Kind::Welcome, &welcome.encode()).await
}

/// The old process: does not hand over, and says why.
///
/// # Errors
/// When the connection is broken.
pub async fn refuse(stream: &mut UnixStream, text: &str) -> Result<(), HandshakeError> {
    let mut body = Writer::new();
    body.text(field::refusal::TEXT, text);
    send(stream, Kind::Refused, &body).await
}

/// The new process: it has started, and answers on the channel from now on.
///
/// # Errors
/// When the connection is broken.
pub async fn begin(stream: &mut UnixStream) -> Result<(), HandshakeError> {
    send(stream, Kind::Begin, &Writer::new()).await
}

/// The old process: waits until the new one has started, for as long as it takes.
///
/// # Errors
/// When the other process cannot be understood, or is gone.
pub async fn receive_begin(stream: &mut UnixStream) -> Result<(), HandshakeError> {
    match receive_in_any_time(stream).await? {
        (Kind::Begin, _) => Ok(()),
        _ => Err(Malformed("no beginning").into()),
    }
}

async fn send(stream: &mut UnixStream, kind: Kind, body: &Writer) -> Result<(), HandshakeError> {
    let body = body.as_bytes();
    let header = frames::header(kind, body).map_err(io::Error::other)?;
    let frame = Zeroizing::new([&header, body].concat());
    let written = timeout(PATIENCE, stream.write_all(&frame)).await;
    Ok(written.map_err(|_| HandshakeError::TimedOut)??)
}

/// One frame that is not ignored, and nothing behind it.
async fn receive(stream: &mut UnixStream) -> Result<(Kind, Zeroizing<Vec<u8>>), HandshakeError> {
    let received = timeout(PATIENCE, receive_in_any_time(stream)).await;
    received.map_err(|_| HandshakeError::TimedOut)?
}

async fn receive_in_any_time(
    stream: &mut UnixStream,
) -> Result<(Kind, Zeroizing<Vec<u8>>), HandshakeError> {
    loop {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await.map_err(HandshakeError::from).map_err(closed)?;
        let (kind, body) = receive_body(stream, header).await?;
        if let Some(kind) = kind {
            return Ok((kind, body));
        }
    }
}

/// The rest of a frame.
pub async fn receive_body(
    stream: &mut UnixStream,
    header: [u8; HEADER],
) -> Result<(Option<Kind>, Zeroizing<Vec<u8>>), HandshakeError> {
    let (length, number) = frames::parse_header(header, LONGEST)?;
    let kind = Kind::parse(number)?;
    let mut body = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut body).await.map_err(HandshakeError::from).map_err(closed)?;
    Ok((kind, body))
}

fn closed(error: HandshakeError) -> HandshakeError {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match error {
        HandshakeError::Io(error)
            if [BrokenPipe, ConnectionReset, UnexpectedEof].contains(&error.kind()) =>
        {
            HandshakeError::Closed
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
