//! A service sees the requests that a client sent, and the client the responses to them: whatever
//! both send, and however it comes in pieces.
//!
//! The first byte of an input chooses when the service responds, the second says how many bytes
//! after it say how large the pieces are. The rest is what the client sends, and after two bytes
//! 255 what the service sends for each request. A real gateway is between them, over loopback.

#![cfg_attr(fuzzing, no_main)]

mod chunks;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use wxgate::clock::Clock;
use wxgate::config::{Config, Secrets};
use wxgate::fuzzing::response::{self, Framing as ResponseFraming};
use wxgate::message::request_header::{self, Framing, HeaderLimits, RequestSummary};
use wxgate::server::Server;
use wxgate::telemetry::metrics::Metrics;

use self::chunks::{Body, End, without_chunks};

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(8);

/// Bytes of a request's body that the gateway takes.
const MOST_BODY: usize = 48;

const LIMITS: HeaderLimits = HeaderLimits { bytes: 16 << 10, lines: 100, target: 8 << 10 };

/// The last request, after which the connection closes.
const LAST: &[u8] = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    static ONE: Mutex<()> = Mutex::new(());

    let [choice, steps, rest @ ..] = input else { return };
    let (steps, rest) = rest.split_at(usize::from(*steps % 16).min(rest.len()));
    let middle = rest.windows(2).position(|two| two == [255, 255]).unwrap_or(rest.len());
    let (sent, response) = (&rest[..middle], rest.get(middle + 2..).unwrap_or_default());
    let mut sent = sent.to_vec();
    if let (_, Tail::Clean) = requests(&sent) {
        sent.extend_from_slice(LAST);
    }
    let (expected, ended) = requests(&sent);
    // Neither is what this is about.
    if expected.iter().any(|request| request.wants_websocket) || expected.len() > 8 {
        return;
    }
    let _one = ONE.lock();
    let script = Arc::new(Script {
        client: next_address(),
        response: response.to_vec(),
        is_early: choice & 1 != 0,
        steps: steps.to_vec(),
    });
    *SERVICE.now.lock().unwrap() = Now { script: script.clone(), seen: HashMap::new() };
    let got = talk(&sent, &script, ended);
    let seen = std::mem::take(&mut SERVICE.now.lock().unwrap().seen);
    compare(&expected, ended, &script, &got, seen);
}

/// Each input has a client of its own, so that what an earlier one sent is not taken for its.
fn next_address() -> Ipv4Addr {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed) % 0x00ff_fff0;
    Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + number)
}

/// A request as a plain reader takes it out of a connection's bytes.
#[derive(Debug)]
struct Request {
    method: String,
    path: String,
    is_http_10: bool,
    wants_websocket: bool,
    body: Vec<u8>,
    is_whole: bool,
    /// Whether its trailers are malformed, at which only who sends them on looks.
    is_doubtful: bool,
}

/// What follows the last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    Clean,
    Incomplete,
    Malformed,
}

fn requests(sent: &[u8]) -> (Vec<Request>, Tail) {
    let mut found = Vec::new();
    let mut rest = sent;
    loop {
        if rest.is_empty() {
            return (found, Tail::Clean);
        }
        let head = match request_header::read(rest, LIMITS, |_| false, |_| {}) {
            Ok(Some(head)) => head,
            Ok(None) => return (found, Tail::Incomplete),
            Err(_) => return (found, Tail::Malformed),
        };
        let (text, after) = rest.split_at(head.length);
        let body = match head.framing {
            Framing::Chunked => without_chunks(after),
            Framing::Length(length) => {
                let length = usize::try_from(length).expect("64 bits");
                let data = after[..length.min(after.len())].to_vec();
                let end = if length > after.len() { End::Missing } else { End::At(length) };
                Body { data, end, ..Body::default() }
            }
        };
        let summary = RequestSummary::read(text).expect("it has passed");
        let path = match summary.path_and_query {
            path if path.starts_with('/') => path.to_owned(),
            rest => format!("/{rest}"),
        };
        found.push(Request {
            method: summary.method.to_owned(),
            path,
            is_http_10: !text.windows(11).any(|end| end == b" HTTP/1.1\r\n"),
            wants_websocket: head.wants_websocket,
            body: body.data,
            is_whole: matches!(body.end, End::At(_)),
            is_doubtful: !body.trailers.split_inclusive(|b| *b == b'\n').all(is_trailer),
        });
        match body.end {
            End::At(end) => rest = &after[end..],
            End::Missing => return (found, Tail::Incomplete),
            End::Malformed => return (found, Tail::Malformed),
        }
    }
}

