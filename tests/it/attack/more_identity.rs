//! Clients that send the user id, the signed identity or the headers of WeChat Cloud Run.

mod requests;

use super::identity::{FOLDED, with_lines};
use super::siege::{Attack, Must, ROUTES, Siege};
use crate::harness::more_identity::NAMES;
use crate::harness::upstream::Reply;

/// Both headers that a signed identity can have.
pub const HEADERS: [&str; 2] = ["X-Wxgate-Jwt", "Authorization"];

/// An unsigned token for an administrator, and one that is none.
pub const FORGED: [&str; 2] = ["eyJhbGciOiJub25lIn0.eyJzdWIiOiJldmlsIn0.", "evil"];

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_the_other_identity_headers_is_trusted() {
    for header in HEADERS {
        let mut siege = Siege::start_with_more(header, false).await;
        for byte in FOLDED {
            let byte = char::from(*byte).to_string();
            let mut lines = String::new();
            for name in NAMES {
                let spelled = name.replace('-', &byte);
                for spelled in [spelled.to_lowercase(), spelled.to_uppercase(), spelled] {
                    lines.push_str(&format!("{spelled}: {}\r\n", FORGED[0]));
                }
            }
            siege.run_on(&ROUTES, &Attack::new(with_lines(&lines), Must::Served(1))).await;
        }
        // Two bytes of one name may differ.
        for (first, second) in FOLDED.iter().zip(FOLDED.iter().cycle().skip(1)) {
            let (first, second) = (char::from(*first), char::from(*second));
            let lines = format!(
                "x{first}wxgate{second}JWT: evil\r\nX{first}User{second}iD: evil\r\n\
                 X{first}wX{second}Source: wx_client\r\nx{second}WX{first}openid: evil\r\n\
                 x{first}wx{second}cloudbase{first}ACCESS{second}token: evil\r\n\
                 x{first}original{second}Forwarded{first}for: 6.6.6.6\r\n"
            );
            siege.run_on(&ROUTES[..1], &Attack::new(with_lines(&lines), Must::Served(1))).await;
            siege.run_on(&ROUTES[5..], &Attack::new(with_lines(&lines), Must::Served(1))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_identity_header_may_come_in_any_number_case_and_place() {
    for header in HEADERS {
        let mut siege = Siege::start_with_more(header, false).await;
        for lines in [
            format!("{header}: {}\r\n", FORGED[0]),
            format!("{header}: Bearer {}\r\n", FORGED[0]),
            format!("{header}:\r\n"),
            format!("{header}: \t \r\n"),
            format!("{header}: a\r\nX-A: b\r\n{header}: b\r\nX-B: c\r\n{header}: c\r\n"),
            format!("{}: a\r\n{}: b\r\n", header.to_uppercase(), header.to_lowercase()),
            format!("{header}: a, b\r\n"),
            format!("{header}: \u{e9}\u{4f60}\r\n"),
            format!("{header}: {}\r\n", "e".repeat(15_000)),
            "X-User-Id: 1\r\nx_user_id: 2\r\nX.USER.ID: 3\r\nX-User-Id:\r\n".to_owned(),
            "X-WX-SOURCE: wx_client\r\nX-WX-OPENID: evil\r\nX-WX-FROM-OPENID: evil\r\n".to_owned(),
            "X-WX-UNIONID: evil\r\nX_WX_UNIONID: evil\r\nX-UnionId: evil\r\n".to_owned(),
            "X-WX-SOURCE:\r\nX-WX-ENV:\r\nX-WX-OPENID:\r\n".to_owned(),
            "X_Wxgate_Jwt: evil\r\n".repeat(64),
            // Similar names are not reserved.
            "X-UserId: evil\r\nX-User--Id: evil\r\nUser-Id: evil\r\nJwt: evil\r\n".to_owned(),
            "Proxy-Authorization: Bearer evil\r\nX-Authorization: Bearer evil\r\n".to_owned(),
            "Cookie: X-Wxgate-Jwt=evil; X-User-Id=evil\r\n".to_owned(),
        ] {
            siege.run_on(&ROUTES, &Attack::new(with_lines(&lines), Must::Served(1))).await;
            // The same before everything else.
            let first = format!("{{method}} {{path}} HTTP/1.1\r\n{lines}Host: h\r\n{{auth}}\r\n");
            siege.run_on(&ROUTES[..1], &Attack::new(&first, Must::Served(1))).await;
            siege.run_on(&ROUTES[5..], &Attack::new(first, Must::Served(1))).await;
        }
    }
}

/// No session is read from this header, whatever is in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_authorization_is_removed_where_the_signed_identity_is_sent_in_it() {
    let mut siege = Siege::start_with_more("Authorization", false).await;
    let own = siege.token().to_owned();
    for value in [
        format!("Bearer {own}"),
        format!("bearer  {own}"),
        "Basic c2hvcA==".to_owned(),
        "Digest username=\"evil\", realm=\"x\"".to_owned(),
        own.clone(),
        String::new(),
    ] {
        let lines = format!("Authorization: {value}\r\n");
        siege.run_on(&ROUTES, &Attack::new(with_lines(&lines), Must::Served(1))).await;
        let twice = format!("{lines}authorization: Basic eDp5\r\n");
        siege.run_on(&ROUTES, &Attack::new(with_lines(&twice), Must::Served(1))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn naming_another_identity_header_in_connection_removes_none() {
    for header in HEADERS {
        let mut siege = Siege::start_with_more(header, false).await;
        for lines in [
            format!("Connection: {header}\r\n"),
            format!("Connection: keep-alive, {}\r\n{header}: evil\r\n", header.to_lowercase()),
            "Connection: X-User-Id, X-WX-OPENID, X-WX-SOURCE\r\nX-User-Id: evil\r\n".to_owned(),
            "Connection: x_user_id, x_wxgate_jwt\r\nx_user_id: evil\r\n".to_owned(),
            "Connection: Authorization, X-Wxgate-Jwt\r\n".to_owned(),
            format!("Keep-Alive: {header}\r\nProxy-Connection: {header}\r\n"),
            format!("TE: trailers, {header}\r\n"),
            format!("Connection: TE\r\nTE: trailers\r\nTrailer: {header}\r\n"),
        ] {
            siege.run_on(&ROUTES, &Attack::new(with_lines(&lines), Must::Served(1))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trailer_is_none_of_the_other_identity_headers() {
    for header in HEADERS {
        let mut siege = Siege::start_with_more(header, false).await;
        let start = "POST {path} HTTP/1.1\r\nHost: h\r\n{auth}Transfer-Encoding: chunked\r\n";
        for trailers in [
            format!("{header}: Bearer evil\r\n"),
            "X-User-Id: evil\r\nX_User_Id: evil\r\nX.USER.ID: evil\r\n".to_owned(),
            "X_Wxgate_Jwt: evil\r\nX-WXGATE-JWT: evil\r\n".to_owned(),
            "X-WX-OPENID: evil\r\nX_WX_SOURCE: wx_client\r\nX-WX-APPID: evil\r\n".to_owned(),
            "X-WX-CLOUDBASE-ACCESS-TOKEN: evil\r\nX-Original-Forwarded-For: 6.6.6.6\r\n".to_owned(),
        ] {
            for announced in ["", "Trailer: X-User-Id\r\n", "TE: trailers\r\nConnection: TE\r\n"] {
                let template = format!("{start}{announced}\r\n5\r\nhello\r\n0\r\n{trailers}\r\n");
                siege.run_on(&ROUTES, &Attack::new(template, Must::Harmless)).await;
            }
        }
    }
}

/// Neither a response nor an informational one shows them to the client.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_shows_the_client_none_of_the_other_identity_headers() {
    for header in HEADERS {
        let mut siege = Siege::start_with_more(header, false).await;
        let own = format!(
            "X-User-Id: leaked\r\nx_user_id: leaked\r\nX.User.Id: leaked\r\n\
             X-Wxgate-Jwt: leaked\r\nX_WXGATE_JWT: leaked\r\n{header}: Bearer leaked\r\n\
             X-WX-OPENID: leaked\r\nx_wx_appid: leaked\r\nX.WX.UNIONID: leaked\r\n\
             X-Wx-Source: leaked\r\n\
             {}: leaked\r\n",
            header.to_lowercase()
        );
        let token = siege.token().to_owned();
        for first in ["", "103 Early Hints", "100 Continue", "102 Processing"] {
            let announced = match first {
                "" => String::new(),
                status => format!("HTTP/1.1 {status}\r\n{own}\r\n"),
            };
            let bytes = format!(
                "{announced}HTTP/1.1 200 OK\r\n{own}Transfer-Encoding: chunked\r\n\
                 Trailer: X-User-Id\r\n\r\n2\r\nhi\r\n0\r\n{own}\r\n"
            );
            let request = format!(
                "GET /required HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\nTE: trailers\r\n\
                 Connection: close, TE\r\n\r\n"
            );
            // The bystander's responses stay as they are.
            siege.stack.upstream.reply(move |received| match received.target() {
                "/required" => Reply::Bytes(bytes.clone().into()),
                target => {
                    let openid = received.folded("x-openid");
                    let body = serde_json::json!({ "target": target, "openid": openid });
                    Reply::ok("", &body.to_string())
                }
            });
            let outcome = siege.run(&Attack::new(request, Must::Harmless)).await;
            assert!(outcome.responses.iter().any(|answer| answer.text() == "hi"), "{first}");
            for answer in &outcome.responses {
                assert!(!format!("{answer:?}").contains("leaked"), "{first}: {answer:?}");
            }
        }
    }
}
