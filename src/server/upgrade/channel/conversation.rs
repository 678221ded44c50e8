//! One side of the channel: its open questions, those of the other side, and the messages of both.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::mem;
use std::pin::pin;
use std::task::Poll;

use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::event::{self, Event};
use super::{Ended, Link, Message, PIECE, QUESTIONS, ROOM, WINDOW};
use crate::handover::peer::{PATIENCE, Question, Topic};
use crate::listener::small_server::write_timeout::WriteTimeout;
use crate::server::upgrade::frames::{
    Incoming, Kind, LONGEST, Malformed, Outgoing, TooLong, extend,
};

/// The other ends of a [`super::Channel`].
pub struct Ends {
    pub controls: mpsc::Receiver<Message>,
    pub bulks: mpsc::Receiver<Message>,
    pub bulk_to: mpsc::Sender<Message>,
}

pub struct Conversation<H> {
    reader: OwnedReadHalf,
    incoming: Incoming,
    outgoing: Outgoing,
    handler: H,
    /// Questions to the other process, by their numbers.
    asked: HashMap<u64, oneshot::Sender<Vec<u8>>>,
    last_number: u64,
    /// Handlers of questions of the other process.
    answering: JoinSet<(u64, Vec<u8>)>,
    control_to: mpsc::Sender<Message>,
    /// The bulk message whose last piece is not here yet.
    arriving: Option<Message>,
    /// Whole bulk messages that nobody has taken yet.
    arrived: VecDeque<Message>,
    /// Pieces that were received and not yet credited.
    owed: u64,
    /// The bulk message that is being sent, and how much of it has been.
    leaving: Option<(Message, usize)>,
    /// Pieces that may be sent.
    credit: u64,
}

