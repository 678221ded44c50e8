//! `[internal]`: the listener of the API for services, and what each service may do there.

pub mod api_path;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::DeValue;

use self::api_path::ApiPath;
use super::RestartOnly;
use super::app::App;
use super::server::tls::{self, TlsSection};
use crate::config::Secrets;
use crate::config::document::from_value::{FromValue, text, word};
use crate::config::document::table::{Located, Table, values};
use crate::config::value::listeners::overlap;
use crate::config::value::name::report_invalid_name;
use crate::config::value::secret::{REFERENCE_HELP, read_any_secret};
use crate::identity::AppId;
use crate::identity::secret::Secret;

/// The section `[internal]`.
#[derive(Clone, Debug, PartialEq)]
pub struct InternalSection {
    pub listen: InternalAddress,
    pub tls: Option<TlsSection>,
    /// The services that may call. No two have the same name or the same token.
    pub callers: Vec<Caller>,
    /// Paths of WeChat's API that may be called through the gateway.
    pub wechat_paths: Vec<ApiPath>,
}

/// Where the listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InternalAddress {
    Tcp(SocketAddr),
    /// The path of a socket.
    Unix(PathBuf),
}

/// A service with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// For the access log.
    pub name: String,
    pub token: Secret,
    /// `None`: everything is allowed.
    pub rights: Option<Rights>,
}

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    pub apps: Vec<AppId>,
    pub allow: Vec<Operation>,
    /// Narrows `internal.wechat_paths`.
    pub wechat_paths: Option<Vec<ApiPath>>,
}

/// A part of the API, by the first segment of the path after `/v1/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    OpenData,
    SessionKey,
    PhoneNumber,
    AccessToken,
    WeChat,
}

impl Operation {
    pub const ALL: [(&'static str, Self); 5] = [
        ("open-data", Self::OpenData),
        ("session-key", Self::SessionKey),
        ("phone-number", Self::PhoneNumber),
        ("access-token", Self::AccessToken),
        ("wechat", Self::WeChat),
    ];
}

/// Keys that a reload cannot change.
pub const RESTART_ONLY: &[RestartOnly] = &[("internal.listen", |a, b| {
    a.internal.as_ref().map(|section| &section.listen)
        == b.internal.as_ref().map(|section| &section.listen)
})];

/// The name of the only caller, if its token is not in a list.
const ONLY_CALLER: &str = "internal";

/// In characters.
const SHORTEST_TOKEN: usize = 32;

/// Reads the section. Without it, there is no such listener. `taken` are the other listeners, with
/// the keys that configure them. `None` in the result of a section that is there: a problem was
/// reported.
pub fn read(
    root: &Table<'_>,
    taken: &[(&str, SocketAddr)],
    apps: &[App],
    secrets: Secrets,
) -> Option<InternalSection> {
    let section = root.optional_table("internal")?;
    let listen = section.get::<InternalAddress>("listen");
    let tls = section.optional_table("tls").map(|table| tls::read_one(table, secrets));
    let allow_plain_http = section.get_or("allow_plain_http", false);
    if let Some(listen) = &listen {
        check_listener(&section, listen, taken, tls.is_some(), allow_plain_http);
    }
    let wechat_paths = section.list::<ApiPath>("wechat_paths").unwrap_or_default();
    for path in &wechat_paths {
        report_never_allowed(&section, path);
    }
    let wechat_paths = values(wechat_paths);
    let callers = read_callers(&section, apps, &wechat_paths, secrets);
    let default = InternalAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 9191)));
    let has_address = listen.is_some() || !section.has("listen");
    section.finish();
    has_address.then(|| InternalSection {
        listen: listen.map_or(default, |listen| listen.value),
        tls,
        callers,
        wechat_paths,
    })
}

fn check_listener(
    section: &Table<'_>,
    listen: &Located<InternalAddress>,
    taken: &[(&str, SocketAddr)],
    is_tls: bool,
    allow_plain_http: bool,
) {
    let InternalAddress::Tcp(address) = listen.value else { return };
    for (key, _) in taken.iter().filter(|(_, other)| overlap(*other, address)) {
        let help = "the internal API needs a listener of its own: choose another port";
        section.problem(listen, format!("is the address of {key}"), help);
    }
    if address.ip().is_loopback() || is_tls {
        return;
    }
    if allow_plain_http {
        let message = "other machines can connect without TLS: tokens, phone numbers and \
                       access tokens can be read on the network";
        section.warn(listen, message);
    } else {
        section.problem(
            listen,
            "other machines could connect without TLS",
            "listen on a loopback address, set internal.tls, or set allow_plain_http = true",
        );
    }
}

