//! The messages of the channel, as frames.

use zeroize::Zeroizing;

use crate::handover::fields::{self, Writer};
use crate::server::upgrade::frames::{Kind, Malformed};

/// A message of the upgrade itself. Its kind and body are chosen by the sender.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    /// May contain keys: wiped when dropped.
    pub body: Zeroizing<Vec<u8>>,
}

/// What a frame on the channel says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The topic may be unknown here.
    Question {
        number: u64,
        topic: u8,
        body: Vec<u8>,
    },
    Answer {
        number: u64,
        body: Vec<u8>,
    },
    Control(Message),
    /// A part of a bulk message; its last if `has_more` is not set.
    Piece {
        part: Message,
        has_more: bool,
    },
    /// So many more pieces may be sent.
    Credit(u64),
}

impl Message {
    pub fn new(kind: u8, body: &[u8]) -> Self {
        Self { kind, body: Zeroizing::new(body.to_vec()) }
    }
}

pub fn question(number: u64, topic: u8, body: &[u8]) -> Writer {
    let mut writer = Writer::new();
    writer.u64(1, number).bytes(2, &[topic]).bytes(3, body);
    writer
}

pub fn answer(number: u64, body: &[u8]) -> Writer {
    let mut writer = Writer::new();
    writer.u64(1, number).bytes(3, body);
    writer
}

pub fn control(message: &Message) -> Writer {
    let mut writer = Writer::new();
    writer.bytes(2, &[message.kind]).bytes(3, &message.body);
    writer
}

pub fn piece(kind: u8, body: &[u8], has_more: bool) -> Writer {
    let mut writer = Writer::new();
    writer.bytes(2, &[kind]).bytes(3, body).u64(4, has_more.into());
    writer
}

pub fn credit(pieces: u64) -> Writer {
    let mut writer = Writer::new();
    writer.u64(1, pieces);
    writer
}

impl Event {
    /// # Errors
    /// When a field is missing or impossible, or the frame does not belong on the channel.
    pub fn decode(kind: Kind, body: &[u8]) -> Result<Self, Malformed> {
        const MALFORMED: Malformed = Malformed("a malformed frame");
        let (mut number, mut code, mut bytes, mut has_more) = (None, None, None, None);
        for field in fields::read(body) {
            let field = field.map_err(|_| MALFORMED)?;
            match field.number {
                1 => number = Some(field.u64().ok_or(MALFORMED)?),
                2 => code = Some(field.array().map(|[code]| code).ok_or(MALFORMED)?),
                3 => bytes = Some(field.value),
                4 => has_more = Some(field.u64().ok_or(MALFORMED)? != 0),
                _ => {}
            }
        }
        let message = |code: Option<u8>| Some(Message::new(code?, bytes?));
        let body = || bytes.map(<[u8]>::to_vec);
        let decoded = || {
            Some(match kind {
                Kind::Question => Self::Question { number: number?, topic: code?, body: body()? },
                Kind::Answer => Self::Answer { number: number?, body: body()? },
                Kind::Control => Self::Control(message(code)?),
                Kind::Bulk => Self::Piece { part: message(code)?, has_more: has_more? },
                Kind::Credit => Self::Credit(number?),
                Kind::Hello | Kind::Welcome | Kind::Refused | Kind::Sockets | Kind::Begin => {
                    return None;
                }
            })
        };
        decoded().ok_or(MALFORMED)
    }
}
