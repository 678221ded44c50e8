//! A login is for the one code that was sent, or for none.
//!
//! The first byte of an input chooses the form and what is accepted; the rest is the body or
//! the query, or lines that make a body of JSON. What is one code is read here anew, plainly.

#![cfg_attr(fuzzing, no_main)]

mod json;

use wxgate::config::LoginForms;
use wxgate::fuzzing::{Code, ContentType, LoginRequest, Rejection, parse_login};

use self::json::{Fields, compose};

const NAMES: [&str; 6] = ["code", "app_id", "c\\u006fde", "x", "", "Code"];

/// A Content-Type, and which form it is for.
const CONTENT_TYPES: [(Option<&str>, Form); 8] = [
    (None, Form::Json),
    (Some("application/json"), Form::Json),
    (Some("Text/Plain; charset=utf-8,text/plain"), Form::Json),
    (Some("application/x-www-form-urlencoded"), Form::Form),
    (Some(" Application/X-WWW-Form-Urlencoded ;charset=utf-8"), Form::Form),
    (Some("multipart/form-data; boundary=x"), Form::None),
    (Some("application/json, text/plain"), Form::None),
    (None, Form::Query),
];

#[derive(Clone, Copy)]
enum Form {
    Json,
    Form,
    Query,
    None,
}

/// A code, and an app.
type Login = (String, Option<String>);

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Some((choice, body)) = input.split_first() else { return };
    let (content_type, form) = CONTENT_TYPES[usize::from(choice % 8)];
    let composed = (choice & 32 != 0).then(|| compose(body, &NAMES));
    let body = composed.as_ref().map_or(body, String::as_bytes);
    let accept = LoginForms { json: choice & 8 == 0, form: choice & 16 == 0, query: true };

    let request = match form {
        // Where it stands in a request there is only ASCII.
        Form::Query if !body.is_ascii() => return,
        Form::Query => LoginRequest::Query(std::str::from_utf8(body).expect("ASCII")),
        _ => {
            let lines = content_type.iter().map(|line| line.as_bytes());
            LoginRequest::Body { content_type: ContentType::read(lines), body }
        }
    };
    let found = match parse_login(request, accept) {
        Ok(fields) => Some((fields.code.expose().to_owned(), fields.app_id)),
        Err(Rejection::BadRequest(_)) => None,
        Err(other) => panic!("{other:?} is no answer to a body"),
    };
    match form {
        Form::Json if accept.json => check_json(body, found.as_ref()),
        Form::Form if accept.form => {
            let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
            // A body that looks like JSON is never read as a form.
            let is_json = body.trim_ascii_start().starts_with(b"{");
            assert_eq!(found, form_login(body).filter(|_| !is_json));
        }
        Form::Query => assert_eq!(found, form_login(body)),
        Form::Json | Form::Form | Form::None => assert_eq!(found, None),
    }
    if let Some((code, _)) = found {
        let is_sent = Code::parse(&code).is_some();
        // Whatever of it needed an escape on its way to WeChat could be read as something else.
        let needs_none = code.chars().all(|c| c.is_ascii_alphanumeric() || "-_.~".contains(c));
        assert_eq!(is_sent, needs_none && (1..=128).contains(&code.len()), "{code:?}");
        assert!(!is_sent || !Code::is_mock(&code));
    }
}

/// What is not UTF-8 in fields that nobody reads may pass or not.
fn check_json(body: &[u8], found: Option<&Login>) {
    let expected = json_login(&String::from_utf8_lossy(body));
    if found.is_some() || std::str::from_utf8(body).is_ok() {
        assert_eq!(found, expected.as_ref(), "{}", body.escape_ascii());
    }
}

fn json_login(text: &str) -> Option<Login> {
    let fields = Fields::parse(text.strip_prefix('\u{feff}').unwrap_or(text))?;
    Some((fields.text("code").ok()??, some(fields.text("app_id").ok()?)))
}

/// An empty app is none.
fn some(app_id: Option<String>) -> Option<String> {
    app_id.filter(|app_id| !app_id.is_empty())
}

/// The URL standard, section 5.1.
fn form_login(body: &[u8]) -> Option<Login> {
    let mut codes = Vec::new();
    let mut apps = Vec::new();
    for pair in body.split(|b| *b == b'&') {
        let equals = pair.iter().position(|b| *b == b'=');
        let (name, value) = match equals {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        };
        match decoded(name).as_str() {
            "code" => codes.push(decoded(value)),
            "app_id" => apps.push(decoded(value)),
            _ => {}
        }
    }
    let [code] = codes.try_into().ok()?;
    let app_id = apps.pop();
    apps.is_empty().then_some((code, some(app_id)))
}

fn decoded(text: &[u8]) -> String {
    let mut decoded = Vec::new();
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        decoded.push(match (first, after) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                rest = after;
                let digit = |b: &u8| char::from(*b).to_digit(16).unwrap() as u8;
                digit(high) * 16 + digit(low)
            }
            _ => *first,
        });
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
