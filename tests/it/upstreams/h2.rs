//! Services that speak HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::Builder;
use http::HeaderMap;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::harness::client::Connection;
use crate::harness::http2_service::{Http2Service, response, section, send_all};
use crate::harness::process_log::logged;
use crate::harness::{Stack, openid, until};

/// Requests that the service gets at the same time.
const MANY: usize = 20;

fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    [(name.parse().unwrap(), value.parse().unwrap())].into_iter().collect()
}

async fn start(service: &Http2Service, keys: &str) -> Stack {
    Stack::start_with(&service.section(keys)).await
}

#[tokio::test]
async fn a_request_and_a_response_keep_what_http_2_can_carry() {
    let mut service = Http2Service::start().await;
    let stack = start(&service, "").await;
    let token = stack.login("alice").await;
    let request = stack
        .post("/orders?id=1")
        .token(&token)
        .header("X-OpenId", "evil")
        .header("Connection", "X-Nominated, TE")
        .header("X-Nominated", "1")
        .header("TE", "trailers")
        .header("Cookie", "a=1; b=2")
        .chunked()
        .body("payload");
    let serve = async {
        let mut call = service.call().await;
        assert_eq!(call.body().await, (b"payload".to_vec(), None));
        let mut send =
            call.begin(&[("x-a", "1"), ("x-request-id", "theirs"), ("trailer", "x-sum")]);
        send_all(&mut send, Bytes::from_static(b"answer")).await.unwrap();
        send.send_trailers(trailers("x-sum", "9")).unwrap();
        call.request.into_parts().0
    };
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&request.bytes()).await;
    let (parts, response) = tokio::join!(serve, connection.strict_response(false));
    assert_eq!(parts.uri.to_string(), "http://gateway.test/orders?id=1");
    let header = |name: &str| {
        let values: Vec<_> = parts.headers.get_all(name).iter().collect();
        values.iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(header("x-openid"), [openid("alice")]);
    assert_eq!(header("te"), ["trailers"]);
    assert_eq!(header("cookie"), ["a=1; b=2"]);
    for absent in ["host", "connection", "transfer-encoding", "x-nominated", "x-3rd-session"] {
        assert!(header(absent).is_empty(), "{absent}");
    }
    let response = response.unwrap();
    assert_eq!((response.status, &*response.body.bytes), (200, &b"answer"[..]));
    let trailers: Vec<_> =
        response.body.trailers.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(trailers, [("x-sum", "9")]);
}

#[tokio::test]
async fn requests_of_a_worker_share_a_connection() {
    let mut service = Http2Service::start().await;
    let stack = start(&service, "idle_timeout = \"300ms\"").await;
    let serve = async {
        let mut calls = Vec::new();
        for _ in 0..MANY {
            calls.push(service.call().await);
        }
        // All of them are in flight.
        for mut call in calls {
            call.respond.send_response(response(204, &[]), true).unwrap();
        }
    };
    let requests = (0..MANY).map(|_| stack.get("/none").send());
    let ((), responses) = tokio::join!(serve, futures_util::future::join_all(requests));
    assert!(responses.iter().all(|response| response.status == 204));
    assert_eq!(service.connections(), 1);
    // It is closed after its idle time.
    until("the connection ends", async || service.open_connections() == 0).await;
    let in_state =
        |state| format!("wxgate_upstream_connections{{state=\"{state}\",upstream=\"recorder\"}}");
    stack.until_metric(&in_state("idle"), 0.0).await;
    stack.until_metric(&in_state("active"), 0.0).await;
}

#[tokio::test]
async fn a_server_that_allows_two_streams_gets_more_connections() {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(2);
    let mut service = Http2Service::start_with(builder).await;
    let stack = start(&service, "").await;
    let serve = async {
        let mut calls = Vec::new();
        for _ in 0..5 {
            calls.push(service.call().await);
        }
        assert_eq!(service.connections(), 3);
        for mut call in calls {
            call.respond.send_response(response(204, &[]), true).unwrap();
        }
    };
    let requests = (0..5).map(|_| stack.get("/none").send());
    let ((), responses) = tokio::join!(serve, futures_util::future::join_all(requests));
    assert!(responses.iter().all(|response| response.status == 204));
}

#[tokio::test]
async fn a_stream_that_was_refused_is_sent_again_even_if_it_is_a_post() {
    let mut service = Http2Service::start().await;
    let stack = start(&service, "").await;
    let serve = async {
        service.call().await.respond.send_reset(Reason::REFUSED_STREAM);
        service.call().await.echo().await;
    };
    let request = stack.post("/none").body("once").send();
    let ((), response) = tokio::join!(serve, request);
    assert_eq!((response.status, response.text()), (200, "once".into()));
    assert_eq!(service.connections(), 2);

    // Everything else may have been done.
    let serve = async { service.call().await.respond.send_reset(Reason::INTERNAL_ERROR) };
    let ((), response) = tokio::join!(serve, stack.post("/none").body("once").send());
    response.assert_error(502, "bad_gateway", "retry");
    let log = logged(&response);
    assert!(log[0].to_string().contains("HTTP/2 stream reset by the server"), "{log:?}");
}

