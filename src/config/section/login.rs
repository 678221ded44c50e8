//! `[login]`: which logins are accepted, and how many.

pub mod hook;

use std::num::NonZeroU32;
use std::time::Duration;

use toml::de::DeValue;

use self::hook::HookSection;
use crate::config::Secrets;
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::Table;
use crate::config::value::rate::{self, Rate};

/// The section `[login]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginSection {
    pub accept: LoginForms,
    /// Bytes of a login's request body.
    pub max_body: usize,
    /// How long a repeated code gets the same response; zero: never.
    pub replay_window: Duration,
    /// Rate limit of logins per address.
    pub rate_per_address: Option<Rate>,
    pub hook: Option<HookSection>,
}

/// Accepted forms of a login request; at least one is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginForms {
    pub json: bool,
    pub form: bool,
    pub query: bool,
}

/// More than the users of a Mini Program need, and less than would overload a gateway.
const LOGINS_PER_APP: Rate =
    Rate { count: NonZeroU32::new(1000).unwrap(), period: Duration::from_secs(1) };

/// Lifetime of a code of `wx.login`.
const CODE_LIFE: Duration = Duration::from_secs(300);

/// The section, and the default rate limit of apps.
pub fn read(section: Table<'_>, secrets: Secrets) -> (LoginSection, Option<Rate>) {
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
        section.problem(given, "must be at most 5m, the lifetime of a code", "");
    }
    let replay_window =
        replay_window.map_or(Duration::from_secs(10), |given| given.value.min(CODE_LIFE));
    let rate_per_app = rate::read(&section, "rate_per_app", Some(LOGINS_PER_APP));
    let rate_per_address = rate::read(&section, "rate_per_address", None);
    let hook = hook::read(&section, secrets);
    section.finish();
    (LoginSection { accept, max_body, replay_window, rate_per_address, hook }, rate_per_app)
}

/// A form of a login request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoginForm {
    Json,
    Form,
    Query,
}

impl FromValue for LoginForm {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("json", Self::Json), ("form", Self::Form), ("query", Self::Query)])
    }
}
