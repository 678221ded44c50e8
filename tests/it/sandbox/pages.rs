//! WeChat's login pages, and the exchange of the codes that they give.

use std::time::Duration;

use super::*;

const CALLBACK: &str = "https%3A%2F%2Fh5.example.com%2Flogin%2Fcallback%3Fx%3D1";

/// The target of an official account's page.
fn authorize(scope: &str, more: &str) -> String {
    format!(
        "/connect/oauth2/authorize?appid={APP}&redirect_uri={CALLBACK}&response_type=code&scope={scope}&state=Abc0{more}"
    )
}

/// The target of a website's page.
fn qr_connect(more: &str) -> String {
    format!(
        "/connect/qrconnect?appid={APP}&redirect_uri={CALLBACK}&response_type=code&scope=snsapi_login&state=Abc0{more}"
    )
}

/// The code in a redirect to the callback.
fn code_of(response: &Response) -> String {
    assert_eq!(response.status, 302, "{}", response.text());
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let location = response.header("location").unwrap();
    let rest = location.strip_prefix("https://h5.example.com/login/callback?x=1&code=");
    let code = rest.and_then(|rest| rest.strip_suffix("&state=Abc0"));
    code.unwrap_or_else(|| panic!("{location}")).to_owned()
}

impl WeChat {
    async fn page(&self, path: &str) -> Response {
        client::get(self.address, path).await
    }

    async fn exchange(&self, app_id: &str, code: &str) -> Value {
        let query = format!("appid={app_id}&secret={SECRET}&code={code}");
        self.get(&format!("/sns/oauth2/access_token?{query}&grant_type=authorization_code")).await
    }
}

#[tokio::test]
async fn a_page_has_a_link_for_each_choice_and_needs_no_script() {
    let wechat = WeChat::start().await;
    for (path, choices) in [
        (
            authorize("snsapi_userinfo", ""),
            &["alice", "bob", "carol", "slow", "snapshot", "deny", "close"][..],
        ),
        (authorize("snsapi_base", "&forcePopup=true"), &["alice", "snapshot"]),
        (qr_connect(""), &["alice", "bob", "carol", "slow", "deny", "close"]),
    ] {
        let page = wechat.page(&path).await;
        assert_eq!(
            (page.status, page.header("content-type")),
            (200, Some("text/html; charset=utf-8"))
        );
        let text = page.text();
        assert!(text.contains("name=\"viewport\"") && !text.contains("<script"), "{text}");
        let mut seen = Vec::new();
        for choice in choices {
            let (_, rest) = text.split_once(&format!("id=\"{choice}\" href=\"")).expect(choice);
            let link = rest.split('"').next().unwrap().replace("&amp;", "&");
            let followed = wechat.page(&link).await;
            match *choice {
                "close" => assert_eq!((followed.status, followed.header("location")), (200, None)),
                "deny" => assert_eq!(
                    followed.header("location"),
                    Some("https://h5.example.com/login/callback?x=1&state=Abc0")
                ),
                _ => seen.push(code_of(&followed)),
            }
        }
        let codes = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), codes, "each code is another one");
        assert_eq!(text.contains("data:image/png;base64,"), path.contains("qrconnect"));
    }
}

#[tokio::test]
async fn a_user_in_the_url_is_redirected_at_once_and_one_in_the_cookie_for_snsapi_base_only() {
    let wechat = WeChat::start().await;
    for path in [
        authorize("snsapi_base", "&user=bob"),
        authorize("snsapi_userinfo", "&user=bob"),
        qr_connect("&user=bob"),
    ] {
        let code = code_of(&wechat.page(&path).await);
        let tokens = wechat.exchange(APP, &code).await;
        assert_eq!(tokens["openid"], crate::harness::openid("bob"), "{tokens}");
    }
    let set = wechat.page("/sandbox/user?name=carol").await;
    let cookie = set.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let with_cookie = async |path: &str| {
        wechat.send("GET", path, &format!("Cookie: a=b; {cookie}\r\n"), b"").await
    };
    let code = code_of(&with_cookie(&authorize("snsapi_base", "")).await);
    let tokens = wechat.exchange(APP, &code).await;
    assert_eq!(tokens["openid"], crate::harness::openid("carol"));
    for asks in [authorize("snsapi_userinfo", ""), qr_connect("")] {
        assert_eq!(with_cookie(&asks).await.status, 200);
    }
    assert_eq!(wechat.page(&authorize("snsapi_base", "")).await.status, 200);
    let removed = wechat.page("/sandbox/user?name=").await;
    assert!(removed.header("set-cookie").unwrap().contains("Max-Age=0"));
}

