//! Attacks that try to exhaust connections, memory or metric series.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, FramesRead, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
    block, frame, request,
};
use super::framing::with_body;
use super::http2::fields;
use super::siege::{Attack, Must, READERS, Siege, connect, trusting};
use crate::harness::command::{Running, wxgate};
use crate::harness::upstream::Upstream;
use crate::harness::{PATIENCE, THREE_ROUTES, client, config_text};
use crate::tls::https;

#[tokio::test(flavor = "multi_thread")]
async fn trailers_without_end_are_cut_off() {
    let mut siege = Siege::start().await;
    let many = "X-Trailer: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(25_000);
    let long = format!("X-Trailer: {}", "y".repeat(1 << 20));
    let chunk = format!("5;{}", "y".repeat(1 << 20));
    for body in [format!("0\r\n{many}\r\n"), format!("0\r\n{long}"), chunk] {
        let template = with_body("Transfer-Encoding: chunked\r\n", &body);
        siege.run_on(&READERS[..5], &Attack::new(template, Must::Cut)).await;
    }
}

/// Requests that never end do not delay others, and are ended.
#[tokio::test(flavor = "multi_thread")]
async fn slow_headers_and_bodies_delay_no_other_client() {
    let limits = "limits = { header_timeout = \"3s\", body_timeout = \"3s\" }\n";
    let mut siege = Siege::start_with(limits, THREE_ROUTES).await;
    siege.may_lose_requests();
    let mut slow = Vec::new();
    for _ in 0..20 {
        for begun in [
            "",
            "G",
            "GET /none HTTP/1.1\r\nHost: h\r\nX: ",
            "POST /none HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nx",
            "POST /login HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
        ] {
            let mut stream = TcpStream::connect(siege.stack.gateway).await.unwrap();
            stream.write_all(begun.as_bytes()).await.unwrap();
            slow.push(stream);
        }
    }
    for _ in 0..20 {
        siege.send_as_bystander("slow requests").await;
    }
    let ended = async {
        for stream in &mut slow {
            let mut rest = Vec::new();
            // With or without a response.
            let _ = stream.read_to_end(&mut rest).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("all of them end");
    drop(slow);
    siege.hold("slow requests").await;
}

/// Nothing that a client sends creates new series of metrics.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_paths_make_no_series() {
    const PATHS: usize = 20_000;
    let limits = "limits.max_requests_per_connection = 1000000\n";
    let mut siege = Siege::start_with(limits, THREE_ROUTES).await;
    let series = async || {
        let text = client::get(siege.stack.admin, "/metrics").await.text();
        text.lines().filter(|line| line.starts_with("wxgate_")).count()
    };
    let ask = async |from: usize, to: usize| {
        let stream = TcpStream::connect(siege.stack.gateway).await.unwrap();
        let (mut reading, mut writing) = stream.into_split();
        let asking = async {
            let mut heads = String::new();
            for number in from..to {
                let method = ["GET", "HEAD", "PROPFIND", "X-Y"][number % 4];
                heads += &format!(
                    "{method} /p{number}/x HTTP/1.1\r\nHost: h{number}.test\r\nUser-Agent: {number}\r\nConnection: {}\r\n\r\n",
                    if number + 1 == to { "close" } else { "keep-alive" }
                );
            }
            writing.write_all(heads.as_bytes()).await.unwrap();
        };
        let mut responses = Vec::new();
        let (_, read) = tokio::join!(asking, reading.read_to_end(&mut responses));
        read.unwrap();
        let text = String::from_utf8_lossy(&responses);
        text.matches("HTTP/1.1 404 Not Found\r\n").count()
    };
    assert_eq!(ask(0, 10).await, 10);
    let before = series().await;
    assert_eq!(ask(0, PATHS).await, PATHS);
    assert_eq!(series().await, before);
    siege.hold("many paths").await;
}

/// A malformed handshake, or one of an obsolete version, gets no further.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_none_is_ended() {
    let mut siege = Siege::start_https("server.tls.handshake_timeout = \"2s\"\n").await;
    let hello = |version: [u8; 2]| {
        let mut hello = vec![0x16, 3, 1, 0, 47, 1, 0, 0, 43];
        hello.extend_from_slice(&version);
        hello.extend_from_slice(&[7; 32]);
        hello.extend_from_slice(&[0, 0, 2, 0, 0x2f, 1, 0, 0, 0]);
        hello
    };
    for bytes in [
        b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
        PREFACE.to_vec(),
        hello([3, 0]),
        hello([3, 1]),
        hello([3, 2]),
        hello([3, 3])[..20].to_vec(),
        vec![0x16, 3, 1, 0xff, 0xff],
        vec![0x80, 0x2e, 1, 0, 2],
        [0x16, 3, 1, 0, 1, 1].repeat(20_000),
        [0x16, 3, 1, 0, 0].repeat(20_000),
        vec![0; 100_000],
    ] {
        let mut stream = TcpStream::connect(siege.stack.gateway).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{}", bytes.escape_ascii());
        assert!(!rest.windows(5).any(|window| window == b"HTTP/"), "{}", rest.escape_ascii());
        assert!(siege.hold("a handshake that is none").await.len() == 1);
    }
}

