//! What an operator does while two processes run.

use super::{SNAPSHOT, ended, kept_connection};
use crate::harness::upstream::Reply;
use crate::harness::{APP, OPERATOR, Stack, openid};
use crate::websocket::{ACCEPTED, ROUTES, open};

/// Ends all sessions of a user, who cannot log in for a time.
async fn block(stack: &Stack, user: &str, time: &str) {
    let path = format!("/sessions?app_id={APP}&openid={}&block={time}", openid(user));
    let blocked = stack.request("DELETE", &path).bearer(OPERATOR).send_to_admin().await;
    assert_eq!(blocked.status, 204, "{}", blocked.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_at_the_new_process_ends_what_the_old_one_serves() {
    let changes = format!("{SNAPSHOT}{ROUTES}");
    let mut stack = Stack::start_with(&changes).await;
    stack.upstream.reply(|received| {
        let is_chat = received.request_line.contains("/chat");
        if is_chat { Reply::Echo(ACCEPTED.to_vec()) } else { Reply::ok("", "") }
    });
    // On a busy machine the connection may be closed before its last request comes.
    for attempt in 0.. {
        assert!(attempt < 20, "no request was served in time");
        let alice = stack.login(&format!("alice{attempt}")).await;
        let bob = stack.login("bob").await;
        let mut socket = open(&stack, "/chat", Some(&alice)).await;
        let mut kept = kept_connection(&stack).await;
        let old = stack.upgrade(&changes).await;
        block(&stack, &format!("alice{attempt}"), "1h").await;
        kept.try_send(&stack.get("/").token(&alice).bytes()).await;
        let last = kept.response_or_end().await;
        assert!(socket.ends().await);
        ended(old).await;
        assert_eq!(stack.get("/").token(&alice).send().await.status, 401);
        assert_eq!(stack.get("/").token(&bob).send().await.status, 200);
        if let Some(last) = last {
            last.assert_error(401, "session_expired", "login");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_at_the_old_process_holds_at_the_new_one() {
    let mut stack = Stack::start_with(SNAPSHOT).await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    let carol = stack.login("carol").await;
    block(&stack, "alice", "1h").await;
    let successor = stack.successor(SNAPSHOT).await.unwrap();
    // The new process is there already.
    block(&stack, "bob", "1h").await;
    ended(stack.upgrade_to(successor).await).await;
    for (user, token) in [("alice", &alice), ("bob", &bob)] {
        assert_eq!(stack.get("/").token(token).send().await.status, 401);
        assert_eq!(stack.try_login(&format!("user-{user}-2")).await.status, 403, "{user}");
    }
    assert_eq!(stack.get("/").token(&carol).send().await.status, 200);
    // It can be taken back there.
    block(&stack, "bob", "0s").await;
    stack.login("bob").await;
}
