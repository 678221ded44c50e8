//! The faults that a code can ask for: responses that are not WeChat's, or none at all.

use super::{Dropped, Response, response};

/// Bytes of a response that is too long to be read to its end.
const HUGE: usize = 100 << 20;

/// Something that goes wrong between WeChat and its caller. By then the code is used or not: the
/// caller cannot know.
pub enum Fault {
    Status(u16),
    Garbage,
    Half,
    Huge,
    Hang,
    Drop,
}

impl Fault {
    /// The fault of a text such as `hang-ANYTHING`.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('-')?;
        match kind {
            "status" => Some(Self::Status(rest.split('-').next()?.parse().ok()?)),
            "garbage" => Some(Self::Garbage),
            "half" => Some(Self::Half),
            "huge" => Some(Self::Huge),
            "hang" => Some(Self::Hang),
            "drop" => Some(Self::Drop),
            _ => None,
        }
    }

    pub async fn respond(self) -> Result<Response, Dropped> {
        Ok(match self {
            Self::Status(status) => {
                let mut response = response(status, "text/html", "<html>oops</html>");
                if let Ok(location) = "https://elsewhere.invalid/".parse() {
                    response.headers_mut().insert(http::header::LOCATION, location);
                }
                response
            }
            Self::Garbage => response(200, "text/html", "<html>{\"openid\":\"o\""),
            Self::Half => response(200, "text/plain", "{\"openid\":\"o12"),
            Self::Huge => response(200, "text/plain", vec![0; HUGE]),
            Self::Hang => return std::future::pending().await,
            Self::Drop => return Err(Dropped),
        })
    }
}
