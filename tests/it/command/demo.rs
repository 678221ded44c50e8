//! The page of the demo: every flow that it shows works.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::json;
use wxgate::wechat::sandbox::openid;

use crate::harness::browser::{DESKTOP, WECHAT};
use crate::harness::client::{Connection, Response};
use crate::harness::command::{Running, wxgate};
use crate::harness::upstream::Upstream;
use crate::harness::{APP, canary};

const OFFICIAL_ACCOUNT: &str = "wx00000000000000a1";
const WEBSITE: &str = "wx00000000000000b2";

/// A demo, and the host of its page.
fn start(more: &[&str]) -> (Running, String) {
    let mut arguments = vec!["demo"];
    for option in ["--listen", "--admin", "--internal"] {
        arguments.extend([option, "127.0.0.1:0"]);
    }
    arguments.extend(more);
    let mut demo = Running::start(wxgate().args(arguments), false);
    let line = demo.line_with("in a browser");
    assert!(line.starts_with("# 1. "), "it is first in the tour: {line}");
    let (_, rest) = line.split_once("http://").unwrap();
    let (host, _) = rest.split_once("/demo/ ").unwrap();
    (demo, host.to_owned())
}

/// A browser with its cookies, which it sends to every port of this machine.
struct Browser {
    agent: &'static str,
    language: &'static str,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    fn new(agent: &'static str) -> Self {
        Self { agent, language: "en", cookies: BTreeMap::new() }
    }

    async fn send(
        &mut self,
        host: &str,
        method: &str,
        path: &str,
        more: &str,
        body: &str,
    ) -> Response {
        let address: SocketAddr = host.replace("localhost", "127.0.0.1").parse().unwrap();
        let cookies = self.cookies.iter().map(|(name, value)| format!("{name}={value}"));
        let cookies = cookies.collect::<Vec<_>>().join("; ");
        let (agent, language, length) = (self.agent, self.language, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nCookie: {cookies}\r\n\
             Accept-Language: {language}\r\n{more}Content-Length: {length}\r\n\r\n{body}"
        );
        let mut connection = Connection::open(address).await;
        connection.send(request.as_bytes()).await;
        let response = connection.response(false).await;
        for line in response.all("set-cookie") {
            let (name, rest) = line.split_once('=').unwrap();
            let (value, attributes) = rest.split_once(';').unwrap();
            canary::plant(value);
            if attributes.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        response
    }

    /// Opens a page.
    async fn open(&mut self, host: &str, path: &str) -> Response {
        let lines = "Accept: text/html\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
        self.send(host, "GET", path, lines, "").await
    }

    /// What a script of the page sends.
    async fn script(&mut self, host: &str, path: &str, body: &str) -> Response {
        let lines = "Sec-Fetch-Site: same-origin\r\nContent-Type: application/json\r\n";
        self.send(host, "POST", path, lines, body).await
    }

    /// Follows the redirects of a login up to a page, and chooses this user at WeChat's page.
    async fn log_in(&mut self, host: &str, path: &str, user: &str) -> Response {
        let mut response = self.open(host, path).await;
        let mut at = host.to_owned();
        for _ in 0..5 {
            let Some(location) = response.header("location").map(str::to_owned) else {
                return response;
            };
            // A fragment is not sent.
            let location = location.split('#').next().unwrap().to_owned();
            let target = match location.strip_prefix("http://") {
                Some(rest) => {
                    let (host, path) = rest.split_once('/').unwrap();
                    at = host.to_owned();
                    format!("/{path}")
                }
                None => location,
            };
            response = self.open(&at, &target).await;
            if response.status == 200 && at != host {
                let page = response.text();
                let (_, rest) = page.split_once(&format!("id=\"{user}\" href=\"")).expect(&page);
                let link = rest.split('"').next().unwrap().replace("&amp;", "&");
                response = self.open(&at, &link).await;
            }
        }
        panic!("too many redirects");
    }
}

