//! The simulated WeChat does what WeChat does, so that what works with it works there.

mod access_token;
mod content;
mod messages;
mod mini_program_code;
mod pages;
mod phone_number;
mod session_key;

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use wxgate::clock::Clock;
use wxgate::wechat::sandbox::{Behaviour, Sandbox};

use crate::harness::client::{self, Connection, Response};
use crate::harness::{APP, OTHER_APP, SECRET};

/// A sandbox with two apps, and its clock.
struct WeChat {
    address: SocketAddr,
    sandbox: Arc<Sandbox>,
    clock: Clock,
}

impl WeChat {
    async fn start() -> Self {
        Self::start_with(Behaviour::default()).await
    }

    async fn start_with(behaviour: Behaviour) -> Self {
        let clock = Clock::manual();
        let apps = [APP, OTHER_APP].map(|app_id| (app_id.to_owned(), SECRET.to_owned()));
        let sandbox = Sandbox::with_behaviour(apps.to_vec(), clock.clone(), behaviour);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(sandbox.clone().serve(listener));
        Self { address, sandbox, clock }
    }

    async fn get(&self, path: &str) -> Value {
        client::get(self.address, path).await.json()
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        client::post(self.address, path, body).await.json()
    }

    /// Sends a body of the test's own.
    async fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        let mut connection = Connection::open(self.address).await;
        connection.try_send(&[head.as_bytes(), body].concat()).await;
        connection.response(false).await
    }

    /// The response to a call of getStableAccessToken.
    async fn stable(&self, app_id: &str, force_refresh: bool) -> Value {
        let body = json!({
            "grant_type": "client_credential",
            "appid": app_id,
            "secret": SECRET,
            "force_refresh": force_refresh,
        });
        self.post("/cgi-bin/stable_token", &body).await
    }

    async fn token_of(&self, app_id: &str) -> String {
        text(&self.stable(app_id, false).await["access_token"])
    }

    async fn token(&self) -> String {
        self.token_of(APP).await
    }

    /// Logs a user in, and returns the `session_key`.
    async fn login(&self, user: &str) -> String {
        let code: u64 = rand::random();
        let path = format!(
            "/sns/jscode2session?appid={APP}&secret={SECRET}&js_code=user-{user}-{code}&grant_type=authorization_code"
        );
        text(&self.get(&path).await["session_key"])
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a text: {value}")).to_owned()
}

#[track_caller]
fn assert_errcode(answer: &Value, errcode: i64) {
    assert_eq!(answer["errcode"], errcode, "{answer}");
    assert!(answer["errmsg"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
}

/// Paths of all APIs that need a token, with their methods.
const APIS: [(&str, &str); 11] = [
    ("GET", "/wxa/checksession"),
    ("GET", "/wxa/resetusersessionkey"),
    ("POST", "/wxa/business/getuserphonenumber"),
    ("POST", "/cgi-bin/message/subscribe/send"),
    ("POST", "/wxa/getwxacodeunlimit"),
    ("POST", "/wxa/getwxacode"),
    ("POST", "/cgi-bin/wxaapp/createwxaqrcode"),
    ("POST", "/wxa/msg_sec_check"),
    ("POST", "/wxa/img_sec_check"),
    ("POST", "/cgi-bin/media/upload"),
    ("GET", "/cgi-bin/media/get"),
];

#[tokio::test]
async fn every_api_takes_only_a_valid_token_and_its_own_method() {
    let wechat = WeChat::start().await;
    let expiring = wechat.token().await;
    let call = async |method: &str, path: String| {
        let answer = wechat.send(method, &path, "", b"").await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        answer.json()
    };
    for (method, path) in APIS {
        assert_errcode(&call(method, path.to_owned()).await, 41001);
        assert_errcode(&call(method, format!("{path}?access_token=x")).await, 40014);
        let unknown = format!("{path}?access_token={expiring}x");
        assert_errcode(&call(method, unknown).await, 40001);
        let (other, errcode) = if method == "GET" { ("POST", 43001) } else { ("GET", 43002) };
        assert_errcode(&call(other, format!("{path}?access_token={expiring}")).await, errcode);
        let accepted = call(method, format!("{path}?access_token={expiring}")).await;
        let is_about_the_token = [41001, 40014, 40001, 42001].map(Value::from);
        assert!(!is_about_the_token.contains(&accepted["errcode"]), "{path}: {accepted}");
    }
    wechat.clock.advance(std::time::Duration::from_secs(7200));
    for (method, path) in APIS {
        assert_errcode(&call(method, format!("{path}?access_token={expiring}")).await, 42001);
    }
    let calls = wechat.get("/sandbox/stats").await["calls"].clone();
    assert_eq!(calls["/wxa/checksession"], 6);
    assert_eq!(calls["/cgi-bin/stable_token"], 1);
    assert_eq!(wechat.sandbox.calls()["/cgi-bin/media/get"], 6);
}

#[tokio::test]
async fn an_api_that_is_not_there_is_an_errcode_and_other_paths_are_404() {
    let wechat = WeChat::start().await;
    let token = wechat.token().await;
    for path in ["/wxa/business/getuserencryptkey", "/cgi-bin/nothing", "/sns/userinfo"] {
        assert_errcode(&wechat.get(&format!("{path}?access_token={token}")).await, 40066);
    }
    assert_eq!(client::get(wechat.address, "/elsewhere").await.status, 404);
    assert_eq!(client::get(wechat.address, "/sandbox/codes").await.status, 404);
}

#[tokio::test]
async fn an_address_that_is_not_on_the_list_gets_nothing() {
    let behaviour = Behaviour { rejects_address: true, ..Behaviour::default() };
    let wechat = WeChat::start_with(behaviour).await;
    assert_errcode(&wechat.stable(APP, false).await, 40164);
    let path = format!("/cgi-bin/token?grant_type=client_credential&appid={APP}&secret={SECRET}");
    assert_errcode(&wechat.get(&path).await, 40164);
    assert_errcode(&wechat.get("/wxa/checksession?access_token=x").await, 40164);
}

#[tokio::test]
async fn quotas_hold_for_each_api_and_for_each_user() {
    let behaviour = Behaviour { quota: Some(3), user_quota: 2, ..Behaviour::default() };
    let wechat = WeChat::start_with(behaviour).await;
    let token = wechat.token().await;
    let check = async |user: &str| {
        let openid = crate::harness::openid(user);
        let query = format!("access_token={token}&openid={openid}&signature=x");
        let path = format!("/wxa/checksession?{query}&sig_method=hmac_sha256");
        wechat.get(&path).await["errcode"].as_i64().unwrap()
    };
    assert_eq!(check("alice").await, 87009);
    assert_eq!(check("alice").await, 87009);
    assert_eq!(check("alice").await, 45011);
    assert_eq!(check("bob").await, 45009);
    wechat.token().await;
    wechat.token().await;
    assert_errcode(&wechat.stable(APP, false).await, 45009);
}
