//! Invalid tokens, and tokens of other users.

use std::collections::HashSet;
use std::time::Duration;

use super::siege::{Attack, Must, Siege};
use crate::harness::THREE_ROUTES;

fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n{lines}\r\n")
}

/// Malformed, unknown, expired and revoked tokens cannot be told apart.
#[tokio::test(flavor = "multi_thread")]
async fn every_invalid_token_gets_the_same_response() {
    let mut siege =
        Siege::start_with("session = { ttl = \"2h\", idle_timeout = \"2h\" }\n", THREE_ROUTES)
            .await;
    let token = siege.token().to_owned();
    let revoked = siege.token_of("mallory").await;
    let logout = format!("POST /logout HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {revoked}\r\n\r\n");
    let outcome = siege.run(&Attack::new(logout, Must::Harmless)).await;
    assert_eq!(outcome.responses[0].status, 204);
    let encoded: String = token.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let swapped: String =
        token
            .chars()
            .map(|c| {
                if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
            })
            .collect();
    let (last, rest) = (&token[42..], &token[..42]);
    let mut told = HashSet::new();
    for bad in [
        "A",
        "null",
        "undefined",
        "-",
        "\"\"",
        rest,
        &format!("{token}A"),
        &format!("{token}{last}"),
        &format!("{token}="),
        &format!("{token},{token}"),
        &format!("{token} {token}"),
        &format!("{token};"),
        &format!("\"{token}\""),
        &format!("Bearer {token}"),
        &format!("{rest}+"),
        &format!("{rest}/"),
        &format!("{rest}\u{e9}"),
        &format!("{}A", "A".repeat(42)),
        &token.to_uppercase(),
        &token.to_lowercase(),
        &swapped,
        &token.chars().rev().collect::<String>(),
        &encoded,
        &revoked,
        &"x".repeat(10_000),
    ] {
        for path in ["/required", "/optional"] {
            let lines = format!("X-3rd-Session: {bad}\r\n");
            let outcome = siege.run(&Attack::new(get(path, &lines), Must::Rejected)).await;
            let [answer] = &outcome.responses[..] else { panic!("{bad}: {:?}", outcome.responses) };
            answer.assert_error(401, "session_expired", "login");
            told.insert(answer.json()["message"].to_string());
        }
    }
    for bad in [&swapped, &revoked, &"A".repeat(43)] {
        for path in ["/required", "/optional"] {
            let lines = format!("Authorization: Bearer {bad}\r\n");
            let outcome = siege.run(&Attack::new(get(path, &lines), Must::Rejected)).await;
            outcome.responses[0].assert_error(401, "session_expired", "login");
            told.insert(outcome.responses[0].json()["message"].to_string());
        }
    }
    let expired = siege.token_of("mallory").await;
    siege.stack.clock.advance(Duration::from_secs(2 * 3600));
    siege.renew().await;
    for token in [expired, token] {
        let lines = format!("X-3rd-Session: {token}\r\n");
        let outcome = siege.run(&Attack::new(get("/optional", &lines), Must::Rejected)).await;
        outcome.responses[0].assert_error(401, "session_expired", "login");
        told.insert(outcome.responses[0].json()["message"].to_string());
    }
    assert_eq!(told.len(), 1, "{told:?}");
}

