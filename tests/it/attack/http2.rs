//! The attacks of the other modules over HTTP/2, and attacks that only HTTP/2 makes possible.

mod floods;
mod more_identity;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::frames::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Field, FramesRead, GOAWAY, HEADERS,
    PING, PREFACE, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, request,
};
use super::siege::{Must, Siege};
use crate::harness::upstream::Received;
use crate::harness::{PATIENCE, openid};

/// A stream that no attack uses.
const BYSTANDERS_STREAM: u32 = 2_000_001;

struct Outcome {
    read: FramesRead,
    received: Vec<Received>,
}

/// Runs an attack of frames, and waits until its streams are over or the connection ends.
async fn run(siege: &mut Siege, name: &str, bytes: &[u8], streams: &[u32], must: Must) -> Outcome {
    let (canary, _) = siege.canary();
    let token = siege.bystanders_token().to_owned();
    let bystander = request(
        BYSTANDERS_STREAM,
        &fields("GET", &canary, &[(b"x-3rd-session", token.as_bytes())]),
    );
    let opening = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    let sent = [&opening, bytes, &bystander].concat();
    let (mut from, mut to) = tokio::io::split(siege.connect(&["h2"]).await);
    let sending = async {
        // The connection may be closed on it.
        let _ = to.write_all(&sent).await;
        let _ = to.flush().await;
        std::future::pending::<()>().await;
    };
    let mut read = FramesRead::default();
    let are_over = |read: &FramesRead| {
        let is_over = |stream| read.streams.get(stream).is_some_and(frames::Stream::is_over);
        streams.iter().chain([&BYSTANDERS_STREAM]).all(is_over)
    };
    tokio::select! {
        ended = timeout(PATIENCE, read.read_until(&mut from, are_over)) => {
            assert!(ended.is_ok(), "neither responses nor an end: {name}, {read:?}");
        }
        () = sending => unreachable!(),
    }
    drop((from, to));
    for stream in read.streams.values() {
        let text = String::from_utf8_lossy(&stream.body);
        let shown = siege.secrets.iter().find(|secret| text.contains(*secret));
        assert_eq!(shown, None, "{text}, after {name}");
    }
    let received = siege.hold(name).await;
    let is_canary = |received: &Received| received.target().starts_with("/required/canary/");
    let (canaries, received): (Vec<Received>, Vec<Received>) =
        received.into_iter().partition(is_canary);
    let served = |stream: &frames::Stream| stream.body.starts_with(b"{\"openid\":");
    let goes_on = read.streams.get(&BYSTANDERS_STREAM).is_some_and(served);
    assert_eq!(canaries.len(), 1 + usize::from(goes_on), "the bystander's requests: {name}");
    if goes_on {
        let response = String::from_utf8_lossy(&read.streams[&BYSTANDERS_STREAM].body);
        assert!(
            response.contains(&openid("bystander")) && response.contains(&canary),
            "{response}"
        );
    }
    let served = streams.iter().filter(|stream| read.streams.get(stream).is_some_and(served));
    let served = served.count();
    let shown = format!("{must:?}, but {read:?} and {received:?}: {name}");
    match must {
        Must::Cut => assert!(served == 0 && received.is_empty() && read.has_ended, "{shown}"),
        Must::Rejected => assert!(served == 0 && received.is_empty(), "{shown}"),
        Must::Served(count) => {
            assert!(served == count && received.len() == count && goes_on, "{shown}");
        }
        Must::Harmless => {}
    }
    Outcome { read, received }
}

