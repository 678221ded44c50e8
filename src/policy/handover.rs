//! What a process gives to the one that takes over, besides sessions.
//!
//! That is rate limits, codes that were sent, keys of TLS session tickets, records (callbacks,
//! tickets, scans), cookie jars, and which sessions have ended though the snapshot may have them.
//! So nobody has a second quota, no code is exchanged twice, and what has begun with one process can
//! end with the other. A rate limit or an app is found by its name in the configuration of the new
//! process; one that is not there is dropped. How each part is written is decided where it is kept.
//!
//! Afterwards, while the old process drains, each process tells the other the uses of its rate
//! limits: requests that have passed.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Policies, Policy, Process};
use crate::handover::claims::{CodeKind, Wanted, answer_to_wanted};
use crate::handover::fields::{Malformed, Writer, read};
use crate::handover::peer::Topic;

/// How often the uses of rate limits are sent to the other process.
const TELL_USES: Duration = Duration::from_millis(20);

/// Numbers of the fields of a piece, which has one part.
mod field {
    /// The name of a rate limit or an app; other parts have none.
    pub const NAME: u32 = 1;

    pub const RATE_LIMIT: u32 = 2;
    pub const APP_RATE_LIMIT: u32 = 3;
    pub const TICKET_KEYS: u32 = 4;
    pub const LOGIN_CODES: u32 = 5;
    pub const PHONE_CODES: u32 = 6;
    pub const RECORDS: u32 = 7;
    pub const JARS: u32 = 8;
    pub const ENDED: u32 = 9;
}

/// The state of this process, in pieces of less than 1 MiB. Records must be frozen, so that none
/// changes after it was written.
pub fn export(process: &Process, policy: &Policy) -> Vec<Writer> {
    let mut pieces = Vec::new();
    for (name, limit) in policy.rate_limits() {
        limit.export(|limit| pieces.push(named(&name, field::RATE_LIMIT, limit)));
    }
    for app in policy.login.apps().iter() {
        let (name, limit) = (app.app_id().as_str(), app.rate_limit.export());
        pieces.push(named(name, field::APP_RATE_LIMIT, &limit));
    }
    pieces.push(part(field::TICKET_KEYS, &process.tickets.export()));
    policy.login.codes().export(|codes| pieces.push(part(field::LOGIN_CODES, codes)));
    process.phone_codes.export(|codes| pieces.push(part(field::PHONE_CODES, codes)));
    process.sessions.records().export(|records| pieces.push(part(field::RECORDS, records)));
    process.sessions.export_jars(|jars| pieces.push(part(field::JARS, jars)));
    process.sessions.export_ended(|ended| pieces.push(part(field::ENDED, ended)));
    pieces
}

/// Takes a piece of the state of another process. Sessions must be here already.
///
/// # Errors
/// When it is malformed.
pub fn import(process: &Process, policy: &Policy, piece: &[u8]) -> Result<(), Malformed> {
    let mut name = "";
    for field in read(piece) {
        let field = field?;
        let value = field.value;
        match field.number {
            field::NAME => name = field.text().ok_or(Malformed)?,
            field::RATE_LIMIT => import_limit(policy, name, value)?,
            field::APP_RATE_LIMIT => {
                if let Some(app) = policy.login.apps().get(name) {
                    app.rate_limit.import(value)?;
                }
            }
            field::TICKET_KEYS => process.tickets.import(value)?,
            field::LOGIN_CODES => policy.login.codes().import(value)?,
            field::PHONE_CODES => process.phone_codes.import(value)?,
            field::RECORDS => process.sessions.records().import(value)?,
            field::JARS => process.sessions.import_jars(value)?,
            field::ENDED => process.sessions.import_ended(value)?,
            // Of a newer program.
            _ => {}
        }
    }
    Ok(())
}

/// From now on the uses of rate limits are noted for the other process, or not any more.
pub fn note_uses(policy: &Policy, is_on: bool) {
    policy.rate_limits().for_each(|(_, limit)| limit.note_uses(is_on));
    policy.login.apps().iter().for_each(|app| app.rate_limit.note_uses(is_on));
}

/// Tells the other process the uses of rate limits, until it is gone, or until `ending` is cancelled
/// and then once more. They have been noted since the limits were handed over.
pub async fn keep_telling_uses(process: &Process, policies: &Policies, ending: &CancellationToken) {
    while process.peer.is_linked() {
        let is_last = ending.is_cancelled();
        let policy = policies.current();
        // A reload may have added limits.
        note_uses(&policy, true);
        tell_uses(process, &policy).await;
        if is_last {
            break;
        }
        ending.run_until_cancelled(sleep(TELL_USES)).await;
    }
    note_uses(&policies.current(), false);
}

/// Tells the other process the uses of rate limits that were noted since the last call.
pub async fn tell_uses(process: &Process, policy: &Policy) {
    let mut pieces = Vec::new();
    for (name, limit) in policy.rate_limits() {
        limit.take_uses(|uses| pieces.push(named(&name, field::RATE_LIMIT, uses)));
    }
    for app in policy.login.apps().iter() {
        if let Some(uses) = app.rate_limit.take_uses() {
            pieces.push(named(app.app_id().as_str(), field::APP_RATE_LIMIT, &uses));
        }
    }
    for piece in pieces {
        // Without an answer there is nobody else any more.
        let _ = process.peer.ask(Topic::Rate, piece.as_bytes().to_vec()).await;
    }
}

/// Counts the uses of the other process's rate limits.
///
/// # Errors
/// When the piece is malformed.
pub fn count_uses(policy: &Policy, piece: &[u8]) -> Result<(), Malformed> {
    let mut name = "";
    for field in read(piece) {
        let field = field?;
        match field.number {
            field::NAME => name = field.text().ok_or(Malformed)?,
            field::RATE_LIMIT => import_limit(policy, name, field.value)?,
            field::APP_RATE_LIMIT => {
                if let Some(app) = policy.login.apps().get(name) {
                    app.rate_limit.add_uses(field.value)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Answers whether the other process may send a code to WeChat.
pub fn answer_code(process: &Process, policy: &Policy, question: &[u8]) -> Vec<u8> {
    let Some(wanted) = Wanted::parse(question) else { return answer_to_wanted(false) };
    answer_to_wanted(match wanted.kind {
        Some(CodeKind::Login) => policy.login.codes().give(&wanted),
        Some(CodeKind::PhoneNumber) => process.phone_codes.give(&wanted),
        // This process sends no such codes.
        None => true,
    })
}

fn import_limit(policy: &Policy, name: &str, given: &[u8]) -> Result<(), Malformed> {
    if let Some((_, limit)) = policy.rate_limits().find(|(known, _)| known == name) {
        // With another rate it begins anew, as after a reload.
        limit.import(given)?;
    }
    Ok(())
}

fn part(number: u32, state: &Writer) -> Writer {
    let mut piece = Writer::new();
    piece.list(number, state);
    piece
}

fn named(name: &str, number: u32, state: &Writer) -> Writer {
    let mut piece = Writer::new();
    piece.text(field::NAME, name).list(number, state);
    piece
}