#[tokio::test]
async fn a_wrong_link_is_an_error_with_wechats_number() {
    let wechat = WeChat::start().await;
    let official = |from: &str, to: &str| authorize("snsapi_base", "&user=bob").replace(from, to);
    let website = |from: &str, to: &str| qr_connect("&user=bob").replace(from, to);
    let long = format!("state={}", "a".repeat(129));
    for (path, number) in [
        (official(APP, ""), 10012),
        (official(APP, "wx1111111111111111"), 40013),
        (official(CALLBACK, ""), 10011),
        (official(CALLBACK, "%2Flogin"), 10003),
        (official("https%3A%2F%2F", "javascript%3A%2F%2F"), 10003),
        (official("https%3A%2F%2F", "weixin%3A%2F%2F"), 10003),
        (official("response_type=code", "response_type=token"), 40097),
        (official("snsapi_base", ""), 10010),
        (official("snsapi_base", "snsapi_login"), 10005),
        (official("snsapi_base", "SNSAPI_BASE"), 10005),
        (official("state=Abc0", "state="), 10013),
        (official("state=Abc0", "state=a-b"), 10013),
        (official("state=Abc0", &long), 10013),
        (
            official(
                "response_type=code&scope=snsapi_base",
                "scope=snsapi_base&response_type=code",
            ),
            40097,
        ),
        (official("&user=", "&state=b&user="), 40097),
        (official("user=bob", "user=b%20b"), 40097),
        (official("user=bob", "answer=perhaps"), 40097),
        (website("snsapi_login", "snsapi_userinfo"), 10005),
        (website("state=Abc0", "state=%3Cb%3E"), 10013),
    ] {
        let page = wechat.page(&path).await;
        assert_eq!((page.status, page.header("location")), (200, None), "{path}");
        assert!(page.text().contains(&format!("错误码:{number}<")), "{path}: {}", page.text());
    }
    let most = format!("state={}", "a".repeat(128));
    assert_eq!(wechat.page(&official("state=Abc0", &most)).await.status, 302);
    let post = wechat.send("POST", &authorize("snsapi_base", "&user=bob"), "", b"").await;
    assert_eq!(post.status, 404);
}

#[tokio::test]
async fn a_code_is_of_its_app_and_works_once() {
    let wechat = WeChat::start().await;
    let code = code_of(&wechat.page(&authorize("snsapi_userinfo", "&user=unionbob")).await);
    assert_errcode(&wechat.exchange(OTHER_APP, &code).await, 40029);
    // Nor is it a code of wx.login.
    let path = format!(
        "/sns/jscode2session?appid={APP}&secret={SECRET}&js_code={code}&grant_type=authorization_code"
    );
    assert_errcode(&wechat.get(&path).await, 40029);
    let tokens = wechat.exchange(APP, &code).await;
    assert_eq!(tokens["scope"], "snsapi_userinfo", "{tokens}");
    assert_eq!(tokens["expires_in"], 7200);
    for token in ["access_token", "refresh_token"] {
        assert!(text(&tokens[token]).starts_with(wxgate::wechat::sandbox::ACCESS_TOKEN));
    }
    assert!(tokens["unionid"].is_string() && tokens.get("is_snapshotuser").is_none(), "{tokens}");
    assert_errcode(&wechat.exchange(APP, &code).await, 40163);
    let stats = wechat.get("/sandbox/stats").await;
    assert_eq!(
        (&stats["exchanges"], &stats["calls"]["/sns/oauth2/access_token"]),
        (&4.into(), &3.into())
    );
}

