//! What it costs to be strict: each judgement of a request beside the same work done as a
//! lenient proxy does it. `cargo bench --bench strictness`

#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to say")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use wxgate::access::identity_headers::{Forwarding, IdentityHeaders};
use wxgate::config::{Config, Secrets};
use wxgate::message::request_header::{self, HeaderLimits};
use wxgate::route::{RouteLookup, Routes};

/// A request as a Mini Program sends it.
const HEADER: &str = "GET /api/orders/1234?page=2 HTTP/1.1\r\n\
    Host: api.shop.example\r\n\
    Connection: keep-alive\r\n\
    charset: utf-8\r\n\
    X-3rd-Session: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\r\n\
    User-Agent: Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) MicroMessenger/8.0.66\r\n\
    content-type: application/json\r\n\
    Accept-Encoding: gzip,compress,br,deflate\r\n\
    Referer: https://servicewechat.com/wx0123456789abcdef/42/page-frame.html\r\n\r\n";

const LIMITS: HeaderLimits = HeaderLimits { bytes: 16 << 10, lines: 100, target: 8 << 10 };

fn request() -> HeaderMap {
    let mut request = HeaderMap::new();
    for line in HEADER.lines().skip(1).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.append(name, HeaderValue::from_str(value).unwrap());
    }
    request
}

fn forwarding() -> Forwarding {
    let value = HeaderValue::from_static("value");
    Forwarding {
        request_id: value.clone(),
        forwarded_for: value.clone(),
        proto: value.clone(),
        host: Some(value.clone()),
        client: value,
        is_trusted: false,
    }
}

/// Removes and writes by exact names, as a proxy without folding does.
fn apply_leniently(request: &mut HeaderMap, forwarding: Forwarding) {
    for name in ["x-openid", "x-appid", "x-unionid", "x-3rd-session"] {
        request.remove(name);
    }
    request.insert("x-request-id", forwarding.request_id);
    request.insert("x-forwarded-for", forwarding.forwarded_for);
    request.insert("x-forwarded-proto", forwarding.proto);
    request.insert("x-real-ip", forwarding.client);
    request.insert("x-forwarded-host", forwarding.host.unwrap());
}

fn strictness(criterion: &mut Criterion) {
    let text = include_str!("../config/gateway.toml");
    let config = Config::parse("gateway.toml", text, Secrets::Ignore).unwrap();
    let routes = Routes::new(&config.endpoints, &config.routes);
    let injector = IdentityHeaders::new(&config);
    let no_headers = HeaderMap::new();

    // A lenient proxy validates no request header: this is the whole cost.
    criterion.bench_function("read a request header", |bencher| {
        bencher.iter(|| {
            let text = black_box(HEADER.as_bytes());
            request_header::read(text, LIMITS, |_| false, |_| {}).unwrap()
        });
    });

    let mut group = criterion.benchmark_group("route a path");
    for (name, path) in [
        ("plain", "/api/orders/1234"),
        ("with an escape", "/api/orders/%E5%BC%A0"),
        ("with an escaped slash", "/api/files/a%2Fb"),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let (method, headers) = (&Method::GET, &no_headers);
                let path = black_box(path);
                routes.resolve(&RouteLookup { path, host: None, method, headers }).unwrap()
            });
        });
    }
    let prefixes = ["/api/orders", "/api", ""];
    group.bench_function("plain, leniently", |bencher| {
        bencher.iter(|| {
            let path = black_box("/api/orders/1234");
            prefixes.iter().position(|prefix| path.starts_with(prefix))
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("strip and write");
    let original = request();
    group.bench_function("folded", |bencher| {
        bencher.iter_batched(
            || (original.clone(), forwarding()),
            |(mut request, forwarding)| {
                injector.apply(&mut request, &forwarding, None, None).unwrap();
                request
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("leniently", |bencher| {
        bencher.iter_batched(
            || (original.clone(), forwarding()),
            |(mut request, forwarding)| {
                apply_leniently(&mut request, forwarding);
                request
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, strictness);
criterion_main!(benches);
