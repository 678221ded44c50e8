//! One-time codes, and what each makes the sandbox do.
//!
//! Logins and phone numbers have codes of their own, and a code of one kind means nothing as the
//! other kind.

use std::time::Duration;

use moka::sync::Cache;

use super::faults::Fault;
use super::users::is_user_name;
use super::{newest, text_of_letters};
use crate::clock::Clock;

/// Lifetime of WeChat's codes, except those of the login pages of websites.
pub const CODE_LIFETIME: Duration = Duration::from_secs(300);

/// Longest code, in bytes: used ones are remembered.
const LONGEST: usize = 128;

/// The codes of one kind that were issued or used.
pub struct Codes<T: 'static> {
    kind: Kind<T>,
    issued: Cache<String, IssuedCode<T>>,
    used: Cache<String, ()>,
    clock: Clock,
}

/// One kind of code. `T` is the meaning of a code.
pub struct Kind<T: 'static> {
    /// Characters of an issued code.
    pub length: usize,
    /// The beginnings of codes that contain their user, and the meanings of these codes. The first
    /// is also that of slow codes.
    pub words: &'static [Word<T>],
    /// The errcode of a code that was used before.
    pub reused: i64,
}

/// The beginning of a code, and what the code means for the user that it names.
pub type Word<T> = (&'static str, fn(String) -> T);

#[derive(Clone)]
struct IssuedCode<T> {
    subject: T,
    expires_at: Duration,
    delay: Duration,
}

/// What a code makes the sandbox do.
pub enum CodeEffect<T> {
    /// Succeed, after this time.
    Accept {
        subject: T,
        delay: Duration,
    },
    Error {
        errcode: i64,
    },
    Fault(Fault),
}

impl<T: Clone + Send + Sync + 'static> Codes<T> {
    pub fn new(kind: Kind<T>, clock: Clock) -> Self {
        Self { kind, issued: newest(), used: newest(), clock }
    }

    /// A new code, which works once and for five minutes.
    pub fn issue(&self, subject: T) -> String {
        self.issue_for(subject, CODE_LIFETIME, Duration::ZERO)
    }

    /// A new code, which works once and for `lifetime`. Its use takes `delay`.
    pub fn issue_for(&self, subject: T, lifetime: Duration, delay: Duration) -> String {
        let code = text_of_letters(self.kind.length);
        let expires_at = self.clock.now() + lifetime;
        self.issued.insert(code.clone(), IssuedCode { subject, expires_at, delay });
        code
    }

    /// What a code does at the moment.
    pub fn effect(&self, code: &str) -> CodeEffect<T> {
        if code.len() > LONGEST {
            return CodeEffect::Error { errcode: 40029 };
        }
        if self.used.contains_key(code) {
            return CodeEffect::Error { errcode: self.kind.reused };
        }
        match self.issued.get(code) {
            Some(issued) if self.clock.now() < issued.expires_at => {
                CodeEffect::Accept { subject: issued.subject, delay: issued.delay }
            }
            Some(_) => CodeEffect::Error { errcode: 40029 },
            None => self.parse_effect(code).unwrap_or(CodeEffect::Error { errcode: 40029 }),
        }
    }

    /// Marks a code as used. Called before the response is sent, which may never arrive. Returns
    /// whether it was unused: of two concurrent calls, only one returns true.
    pub fn spend(&self, code: &str) -> bool {
        self.used.entry_by_ref(code).or_insert(()).is_fresh()
    }

    /// Makes a used code valid again: the call was rejected for another reason.
    pub fn unspend(&self, code: &str) {
        self.used.invalidate(code);
    }

    /// The effect of a code that says itself what it does, such as `user-NAME` or
    /// `err-40029-ANYTHING`.
    fn parse_effect(&self, code: &str) -> Option<CodeEffect<T>> {
        if let Some(fault) = Fault::parse(code) {
            return Some(CodeEffect::Fault(fault));
        }
        if let Some(errcode) = parse_errcode(code) {
            return Some(CodeEffect::Error { errcode });
        }
        let (kind, rest) = code.split_once('-')?;
        let mut words = self.kind.words.iter();
        let (delay, rest, (_, of_user)) = match kind {
            "slow" => {
                let (delay, rest) = rest.split_once('-').unwrap_or((rest, "slow"));
                (humantime::parse_duration(delay).ok()?, rest, words.next()?)
            }
            kind => (Duration::ZERO, rest, words.find(|(word, _)| *word == kind)?),
        };
        // The NAME of `NAME` or `NAME-ANYTHING`.
        let name = rest.split('-').next().filter(|name| is_user_name(name))?;
        Some(CodeEffect::Accept { subject: of_user(name.to_owned()), delay })
    }
}

/// The errcode of a text such as `err-40029-ANYTHING`.
pub fn parse_errcode(text: &str) -> Option<i64> {
    let rest = text.strip_prefix("err-")?;
    // The number may be negative.
    let (sign, digits) = rest.strip_prefix('-').map_or((1, rest), |digits| (-1, digits));
    let number: u32 = digits.split('-').next()?.parse().ok()?;
    Some(sign * i64::from(number))
}
