use super::*;
use crate::handover::claims::answer_to_wanted;
use crate::handover::claims::tests::join;

const WINDOW: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(60);

fn coalescing(capacity: u64) -> (Coalescing, Clock) {
    let clock = Clock::manual();
    let coalescing = of_process(capacity, &Peer::default(), &clock);
    (coalescing, clock)
}

fn of_process(capacity: u64, peer: &Peer, clock: &Clock) -> Coalescing {
    Coalescing::with_capacity(capacity, WINDOW, LONGEST, peer.clone(), clock.clone())
}

fn grant() -> Arc<Grant> {
    let openid = OpenId::parse("o1").unwrap();
    let token = SessionToken::generate();
    Arc::new(Grant { token, expires_in: WINDOW, openid, user_id: None })
}

fn key(code: usize) -> Key {
    Key::of("wx1", "", &code.to_string())
}

fn token(outcome: &Outcome) -> String {
    outcome.as_ref().unwrap().token.expose().to_owned()
}

#[tokio::test]
async fn a_repeat_gets_the_same_response_within_the_window() {
    let (coalescing, clock) = coalescing(10);
    let (first, coalesced) = coalescing.share(key(1), || async { Ok(grant()) }).await;
    assert_eq!(coalesced, Coalesced::No);
    clock.advance(Duration::from_millis(9_999));
    let (second, coalesced) = coalescing.share(key(1), || async { Ok(grant()) }).await;
    assert_eq!((token(&second), coalesced), (token(&first), Coalesced::Cached));
    clock.advance(Duration::from_millis(1));
    let (third, coalesced) = coalescing.share(key(1), || async { Ok(grant()) }).await;
    assert_eq!(coalesced, Coalesced::No);
    assert_ne!(token(&third), token(&first));
}

#[tokio::test]
async fn only_final_outcomes_are_cached() {
    let (coalescing, _) = coalescing(100);
    for (number, (rejection, expected)) in [
        (Rejection::InvalidCode, Coalesced::Cached),
        (Rejection::UserBlocked, Coalesced::Cached),
        (Rejection::LoginRefused(None), Coalesced::Cached),
        (Rejection::LoginRefused(Some("no".into())), Coalesced::Cached),
        (Rejection::WeChatBusy { retry_after: 1 }, Coalesced::No),
        (Rejection::RateLimited { retry_after: 1 }, Coalesced::No),
        (Rejection::WeChatTimeout { retry_after: 1 }, Coalesced::No),
        (Rejection::LoginUnavailable { retry_after: 1 }, Coalesced::No),
        (Rejection::WeChatRejected, Coalesced::No),
        (Rejection::StoreUnavailable, Coalesced::No),
    ]
    .into_iter()
    .enumerate()
    {
        let first = Failure::from(rejection.clone());
        coalescing.share(key(number), || async { Err(first) }).await.0.err().unwrap();
        let (_, coalesced) = coalescing.share(key(number), || async { Ok(grant()) }).await;
        assert_eq!(coalesced, expected, "{rejection:?}");
    }
}

#[tokio::test]
async fn an_exchange_continues_when_its_client_disconnects() {
    let (coalescing, _) = coalescing(10);
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let left = {
        let coalescing = coalescing.clone();
        tokio::spawn(async move {
            coalescing
                .share(key(1), || async {
                    drop(released.await);
                    Ok(grant())
                })
                .await
        })
    };
    while coalescing.exchanges.get(&key(1)).is_none() {
        tokio::task::yield_now().await;
    }
    left.abort();
    let stays = {
        let coalescing = coalescing.clone();
        tokio::spawn(async move { coalescing.share(key(1), || async { Ok(grant()) }).await.1 })
    };
    tokio::task::yield_now().await;
    release.send(()).unwrap();
    assert_eq!(stays.await.unwrap(), Coalesced::InFlight);
}

#[tokio::test]
async fn a_panic_of_an_exchange_is_an_internal_error_and_not_cached() {
    let (coalescing, _) = coalescing(10);
    let panics = || async { panic!("a fault") };
    let (outcome, _) = coalescing.share(key(1), panics).await;
    assert_eq!(outcome.err().unwrap().rejection, Rejection::InternalError);
    assert_eq!(coalescing.share(key(1), || async { Ok(grant()) }).await.1, Coalesced::No);
}

#[tokio::test]
async fn the_number_of_cached_codes_is_limited() {
    let (coalescing, _) = coalescing(100);
    for code in 0..1000 {
        coalescing.share(key(code), || async { Ok(grant()) }).await.0.unwrap();
    }
    coalescing.maintain();
    assert_eq!(coalescing.exchanges.entry_count(), 100);
    assert_eq!(coalescing.share(key(999), || async { Ok(grant()) }).await.1, Coalesced::Cached);
    assert_eq!(coalescing.share(key(0), || async { Ok(grant()) }).await.1, Coalesced::No);
}

