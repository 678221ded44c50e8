//! Tickets that are replayed, moved, hidden or combined.

use super::siege::{Attack, Must, Outcome, Siege};
use crate::harness::{THREE_ROUTES, openid};

async fn start() -> Siege {
    let browser = "[[browser]]\nbase_url = \"https://h\"\n";
    Siege::start_with("ticket.enabled = true", &format!("{THREE_ROUTES}{browser}")).await
}

/// A ticket of the attacker for a path; it becomes a secret.
async fn ticket(siege: &mut Siege, path: &str) -> String {
    let token = siege.token().to_owned();
    ticket_of(siege, &token, path).await
}

async fn ticket_of(siege: &mut Siege, token: &str, path: &str) -> String {
    let body = format!("{{\"path\":\"{path}\"}}");
    let request = format!(
        "POST /ticket HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\nContent-Length: {}\r\n\r\n\
         {body}",
        body.len()
    );
    let outcome = siege.run(&Attack::new(request, Must::Harmless)).await;
    let ticket = outcome.responses[0].json()["ticket"].as_str().unwrap().to_owned();
    siege.secrets.push(ticket.clone());
    ticket
}

fn request(method: &str, target: &str, lines: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{lines}\r\n")
}

async fn rejected(siege: &mut Siege, request: String, status: u16) -> Outcome {
    let outcome = siege.run(&Attack::new(&request, Must::Rejected)).await;
    let statuses: Vec<_> = outcome.responses.iter().map(|one| one.status).collect();
    assert_eq!(statuses, [status], "{request}");
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_rejected_in_every_place_but_its_own() {
    let mut siege = start().await;
    let ticket = ticket(&mut siege, "/required/a").await;
    let at = |path: &str| format!("{path}?wxgate_ticket={ticket}");
    for target in [
        at("/required/b"),
        at("/required"),
        at("/required/a/"),
        at("/required/A"),
        at("/required/%61"),
        at("/required%2fa"),
        at("/required/a%20"),
        at("/required/./a"),
        at("/required/b/../a"),
        at("//required/a"),
        at("/required//a"),
        at("/required/a;x"),
        at("/required/a%3f"),
        at("/optional/a"),
        at("/optional/../required/a"),
    ] {
        let outcome = siege.run(&Attack::new(request("GET", &target, ""), Must::Rejected)).await;
        let status = outcome.responses[0].status;
        assert!(matches!(status, 400 | 401), "{status} {target}");
    }
    // Written in a way that is not the parameter: no token at all.
    for target in [
        format!("/required/a?wxgate%5fticket={ticket}"),
        format!("/required/a?wxgate%5Fticket={ticket}"),
        format!("/required/a?WXGATE_TICKET={ticket}"),
        format!("/required/a?wxgate-ticket={ticket}"),
        format!("/required/a?wxgate_ticket%3d{ticket}"),
        format!("/required/a?a=b;wxgate_ticket={ticket}"),
        format!("/required/a?a=b%26wxgate_ticket={ticket}"),
        format!("/required/a?a=b?wxgate_ticket={ticket}"),
        format!("/required/a?wxgate_ticket[]={ticket}"),
        format!("/required/a?+wxgate_ticket={ticket}"),
        // In the path, which is logged.
        format!("/required/a&wxgate_ticket={}", "A".repeat(43)),
        format!("/required/wxgate_ticket={}", "A".repeat(43)),
    ] {
        let outcome = rejected(&mut siege, request("GET", &target, ""), 401).await;
        outcome.responses[0].assert_error(401, "missing_token", "login");
    }
    // Another spelling of its value.
    let encoded: String = ticket.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for value in [
        encoded,
        format!("{ticket}="),
        format!("+{ticket}"),
        format!("{ticket}%20"),
        format!("{ticket}%00"),
        format!("{ticket};a"),
        ticket.to_lowercase(),
        ticket[..42].to_owned(),
        "A".repeat(43),
        "A".repeat(4000),
        siege.token().to_owned(),
    ] {
        let target = format!("/required/a?wxgate_ticket={value}");
        let outcome = rejected(&mut siege, request("GET", &target, ""), 401).await;
        outcome.responses[0].assert_error(401, "session_expired", "login");
    }
    // A ticket is no token.
    for line in [
        format!("X-3rd-Session: {ticket}\r\n"),
        format!("Authorization: Bearer {ticket}\r\n"),
        format!("Cookie: __Host-wxgate={ticket}\r\n"),
        format!("Referer: https://h/required/a?wxgate_ticket={ticket}\r\n"),
        format!("Cookie: wxgate_ticket={ticket}\r\n"),
        format!("wxgate_ticket: {ticket}\r\n"),
    ] {
        rejected(&mut siege, request("GET", "/required/a", &line), 401).await;
    }
    // None of this has spent it.
    let outcome =
        siege.run(&Attack::new(request("GET", &at("/required/a"), ""), Must::Served(1))).await;
    assert_eq!(outcome.received[0].target(), "/required/a");
    rejected(&mut siege, request("GET", &at("/required/a"), ""), 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_cannot_be_combined_with_anything_that_names_a_user() {
    let mut siege = start().await;
    let bystander = siege.bystanders_token().to_owned();
    let ticket = ticket(&mut siege, "/required/a").await;
    let other = ticket_of(&mut siege, &bystander, "/required/a").await;
    for query in [
        format!("wxgate_ticket={ticket}&wxgate_ticket={ticket}"),
        format!("wxgate_ticket={ticket}&wxgate_ticket={other}"),
        format!("wxgate_ticket={ticket}&wxgate_ticket="),
        format!("wxgate_ticket=&a&wxgate_ticket={ticket}"),
    ] {
        for path in ["/required/a", "/optional/a", "/none/a"] {
            rejected(&mut siege, request("GET", &format!("{path}?{query}"), ""), 400).await;
        }
    }
    let target = format!("/required/a?wxgate_ticket={ticket}");
    for line in [
        format!("X-3rd-Session: {bystander}\r\n"),
        format!("x-3rd-session: {}\r\n", "A".repeat(43)),
        format!("Authorization: Bearer {bystander}\r\n"),
    ] {
        rejected(&mut siege, request("GET", &target, &line), 400).await;
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "MKCOL"] {
        let lines = "Content-Length: 0\r\n";
        rejected(&mut siege, request(method, &target, lines), 401).await;
    }
    // The ticket wins over the cookie of another user, which is not even sent on.
    let lines = format!("Cookie: a=b; __Host-wxgate={bystander}\r\nX-OpenId: evil\r\n");
    let outcome = siege.run(&Attack::new(request("GET", &target, &lines), Must::Served(1))).await;
    assert_eq!(outcome.received[0].folded("x-openid"), [openid("unionmallory")]);
    assert_eq!(outcome.received[0].all("cookie"), ["a=b"]);
    assert_eq!(outcome.responses[0].header("set-cookie"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_valid_once_even_in_one_packet_and_not_after_a_logout() {
    let mut siege = start().await;
    let replayed = ticket(&mut siege, "/required/a").await;
    let target = format!("/required/a?wxgate_ticket={replayed}");
    let twice = request("GET", &target, "") + &request("GET", &target, "");
    let outcome = siege.run(&Attack::new(twice, Must::Harmless)).await;
    let statuses: Vec<_> = outcome.responses.iter().map(|one| one.status).collect();
    assert_eq!((statuses, outcome.received.len()), (vec![200, 401], 1));

    let ended = siege.token_of("victim").await;
    let ticket = ticket_of(&mut siege, &ended, "/optional/a").await;
    let logout = request("POST", "/logout", &format!("X-3rd-Session: {ended}\r\n"));
    siege.run(&Attack::new(logout, Must::Harmless)).await;
    let target = format!("/optional/a?wxgate_ticket={ticket}");
    rejected(&mut siege, request("GET", &target, ""), 401).await;
}
