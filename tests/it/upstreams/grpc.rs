//! gRPC: the gateway's errors, deadlines, and streams in both directions.

use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::http2_service::{Http2Service, read, response, section, send_all};
use crate::harness::{PATIENCE, Stack, unused_address};
use crate::http2::Client;

/// A call that has begun.
struct Call {
    response: h2::client::ResponseFuture,
    send: SendStream<Bytes>,
}

async fn call(client: &Client, path: &str, lines: &[(&str, &str)]) -> Call {
    let mut request = Request::post(format!("http://gateway.test{path}"));
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        if !lines.iter().any(|(other, _)| *other == name) {
            request = request.header(name, value);
        }
    }
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let mut ready = timeout(PATIENCE, client.requests.clone().ready()).await.unwrap().unwrap();
    let (response, send) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    Call { response, send }
}

impl Call {
    async fn response(self) -> (Response<RecvStream>, SendStream<Bytes>) {
        let response = timeout(PATIENCE, self.response).await.expect("a response in time");
        (response.unwrap(), self.send)
    }

    /// The header of a response that ends with it, and its status.
    async fn status(self) -> (String, HeaderMap) {
        let (response, _) = self.response().await;
        assert_eq!(response.status(), 200);
        let (parts, body) = response.into_parts();
        assert!(body.is_end_stream(), "{:?}", parts.headers);
        assert_eq!(parts.headers["content-type"], "application/grpc");
        (parts.headers["grpc-status"].to_str().unwrap().to_owned(), parts.headers)
    }
}

fn with_h2c(section: &str) -> String {
    format!("server.h2c = true\n{section}")
}

async fn start(service: &Http2Service, keys: &str) -> (Stack, Client) {
    let stack = Stack::start_with(&with_h2c(&service.section(keys))).await;
    let client = Client::open(stack.gateway).await;
    (stack, client)
}

fn trailers(status: &'static str) -> HeaderMap {
    let message = ("grpc-message".parse().unwrap(), "as%20it%20is".parse().unwrap());
    [("grpc-status".parse().unwrap(), status.parse().unwrap()), message].into_iter().collect()
}

async fn next(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let data = timeout(PATIENCE, body.data()).await.expect("data in time");
    if let Some(Ok(data)) = &data {
        let _ = body.flow_control().release_capacity(data.len());
    }
    data
}

/// Path, more headers, gRPC status, HTTP status, error.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str);

#[tokio::test]
async fn errors_of_the_gateway_are_statuses() {
    let routes = r#"
        [[route]]
        path = "/required"
        upstream = "recorder"
        auth = "required"
        [[route]]
        path = "/get"
        upstream = "recorder"
        auth = "none"
        methods = ["GET"]
        [[route]]
        path = "/small"
        upstream = "recorder"
        auth = "none"
        max_body = "10B"
        [[route]]
        path = "/down"
        upstream = "recorder"
        auth = "none"
    "#;
    let log = "log.access = \"{dir}/access.log\"\nlimits.max_header_count = 20\n";
    let down = section(unused_address().await, "");
    let stack = Stack::start_with(&format!("{}{log}{down}{routes}", with_h2c(""))).await;
    let client = Client::open(stack.gateway).await;
    let many = [("x-many", "1"); 20];
    let broken = [("x-3rd-session", "broken")];
    let cases: [Case<'_>; 8] = [
        ("/required/a", &[], "16", 401, "missing_token"),
        ("/required/a", &broken, "16", 401, "session_expired"),
        ("/nowhere", &[], "5", 404, "no_route"),
        ("/get", &[], "12", 405, "method_not_allowed"),
        ("/small", &[("content-length", "11")], "8", 413, "body_too_large"),
        ("/down", &[], "14", 502, "bad_gateway"),
        ("/down/%2e%2e/x", &[], "3", 400, "bad_request"),
        ("/down", &many, "8", 431, "headers_too_large"),
    ];
    for (path, lines, expected, _, error) in cases {
        let (status, headers) = call(&client, path, lines).await.status().await;
        assert_eq!((&*status, &headers["x-wxgate-error"]), (expected, &error.parse().unwrap()));
        assert_eq!(headers["cache-control"], "no-store");
        assert!(!headers["grpc-message"].is_empty() && headers.contains_key("x-request-id"));
    }
    // The status of other clients is counted and logged.
    let lines = stack.access_log(cases.len()).await;
    for (line, (_, _, _, http, error)) in lines.lines().zip(cases) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["status"], &line["error"]), (&http.into(), &error.into()));
    }
    stack.until_metric("wxgate_http_requests_total{code=\"405\",route=\"/get\"}", 1.0).await;

    // Others get what they expect.
    let other = [("content-type", "application/grpc-web")];
    let (response, _) = call(&client, "/required/a", &other).await.response().await;
    assert_eq!(response.status(), 401);
    stack.post("/required/a").header("Content-Type", "application/grpc").send().await.assert_error(
        401,
        "missing_token",
        "login",
    );
}

