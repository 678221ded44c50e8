//! Random requests on one client connection, to a service that sometimes misbehaves.
//!
//! Whatever happened before, each response belongs to its request, each request reaches the service
//! as it was sent, and no connection is reused after a response that forbids it.
//!
//! One file, because the plan of a round, the service's part in it and the check are one model.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use super::request;
use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::strict::StrictResponse;
use crate::harness::upstream::{Received, Reply, Step};

const CASES: u32 = 300;

/// How the service replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Length,
    EqualLengths,
    Chunked,
    Trailers,
    Hinted,
    NoContent,
    NotModified,
    // The response is complete, and the service ends its connection.
    Close,
    SaysClose,
    Old,
    LengthAndChunked,
    Extra,
    ExtraAfterChunks,
    // The response is not complete.
    HalfBody,
    HalfChunks,
    MalformedChunk,
    // Not a response.
    OtherLengths,
    OtherCoding,
    Nonsense,
    HalfHead,
    Nothing,
    Reset,
    // The response comes before the end of the body; the client sends the rest, or does not.
    Early,
    EarlyToHalf,
}

use Variant::*;

const VARIANTS: [Variant; 24] = [
    Length,
    EqualLengths,
    Chunked,
    Trailers,
    Hinted,
    NoContent,
    NotModified,
    Close,
    SaysClose,
    Old,
    LengthAndChunked,
    Extra,
    ExtraAfterChunks,
    HalfBody,
    HalfChunks,
    MalformedChunk,
    OtherLengths,
    OtherCoding,
    Nonsense,
    HalfHead,
    Nothing,
    Reset,
    Early,
    EarlyToHalf,
];

/// What the client must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Whole,
    Broken,
    BadGateway,
    /// After a second try.
    WholeOrBadGateway,
}

#[derive(Clone, Debug)]
struct Round {
    method: &'static str,
    /// Of its body.
    length: usize,
    is_chunked: bool,
    variant: Variant,
    /// The sizes of the packets on both sides.
    client_part: usize,
    service_part: usize,
}

impl Round {
    /// The variant that applies if the request or the response has no body.
    fn variant(&self) -> Variant {
        match self.variant {
            HalfBody | HalfChunks | MalformedChunk | OtherLengths if self.method == "HEAD" => {
                Length
            }
            // Without `Connection: close` nobody could know that the connection ends.
            Close if self.method == "HEAD" => SaysClose,
            EarlyToHalf if self.length < 2 => Early,
            variant => variant,
        }
    }

    fn outcome(&self) -> Outcome {
        match self.variant() {
            HalfBody | HalfChunks | MalformedChunk => Outcome::Broken,
            OtherLengths | OtherCoding | Nonsense | HalfHead => Outcome::BadGateway,
            Nothing | Reset if self.method == "POST" => Outcome::BadGateway,
            Nothing | Reset => Outcome::WholeOrBadGateway,
            _ => Outcome::Whole,
        }
    }

    fn forbids_reuse(&self) -> bool {
        !matches!(
            self.variant(),
            Length
                | EqualLengths
                | Chunked
                | Trailers
                | Hinted
                | NoContent
                | NotModified
                // If the body was complete by then, which only the gateway knows; the service reads
                // it before the next request, or it would take it for one.
                | Early
        )
    }

    fn body(&self) -> Vec<u8> {
        (b'a'..=b'z').cycle().take(self.length).collect()
    }

    fn has_body(&self) -> bool {
        self.method != "HEAD" && !matches!(self.variant(), NoContent | NotModified)
    }

