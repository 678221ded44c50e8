//! `wxgate explain` for requests of browsers: cookies, logins by redirect, tickets.

use wxgate::cli::explain::Outcome;

use super::agreement::explained;
use crate::harness::Stack;
use crate::harness::client::Connection;

const TOKEN: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

const CHANGES: &str = r#"
    [ticket]
    enabled = true
    [[app]]
    app_id = "wx0000000000000001"
    app_secret = { file = "tests/config/app_secret" }
    kind = "official_account"
    [[browser]]
    base_url = "https://gateway.test"
    official_account = "wx0000000000000001"
    [[upstream]]
    name = "recorder"
    servers = ["{upstream}"]
    [[upstream]]
    name = "old"
    servers = ["127.0.0.1:1"]
    cookie_jar = true
    [[route]]
    path = "/"
    upstream = "recorder"
    auth = "optional"
    [[route]]
    path = "/h5"
    upstream = "recorder"
    login = "redirect"
    [[route]]
    path = "/none"
    upstream = "recorder"
    auth = "none"
    [[route]]
    path = "/old"
    upstream = "old"
"#;

const PAGE: (&str, &str) = ("Accept", "text/html");
const WECHAT: (&str, &str) = ("User-Agent", "Mozilla/5.0 MicroMessenger/8.0");

#[tokio::test(flavor = "multi_thread")]
async fn explain_shows_what_a_browser_gets_without_a_session() {
    let stack = Stack::start_with(CHANGES).await;
    for (method, path, headers, status, without_session, app) in [
        ("GET", "/h5", &[PAGE, WECHAT][..], 302, Some("redirect"), Some("wx0000000000000001")),
        ("GET", "/h5", &[PAGE], 403, Some("page"), None),
        ("GET", "/h5", &[WECHAT], 401, Some("json"), None),
        ("POST", "/h5", &[PAGE, WECHAT], 401, Some("json"), None),
        ("GET", "/x", &[PAGE, WECHAT], 200, None, None),
    ] {
        let explanation = explained(&stack, method, path, headers);
        let browser = explanation.browser.unwrap();
        assert_eq!(browser.without_session, without_session, "{method} {path} {headers:?}");
        assert_eq!(browser.app.as_deref(), app, "{method} {path} {headers:?}");
        assert_eq!(
            sent(&stack, method, path, headers).await,
            status,
            "{method} {path} {headers:?}"
        );
    }
}

/// The status of the response to a request.
async fn sent(stack: &Stack, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
    let mut connection = Connection::open(stack.gateway).await;
    let lines: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: gateway.test\r\n{lines}\r\n");
    connection.send(request.as_bytes()).await;
    connection.response(method == "HEAD").await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_rejects_what_the_gateway_rejects_of_cookies_and_tickets() {
    let stack = Stack::start_with(CHANGES).await;
    let cookie = format!("__Host-wxgate={TOKEN}");
    let two = format!("{cookie}; __Host-wxgate=x");
    let once = format!("wxgate_ticket={TOKEN}");
    let header = ("X-3rd-Session", TOKEN);
    let mut rejected = 0;
    for (path, headers) in [
        ("/x".to_owned(), &[("Cookie", two.as_str())][..]),
        ("/none".to_owned(), &[("Cookie", &two)]),
        ("/h5".to_owned(), &[("Cookie", &two), header]),
        (format!("/x?{once}&{once}"), &[]),
        (format!("/none?{once}&{once}"), &[]),
        (format!("/x?{once}"), &[header]),
        (format!("/none?{once}"), &[header]),
        (format!("/x?{once}"), &[("Cookie", &two)]),
        ("/login/start?return=/x".to_owned(), &[WECHAT]),
        ("/login/callback".to_owned(), &[]),
    ] {
        let explanation = explained(&stack, "GET", &path, headers);
        let status = sent(&stack, "GET", &path, headers).await;
        let is_rejected = explanation.outcome == Outcome::Rejected;
        rejected += usize::from(is_rejected);
        // Other rejections depend on the session.
        let is_bad = status == 400 && explanation.endpoint.is_none();
        assert_eq!(is_rejected, is_bad, "{path} {headers:?}: {status} {explanation:?}");
        assert!(!is_rejected || explanation.status == Some(status), "{explanation:?}");
    }
    assert_eq!(rejected, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_and_tickets_explained_as_removed_do_not_reach_the_service() {
    let stack = Stack::start_with(CHANGES).await;
    let cookie = format!("a=1; __Host-wxgate={TOKEN};b=2; __Host-wxgate-state=x");
    let path = format!("/none?x=1&wxgate_ticket={TOKEN}&y=2");
    let headers = [("Cookie", cookie.as_str())];
    let explanation = explained(&stack, "GET", &path, &headers);
    let received = stack.get(&path).header("Cookie", &cookie).forwarded().await;
    let forwarded = explanation.request.unwrap();
    assert_eq!(forwarded.target, received.target());
    assert_eq!(received.target(), "/none?x=1&y=2");
    let shown = forwarded.headers.iter().find(|header| header.name == "cookie").unwrap();
    assert_eq!(received.all("cookie"), [shown.value.as_str()]);
    let removed = explanation.removed.iter().find(|header| header.name == "cookie").unwrap();
    assert_eq!(removed.reason, "the gateway's own cookies are removed from it");
    let own = [("Cookie", "__Host-wxgate=x")];
    let explanation = explained(&stack, "GET", "/none", &own);
    let names = explanation.request.unwrap().headers;
    assert!(names.iter().all(|header| header.name != "cookie"), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_shows_the_cookie_the_ticket_and_the_jar_as_text() {
    let stack = Stack::start_with(CHANGES).await;
    let cookie = format!("__Host-wxgate={TOKEN}");
    let shown = explained(&stack, "POST", "/old", &[("Cookie", &cookie)]).to_string();
    for line in [
        "  auth: required: a session is needed\n",
        "  browser: https://gateway.test, cookie __Host-wxgate\n",
        "    the token is that of the cookie: no header has one\n",
        "    403 cross_site: the method needs Sec-Fetch-Site: same-origin, or else Origin: \
         https://gateway.test\n",
        "    without a session: 401 as JSON\n",
        "    cookie_jar: its cookies stay in the gateway, with the session\n",
        "    cookie: the gateway's own cookies are removed from it\n",
        "  added to responses: Vary: X-3rd-Session, Authorization, Cookie\n",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let own = ("Sec-Fetch-Site", "same-origin");
    let shown = explained(&stack, "POST", "/old", &[("Cookie", &cookie), own]).to_string();
    assert!(!shown.contains("cross_site"), "{shown}");
    let path = format!("/h5?wxgate_ticket={TOKEN}");
    let shown = explained(&stack, "GET", &path, &[PAGE, WECHAT]).to_string();
    for line in [
        "    without a session: redirected to WeChat, to log in to wx0000000000000001\n",
        "  ticket: the session is found by it; it is removed from the query\n",
        "    GET /h5\n",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert!(!shown.contains(TOKEN), "{shown}");
}
