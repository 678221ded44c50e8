use std::net::Ipv4Addr;

use tokio::net::TcpListener;

use super::*;
use crate::config::Secrets;
use crate::handover::peer::Peer;
use crate::wechat::sandbox::{Sandbox, openid};

const OFFICIAL: &str = "wx0123456789abcdef";
const MINI: &str = "wxfedcba9876543210";
const SECRET: &str = "sandbox-secret";

struct Stack {
    login: Login,
    sandbox: Arc<Sandbox>,
    sessions: Sessions,
    metrics: Arc<Metrics>,
}

/// Logins for an official account and a Mini Program.
async fn stack(rest: &str) -> Stack {
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let text = format!(
        r#"
        {rest}
        [server]
        listen = "127.0.0.1:0"
        [wechat]
        base_url = "http://{address}"
        [[app]]
        app_id = "{OFFICIAL}"
        kind = "official_account"
        app_secret = {{ env = "UNUSED" }}
        [[app]]
        app_id = "{MINI}"
        app_secret = {{ env = "UNUSED" }}
        [[upstream]]
        name = "shop"
        servers = ["127.0.0.1:1"]
        [[route]]
        path = "/"
        upstream = "shop"
        auth = "required"
        "#
    );
    let mut config = Config::parse("test", &text, Secrets::Ignore).unwrap();
    for app in &mut config.apps {
        app.secret = Secret::new(SECRET.to_owned());
    }
    let clock = Clock::manual();
    let apps = [OFFICIAL, MINI].map(|app_id| (app_id.to_owned(), SECRET.to_owned()));
    let sandbox = Sandbox::new(apps.to_vec(), clock.clone());
    tokio::spawn(sandbox.clone().serve(listener));
    let metrics = Metrics::new().unwrap();
    let wechat = WeChat::new(&config.wechat, clock.clone(), metrics.clone()).unwrap();
    let sessions =
        Sessions::new(&config.session, clock.clone(), metrics.clone(), Peer::default(), 0);
    let wechat = Arc::new(wechat);
    let login = Login::new(&config, None, wechat, None, sessions.clone(), &clock, metrics.clone());
    Stack { login, sandbox, sessions, metrics }
}

impl Stack {
    async fn by_redirect(
        &self,
        app_id: &str,
        code: &str,
    ) -> (LoginFacts, Result<Arc<Grant>, Rejection>) {
        let sender = Sender {
            client: Ipv4Addr::LOCALHOST.into(),
            request_id: "r",
            referer: None,
            received_at_millis: 0,
        };
        self.login.by_redirect(&AppId::parse(app_id).unwrap(), "state", code, sender).await
    }

    fn counted(&self, app_id: &str, outcome: &str) -> bool {
        let wanted = format!("wxgate_logins_total{{app_id=\"{app_id}\",outcome=\"{outcome}\"}} ");
        let metrics = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let value = metrics.lines().find_map(|line| line.strip_prefix(&wanted));
        value.is_some_and(|value| value != "0")
    }
}

#[tokio::test]
async fn a_code_from_a_redirect_becomes_a_session_of_its_app() {
    let stack = stack("").await;
    let (facts, granted) = stack.by_redirect(OFFICIAL, "user-alice-1").await;
    let granted = granted.unwrap();
    assert_eq!(granted.openid.as_str(), openid(OFFICIAL, "alice"));
    assert_eq!(facts.openid.unwrap(), granted.openid);
    assert_eq!(facts.app_id.unwrap().as_str(), OFFICIAL);
    assert_eq!(granted.expires_in, std::time::Duration::from_secs(7200));
    assert!(stack.sessions.contains(&granted.token.digest()).await.unwrap());
    assert_eq!(stack.sandbox.calls()["/sns/oauth2/access_token"], 1);
    assert!(stack.counted(OFFICIAL, "ok"));
    // WeChat may call the callback twice.
    let (_, again) = stack.by_redirect(OFFICIAL, "user-alice-1").await;
    assert_eq!(again.unwrap().token.expose(), granted.token.expose());
    assert_eq!(stack.sandbox.exchanges(), 1);
}

#[tokio::test]
async fn two_redirects_with_one_code_at_once_share_one_exchange() {
    let stack = stack("").await;
    let ((_, one), (_, two)) = tokio::join!(
        stack.by_redirect(OFFICIAL, "slow-50ms-alice"),
        stack.by_redirect(OFFICIAL, "slow-50ms-alice"),
    );
    assert_eq!(one.unwrap().token.expose(), two.unwrap().token.expose());
    assert_eq!(stack.sandbox.exchanges(), 1);
}

#[tokio::test]
async fn a_redirect_has_the_limits_and_errors_of_a_login() {
    let stack = stack("[login]\nrate_per_app = \"3/1m\"").await;
    for (code, rejection) in [
        ("err-40029-x", Rejection::InvalidCode),
        ("snapshot-alice", Rejection::SnapshotUser),
        ("the code is a mock one", Rejection::BadRequest("\"code\" is not a code of WeChat")),
        ("garbage-x", Rejection::WeChatRejected),
    ] {
        let (_, outcome) = stack.by_redirect(OFFICIAL, code).await;
        assert_eq!(outcome.err(), Some(rejection), "{code}");
    }
    let (_, outcome) = stack.by_redirect(OFFICIAL, "user-alice-1").await;
    assert!(matches!(outcome.err(), Some(Rejection::RateLimited { .. })));
    assert!(stack.counted(OFFICIAL, "snapshot_user") && stack.counted(OFFICIAL, "rate_limited"));
}

#[tokio::test]
async fn only_an_app_with_redirects_takes_a_code_from_one() {
    let stack = stack("").await;
    for app_id in [MINI, "wx1111111111111111"] {
        let (_, outcome) = stack.by_redirect(app_id, "user-alice-1").await;
        assert_eq!(outcome.err(), Some(Rejection::InternalError), "{app_id}");
    }
    assert_eq!(stack.sandbox.exchanges(), 0);
}
