//! The configuration, validated: plain data whose types cannot hold invalid values.
//!
//! `check` and `explain` use [`Config::load`]; `run` and a reload use [`Config::read`]. Both read
//! one TOML file and the files that it includes, and collect every problem with its position. The
//! result is either a complete [`Config`] or all the problems. Other folders receive only their own
//! section. All keys, their defaults and meanings are in `config/reference.toml`; a test compares
//! it with this code.
//!
//! - `section` has one file for each section of the configuration file: its type, its keys with
//!   defaults and checks, and which of them are restart-only.
//! - `value` has the types that several sections share: paths, hosts, rates, headers, secrets, PEM
//!   files.
//! - `document` reads TOML and reports problems. It knows none of the sections.
//! - `read` reads the sections in order, `restart_only` collects their restart-only keys, and
//!   `changes` lists what a reload changed.

mod changes;
mod document;
mod read;
mod restart_only;
mod section;
mod value;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::changes::{Changes, listed};
use self::document::problems::SourceFile;
pub use self::document::problems::{Diagnostic, Problem, Problems};
pub use self::document::table::Place;
use self::document::{file, include};
pub use self::section::admin::AdminSection;
pub use self::section::app::{App, AppKind};
pub use self::section::browser::{Browser, Scope};
pub use self::section::endpoints::EndpointsSection;
pub use self::section::forward_auth::ForwardAuthSection;
pub use self::section::identity::jwt::JwtSection;
pub use self::section::identity::{IdentitySection, Preset};
pub use self::section::internal::api_path::ApiPath;
pub use self::section::internal::{Caller, InternalAddress, InternalSection, Operation, Rights};
pub use self::section::limits::LimitsSection;
pub use self::section::log::{LogDestination, LogFormat, LogLevel, LogSection};
pub use self::section::login::hook::{HookSection, OnFailure};
pub use self::section::login::{LoginForms, LoginSection};
pub use self::section::open_data::OpenDataSection;
pub use self::section::route::{
    Access, Cors, HeaderEdits, Origins, Preflight, Rewriting, Route, Share, StaticResponse, Target,
    Timeouts,
};
pub use self::section::scan::ScanSection;
pub use self::section::server::ServerSection;
pub use self::section::server::tls::{Certificate, TlsSection};
pub use self::section::session::redis::{RedisAddress, RedisSection, RedisServers, RedisTls};
pub use self::section::session::snapshot::SnapshotSection;
pub use self::section::session::{Carriers, SessionSection, SharedSection};
pub use self::section::ticket::TicketSection;
pub use self::section::upstream::{
    Balance, CheckKind, Ejection, HashKey, HealthCheck, Protocol, Retry, RetryOn, RouteRetry,
    ServerAddress, ServerEntry, Upstream, UpstreamHost, UpstreamTls,
};
pub use self::section::wechat::WeChatSection;
pub use self::value::base_url::BaseUrl;
pub use self::value::host::HostPattern;
pub use self::value::path::RoutePath;
pub use self::value::rate::Rate;
use crate::message::error_body::ErrorBody;

/// A whole configuration.
#[derive(Debug)]
pub struct Config {
    pub server: ServerSection,
    pub admin: AdminSection,
    pub forward_auth: ForwardAuthSection,
    pub wechat: WeChatSection,
    pub apps: Vec<App>,
    pub session: SessionSection,
    pub login: LoginSection,
    pub endpoints: EndpointsSection,
    pub identity: IdentitySection,
    pub limits: LimitsSection,
    pub log: LogSection,
    pub upstreams: Vec<Upstream>,
    pub routes: Vec<Route>,
    /// `None`: errors have the gateway's own format.
    pub errors: Option<ErrorBody>,
    /// `None`: there is no internal listener.
    pub internal: Option<InternalSection>,
    pub open_data: OpenDataSection,
    pub browsers: Vec<Browser>,
    pub ticket: TicketSection,
    /// `None`: it is off.
    pub scan: Option<ScanSection>,
    /// Warnings, shown at the start and by `check`.
    pub warnings: Vec<String>,
}

/// Whether secrets are read, or may be missing, as in CI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    Load,
    /// Secrets, keys and certificates are not read, and may be missing; the result has none.
    Ignore,
}

/// A configuration, or the problems in it, and the files it was read from.
pub struct Loaded {
    /// The error has every problem found, each with its place.
    pub config: Result<Config, Problems>,
    pub files: Files,
}

