//! A browser: it sends the headers of one, and keeps cookies as browsers do.

use std::collections::BTreeMap;

use super::client::{Request, Response};
use super::{Stack, canary};

/// `User-Agent` of WeChat's own browser.
pub const WECHAT: &str = "Mozilla/5.0 (Linux; Android 14; wv) AppleWebKit/537.36 Chrome/126.0 \
                          Mobile Safari/537.36 MicroMessenger/8.0.49.2600(0x28003133) NetType/WIFI";

/// Of a browser on a PC.
pub const DESKTOP: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 \
                           (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36";

/// The apps of [`config`].
pub const ACCOUNT: &str = "wx1111111111111111";
pub const WEBSITE: &str = "wx2222222222222222";

/// The name of the session cookie.
pub const COOKIE: &str = "__Host-wxgate";

/// Changes with a `[[browser]]` for the host of the tests' requests, with an official account and
/// a website, and the routes `/h5` (redirect), `/api` (JSON), `/optional` and `/none`. `keys` come
/// first, `tables` last.
pub fn config(keys: &str, tables: &str) -> String {
    let app = |app_id: &str, more: &str| {
        format!(
            "[[app]]\napp_id = \"{app_id}\"\napp_secret = {{ file = \"{{dir}}/wechat-secret\" }}\n{more}"
        )
    };
    let route = |path: &str, more: &str| {
        format!("[[route]]\npath = \"{path}\"\nupstream = \"recorder\"\nwebsocket = true\n{more}\n")
    };
    [
        keys,
        "\n[[browser]]\nbase_url = \"https://gateway.test\"\n",
        &format!("official_account = \"{ACCOUNT}\"\nwebsite = \"{WEBSITE}\"\n"),
        &app(super::APP, ""),
        &app(ACCOUNT, "kind = \"official_account\"\n"),
        &app(WEBSITE, "kind = \"website\"\n"),
        &route("/h5", "auth = \"required\"\nlogin = \"redirect\""),
        &route("/api", "auth = \"required\""),
        &route("/optional", "auth = \"optional\""),
        &route("/none", "auth = \"none\""),
        tables,
    ]
    .concat()
}

/// A browser with its cookies, all of one host.
pub struct Browser {
    pub cookies: BTreeMap<String, String>,
    pub agent: &'static str,
    pub host: &'static str,
}

impl Browser {
    pub fn new(agent: &'static str) -> Self {
        Self { cookies: BTreeMap::new(), agent, host: "gateway.test" }
    }

    /// A request with the browser's cookies.
    pub fn request<'a>(&self, stack: &'a Stack, method: &str, path: &str) -> Request<'a> {
        let request = Request::to_host(stack, self.host, method, path);
        let request = request.header("User-Agent", self.agent);
        if self.cookies.is_empty() {
            return request;
        }
        let cookies = self.cookies.iter().map(|(name, value)| format!("{name}={value}"));
        request.header("Cookie", &cookies.collect::<Vec<_>>().join("; "))
    }

    /// A request of a script of the same origin.
    pub fn fetch<'a>(&self, stack: &'a Stack, method: &str, path: &str) -> Request<'a> {
        let request = self.request(stack, method, path).header("Sec-Fetch-Mode", "cors");
        request.header("Sec-Fetch-Dest", "empty").header("Sec-Fetch-Site", "same-origin")
    }

    /// Opens a page.
    pub async fn open(&mut self, stack: &Stack, path: &str) -> Response {
        let request = self.request(stack, "GET", path).header("Sec-Fetch-Mode", "navigate");
        let request = request.header("Sec-Fetch-Dest", "document");
        let response = request.header("Sec-Fetch-Site", "none").send().await;
        self.keep(&response);
        response
    }

    /// Keeps the cookies of a response.
    pub fn keep(&mut self, response: &Response) {
        for line in response.all("set-cookie") {
            let (pair, attributes) = line.split_once(';').unwrap_or((line, ""));
            let (name, value) = pair.split_once('=').unwrap();
            canary::plant(value);
            if attributes.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    /// Opens a page, which must redirect to WeChat, and returns the state.
    pub async fn begin(&mut self, stack: &Stack, path: &str) -> String {
        let response = self.open(stack, path).await;
        assert_eq!(response.status, 302, "{}", response.text());
        state_in(&response)
    }

    /// Returns from WeChat with a code.
    pub async fn come_back(&mut self, stack: &Stack, state: &str, code: &str) -> Response {
        canary::plant(code);
        self.open(stack, &format!("/login/callback?code={code}&state={state}")).await
    }

    /// Logs a user in, and returns the session cookie.
    pub async fn log_in(&mut self, stack: &Stack, user: &str) -> String {
        let state = self.begin(stack, "/h5").await;
        let response = self.come_back(stack, &state, &code(user)).await;
        assert_eq!(response.status, 302, "{}", response.text());
        self.cookies[COOKIE].clone()
    }
}

/// The state in the URL of WeChat's page.
pub fn state_in(response: &Response) -> String {
    let location = response.header("location").unwrap();
    let (_, rest) = location.split_once("&state=").unwrap_or_else(|| panic!("{location}"));
    rest.strip_suffix("#wechat_redirect").unwrap().to_owned()
}

/// A new code of a user.
pub fn code(user: &str) -> String {
    format!("user-{user}-{}", rand::random::<u64>())
}