#[tokio::test]
async fn a_server_that_goes_away_gets_new_requests_on_new_connections() {
    let mut service = Http2Service::start().await;
    let stack = start(&service, "").await;
    let mut first = Connection::open(stack.gateway).await;
    first.send(&stack.get("/none").bytes()).await;
    let mut call = service.call().await;
    service.go_away();
    for _ in 0..MANY {
        // Until the gateway has seen the GOAWAY, a stream is not processed, and sent again.
        let serve = async { service.call().await.echo().await };
        let ((), response) = tokio::join!(serve, stack.post("/none").body("x").send());
        assert_eq!((response.status, response.text()), (200, "x".into()));
    }
    assert_eq!(service.connections(), 2);
    // What was in flight ends as it would have.
    call.respond.send_response(response(204, &[]), true).unwrap();
    assert_eq!(first.response(false).await.status, 204);
    until("the old one ends", async || service.open_connections() == 1).await;
}

#[tokio::test]
async fn a_service_that_speaks_http_1_fails_the_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let response = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(response).await.unwrap();
            open.push(stream);
        }
    });
    let stack = Stack::start_with(&section(address, "")).await;
    let response = stack.get("/none").send().await;
    response.assert_error(502, "bad_gateway", "retry");
    let log = logged(&response);
    assert!(log.iter().any(|line| line.to_string().contains("HTTP/2 protocol error")), "{log:?}");
    let failed = "wxgate_upstream_requests_total{code=\"protocol_error\",upstream=\"recorder\"}";
    assert!(stack.metric(failed).await > 0.0);
}

#[tokio::test]
async fn a_truncated_response_is_not_taken_for_a_complete_one() {
    let mut service = Http2Service::start().await;
    let stack = start(&service, "").await;
    for lines in [&[][..], &[("content-length", "10")]] {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&stack.get("/none").bytes()).await;
        let mut call = service.call().await;
        let mut send = call.begin(lines);
        send_all(&mut send, Bytes::from_static(b"begun")).await.unwrap();
        assert!(connection.reads_up_to(b"begun").await);
        send.send_reset(Reason::INTERNAL_ERROR);
        assert!(connection.ends().await);
    }
}

#[tokio::test]
async fn a_response_without_a_body_has_a_length_for_http_1() {
    let mut service = Http2Service::start().await;
    let stack = start(&service, "").await;
    let mut connection = Connection::open(stack.gateway).await;
    for (method, status, lines, length) in [
        ("GET", 200, &[][..], Some("0")),
        ("GET", 204, &[], None),
        ("GET", 304, &[("content-length", "7")], Some("7")),
        ("HEAD", 200, &[("content-length", "7")], Some("7")),
        ("HEAD", 200, &[], None),
    ] {
        connection.send(&stack.request(method, "/none").bytes()).await;
        let mut call = service.call().await;
        call.respond.send_response(response(status, lines), true).unwrap();
        let response = connection.response(method == "HEAD").await;
        assert_eq!(response.status, status);
        assert_eq!(response.header("content-length"), length, "{method} {status}");
        assert_eq!(response.header("transfer-encoding"), None);
    }
}