#[tokio::test]
async fn a_call_goes_through_with_its_metadata_and_trailers() {
    let mut service = Http2Service::start().await;
    let (_stack, client) = start(&service, "").await;
    let mut call = call(&client, "/none/Get", &[("x-meta-bin", "AP8="), ("te", "trailers")]).await;
    call.send.send_data(Bytes::from_static(b"message"), true).unwrap();
    let mut served = service.call().await;
    assert_eq!(served.body().await.0, b"message");
    let headers = served.request.headers();
    assert_eq!(headers["te"], "trailers");
    assert_eq!(headers["x-meta-bin"], "AP8=");
    assert_eq!(headers["content-type"], "application/grpc");
    let mut send = served.begin(&[("content-type", "application/grpc"), ("x-first", "1")]);
    send.send_data(Bytes::from_static(b"reply"), false).unwrap();
    send.send_trailers(trailers("0")).unwrap();
    let (response, _) = call.response().await;
    assert_eq!(response.headers()["x-first"], "1");
    let (body, end) = read(&mut response.into_body()).await.unwrap();
    let end = end.unwrap();
    assert_eq!(body, b"reply");
    assert_eq!(end["grpc-status"], "0");
    assert_eq!(end["grpc-message"], "as%20it%20is");
}

/// A client takes a header that does not end its stream for the begin of messages.
#[tokio::test]
async fn an_error_of_the_service_stays_one_header() {
    let mut service = Http2Service::start().await;
    let (_stack, client) = start(&service, "").await;
    let call = call(&client, "/none/Get", &[]).await;
    let lines = [("content-type", "application/grpc"), ("grpc-status", "5")];
    service.call().await.respond.send_response(response(200, &lines), true).unwrap();
    let (status, headers) = call.status().await;
    assert_eq!(status, "5");
    assert!(!headers.contains_key("content-length") && !headers.contains_key("x-wxgate-error"));
}

