//! Logins of web pages by redirect, and sessions in cookies.

mod cookies;

use std::time::Duration;

use futures_util::future::join_all;
use http::header::LOCATION;

use crate::harness::browser::{
    ACCOUNT, Browser, COOKIE, DESKTOP, WEBSITE, WECHAT, code, config, state_in,
};
use crate::harness::client::Response;
use crate::harness::redis::RedisServer;
use crate::harness::{APP, OPERATOR, Stack};
use wxgate::wechat::sandbox;

pub async fn start() -> Stack {
    Stack::start_with(&config("", "")).await
}

/// A page of the gateway, with the error of this status.
#[track_caller]
pub fn assert_page(response: &Response, status: u16, error: &str, lang: &str) {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("x-wxgate-error"), Some(error));
    assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(response.header("x-frame-options"), Some("DENY"));
    assert!(response.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"));
    assert!(response.text().contains(&format!("<html lang=\"{lang}\">")), "{}", response.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_request_without_a_session_is_sent_to_the_app_for_its_browser() {
    let stack = start().await;
    let callback = "https%3A%2F%2Fgateway.test%2Flogin%2Fcallback";
    for (agent, begins) in [
        (
            WECHAT,
            format!(
                "https://open.weixin.qq.com/connect/oauth2/authorize?appid={ACCOUNT}&redirect_uri={callback}&response_type=code&scope=snsapi_base&state="
            ),
        ),
        (
            DESKTOP,
            format!(
                "https://open.weixin.qq.com/connect/qrconnect?appid={WEBSITE}&redirect_uri={callback}&response_type=code&scope=snsapi_login&state="
            ),
        ),
    ] {
        for path in ["/h5", "/login/start?return=%2Fh5"] {
            let mut browser = Browser::new(agent);
            let response = browser.open(&stack, path).await;
            assert_eq!(response.status, 302);
            assert_eq!(response.header("cache-control"), Some("no-store"));
            assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
            let location = response.header(LOCATION.as_str()).unwrap();
            assert!(location.starts_with(&begins), "{location}");
            let state = state_in(&response);
            assert!(state.len() == 32 && state.bytes().all(|b| b.is_ascii_alphanumeric()));
            let set = response.header("set-cookie").unwrap();
            let (pair, attributes) = set.split_once("; ").unwrap();
            assert!(pair.starts_with(&format!("{COOKIE}-{state}=")), "{pair}");
            assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=600");
        }
    }
    assert!(stack.upstream.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_by_redirect_gives_a_session_and_returns_to_the_page() {
    let stack = start().await;
    for (agent, app_id) in [(WECHAT, ACCOUNT), (DESKTOP, WEBSITE)] {
        let mut browser = Browser::new(agent);
        let state = browser.begin(&stack, "/h5/orders?id=1&q=%2F%2f").await;
        let response = browser.come_back(&stack, &state, &code("alice")).await;
        assert_eq!(response.status, 302, "{}", response.text());
        // The end keeps browsers from adding WeChat's fragment.
        assert_eq!(response.header("location"), Some("/h5/orders?id=1&q=%2F%2f#"));
        assert_eq!(response.header("cache-control"), Some("no-store"));
        assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
        let set = response.all("set-cookie");
        let session = set.iter().find(|line| line.starts_with(&format!("{COOKIE}="))).unwrap();
        let (pair, attributes) = session.split_once("; ").unwrap();
        assert_eq!(pair.len(), COOKIE.len() + 1 + 43);
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax; Secure");

        let before = stack.upstream.requests().len();
        let page = browser.open(&stack, "/h5/orders?id=1&q=%2F%2f").await;
        assert_eq!(page.status, 200);
        assert_eq!(page.header("cache-control"), Some("private"));
        let vary = page.header("vary").unwrap();
        assert!(vary.split(", ").any(|name| name == "Cookie"), "{vary}");
        let received = &stack.upstream.requests()[before];
        assert_eq!(received.all("x-openid"), [sandbox::openid(app_id, "alice")]);
        assert_eq!(received.all("x-appid"), [app_id]);
        assert!(received.all("cookie").is_empty(), "the gateway's cookies are not forwarded");
        let shown = browser.fetch(&stack, "GET", "/session").send().await;
        assert_eq!((shown.status, &shown.json()["app_id"]), (200, &app_id.into()));
    }
    let logged = stack.access_log(6).await;
    assert!(logged.contains("\"route\":\"@callback\"") && logged.contains(ACCOUNT), "{logged}");
    let ok = format!("wxgate_logins_total{{app_id=\"{WEBSITE}\",outcome=\"ok\"}}");
    assert!((stack.metric(&ok).await - 1.0).abs() < 1e-9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_for_no_page_gets_json_with_the_login_url() {
    let stack = start().await;
    let browser = Browser::new(DESKTOP);
    let navigate = [("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
    let html = ("Accept", "text/html");
    for lines in [
        &[("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty"), html][..],
        &[("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image")],
        &[("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe")],
        &[navigate[0], navigate[1], ("Sec-Purpose", "prefetch;prerender")],
        &[("Accept", "application/json")],
        &[],
    ] {
        let mut request = browser.request(&stack, "GET", "/h5/data");
        for (name, value) in lines {
            request = request.header(name, value);
        }
        let response = request.send().await;
        assert_eq!(response.status, 401, "{lines:?}");
        let body = response.json();
        assert_eq!((&body["error"], &body["action"]), (&"missing_token".into(), &"login".into()));
        assert_eq!(body["login_url"], "https://gateway.test/login/start");
        assert!(response.all("set-cookie").is_empty(), "no login is begun");
    }
    let post = browser.request(&stack, "POST", "/h5").header(html.0, html.1).send().await;
    assert_eq!((post.status, post.json()["login_url"].is_string()), (401, true));
    // Other routes, and other hosts, have no login for browsers.
    browser.request(&stack, "GET", "/api").header(html.0, html.1).send().await.assert_error(
        401,
        "missing_token",
        "login",
    );
    let other = Browser { host: "other.test", ..Browser::new(DESKTOP) };
    let response = other.request(&stack, "GET", "/h5").header(html.0, html.1).send().await;
    response.assert_error(401, "missing_token", "login");
    let start = other.request(&stack, "GET", "/login/start").send().await;
    start.assert_error(404, "no_route", "none");
    assert!(stack.upstream.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_a_frame_and_a_prefetch_begin_no_login() {
    let stack = start().await;
    let browser = Browser::new(DESKTOP);
    let html = ("Accept", "text/html");
    for lines in [
        &[("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty"), html][..],
        &[("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe"), html],
        &[("Sec-Purpose", "prefetch"), html],
    ] {
        let mut request = browser.request(&stack, "GET", "/login/start?return=%2Fh5");
        for (name, value) in lines {
            request = request.header(name, value);
        }
        let response = request.send().await;
        response.assert_error(401, "missing_token", "login");
        assert!(response.all("set-cookie").is_empty(), "{lines:?}");
    }
    // A browser that is too old to say what the request is for.
    let old = browser.request(&stack, "GET", "/login/start").send().await;
    assert_eq!(old.status, 302);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_a_service_worker_requests_is_sent_to_wechat() {
    let stack = start().await;
    let request = || {
        let request = Browser::new(WECHAT).request(&stack, "GET", "/h5");
        request.header("Sec-Fetch-Mode", "navigate").header("Sec-Fetch-Dest", "empty")
    };
    let own = request().header("Sec-Fetch-Site", "same-origin").send().await;
    assert_eq!(own.status, 302, "{}", own.text());
    let other = request().header("Sec-Fetch-Site", "same-site").send().await;
    assert_eq!(other.status, 401, "{}", other.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_ends_the_sessions_of_a_web_user() {
    let stack =
        Stack::start_with(&config("admin.token = { file = \"{dir}/operator\" }\n", "")).await;
    for (agent, app_id) in [(WECHAT, ACCOUNT), (DESKTOP, WEBSITE)] {
        let mut browser = Browser::new(agent);
        browser.log_in(&stack, "alice").await;
        let query = format!("app_id={app_id}&openid={}", sandbox::openid(app_id, "alice"));
        let revoked = stack.request("DELETE", &format!("/sessions?{query}"));
        assert_eq!(revoked.bearer(OPERATOR).send_to_admin().await.status, 204);
        let response = browser.fetch(&stack, "GET", "/h5").send().await;
        assert_eq!(response.status, 401, "{app_id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_comes_twice_gets_one_session() {
    let stack = start().await;
    let mut browser = Browser::new(WECHAT);
    let state = browser.begin(&stack, "/h5").await;
    let code = code("alice");
    let path = format!("/login/callback?code={code}&state={state}");
    let at_once = join_all((0..10).map(|_| browser.request(&stack, "GET", &path).send())).await;
    browser.keep(&at_once[0]);
    let token = browser.cookies[COOKIE].clone();
    let again = browser.open(&stack, &path).await;
    for response in at_once.iter().chain([&again]) {
        assert_eq!(response.status, 302, "{}", response.text());
        let set = response.all("set-cookie");
        assert!(set.iter().any(|line| line.contains(&token)), "{set:?}");
    }
    assert_eq!(stack.sandbox.exchanges(), 1);

    // The state with another code is rejected, and this code is not spent.
    let other = crate::harness::browser::code("mallory");
    let response = browser.come_back(&stack, &state, &other).await;
    assert_page(&response, 401, "invalid_code", "en");
    assert_eq!(stack.sandbox.exchanges(), 1);
    // After a logout, a repeat gives no session.
    let logout = browser.fetch(&stack, "POST", "/logout").send().await;
    assert_eq!(logout.status, 204);
    let response = browser.open(&stack, &path).await;
    assert_page(&response, 401, "invalid_code", "en");
    stack.clock.advance(Duration::from_secs(60));
    let response = browser.open(&stack, &path).await;
    assert_page(&response, 401, "invalid_code", "en");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_does_not_succeed_ends_on_a_page() {
    let stack = start().await;
    for (language, lang, says) in
        [("zh-CN,zh;q=0.9", "zh-CN", "重新登录"), ("en", "en", "Log in again")]
    {
        let show = async |browser: &Browser, query: String| {
            let path = format!("/login/callback?{query}");
            let request = browser.request(&stack, "GET", &path);
            request.header("Accept-Language", language).send().await
        };
        let mut browser = Browser::new(DESKTOP);
        let state = browser.begin(&stack, "/h5?a=1&b=2").await;
        let denied = show(&browser, format!("state={state}")).await;
        assert_page(&denied, 403, "not_allowed", lang);
        let again = "href=\"/login/start?return=%2Fh5%3Fa%3D1%26b%3D2\"";
        assert!(denied.text().contains(again) && denied.text().contains(says));
        for (code, status, error) in [
            ("err-40029-x".to_owned(), 401, "invalid_code"),
            ("err-40226-x".to_owned(), 403, "user_blocked"),
            ("err-40125-x".to_owned(), 502, "wechat_rejected"),
            ("err--1-x".to_owned(), 503, "wechat_busy"),
            ("garbage-x".to_owned(), 502, "wechat_rejected"),
            ("drop-x".to_owned(), 504, "wechat_timeout"),
        ] {
            let state = browser.begin(&stack, "/h5").await;
            let random: u64 = rand::random();
            let response = show(&browser, format!("code={code}{random}&state={state}")).await;
            assert_page(&response, status, error, lang);
            assert!(response.all("set-cookie").is_empty());
        }
        // Not begun here, malformed, or repeated.
        stack.clock.advance(Duration::from_millis(1));
        let other = Browser::new(DESKTOP);
        let [state, next] =
            [browser.begin(&stack, "/h5").await, browser.begin(&stack, "/h5").await];
        let code = code("alice");
        for (browser, query) in [
            (&other, format!("code={code}&state={state}")),
            (&browser, format!("code={code}")),
            (&browser, format!("code={code}&state={state}x")),
            (&browser, format!("code={code}&state={state}&state={state}")),
            (&browser, format!("code={code}&state={state}&state={next}")),
            (&browser, String::new()),
        ] {
            let response = show(browser, query).await;
            assert_page(&response, 400, "bad_request", lang);
            assert!(response.all("set-cookie").is_empty());
        }
        let twice = show(&browser, format!("code={code}&code={code}&state={state}")).await;
        assert_page(&twice, 400, "bad_request", lang);
        assert_eq!(show(&browser, format!("code={code}&state={next}")).await.status, 302);
        stack.clock.advance(Duration::from_secs(600));
        let late = show(&browser, format!("code={code}&state={state}")).await;
        assert_page(&late, 400, "bad_request", lang);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_may_pass_can_be_repeated_with_the_same_callback() {
    let stack = start().await;
    let mut browser = Browser::new(WECHAT);
    let state = browser.begin(&stack, "/h5").await;
    for _ in 0..2 {
        let response = browser.come_back(&stack, &state, "err--1-again").await;
        assert_page(&response, 503, "wechat_busy", "en");
    }
    let response = browser.come_back(&stack, &state, &code("alice")).await;
    assert_eq!(response.status, 302, "the state is not used up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_without_an_app_gets_a_page_that_says_where_to_open_the_url() {
    for (keep, agent) in [("official_account", DESKTOP), ("website", WECHAT)] {
        let text = config("", "");
        let line = text.lines().find(|line| {
            line.starts_with("official_account =") != (keep == "official_account")
                && (line.starts_with("official_account =") || line.starts_with("website ="))
        });
        let stack = Stack::start_with(&text.replace(line.unwrap(), "")).await;
        for path in ["/h5", "/login/start"] {
            let response = Browser::new(agent).open(&stack, path).await;
            assert_page(&response, 403, "not_allowed", "en");
            assert!(response.all("set-cookie").is_empty());
        }
        let script = Browser::new(agent).fetch(&stack, "GET", "/h5").send().await;
        script.assert_error(401, "missing_token", "login");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_has_at_most_five_logins_under_way() {
    let stack = start().await;
    let mut browser = Browser::new(WECHAT);
    let mut states = Vec::new();
    for _ in 0..7 {
        states.push(browser.begin(&stack, "/h5").await);
        stack.clock.advance(Duration::from_secs(1));
    }
    assert_eq!(browser.cookies.len(), 5);
    let response = browser.come_back(&stack, &states[1], &code("alice")).await;
    assert_page(&response, 400, "bad_request", "en");
    for state in &states[2..] {
        let response = browser.come_back(&stack, state, &code("alice")).await;
        assert_eq!(response.status, 302);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_returns_only_to_a_page_of_its_host() {
    let stack = start().await;
    for (given, expected) in [
        ("%2Fh5%2Forders%3Fid%3D1", "/h5/orders?id=1"),
        ("/h5", "/h5"),
        ("%2Fh5%23%2Forders%2F5", "/h5#/orders/5"),
        ("%2Fnowhere%23%2Fh5", "/"),
        ("%2Fh5%2F%25E4%25B8%25AD", "/h5/%E4%B8%AD"),
        ("%2F%2Fevil.test", "/"),
        ("%2F%5Cevil.test", "/"),
        ("%2Fh5%5C..%5Cevil", "/"),
        ("https%3A%2F%2Fevil.test%2F", "/"),
        ("%2Fh5%0d%0aSet-Cookie:%20x=1", "/"),
        ("%2F%09%2Fevil.test", "/"),
        ("%2Fh5%2F%252e%252e%2Flogin", "/"),
        ("%2Flogin%2Fstart", "/"),
        ("%2Flogin%2Fcallback", "/"),
        ("%2Flogout", "/"),
        ("%2Fnowhere", "/"),
        ("%2Fh5&return=%2Fapi", "/"),
        ("", "/"),
    ] {
        let mut browser = Browser::new(WECHAT);
        let response = browser.open(&stack, &format!("/login/start?return={given}")).await;
        let state = state_in(&response);
        let response = browser.come_back(&stack, &state, &code("alice")).await;
        let end = if expected.contains('#') { "" } else { "#" };
        assert_eq!(response.header("location"), Some(&*format!("{expected}{end}")), "{given}");
    }
    // A page request itself may look like the URL of another host.
    let text =
        config("", "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nlogin = \"redirect\"\n");
    let stack = Stack::start_with(&text).await;
    let mut browser = Browser::new(WECHAT);
    let state = browser.begin(&stack, "//evil.test/x").await;
    let response = browser.come_back(&stack, &state, &code("alice")).await;
    assert_eq!(response.header("location"), Some("/#"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_begun_on_one_gateway_ends_on_another() {
    let redis = RedisServer::start();
    let keys = format!(
        "session.seal_key = {{ file = \"{{dir}}/seal\" }}\nsession.redis.timeout = \"2s\"\n\
         session.redis.url = \"redis://127.0.0.1:{}\"\n",
        redis.port
    );
    let start = async || {
        let stack = Stack::start_with(&config(&keys, "")).await;
        stack.until_ready().await;
        stack
    };
    let (one, other) = (start().await, start().await);
    let mut browser = Browser::new(WECHAT);
    let state = browser.begin(&one, "/h5").await;
    let code = code("alice");
    let path = format!("/login/callback?code={code}&state={state}");
    let (first, second) = tokio::join!(
        browser.request(&one, "GET", &path).send(),
        browser.request(&other, "GET", &path).send()
    );
    assert_eq!((first.status, second.status), (302, 302), "{} {}", first.text(), second.text());
    browser.keep(&first);
    let token = browser.cookies[COOKIE].clone();
    browser.keep(&second);
    assert_eq!(browser.cookies[COOKIE], token, "one session");
    assert_eq!(one.sandbox.exchanges() + other.sandbox.exchanges(), 1);
    for stack in [&one, &other] {
        assert_eq!(browser.open(stack, "/h5").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_seal_key_a_reload_keeps_the_logins_under_way() {
    let stack = start().await;
    let mut browser = Browser::new(WECHAT);
    let state = browser.begin(&stack, "/h5").await;
    assert!(stack.reload(&config("session.ttl = \"3h\"\n", "")).await);
    let response = browser.come_back(&stack, &state, &code("alice")).await;
    assert_eq!(response.status, 302);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_browser_in_the_configuration_the_paths_are_routed() {
    let stack =
        Stack::start_with("[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"none\"\n")
            .await;
    for path in ["/login/start", "/login/callback?code=x&state=y", "/ticket", "/scan", "/scan/x"] {
        let received =
            stack.get(path).header("Cookie", "wxgate=1; __Host-wxgate=2").forwarded().await;
        assert_eq!(received.target(), path);
        assert_eq!(received.all("cookie"), ["wxgate=1; __Host-wxgate=2"]);
    }
    let _ = APP;
}