impl<H, F> Conversation<H>
where
    H: Fn(Topic, Vec<u8>) -> F + Send,
    F: Future<Output = Vec<u8>> + Send + 'static,
{
    pub fn new(reader: OwnedReadHalf, handler: H, control_to: mpsc::Sender<Message>) -> Self {
        Self {
            reader,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            handler,
            asked: HashMap::new(),
            last_number: 0,
            answering: JoinSet::new(),
            control_to,
            arriving: None,
            arrived: VecDeque::new(),
            owed: 0,
            leaving: None,
            credit: WINDOW,
        }
    }

    pub async fn run(
        &mut self,
        link: &mut Link,
        ends: &mut Ends,
        writer: &mut WriteTimeout<OwnedWriteHalf>,
    ) -> Ended {
        match self.talk(link, ends, writer).await {
            Err(ended) => ended,
            // What the other process said before it closed.
            Ok(NotWritable) => loop {
                match timeout(PATIENCE, self.listen()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(ended)) => break ended,
                    Err(_) => break Ended::ClosedByOther,
                }
            },
        }
    }

    /// Lets the handlers that still run come to their end.
    pub fn leave(&mut self) {
        self.answering.detach_all();
    }

    async fn talk(
        &mut self,
        link: &mut Link,
        ends: &mut Ends,
        writer: &mut WriteTimeout<OwnedWriteHalf>,
    ) -> Result<NotWritable, Ended> {
        let peer = link.peer.clone();
        let mut unlinked = pin!(async move {
            match peer {
                Some(peer) => peer.unlinked().await,
                None => std::future::pending().await,
            }
        });
        let mut is_closing = false;
        loop {
            self.send_piece()?;
            let is_sending = !self.outgoing.is_empty();
            if is_closing && !is_sending && self.leaving.is_none() {
                return Err(Ended::Closed);
            }
            let has_room = self.outgoing.len() < ROOM;
            let may_ask = has_room && self.asked.len() < QUESTIONS;
            tokio::select! {
                read = self.incoming.read_from(&mut self.reader),
                    if self.outgoing.len() < LONGEST => self.on_read(read).await?,
                written = self.outgoing.write_to(writer), if is_sending => match written {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        return Err(Ended::Stalled);
                    }
                    Err(error) if is_closed(&error) => return Ok(NotWritable),
                    written => written.map_err(Ended::Io)?,
                },
                question = link.questions.recv(), if may_ask => match question {
                    Some(question) => self.ask(question)?,
                    None => {
                        link.peer = None;
                        return Err(Ended::NoAnswer);
                    }
                },
                () = &mut unlinked => {
                    link.peer = None;
                    return Err(Ended::NoAnswer);
                }
                Some(answered) = self.answering.join_next() => {
                    // The question of a handler that panicked gets no answer.
                    if let Ok((number, body)) = answered {
                        self.outgoing.push(Kind::Answer, &event::answer(number, &body))?;
                    }
                }
                message = ends.controls.recv(), if has_room && !is_closing => match message {
                    Some(message) => {
                        self.outgoing.push(Kind::Control, &event::control(&message))?;
                    }
                    None => is_closing = true,
                },
                permit = ends.bulk_to.reserve(), if !self.arrived.is_empty() => {
                    self.hand_on(permit.ok())?;
                }
                Some(message) = ends.bulks.recv(), if self.leaving.is_none() => {
                    if message.body.len() > LONGEST {
                        return Err(TooLong.into());
                    }
                    self.leaving = Some((message, 0));
                }
            }
        }
    }

    /// Reads once.
    async fn listen(&mut self) -> Result<(), Ended> {
        let read = self.incoming.read_from(&mut self.reader).await;
        self.on_read(read).await
    }

    async fn on_read(&mut self, read: io::Result<usize>) -> Result<(), Ended> {
        match read {
            Ok(0) if self.incoming.is_empty() => return Err(Ended::ClosedByOther),
            Ok(0) => return Err(Malformed("only a part of a frame").into()),
            Err(error) if is_closed(&error) => return Err(Ended::ClosedByOther),
            read => drop(read.map_err(Ended::Io)?),
        }
        while let Some((kind, body)) = self.incoming.take_frame()? {
            let event = Event::decode(kind, body)?;
            self.on_event(event).await?;
        }
        Ok(())
    }

    async fn on_event(&mut self, event: Event) -> Result<(), Ended> {
        match event {
            Event::Question { number, topic, body } => self.answer(number, topic, body).await?,
            Event::Answer { number, body } => {
                let asker = self.asked.remove(&number);
                let asker = asker.ok_or(Malformed("an answer without a question"))?;
                // The caller may have gone.
                drop(asker.send(body));
            }
            Event::Control(message) => match self.control_to.try_send(message) {
                Err(TrySendError::Full(_)) => {
                    return Err(Malformed("too many control messages").into());
                }
                Ok(()) | Err(TrySendError::Closed(_)) => {}
            },
            Event::Piece { part, has_more } => self.on_piece(part, has_more)?,
            Event::Credit(pieces) => {
                self.credit = self.credit.saturating_add(pieces);
                if self.credit > WINDOW {
                    return Err(Malformed("more credit than there is").into());
                }
            }
        }
        Ok(())
    }

    fn ask(&mut self, question: Question) -> Result<(), TooLong> {
        let Question { topic, body, answer } = question;
        self.last_number += 1;
        let body = event::question(self.last_number, topic as u8, &body);
        self.outgoing.push(Kind::Question, &body)?;
        self.asked.insert(self.last_number, answer);
        Ok(())
    }

    /// Runs the handler of a question until it first waits.
    async fn answer(&mut self, number: u64, topic: u8, body: Vec<u8>) -> Result<(), Ended> {
        if self.answering.len() >= QUESTIONS {
            return Err(Malformed("too many questions at once").into());
        }
        let mut answering = match Topic::parse(topic) {
            Some(topic) => Box::pin((self.handler)(topic, body)),
            None => {
                self.outgoing.push(Kind::Answer, &event::answer(number, &[]))?;
                return Ok(());
            }
        };
        match poll_fn(|cx| Poll::Ready(answering.as_mut().poll(cx))).await {
            Poll::Ready(body) => {
                self.outgoing.push(Kind::Answer, &event::answer(number, &body))?;
            }
            Poll::Pending => {
                self.answering.spawn(async move { (number, answering.await) });
            }
        }
        Ok(())
    }

    fn on_piece(&mut self, part: Message, has_more: bool) -> Result<(), Ended> {
        self.owed += 1;
        if self.owed > WINDOW {
            return Err(Malformed("more than was allowed").into());
        }
        match &mut self.arriving {
            None => self.arriving = Some(part),
            Some(whole) => {
                if whole.kind != part.kind || whole.body.len() + part.body.len() > LONGEST {
                    return Err(Malformed("parts that do not belong together").into());
                }
                extend(&mut whole.body, &part.body);
            }
        }
        if !has_more {
            self.arrived.extend(self.arriving.take());
        }
        Ok(self.give_credit()?)
    }

    /// Passes a bulk message on. Without a permit, nobody receives them any more.
    fn hand_on(&mut self, permit: Option<mpsc::Permit<'_, Message>>) -> Result<(), TooLong> {
        match (permit, self.arrived.pop_front()) {
            (Some(permit), Some(message)) => permit.send(message),
            _ => self.arrived.clear(),
        }
        self.give_credit()
    }

    /// Allows more pieces if everything was taken: a message may have more pieces than the window.
    fn give_credit(&mut self) -> Result<(), TooLong> {
        if self.arrived.is_empty() && self.owed >= WINDOW / 2 {
            let pieces = mem::take(&mut self.owed);
            self.outgoing.push(Kind::Credit, &event::credit(pieces))?;
        }
        Ok(())
    }

    /// The next piece of a bulk message, if nothing else waits.
    fn send_piece(&mut self) -> Result<(), TooLong> {
        if !self.outgoing.is_empty() || self.credit == 0 {
            return Ok(());
        }
        let Some((message, sent)) = &mut self.leaving else { return Ok(()) };
        let rest = message.body.get(*sent..).unwrap_or_default();
        let part = rest.get(..PIECE).unwrap_or(rest);
        let has_more = part.len() < rest.len();
        self.outgoing.push(Kind::Bulk, &event::piece(message.kind, part, has_more))?;
        *sent += part.len();
        self.credit -= 1;
        if !has_more {
            self.leaving = None;
        }
        Ok(())
    }
}

/// The other process reads nothing more.
struct NotWritable;

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
