//! The description of the API at `/openapi.json`.

use serde_json::Value;

use super::{ONE_TOKEN, posts};
use crate::harness::Stack;

async fn description() -> Value {
    let stack = Stack::start_with(ONE_TOKEN).await;
    let answer = stack.get("/openapi.json").send_to_internal().await;
    assert_eq!(answer.status, 200, "no token is needed");
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_described_with_its_errors() {
    let description = description().await;
    assert_eq!(description["openapi"], "3.1.0");
    let schemas = &description["components"]["schemas"];
    for (path, body) in posts() {
        let operation = &description["paths"][path]["post"];
        let name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            .as_str()
            .unwrap_or_else(|| panic!("{path}"))
            .rsplit('/')
            .next()
            .unwrap()
            .to_owned();
        let schema = &schemas[&name];
        assert_eq!(schema["additionalProperties"], false, "{name}");
        for field in body.as_object().unwrap().keys() {
            assert!(schema["properties"][field].is_object(), "{name}: {field}");
        }
        for status in ["400", "401", "403", "408", "413", "500"] {
            let response = &operation["responses"][status]["content"]["application/json"];
            assert!(response["examples"].is_object(), "{path} {status}");
        }
    }
    let responses = |path: &str| &description["paths"][path]["post"]["responses"];
    assert!(responses("/v1/open-data/decrypt")["422"].is_object());
    assert!(responses("/v1/phone-number")["422"].is_object());
    assert!(responses("/v1/session-key/reset")["204"].is_object());
    assert!(responses("/v1/phone-number")["404"].is_null(), "it needs no session key");
    let wechat = &description["paths"]["/v1/wechat/{app_id}/{path}"];
    assert!(wechat["get"].is_object() && wechat["post"].is_object());
    assert!(description["paths"]["/v1/access-token"]["get"].is_object());
    assert_eq!(description["paths"]["/openapi.json"]["get"]["security"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reference_leads_somewhere() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    let description = description().await;
    let mut found = Vec::new();
    references(&description, &mut found);
    assert!(found.len() > 30, "{found:?}");
    for reference in found {
        let place = reference.strip_prefix('#').unwrap();
        assert!(description.pointer(place).is_some(), "{reference}");
    }
}