fn is_trailer(line: &[u8]) -> bool {
    let name = line.split(|b| *b == b':').next().unwrap_or_default();
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    name.len() < line.len() && !name.is_empty() && name.iter().all(is_token)
}

/// What a service's bytes are for a request.
#[derive(Debug)]
struct Outcome {
    /// `None`: no response at all.
    status: Option<u16>,
    body: Vec<u8>,
    trailers: Vec<u8>,
    is_whole: bool,
    is_kept: bool,
    /// Bytes up to its end; what follows is no part of it.
    length: usize,
}

fn outcome(mut sent: &[u8], is_to_head: bool) -> Outcome {
    let all = sent.len();
    let none = Outcome {
        status: None,
        body: vec![],
        trailers: vec![],
        is_whole: false,
        is_kept: false,
        length: all,
    };
    let (head, rest) = loop {
        let Ok(Some(head)) = response::read(sent, is_to_head, |_| {}) else { return none };
        let rest = &sent[head.length..];
        match head.status {
            101 => return none,
            200.. => break (head, rest),
            _ => sent = rest,
        }
    };
    let body = match head.framing {
        ResponseFraming::Length(length) => {
            let length = usize::try_from(length).expect("64 bits");
            let data = rest[..length.min(rest.len())].to_vec();
            let end = if length > rest.len() { End::Missing } else { End::At(length) };
            Body { data, end, ..Body::default() }
        }
        ResponseFraming::Chunked => without_chunks(rest),
        ResponseFraming::Close => {
            Body { data: rest.to_vec(), end: End::At(rest.len()), ..Body::default() }
        }
    };
    let is_whole = matches!(body.end, End::At(_));
    let length = match body.end {
        End::At(end) => all - rest.len() + end,
        _ => all,
    };
    Outcome {
        length,
        status: Some(head.status),
        body: body.data,
        trailers: body.trailers,
        is_whole,
        is_kept: is_whole && head.persists,
    }
}

/// A response that the client got.
#[derive(Debug)]
struct Got {
    status: u16,
    /// Names in lower case.
    lines: Vec<(String, String)>,
    body: Vec<u8>,
    is_whole: bool,
}

impl Got {
    fn line(&self, name: &str) -> Option<&str> {
        let found: Vec<_> = self.lines.iter().filter(|(known, _)| known == name).collect();
        assert!(found.len() < 2, "{name} twice in {self:?}");
        found.first().map(|(_, value)| value.as_str())
    }
}

/// Takes the client's part; returns what came, up to the end of the connection.
fn talk(sent: &[u8], script: &Script, tail: Tail) -> Vec<u8> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let from = SocketAddr::from((script.client, 0));
    socket.bind(&from.into()).expect("an address of the loopback");
    socket.connect(&(*GATEWAY).into()).expect("the gateway accepts");
    let mut connection = TcpStream::from(socket);
    connection.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // Where the gateway has closed, it has what it wants.
    let _ = in_pieces(&mut connection, sent, &script.steps);
    if tail == Tail::Incomplete {
        let _ = connection.shutdown(Shutdown::Write);
    }
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return got,
            Ok(length) => got.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("{error} after {}", got.escape_ascii()),
        }
    }
}

fn in_pieces(connection: &mut TcpStream, mut bytes: &[u8], steps: &[u8]) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut sizes = steps.iter().cycle();
    while !bytes.is_empty() {
        let most = sizes.next().map_or(bytes.len(), |step| 1 + usize::from(*step));
        let (piece, rest) = bytes.split_at(most.min(bytes.len()));
        connection.write_all(piece)?;
        bytes = rest;
        thread::yield_now();
    }
    Ok(())
}