/// The files of a configuration. When one of them changes, the configuration may have changed.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Files that were read, or could not be read.
    listed: BTreeSet<PathBuf>,
    /// Patterns by which more files are found.
    patterns: BTreeSet<String>,
}

impl Files {
    /// Adds the files of another load.
    pub fn add(&mut self, other: &Self) {
        self.listed.extend(other.listed.iter().cloned());
        self.patterns.extend(other.patterns.iter().cloned());
    }

    /// The files that were listed, even if they do not exist, and those that the patterns match at
    /// present.
    pub fn find(&self) -> Vec<PathBuf> {
        let found = self.patterns.iter().flat_map(|pattern| include::find(pattern));
        self.listed.iter().cloned().chain(found.flatten()).collect()
    }
}

impl Config {
    /// Reads and validates a file, its included files, and the secrets and certificates that it
    /// names.
    ///
    /// # Errors
    /// Every problem found, each with its place.
    pub fn load(path: &Path, secrets: Secrets) -> Result<Self, Problems> {
        Self::read(path, secrets, None).config
    }

    /// Like [`Config::load`], and also returns the files that were read. If the configuration is to
    /// replace the one that is `running`, changes of restart-only keys are problems too.
    pub fn read(path: &Path, secrets: Secrets, running: Option<&Self>) -> Loaded {
        let name = path.display().to_string();
        let read = match running {
            // At the start, the file may be a pipe.
            None => std::fs::read(path).and_then(file::decode),
            Some(_) => file::read_text(path),
        };
        match read {
            Ok(text) => read::read(SourceFile { name, text }, secrets, running),
            Err(error) => Loaded {
                config: Err(Problems::unreadable(&name, &error)),
                files: Files { listed: [path.to_owned()].into(), ..Files::default() },
            },
        }
    }

    /// Like [`Config::load`], for a text; `name` is the file name shown in problems. Relative paths
    /// in the text are relative to the working directory.
    ///
    /// # Errors
    /// Every problem found, each with its place.
    pub fn parse(name: &str, text: &str, secrets: Secrets) -> Result<Self, Problems> {
        let source = SourceFile { name: name.to_owned(), text: text.to_owned() };
        read::read(source, secrets, None).config
    }

    /// The longest time of a login once its request was read, without that of a shared store: in
    /// the queue, at WeChat, and at the login hook.
    pub fn longest_login(&self) -> Duration {
        let hook = self.login.hook.as_ref().map_or(Duration::ZERO, |hook| hook.timeout);
        self.wechat.queue_timeout + self.wechat.timeout + hook
    }

    /// Every certificate that the gateway presents: on its listeners, and to servers.
    pub fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        let internal = self.internal.as_ref().and_then(|section| section.tls.as_ref());
        let listeners = self.server.tls.iter().chain(internal).flat_map(TlsSection::all);
        let upstreams = self.upstreams.iter().filter_map(|upstream| upstream.tls.as_ref());
        listeners.chain(upstreams.filter_map(|tls| tls.client.as_ref()))
    }

    /// A one-line summary, such as `2 listeners, 1 app, 3 upstreams, 7 routes, sessions in memory`.
    /// It counts all listeners: public, redirect, forward-auth and admin.
    pub fn summary(&self) -> String {
        let listeners =
            self.server.listen.len() + self.server.redirect.len() + self.forward_auth.listen.len();
        let counts = [
            // There is always an admin listener.
            (listeners + 1, "listener"),
            (self.apps.len(), "app"),
            (self.upstreams.len(), "upstream"),
            (self.routes.len(), "route"),
        ];
        let counts = counts
            .map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" }));
        let store = if self.session.shared.is_some() { "Redis" } else { "memory" };
        format!("{}, sessions in {store}", counts.join(", "))
    }

    /// A line about what other gateways would not know. `None`: there is nothing of this kind, or a
    /// shared store has it.
    pub fn one_gateway(&self) -> Option<&'static str> {
        let is_on = !self.browsers.is_empty() || self.ticket.enabled;
        (is_on && self.session.shared.is_none()).then_some(
            "without [session.redis], sessions, logins in progress, tickets and scans are known to \
             one gateway only",
        )
    }

    /// Every key that a file may have, as `section.key` or `section[].key`.
    pub fn known_keys() -> Vec<String> {
        read::known_keys()
    }

    /// The keys that a reload cannot change.
    pub fn restart_only_keys() -> Vec<&'static str> {
        restart_only::keys().collect()
    }
}