#[tokio::test]
async fn only_the_scope_that_asks_for_it_has_the_unionid() {
    let wechat = WeChat::start().await;
    for (path, scope, has_unionid) in [
        (authorize("snsapi_base", "&user=unionbob"), "snsapi_base", false),
        (authorize("snsapi_userinfo", "&user=unionbob"), "snsapi_userinfo", true),
        (authorize("snsapi_userinfo", "&user=bob"), "snsapi_userinfo", false),
        (qr_connect("&user=unionbob"), "snsapi_login", true),
    ] {
        let code = code_of(&wechat.page(&path).await);
        let tokens = wechat.exchange(APP, &code).await;
        assert_eq!((&tokens["scope"], tokens["unionid"].is_string()), (&scope.into(), has_unionid));
    }
}

#[tokio::test]
async fn a_code_works_for_five_minutes_and_that_of_a_website_for_ten() {
    let wechat = WeChat::start().await;
    for (path, seconds) in
        [(authorize("snsapi_base", "&user=bob"), 300), (qr_connect("&user=bob"), 600)]
    {
        let used = code_of(&wechat.page(&path).await);
        let old = code_of(&wechat.page(&path).await);
        wechat.clock.advance(Duration::from_secs(seconds - 1));
        assert!(wechat.exchange(APP, &used).await["openid"].is_string());
        wechat.clock.advance(Duration::from_secs(1));
        assert_errcode(&wechat.exchange(APP, &old).await, 40029);
    }
}

#[tokio::test]
async fn codes_that_say_what_they_do_work_here_too() {
    let wechat = WeChat::start().await;
    assert_eq!(wechat.exchange(APP, "user-bob-1").await["openid"], crate::harness::openid("bob"));
    assert_errcode(&wechat.exchange(APP, "user-bob-1").await, 40163);
    assert_errcode(&wechat.exchange(APP, "err-40029-x").await, 40029);
    assert_errcode(&wechat.exchange(APP, "nonsense").await, 40029);
    assert_errcode(&wechat.exchange("wx1111111111111111", "user-bob-2").await, 40013);
    assert_errcode(&wechat.exchange(APP, "").await, 41008);
    let slow = wechat.exchange(APP, "slow-1ms-bob").await;
    assert_eq!(slow["openid"], crate::harness::openid("bob"));
    let query = format!("appid={APP}&secret={SECRET}&grant_type=authorization_code&code=");
    let garbage = wechat.page(&format!("/sns/oauth2/access_token?{query}garbage-1")).await;
    assert!(garbage.text().starts_with("<html>"), "{}", garbage.text());
    let issued = wechat.post("/sandbox/codes", &json!({ "user": "bob" })).await;
    let code = text(&issued["code"]);
    assert_eq!(wechat.exchange(APP, &code).await["openid"], crate::harness::openid("bob"));
}

#[tokio::test]
async fn the_user_of_a_snapshot_is_marked_and_unknown_to_mini_programs() {
    let wechat = WeChat::start().await;
    let page = authorize("snsapi_base", "&user=alice&answer=snapshot");
    let code = code_of(&wechat.page(&page).await);
    for code in [code.as_str(), "snapshot-alice-1"] {
        assert_eq!(wechat.exchange(APP, code).await["is_snapshotuser"], 1, "{code}");
    }
    let path = format!(
        "/sns/jscode2session?appid={APP}&secret={SECRET}&js_code=snapshot-alice-2&grant_type=authorization_code"
    );
    assert_errcode(&wechat.get(&path).await, 40029);
}

#[tokio::test]
async fn what_a_page_shows_of_its_link_is_text() {
    let wechat = WeChat::start().await;
    let path = authorize("snsapi_userinfo", "").replace("x%3D1", "x%3D%22%3E%3Cscript%3E");
    let page = wechat.page(&path).await.text();
    assert!(!page.contains("<script"), "{page}");
    assert!(page.contains("id=\"alice\""), "{page}");
}
