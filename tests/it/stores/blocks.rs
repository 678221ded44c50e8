//! A blocked user cannot log in, until the block expires or is removed.

use std::time::Duration;

use serde_json::Value;

use super::{
    Gateways, NAMED, assert_login_is_rejected, in_memory_and_on_redis, name_in_the_log, of, text,
    text_of, try_login,
};
use crate::harness::APP;
use crate::harness::client::Connection;
use crate::shared_store::{status, until_status};

in_memory_and_on_redis! {
    a_blocked_user_cannot_log_in_until_the_block_expires("");
    unblocking_a_user_revokes_no_session("");
    a_user_without_a_session_is_unblocked_by_name(super::NAMED);
    a_login_in_flight_does_not_slip_past_a_block("");
    no_login_slips_past_a_block_by_a_race("");
}

async fn a_blocked_user_cannot_log_in_until_the_block_expires(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let tokens = [here.login("alice").await, there.login("alice").await];
    assert_eq!(gateways.list(&of("alice")).await["blocked_until"], Value::Null);
    gateways.delete(&format!("{}&block=24h", of("alice"))).await;
    for token in &tokens {
        until_status(here, token, 401).await;
        until_status(there, token, 401).await;
    }
    for stack in [here, there] {
        assert_login_is_rejected(stack, "alice").await;
        assert_eq!(try_login(stack, "bob").await.status, 200);
    }
    let listed = gateways.list(&of("alice")).await;
    assert!(listed["sessions"].as_array().unwrap().is_empty());
    let until = humantime::parse_rfc3339(text(&listed, "blocked_until")).unwrap();
    let left = until.duration_since(std::time::SystemTime::now()).unwrap();
    let day = Duration::from_secs(24 * 3600);
    assert!(left <= day && left > day - Duration::from_secs(600), "{left:?}");
    let rejections = format!("wxgate_logins_total{{app_id=\"{APP}\",outcome=\"login_refused\"}}");
    assert!(here.metric(&rejections).await >= 1.0);

    // Longer than the test can have taken: the store has its own clock.
    let margin = Duration::from_secs(600);
    gateways.advance(day - margin);
    assert_login_is_rejected(there, "alice").await;
    gateways.advance(margin);
    for stack in [here, there] {
        assert_eq!(try_login(stack, "alice").await.status, 200);
    }
    assert_eq!(gateways.list(&of("alice")).await["blocked_until"], Value::Null);
}

async fn unblocking_a_user_revokes_no_session(gateways: Gateways) {
    let there = gateways.there();
    gateways.delete(&format!("{}&block=365d", of("alice"))).await;
    // The second replaces the first.
    gateways.delete(&format!("{}&block=1s", of("alice"))).await;
    assert_login_is_rejected(there, "alice").await;
    gateways.delete(&format!("{}&block=0s", of("alice"))).await;
    let token = there.login("alice").await;
    gateways.delete(&format!("{}&block=0s", of("alice"))).await;
    assert_eq!(status(there, &token).await, 200);
}

async fn a_user_without_a_session_is_unblocked_by_name(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let token = here.login("alice").await;
    let by_name = format!("/sessions?user={}", name_in_the_log(here, &token).await);
    gateways.delete(&format!("{by_name}&block=24h")).await;
    assert_login_is_rejected(there, "alice").await;
    assert!(gateways.list(&by_name).await["blocked_until"].is_string());
    // Again, without a session to find the user by.
    gateways.delete(&format!("{by_name}&block=48h")).await;
    assert_login_is_rejected(there, "alice").await;
    gateways.delete(&format!("{by_name}&block=0s")).await;
    there.login("alice").await;
}

async fn a_login_in_flight_does_not_slip_past_a_block(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let body = serde_json::json!({ "code": "slow-1s-alice" });
    let mut login = Connection::open(there.gateway).await;
    login.send(&there.post("/login").json(&body).bytes()).await;
    while there.sandbox.exchanges() == 0 {
        tokio::task::yield_now().await;
    }
    gateways.delete(&format!("{}&block=24h", of("alice"))).await;
    login.response(false).await.assert_error(403, "login_refused", "none");
    // A phone that lost the response sends the code again.
    there.post("/login").json(&body).send().await.assert_error(403, "login_refused", "none");
    assert!(gateways.listed("alice").await.is_empty());
    assert_eq!(here.metric("wxgate_sessions_created_total").await, 0.0);
}

async fn no_login_slips_past_a_block_by_a_race(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    for _ in 0..10 {
        let login = |stack| async move {
            let response = try_login(stack, "alice").await;
            (response.status == 200).then(|| text_of(&response.json(), "token"))
        };
        let block = format!("{}&block=1h", of("alice"));
        let (one, two, (), three, four) = tokio::join!(
            login(here),
            login(there),
            gateways.delete(&block),
            login(here),
            login(there)
        );
        for token in [one, two, three, four].into_iter().flatten() {
            until_status(here, &token, 401).await;
            until_status(there, &token, 401).await;
        }
        assert!(gateways.listed("alice").await.is_empty());
        assert_login_is_rejected(here, "alice").await;
        gateways.delete(&format!("{}&block=0s", of("alice"))).await;
    }
}
