//! Operators find users by the ids that the hook gave.

use serde_json::Value;

use super::fake::FakeHook;
use crate::harness::client::Response;
use crate::harness::process_log::{logged_after, position};
use crate::harness::redis::RedisServer;
use crate::harness::{OPERATOR, Stack, openid};
use crate::shared_store::{gateway, status, url};

const TOKEN: &str = "admin.token = { file = \"{dir}/operator\" }\n";

async fn operate(stack: &Stack, method: &str, path: &str) -> Response {
    stack.request(method, path).bearer(OPERATOR).send_to_admin().await
}

async fn listed(stack: &Stack, user: &str) -> (Vec<Value>, Value) {
    let response = operate(stack, "GET", &format!("/sessions?user={user}")).await;
    assert_eq!(response.status, 200, "{}", response.text());
    let body = response.json();
    (body["sessions"].as_array().unwrap().clone(), body["blocked_until"].clone())
}

/// Two openids have one id, and a third user another one.
async fn a_user_is_found_by_the_id_for_all_openids(stack: Stack, hook: FakeHook) {
    let tokens = [stack.login("alice").await, stack.login("bob").await];
    // Of the form of a name in the access log.
    hook.answers(200, "{\"user_id\":\"0123456789abcdef\"}");
    let carols = stack.login("carol").await;

    let (sessions, blocked) = listed(&stack, "member-7").await;
    assert_eq!((sessions.len(), blocked), (2, Value::Null));
    assert!(sessions.iter().all(|session| session["user_id"] == "member-7"), "{sessions:?}");
    assert_eq!(listed(&stack, "0123456789abcdef").await.0.len(), 1);
    assert_eq!(listed(&stack, "member-").await.0.len(), 0);
    assert_eq!(listed(&stack, "member-70").await.0.len(), 0);

    let id = sessions[0]["id"].as_str().unwrap();
    for nobodys in ["/sessions/0123456789abcdef?user=member-7", "/sessions/x?user=member-6"] {
        let response = operate(&stack, "DELETE", nobodys).await;
        assert_eq!((response.status, &response.json()["error"]), (404, &"no_session".into()));
    }
    let one = operate(&stack, "DELETE", &format!("/sessions/{id}?user=member-7")).await;
    assert_eq!(one.status, 204);
    assert_eq!(listed(&stack, "member-7").await.0.len(), 1);

    let before = position();
    let block = operate(&stack, "DELETE", "/sessions?user=member-7&block=1h").await;
    assert_eq!((block.status, block.text()), (204, String::new()));
    let lines = logged_after(before, "operator action");
    let is_ours = |fields: &Value| {
        fields["action"] == "block" && fields["user"] == "member-7" && fields["sessions"] == 1
    };
    assert!(lines.iter().any(|line| is_ours(&line["fields"])), "{lines:?}");
    for token in &tokens {
        assert_eq!(status(&stack, token).await, 401);
    }
    assert_eq!(status(&stack, &carols).await, 200);
    // The openid whose session was revoked before is not known by the id any more.
    let (sessions, blocked) = listed(&stack, "member-7").await;
    assert!(sessions.is_empty() && blocked.is_string(), "{sessions:?} {blocked}");

    // Blocked users are found without a session.
    let unblock = operate(&stack, "DELETE", "/sessions?user=member-7&block=0s").await;
    assert_eq!(unblock.status, 204);
    assert_eq!(listed(&stack, "member-7").await, (Vec::new(), Value::Null));
    for user in ["alice", "bob"] {
        stack.login(user).await;
    }
    let nobody = operate(&stack, "DELETE", "/sessions?user=nobody&block=1h").await;
    assert_eq!((nobody.status, &nobody.json()["error"]), (404, &"no_user".into()));
}

async fn a_block_by_openid_keeps_the_id(stack: Stack) {
    stack.login("alice").await;
    let path = format!("/sessions?openid={}&block=1h", openid("alice"));
    assert_eq!(operate(&stack, "DELETE", &path).await.status, 204);
    assert!(listed(&stack, "member-7").await.1.is_string());
    let unblock = operate(&stack, "DELETE", "/sessions?user=member-7&block=0s").await;
    assert_eq!(unblock.status, 204);
    stack.login("alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_found_by_the_id_in_memory() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section(TOKEN)).await;
    a_user_is_found_by_the_id_for_all_openids(stack, hook).await;
    let hook = FakeHook::start().await;
    a_block_by_openid_keeps_the_id(Stack::start_with(&hook.section(TOKEN)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_found_by_the_id_on_redis() {
    let (store, hook) = (RedisServer::start(), FakeHook::start().await);
    let stack = gateway(&url(&store), &hook.section(TOKEN)).await;
    a_user_is_found_by_the_id_for_all_openids(stack, hook).await;
    let (store, hook) = (RedisServer::start(), FakeHook::start().await);
    a_block_by_openid_keeps_the_id(gateway(&url(&store), &hook.section(TOKEN)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_the_access_log_finds_users_whose_sessions_have_no_id() {
    let hook = FakeHook::start().await;
    let named = format!("{TOKEN}log.openid_key = {{ file = \"{{dir}}/operator\" }}\n");
    let stack = Stack::start_with(&hook.section(&named)).await;
    hook.answers(204, "");
    stack.login("alice").await;
    let line: Value = serde_json::from_str(&stack.access_log(1).await).unwrap();
    let name = line["user"].as_str().unwrap();
    assert_eq!(name.len(), 16);
    let (sessions, _) = listed(&stack, name).await;
    assert_eq!((sessions.len(), sessions[0].get("user_id")), (1, None));
    // The session with an id is found by either.
    hook.answers(200, "{\"user_id\":\"member-7\"}");
    stack.login("alice").await;
    assert_eq!(listed(&stack, name).await.0.len(), 2);
    assert_eq!(listed(&stack, "member-7").await.0.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openid_where_a_user_id_belongs_is_not_logged() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section(TOKEN)).await;
    stack.login("mistakenalice").await;
    let openid = openid("mistakenalice");
    let before = position();
    let response = operate(&stack, "DELETE", &format!("/sessions?user={openid}&block=1h")).await;
    assert_eq!((response.status, &response.json()["error"]), (404, &"no_user".into()));
    let lines = logged_after(before, "operator action");
    assert!(lines.iter().any(|line| line["fields"]["outcome"] == "no_user"), "{lines:?}");
    assert!(!format!("{lines:?}").contains(&openid), "{lines:?}");
}
