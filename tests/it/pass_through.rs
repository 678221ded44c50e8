//! Calls of WeChat's API for services: what passes unchanged, what is added, and how much is held.
//!
//! It is one file of more than 400 lines because all tests need its scripted bodies, which are used
//! nowhere else.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Notify;
use wxgate::clock::Clock;
use wxgate::config::ApiPath;
use wxgate::wechat::WeChatError;
use wxgate::wechat::pass_through::download::Download;
use wxgate::wechat::pass_through::upload::{CallerBody, UploadError};
use wxgate::wechat::pass_through::{ApiCall, ApiCallError};

use crate::harness::redis::until;
use crate::harness::serve_bytes;
use crate::harness::wechat_api::{Caller, WeChatApi, reply};

const PATH: &str = "/wxa/msg_sec_check";

/// More than any buffers hold.
const LONG: u64 = 50 << 20;

/// What the buffers of sockets and of the program may hold.
const BUFFERED: u64 = 10 << 20;

async fn start(changes: &str) -> (WeChatApi, Caller) {
    let clock = Clock::manual();
    let api = WeChatApi::start(&clock).await;
    let caller = Caller::new(&api, &clock, changes).await;
    (api, caller)
}

fn whole(body: impl Into<Bytes>) -> CallerBody {
    Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

async fn call(
    caller: &Caller,
    method: Method,
    query: Option<&str>,
    body: CallerBody,
) -> Result<Response<Download>, ApiCallError> {
    let call = ApiCall {
        method,
        path: ApiPath::parse(PATH).unwrap(),
        query: query.map(str::to_owned),
        content_type: Some(HeaderValue::from_static("application/json; charset=utf-8")),
        accept: Some(HeaderValue::from_static("image/png")),
        body,
    };
    caller.wechat.pass_through(&caller.tokens, &caller.app_id, call).await
}

async fn post(caller: &Caller, body: CallerBody) -> Result<Response<Download>, ApiCallError> {
    call(caller, Method::POST, None, body).await
}

async fn text(response: Response<Download>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// A long body that counts what was read from it. Its bytes depend on their position.
struct Source {
    left: u64,
    read: Arc<AtomicU64>,
    /// Whether its length is announced.
    is_sized: bool,
}

/// A piece at any position of a [`Source`]. Its length is prime.
static PIECE: LazyLock<Bytes> =
    LazyLock::new(|| (0..16_381).map(|_| rand::random::<u8>()).collect());

impl Source {
    fn new(length: u64, is_sized: bool) -> (Self, Arc<AtomicU64>) {
        let read = Arc::new(AtomicU64::new(0));
        (Self { left: length, read: read.clone(), is_sized }, read)
    }
}

impl Body for Source {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let length = self.left.min(PIECE.len() as u64);
        self.left -= length;
        self.read.fetch_add(length, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(PIECE.slice(..length as usize)))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_sized { SizeHint::with_exact(self.left) } else { SizeHint::default() }
    }
}

/// The length of a body that is a [`Source`]'s, byte for byte.
async fn length(mut body: impl Body<Data = Bytes, Error = impl std::fmt::Debug> + Unpin) -> u64 {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        let mut rest = &data[..];
        while !rest.is_empty() {
            let expected = &PIECE[length % PIECE.len()..];
            let (here, after) = rest.split_at(rest.len().min(expected.len()));
            assert!(here == &expected[..here.len()], "other bytes from {length} on");
            length += here.len();
            rest = after;
        }
    }
    length as u64
}