fn report_never_allowed(section: &Table<'_>, path: &Located<ApiPath>) {
    if path.value.is_never_allowed() {
        let message = format!("\"{}\" is never allowed", path.value.as_str());
        section.problem(path, message, "its response has a secret, or the gateway calls it itself");
    }
}

fn read_callers(
    section: &Table<'_>,
    apps: &[App],
    allowed: &[ApiPath],
    secrets: Secrets,
) -> Vec<Caller> {
    section.report_missing("token", REFERENCE_HELP);
    let is_list = section.raw("token").is_some_and(|raw| raw.get_ref().is_array());
    let mut callers = Vec::new();
    if !is_list && !section.is_listing() {
        let token = read_token(section, "token", secrets);
        callers.extend(token.map(|token| Caller {
            name: ONLY_CALLER.to_owned(),
            token: token.value,
            rights: None,
        }));
        return callers;
    }
    let mut names: HashMap<String, String> = HashMap::new();
    for listed in section.tables("token") {
        let name = listed.require::<String>("name");
        if let Some(name) = &name {
            report_invalid_name(&listed, name);
        }
        if let Some(name) = &name
            && let Some(first) = names.insert(name.value.clone(), name.key.clone())
        {
            listed.problem(name, "is the name of another token", format!("the first is {first}"));
        }
        listed.report_missing("token", REFERENCE_HELP);
        let token = read_token(&listed, "token", secrets);
        if let Some(token) = token.as_ref().filter(|_| secrets == Secrets::Load)
            && let Some(other) = callers.iter().find(|other| other.token == token.value)
        {
            let message = format!("is the token of \"{}\", too", other.name);
            listed.problem(token, message, "openssl rand -base64 32");
        }
        let rights = read_rights(&listed, apps, allowed);
        listed.finish();
        if let (Some(name), Some(token)) = (name, token) {
            callers.push(Caller { name: name.value, token: token.value, rights: Some(rights) });
        }
    }
    callers
}

fn read_token(
    section: &Table<'_>,
    name: &'static str,
    secrets: Secrets,
) -> Option<Located<Secret>> {
    let token = read_any_secret(section, name, secrets)?;
    if secrets == Secrets::Load && token.value.expose().len() < SHORTEST_TOKEN {
        let message = format!("is shorter than {SHORTEST_TOKEN} characters");
        section.problem(&token, message, "openssl rand -base64 32");
    }
    Some(token)
}

fn read_rights(section: &Table<'_>, apps: &[App], allowed: &[ApiPath]) -> Rights {
    let listed_apps = section.require_some::<AppId>("apps", "as [\"wx0123456789abcdef\"]");
    for app_id in &listed_apps {
        if !apps.iter().any(|app| app.app_id == app_id.value) {
            section.problem(app_id, "is not the app_id of an [[app]]", "");
        }
    }
    let allow = section.require_some::<Operation>("allow", "as [\"phone-number\"]");
    if let Some(access_token) = allow.iter().find(|one| one.value == Operation::AccessToken) {
        let message = "who has an access_token can call all of WeChat's API: prefer \"wechat\" \
                       with wechat_paths";
        section.warn(access_token, message);
    }
    let wechat_paths = section.list::<ApiPath>("wechat_paths");
    for path in wechat_paths.iter().flatten() {
        report_never_allowed(section, path);
        if !allowed.iter().any(|parent| parent.covers(&path.value)) {
            let message = format!("\"{}\" is not in internal.wechat_paths", path.value.as_str());
            section.problem(path, message, "this list only narrows internal.wechat_paths");
        }
    }
    let is_useless = allowed.is_empty() || wechat_paths.as_ref().is_some_and(Vec::is_empty);
    if let Some(wechat) = allow.iter().find(|one| one.value == Operation::WeChat)
        && is_useless
    {
        section.warn(wechat, "no path of WeChat's API can be called: wechat_paths is empty");
    }
    Rights {
        apps: values(listed_apps),
        allow: values(allow),
        wechat_paths: wechat_paths.map(values),
    }
}

impl FromValue for InternalAddress {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str = "an address, as \"127.0.0.1:9191\" or \"unix:/run/wxgate.sock\"";
        let given = text(value, EXPECTED)?;
        if let Some(path) = given.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(format!("\"{given}\" is not the absolute path of a socket"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        SocketAddr::from_value(value).map(Self::Tcp)
    }
}

impl FromValue for Operation {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &Self::ALL)
    }
}
