//! When WeChat is called for an access token, by whom, and what callers get until it responds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use redis::cmd;
use wxgate::clock::Clock;
use wxgate::identity::secret::Secret;
use wxgate::wechat::WeChatError;
use wxgate::wechat::access_token::AccessTokens;

use crate::harness::redis::{RedisServer, until};
use crate::harness::wechat_api::{Caller, Granting, WeChatApi};
use crate::harness::{APP, PATIENCE, Stack, client, process_log};

const EXPIRY: &str = "wxgate_access_token_expires_timestamp_seconds";

async fn start() -> (WeChatApi, Caller) {
    let clock = Clock::manual();
    let api = WeChatApi::start(&clock).await;
    let caller = Caller::new(&api, &clock, "").await;
    (api, caller)
}

async fn renew(caller: &Caller, token: &str) -> Result<String, WeChatError> {
    let token = Secret::new(token.to_owned());
    let renewed = caller.tokens.renew(&caller.app_id, &token).await?;
    Ok(renewed.token.expose().to_owned())
}

/// Waits until a caller gets another token than this one.
async fn until_renewed(caller: &Caller, old: &str) -> String {
    let renewed = async {
        loop {
            let token = caller.get().await;
            if token != old {
                return token;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("the token is renewed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_without_a_token_share_one_call() {
    let (api, caller) = start().await;
    caller.advance(3600);
    assert_eq!(api.token_calls(), 0, "nobody needs a token");
    let series = format!("{EXPIRY}{{app_id=\"{APP}\"}}");
    assert_eq!(caller.metric(&series), None);
    let tokens = join_all((0..1000).map(|_| caller.get())).await;
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!((api.token_calls(), caller.renewals("ok")), (1, 1.0));
    let expiry = caller.clock.to_wall(caller.clock.now_millis() + 7_200_000) / 1000;
    assert!((caller.metric(&series).unwrap() - expiry as f64).abs() <= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_before_it_expires_while_callers_get_the_old_one() {
    let (api, caller) = start().await;
    let old = caller.get().await;
    caller.advance(6899);
    assert_eq!(caller.get().await, old);
    assert_eq!(api.token_calls(), 1, "five minutes before it expires, but no earlier");
    api.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    caller.advance(61);
    api.until_token_calls(2).await;
    assert_eq!(caller.get().await, old, "nobody waits for a renewal");
    caller.advance(1);
    api.gate.add_permits(1);
    let new = until_renewed(&caller, &old).await;
    assert_eq!(caller.get().await, new);
    caller.advance(239);
    assert_eq!((caller.get().await, api.token_calls()), (new, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_token_is_replaced_once_however_many_say_so() {
    let (api, caller) = start().await;
    let old = caller.get().await;
    api.refresh_elsewhere();
    caller.advance(10);
    let renewed = join_all((0..50).map(|_| renew(&caller, &old))).await;
    let new = renewed[0].clone().unwrap();
    assert!(new != old && renewed.iter().all(|token| token.as_ref() == Ok(&new)));
    assert_eq!(api.token_calls(), 2);

    api.refresh_elsewhere();
    caller.advance(9);
    assert_eq!(renew(&caller, &new).await.unwrap(), new, "not within ten seconds");
    caller.advance(1);
    assert_eq!(renew(&caller, &old).await.unwrap(), new, "it is not the current one");
    assert_eq!(api.token_calls(), 2);
    assert_ne!(renew(&caller, &new).await.unwrap(), new);
    assert_eq!(api.token_calls(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_renewal_is_tried_again_ever_later_and_no_caller_waits_for_it() {
    let (api, caller) = start().await;
    let old = caller.get().await;
    api.meet_requests_for_tokens(Granting::Closes);
    let before = process_log::position();
    caller.advance(6960);
    api.until_token_calls(2).await;
    let mut calls = 2;
    for pause in [10, 20, 40, 80, 160, 300, 300] {
        // It waits until the failed renewal has ended, so that the pause has begun.
        assert!(renew(&caller, &old).await.is_err());
        assert_eq!(caller.renewals("timeout"), f64::from(calls - 1));
        // During the pause nothing is sent for any caller.
        caller.advance(pause - 1);
        let is_valid = caller.clock.now().as_secs() < 7200;
        for _ in 0..3 {
            match caller.tokens.get(&caller.app_id).await {
                Ok(token) => assert!(is_valid && token.token.expose() == old),
                Err(error) => assert!(!is_valid && matches!(error, WeChatError::Broken(_))),
            }
        }
        assert!(renew(&caller, &old).await.is_err());
        assert_eq!(api.token_calls(), calls as usize);
        caller.advance(1);
        calls += 1;
        api.until_token_calls(calls as usize).await;
    }
    assert!(renew(&caller, &old).await.is_err());
    assert_eq!(caller.renewals("timeout"), f64::from(calls - 1));
    let log = process_log::text_after(before);
    let lines = log.lines().filter(|line| line.contains("cannot renew the access_token"));
    let lines: Vec<_> = lines.filter(|line| line.contains(&api.address.to_string())).collect();
    // Of failures at 0, 10, 30, 70, 150, 310, 610 and 910 seconds.
    assert_eq!(lines.len(), 6, "one line a minute: {lines:#?}");
    assert!(lines.iter().all(|line| line.contains("ERROR") && line.contains(APP)));

    api.meet_requests_for_tokens(Granting::Grants);
    caller.advance(300);
    until_renewed(&caller, &old).await;
    assert_eq!(api.token_calls(), calls as usize + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_app_is_tried_again_every_five_minutes() {
    for errcode in [40164, 40125, 40013] {
        let (api, caller) = start().await;
        api.meet_requests_for_tokens(Granting::Reports(errcode));
        let failed = join_all((0..50).map(|_| caller.tokens.get(&caller.app_id))).await;
        for failed in failed {
            let errcode_seen = failed.err().unwrap().errcode().unwrap().number();
            assert_eq!(errcode_seen, errcode);
        }
        assert_eq!((api.token_calls(), caller.renewals("rejected")), (1, 1.0));
        caller.advance(299);
        assert!(caller.tokens.get(&caller.app_id).await.is_err());
        assert_eq!(api.token_calls(), 1);
        api.meet_requests_for_tokens(Granting::Grants);
        caller.advance(1);
        api.until_token_calls(2).await;
        caller.get().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_token_is_none() {
    for granting in [-1, 45009, 45011, 40001, 40243] {
        let (api, caller) = start().await;
        api.meet_requests_for_tokens(Granting::Reports(granting));
        assert!(caller.tokens.get(&caller.app_id).await.is_err());
        let unknown = wxgate::identity::AppId::parse("wx-another").unwrap();
        assert!(caller.tokens.get(&unknown).await.is_err());
        assert_eq!(api.token_calls(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_tokens_and_replaces_them_if_the_secret_changes() {
    let (api, caller) = start().await;
    let old = caller.get().await;
    let Caller { config, wechat, clock, metrics, .. } = &caller;
    let same = AccessTokens::new(Some(&caller.tokens), &config.apps, wechat, None, clock, metrics);
    let kept = same.get(&caller.app_id).await.unwrap();
    assert_eq!(kept.token.expose(), old);
    assert_eq!(same.expires_in(&kept), 7200);
    assert_eq!(api.token_calls(), 1);

    let mut apps = config.apps.clone();
    apps[0].secret = Secret::new("another".to_owned());
    let other = AccessTokens::new(Some(&same), &apps, wechat, None, clock, metrics);
    // The app's token was in use, so WeChat is called immediately. It knows only the old secret.
    other.maintain();
    until("the call fails", || caller.renewals("timeout") == 1.0);
    assert!(other.get(&caller.app_id).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_for_an_internal_api_are_there_access_tokens() {
    let internal =
        "internal.listen = \"127.0.0.1:0\"\ninternal.token = { file = \"{dir}/operator\" }";
    for (changes, expected) in [("", 0), (internal, 4)] {
        let stack = Stack::start_with(changes).await;
        let metrics = client::get(stack.admin, "/metrics").await.text();
        let series = metrics.matches("wxgate_access_token_renewals_total{").count();
        assert_eq!(series, expected, "one for each outcome of the app");
    }
}

/// Two gateways that share a store.
async fn two(server: &RedisServer) -> (WeChatApi, [Caller; 2]) {
    let clock = Clock::manual();
    let api = WeChatApi::start(&clock).await;
    let changes = format!(
        "session.seal_key = {{ file = \"{{dir}}/seal\" }}\nsession.redis.timeout = \"1s\"\n\
         session.redis.url = \"redis://127.0.0.1:{}\"",
        server.port
    );
    let callers =
        [Caller::new(&api, &clock, &changes).await, Caller::new(&api, &clock, &changes).await];
    for caller in &callers {
        until("the store is reached", || caller.sessions.check().is_ok());
    }
    (api, callers)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_gateways_that_share_a_store_one_renews_for_all() {
    let server = RedisServer::start();
    let (api, [one, other]) = two(&server).await;
    let tokens = join_all((0..40).map(|n| if n % 2 == 0 { one.get() } else { other.get() })).await;
    let old = tokens[0].clone();
    assert!(tokens.iter().all(|token| *token == old));
    assert_eq!(api.token_calls(), 1);

    // The clock is common.
    one.advance(6960);
    other.tokens.maintain();
    let new = until_renewed(&one, &old).await;
    assert_eq!(until_renewed(&other, &old).await, new);
    assert_eq!(api.token_calls(), 2);

    api.refresh_elsewhere();
    one.clock.advance(Duration::from_secs(10));
    let (renewed, also) = tokio::join!(renew(&one, &new), renew(&other, &new));
    assert!(renewed.is_ok() && renewed == also && renewed.as_ref() != Ok(&new));
    assert_eq!(api.token_calls(), 3);
    assert_eq!(one.renewals("ok") + other.renewals("ok"), 3.0);

    let key = format!("wxgate:t:{APP}");
    assert_eq!(server.keys(), std::slice::from_ref(&key), "the right to renew is given up");
    let value: Vec<u8> = cmd("GET").arg(&key).query(&mut server.connection()).unwrap();
    let token = renewed.unwrap();
    assert!(!value.windows(8).any(|part| token.as_bytes().windows(8).any(|own| own == part)));
    let life: u64 = cmd("PTTL").arg(&key).query(&mut server.connection()).unwrap();
    assert!((7_000_000..=7_200_000).contains(&life), "{life}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_died_while_it_renewed_delays_the_others_only_until_its_lease_ends() {
    let server = RedisServer::start();
    let (api, [dead, other]) = two(&server).await;
    let store = dead.sessions.shared_tokens().unwrap();
    let time = Duration::from_secs(1);
    let lease = store.try_lease(&dead.app_id, time).await.unwrap().unwrap();
    assert!(store.try_lease(&dead.app_id, time).await.unwrap().is_none());
    let begun = std::time::Instant::now();
    other.get().await;
    assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(api.token_calls(), 1);

    // A lease that has ended is not that of the next holder.
    let next = store.try_lease(&dead.app_id, PATIENCE).await.unwrap().unwrap();
    store.release(&dead.app_id, lease).await.unwrap();
    assert!(store.try_lease(&dead.app_id, time).await.unwrap().is_none());
    store.release(&dead.app_id, next).await.unwrap();
    assert!(store.try_lease(&dead.app_id, time).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_own_calls_fail_uses_the_token_of_another() {
    let server = RedisServer::start();
    let (api, [one, other]) = two(&server).await;
    api.meet_requests_for_tokens(Granting::Reports(40164));
    assert!(one.tokens.get(&one.app_id).await.is_err());
    api.meet_requests_for_tokens(Granting::Grants);
    let token = other.get().await;
    assert_eq!(one.get().await, token);
    assert_eq!(api.token_calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failure_a_slow_store_delays_callers_together_and_not_one_by_one() {
    let server = RedisServer::start_with(&["--enable-debug-command", "yes"]);
    let (api, [one, _other]) = two(&server).await;
    api.meet_requests_for_tokens(Granting::Reports(40164));
    assert!(one.tokens.get(&one.app_id).await.is_err());
    let is_slow = Arc::new(AtomicBool::new(true));
    let (goes_on, mut connection) = (is_slow.clone(), server.connection());
    let slowing = std::thread::spawn(move || {
        while goes_on.load(Ordering::Relaxed) {
            cmd("DEBUG").arg("SLEEP").arg("0.3").exec(&mut connection).unwrap();
        }
    });
    let begun = std::time::Instant::now();
    let outcomes = join_all((0..20).map(|_| one.tokens.get(&one.app_id))).await;
    is_slow.store(false, Ordering::Relaxed);
    slowing.join().unwrap();
    assert!(outcomes.iter().all(Result::is_err));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(api.token_calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_each_gateway_gets_the_token_itself() {
    let mut server = RedisServer::start();
    let (api, [one, other]) = two(&server).await;
    server.kill();
    let token = one.get().await;
    assert_eq!(other.get().await, token);
    assert_eq!(api.token_calls(), 2);
}
