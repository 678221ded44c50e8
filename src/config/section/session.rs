//! Sessions, logins and the headers that carry them.

pub mod redis;

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use http::HeaderName;

use super::advice;
use crate::config::document::from_value::{Carrier, LoginForm};
use crate::config::document::reader::{Located, Section};
use crate::config::read::rate;
use crate::config::{
    Carriers, IdentitySection, LoginForms, LoginSection, Rate, Secrets, SessionSection,
};
use crate::message::header::fold;

const HOUR: u64 = 3600;

/// Far more than a Mini Program's users are, and far less than floods a gateway.
const LOGINS_PER_APP: Rate =
    Rate { count: NonZeroU32::new(1000).unwrap(), period: Duration::from_secs(1) };

/// The section, and where its header is named.
pub fn session(
    section: Section<'_>,
    secrets: Secrets,
) -> (SessionSection, Option<Located<HeaderName>>) {
    let ttl = section.positive("ttl", Duration::from_secs(24 * HOUR));
    let idle_timeout = section.positive("idle_timeout", Duration::from_secs(2 * HOUR).min(ttl));
    if idle_timeout > ttl
        && let Some(given) = section.raw("idle_timeout")
    {
        let message = format!("is longer than ttl, {}", humantime::format_duration(ttl));
        section.push(section.key("idle_timeout"), given.span(), message, "");
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
    let named = section.get::<HeaderName>("header");
    if let Some(named) = &named {
        report_reserved(&section, named);
    }
    let header = match &named {
        Some(named) => named.value.clone(),
        None => HeaderName::from_static("x-3rd-session"),
    };
    let capacity = capacity.map_or(1_000_000, |capacity| capacity.value);
    advice::warn_of_memory(&section, "capacity", capacity, advice::SESSION_BYTES, "sessions");
    advice::warn_of_life(&section, ttl, idle_timeout);
    let max_per_user = NonZeroUsize::new(section.number("max_per_user", 10, 0..=1000));
    if max_per_user.is_none() {
        section.warn_of("max_per_user", "one user can take all of session.capacity");
    }
    let shared = redis::shared(&section, idle_timeout, secrets);
    section.finish();
    let session =
        SessionSection { ttl, idle_timeout, capacity, carriers, header, max_per_user, shared };
    (session, named)
}

/// Headers that carry something else already.
fn report_reserved(section: &Section<'_>, header: &Located<HeaderName>) {
    const RESERVED: [&str; 19] = [
        "authorization",
        "connection",
        "content_encoding",
        "content_length",
        "content_type",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "keep_alive",
        "proxy_authorization",
        "proxy_connection",
        "te",
        "trailer",
        "transfer_encoding",
        "upgrade",
        "x_real_ip",
        "x_request_id",
        "x_wxgate_error",
    ];
    let folded = folded(header.value.as_str());
    if RESERVED.contains(&folded.as_str()) || folded.starts_with("x_forwarded_") {
        let message = format!("\"{}\" has a meaning of its own", header.value);
        section.problem(header, message, "choose a name that nothing else uses");
    }
}

/// Of a code of `wx.login`.
const CODE_LIFE: Duration = Duration::from_secs(300);

/// The section, and the rate of apps that have none of their own.
pub fn login(section: Section<'_>) -> (LoginSection, Option<Rate>) {
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
    let replay_window = section.get::<Duration>("replay_window");
    if let Some(given) = replay_window.as_ref().filter(|given| given.value > CODE_LIFE) {
        section.problem(given, "must be at most 5m: no code lives longer", "");
    }
    let replay_window =
        replay_window.map_or(Duration::from_secs(10), |given| given.value.min(CODE_LIFE));
    let rate_per_app = rate(&section, "rate_per_app", Some(LOGINS_PER_APP));
    let rate_per_address = rate(&section, "rate_per_address", None);
    section.finish();
    (LoginSection { accept, max_body, replay_window, rate_per_address }, rate_per_app)
}

pub fn identity(
    section: Section<'_>,
    session: &SessionSection,
    session_header: Option<Located<HeaderName>>,
) -> IdentitySection {
    let mut names = vec![(folded(session.header.as_str()), "session.header", session_header)];
    let mut name = |key: &'static str, path: &'static str, default: &'static str| {
        let given = section.get::<HeaderName>(key);
        if let Some(given) = &given {
            report_reserved(&section, given);
        }
        let name =
            given.as_ref().map_or(HeaderName::from_static(default), |given| given.value.clone());
        let folded = folded(name.as_str());
        if let Some((_, other, place)) = names.iter().find(|(known, ..)| *known == folded) {
            let message = |other: &str| format!("an upstream could not tell it from {other}");
            match (&given, place) {
                (Some(given), _) => section.problem(given, message(other), ""),
                // The one that stands in the file collides with a default.
                (None, Some(place)) => section.problem(place, message(path), ""),
                (None, None) => {}
            }
        }
        names.push((folded, path, given));
        name
    };
    let openid_header = name("openid_header", "identity.openid_header", "x-openid");
    let app_id_header = name("app_id_header", "identity.app_id_header", "x-appid");
    let union_id_header = name("union_id_header", "identity.union_id_header", "x-unionid");
    section.finish();
    IdentitySection { openid_header, app_id_header, union_id_header }
}

/// A name as a CGI-like upstream reads it.
fn folded(name: &str) -> String {
    name.bytes().map(|byte| char::from(fold(byte))).collect()
}
