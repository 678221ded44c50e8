//! Floods of frames, and many streams at once.

use tokio::io::AsyncWriteExt;

use super::{fields, run};
use crate::attack::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Field, HEADERS, PING, PREFACE, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, request,
};
use crate::attack::siege::{Must, Siege};
use crate::harness::openid;

/// However many streams are begun and reset, others are served, and everything is freed.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_affect_no_other_client() {
    let mut siege = Siege::start_https("").await;
    siege.may_lose_requests();
    let reset = |stream| frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
    let token = siege.token().to_owned();
    let session: [Field<'_>; 1] = [(b"x-3rd-session", token.as_bytes())];
    let streams = (0..10_000).map(|number| 2 * number + 1);
    for (path, more) in [("/required", &[][..]), ("/none", &[]), ("/required", &session)] {
        let mut rapid = Vec::new();
        for stream in streams.clone() {
            rapid.extend(request(stream, &fields("GET", path, more)));
            rapid.extend(reset(stream));
        }
        run(&mut siege, &format!("rapid resets on {path}"), &rapid, &[], Must::Harmless).await;
    }
    let mut made_to_reset = Vec::new();
    for stream in streams.clone() {
        made_to_reset.extend(request(stream, &fields("GET", "/required", &[])));
        made_to_reset.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
    }
    run(&mut siege, "streams made to be reset", &made_to_reset, &[], Must::Harmless).await;
    let mut half_closed = Vec::new();
    for stream in streams.take(1000) {
        half_closed.extend(request(stream, &fields("GET", "/required", &[])));
        half_closed.extend(frame(DATA, END_STREAM, stream, b"x"));
        half_closed.extend(frame(PRIORITY, 0, stream, &stream.to_be_bytes()));
    }
    run(&mut siege, "data after the end", &half_closed, &[], Must::Harmless).await;

    let open = block(&fields("POST", "/none", &[]));
    let filler = block(&[(b"x-a", &[b'y'; 16_000])]);
    let begun = frame(HEADERS, 0, 1, &open);
    let endless = [begun, frame(CONTINUATION, 0, 1, &filler).repeat(640)].concat();
    run(&mut siege, "an endless header block", &endless, &[], Must::Cut).await;
    let empty =
        [frame(HEADERS, 0, 1, &open), frame(CONTINUATION, 0, 1, b"").repeat(100_000)].concat();
    run(&mut siege, "empty CONTINUATIONs", &empty, &[], Must::Cut).await;
    // A field of 4000 bytes goes into the table, and is then named by a byte each time.
    let mut bomb = block(&fields("GET", "/none", &[]));
    bomb.extend_from_slice(&[0x40, 1, b'x', 127, 0xa1, 0x1e]);
    bomb.extend_from_slice(&[b'y'; 4000]);
    bomb.extend_from_slice(&[0xbe; 12_000]);
    let bomb = frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb);
    run(&mut siege, "a block that unpacks to 48 MB", &bomb, &[1], Must::Rejected).await;

    let body = frame(HEADERS, END_HEADERS, 1, &open);
    let empty = [body, frame(DATA, 0, 1, b"").repeat(100_000), frame(DATA, END_STREAM, 1, b"")];
    run(&mut siege, "empty DATA", &empty.concat(), &[], Must::Harmless).await;
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(20_000);
    run(&mut siege, "SETTINGS", &settings, &[], Must::Harmless).await;
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(20_000);
    let outcome = run(&mut siege, "PING", &pings, &[], Must::Harmless).await;
    assert!(outcome.read.pongs <= 20_000);
    let priorities = frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]).repeat(20_000);
    run(&mut siege, "PRIORITY", &priorities, &[], Must::Harmless).await;
    // More streams at once than are allowed.
    let mut many = Vec::new();
    for number in 0..1000u32 {
        many.extend(frame(HEADERS, END_HEADERS, 2 * number + 1, &open));
    }
    run(&mut siege, "a thousand streams at once", &many, &[], Must::Harmless).await;
    assert_eq!(siege.stack.metric("wxgate_http_requests_in_flight").await, 0.0);
}

/// A client that reads nothing blocks its own streams, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_zero_affects_no_other_client() {
    let mut siege = Siege::start_https("limits.write_timeout = \"500ms\"\n").await;
    siege.may_lose_requests();
    let mut held = [PREFACE, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    for number in 0..100 {
        held.extend(request(2 * number + 1, &fields("GET", "/none", &[])));
    }
    let mut wire = siege.connect(&["h2"]).await;
    wire.write_all(&held).await.unwrap();
    wire.flush().await.unwrap();
    // Each has been forwarded, and no response is read.
    siege.stack.upstream.until_requests(100).await;
    for _ in 0..20 {
        siege.send_as_bystander("streams that are held").await;
    }
    drop(wire);
    siege.hold("streams that were held").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_have_a_hundred_identities() {
    let mut siege = Siege::start_https("").await;
    let mut bytes = Vec::new();
    let mut streams = Vec::new();
    let mut tokens = Vec::new();
    for number in 0..99u32 {
        tokens.push(siege.token_of(&format!("u{number}")).await);
    }
    for (number, token) in (0u32..).zip(&tokens) {
        let stream = 2 * number + 1;
        let path = format!("/required/of/u{number}");
        let more: [Field<'_>; 2] = [(b"x-3rd-session", token.as_bytes()), (b"x_openid", b"evil")];
        bytes.extend(request(stream, &fields("GET", &path, &more)));
        streams.push(stream);
    }
    let outcome = run(&mut siege, "99 users", &bytes, &streams, Must::Served(99)).await;
    for (number, stream) in streams.iter().enumerate() {
        let body = String::from_utf8_lossy(&outcome.read.streams[stream].body).into_owned();
        assert!(body.contains(&openid(&format!("u{number}"))), "{number}: {body}");
    }
}
