//! Detects secrets of the tests in the gateways' output.
//!
//! Every token, code, app secret and session key of a test is planted here. The gateways' logs,
//! metrics and error responses are searched for them. When a stack ends, its test fails if a
//! secret was found, even if another test caused that.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, RwLock};

/// The secrets, by their first bytes. Every log line is searched while requests wait, so a search
/// must not take longer with each secret.
static PLANTED: LazyLock<RwLock<HashMap<[u8; SHORTEST], Vec<String>>>> =
    LazyLock::new(RwLock::default);
static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Shorter ones could appear anywhere by chance.
const SHORTEST: usize = 8;

pub fn plant(secret: &str) {
    let Some(start) = secret.as_bytes().first_chunk() else { return };
    let mut planted = PLANTED.write().unwrap();
    let alike = planted.entry(*start).or_default();
    if !alike.iter().any(|known| known == secret) {
        alike.push(secret.to_owned());
    }
}

/// Plants the code of a login, and the token or ticket of a response.
pub fn plant_from(json: &str) {
    for field in ["\"code\":\"", "\"token\":\"", "\"ticket\":\""] {
        for rest in json.split(field).skip(1) {
            plant(rest.split('"').next().unwrap());
        }
    }
}

/// A planted secret that a text contains.
pub fn first_in(text: &str) -> Option<String> {
    let planted = PLANTED.read().unwrap();
    let text = text.as_bytes();
    text.windows(SHORTEST).enumerate().find_map(|(at, start)| {
        let alike = planted.get(start)?;
        alike.iter().find(|secret| text[at..].starts_with(secret.as_bytes())).cloned()
    })
}

/// Records the secrets in a text of the gateway, for [`assert_none_shown`].
pub fn search(place: &str, text: &str) {
    if let Some(secret) = first_in(text) {
        FOUND.lock().unwrap().push(format!("{place} shows {secret}: {text}"));
    }
}

pub fn assert_none_shown() {
    // Taken, so that what one test finds fails one test.
    let found = std::mem::take(&mut *FOUND.lock().unwrap());
    assert_eq!(found, [""; 0]);
}

#[test]
fn what_was_planted_is_found() {
    plant("a-secret-of-this-test");
    assert_eq!(first_in("x a-secret-of-this-test x").as_deref(), Some("a-secret-of-this-test"));
    plant_from(r#"{"code":"code-of-this-test","app_id":"wx1"}"#);
    plant_from(r#"{"token":"token-of-this-test","token_type":"Bearer"}"#);
    assert!(first_in("code-of-this-test").is_some() && first_in("token-of-this-test").is_some());
    assert_eq!(first_in("nothing of the sort"), None);
}

#[test]
fn the_log_of_a_gateway_is_searched() {
    super::process_log::install();
    let before = super::process_log::position();
    tracing::info!(target: "wxgate", "a line of this test");
    assert!(super::process_log::text_after(before).contains("a line of this test"));
}