/// The client's view against what was sent, and what the service saw.
fn compare(
    expected: &[Request],
    tail: Tail,
    script: &Script,
    got: &[u8],
    mut seen: HashMap<String, Vec<Seen>>,
) {
    let mut rest = got;
    let mut requests = expected.iter().peekable();
    let mut is_over = false;
    let mut answered = 0;
    while !rest.is_empty() {
        assert!(!is_over, "after the last response: {}", rest.escape_ascii());
        let request = requests.peek().copied();
        let (response, after) = read_response(rest, request);
        rest = after;
        is_over = !response.is_whole
            || request.is_none_or(|request| request.is_http_10)
            || response.line("connection") == Some("close");
        if response.status < 200 {
            // The client had left by then.
            assert!(tail == Tail::Incomplete, "nothing follows {response:?}");
            break;
        }
        requests.next();
        let Some(request) = request else {
            assert!(tail == Tail::Malformed, "a response to no request: {response:?}");
            assert!((400..500).contains(&response.status));
            continue;
        };
        answered += 1;
        let id = response.line("x-request-id").unwrap_or_default();
        match seen.remove(id) {
            Some(seen) => {
                seen.iter().for_each(|seen| check_seen(seen, request));
                let has_left = tail == Tail::Incomplete && !response.is_whole;
                if !has_left {
                    check_response(&response, request, script, &seen);
                }
            }
            // The gateway's own. It may be one to what follows the last request.
            None => assert!(response.status >= 400, "{response:?}"),
        }
    }
    // One request may have been on its way when its client's connection ended.
    for seen in seen.into_values() {
        let request = requests.next().expect("a request that nobody sent");
        seen.iter().for_each(|seen| check_seen(seen, request));
        assert!(tail != Tail::Clean || script.is_early || is_over, "no response to {request:?}");
    }
    if tail == Tail::Clean && !is_over {
        assert!(script.is_early, "{answered} responses of {}", expected.len());
    }
}

fn check_seen(seen: &Seen, request: &Request) {
    assert_eq!((&seen.method, &seen.path), (&request.method, &request.path));
    assert!(seen.is_framed, "{seen:?}");
    assert!(request.body.starts_with(&seen.body), "{seen:?} of {request:?}");
    if seen.is_whole {
        assert_eq!(seen.body, request.body);
        assert!(request.is_whole, "{seen:?} of {request:?}");
    }
}

fn check_response(response: &Got, request: &Request, script: &Script, seen: &[Seen]) {
    let expected = outcome(&script.response, request.method == "HEAD");
    let is_sent = script.is_early || seen.iter().any(|seen| seen.is_whole);
    if !is_sent || !request.is_whole || request.is_doubtful || request.body.len() > MOST_BODY {
        // A body that is truncated, malformed or too long gets a response of the gateway.
        assert!(expected.status == Some(response.status) || response.status >= 400);
        return;
    }
    let Some(status) = expected.status else {
        assert_eq!(response.status, 502, "{response:?}");
        return;
    };
    assert_eq!(response.status, status, "{response:?} for {expected:?}");
    if request.is_http_10 {
        assert!(expected.body.starts_with(&response.body));
        assert!(
            !expected.is_whole || !expected.trailers.is_empty() || response.body == expected.body
        );
    } else if expected.is_whole && expected.trailers.is_empty() {
        assert!(response.is_whole, "{response:?} for {expected:?}");
        assert_eq!(response.body, expected.body);
    } else {
        assert!(expected.body.starts_with(&response.body));
        assert!(!response.is_whole || expected.is_whole, "{response:?} for {expected:?}");
        let mut trailers = expected.trailers.split_inclusive(|b| *b == b'\n');
        let is_fine = expected.is_whole && trailers.all(is_trailer);
        assert!(response.is_whole || !is_fine, "{response:?} for {expected:?}");
    }
}