#[test]
fn apps_do_not_share_codes() {
    assert!(Key::of("wx1", "", "a") != Key::of("wx2", "", "a"));
    assert!(Key::of("wx1", "", "1a") != Key::of("wx11", "", "a"));
    assert!(Key::of("wx1", "s", "a") != Key::of("wx1", "t", "a"));
}

/// Two processes that know each other.
fn two_processes() -> ([Coalescing; 2], [Peer; 2], Clock) {
    let clock = Clock::manual();
    let peers = [Peer::default(), Peer::default()];
    let processes = peers.each_ref().map(|peer| of_process(100, peer, &clock));
    let asked = processes.clone();
    join(peers.each_ref(), move |process, question| {
        answer_to_wanted(asked[process].give(&Wanted::parse(question).unwrap()))
    });
    (processes, peers, clock)
}

async fn log_in(process: &Coalescing, code: usize) -> Result<Arc<Grant>, Rejection> {
    process.share(key(code), || async { Ok(grant()) }).await.0.map_err(|failure| failure.rejection)
}

#[tokio::test]
async fn a_code_that_another_process_has_exchanged_is_rejected_for_as_long_as_it_repeats_it() {
    let ([old, new], peers, clock) = two_processes();
    let granted = log_in(&old, 1).await.unwrap();
    assert_eq!(log_in(&new, 1).await.err(), Some(Rejection::InvalidCode));
    let again = log_in(&old, 1).await.unwrap();
    assert_eq!(again.token.expose(), granted.token.expose());
    // Also after the other process has ended.
    peers[1].unlink();
    clock.advance((LONGEST + WINDOW).checked_sub(Duration::from_millis(1)).unwrap());
    assert_eq!(log_in(&new, 1).await.err(), Some(Rejection::InvalidCode));
    log_in(&new, 2).await.unwrap();
    clock.advance(Duration::from_millis(1));
    log_in(&new, 1).await.unwrap();
}

#[tokio::test]
async fn of_two_exchanges_of_one_code_at_once_one_is_made() {
    for _ in 0..20 {
        let ([old, new], ..) = two_processes();
        let (one, two) = tokio::join!(log_in(&old, 1), log_in(&new, 1));
        let rejected: Vec<_> = [one, two].into_iter().filter_map(Result::err).collect();
        assert_eq!(rejected, [Rejection::InvalidCode]);
    }
}

#[tokio::test]
async fn a_code_is_free_again_for_who_had_it_after_a_failure_that_may_pass() {
    let ([old, new], ..) = two_processes();
    let busy = || async { Err(Rejection::WeChatBusy { retry_after: 1 }.into()) };
    old.share(key(1), busy).await.0.err().unwrap();
    log_in(&old, 1).await.unwrap();
    assert_eq!(log_in(&new, 1).await.err(), Some(Rejection::InvalidCode));
}

#[tokio::test(start_paused = true)]
async fn a_process_goes_on_alone_if_the_other_does_not_answer() {
    let ([old, _], peers, _) = two_processes();
    let hung = peers[0].link();
    log_in(&old, 1).await.unwrap();
    assert!(!peers[0].is_linked());
    drop(hung);
}

#[tokio::test]
async fn codes_from_before_the_other_process_began_are_handed_over() {
    let clock = Clock::manual();
    let [old, new] = [0, 1].map(|_| of_process(10_000, &Peer::default(), &clock));
    log_in(&old, 1).await.unwrap();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let under_way = {
        let old = old.clone();
        tokio::spawn(async move {
            let slow = || async {
                released.await.unwrap();
                Ok(grant())
            };
            old.share(key(2), slow).await.0.unwrap()
        })
    };
    while old.exchanges.get(&key(2)).is_none() {
        tokio::task::yield_now().await;
    }
    let busy = || async { Err(Rejection::WeChatBusy { retry_after: 1 }.into()) };
    old.share(key(3), busy).await.0.err().unwrap();
    for code in 10..7000 {
        log_in(&old, code).await.unwrap();
    }
    let mut pieces = Vec::new();
    old.export(|piece| pieces.push(piece.as_bytes().to_vec()));
    assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() < 256 << 10));
    for piece in &pieces {
        new.import(piece).unwrap();
        assert_eq!(new.import(&piece[..piece.len() - 1]), Err(Malformed));
    }
    for code in [1, 2, 10, 6999] {
        assert_eq!(log_in(&new, code).await.err(), Some(Rejection::InvalidCode), "{code}");
    }
    log_in(&new, 3).await.unwrap();
    clock.advance(WINDOW);
    log_in(&new, 1).await.unwrap();
    assert_eq!(log_in(&new, 2).await.err(), Some(Rejection::InvalidCode));
    release.send(()).unwrap();
    under_way.await.unwrap();
}
