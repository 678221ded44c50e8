//! A response as the client received it.

use serde_json::Value;

/// A response as the client received it.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body came to its announced end.
    pub is_whole: bool,
}

impl Response {
    /// The first response in these bytes, and its length, if it is complete; one without a length is
    /// complete when they `have_ended`.
    pub fn parse(bytes: &[u8], is_bodyless: bool, have_ended: bool) -> Option<(Self, usize)> {
        let header = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&bytes[..header]).into_owned();
        let mut lines = text.split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.map(|line| line.split_once(':').unwrap());
        let headers =
            headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        let mut response =
            Self { status, headers: headers.collect(), body: Vec::new(), is_whole: true };
        let start = header + 4;
        if response.header("transfer-encoding").is_some() {
            let (body, length) = unchunked(&bytes[start..])?;
            response.body = body;
            return Some((response, start + length));
        }
        let end = if is_bodyless || matches!(status, 100..=199 | 204 | 304) {
            start
        } else if let Some(length) = response.header("content-length") {
            start + length.parse::<usize>().unwrap()
        } else if have_ended {
            bytes.len()
        } else {
            return None;
        };
        response.body = bytes.get(start..end)?.to_vec();
        Some((response, end))
    }

    /// The value of a header, which must not be repeated.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is repeated: {self:?}");
        value
    }

    /// The values of all lines of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let values = self.headers.iter().filter(|(known, _)| known == name);
        values.map(|(_, value)| value.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("JSON: {}", self.text()))
    }

    /// Asserts that this is an error of the gateway, in the format that all of them have.
    #[track_caller]
    pub fn assert_error(&self, status: u16, error: &str, action: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        let body = self.json();
        assert_eq!(body["error"], error);
        assert_eq!(body["action"], action);
        assert!(body["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert!(body["request_id"].as_str().is_some_and(|id| !id.is_empty()));
        assert_eq!(body.as_object().unwrap().len(), 4, "{body}");
        assert_eq!(self.header("x-request-id"), body["request_id"].as_str());
        assert_eq!(self.header("x-wxgate-error"), Some(error));
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert_eq!(self.header("cache-control"), Some("no-store"));
    }
}

/// The data of the chunks in these bytes, and their length, if the last one is there.
fn unchunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let line = bytes[at..].windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let start = at + line + 2;
        body.extend_from_slice(bytes.get(start..start + size)?);
        at = start + size + 2;
        bytes.get(..at)?;
        if size == 0 {
            return Some((body, at));
        }
    }
}
