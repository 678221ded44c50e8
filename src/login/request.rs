//! Reads the fields of a login from its body or query.
//!
//! A login is read as its Content-Type says, and in no other way. If the body does not match the
//! Content-Type, the message says how it was read: tools such as `curl -d` declare every body as a
//! form.

use serde::Deserialize;
use serde_json::Value;

use crate::config::LoginForms;
use crate::identity::secret::Secret;
use crate::message::header::{quoted_elements, trim};
use crate::message::rejection::Rejection;

/// A login as it was sent.
#[derive(Clone, Copy)]
pub enum LoginRequest<'a> {
    Body { content_type: ContentType, body: &'a [u8] },
    Query(&'a str),
}

/// The fields of a login.
#[derive(Deserialize)]
pub struct Fields {
    pub code: Secret,
    /// Never empty.
    pub app_id: Option<String>,
}

/// The format of a login's body, by its Content-Type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// Also without a Content-Type, and for `text/plain`.
    Json,
    Form,
    Other,
    /// More than one media type.
    Several,
}

impl ContentType {
    /// Reads all Content-Type lines, each of which may be a list: some clients and proxies send it
    /// twice. Parameters are ignored: JSON is UTF-8 whatever its `charset`, and so are the escapes
    /// of a form (RFC 8259, section 8.1; URL standard, section 5.1).
    pub fn read<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Self {
        let media_type =
            |element: &'a [u8]| trim(element.split(|b| *b == b';').next().unwrap_or(element));
        let mut types = lines.flat_map(quoted_elements).map(media_type);
        let Some(first) = types.find(|media_type| !media_type.is_empty()) else {
            return Self::Json;
        };
        if types.any(|other| !other.is_empty() && !other.eq_ignore_ascii_case(first)) {
            return Self::Several;
        }
        let is = |name: &str| first.eq_ignore_ascii_case(name.as_bytes());
        if is("application/json") || is("text/plain") {
            Self::Json
        } else if is("application/x-www-form-urlencoded") {
            Self::Form
        } else {
            Self::Other
        }
    }
}

/// A byte order mark, which some editors and shells write. A JSON parser may ignore it (RFC 8259,
/// section 8.1).
const MARK: &[u8] = "\u{feff}".as_bytes();

const REPEATED: Rejection = Rejection::BadRequest("\"code\" or \"app_id\" is repeated");

const NO_CODE: Rejection = Rejection::BadRequest("\"code\" is missing");

const NO_CODE_IN_FORM: Rejection = Rejection::BadRequest(
    "\"code\" is missing: the body was read as a form because of its Content-Type",
);

const EMPTY: Rejection = Rejection::BadRequest("the body is empty: \"code\" is missing");

/// Reads the fields of a login.
///
/// # Errors
/// When its form is not accepted, or it is malformed.
pub fn parse(request: LoginRequest<'_>, accept: LoginForms) -> Result<Fields, Rejection> {
    let fields = match request {
        // The method check has already rejected queries that are not accepted.
        LoginRequest::Query(query) => parse_form(query.as_bytes(), NO_CODE),
        LoginRequest::Body { content_type, body } => {
            let body = body.strip_prefix(MARK).unwrap_or(body);
            match content_type {
                ContentType::Json if accept.json => parse_json(body, accept),
                ContentType::Form if accept.form => {
                    if is_object(body) {
                        return Err(json_as_form(accept));
                    }
                    if body.is_empty() { Err(EMPTY) } else { parse_form(body, NO_CODE_IN_FORM) }
                }
                ContentType::Several => {
                    Err(Rejection::BadRequest("Content-Type names more than one media type"))
                }
                ContentType::Json | ContentType::Form | ContentType::Other => {
                    Err(not_accepted(accept))
                }
            }
        }
    }?;
    Ok(Fields { app_id: fields.app_id.filter(|app_id| !app_id.is_empty()), ..fields })
}

fn not_accepted(accept: LoginForms) -> Rejection {
    Rejection::BadRequest(match (accept.json, accept.form) {
        (true, true) => {
            "Content-Type must be application/json or application/x-www-form-urlencoded"
        }
        (true, false) => "Content-Type must be application/json",
        (false, true) => "Content-Type must be application/x-www-form-urlencoded",
        (false, false) => "a login is accepted only as GET with a query",
    })
}

fn json_as_form(accept: LoginForms) -> Rejection {
    Rejection::BadRequest(if accept.json {
        "the body was read as a form because of its Content-Type, but it looks like JSON: \
         send \"Content-Type: application/json\""
    } else {
        "the body was read as a form because of its Content-Type, but it looks like JSON"
    })
}

/// Whether a text, if it is JSON at all, is an object.
fn is_object(text: &[u8]) -> bool {
    text.trim_ascii_start().starts_with(b"{")
}

/// A repeated field is an error: two parsers could read two different codes.
fn parse_json(body: &[u8], accept: LoginForms) -> Result<Fields, Rejection> {
    // serde would also read the fields from an array.
    let fields = is_object(body).then(|| serde_json::from_slice(body).ok()).flatten();
    fields.ok_or_else(|| json_fault(body, accept))
}