/// The process frees the memory that floods made it use.
#[tokio::test(flavor = "multi_thread")]
async fn floods_leave_the_program_no_larger_than_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let (changes, identity) = https(directory.path(), THREE_ROUTES);
    let config = config_text(directory.path(), "http://127.0.0.1:1", upstream.address, &changes);
    let file = directory.path().join("gateway.toml");
    std::fs::write(&file, config).unwrap();
    let mut gateway = Running::start(wxgate().args(["run", "-c"]).arg(&file), true);
    let (_, address) = gateway.started();
    let tls = trusting(&identity);
    let status = format!("/proc/{}/status", gateway.child.id());
    let resident = || {
        let status = std::fs::read_to_string(&status).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() >> 10
    };
    let open = block(&fields("POST", "/none", &[]));
    let large = block(&[(b"x-a", &[b'y'; 16_000])]);
    let mut rapid = Vec::new();
    let mut held = Vec::new();
    for number in 0..5000u32 {
        rapid.extend(request(2 * number + 1, &fields("GET", "/required", &[])));
        rapid.extend(frame(RST_STREAM, 0, 2 * number + 1, &[0; 4]));
        held.extend(frame(HEADERS, END_HEADERS, 2 * number + 1, &open));
    }
    let floods = [
        rapid,
        held,
        [frame(HEADERS, 0, 1, &open), frame(CONTINUATION, 0, 1, &large).repeat(640)].concat(),
        [frame(HEADERS, END_HEADERS, 1, &open), frame(DATA, 0, 1, b"").repeat(50_000)].concat(),
    ];
    let mut first = None;
    for _ in 0..3 {
        for flood in &floods {
            let mut flooding = tokio::task::JoinSet::new();
            for _ in 0..5 {
                let wire = connect(address, Some(&tls), &["h2"]).await;
                let (opening, ping) = (frame(SETTINGS, 0, 0, b""), frame(PING, 0, 0, &[0; 8]));
                let sent = [PREFACE, &opening, flood, &ping].concat();
                flooding.spawn(async move {
                    let (mut from, mut to) = tokio::io::split(wire);
                    let sending = async { drop(to.write_all(&sent).await) };
                    let mut read = FramesRead::default();
                    let reading = read.read_until(&mut from, |read| read.pongs > 0);
                    timeout(PATIENCE, async { tokio::join!(sending, reading) }).await.unwrap();
                });
            }
            flooding.join_all().await;
        }
        let mut wire = connect(address, Some(&tls), &["http/1.1"]).await;
        let request = b"GET /none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        wire.write_all(request).await.unwrap();
        wire.flush().await.unwrap();
        let mut response = String::new();
        let read = timeout(PATIENCE, wire.read_to_string(&mut response)).await.expect("in time");
        read.unwrap();
        assert!(response.ends_with("hello"), "{response}");
        first.get_or_insert_with(resident);
    }
    let grown = resident().saturating_sub(first.unwrap());
    assert!(grown < 32, "{grown} MiB more than after the first floods");
}
