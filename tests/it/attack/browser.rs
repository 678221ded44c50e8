//! Attacks on cookies and on logins by redirect: fixation, replay, injection, and other sites.

use super::siege::{Attack, Must, Outcome, Siege};
use crate::harness::browser::{ACCOUNT, WEBSITE, state_in};
use crate::harness::{APP, THREE_ROUTES};

const HOST: &str = "h5.example.test";
const COOKIE: &str = "__Host-wxgate";

async fn start() -> Siege {
    let apps = [(APP, "mini_program"), (ACCOUNT, "official_account"), (WEBSITE, "website")];
    let apps = apps.map(|(app_id, kind)| {
        format!(
            "[[app]]\napp_id = \"{app_id}\"\nkind = \"{kind}\"\n\
             app_secret = {{ file = \"{{dir}}/wechat-secret\" }}\n"
        )
    });
    let browser = format!(
        "[[browser]]\nbase_url = \"https://{HOST}\"\nofficial_account = \"{ACCOUNT}\"\n\
         website = \"{WEBSITE}\"\n[[browser]]\nbase_url = \"https://other.example.test\"\n\
         website = \"{WEBSITE}\"\n[[route]]\npath = \"/h5\"\nupstream = \"recorder\"\n\
         login = \"redirect\"\nwebsocket = true\n"
    );
    Siege::start_with("", &[THREE_ROUTES, &apps.concat(), &browser].concat()).await
}

fn request(method: &str, target: &str, lines: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n")
}

/// Runs an attack that must be rejected with this status, if it gets one response.
async fn rejected(siege: &mut Siege, request: String, status: u16) -> Outcome {
    let outcome = siege.run(&Attack::new(&request, Must::Rejected)).await;
    let statuses: Vec<_> = outcome.responses.iter().map(|one| one.status).collect();
    assert_eq!(statuses, [status], "{request}");
    outcome
}

/// Begins a login in a browser without cookies. Returns the state and its cookie.
async fn begin(siege: &mut Siege) -> (String, String) {
    let lines = "Accept: text/html\r\nUser-Agent: MicroMessenger/8.0\r\n";
    let outcome = siege.run(&Attack::new(request("GET", "/h5", lines), Must::Harmless)).await;
    let response = &outcome.responses[0];
    assert_eq!((response.status, outcome.received.len()), (302, 0));
    let state = state_in(response);
    let cookie = response.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    siege.secrets.extend([state.clone(), cookie.split_once('=').unwrap().1.to_owned()]);
    (state, cookie)
}

