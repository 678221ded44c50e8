use futures_util::future::join_all;

use super::*;
use crate::config::Secrets;
use crate::handover::peer::Peer;
use crate::identity::OpenId;
use crate::telemetry::metrics::Metrics;
use crate::wechat::WeChat;

const CONFIG: &str = r#"
    server = { listen = "127.0.0.1:0" }
    wechat = { base_url = "http://127.0.0.1:1" }
    app = [{ app_id = "wx1", app_secret = { env = "X" } }]
    upstream = [{ name = "u", servers = ["127.0.0.1:1"] }]
    route = [{ path = "/", upstream = "u" }]
    browser = [{ base_url = "https://h5.test" }]
    scan = { enabled = true, lifetime = "1m" }
"#;

struct World {
    scans: Scans,
    logins: login::Login,
    sessions: Sessions,
    clock: Clock,
}

impl World {
    fn new() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let config = Config::parse("test", CONFIG, Secrets::Ignore).unwrap();
        let clock = Clock::manual();
        let metrics = Metrics::new().unwrap();
        let sessions =
            Sessions::new(&config.session, clock.clone(), metrics.clone(), Peer::default(), 0);
        let wechat = WeChat::new(&config.wechat, clock.clone(), metrics.clone()).unwrap();
        let (wechat, sessions_of) = (Arc::new(wechat), sessions.clone());
        let logins = login::Login::new(&config, None, wechat, None, sessions_of, &clock, metrics);
        let section = config.scan.as_ref().unwrap();
        let scans = Scans::new(&config, section, None, &sessions, &clock);
        Self { scans, logins, sessions, clock }
    }

    async fn start(&self) -> Started {
        let owner = Owner { origin: "https://h5.test", cookie: None };
        self.scans.start(owner, None, IpAddr::from([192, 0, 2, 1])).await.unwrap()
    }

    async fn phone(&self) -> TokenDigest {
        let identity = Identity {
            app_id: AppId::parse("wx1").unwrap(),
            openid: OpenId::parse("o1").unwrap(),
            unionid: None,
            user_id: None,
        };
        let client = IpAddr::from([192, 0, 2, 2]);
        self.sessions.create(identity, client, None).await.unwrap().0.digest()
    }

    async fn poll(&self, started: &Started) -> Result<Polled, Rejection> {
        let cookie = Some(started.cookie.expose().as_bytes());
        let owner = Owner { origin: "https://h5.test", cookie };
        self.scans.poll(&started.id, owner, Stage::Waiting, || true).await
    }

    async fn log_in(&self, confirmed: Confirmed) -> Login {
        self.scans.log_in(confirmed, IpAddr::from([192, 0, 2, 1]), &self.logins, "id").await
    }

    async fn stage(&self, started: &Started) -> Stage {
        match self.poll(started).await.unwrap() {
            Polled::Stage(stage) => stage,
            Polled::Confirmed(_) => Stage::Confirmed,
        }
    }
}

#[tokio::test]
async fn the_oldest_scan_that_waits_ends_when_there_are_too_many() {
    let world = World::new();
    let phone = world.phone().await;
    let scanned = world.start().await;
    world.scans.scan(&scanned.id, &phone).await.unwrap();
    let (oldest, second) = (world.start().await, world.start().await);
    for _ in 2..MOST_WAITING {
        world.start().await;
    }
    assert_eq!(world.stage(&oldest).await, Stage::Waiting);
    world.start().await;
    assert_eq!(world.stage(&oldest).await, Stage::Expired);
    assert_eq!(world.stage(&second).await, Stage::Waiting);
    assert_eq!(world.stage(&scanned).await, Stage::Scanned);
    assert_eq!(world.scans.state.waiting.lock().len(), MOST_WAITING);
    // Those that ended by time are not counted.
    world.clock.advance(Duration::from_secs(60));
    world.start().await;
    assert_eq!(world.scans.state.waiting.lock().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_phones_one_gets_the_scan() {
    let world = World::new();
    let started = world.start().await;
    let phones = join_all((0..20).map(|_| world.phone())).await;
    let shown = join_all(phones.iter().map(|phone| world.scans.scan(&started.id, phone))).await;
    assert_eq!(shown.iter().filter(|shown| shown.is_ok()).count(), 1);
    let answers =
        phones.iter().map(|phone| world.scans.answer(&started.id, phone, Answer::Confirm));
    let answers = join_all(answers).await;
    let first = |answers: &[Result<(), Rejection>]| answers.iter().position(Result::is_ok);
    assert_eq!(shown.iter().position(Result::is_ok), first(&answers));
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_confirmed_scan_that_was_read_twice_is_used_once() {
    let world = World::new();
    let (started, phone) = (world.start().await, world.phone().await);
    world.scans.scan(&started.id, &phone).await.unwrap();
    world.scans.answer(&started.id, &phone, Answer::Confirm).await.unwrap();
    let read = join_all([world.poll(&started), world.poll(&started)]).await;
    let mut sessions = 0;
    for polled in read {
        let Polled::Confirmed(confirmed) = polled.unwrap() else { panic!("not confirmed") };
        let login = world.log_in(confirmed).await;
        let token = login.token.unwrap();
        assert_eq!(login.identity.is_some(), token.is_some());
        sessions += usize::from(token.is_some());
    }
    assert_eq!(sessions, 1);
    assert_eq!(world.stage(&started).await, Stage::Expired);
}

#[tokio::test]
async fn a_blocked_user_is_not_logged_in() {
    let world = World::new();
    let (started, phone) = (world.start().await, world.phone().await);
    world.scans.scan(&started.id, &phone).await.unwrap();
    world.scans.answer(&started.id, &phone, Answer::Confirm).await.unwrap();
    let user = world.sessions.get(&phone).await.unwrap().unwrap().identity.user();
    world.sessions.block(&user.into(), Duration::from_secs(60)).await.unwrap();
    let Polled::Confirmed(confirmed) = world.poll(&started).await.unwrap() else {
        panic!("not confirmed")
    };
    let login = world.log_in(confirmed).await;
    assert!(login.identity.is_some());
    assert!(matches!(login.token, Err(Rejection::LoginRefused(None))));
    assert_eq!(world.stage(&started).await, Stage::Expired);
}

#[tokio::test]
async fn a_scan_that_ends_during_the_poll_logs_no_browser_in() {
    let world = World::new();
    let (started, phone) = (world.start().await, world.phone().await);
    world.scans.scan(&started.id, &phone).await.unwrap();
    world.scans.answer(&started.id, &phone, Answer::Confirm).await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(world.stage(&started).await, Stage::Expired);
    world.clock.advance(Duration::from_secs(60));
    assert!(matches!(world.poll(&started).await, Err(Rejection::NotFound)));
}