/// Why a body is not a login in JSON.
fn json_fault(body: &[u8], accept: LoginForms) -> Rejection {
    if body.trim_ascii().is_empty() {
        return EMPTY;
    }
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        let is_form = accept.form && !is_object(body) && body.contains(&b'=');
        return Rejection::BadRequest(if is_form {
            "the body was read as JSON, but it looks like a form: send \
             \"Content-Type: application/x-www-form-urlencoded\""
        } else {
            "the body is not JSON"
        });
    };
    let Value::Object(fields) = value else {
        return Rejection::BadRequest("the JSON must be an object with a \"code\"");
    };
    match (fields.get("code"), fields.get("app_id")) {
        (None, _) => NO_CODE,
        (code, _) if !code.is_some_and(Value::is_string) => {
            Rejection::BadRequest("\"code\" must be a string")
        }
        (_, Some(app_id)) if !app_id.is_string() && !app_id.is_null() => {
            Rejection::BadRequest("\"app_id\" must be a string")
        }
        _ => REPEATED,
    }
}

fn parse_form(body: &[u8], no_code: Rejection) -> Result<Fields, Rejection> {
    let mut code = None;
    let mut app_id = None;
    for (name, value) in form_urlencoded::parse(body) {
        let field = match &*name {
            "code" => &mut code,
            "app_id" => &mut app_id,
            _ => continue,
        };
        if field.replace(value.into_owned()).is_some() {
            return Err(REPEATED);
        }
    }
    let code = code.ok_or(no_code)?;
    Ok(Fields { code: Secret::new(code), app_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: LoginForms = LoginForms { json: true, form: true, query: true };

    fn code(content_type: Option<&str>, body: &str, accept: LoginForms) -> Option<String> {
        let content_type = ContentType::read(content_type.into_iter().map(str::as_bytes));
        let request = LoginRequest::Body { content_type, body: body.as_bytes() };
        parse(request, accept).ok().map(|fields| fields.code.expose().to_owned())
    }

    #[test]
    fn the_content_type_decides_how_a_body_is_read() {
        let json = r#"{"code":"abc","x":[1,{"y":2}]}"#;
        for content_type in [
            None,
            Some("text/plain"),
            Some("application/json; charset=utf-8"),
            Some("Application/JSON"),
        ] {
            assert_eq!(code(content_type, json, ALL).as_deref(), Some("abc"), "{content_type:?}");
        }
        let form = Some("application/x-www-form-urlencoded");
        assert_eq!(code(form, "x=1&code=a%62c", ALL).as_deref(), Some("abc"));
        assert_eq!(code(form, json, ALL), None);
        assert_eq!(code(None, "code=abc", ALL), None);
        assert_eq!(code(Some("multipart/form-data"), json, ALL), None);
        assert_eq!(code(None, json, LoginForms { json: false, ..ALL }), None);
        assert_eq!(code(form, "code=abc", LoginForms { form: false, ..ALL }), None);
    }

    #[test]
    fn anything_but_one_code_is_rejected() {
        for body in [
            "",
            "null",
            "[]",
            "[\"abc\"]",
            "\"abc\"",
            "{}",
            "{",
            r#"{"code":1}"#,
            r#"{"code":null}"#,
            r#"{"code":["a"]}"#,
            r#"{"code":"a","code":"b"}"#,
            r#"{"code":"a","app_id":"x","app_id":"y"}"#,
            r#"["abc",null]"#,
            r#"{"code":"a"} x"#,
            "\u{feff}\u{feff}{\"code\":\"a\"}",
        ] {
            assert_eq!(code(None, body, ALL), None, "{body}");
        }
        for body in ["", "x=1", "code=a&code=b", "code=a&app_id=x&app_id=y"] {
            assert_eq!(code(Some("application/x-www-form-urlencoded"), body, ALL), None, "{body}");
        }
    }

    #[test]
    fn a_repeated_media_type_counts_once() {
        let read = |lines: &[&str]| ContentType::read(lines.iter().map(|line| line.as_bytes()));
        for (lines, expected) in [
            (&[][..], ContentType::Json),
            (&["", " ,; charset=x"], ContentType::Json),
            (&["application/json,Application/JSON; charset=gbk"], ContentType::Json),
            (&["text/plain", "text/plain"], ContentType::Json),
            (&["application/json; a=\"b\\\", text/html, \""], ContentType::Json),
            (&["application/json; a=\"b\\\\\", text/html"], ContentType::Several),
            (&["application/json; a=b\\, text/html"], ContentType::Several),
            (&["application/x-www-form-urlencoded", ""], ContentType::Form),
            (&["application/json, text/plain"], ContentType::Several),
            (&["text/html", "text/html;x"], ContentType::Other),
            (&["application/json\u{e9}"], ContentType::Other),
        ] {
            assert_eq!(read(lines), expected, "{lines:?}");
        }
    }
}
