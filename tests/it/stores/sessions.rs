//! How sessions end: by time, by a logout, and by the limit on sessions of a user.

use std::time::Duration;

use super::{Gateways, in_memory_and_on_redis, text, until_used_after};
use crate::shared_store::{status, until_status};

in_memory_and_on_redis! {
    a_session_expires_after_its_idle_timeout_and_at_its_absolute_end("session.ttl = \"1h\"\nsession.idle_timeout = \"30m\"");
    logging_out_ends_the_session_and_never_fails("");
    a_login_above_the_limit_replaces_the_oldest_session("session.max_per_user = 2");
    a_user_has_ten_sessions_by_default("");
    ended_sessions_are_not_listed_and_do_not_count_towards_the_limit("session.max_per_user = 2\nsession.idle_timeout = \"30m\"");
}

async fn a_session_expires_after_its_idle_timeout_and_at_its_absolute_end(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let (idle, busy) = (here.login("alice").await, here.login("alice").await);
    let mut last_use = text(&gateways.listed("alice").await[0], "created").to_owned();
    for stack in [there, here, there] {
        gateways.advance(Duration::from_secs(19 * 60));
        assert_eq!(status(stack, &busy).await, 200);
        // What the other gateway needs to know has come to the store.
        last_use = until_used_after(&gateways, &last_use).await;
    }
    for stack in [here, there] {
        stack.get("/").token(&idle).send().await.assert_error(401, "session_expired", "login");
        assert_eq!(status(stack, &busy).await, 200);
    }
    gateways.advance(Duration::from_secs(180));
    for stack in [here, there] {
        stack.get("/").token(&busy).send().await.assert_error(401, "session_expired", "login");
    }
}

async fn logging_out_ends_the_session_and_never_fails(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let (phone, tablet) = (here.login("alice").await, there.login("alice").await);
    let response = here.post("/logout").token(&phone).send().await;
    assert_eq!((response.status, response.body.len()), (204, 0));
    here.get("/").token(&phone).send().await.assert_error(401, "session_expired", "login");
    until_status(there, &phone, 401).await;
    assert_eq!(status(here, &tablet).await, 200);

    assert_eq!(there.post("/logout").token(&phone).send().await.status, 204);
    assert_eq!(here.post("/logout").token("malformed").send().await.status, 204);
    assert_eq!(here.post("/logout").send().await.status, 204);
    assert_eq!(there.post("/logout").bearer(&tablet).send().await.status, 204);
    until_status(here, &tablet, 401).await;
    here.get("/logout").send().await.assert_error(405, "method_not_allowed", "none");
}

async fn a_login_above_the_limit_replaces_the_oldest_session(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let first = here.login("alice").await;
    gateways.advance(Duration::from_millis(1));
    let second = there.login("alice").await;
    gateways.advance(Duration::from_millis(1));
    let bobs = here.login("bob").await;
    // It is the oldest session, even if it was used last.
    assert_eq!(status(there, &first).await, 200);
    let third = there.login("alice").await;
    assert_eq!(status(there, &first).await, 401);
    until_status(here, &first, 401).await;
    for token in [&second, &third, &bobs] {
        assert_eq!(status(here, token).await, 200);
    }
    assert_eq!(there.metric("wxgate_sessions_removed_total{cause=\"replaced\"}").await, 1.0);
    // An ended session makes room.
    assert_eq!(here.post("/logout").token(&second).send().await.status, 204);
    let fourth = here.login("alice").await;
    for token in [&third, &fourth] {
        assert_eq!(status(here, token).await, 200);
    }
}

async fn a_user_has_ten_sessions_by_default(gateways: Gateways) {
    let stack = gateways.here();
    for _ in 0..12 {
        stack.login("alice").await;
    }
    assert_eq!(gateways.listed("alice").await.len(), 10);
}

async fn ended_sessions_are_not_listed_and_do_not_count_towards_the_limit(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    here.login("alice").await;
    there.login("alice").await;
    gateways.advance(Duration::from_secs(40 * 60));
    assert!(gateways.listed("alice").await.is_empty());
    let tokens = [here.login("alice").await, there.login("alice").await];
    for token in &tokens {
        assert_eq!(status(here, token).await, 200);
    }
    assert_eq!(gateways.listed("alice").await.len(), 2);
}
