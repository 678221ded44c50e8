//! The login codes, and what each makes the sandbox do.

use std::time::Duration;

use moka::sync::Cache;
use rand::distr::{Alphanumeric, SampleString};

use super::CAPACITY;
use super::users::is_user_name;
use crate::clock::Clock;

/// Lifetime of WeChat's codes (wx.login).
const CODE_LIFETIME: Duration = Duration::from_secs(300);

/// The codes that were issued or used.
pub struct Codes {
    issued: Cache<String, IssuedCode>,
    used: Cache<String, ()>,
    clock: Clock,
}

#[derive(Clone)]
struct IssuedCode {
    user: String,
    issued_at: Duration,
}

/// What a code makes the sandbox do.
pub enum CodeEffect {
    /// Log the user in, after this time.
    Login {
        user: String,
        delay: Duration,
    },
    Error {
        errcode: i64,
    },
    Status(u16),
    Garbage,
    Half,
    Huge,
    Hang,
    Drop,
}

impl Codes {
    pub fn new(clock: Clock) -> Self {
        Self { issued: Cache::new(CAPACITY), used: Cache::new(CAPACITY), clock }
    }

    /// A new code, which works once and for five minutes.
    pub fn issue(&self, user: String) -> String {
        let code = Alphanumeric.sample_string(&mut rand::rng(), 32);
        self.issued.insert(code.clone(), IssuedCode { user, issued_at: self.clock.now() });
        code
    }

    /// What a code does at the moment.
    pub fn effect(&self, code: &str) -> CodeEffect {
        if self.used.contains_key(code) {
            return CodeEffect::Error { errcode: 40163 };
        }
        match self.issued.get(code) {
            Some(issued) if self.clock.now() < issued.issued_at + CODE_LIFETIME => {
                CodeEffect::Login { user: issued.user, delay: Duration::ZERO }
            }
            Some(_) => CodeEffect::Error { errcode: 40029 },
            None => parse_effect(code).unwrap_or(CodeEffect::Error { errcode: 40029 }),
        }
    }

    /// Marks a code as used, even if its response never arrives. Of two concurrent calls, one
    /// succeeds.
    pub fn spend(&self, code: &str) -> bool {
        self.used.entry_by_ref(code).or_insert(()).is_fresh()
    }

    /// Makes a used code valid again: the call was rejected for another reason.
    pub fn unspend(&self, code: &str) {
        self.used.invalidate(code);
    }
}

/// The effect of a code that says itself what it does, such as `user-NAME` or `err-40029-ANYTHING`.
fn parse_effect(code: &str) -> Option<CodeEffect> {
    let (kind, rest) = code.split_once('-')?;
    match kind {
        "user" => user(rest).map(|user| CodeEffect::Login { user, delay: Duration::ZERO }),
        "slow" => {
            let (delay, rest) = rest.split_once('-').unwrap_or((rest, "slow"));
            let delay = humantime::parse_duration(delay).ok()?;
            user(rest).map(|user| CodeEffect::Login { user, delay })
        }
        "err" => {
            // The number may be negative.
            let digits = rest.strip_prefix('-');
            let (number, _) =
                digits.unwrap_or(rest).split_once('-').unwrap_or((digits.unwrap_or(rest), ""));
            let number: i64 = number.parse().ok()?;
            Some(CodeEffect::Error { errcode: if digits.is_some() { -number } else { number } })
        }
        "status" => Some(CodeEffect::Status(rest.split('-').next()?.parse().ok()?)),
        "garbage" => Some(CodeEffect::Garbage),
        "half" => Some(CodeEffect::Half),
        "huge" => Some(CodeEffect::Huge),
        "hang" => Some(CodeEffect::Hang),
        "drop" => Some(CodeEffect::Drop),
        _ => None,
    }
}

/// The NAME of `NAME` or `NAME-ANYTHING`.
fn user(text: &str) -> Option<String> {
    let name = text.split('-').next()?;
    is_user_name(name).then(|| name.to_owned())
}
