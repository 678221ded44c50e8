//! Who may do what.

use serde_json::json;

use super::{ONE_TOKEN, TWO_TOKENS, assert_error, error, post, posts, request};
use crate::harness::{APP, OTHER_APP, Stack};

/// Whether an answer shows that the call was allowed: it went on to the next check.
fn is_allowed(kind: &(u16, String)) -> bool {
    kind.1 != "not_allowed"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_allows_its_operations_for_its_apps() {
    let stack = Stack::start_with(TWO_TOKENS).await;
    for (path, body) in posts() {
        let is_token = path.starts_with("/v1/access-token");
        for (service, app_id, expected) in [
            ("orders", Some(APP), !is_token),
            // The default app is meant.
            ("orders", None, !is_token),
            ("orders", Some(OTHER_APP), false),
            ("orders", Some("wxunknown"), false),
            ("mail", Some(APP), is_token),
            ("mail", Some(OTHER_APP), is_token),
            ("mail", Some("wxunknown"), false),
        ] {
            let mut body = body.clone();
            if let Some(app_id) = app_id {
                body["app_id"] = json!(app_id);
            }
            let answer = post(&stack, service, path, &body).await;
            let kind = if answer.status < 300 { (200, String::new()) } else { error(&answer) };
            assert_eq!(is_allowed(&kind), expected, "{service} {path} {app_id:?} {kind:?}");
        }
    }
    for (service, query, expected) in
        [("orders", "", false), ("mail", "", true), ("mail", "?app_id=wxunknown", false)]
    {
        let path = format!("/v1/access-token{query}");
        let answer = request(&stack, service, "GET", &path).send_to_internal().await;
        assert_eq!(answer.status != 403, expected, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_of_wechat_is_allowed_by_both_lists_and_never_if_it_gives_secrets_away() {
    let stack = Stack::start_with(TWO_TOKENS).await;
    for (service, app_id, path, status) in [
        ("orders", APP, "wxa/msg_sec_check", None),
        ("orders", APP, "wxa/msg_sec_check/deeper", None),
        ("orders", APP, "cgi-bin/message/subscribe/send", None),
        ("orders", APP, "wxa/msg_sec_check2", Some(403)),
        ("orders", APP, "wxa/MSG_SEC_CHECK", Some(403)),
        ("orders", APP, "wxa", Some(403)),
        ("orders", OTHER_APP, "wxa/msg_sec_check", Some(403)),
        ("orders", "wxunknown", "wxa/msg_sec_check", Some(403)),
        ("mail", OTHER_APP, "cgi-bin/message/subscribe/send", None),
        ("mail", OTHER_APP, "cgi-bin/message/subscribe", Some(403)),
        ("mail", OTHER_APP, "wxa/msg_sec_check", Some(403)),
        // Paths have one spelling.
        ("orders", APP, "wxa//msg_sec_check", Some(400)),
        ("orders", APP, "wxa/msg_sec_check/", Some(400)),
        ("orders", APP, "wxa/./msg_sec_check", Some(400)),
        ("orders", APP, "wxa/msg_sec_check/../../sns", Some(400)),
        ("orders", APP, "wxa/msg%5fsec_check", Some(400)),
        ("orders", APP, "wxa/msg_sec_check;a", Some(400)),
        // Never, whatever the lists say.
        ("orders", APP, "cgi-bin/token", Some(403)),
        ("orders", APP, "cgi-bin/Stable_Token", Some(403)),
        ("orders", APP, "sns/jscode2session", Some(403)),
        ("orders", APP, "wxa/business/getuserphonenumber", Some(403)),
    ] {
        let path = format!("/v1/wechat/{app_id}/{path}");
        let answer = request(&stack, service, "POST", &path).body("{}").send_to_internal().await;
        match status {
            Some(403) => assert_error(&answer, 403, "not_allowed"),
            Some(_) => assert_error(&answer, 400, "bad_request"),
            None => {
                assert!(!matches!(answer.status, 400 | 401 | 403..=405), "{path} {}", answer.text())
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_sends_a_token_an_app_or_a_secret_of_its_own() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    for query in [
        "access_token=x",
        "a=1&ACCESS_TOKEN=x",
        "access%5Ftoken=x",
        "%61ppid=wx1",
        "secret",
        "+secret=x",
        "a=1;secret=x",
    ] {
        let path = format!("/v1/wechat/{APP}/wxa/msg_sec_check?{query}");
        let answer = request(&stack, "any", "GET", &path).send_to_internal().await;
        assert_error(&answer, 400, "bad_request");
    }
    for (method, status) in [("TRACE", 405), ("BREW", 405)] {
        let path = format!("/v1/wechat/{APP}/wxa/msg_sec_check");
        let answer = request(&stack, "any", method, &path).send_to_internal().await;
        assert_eq!(answer.status, status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_open_data_nothing_that_needs_session_keys_is_allowed() {
    let stack = Stack::start_with(&ONE_TOKEN.replace("enabled = true", "enabled = false")).await;
    for (path, body) in posts() {
        let answer = post(&stack, "any", path, &body).await;
        let needs_keys = path.starts_with("/v1/open-data") || path.starts_with("/v1/session-key");
        assert_eq!(answer.status == 403, needs_keys, "{path} {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_replaces_tokens_and_rights() {
    let stack = Stack::start_with(TWO_TOKENS).await;
    let body = json!({ "openid": "o1" });
    let check = async |service| post(&stack, service, "/v1/session-key/check", &body).await.status;
    assert_eq!((check("orders").await, check("mail").await, check("any").await), (404, 403, 401));
    let swapped = TWO_TOKENS
        .replace("{dir}/orders", "{dir}/any")
        .replace(r#"["access-token", "wechat"]"#, r#"["session-key", "wechat"]"#);
    assert!(stack.reload(&swapped).await);
    assert_eq!((check("orders").await, check("mail").await, check("any").await), (401, 404, 404));
    // The listener itself needs a restart.
    assert!(!stack.reload("").await);
    assert_eq!(check("any").await, 404);
}