#[tokio::test]
async fn an_early_hint_and_a_continue_come_through() {
    let mut service = Http2Service::start().await;
    let stack = start(&service, "").await;
    let mut connection = Connection::open(stack.gateway).await;
    let header = "POST /none HTTP/1.1\r\nHost: gateway.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    connection.send(header.as_bytes()).await;
    let mut call = service.call().await;
    call.respond.send_informational(response(103, &[("link", "</a>")])).unwrap();
    assert!(connection.reads(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await);
    call.respond.send_informational(response(100, &[])).unwrap();
    assert!(connection.reads(b"HTTP/1.1 100 Continue\r\n\r\n").await);
    connection.send(b"body").await;
    call.echo().await;
    assert_eq!(connection.response(false).await.text(), "body");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_go_both_ways_at_once() {
    let service = Http2Service::start().await;
    let limit = "limits.max_body = \"1GiB\"\n";
    let stack = Stack::start_with(&format!("{limit}{}", service.section(""))).await;
    service.echo();
    let body: Vec<u8> = (0..16 << 20).map(|at: u32| (at % 251) as u8).collect();
    for request in [stack.post("/none"), stack.post("/none").chunked()] {
        let mut connection = Connection::open(stack.gateway).await;
        let bytes = request.body(body.clone()).bytes();
        let response = connection.strict_response_while_sending(&bytes).await.unwrap();
        assert_eq!(response.status, 200);
        assert!(response.body.bytes == body);
    }
}

#[tokio::test]
async fn a_connection_on_which_a_request_timed_out_is_not_used_again() {
    let mut service = Http2Service::start().await;
    let stack = start(&service, "read_timeout = \"300ms\"").await;
    let serve = async { service.call().await.echo().await };
    let ((), response) = tokio::join!(serve, stack.get("/none").send());
    assert_eq!(response.status, 200);
    // From now on nothing at all comes on this connection.
    let (silent, response) = tokio::join!(service.call(), stack.post("/none").send());
    response.assert_error(504, "gateway_timeout", "retry");
    let serve = async { service.call().await.echo().await };
    let ((), response) = tokio::join!(serve, stack.post("/none").body("x").send());
    assert_eq!(response.text(), "x");
    assert_eq!(service.connections(), 2);
    drop(silent);
}

#[tokio::test]
async fn concurrent_requests_are_limited() {
    let mut service = Http2Service::start().await;
    let stack = start(&service, "max_connections = 1\npending_timeout = \"200ms\"").await;
    let mut first = Connection::open(stack.gateway).await;
    first.send(&stack.get("/none").bytes()).await;
    let mut call = service.call().await;
    stack.get("/none").send().await.assert_error(503, "overloaded", "retry");
    call.respond.send_response(response(204, &[]), true).unwrap();
    assert_eq!(first.response(false).await.status, 204);
    let serve = async { service.call().await.echo().await };
    let ((), response) = tokio::join!(serve, stack.get("/none").send());
    assert_eq!(response.status, 200);
    assert_eq!(service.connections(), 1);
}

#[tokio::test]
async fn servers_are_checked_with_their_protocol() {
    let mut service = Http2Service::start().await;
    let check = "[upstream.health_check]\npath = \"/healthz\"\ninterval = \"100ms\"\nhealthy_after = 1\nunhealthy_after = 1";
    let stack = start(&service, check).await;
    // Without it, no check would have succeeded, and the server would stay in use.
    service.call().await.respond.send_response(response(200, &[]), true).unwrap();
    for (status, state) in [(500, "unhealthy"), (200, "healthy")] {
        let reached = super::until_servers(&stack, state, 1.0);
        let serve = async {
            loop {
                let mut call = service.call().await;
                assert_eq!(call.request.uri().path(), "/healthz");
                let _ = call.respond.send_response(response(status, &[]), true);
            }
        };
        tokio::select! {
            () = reached => {}
            () = serve => {}
        }
    }
    tokio::time::timeout(Duration::from_secs(20), async {
        // Each check has a connection of its own.
        while service.open_connections() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_stream_that_is_refused_after_an_early_hint_is_not_sent_again() {
    let mut service = Http2Service::start().await;
    let stack = start(&service, "").await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&stack.post("/none").body("once").bytes()).await;
    let mut call = service.call().await;
    call.respond.send_informational(response(103, &[])).unwrap();
    assert!(connection.reads(b"HTTP/1.1 103 Early Hints\r\n\r\n").await);
    // Whatever the server says, it has processed the request.
    call.respond.send_reset(Reason::REFUSED_STREAM);
    let again = async { service.call().await.echo().await };
    tokio::select! {
        response = connection.response(false) => response.assert_error(502, "bad_gateway", "retry"),
        () = again => panic!("the request was sent again"),
    }
}

#[tokio::test]
async fn connections_of_a_server_that_allows_no_streams_are_closed() {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(0);
    let service = Http2Service::start_with(builder).await;
    let stack = start(&service, "idle_timeout = \"1h\"\nretry = { attempts = 1 }").await;
    for _ in 0..5 {
        stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    }
    assert_eq!(service.connections(), 10);
    until("all of them end", async || service.open_connections() == 0).await;
}

#[tokio::test]
async fn a_target_that_is_too_long_for_http_2_is_rejected() {
    let service = Http2Service::start().await;
    let limits = "limits.max_target = \"256KiB\"\nlimits.max_header = \"512KiB\"\n";
    let stack = Stack::start_with(&format!("{limits}{}", service.section(""))).await;
    let longest = format!("/none?{}", "x".repeat((64 << 10) - 2 - "/none?".len()));
    service.echo();
    assert_eq!(stack.get(&longest).send().await.status, 200);
    let too_long = stack.get(&format!("{longest}x")).send().await;
    too_long.assert_error(431, "headers_too_large", "none");
}

#[tokio::test]
async fn servers_that_refuse_streams_are_not_ejected() {
    let (mut full, well) = (Http2Service::start().await, Http2Service::start().await);
    let servers = [full.address, well.address].map(|address| address.to_string());
    let keys = format!(
        "[[upstream]]\nname = \"recorder\"\nservers = {servers:?}\nprotocol = \"h2\"\n\
         ejection = {{ failures = 2 }}\n"
    );
    let stack = Stack::start_with(&keys).await;
    well.echo();
    let mut refused = 0;
    let refuse = async {
        loop {
            full.call().await.respond.send_reset(Reason::REFUSED_STREAM);
            refused += 1;
        }
    };
    let send = async {
        for _ in 0..12 {
            let response = stack.post("/none").body("x").send().await;
            assert_eq!((response.status, response.text()), (200, "x".into()));
        }
    };
    tokio::select! {
        () = refuse => {}
        () = send => {}
    }
    assert!(refused > 2, "{refused}");
    assert_eq!(super::servers(&stack, "healthy").await, 2.0);
}
