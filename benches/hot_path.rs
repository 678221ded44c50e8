//! The gateway's own work on an authenticated request, without I/O: judge the path, find
//! the session, strip and write headers. `cargo bench --bench hot_path`

#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to say")]

use std::hint::black_box;
use std::net::IpAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use wxgate::access::authenticator::Authenticator;
use wxgate::access::identity_headers::IdentityHeaders;
use wxgate::access::trusted_proxies::TrustedProxies;
use wxgate::clock::Clock;
use wxgate::config::{Access, Config, Secrets};
use wxgate::handover::peer::Peer;
use wxgate::identity::{AppId, Identity, OpenId};
use wxgate::route::{RouteLookup, Routes};
use wxgate::session::Sessions;
use wxgate::telemetry::metrics::Metrics;

/// Sessions in memory are never waited for.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!(),
    }
}

/// A request as a Mini Program sends it.
fn request(token: &str) -> HeaderMap {
    let mut request = HeaderMap::new();
    for (name, value) in [
        ("Host", "api.shop.example"),
        ("Connection", "keep-alive"),
        ("charset", "utf-8"),
        ("X-3rd-Session", token),
        (
            "User-Agent",
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) MicroMessenger/8.0.66",
        ),
        ("content-type", "application/json"),
        ("Accept-Encoding", "gzip,compress,br,deflate"),
        ("Referer", "https://servicewechat.com/wx0123456789abcdef/42/page-frame.html"),
    ] {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.append(name, HeaderValue::from_str(value).unwrap());
    }
    request
}

fn hot_path(criterion: &mut Criterion) {
    let text = include_str!("../config/gateway.toml");
    let config = Config::parse("gateway.toml", text, Secrets::Ignore).unwrap();
    let sessions = Sessions::new(
        &config.session,
        Clock::system(),
        Metrics::new().unwrap(),
        Peer::default(),
        0,
    );
    let tokens: Vec<String> = (0..10_000)
        .map(|number| {
            let identity = Identity {
                app_id: AppId::parse("wx0123456789abcdef").unwrap(),
                openid: OpenId::parse(&format!("oGZUI0egBJY1zhBYw2Khd{number:07}")).unwrap(),
                unionid: None,
                user_id: None,
            };
            now(sessions.create(identity, IpAddr::from([192, 0, 2, 1]), None))
                .unwrap()
                .0
                .expose()
                .to_owned()
        })
        .collect();
    let routes = Routes::new(&config.endpoints, &config.routes);
    let authenticator = Authenticator::new(sessions, &config.session, &config.apps);
    let injector = IdentityHeaders::new(&config);
    let trusted = TrustedProxies::new(&config.server.trusted_proxies);
    let proto = HeaderValue::from_static("http");
    let peer = IpAddr::from([127, 0, 0, 1]);
    let requests: Vec<_> = tokens.iter().map(|token| request(token)).collect();

    let mut turn = requests.iter().cycle();
    criterion.bench_function("judge, authenticate and inject", |bencher| {
        bencher.iter_batched(
            || turn.next().unwrap().clone(),
            |mut request| {
                let endpoint = routes.resolve(&RouteLookup {
                    path: "/api/orders/1234",
                    host: None,
                    method: &Method::GET,
                    headers: &request,
                });
                let client = trusted.client(peer, &request);
                let id = client.request_id(&request);
                let session =
                    now(authenticator.authenticate(&request, Access::Required, None)).1.unwrap();
                let forwarding = client.forwarding(&request, id, &proto, None);
                let identity = session.as_ref().map(|session| &session.identity);
                injector.apply(&mut request, &forwarding, identity, None).unwrap();
                (black_box(endpoint), request)
            },
            criterion::BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