/// Reads a response strictly, and passes over those that only announce it.
fn read_response<'a>(mut rest: &'a [u8], request: Option<&Request>) -> (Got, &'a [u8]) {
    let is_http_10 = request.is_some_and(|request| request.is_http_10);
    loop {
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole header") + 4;
        let (head, after) = rest.split_at(end);
        let text: String = head[..end - 4].iter().map(|byte| char::from(*byte)).collect();
        let mut lines = text.split("\r\n");
        let first = lines.next().expect("a status line");
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status: u16 = status.and_then(|status| status.parse().ok()).expect("a status");
        let lines = lines
            .map(|line| line.split_once(": ").expect("a line"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut got = Got { status, lines, body: Vec::new(), is_whole: true };
        let (length, coding) = (got.line("content-length"), got.line("transfer-encoding"));
        if status < 200 {
            assert!(length.is_none() && coding.is_none() && !is_http_10 && status != 101);
            if after.is_empty() {
                got.is_whole = false;
                return (got, after);
            }
            rest = after;
            continue;
        }
        let is_to_head = request.is_some_and(|request| request.method == "HEAD");
        if is_to_head || status == 204 || status == 304 {
            assert!(status != 204 || length.is_none() && coding.is_none());
            return (got, after);
        }
        let body = match (length, coding) {
            (Some(length), None) => {
                let length: usize = length.parse().expect("a length");
                let is_all = length <= after.len();
                let end = if is_all { End::At(length) } else { End::Missing };
                let data = after[..length.min(after.len())].to_vec();
                Body { data, end, ..Body::default() }
            }
            (None, Some("chunked")) if !is_http_10 => without_chunks(after),
            (None, None) => {
                assert!(is_http_10, "{got:?} has no end");
                Body { data: after.to_vec(), end: End::At(after.len()), ..Body::default() }
            }
            framing => panic!("{framing:?}"),
        };
        got.body = body.data;
        let rest = match body.end {
            End::At(end) => &after[end..],
            End::Missing => &[],
            End::Malformed => panic!("a malformed body: {}", after.escape_ascii()),
        };
        got.is_whole = matches!(body.end, End::At(_));
        return (got, rest);
    }
}

/// What the service does with every request.
struct Script {
    /// Who sends the requests.
    client: Ipv4Addr,
    response: Vec<u8>,
    /// Before it reads the body.
    is_early: bool,
    steps: Vec<u8>,
}

/// A request as the service saw it.
#[derive(Debug)]
struct Seen {
    client: Option<Ipv4Addr>,
    method: String,
    path: String,
    /// Whether one line at most says how long its body is.
    is_framed: bool,
    body: Vec<u8>,
    is_whole: bool,
}

struct Service {
    address: SocketAddr,
    now: Mutex<Now>,
}

/// What an input is about.
struct Now {
    script: Arc<Script>,
    /// By request id, in the order in which they came.
    seen: HashMap<String, Vec<Seen>>,
}

static SERVICE: LazyLock<Service> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || serve(connection));
        }
    });
    let script = Script {
        client: Ipv4Addr::UNSPECIFIED,
        response: Vec::new(),
        is_early: false,
        steps: Vec::new(),
    };
    Service { address, now: Mutex::new(Now { script: Arc::new(script), seen: HashMap::new() }) }
});

