//! The form of a `servers_file`: one server a line, or a JSON list.
//!
//! A line is an address and optionally `weight=N`, as in nginx; `#` begins a comment. An element of
//! the list is an address, or an object with `address` and optionally `weight`. A list begins with
//! `[`, as do lines with an IPv6 address, but never with `[` and a digit or a colon.

use serde_json::Value;
use serde_json::value::RawValue;

use super::server::{ServerAddress, ServerEntry};

/// How to write the file.
pub const HELP: &str = "one server a line, such as \"10.0.0.1:3000 weight=3\", or a JSON list";

/// The servers of a file, each with the number of its line, counted from 1. In the place of a
/// server that is not valid is a message.
pub fn parse(content: &str) -> Vec<(usize, Result<ServerEntry, String>)> {
    let content = content.trim_start_matches('\u{feff}');
    let begin = content.trim_start();
    let is_list = begin
        .strip_prefix('[')
        .is_some_and(|rest| rest.trim_start().starts_with(['"', '{', ']', '[']));
    if is_list || begin.starts_with('{') {
        return list(content);
    }
    let lines = content.lines().enumerate().filter_map(|(index, line)| {
        let server = line_of(line)?;
        Some((index + 1, server))
    });
    lines.collect()
}

/// `None`: the line is empty, or a comment.
fn line_of(line: &str) -> Option<Result<ServerEntry, String>> {
    let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
    let address = words.next()?;
    let mut weight = None;
    for word in words {
        match word.strip_prefix("weight=").map(str::parse::<u64>) {
            Some(Ok(given)) if weight.is_none() => weight = Some(given),
            _ => return Some(Err(format!("expected weight=N, found \"{word}\""))),
        }
    }
    Some(ServerAddress::parse(address).and_then(|address| ServerEntry::new(address, weight)))
}

fn list(content: &str) -> Vec<(usize, Result<ServerEntry, String>)> {
    let elements: Vec<&RawValue> = match serde_json::from_str(content) {
        Ok(elements) => elements,
        Err(error) if error.is_data() => {
            return vec![(1, Err("expected a JSON list of servers".to_owned()))];
        }
        Err(error) => return vec![(error.line(), Err("is not valid JSON".to_owned()))],
    };
    let line = |element: &RawValue| {
        let at = element.get().as_ptr().addr().saturating_sub(content.as_ptr().addr());
        content.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    };
    elements.into_iter().map(|element| (line(element), server(element))).collect()
}

fn server(element: &RawValue) -> Result<ServerEntry, String> {
    const EXPECTED: &str = "expected an address, or an object with address and weight";
    let value: Value = serde_json::from_str(element.get()).map_err(|_| EXPECTED.to_owned())?;
    let (address, weight) = match &value {
        Value::String(address) => (address, None),
        Value::Object(object) => {
            if let Some(other) = object.keys().find(|key| !matches!(&***key, "address" | "weight"))
            {
                return Err(format!("unknown key \"{other}\": a server has address and weight"));
            }
            let Some(Value::String(address)) = object.get("address") else {
                return Err(EXPECTED.to_owned());
            };
            let weight = object
                .get("weight")
                .map(|weight| weight.as_u64().ok_or("weight must be from 1 to 1000"));
            (address, weight.transpose()?)
        }
        _ => return Err(EXPECTED.to_owned()),
    };
    ServerEntry::new(ServerAddress::parse(address)?, weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `LINE ADDRESS*WEIGHT`, or `LINE: MESSAGE`.
    fn parsed(content: &str) -> Vec<String> {
        let show = |(line, server): (usize, Result<ServerEntry, String>)| match server {
            Ok(server) => format!("{line} {}*{}", server.address, server.weight),
            Err(message) => format!("{line}: {message}"),
        };
        parse(content).into_iter().map(show).collect()
    }

    #[test]
    fn a_file_has_one_server_a_line() {
        let content = "\u{feff}# three servers\r\n10.0.0.1:3000\r\n\r\n  [::1]:3000\tweight=3 # ours\n\
                       unix:/run/a#1.sock\n#shop:1\n";
        assert_eq!(
            parsed(content),
            ["2 10.0.0.1:3000*1", "4 [::1]:3000*3", "5 unix:/run/a#1.sock*1"]
        );
        assert_eq!(parsed("[2001:db8::1]:3000"), ["1 [2001:db8::1]:3000*1"]);
        assert_eq!(parsed("# none\n\n"), [""; 0]);
    }

    #[test]
    fn a_file_may_be_a_json_list() {
        let content = "[\n \"10.0.0.1:3000\",\n {\"weight\": 3,\n  \"address\": \"shop:80\"},\n\"[::1]:1\"]\n";
        assert_eq!(parsed(content), ["2 10.0.0.1:3000*1", "3 shop:80*3", "5 [::1]:1*1"]);
        assert_eq!(parsed("[]"), [""; 0]);
        assert_eq!(parsed(" [\n]\n"), [""; 0]);
    }

    #[test]
    fn every_line_with_a_mistake_is_reported() {
        let found = parsed(
            "10.0.0.1\na:1 weight=0\nb:1 weight=1001\nc:1 down\nd:1 weight=x\ne:1 weight=2 weight=2",
        );
        assert!(
            found.first().is_some_and(|one| one.starts_with("1: expected an address")),
            "{found:?}"
        );
        assert_eq!(
            found.get(1..).unwrap(),
            [
                "2: weight must be from 1 to 1000; remove the server if it is to get no requests",
                "3: weight must be from 1 to 1000",
                "4: expected weight=N, found \"down\"",
                "5: expected weight=N, found \"weight=x\"",
                "6: expected weight=N, found \"weight=2\"",
            ]
        );
        for (content, expected) in [
            ("[\"a:1\",\n]", "2: is not valid JSON"),
            ("{\"servers\": []}", "1: expected a JSON list of servers"),
            ("[[\"a:1\"]]", "1: expected an address, or an object with address and weight"),
            ("[{}]", "1: expected an address, or an object with address and weight"),
            (
                "[\"a:1\",\n{\"address\": \"b:1\", \"weight\": 1.5}]",
                "2: weight must be from 1 to 1000",
            ),
            (
                "[{\"address\": \"b:1\", \"port\": 1}]",
                "1: unknown key \"port\": a server has address and weight",
            ),
        ] {
            assert_eq!(parsed(content).last().map(String::as_str), Some(expected), "{content}");
        }
    }
}