/// Where a token is accepted, and where it is ignored.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_only_in_a_carrier() {
    let mut siege = Siege::start().await;
    let token = siege.token().to_owned();
    for lines in [
        format!("X-3rd-Session: {token}\r\n"),
        format!("x-3RD-session:{token}\r\n"),
        format!("X-3rd-Session: \t{token}\t \r\n"),
        format!("Authorization: Bearer {token}\r\n"),
        format!("Authorization: bearer {token}\r\n"),
        format!("AUTHORIZATION: BEARER   {token}  \r\n"),
        format!("Authorization: Bearer\t{token}\r\n"),
        format!("Authorization: Basic eDp5\r\nAuthorization: Bearer {token}\r\n"),
        format!("X-3rd-Session: {token}\r\nAuthorization: Bearer {token}\r\n"),
        format!("X-3rd-Session:\r\nAuthorization: Bearer {token}\r\n"),
    ] {
        for path in ["/required", "/optional", "/none"] {
            let outcome = siege.run(&Attack::new(get(path, &lines), Must::Served(1))).await;
            let known = usize::from(path != "/none");
            assert_eq!(outcome.received[0].folded("x-openid").len(), known, "{lines}");
        }
    }
    // The gateway does not read it: no session, and no identity.
    let encoded = token.replace('-', "%2d").replace('_', "%5f").replace('A', "%41");
    for (path, lines) in [
        (format!("?token={token}"), String::new()),
        (format!("?access_token={token}&X-3rd-Session={token}"), String::new()),
        (format!("?{encoded}"), String::new()),
        (String::new(), "X-3rd-Session: \t\r\n".to_owned()),
        (String::new(), "Authorization:\r\n".to_owned()),
        (String::new(), "Authorization: Bearer\r\n".to_owned()),
        (String::new(), "Authorization: Basic eDp5\r\n".to_owned()),
    ] {
        let rejected =
            siege.run(&Attack::new(get(&format!("/required{path}"), &lines), Must::Rejected)).await;
        rejected.responses[0].assert_error(401, "missing_token", "login");
        let outcome = siege
            .run(&Attack::new(get(&format!("/optional{path}"), &lines), Must::Served(1)))
            .await;
        assert!(outcome.received[0].folded("x-openid").is_empty());
    }
    for lines in [
        format!("X-3rd-Session: {token}\r\nX-3rd-Session: {token}\r\n"),
        format!("X-3rd-Session:\r\nX-3rd-Session: {token}\r\n"),
        format!("X-3rd-Session: {token}\r\nAuthorization: Bearer {}\r\n", siege.bystanders_token()),
        format!(
            "Authorization: Bearer {token}\r\nAuthorization: Bearer {}\r\n",
            siege.bystanders_token()
        ),
    ] {
        for path in ["/required", "/optional", "/session", "/logout"] {
            let method = if path == "/logout" { "POST" } else { "GET" };
            let bytes = get(path, &lines).replace("GET", method);
            let outcome = siege.run(&Attack::new(bytes, Must::Rejected)).await;
            outcome.responses[0].assert_error(400, "bad_request", "none");
        }
    }
    // A session header in another spelling is not a carrier, and is not forwarded.
    for name in ["X_3rd_Session", "X.3rd.Session", "X-3rd_Session", "X!3RD~Session"] {
        let lines = format!("{name}: {token}\r\n");
        for path in ["/optional", "/none"] {
            siege.run(&Attack::new(get(path, &lines), Must::Served(1))).await;
        }
    }
}

/// A client can neither choose its session nor keep one that was ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_adopts_no_token_and_a_logout_takes_effect_at_once() {
    let mut siege = Siege::start().await;
    let chosen = "B".repeat(43);
    let old = siege.token().to_owned();
    for lines in [
        format!("X-3rd-Session: {chosen}\r\n"),
        format!("Authorization: Bearer {chosen}\r\n"),
        format!("Cookie: token={chosen}; X-3rd-Session={chosen}\r\n"),
        format!("X-3rd-Session: {old}\r\n"),
    ] {
        let code = siege.code_of("mallory");
        let body = format!("{{\"code\":\"{code}\",\"token\":\"{chosen}\",\"openid\":\"evil\"}}");
        let login = format!(
            "POST /login HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let outcome = siege.run(&Attack::new(login, Must::Harmless)).await;
        assert_eq!(outcome.responses[0].status, 200);
        let token = outcome.responses[0].json()["token"].as_str().unwrap().to_owned();
        siege.secrets.push(token.clone());
        assert_ne!(token, chosen);
        assert_ne!(token, old);
        assert_eq!(outcome.responses[0].header("set-cookie"), None);
        let request = get("/required", &format!("X-3rd-Session: {chosen}\r\n"));
        siege.run(&Attack::new(request, Must::Rejected)).await;

        // In one packet: a request after the logout has no session.
        let carried = format!("X-3rd-Session: {token}\r\n");
        let target = "/required/of/mallory";
        let packet = [
            get(target, &carried),
            get("/logout", &carried).replace("GET", "POST"),
            get(target, &carried),
        ]
        .concat();
        let outcome = siege.run(&Attack::new(packet, Must::Harmless)).await;
        let statuses: Vec<u16> = outcome.responses.iter().map(|response| response.status).collect();
        assert_eq!(statuses, [200, 204, 401]);
    }
}

/// Tokens are long, use one alphabet, differ, and are uniform in each bit.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_cannot_be_guessed_from_each_other() {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    const TOKENS: usize = 600;
    let mut siege = Siege::start().await;
    let mut ones = [0usize; 256];
    let mut tokens = HashSet::new();
    for _ in 0..TOKENS {
        let token = siege.token_of("mallory").await;
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        assert_eq!((token.len(), bytes.len()), (43, 32));
        for (bit, ones) in ones.iter_mut().enumerate() {
            *ones += usize::from(bytes[bit / 8] >> (bit % 8) & 1);
        }
        tokens.insert(token);
    }
    assert_eq!(tokens.len(), TOKENS);
    // Seven standard deviations: once in so many years.
    let allowed = 7.0 * (TOKENS as f64 / 4.0).sqrt();
    for ones in ones {
        assert!((ones as f64 - TOKENS as f64 / 2.0).abs() < allowed, "{ones} of {TOKENS}");
    }
}