#[track_caller]
fn assert_shows(page: &Response, texts: &[&str]) {
    assert_eq!(page.status, 200, "{}", page.text());
    for text in texts {
        assert!(page.text().contains(text), "{text}: {}", page.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_logs_in_and_out_on_the_page_of_the_demo() {
    let (_demo, host) = start(&[]);
    let localhost = format!("localhost:{}", host.rsplit(':').next().unwrap());
    for (agent, app_id, host, user) in
        [(DESKTOP, WEBSITE, &host, "alice"), (WECHAT, OFFICIAL_ACCOUNT, &localhost, "bob")]
    {
        let mut browser = Browser::new(agent);
        let nobody = browser.open(host, "/demo/").await;
        assert_shows(
            &nobody,
            &["You are not logged in", "name=\"viewport\"", "href=\"/login/start"],
        );
        assert!(!nobody.text().contains("x-openid"), "{}", nobody.text());
        let page = browser.log_in(host, "/login/start?return=/demo/", user).await;
        let id = openid(app_id, user);
        assert_shows(&page, &[&format!("<b>{id}</b>"), &format!("<td>{id}</td>"), app_id]);
        let cookie = browser.cookies["wxgate"].clone();
        assert!(!page.text().contains(&cookie), "no service sees the session cookie");
        let out = browser.script(host, "/logout", "").await;
        assert_eq!(out.status, 204, "{}", out.text());
        assert_shows(&browser.open(host, "/demo/").await, &["You are not logged in"]);
        // A page for members asks for the login by itself, and comes back.
        let members = browser.log_in(host, "/demo/private/", user).await;
        assert_shows(&members, &["A page for members", &id]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_the_demo_is_in_the_language_of_the_browser_and_has_its_scripts() {
    let (_demo, host) = start(&[]);
    let mut browser = Browser::new(DESKTOP);
    browser.language = "zh-CN,zh;q=0.9";
    let page = browser.open(&host, "/demo/").await;
    assert_shows(&page, &["<html lang=\"zh\">", "微信登录", "此浏览器尚未登录"]);
    assert!(page.header("content-security-policy").unwrap().contains("script-src 'self'"));
    let text = page.text();
    assert!(!text.contains("src=\"http") && !text.contains("href=\"http"), "{text}");
    for script in text.split("src=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        let response = browser.send(&host, "GET", script, "", "").await;
        assert_eq!(
            (response.status, response.header("content-type")),
            (200, Some("text/javascript; charset=utf-8"))
        );
        assert!(!response.text().is_empty());
    }
    assert_eq!(browser.send(&host, "GET", "/demo/nothing", "", "").await.status, 404);
    // What a client sends is shown as text.
    let forged =
        browser.send(&host, "GET", "/demo/", "X-Odd: <script>\r\nX-OpenId: mallory\r\n", "").await;
    assert_shows(&forged, &["&lt;script&gt;"]);
    assert!(!forged.text().contains("mallory"), "{}", forged.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_of_the_demo_is_loaded_with_a_ticket() {
    let (_demo, host) = start(&[]);
    let mut browser = Browser::new(DESKTOP);
    let page = browser.log_in(&host, "/login/start?return=/demo/", "carol").await;
    let text = page.text();
    let (_, rest) = text.split_once("data-path=\"").unwrap();
    let path = rest.split('"').next().unwrap();
    let made = browser.script(&host, "/ticket", &json!({ "path": path }).to_string()).await;
    assert_eq!(made.status, 200, "{}", made.text());
    let body = made.json();
    let url = format!("{path}?wxgate_ticket={}", body["ticket"].as_str().unwrap());
    // The ticket is enough: another client has no cookie.
    let picture = Browser::new("curl").send(&host, "GET", &url, "", "").await;
    assert_shows(&picture, &["<svg", &openid(WEBSITE, "carol")]);
    assert_eq!(picture.header("content-type"), Some("image/svg+xml"));
    // The browser has both.
    let made = browser.script(&host, "/ticket", &json!({ "path": path }).to_string()).await;
    let url = format!("{path}?wxgate_ticket={}", made.json()["ticket"].as_str().unwrap());
    let picture = browser.send(&host, "GET", &url, "", "").await;
    assert_shows(&picture, &[&openid(WEBSITE, "carol")]);
    assert_eq!(Browser::new("curl").send(&host, "GET", path, "", "").await.status, 401);
}

/// What the page's scripts do.
#[tokio::test(flavor = "multi_thread")]
async fn a_phone_of_the_demo_logs_a_browser_in_by_a_scan() {
    let (_demo, host) = start(&[]);
    let mut browser = Browser::new(DESKTOP);
    let begun = browser.script(&host, "/scan", "").await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    let id = begun.json()["scan_id"].as_str().unwrap().to_owned();
    // The script finds the id in the image.
    let code = browser.send(&host, "GET", &format!("/scan/{id}.png"), "", "").await;
    assert_eq!((code.status, code.header("content-type")), (200, Some("image/png")));
    let mut phone = Browser::new(WECHAT);
    let login = json!({ "code": "user-alice-1", "app_id": APP }).to_string();
    let token =
        phone.script(&host, "/login", &login).await.json()["token"].as_str().unwrap().to_owned();
    let mut step = async |action: &str| {
        let body = json!({ "action": action }).to_string();
        let lines = format!("Content-Type: application/json\r\nX-3rd-Session: {token}\r\n");
        phone.send(&host, "POST", &format!("/scan/{id}"), &lines, &body).await
    };
    let shown = step("scan").await;
    assert_eq!(shown.json()["address"], "127.0.0.1", "{}", shown.text());
    assert_eq!(step("confirm").await.status, 204);
    let poll = format!("/scan/{id}?state=scanned");
    let confirmed = browser.send(&host, "GET", &poll, "Sec-Fetch-Site: same-origin\r\n", "").await;
    assert_eq!(confirmed.json()["state"], "confirmed", "{}", confirmed.text());
    let page = browser.open(&host, "/demo/").await;
    assert_shows(&page, &[&openid(APP, "alice")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_exists_in_front_of_another_service_too() {
    let upstream = Upstream::start().await;
    let (_demo, host) = start(&["--upstream", &format!("http://{}", upstream.address)]);
    let mut browser = Browser::new(DESKTOP);
    let page = browser.log_in(&host, "/login/start?return=/demo/", "alice").await;
    assert_shows(&page, &[&openid(WEBSITE, "alice")]);
    assert!(upstream.requests().is_empty());
    // The session is that of the service, too.
    let own = browser.open(&host, "/own").await;
    assert_shows(&own, &["hello"]);
    let requests = upstream.requests();
    assert_eq!(requests[0].all("x-openid"), [openid(WEBSITE, "alice")]);
    assert_eq!(requests[0].target(), "/own");
}