#[tokio::test]
async fn messages_go_both_ways_one_by_one() {
    let mut service = Http2Service::start().await;
    let (_stack, client) = start(&service, "").await;
    let call = call(&client, "/none/Chat", &[]).await;
    let mut served = service.call().await;
    let mut send = served.begin(&[]);
    let (response, mut to_service) = call.response().await;
    let mut from_service = response.into_body();
    for _ in 0..100 {
        to_service.send_data(Bytes::from_static(b"ping"), false).unwrap();
        assert_eq!(next(served.request.body_mut()).await.unwrap().unwrap(), "ping");
        send.send_data(Bytes::from_static(b"pong"), false).unwrap();
        assert_eq!(next(&mut from_service).await.unwrap().unwrap(), "pong");
    }
    to_service.send_data(Bytes::new(), true).unwrap();
    assert!(next(served.request.body_mut()).await.is_none_or(|data| data.unwrap().is_empty()));
    send.send_trailers(trailers("0")).unwrap();
    assert_eq!(read(&mut from_service).await.unwrap().1.unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_deadline_ends_a_call_and_reaches_the_service() {
    let mut service = Http2Service::start().await;
    let section = service.section("");
    let route = "[[route]]\npath = \"/short\"\nupstream = \"recorder\"\nauth = \"none\"\ntimeout = \"300ms\"\n\
                 [[route]]\npath = \"/none\"\nupstream = \"recorder\"\nauth = \"none\"";
    let stack = Stack::start_with(&with_h2c(&format!("{section}{route}"))).await;
    let client = Client::open(stack.gateway).await;
    for (path, given) in
        [("/none", "300m"), ("/short", "300S"), ("/short", "300000"), ("/none", "300000u")]
    {
        let began = Instant::now();
        let call = call(&client, path, &[("grpc-timeout", given)]).await;
        let (served, (status, headers)) = tokio::join!(service.call(), call.status());
        assert_eq!(
            (&*status, headers["x-wxgate-error"].as_bytes()),
            ("4", &b"gateway_timeout"[..]),
            "{given}"
        );
        assert_eq!(served.request.headers()["grpc-timeout"], given);
        assert!(began.elapsed() >= Duration::from_millis(300), "{given}");
    }
    // Without a valid one there is none.
    let call = call(&client, "/none", &[("grpc-timeout", "1 m")]).await;
    let mut served = service.call().await;
    sleep(Duration::from_millis(50)).await;
    let lines = [("content-type", "application/grpc"), ("grpc-status", "0")];
    served.respond.send_response(response(200, &lines), true).unwrap();
    assert_eq!(call.status().await.0, "0");
}

#[tokio::test]
async fn a_stream_that_breaks_is_reset() {
    let mut service = Http2Service::start().await;
    let (_stack, client) = start(&service, "").await;
    let call = call(&client, "/none/List", &[]).await;
    let mut served = service.call().await;
    let mut send = served.begin(&[]);
    send.send_data(Bytes::from_static(b"first"), false).unwrap();
    let (response, _send) = call.response().await;
    let mut body = response.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "first");
    send.send_reset(Reason::CANCEL);
    assert!(next(&mut body).await.unwrap().unwrap_err().is_reset());
}

/// Neither `limits.body_timeout` nor `read_timeout` ends a stream in which one side sends.
#[tokio::test]
async fn a_stream_is_idle_only_if_neither_side_sends() {
    let mut service = Http2Service::start().await;
    let limits = "limits.body_timeout = \"100ms\"\nlimits.min_body_rate = \"1MiB\"\n";
    let section = service.section("read_timeout = \"500ms\"");
    let stack = Stack::start_with(&with_h2c(&format!("{limits}{section}"))).await;
    let client = Client::open(stack.gateway).await;
    let call = call(&client, "/none/Chat", &[]).await;
    let mut served = service.call().await;
    let mut send = served.begin(&[]);
    let (response, mut to_service) = call.response().await;
    let mut from_service = response.into_body();
    for turn in 0..16 {
        // First only the service sends, then only the client.
        if turn < 8 {
            send_all(&mut send, Bytes::from_static(b"tick")).await.unwrap();
            assert_eq!(next(&mut from_service).await.unwrap().unwrap(), "tick");
        } else {
            to_service.send_data(Bytes::from_static(b"tock"), false).unwrap();
            assert_eq!(next(served.request.body_mut()).await.unwrap().unwrap(), "tock");
        }
        sleep(Duration::from_millis(150)).await;
    }
    let idle = next(&mut from_service).await.unwrap();
    assert!(idle.unwrap_err().is_reset());
}

#[tokio::test]
async fn a_call_whose_time_is_over_is_not_begun() {
    let mut service = Http2Service::start().await;
    let (_stack, client) = start(&service, "").await;
    let begun = call(&client, "/none", &[]).await;
    service.call().await.respond.send_response(response(204, &[]), true).unwrap();
    drop(begun.response().await);
    // The connection to the service is open now, so nothing else takes time.
    for _ in 0..20 {
        let late = call(&client, "/none", &[("grpc-timeout", "1n")]).await;
        assert_eq!(late.status().await.0, "4");
    }
    let next = call(&client, "/none", &[("x-next", "1")]).await;
    let mut got = service.call().await;
    assert!(got.request.headers().contains_key("x-next"), "{:?}", got.request);
    got.respond.send_response(response(204, &[]), true).unwrap();
    drop(next.response().await);
}