/// Serves a connection for as long as its responses leave it open.
fn serve(mut connection: TcpStream) {
    let mut held = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !read_more(&mut connection, &mut held) {
                return;
            }
        };
        let head = String::from_utf8_lossy(&held[..end]).into_owned();
        held.drain(..end);
        let Some((seen, id, framing)) = read_request(&head) else { return };
        let is_to_head = seen.method == "HEAD";
        let (script, place) = {
            let now = &mut *SERVICE.now.lock().unwrap();
            if seen.client != Some(now.script.client) {
                return;
            }
            // Where the same came before, this is another try.
            let same = now.seen.entry(id.clone()).or_default();
            same.push(seen);
            (now.script.clone(), same.len() - 1)
        };
        let outcome = outcome(&script.response, is_to_head);
        if script.is_early && respond(&mut connection, &script, outcome.length).is_err() {
            return;
        }
        let is_kept = outcome.is_kept;
        if script.is_early && !is_kept {
            let _ = connection.shutdown(Shutdown::Write);
        }
        let is_whole = loop {
            let (body, end) = match framing {
                None => {
                    let body = without_chunks(&held);
                    assert!(body.end != End::Malformed, "{}", held.escape_ascii());
                    (body.data, body.end)
                }
                Some(length) if held.len() < length => (held.clone(), End::Missing),
                Some(length) => (held[..length].to_vec(), End::At(length)),
            };
            if let Some(seen) =
                SERVICE.now.lock().unwrap().seen.get_mut(&id).and_then(|same| same.get_mut(place))
            {
                seen.body = body;
                seen.is_whole = matches!(end, End::At(_));
            }
            if let End::At(end) = end {
                held.drain(..end);
                break true;
            }
            if !read_more(&mut connection, &mut held) {
                break false;
            }
        };
        if !is_whole {
            return;
        }
        if !script.is_early && respond(&mut connection, &script, outcome.length).is_err() {
            return;
        }
        if !is_kept {
            return;
        }
    }
}

/// Sends the response in pieces, and what follows it together with its last byte: no proxy could
/// tell bytes that come later from the response to the next request.
fn respond(connection: &mut TcpStream, script: &Script, length: usize) -> io::Result<()> {
    let (most, end) = script.response.split_at(length.saturating_sub(1));
    in_pieces(connection, most, &script.steps)?;
    connection.write_all(end)
}

fn read_more(connection: &mut TcpStream, held: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    match connection.read(&mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(length) => {
            held.extend_from_slice(&buffer[..length]);
            true
        }
    }
}

/// A request, its id, and the length of its body; `None` when it is chunked.
fn read_request(head: &str) -> Option<(Seen, String, Option<usize>)> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut id, mut client, mut framing, mut framed) = (String::new(), None, Some(0), 0);
    for line in lines {
        let Some((name, value)) = line.split_once(": ") else { continue };
        match &*name.to_ascii_lowercase() {
            "x-request-id" => value.clone_into(&mut id),
            "x-real-ip" => client = value.parse().ok(),
            "content-length" => {
                framing = Some(value.parse().ok()?);
                framed += 1;
            }
            "transfer-encoding" => {
                framing = None;
                framed += 1;
            }
            _ => {}
        }
    }
    let is_framed = framed < 2 && words.next().as_deref() == Some("HTTP/1.1");
    let seen = Seen { client, method, path, is_framed, body: Vec::new(), is_whole: false };
    Some((seen, id, framing))
}

/// Where the gateway is.
static GATEWAY: LazyLock<SocketAddr> = LazyLock::new(|| {
    // There may be one already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let text = format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        threads = 1
        watch_interval = "0s"
        [admin]
        listen = "127.0.0.1:0"
        [log]
        access = "off"
        [limits]
        max_body = "{MOST_BODY}B"
        [endpoints]
        login = "/its/own/login"
        logout = "/its/own/logout"
        session = "/its/own/session"
        [[app]]
        app_id = "wx1"
        app_secret = {{ env = "PATH" }}
        [[upstream]]
        name = "u"
        servers = ["{}"]
        [[route]]
        path = "/"
        upstream = "u"
        auth = "none"
        "#,
        SERVICE.address
    );
    let config = Config::parse("fuzz", &text, Secrets::Ignore).expect("it is valid");
    let metrics = Metrics::new().expect("none is there yet");
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be built").block_on(async {
            let server = Server::bind(&config, Clock::system(), metrics).expect("it can be bound");
            let (orders, received) = tokio::sync::mpsc::channel(1);
            sender.send(server.public_addresses()[0]).expect("it is waited for");
            let ended = server.run(received).await;
            drop(orders);
            panic!("{ended:?}");
        });
    });
    receiver.recv().expect("it starts")
});