    /// The request, and how many of its bytes are sent before the response.
    fn bytes(&self, path: &str) -> (Vec<u8>, usize) {
        let (lines, body) = match (self.is_chunked, self.length) {
            (true, _) => {
                let chunk = |chunk: &[u8]| {
                    [format!("{:x};a=b\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()
                };
                let mut body: Vec<u8> = self.body().chunks(300).flat_map(chunk).collect();
                body.extend_from_slice(b"0\r\n\r\n");
                ("Transfer-Encoding: chunked\r\n".to_owned(), body)
            }
            (false, 0) => (String::new(), Vec::new()),
            (false, length) => (format!("Content-Length: {length}\r\n"), self.body()),
        };
        let header = request(self.method, path, &lines, "");
        let held_back = if self.variant() == EarlyToHalf { body.len() / 2 } else { 0 };
        let bytes = [header, body].concat();
        let first = bytes.len() - held_back;
        (bytes, first)
    }

    fn steps(&self, path: &str) -> Vec<Step> {
        let variant = self.variant();
        let length = path.len();
        let half = length / 2;
        let chunks =
            format!("2;x\r\n{}\r\n{:x}\r\n{}\r\n0\r\n", &path[..2], length - 2, &path[2..]);
        let (status, lines, body) = match variant {
            Nothing => return vec![Step::Body, Step::Close],
            Reset => return vec![Step::Body, Step::Reset],
            NoContent => ("HTTP/1.1 204 No Content", String::new(), String::new()),
            NotModified => {
                ("HTTP/1.1 304 Not Modified", "ETag: \"x\"\r\n".to_owned(), String::new())
            }
            Length | Hinted | Extra | HalfHead | Early | EarlyToHalf => {
                ("HTTP/1.1 200 OK", format!("Content-Length: {length}\r\n"), path.to_owned())
            }
            EqualLengths => (
                "HTTP/1.1 200 OK",
                format!("Content-Length: {length}\r\ncontent-length:{length}\r\n"),
                path.to_owned(),
            ),
            OtherLengths => (
                "HTTP/1.1 200 OK",
                format!("Content-Length: {length}\r\nContent-Length: {half}\r\n"),
                path.to_owned(),
            ),
            SaysClose => (
                "HTTP/1.1 200 OK",
                format!("Connection: close\r\nContent-Length: {length}\r\n"),
                path.to_owned(),
            ),
            Old => ("HTTP/1.0 200 OK", format!("Content-Length: {length}\r\n"), path.to_owned()),
            HalfBody => (
                "HTTP/1.1 200 OK",
                format!("Content-Length: {length}\r\n"),
                path[..half].to_owned(),
            ),
            Close => ("HTTP/1.1 200 OK", String::new(), path.to_owned()),
            Chunked | ExtraAfterChunks => {
                ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\n".to_owned(), chunks + "\r\n")
            }
            Trailers => (
                "HTTP/1.1 200 OK",
                "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n".to_owned(),
                chunks + "X-Sum: 1\r\n\r\n",
            ),
            LengthAndChunked => (
                "HTTP/1.1 200 OK",
                format!("Transfer-Encoding: chunked\r\nContent-Length: {half}\r\n"),
                chunks + "\r\n",
            ),
            HalfChunks => ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\n".to_owned(), chunks),
            MalformedChunk => (
                "HTTP/1.1 200 OK",
                "Transfer-Encoding: chunked\r\n".to_owned(),
                format!("2\r\n{}+5\r\nhello\r\n0\r\n\r\n", &path[..2]),
            ),
            OtherCoding => {
                ("HTTP/1.1 200 OK", "Transfer-Encoding: gzip\r\n".to_owned(), path.to_owned())
            }
            Nonsense => ("SSH-2.0-OpenSSH", String::new(), String::new()),
        };
        let body = if self.has_body() { body } else { String::new() };
        let header = format!("{status}\r\nX-For: {path}\r\n{lines}\r\n");
        let bytes = match variant {
            HalfHead => header[..header.len() - 3].to_owned(),
            Hinted => format!("HTTP/1.1 103 Early Hints\r\nX-For: {path}\r\n\r\n{header}{body}"),
            _ => header + &body,
        };
        let mut steps = Vec::new();
        if !matches!(variant, Early | EarlyToHalf) {
            steps.push(Step::Body);
        }
        let (mut bytes, extra) = match variant {
            // Bytes that come after the end of the response cannot be noticed in time.
            Extra | ExtraAfterChunks => {
                let (first, last) = bytes.split_at(bytes.len() - 1);
                let wrong = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-For: extra\r\n\r\nextra";
                (first.as_bytes().to_vec(), [last.as_bytes(), wrong.as_bytes()].concat())
            }
            _ => (bytes.into_bytes(), Vec::new()),
        };
        if self.service_part == 1 {
            steps.push(Step::Drip(bytes));
        } else {
            let rest = bytes.split_off(bytes.len().min(self.service_part));
            steps.extend([Step::Send(bytes), Step::Send(rest)]);
        }
        steps.push(Step::Send(extra));
        match variant {
            Close | SaysClose | HalfBody | HalfChunks | MalformedChunk | Nonsense | HalfHead
            | OtherCoding => steps.push(Step::Close),
            EarlyToHalf => steps.push(Step::Finish),
            _ => {}
        }
        steps
    }

    /// What is wrong with a response, if anything is.
    fn judge(&self, path: &str, response: &Result<StrictResponse, String>) -> Result<(), String> {
        let wrong = || Err(format!("{path}: {:?} got {response:?}", self.variant()));
        let Ok(response) = response else { return wrong() };
        let is_theirs = response.all("x-for") == [path];
        let is_whole = is_theirs
            && response.is_whole
            && response.body.trailers.is_empty()
            && response.text() == if self.has_body() { path } else { "" };
        let is_bad_gateway = response.status == 502
            && response.all("x-for").is_empty()
            && response.all("x-wxgate-error") == ["bad_gateway"];
        let is_right = match self.outcome() {
            Outcome::Whole => is_whole,
            Outcome::Broken => is_bad_gateway || is_theirs && !response.is_whole,
            Outcome::BadGateway => is_bad_gateway,
            Outcome::WholeOrBadGateway => is_bad_gateway || is_whole,
        };
        if is_right { Ok(()) } else { wrong() }
    }
}

fn round() -> impl Strategy<Value = Round> {
    let part = || prop_oneof![2 => Just(usize::MAX), 1 => Just(1_usize), 2 => 2_usize..200];
    let body = prop_oneof![1 => Just(0), 2 => 1_usize..1500];
    // Most requests are plain, so that connections are reused.
    let variant = prop_oneof![
        1 => Just(Length),
        1 => Just(Chunked),
        3 => proptest::sample::select(&VARIANTS[..]),
    ];
    let method = proptest::sample::select(&["GET", "GET", "HEAD", "POST"][..]);
    (method, body, any::<bool>(), variant, part(), part()).prop_map(
        |(method, length, is_chunked, variant, client_part, service_part)| {
            let length = if method == "POST" { length } else { 0 };
            Round {
                method,
                length,
                is_chunked: is_chunked && method == "POST",
                variant,
                client_part: if length > 200 { client_part.max(20) } else { client_part },
                service_part,
            }
        },
    )
}

type Plans = Arc<Mutex<HashMap<String, (Round, usize)>>>;

/// Reads the final response to a request.
async fn response(
    connection: &mut Connection,
    round: &Round,
) -> Result<Option<StrictResponse>, String> {
    loop {
        let response = connection.strict_response_or_end(round.method == "HEAD").await?;
        if response.as_ref().is_none_or(|response| response.status >= 200) {
            return Ok(response);
        }
    }
}

fn is_last(response: &StrictResponse) -> bool {
    !response.is_whole || response.all("connection").contains(&"close")
}

/// Sends one request after the other, on as few connections as the gateway allows.
async fn in_turn(stack: &Stack, rounds: &[(Round, String)]) -> Result<(), String> {
    let mut open: Option<Connection> = None;
    for (round, path) in rounds {
        let (bytes, first) = round.bytes(path);
        let got = loop {
            let is_used = open.is_some();
            let mut connection = match open.take() {
                Some(connection) => connection,
                None => Connection::open(stack.gateway).await,
            };
            connection.try_send_in_parts(&bytes[..first], round.client_part).await;
            let got = response(&mut connection, round).await;
            // Without a response it was not served: the gateway had closed the connection.
            if is_used && matches!(got, Ok(None)) {
                continue;
            }
            let got = got.and_then(|got| got.ok_or_else(|| "no response".to_owned()));
            connection.try_send_in_parts(&bytes[first..], round.client_part).await;
            if got.as_ref().is_ok_and(|got| !is_last(got)) {
                open = Some(connection);
            }
            break got;
        };
        round.judge(path, &got)?;
    }
    Ok(())
}

/// Sends all requests at once, and reads responses as long as the gateway sends them.
async fn pipelined(stack: &Stack, rounds: &[(Round, String)]) -> Result<(), String> {
    let mut connection = Connection::open(stack.gateway).await;
    let bytes: Vec<u8> = rounds.iter().flat_map(|(round, path)| round.bytes(path).0).collect();
    connection.try_send_in_parts(&bytes, rounds[0].0.client_part.max(20)).await;
    for (at, (round, path)) in rounds.iter().enumerate() {
        let Some(got) = response(&mut connection, round).await? else {
            return if at > 0 { Ok(()) } else { Err(format!("{path}: no response")) };
        };
        let is_last = is_last(&got);
        round.judge(path, &Ok(got))?;
        if is_last {
            break;
        }
    }
    Ok(())
}

/// Whether the service received what was sent, on each connection only as long as allowed.
fn judge_service(
    stack: &Stack,
    (begun, whole): (usize, usize),
    rounds: &[(Round, String)],
    ended: &mut HashMap<usize, String>,
) -> Result<(), String> {
    let round = |received: &Received| rounds.iter().find(|(_, path)| received.target() == path);
    let begun = stack.upstream.begun_after(begun);
    let mut tries: HashMap<&str, usize> = HashMap::new();
    for received in &begun {
        // A client that disconnected early may have left other requests behind.
        let Some((round, path)) = round(received) else { continue };
        if let Some(earlier) = ended.get(&received.connection) {
            return Err(format!("{path} on connection {} after {earlier}", received.connection));
        }
        let tries = tries.entry(path).or_default();
        *tries += 1;
        if *tries > if round.outcome() == Outcome::WholeOrBadGateway { 2 } else { 1 } {
            return Err(format!("{path} was sent too often"));
        }
        if round.forbids_reuse() && *tries == 1 {
            ended.insert(received.connection, path.clone());
        }
    }
    for received in stack.upstream.requests_after(whole) {
        if let Some((round, path)) = round(&received)
            && received.body != round.body()
        {
            return Err(format!("{path}: another body: {received:?}"));
        }
    }
    Ok(())
}

#[test]
fn whatever_was_before_each_response_is_the_one_to_its_request() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let stack = runtime.block_on(Stack::start());
    let plans = Plans::default();
    let replies = plans.clone();
    stack.upstream.respond_early(true);
    stack.upstream.reply(move |received| {
        let mut plans = replies.lock().unwrap();
        let (round, tries) = plans.get_mut(received.target()).unwrap();
        *tries += 1;
        let second = Round { variant: Length, ..round.clone() };
        Reply::Steps(if *tries == 1 { &*round } else { &second }.steps(received.target()))
    });
    let number = AtomicUsize::new(0);
    // Connections that may not be used again, and why.
    let ended = Mutex::new(HashMap::new());
    let strategy = (proptest::collection::vec(round(), 2..9), any::<bool>());
    let config = ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    };
    let outcome = TestRunner::new(config).run(&strategy, |(rounds, is_pipelined)| {
        let case = number.fetch_add(1, Ordering::Relaxed);
        let rounds: Vec<(Round, String)> = rounds
            .into_iter()
            // No one holds back a request that others follow at once.
            .map(|round| match round.variant {
                EarlyToHalf if is_pipelined => Round { variant: Early, ..round },
                _ => round,
            })
            .enumerate()
            .map(|(at, round)| (round, format!("/none/{case}/{at}")))
            .collect();
        plans.lock().unwrap().extend(rounds.iter().map(|(r, path)| (path.clone(), (r.clone(), 0))));
        let before = (stack.upstream.begun_after(0).len(), stack.upstream.requests().len());
        let faults = stack.upstream.faults().len();
        let run = async {
            if is_pipelined {
                pipelined(&stack, &rounds).await
            } else {
                in_turn(&stack, &rounds).await
            }
        };
        let judged = runtime
            .block_on(run)
            .and_then(|()| judge_service(&stack, before, &rounds, &mut ended.lock().unwrap()));
        judged.map_err(TestCaseError::fail)?;
        let faults = stack.upstream.faults()[faults..].to_vec();
        prop_assert!(faults.is_empty(), "{:?}", faults);
        Ok(())
    });
    // The stack ends within the runtime.
    let _entered = runtime.enter();
    drop(stack);
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
