//! Sessions, logins and the headers that carry them.

use std::time::Duration;

use http::HeaderName;

use crate::config::reader::{Located, Section};
use crate::config::value::{Carrier, LoginForm};
use crate::config::{Carriers, IdentitySection, LoginForms, LoginSection, SessionSection};

const HOUR: u64 = 3600;

pub fn session(section: Section<'_>) -> SessionSection {
    let ttl = section.positive("ttl", Duration::from_secs(24 * HOUR));
    let idle_timeout = section.positive("idle_timeout", Duration::from_secs(2 * HOUR).min(ttl));
    if idle_timeout > ttl
        && let Some(given) = section.raw("idle_timeout")
    {
        section.push(section.key("idle_timeout"), given.span(), "is longer than ttl", "");
    }
    let capacity = section.get::<u64>("capacity");
    if let Some(capacity) = &capacity
        && capacity.value == 0
    {
        section.problem(capacity, "must be at least 1", "");
    }
    let listed = section.some::<Carrier>("carriers", "at least one of \"header\", \"bearer\"");
    let carriers = match listed {
        Some(listed) => Carriers {
            header: listed.iter().any(|carrier| carrier.value == Carrier::Header),
            bearer: listed.iter().any(|carrier| carrier.value == Carrier::Bearer),
        },
        None => Carriers { header: true, bearer: true },
    };
    let header = section.get::<HeaderName>("header");
    if let Some(header) = &header {
        report_reserved(&section, header);
    }
    let header = header.map_or(HeaderName::from_static("x-3rd-session"), |header| header.value);
    let capacity = capacity.map_or(1_000_000, |capacity| capacity.value);
    section.finish();
    SessionSection { ttl, idle_timeout, capacity, carriers, header }
}

/// Headers that carry something else already.
fn report_reserved(section: &Section<'_>, header: &Located<HeaderName>) {
    const RESERVED: [&str; 14] = [
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    ];
    let name = header.value.as_str();
    if RESERVED.contains(&name) || name.starts_with("x-forwarded-") || name == "x-real-ip" {
        section.problem(header, format!("\"{name}\" has a meaning of its own"), "");
    }
}

pub fn login(section: Section<'_>) -> LoginSection {
    let accept =
        section.some::<LoginForm>("accept", "at least one of \"json\", \"form\", \"query\"");
    let accept = match accept {
        Some(listed) => {
            let has = |form| listed.iter().any(|listed| listed.value == form);
            LoginForms {
                json: has(LoginForm::Json),
                form: has(LoginForm::Form),
                query: has(LoginForm::Query),
            }
        }
        None => LoginForms { json: true, form: true, query: false },
    };
    let max_body = section.size("max_body", 16 << 10, 64..=1 << 20);
    section.finish();
    LoginSection { accept, max_body }
}

pub fn identity(section: Section<'_>, session_header: &HeaderName) -> IdentitySection {
    let mut names: Vec<(String, String)> =
        vec![(fold(session_header.as_str()), "session.header".to_owned())];
    let mut name = |key: &'static str, default: &'static str| -> HeaderName {
        let given = section.get::<HeaderName>(key);
        if let Some(given) = &given {
            report_reserved(&section, given);
            let folded = fold(given.value.as_str());
            if let Some((_, other)) = names.iter().find(|(known, _)| *known == folded) {
                section.problem(given, format!("an upstream could not tell it from {other}"), "");
            }
        }
        let name = given.map_or(HeaderName::from_static(default), |given| given.value);
        names.push((fold(name.as_str()), format!("identity.{key}")));
        name
    };
    let openid_header = name("openid_header", "x-openid");
    let app_id_header = name("app_id_header", "x-appid");
    let union_id_header = name("union_id_header", "x-unionid");
    section.finish();
    IdentitySection { openid_header, app_id_header, union_id_header }
}

/// The name as a CGI-like upstream reads it.
fn fold(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect()
}
