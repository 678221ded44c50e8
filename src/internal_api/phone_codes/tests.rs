use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::handover::claims::tests::join;
use crate::handover::claims::{CodeKind, Wanted, answer_to_wanted};
use crate::handover::fields::Malformed;
use crate::handover::peer::Peer;
use crate::identity::{AppId, OpenId};
use crate::wechat::sent_codes::{CAPACITY, LIFETIME};

fn user(openid: &str) -> User {
    let app_id = AppId::parse("wx0123456789abcdef").unwrap();
    User { app_id, openid: OpenId::parse(openid).unwrap() }
}

fn codes(peer: &Peer, clock: &Clock) -> Arc<PhoneCodes> {
    let sent = SentCodes::new(CodeKind::PhoneNumber, peer.clone(), clock.clone());
    Arc::new(PhoneCodes::new(Arc::new(sent)))
}

fn alone(clock: &Clock) -> Arc<PhoneCodes> {
    codes(&Peer::default(), clock)
}

async fn send(codes: &Arc<PhoneCodes>, code: &str, is_spent: bool) -> Outcome {
    let outcome = Err(Failure::from(ApiError::WeChatRejected));
    let send = || async move { Sent { outcome, is_spent } };
    codes.send_once(user("o1"), &Secret::new(code.to_owned()), send).await
}

fn error(outcome: Outcome) -> ApiError {
    outcome.err().unwrap().error
}

#[tokio::test]
async fn a_code_is_remembered_for_ten_minutes() {
    let clock = Clock::manual();
    let codes = alone(&clock);
    assert_eq!(error(send(&codes, "a", false).await), ApiError::WeChatRejected);
    clock.advance(LIFETIME / 2);
    assert_eq!(error(send(&codes, "a", true).await), ApiError::WeChatRejected);
    clock.advance(LIFETIME.saturating_sub(Duration::from_millis(1)));
    assert_eq!(error(send(&codes, "a", true).await), ApiError::InvalidPhoneCode);
    clock.advance(Duration::from_millis(1));
    assert_eq!(error(send(&codes, "a", true).await), ApiError::WeChatRejected);
    assert_eq!(codes.sent.count(), 1);
}

#[tokio::test]
async fn attempts_that_were_not_sent_take_no_room() {
    let codes = alone(&Clock::manual());
    for _ in 0..3 {
        assert_eq!(error(send(&codes, "a", false).await), ApiError::WeChatRejected);
    }
    assert_eq!(codes.sent.count(), 0);
    assert!(codes.in_flight.lock().is_empty());
}

#[tokio::test]
async fn when_too_many_codes_are_known_new_ones_are_rejected() {
    let clock = Clock::manual();
    let codes = alone(&clock);
    for number in 0..CAPACITY {
        let turn = codes.turn(user("o1"), &Secret::new(number.to_string()));
        assert!(matches!(turn, Ok(Turn::Send(..))));
    }
    assert_eq!(error(send(&codes, "new", true).await), ApiError::Overloaded);
    clock.advance(LIFETIME);
    assert_eq!(error(send(&codes, "new", true).await), ApiError::WeChatRejected);
}

#[tokio::test]
async fn a_call_that_panics_spends_its_code() {
    let codes = alone(&Clock::manual());
    let code = Secret::new("a".to_owned());
    let send = || async { panic!("on purpose") };
    assert_eq!(error(codes.send_once(user("o1"), &code, send).await), ApiError::Internal);
    let again = codes.send_once(user("o1"), &code, || async { unreachable!() }).await;
    assert_eq!(error(again), ApiError::InvalidPhoneCode);
    assert!(codes.in_flight.lock().is_empty());
}

#[tokio::test]
async fn of_two_processes_one_sends_a_code() {
    let clock = Clock::manual();
    let peers = [Peer::default(), Peer::default()];
    let processes = peers.each_ref().map(|peer| codes(peer, &clock));
    let asked = processes.clone();
    join(peers.each_ref(), move |process, question| {
        answer_to_wanted(asked[process].sent.give(&Wanted::parse(question).unwrap()))
    });
    let [old, new] = processes;
    assert_eq!(error(send(&old, "a", true).await), ApiError::WeChatRejected);
    assert_eq!(error(send(&new, "a", true).await), ApiError::InvalidPhoneCode);
    for code in 0..20 {
        let code = format!("both {code}");
        let (one, two) = tokio::join!(send(&old, &code, true), send(&new, &code, true));
        let mut outcomes = [error(one), error(two)];
        outcomes.sort_by_key(|error| *error == ApiError::InvalidPhoneCode);
        assert_eq!(outcomes, [ApiError::WeChatRejected, ApiError::InvalidPhoneCode]);
    }
    // Who has not sent it may send it again.
    assert_eq!(error(send(&old, "b", false).await), ApiError::WeChatRejected);
    assert_eq!(error(send(&old, "b", true).await), ApiError::WeChatRejected);
    assert_eq!(error(send(&new, "b", true).await), ApiError::InvalidPhoneCode);
    // Also after the other process has ended.
    peers.iter().for_each(Peer::unlink);
    assert_eq!(error(send(&new, "b", true).await), ApiError::InvalidPhoneCode);
}

#[tokio::test]
async fn codes_are_remembered_by_the_next_process() {
    let clock = Clock::manual();
    let [old, new] = [alone(&clock), alone(&clock)];
    send(&old, "a", true).await.err().unwrap();
    send(&old, "not sent", false).await.err().unwrap();
    clock.advance(LIFETIME / 2);
    for code in 0..7000 {
        send(&old, &code.to_string(), true).await.err().unwrap();
    }
    let mut pieces = Vec::new();
    old.sent.export(|piece| pieces.push(piece.as_bytes().to_vec()));
    assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() < 256 << 10));
    for piece in &pieces {
        assert_eq!(new.sent.import(&piece[..piece.len() - 1]), Err(Malformed));
        new.sent.import(piece).unwrap();
    }
    for code in ["a", "0", "6999"] {
        assert_eq!(error(send(&new, code, true).await), ApiError::InvalidPhoneCode);
    }
    assert_eq!(error(send(&new, "not sent", true).await), ApiError::WeChatRejected);
    clock.advance(LIFETIME / 2);
    assert_eq!(error(send(&new, "a", true).await), ApiError::WeChatRejected);
    assert_eq!(error(send(&new, "0", true).await), ApiError::InvalidPhoneCode);
}
