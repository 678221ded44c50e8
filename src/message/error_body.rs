//! The body of an error response, for clients that expect a format other than the gateway's own.
//!
//! A template is parsed once, with the configuration, and then always produces what its content
//! type declares. Inserted values are escaped for JSON; for HTML and XML, as in their elements. The
//! status and the headers of an error are not changed.

use http::HeaderValue;

use crate::message::html;

/// The values that a template can contain.
#[derive(Clone, Copy)]
pub struct ErrorFacts<'a> {
    pub status: u16,
    pub error: &'a str,
    pub message: &'a str,
    pub action: &'a str,
    pub request_id: &'a str,
}

/// A template of error bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorBody {
    pub content_type: HeaderValue,
    pieces: Vec<Piece>,
    /// The `${code}` of an error; the default is the status.
    codes: Vec<(String, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Status,
    Error,
    Message,
    Action,
    RequestId,
    Code,
}

impl ErrorBody {
    /// Parses a template.
    ///
    /// # Errors
    /// What is wrong with the template.
    pub fn parse(
        template: &str,
        content_type: HeaderValue,
        codes: Vec<(String, i64)>,
    ) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut parts = template.split("${");
        pieces.extend(parts.next().map(|text| Piece::Text(text.to_owned())));
        for part in parts {
            let Some((name, text)) = part.split_once('}') else {
                return Err("\"${\" without \"}\"".to_owned());
            };
            pieces.push(match name {
                "status" => Piece::Status,
                "error" => Piece::Error,
                "message" => Piece::Message,
                "action" => Piece::Action,
                "request_id" => Piece::RequestId,
                "code" => Piece::Code,
                _ => return Err(format!("unknown placeholder \"${{{name}}}\"")),
            });
            pieces.push(Piece::Text(text.to_owned()));
        }
        let body = Self { content_type, pieces, codes };
        if body.is_json() {
            let text = "a text";
            let (error, message, action, request_id) = (text, text, text, text);
            let facts = ErrorFacts { status: 500, error, message, action, request_id };
            // A code may be negative.
            for code in [500, -1] {
                serde_json::from_slice::<serde::de::IgnoredAny>(&body.render_code(&facts, code))
                    .map_err(
                        |_| "does not give valid JSON: put text in quotes, as in \"${message}\"",
                    )?;
            }
        }
        Ok(body)
    }

    fn is_json(&self) -> bool {
        let essence = self.essence();
        essence == "application/json" || essence.ends_with("+json")
    }

    fn is_markup(&self) -> bool {
        let essence = self.essence();
        essence == "text/html" || essence.ends_with("/xml") || essence.ends_with("+xml")
    }

    /// The content type without parameters, in lower case.
    fn essence(&self) -> String {
        let content_type = self.content_type.to_str().unwrap_or_default();
        content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    pub fn render(&self, facts: &ErrorFacts<'_>) -> Vec<u8> {
        self.render_code(facts, self.code(facts))
    }

    fn render_code(&self, facts: &ErrorFacts<'_>, code: i64) -> Vec<u8> {
        let mut body = String::new();
        let is_markup = self.is_markup();
        let push = |body: &mut String, text: &str| {
            if is_markup {
                body.push_str(&html::escaped(text));
            } else {
                push_escaped(body, text);
            }
        };
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => body.push_str(text),
                Piece::Status => body.push_str(&facts.status.to_string()),
                Piece::Error => push(&mut body, facts.error),
                Piece::Message => push(&mut body, facts.message),
                Piece::Action => push(&mut body, facts.action),
                Piece::RequestId => push(&mut body, facts.request_id),
                Piece::Code => body.push_str(&code.to_string()),
            }
        }
        body.into_bytes()
    }

    fn code(&self, facts: &ErrorFacts<'_>) -> i64 {
        let code = self.codes.iter().find(|(error, _)| error == facts.error);
        code.map_or(i64::from(facts.status), |(_, code)| *code)
    }
}

/// Escaped as in a JSON string, without the quotes.
fn push_escaped(body: &mut String, text: &str) {
    let quoted = serde_json::Value::from(text).to_string();
    body.push_str(quoted.get(1..quoted.len() - 1).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(template: &str, content_type: &'static str) -> Result<ErrorBody, String> {
        let codes = vec![("session_expired".to_owned(), -7)];
        ErrorBody::parse(template, HeaderValue::from_static(content_type), codes)
    }

    const FACTS: ErrorFacts<'_> = ErrorFacts {
        status: 401,
        error: "session_expired",
        message: "a \"b\"\n\\",
        action: "login",
        request_id: "id",
    };

    #[test]
    fn values_are_escaped_and_codes_are_numbers() {
        let all = r#"{"c":${code},"s":${status},"m":"${message}","x":["${error}","${action}","$${request_id}"]}"#;
        let body = parse(all, "application/json").unwrap();
        let rendered = String::from_utf8(body.render(&FACTS)).unwrap();
        assert_eq!(
            rendered,
            r#"{"c":-7,"s":401,"m":"a \"b\"\n\\","x":["session_expired","login","$id"]}"#
        );
        let other = ErrorFacts { error: "no_route", status: 404, ..FACTS };
        assert!(body.render(&other).starts_with(br#"{"c":404,"s":404"#));
    }

    #[test]
    fn values_are_escaped_for_html_and_xml() {
        for content_type in ["text/html; charset=utf-8", "TEXT/HTML", "application/xhtml+xml"] {
            let body = parse("<p>${message}</p>", content_type).unwrap();
            let facts = ErrorFacts { message: "<a title=\"b\">&", ..FACTS };
            assert_eq!(body.render(&facts), b"<p>&lt;a title=&quot;b&quot;&gt;&amp;</p>");
        }
    }

    #[test]
    fn a_template_that_gives_no_json_is_rejected_for_a_json_content_type() {
        for template in ["{\"m\":${message}}", "", "{${code}}", "{\"m\":\"${message}\"", "${error}"]
        {
            assert!(parse(template, "application/json; charset=utf-8").is_err(), "{template}");
            assert!(parse(template, "application/problem+json").is_err(), "{template}");
            assert!(parse(template, "text/plain").is_ok(), "{template}");
        }
        // A code may be negative.
        for template in ["{\"c\":-${code}}", "{\"c\":1${code}}"] {
            assert!(parse(template, "application/json").is_err(), "{template}");
        }
        for template in ["${x}", "${}", "${code", "${ code }"] {
            assert!(parse(template, "text/plain").is_err(), "{template}");
        }
        assert!(parse("[${code}, ${status}]", "application/json").is_ok());
    }
}