pub fn fields<'a>(method: &'a str, path: &'a str, more: &[Field<'a>]) -> Vec<Field<'a>> {
    let mut fields: Vec<Field<'a>> = vec![
        (b":method", method.as_bytes()),
        (b":scheme", b"https"),
        (b":path", path.as_bytes()),
        (b":authority", b"localhost"),
    ];
    fields.extend_from_slice(more);
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_an_identity_header_is_trusted_over_http_2() {
    let mut siege = Siege::start_https("").await;
    let token = siege.token().to_owned();
    let token: Field<'_> = (b"x-3rd-session", token.as_bytes());
    let mut cases: Vec<Vec<(Vec<u8>, &[u8])>> = vec![
        vec![(b"x-openid".to_vec(), b"a"), (b"x-openid".to_vec(), b"b")],
        vec![(b"x-openid".to_vec(), b"")],
        vec![(b"x-openid".to_vec(), &[b'e'; 9000])],
        vec![(b"x-request-id".to_vec(), b"evil"), (b"x-forwarded-for".to_vec(), b"6.6.6.6")],
        vec![(b"forwarded".to_vec(), b"for=6.6.6.6"), (b"x-forwarded-prefix".to_vec(), b"/evil")],
        vec![(b"te".to_vec(), b"trailers"), (b"trailer".to_vec(), b"x-openid")],
    ];
    for byte in b"!#$%&'*+-.^_`|~" {
        let spelled = |name: &str| name.replace('-', &char::from(*byte).to_string()).into_bytes();
        let names = ["x-openid", "x-appid", "x-unionid", "x-wx-openid", "x-wx-from-appid"];
        cases.push(names.map(|name| (spelled(name), &b"evil"[..])).to_vec());
    }
    for case in &cases {
        for (path, has_token) in
            [("/required", true), ("/optional", true), ("/optional", false), ("/none", true)]
        {
            let mut more: Vec<Field<'_>> =
                case.iter().map(|(name, value)| (name.as_slice(), *value)).collect();
            if has_token {
                more.push(token);
            }
            let bytes = request(1, &fields("GET", path, &more));
            let name = format!("{path} {}", bytes.escape_ascii());
            run(&mut siege, &name, &bytes, &[1], Must::Served(1)).await;
        }
    }
    // The header block is cut anywhere, within names too.
    let more = [token, (b"x-openid", b"evil"), (b"x_openid", b"evil"), (b"cookie", b"a=b")];
    let whole = block(&fields("GET", "/required", &more));
    for size in 60..whole.len() {
        let mut parts = whole.chunks(size);
        let mut bytes = frame(HEADERS, END_STREAM, 1, parts.next().unwrap());
        for part in parts {
            bytes.extend(frame(CONTINUATION, 0, 1, part));
        }
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, b""));
        let name = format!("continuations of {size}");
        run(&mut siege, &name, &bytes, &[1], Must::Served(1)).await;
    }
    let crumbs: Vec<Field<'_>> =
        [&b"a=1"[..], b"b=2", b"c=3", b"d=4", b"e=5"].map(|crumb| (&b"cookie"[..], crumb)).to_vec();
    let bytes = request(1, &fields("GET", "/none", &crumbs));
    let outcome = run(&mut siege, "crumbs", &bytes, &[1], Must::Served(1)).await;
    assert_eq!(outcome.received[0].all("cookie"), ["a=1; b=2; c=3; d=4; e=5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_http_1_cannot_carry_is_rejected() {
    let mut siege = Siege::start_https("").await;
    let token = siege.token().to_owned();
    let more: [&[Field<'_>]; 40] = [
        &[(b"x-a", b"a\r\nX-OpenId: evil")],
        &[(b"x-a", b"a\nX-OpenId: evil")],
        &[(b"x-a", b"a\rX-OpenId: evil")],
        &[(b"x-a", b"a\0")],
        &[(b"x-a", b"\x7f")],
        &[(b"x-a", b"a\r\n\r\nGET /none HTTP/1.1\r\nHost: h\r\n\r\n")],
        &[(b"X-OpenId", b"evil")],
        &[(b"x-OpenId", b"evil")],
        &[(b"x-a: b\r\nx-openid", b"evil")],
        &[(b"x-openid:", b"evil")],
        &[(b":x-openid", b"evil")],
        &[(b"x openid", b"evil")],
        &[(b"x-openid ", b"evil")],
        &[(b" x-openid", b"evil")],
        &[(b"x-openid\0", b"evil")],
        &[(b"x-openid\xa0", b"evil")],
        &[(b"x/openid", b"evil")],
        &[(b"", b"evil")],
        &[(b"transfer-encoding", b"chunked")],
        &[(b"transfer-encoding", b"identity")],
        &[(b"connection", b"x-openid")],
        &[(b"connection", b"close")],
        &[(b"keep-alive", b"x")],
        &[(b"proxy-connection", b"x")],
        &[(b"upgrade", b"websocket")],
        &[(b"upgrade", b"h2c")],
        &[(b"te", b"gzip")],
        &[(b"te", b"trailers, x-openid")],
        &[(b"host", b"evil")],
        &[(b"host", b"localhost"), (b"host", b"evil")],
        &[(b"content-length", b"5")],
        &[(b"content-length", b"+0")],
        &[(b"content-length", b"0, 0")],
        &[(b"content-length", b"0"), (b"content-length", b"5")],
        &[(b"content-length", b"")],
        &[(b":status", b"200")],
        &[(b":method", b"POST")],
        &[(b":path", b"/none")],
        &[(b":authority", b"evil")],
        &[(b":protocol", b"websocket")],
    ];
    for more in more {
        for path in ["/required", "/none"] {
            let mut more = more.to_vec();
            more.push((b"x-3rd-session", token.as_bytes()));
            let bytes = request(1, &fields("GET", path, &more));
            let name = format!("{path} {}", bytes.escape_ascii());
            run(&mut siege, &name, &bytes, &[1], Must::Rejected).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_request_line_would_be_doubtful_is_rejected() {
    let mut siege = Siege::start_https("").await;
    let token = siege.token().to_owned();
    let (get, https, none, host): (&[u8], &[u8], &[u8], &[u8]) =
        (b"GET", b"https", b"/none", b"localhost");
    let long = [b"/none/".as_slice(), &[b'x'; 20_000]].concat();
    let lines: [[&[u8]; 4]; 36] = [
        [get, https, b"/none HTTP/1.1\r\nX-OpenId: e\r\n", host],
        [get, https, b"/none\r\n\r\nGET /none", host],
        [get, https, b"/none\n", host],
        [get, https, b"/none\0", host],
        [get, https, b"/no ne", host],
        [get, https, b"/none\tx", host],
        [get, https, b"/none\x7f", host],
        [get, https, b"/none/\xff", host],
        [get, https, b"/none\\x", host],
        [get, https, b"/none/../required", host],
        [get, https, b"/none/%2e%2e/required", host],
        [get, https, b"/none%00", host],
        [get, https, b"", host],
        [get, https, b"*", host],
        [get, https, b"none", host],
        [get, https, b"?x", host],
        [get, https, b"https://evil/none", host],
        [get, https, &long, host],
        [b"GET / HTTP/1.1\r\nX: y", https, none, host],
        [b"GET /none", https, none, host],
        [b"get", https, none, host],
        [b"G|T", https, none, host],
        [b"", https, none, host],
        [b"TRACE", https, none, host],
        [b"CONNECT", https, none, host],
        [b"GET\0", https, none, host],
        [b"PRI", https, b"*", host],
        [get, b"https://evil/?", none, host],
        [get, b"ht tp", none, host],
        [get, https, none, b"a\r\nX: y"],
        [get, https, none, b"u@h"],
        [get, https, none, b"h/x"],
        [get, https, none, b"h h"],
        [get, https, none, b"h,evil"],
        [get, https, none, b"h:99999"],
        [get, https, none, b""],
    ];
    for [method, scheme, path, authority] in lines {
        let bytes = request(
            1,
            &[
                (b":method", method),
                (b":scheme", scheme),
                (b":path", path),
                (b":authority", authority),
                (b"x-3rd-session", token.as_bytes()),
            ],
        );
        let name = bytes.escape_ascii().to_string();
        run(&mut siege, &name, &bytes, &[1], Must::Rejected).await;
    }
    // A fragment is removed first: the target is checked and forwarded without it.
    let fragment = request(1, &fields("GET", "/none#/required", &[]));
    let outcome = run(&mut siege, "a fragment", &fragment, &[1], Must::Harmless).await;
    assert!(outcome.received.iter().all(|received| received.target() == "/none"));
    let pseudo: [&[Field<'_>]; 7] = [
        &[],
        &[(b":method", get), (b":scheme", https)],
        &[(b":scheme", https), (b":path", none), (b":authority", host)],
        &[(b":method", get), (b":path", none), (b":authority", host)],
        &[(b":method", get), (b":scheme", https), (b":path", none)],
        &[(b":method", get), (b":scheme", https), (b"x", b"y"), (b":path", none)],
        &[(b":method", b"CONNECT"), (b":authority", b"127.0.0.1:22")],
    ];
    for fields in pseudo {
        let bytes = request(1, fields);
        let name = format!("{fields:?}");
        run(&mut siege, &name, &bytes, &[1], Must::Rejected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_and_lengths_cannot_smuggle() {
    let mut siege = Siege::start_https("").await;
    let token = siege.token().to_owned();
    let smuggled = b"0\r\n\r\nGET /none/smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    let length = smuggled.len().to_string();
    let token: Field<'_> = (b"x-3rd-session", token.as_bytes());
    for path in ["/required", "/none", "/login", "/nowhere"] {
        let header = |more: &[Field<'_>]| {
            let more = [&[token], more].concat();
            frame(HEADERS, END_HEADERS, 1, &block(&fields("POST", path, &more)))
        };
        let data = |flags| frame(DATA, flags, 1, smuggled);
        let trailers =
            |fields: &[Field<'_>]| frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
        let unended = frame(HEADERS, END_HEADERS, 1, &block(&[(b"x-openid", b"evil")]));
        for (number, (bytes, must)) in [
            ([header(&[]), data(END_STREAM)].concat(), Must::Harmless),
            (
                [header(&[(b"content-length", length.as_bytes())]), data(END_STREAM)].concat(),
                Must::Harmless,
            ),
            (
                [header(&[]), data(0), trailers(&[(b"x-openid", b"evil"), (b"x_openid", b"e")])]
                    .concat(),
                Must::Harmless,
            ),
            (
                [header(&[]), data(0), trailers(&[(b"content-length", b"0")])].concat(),
                Must::Harmless,
            ),
            ([header(&[(b"content-length", b"5")]), data(END_STREAM)].concat(), Must::Rejected),
            ([header(&[(b"content-length", b"500")]), data(END_STREAM)].concat(), Must::Rejected),
            ([header(&[]), data(0), trailers(&[(b":path", b"/none")])].concat(), Must::Harmless),
            ([header(&[]), data(0), trailers(&[(b":status", b"200")])].concat(), Must::Harmless),
            ([header(&[]), data(0), trailers(&[(b"X-OpenId", b"e")])].concat(), Must::Rejected),
            ([header(&[]), data(0), trailers(&[(b"x-a", b"a\r\nb: c")])].concat(), Must::Rejected),
            ([header(&[]), data(0), unended, data(END_STREAM)].concat(), Must::Rejected),
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("{number} on {path}");
            let outcome = run(&mut siege, &name, &bytes, &[1], must).await;
            for received in outcome.received {
                assert_eq!(received.body, smuggled, "{name}");
            }
        }
        // Its header is being forwarded when the data come; the service gets a request without them.
        let bytes = [header(&[(b"content-length", b"0")]), data(END_STREAM)].concat();
        let outcome = run(&mut siege, "data after none", &bytes, &[1], Must::Harmless).await;
        assert!(
            outcome.received.len() <= 1
                && outcome.received.iter().all(|received| received.body.is_empty())
        );
    }
}

/// Frames that break the rules end their stream or the connection, and affect no other client.
#[tokio::test(flavor = "multi_thread")]
async fn frames_out_of_order_are_rejected() {
    let mut siege = Siege::start_https("").await;
    let open = block(&fields("POST", "/none", &[]));
    let get = request(1, &fields("GET", "/none", &[]));
    for (name, bytes) in [
        ("DATA first", frame(DATA, END_STREAM, 1, b"x")),
        ("an even stream", request(2, &fields("GET", "/none", &[]))),
        ("stream 0", request(0, &fields("GET", "/none", &[]))),
        ("PUSH_PROMISE", frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &*open].concat())),
        ("CONTINUATION alone", frame(CONTINUATION, END_HEADERS, 1, &open)),
        (
            "a frame within a block",
            [frame(HEADERS, END_STREAM, 1, &open), frame(PING, 0, 0, &[0; 8]), get.clone()]
                .concat(),
        ),
        (
            "another stream's CONTINUATION",
            [frame(HEADERS, END_STREAM, 1, &open), frame(CONTINUATION, END_HEADERS, 3, b"")]
                .concat(),
        ),
        (
            "a block that is none",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\xff\xff"),
        ),
        ("an index that is none", frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xfe")),
        (
            "a Huffman code that is none",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\0\x84\xff\xff\xff\xff\0"),
        ),
        ("a long SETTINGS", frame(SETTINGS, 0, 0, &[0; 7])),
        ("an ACK with something", frame(SETTINGS, ACK, 0, &[0; 6])),
        ("a window that is too large", frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("no WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a short PING", frame(PING, 0, 0, &[0; 7])),
        ("a frame of 17 KiB", frame(DATA, 0, 1, &[0; 17 << 10])),
        ("RST_STREAM of an idle stream", frame(RST_STREAM, 0, 1, &[0; 4])),
        ("padding that is too long", frame(HEADERS, END_HEADERS | END_STREAM | 8, 1, &[255, 0])),
    ] {
        run(&mut siege, name, &bytes, &[], Must::Cut).await;
    }
    // After GOAWAY no new streams are served; earlier ones may still get a response.
    let goodbye = [get, frame(GOAWAY, 0, 0, &[0; 8])].concat();
    run(&mut siege, "GOAWAY", &goodbye, &[1], Must::Harmless).await;
}