/// A callback with these cookies. Returns its status, and the token of the session cookie.
async fn call_back(siege: &mut Siege, query: &str, cookies: &str) -> (u16, Option<String>) {
    let lines = if cookies.is_empty() { String::new() } else { format!("Cookie: {cookies}\r\n") };
    let target = format!("/login/callback?{query}");
    let attack = Attack::new(request("GET", &target, &lines), Must::Harmless);
    let outcome = siege.run(&attack).await;
    assert!(outcome.received.is_empty(), "nothing is forwarded");
    let [response] = &outcome.responses[..] else { panic!("{query}: {:?}", outcome.responses) };
    let lines = response.all("set-cookie");
    let session = lines.iter().find_map(|line| line.strip_prefix("__Host-wxgate="));
    let token = session.map(|line| line.split(';').next().unwrap().to_owned());
    assert_eq!(response.status == 302, token.is_some());
    siege.secrets.extend(token.clone());
    (response.status, token)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_cannot_be_completed_in_another_browser() {
    let mut siege = start().await;
    let (mine, my_cookie) = begin(&mut siege).await;
    let (hers, her_cookie) = begin(&mut siege).await;
    let (my_value, her_value) = (
        my_cookie.split_once('=').unwrap().1.to_owned(),
        her_cookie.split_once('=').unwrap().1.to_owned(),
    );
    let code = siege.code_of("unionmallory");
    let (began, sealed) = my_value.split_once('.').unwrap();
    let flipped = format!("{began}.{}A", &sealed[..sealed.len() - 1]);
    let flipped = if flipped == my_value {
        format!("{began}.{}B", &sealed[..sealed.len() - 1])
    } else {
        flipped
    };
    let younger = format!("{}.{sealed}", began.parse::<u64>().unwrap() + 60_000);
    // The attacker's state in the browser of the victim (login CSRF), and mixtures of the two.
    for cookies in [
        String::new(),
        her_cookie.clone(),
        format!("{COOKIE}-{mine}={her_value}"),
        format!("{COOKIE}-{mine}={flipped}"),
        format!("{COOKIE}-{mine}={younger}"),
        format!("{COOKIE}-{mine}="),
        format!("{COOKIE}-{mine}=\"{my_value}\""),
        format!("{COOKIE}-{mine}={}", my_value.to_uppercase()),
        format!("{COOKIE}={my_value}"),
        format!("wxgate-{mine}={my_value}"),
        format!("{COOKIE}-{}={my_value}", mine.to_lowercase()),
        // A subdomain tosses a second cookie of the same name.
        format!("{my_cookie}; {COOKIE}-{mine}={her_value}"),
        format!("{COOKIE}-{mine}=x; {my_cookie}"),
    ] {
        let query = format!("code={code}&state={mine}");
        let (status, _) = call_back(&mut siege, &query, &cookies).await;
        assert_eq!(status, 400, "{cookies}");
    }
    for query in [
        format!("code={code}&state={hers}"),
        format!("code={code}&state={mine}&state={hers}"),
        format!("code={code}&state={mine}%00"),
        format!("code={code}&state={mine}%20"),
        format!("code={code}&state[]={mine}"),
        format!("code={code}&State={mine}"),
        format!("code={code}#state={mine}").replace('#', "%23"),
        format!("code={code}&code=x&state={mine}"),
        format!("code={code}"),
        format!("state={}&code={code}", "a".repeat(32)),
        format!("state={}&code={code}", "a".repeat(5000)),
    ] {
        let (status, _) = call_back(&mut siege, &query, &my_cookie).await;
        assert_eq!(status, 400, "{query}");
    }
    // On another host of the gateway, with the cookie copied there.
    let elsewhere = format!(
        "GET /login/callback?code={code}&state={mine} HTTP/1.1\r\nHost: other.example.test\r\n\
         Cookie: {my_cookie}\r\n\r\n"
    );
    let outcome = siege.run(&Attack::new(elsewhere, Must::Rejected)).await;
    assert_eq!(outcome.responses[0].status, 400);
    for host in ["h", "h5.example.test.evil.test", "evil.test", "h5.example.test:8080", ""] {
        let no_host = format!(
            "GET /login/callback?code={code}&state={mine} HTTP/1.1\r\nHost: {host}\r\n\
             Cookie: {my_cookie}\r\n\r\n"
        );
        let outcome = siege.run(&Attack::new(no_host, Must::Rejected)).await;
        assert!(matches!(outcome.responses[0].status, 400 | 404), "{host}");
    }
    assert_eq!(logins(&siege), 0, "no code was spent");
    let query = format!("code={code}&state={mine}");
    assert_eq!(call_back(&mut siege, &query, &my_cookie).await.0, 302);
}

/// Codes of browsers that were exchanged.
fn logins(siege: &Siege) -> usize {
    let requests = siege.wechat.requests();
    requests.iter().filter(|target| target.contains("/sns/oauth2/access_token")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_valid_for_one_code_and_a_code_for_one_login() {
    let mut siege = start().await;
    let (state, cookie) = begin(&mut siege).await;
    let (next, next_cookie) = begin(&mut siege).await;
    let code = siege.code_of("unionmallory");
    let query = format!("code={code}&state={state}");
    let (_, token) = call_back(&mut siege, &query, &cookie).await;
    assert_eq!(call_back(&mut siege, &query, &cookie).await.1, token, "a repeat");
    for other in ["x", &siege.code_of("bystander"), &format!("{code}x"), "err-40029-1"] {
        let query = format!("code={other}&state={state}");
        assert_eq!(call_back(&mut siege, &query, &cookie).await, (401, None), "{other}");
    }
    assert_eq!(logins(&siege), 1);
    // The code in another browser that has begun a login of its own, at once and later.
    let query = format!("code={code}&state={next}");
    assert_eq!(call_back(&mut siege, &query, &next_cookie).await, (401, None));
    siege.stack.clock.advance(std::time::Duration::from_secs(61));
    assert_eq!(call_back(&mut siege, &query, &next_cookie).await, (401, None));
    // The state in a browser whose cookie is still there, with another code or the same.
    for code in [siege.code_of("bystander"), code] {
        let query = format!("code={code}&state={state}");
        assert_eq!(call_back(&mut siege, &query, &cookie).await, (401, None));
    }
    for code in ["a%20b", "a%0d%0aX:%20y", "%00", "%ff", "a&b=c%26secret", &"a".repeat(129)] {
        let (state, cookie) = begin(&mut siege).await;
        let before = logins(&siege);
        let query = format!("code={code}&state={state}");
        let (status, token) = call_back(&mut siege, &query, &cookie).await;
        assert!(matches!(status, 400 | 401 | 502) && token.is_none(), "{code}: {status}");
        assert!(logins(&siege) <= before + 1);
        assert!(!siege.wechat.requests().iter().any(|target| target.contains("secret=x")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_login_leads_to_another_host() {
    let mut siege = start().await;
    for wanted in [
        "//evil.test",
        "///evil.test",
        "/%5cevil.test",
        "%5c%5cevil.test",
        "/%09/evil.test",
        "/%0d%0aLocation:%20https://evil.test",
        "/%0aSet-Cookie:%20x",
        "https://evil.test",
        "https:%2f%2fevil.test",
        "https:evil.test",
        "javascript:alert(1)",
        "data:text/html,x",
        "@evil.test",
        ".evil.test",
        "%2f%2fevil.test",
        "%2F%5Cevil.test",
        "/%2e%2e//evil.test",
        "/h5/%2e%2e%2flogin",
        "/h5%00",
        "/login/start?return=/h5",
        "/login/callback?code=x",
        "/logout",
        "/nowhere%3f//evil.test",
        "%e2%80%ae/h5",
        "\u{2f}\u{2f}evil.test",
    ] {
        let target = format!("/login/start?return={wanted}");
        let lines = "User-Agent: MicroMessenger/8.0\r\n";
        let attack = Attack::new(request("GET", &target, lines), Must::Harmless);
        let outcome = siege.run(&attack).await;
        assert!(outcome.received.is_empty());
        let response = &outcome.responses[0];
        assert_eq!(response.status, 302, "{wanted}");
        let location = response.header("location").unwrap();
        assert!(location.starts_with("https://open.weixin.qq.com/connect/oauth2/authorize?"));
        assert!(
            location.contains(&format!("redirect_uri=https%3A%2F%2F{HOST}%2Flogin%2Fcallback&"))
        );
        let state = state_in(response);
        let cookie = response.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let code = siege.code_of("unionmallory");
        let target = format!("/login/callback?code={code}&state={state}");
        let lines = format!("Cookie: {cookie}\r\n");
        let attack = Attack::new(request("GET", &target, &lines), Must::Harmless);
        let outcome = siege.run(&attack).await;
        let location = outcome.responses[0].header("location").unwrap();
        let path = location.trim_end_matches('#');
        assert!(
            path == "/" || path.starts_with("/h5") && !path.contains("evil"),
            "{wanted}: {location}"
        );
    }
    // The Host header selects one of the configured hosts, and nothing else.
    for host in [
        "evil.test",
        "h5.example.test@evil.test",
        "h5.example.test, evil.test",
        "evil.test#h5.example.test",
    ] {
        let text = format!(
            "GET /login/start HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: {HOST}\r\n\r\n"
        );
        let outcome = siege.run(&Attack::new(text, Must::Rejected)).await;
        assert!(matches!(outcome.responses[0].status, 400 | 404), "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_of_another_site_or_another_host_does_not_authenticate() {
    let mut siege = start().await;
    let token = siege.token().to_owned();
    let cookie = format!("Cookie: {COOKIE}={token}\r\n");
    let other = siege.token_of("carol").await;
    // It is the attacker's own session, which is served on its host.
    let served = request("GET", "/required", &cookie);
    siege.run(&Attack::new(served, Must::Served(1))).await;
    for (method, lines, status) in [
        ("POST", "", 403),
        ("POST", "Origin: https://evil.test\r\n", 403),
        ("POST", "Origin: null\r\n", 403),
        ("POST", "Origin: https://other.example.test\r\n", 403),
        ("POST", "Origin: https://h5.example.test.evil.test\r\n", 403),
        ("POST", "Origin: https://h5.example.test\r\nOrigin: https://evil.test\r\n", 403),
        ("POST", "Sec-Fetch-Site: same-site\r\nOrigin: https://h5.example.test\r\n", 403),
        ("POST", "Sec-Fetch-Site: cross-site\r\n", 403),
        ("POST", "Sec-Fetch-Site: same-origin, none\r\n", 403),
        ("POST", "Sec-Fetch-Site: none\r\nSec-Fetch-Site: none\r\n", 403),
        ("DELETE", "X-HTTP-Method-Override: GET\r\n", 403),
        ("GETT", "", 403),
        ("get", "", 400),
        ("TRACE", "", 400),
    ] {
        let lines = format!("{cookie}{lines}");
        for path in ["/required", "/optional"] {
            rejected(&mut siege, request(method, path, &lines), status).await;
        }
    }
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for lines in
        ["", "Origin: https://evil.test\r\n", "Sec-Fetch-Site: same-site\r\n", "Origin: null\r\n"]
    {
        rejected(&mut siege, request("GET", "/h5", &format!("{cookie}{upgrade}{lines}")), 403)
            .await;
    }
    for lines in ["", "Sec-Fetch-Site: cross-site\r\n", "Origin: https://evil.test\r\n"] {
        rejected(&mut siege, request("POST", "/logout", &format!("{cookie}{lines}")), 403).await;
    }
    // Two different cookies, from which a service could choose either.
    for cookies in [
        format!("Cookie: {COOKIE}={token}; {COOKIE}={other}\r\n"),
        format!("Cookie: {COOKIE}={token}\r\nCookie: {COOKIE}={other}\r\n"),
        format!("Cookie: {COOKIE}=; {COOKIE}={token}\r\n"),
        format!("Cookie: {COOKIE}={token};\t{COOKIE} = x\r\n"),
    ] {
        for path in ["/required", "/optional"] {
            rejected(&mut siege, request("GET", path, &cookies), 400).await;
        }
    }
    // Spellings that are not the gateway's cookie.
    for name in [
        "__host-wxgate",
        "__HOST-WXGATE",
        "wxgate",
        "__Host-wxgate ",
        "__Secure-wxgate",
        "__Host-wxgate%20",
        "%5f_Host-wxgate",
        "__Host-wxgate-",
        "$__Host-wxgate",
        "\"__Host-wxgate\"",
        "x=__Host-wxgate",
        "__Host-wxgate\u{a0}",
    ] {
        let name = if name == "__Host-wxgate " { "__Host-wxgatf" } else { name };
        let lines = format!("Cookie: {name}={token}\r\n");
        rejected(&mut siege, request("GET", "/required", &lines), 401).await;
    }
    for name in ["Cookie2", "X-Cookie", "Set-Cookie", "Cook\u{131}e", "Cookies"] {
        let lines = format!("{name}: {COOKIE}={token}\r\n");
        let outcome =
            siege.run(&Attack::new(request("GET", "/required", &lines), Must::Rejected)).await;
        assert!(matches!(outcome.responses[0].status, 400 | 401), "{name}");
    }
    // On the other host, which has a cookie of the same name, the session is the same user's: the
    // browser never sends it there.
    for host in ["h", "h5.example.test.", "evil.test", "H5.EXAMPLE.TEST.evil.test"] {
        let text = format!("GET /required HTTP/1.1\r\nHost: {host}\r\n{cookie}\r\n");
        rejected(&mut siege, text, 401).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_never_reaches_a_service() {
    let mut siege = start().await;
    let token = siege.token().to_owned();
    for lines in [
        format!("Cookie: {COOKIE}={token}\r\n"),
        format!("cookie:{COOKIE}={token};a=1\r\n"),
        format!("COOKIE: a=1 ; {COOKIE}={token} ;b=2\r\n"),
        format!("Cookie: a=1\r\nCookie: {COOKIE}={token}\r\nCookie: b=2\r\n"),
        format!("Cookie: {COOKIE}-scan={token}; {COOKIE}={token}; {COOKIE}-x={token}\r\n"),
        format!("Cookie: ;;{COOKIE}={token};;\r\n"),
        format!("Cookie: {COOKIE}={token}; {COOKIE}={token}\r\n"),
        format!("Connection: cookie\r\nCookie: {COOKIE}={token}\r\n"),
    ] {
        for path in ["/required", "/optional", "/none"] {
            let attack = Attack::new(request("GET", path, &lines), Must::Served(1));
            let outcome = siege.run(&attack).await;
            let shown = format!("{:?}", outcome.received);
            assert!(!shown.contains(&token), "{lines}: {shown}");
        }
    }
    let chunked = format!(
        "Cookie: {COOKIE}={token}\r\nSec-Fetch-Site: same-origin\r\nTransfer-Encoding: chunked\r\n\
         Trailer: Cookie\r\n\r\n1\r\nx\r\n0\r\nCookie: {COOKIE}={token}\r\n"
    );
    let outcome =
        siege.run(&Attack::new(request("POST", "/required", &chunked), Must::Served(1))).await;
    assert!(!format!("{:?}", outcome.received).contains(&token));
}
