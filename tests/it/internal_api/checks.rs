//! The order of checks, and what bodies are taken.

use serde_json::json;

use super::{ONE_TOKEN, TWO_TOKENS, assert_error, post, posts, request, token};
use crate::harness::client::{Connection, Response};
use crate::harness::{APP, Stack};

fn without_id(answer: &Response) -> String {
    let id = answer.header("x-request-id").unwrap();
    answer.text().replace(id, "")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_token_gets_one_answer_whatever_else_is_wrong() {
    let stack = Stack::start_with(TWO_TOKENS).await;
    let mut answers = Vec::new();
    let right = format!("Bearer {}", token("orders"));
    let wrong = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer x".to_owned(),
        format!("{right}x"),
        right[..right.len() - 1].to_owned(),
        right.replace("Bearer", "Basic"),
        token("orders").to_owned(),
    ];
    for value in &wrong {
        for (method, path) in
            [("POST", "/v1/phone-number"), ("GET", "/nothing"), ("PUT", "/v1/access-token")]
        {
            let request = stack.request(method, path);
            let request =
                if value.is_empty() { request } else { request.header("Authorization", value) };
            let answer = request.body("not JSON").send_to_internal().await;
            assert_error(&answer, 401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            answers.push(without_id(&answer));
        }
    }
    let twice = stack.get("/v1/access-token").bearer(token("mail")).bearer(token("mail"));
    answers.push(without_id(&twice.send_to_internal().await));
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn path_and_method_come_before_rights_and_rights_before_the_body() {
    let stack = Stack::start_with(TWO_TOKENS).await;
    for (method, path) in [
        ("POST", "/v1/open-data"),
        ("POST", "/v1/open-data/decrypt/"),
        ("POST", "/V1/open-data/decrypt"),
        ("GET", "/v1/wechat"),
        ("GET", "/v1/wechat/"),
        ("GET", "/v1/wechat/wx0123456789abcdef"),
        ("GET", "/v1/wechat/wx0123456789abcdef/"),
        ("GET", "/v1/wechat//cgi-bin/message/subscribe/send"),
        ("GET", "/metrics"),
        ("POST", "/login"),
    ] {
        let answer = request(&stack, "mail", method, path).send_to_internal().await;
        assert_error(&answer, 404, "not_found");
    }
    for (path, _) in posts() {
        let answer = request(&stack, "mail", "GET", path).send_to_internal().await;
        assert_error(&answer, 405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some("POST"), "{path}");
    }
    let answer = request(&stack, "orders", "POST", "/v1/access-token").send_to_internal().await;
    assert_error(&answer, 405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("GET"));

    let answer = request(&stack, "mail", "POST", "/v1/phone-number").body("not JSON");
    assert_error(&answer.send_to_internal().await, 403, "not_allowed");
    let answer = request(&stack, "orders", "POST", "/v1/phone-number").body("not JSON");
    assert_error(&answer.send_to_internal().await, 400, "bad_request");
    // The app is in the body; it is judged before the values of the other fields.
    let body = json!({ "app_id": "wxfedcba9876543210", "openid": "?", "code": "c" });
    assert_error(&post(&stack, "orders", "/v1/phone-number", &body).await, 403, "not_allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_taken_only_as_it_is_described() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    for (path, body) in posts() {
        let fields = body.as_object().unwrap();
        let mut wrong = vec![
            "".to_owned(),
            "{".to_owned(),
            "[]".to_owned(),
            "null".to_owned(),
            format!("{body}{body}"),
            body.to_string().replacen('{', "{\"max_agee\":1,", 1),
            body.to_string().replacen('{', "{\"app_id\":1,", 1),
            body.to_string().replacen('{', "{\"app_id\":\"wxunknown\",", 1),
            body.to_string().replacen(
                '{',
                &format!("{{\"app_id\":\"{APP}\",\"app_id\":\"{APP}\","),
                1,
            ),
        ];
        // All values in the order of the description, without their names.
        wrong.push(match path {
            "/v1/open-data/decrypt" => json!([APP, "o1", "AA==", "AA==", 60]).to_string(),
            "/v1/open-data/verify" => json!([APP, "o1", "{}", "00"]).to_string(),
            "/v1/phone-number" => json!([APP, "o1", "a-code"]).to_string(),
            _ => json!([APP, "o1"]).to_string(),
        });
        for name in fields.keys().filter(|name| *name != "max_age") {
            let mut less = fields.clone();
            less.remove(name);
            wrong.push(json!(less).to_string());
            let mut other = fields.clone();
            other.insert(name.clone(), json!(7));
            wrong.push(json!(other).to_string());
        }
        if fields.contains_key("openid") {
            for openid in ["", "a b", "ö", &"o".repeat(129)] {
                let mut other = fields.clone();
                other.insert("openid".to_owned(), json!(openid));
                wrong.push(json!(other).to_string());
            }
        }
        for text in wrong {
            let answer = request(&stack, "any", "POST", path).body(text.as_str());
            let answer = answer.send_to_internal().await;
            assert_error(&answer, 400, "bad_request");
            assert_eq!(answer.json()["action"], "none", "{text}");
        }
        let query = format!("{path}?app_id={APP}");
        assert_error(&post(&stack, "any", &query, &body).await, 400, "bad_request");
    }
    let decrypt = |max_age| json!({ "openid": "o1", "encrypted_data": "AA==", "iv": "AA==", "max_age": max_age });
    for max_age in [json!(-1), json!(1.5), json!("60"), json!(true), json!(1_u64 << 32)] {
        let answer = post(&stack, "any", "/v1/open-data/decrypt", &decrypt(max_age)).await;
        assert_error(&answer, 400, "bad_request");
    }
    for token in [String::new(), "x".repeat(2049)] {
        let body = json!({ "access_token": token });
        let answer = post(&stack, "any", "/v1/access-token/renew", &body).await;
        assert_error(&answer, 400, "bad_request");
    }
    for query in ["?app=x", "?app_id=a&app_id=a", "?APP_ID=x", "?app_id=wxunknown"] {
        let path = format!("/v1/access-token{query}");
        let answer = request(&stack, "any", "GET", &path).send_to_internal().await;
        assert_error(&answer, 400, "bad_request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_before_a_key_is_tried_and_an_unknown_user_are_told_apart() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    for (path, body) in posts().into_iter().take(4) {
        let answer = post(&stack, "any", path, &body).await;
        assert_error(&answer, 404, "unknown_user");
        assert_eq!(answer.json()["action"], "login");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_a_limit_and_a_deadline() {
    let stack =
        Stack::start_with(&format!("{ONE_TOKEN}\n[limits]\nbody_timeout = \"200ms\"")).await;
    let long = vec![b' '; (1 << 20) + 1];
    for request in [
        request(&stack, "any", "POST", "/v1/phone-number").body(long.clone()),
        request(&stack, "any", "POST", "/v1/phone-number").body(long.clone()).chunked(),
    ] {
        let mut connection = Connection::open(stack.internal.unwrap()).await;
        let answer = connection.strict_response_while_sending(&request.bytes()).await.unwrap();
        assert_eq!(answer.status, 413);
    }
    // A body of the greatest length is read.
    let mut body = json!({ "openid": "o1", "raw_data": "", "signature": "" });
    let rest = (1 << 20) - body.to_string().len();
    body["raw_data"] = "x".repeat(rest).into();
    assert_error(&post(&stack, "any", "/v1/open-data/verify", &body).await, 404, "unknown_user");

    let mut slow = Connection::open(stack.internal.unwrap()).await;
    let bytes = request(&stack, "any", "POST", "/v1/phone-number").body("{\"openid\":").bytes();
    let bytes =
        String::from_utf8(bytes).unwrap().replace("Content-Length: 10", "Content-Length: 99");
    slow.send(bytes.as_bytes()).await;
    let answer = slow.response(false).await;
    assert_error(&answer, 408, "request_timeout");
    assert!(slow.ends().await);

    // Without rights, or without a token, nothing is waited for.
    let mut unknown = Connection::open(stack.internal.unwrap()).await;
    unknown.send(bytes.replace(token("any"), "x").as_bytes()).await;
    assert_error(&unknown.response(false).await, 401, "unauthorized");
}