/// Waits until nothing more is read from a body, and returns how much was.
async fn until_buffers_are_full(read: &AtomicU64) -> u64 {
    loop {
        let before = read.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
        if read.load(Ordering::Relaxed) == before {
            return before;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_gets_the_token_and_passes_otherwise_as_it_is() {
    let (api, caller) = start("").await;
    let seen = Arc::new(Mutex::new(Vec::<(Method, HeaderMap, Bytes)>::new()));
    let record = seen.clone();
    api.respond(move |request: Request<Incoming>| {
        let record = record.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            record.lock().push((parts.method, parts.headers, body));
            let mut response = reply(&b"\x89PNG \0\xff"[..]);
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            for (name, value) in [
                ("content-type", "image/png"),
                ("content-disposition", "attachment; filename=\"a.png\""),
                ("set-cookie", "a=b"),
                ("x-relay", "1"),
            ] {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            response
        }
    });
    let query = "type=1&q=%E4%BD%A0+%23&empty=";
    let response = call(&caller, Method::PUT, Some(query), whole("{\"a\": 1}")).await.unwrap();
    assert_eq!(response.status(), 418);
    let names: Vec<_> = response.headers().keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["content-type", "content-length", "content-disposition"]);
    assert_eq!(response.headers()["content-length"], "7");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&body[..], b"\x89PNG \0\xff");
    assert_eq!(api.calls(), [(format!("{PATH}?{query}"), true)]);
    {
        let seen = seen.lock();
        let (method, headers, body) = &seen[0];
        assert_eq!((method, &body[..]), (&Method::PUT, &b"{\"a\": 1}"[..]));
        assert_eq!(headers["content-type"], "application/json; charset=utf-8");
        assert_eq!(headers["accept"], "image/png");
        let mut names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "content-length", "content-type", "host"]);
    }
    let empty = || Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync();
    let got = call(&caller, Method::GET, None, empty()).await.unwrap();
    assert_eq!(got.status(), 418);
    assert!(!seen.lock()[1].1.contains_key("content-length"));
    call(&caller, Method::HEAD, Some(""), empty()).await.unwrap();
    assert_eq!(api.calls()[1..], [(format!("{PATH}?"), true), (format!("{PATH}?"), true)]);
    assert_eq!(caller.api_calls("malformed"), 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_call_is_repeated_once_if_wechat_rejects_the_token() {
    let (api, caller) = start("").await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    api.respond(move |request: Request<Incoming>| {
        let record = record.clone();
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            record.lock().push(body);
            reply("{\"errcode\":0,\"errmsg\":\"ok\"}")
        }
    });
    let longest = Bytes::from(vec![b'x'; 64 << 10]);
    assert_eq!(post(&caller, whole("a")).await.unwrap().status(), 200);
    api.refresh_elsewhere();
    caller.advance(10);
    let response = post(&caller, whole(longest.clone())).await.unwrap();
    assert_eq!(text(response).await, "{\"errcode\":0,\"errmsg\":\"ok\"}");
    assert_eq!(*seen.lock(), [Bytes::from("a"), longest]);
    let valid: Vec<_> = api.calls().iter().map(|(_, is_valid)| *is_valid).collect();
    assert_eq!((valid, api.token_calls()), (vec![true, false, true], 2));
    assert_eq!((caller.api_calls("40001"), caller.api_calls("ok")), (1.0, 2.0));

    // The next one is rejected as well: that response passes.
    let rejection = "{\"errcode\":42001,\"errmsg\":\"access_token expired\"}";
    api.respond(move |_| async move { reply(rejection) });
    api.refresh_elsewhere();
    caller.advance(10);
    assert_eq!(text(post(&caller, whole("a")).await.unwrap()).await, rejection);
    assert_eq!((api.calls().len(), api.token_calls()), (5, 3));
    // And if there is no other token yet, nothing is repeated.
    assert_eq!(text(post(&caller, whole("a")).await.unwrap()).await, rejection);
    assert_eq!((api.calls().len(), api.token_calls()), (6, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_call_is_not_repeated_but_the_token_is_renewed_for_the_next() {
    let (api, caller) = start("").await;
    let old = caller.get().await;
    api.refresh_elsewhere();
    caller.advance(10);
    let body = vec![b'x'; (64 << 10) + 1];
    let response = post(&caller, whole(body.clone())).await.unwrap();
    assert!(text(response).await.contains("40001"));
    api.until_token_calls(2).await;
    assert_eq!(api.calls().len(), 1);
    until("the token is replaced", || caller.renewals("ok") == 2.0);
    assert_ne!(caller.get().await, old);
    assert_eq!(text(post(&caller, whole(body)).await.unwrap()).await, "{\"errcode\":0}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_short_responses_in_json_are_inspected() {
    let (api, caller) = start("").await;
    let padding = " ".repeat(4096);
    for (body, errcode) in [
        (format!("{{\"errcode\":42001{padding}}}"), "ok"),
        (" {\"errcode\":42001}".to_owned(), "ok"),
        ("[{\"errcode\":42001}]".to_owned(), "ok"),
        ("{\"errcode\":42001".to_owned(), "ok"),
        (String::new(), "ok"),
        ("{\"errcode\":43101,\"errmsg\":\"user refuse\"}".to_owned(), "43101"),
        ("{\"errcode\":987654}".to_owned(), "other"),
    ] {
        let before = (caller.api_calls(errcode), api.calls().len());
        let answered = body.clone();
        api.respond(move |_| {
            let body = answered.clone();
            async move { reply(body) }
        });
        assert_eq!(text(post(&caller, whole("a")).await.unwrap()).await, body);
        assert_eq!((caller.api_calls(errcode), api.calls().len()), (before.0 + 1.0, before.1 + 1));
    }
    assert_eq!(api.token_calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_up_are_read_only_as_fast_as_wechat_reads_them() {
    for is_sized in [true, false] {
        let (api, caller) = start("").await;
        let (begin, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (wait, tell) = (begin.clone(), begun.clone());
        api.respond(move |request: Request<Incoming>| {
            let (wait, tell) = (wait.clone(), tell.clone());
            async move {
                let announced = request.headers().get("content-length").cloned();
                let announced = announced.map(|value| value.to_str().unwrap().to_owned());
                tell.notify_one();
                wait.notified().await;
                reply(format!("{announced:?} {}", length(request.into_body()).await))
            }
        });
        let (source, read) = Source::new(LONG, is_sized);
        let body = source.map_err(|never| match never {}).boxed_unsync();
        let (response, ()) = tokio::join!(post(&caller, body), async {
            begun.notified().await;
            let held = until_buffers_are_full(&read).await;
            assert!(held < BUFFERED, "{held} bytes are held");
            begin.notify_one();
        });
        let announced = is_sized.then(|| LONG.to_string());
        assert_eq!(text(response.unwrap()).await, format!("{announced:?} {LONG}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_down_are_read_only_as_fast_as_the_service_reads_them() {
    for is_sized in [true, false] {
        let (api, caller) = start("").await;
        let (source, read) = Source::new(LONG, is_sized);
        let source = Mutex::new(Some(source));
        api.respond(move |_| {
            let source = source.lock().take().unwrap();
            async move { Response::new(source.boxed_unsync()) }
        });
        let response = post(&caller, whole("a")).await.unwrap();
        let announced = response.headers().get("content-length").map(|v| v.to_str().unwrap());
        assert_eq!(announced.map(str::to_owned), is_sized.then(|| LONG.to_string()));
        assert_eq!(response.body().size_hint().exact(), is_sized.then_some(LONG));
        let held = until_buffers_are_full(&read).await;
        assert!(held < BUFFERED, "{held} bytes are held");
        assert_eq!(length(response.into_body()).await, LONG);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_fails_is_the_fault_of_the_service_and_wechat_gets_no_whole_request() {
    let (api, caller) = start("").await;
    api.respond(|request: Request<Incoming>| async move {
        let failed = request.into_body().collect().await.is_err();
        reply(format!("{failed}"))
    });
    for limit in [1000, 100 << 10] {
        let (source, _) = Source::new(1 << 20, false);
        let body = Limited::new(source, limit).boxed_unsync();
        match post(&caller, body).await {
            Err(ApiCallError::Upload(UploadError::Body(error))) => {
                assert!(error.is::<http_body_util::LengthLimitError>());
            }
            other => panic!("{:?}", other.map(|response| response.status())),
        }
    }
    assert!(api.calls().len() <= 1, "the first one was never sent");
    for errcode in ["ok", "transport", "timeout"] {
        assert_eq!(caller.api_calls(errcode), 0.0, "{errcode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_wechat_is_a_timeout_and_a_lost_one_as_well() {
    let timeouts = "wechat.timeout = \"300ms\"\nwechat.connect_timeout = \"100ms\"";
    let (api, caller) = start(timeouts).await;
    caller.get().await;
    api.respond(|_| async { std::future::pending().await });
    let error = post(&caller, whole("a")).await.err().unwrap();
    assert!(matches!(error, ApiCallError::WeChat(WeChatError::Timeout(_))), "{error}");
    assert_eq!((api.calls().len(), caller.api_calls("timeout")), (1, 1.0));
    drop(api);
    let error = post(&caller, whole("a")).await.err().unwrap();
    let ApiCallError::WeChat(error) = error else { panic!("{error}") };
    assert!(matches!(error, WeChatError::Unreachable(_) | WeChatError::Broken(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_framing_of_a_response_is_the_gateways() {
    let (api, caller) = start("").await;
    let chunked = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
        7\r\n{\"a\":1}\r\n0\r\n\r\n";
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
    let call_at = async |bytes: &'static [u8]| {
        let base_url = format!("wechat.base_url = \"http://{}\"", serve_bytes(bytes).await);
        let other = Caller::new(&api, &caller.clock, &base_url).await;
        let call = ApiCall {
            method: Method::GET,
            path: ApiPath::parse(PATH).unwrap(),
            query: None,
            content_type: None,
            accept: None,
            body: whole(""),
        };
        other.wechat.pass_through(&caller.tokens, &caller.app_id, call).await
    };
    let response = call_at(chunked).await.unwrap();
    assert_eq!(response.headers().get("content-length"), None);
    assert_eq!(text(response).await, "{\"a\":1}");
    let error = call_at(switch).await.err().unwrap();
    assert!(matches!(error, ApiCallError::WeChat(WeChatError::Malformed(_))), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_page_that_quotes_the_url_does_not_show_the_token() {
    let (api, caller) = start("").await;
    let token = caller.get().await;
    for (status, page) in [(502, "<p>No answer for "), (200, "{\"no answer for\":\"")] {
        for is_escaped in [false, true] {
            let token = token.clone();
            api.respond(move |request: Request<Incoming>| {
                let query = request.uri().query().unwrap().to_owned();
                let quoted = if is_escaped { query } else { token.clone() };
                let mut response = reply(format!("{page}{quoted}\"}}"));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                async move { response }
            });
            let error = post(&caller, whole("a")).await.err().unwrap();
            let is_malformed = matches!(error, ApiCallError::WeChat(WeChatError::Malformed(_)));
            assert!(is_malformed, "{status} {is_escaped}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_body_goes_to_the_fallback_if_the_first_address_cannot_be_reached() {
    let clock = Clock::manual();
    let api = WeChatApi::start(&clock).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = closed.local_addr().unwrap();
    drop(closed);
    let changes = format!(
        "wechat.base_url = \"http://{base}\"\nwechat.fallback_base_url = \"http://{}\"",
        api.address
    );
    let caller = Caller::new(&api, &clock, &changes).await;
    api.respond(|request: Request<Incoming>| async move {
        reply(length(request.into_body()).await.to_string())
    });
    for seconds in [0, 60] {
        // After a minute the first address is tried again.
        caller.clock.advance(Duration::from_secs(seconds));
        let (source, _) = Source::new(1 << 20, true);
        let body = source.map_err(|never| match never {}).boxed_unsync();
        let received = text(post(&caller, body).await.unwrap()).await;
        assert_eq!(received, (1 << 20).to_string());
    }
}
