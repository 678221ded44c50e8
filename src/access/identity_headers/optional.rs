//! The identity headers that are off by default: the user id, the signed identity, and those of
//! WeChat Cloud Run.

use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};

use super::Unwritable;
use crate::access::signed_identity::SignedIdentity;
use crate::config::{AppKind, Config, Preset};
use crate::identity::{AppId, Identity, UnionId, UserId};
use crate::session::Session;

static CLOUD_RUN_OPENID: HeaderName = HeaderName::from_static("x-wx-openid");
static CLOUD_RUN_APP_ID: HeaderName = HeaderName::from_static("x-wx-appid");
static CLOUD_RUN_UNIONID: HeaderName = HeaderName::from_static("x-wx-unionid");
static CLOUD_RUN_SOURCE: HeaderName = HeaderName::from_static("x-wx-source");

/// The source of a request that a Mini Program sends.
const FROM_MINI_PROGRAM: &str = "wx_client";

/// The identity headers that are off by default.
pub struct OptionalHeaders {
    user_id: Option<HeaderName>,
    pub jwt: Option<HeaderName>,
    /// Signs the value of `jwt`. `None` if no request is served, as in `wxgate explain`.
    pub signed: Option<Arc<SignedIdentity>>,
    /// The apps whose users have the headers of WeChat Cloud Run; `None` if the preset is off.
    cloud_run: Option<Vec<AppId>>,
}

impl OptionalHeaders {
    pub fn new(config: &Config) -> Self {
        let cloud_run = config.identity.preset.map(|Preset::WxCloudRun| {
            let apps = config.apps.iter().filter(|app| app.kind == AppKind::MiniProgram);
            apps.map(|app| app.app_id.clone()).collect()
        });
        Self {
            user_id: config.identity.user_id_header.clone(),
            jwt: config.identity.jwt.as_ref().map(|jwt| jwt.header.clone()),
            signed: None,
            cloud_run,
        }
    }

    /// Adds an app whose users have the headers of WeChat Cloud Run, if the preset is on.
    pub fn add_mini_program(&mut self, app_id: AppId) {
        if let Some(apps) = &mut self.cloud_run {
            apps.push(app_id);
        }
    }

    pub fn is_on(&self) -> bool {
        self.user_id.is_some() || self.jwt.is_some() || self.cloud_run.is_some()
    }

    /// The signed identity; `None` if it is off.
    pub fn jwt(
        &self,
        session: &Session,
        audience: usize,
    ) -> Result<Option<HeaderValue>, Unwritable> {
        if self.jwt.is_none() {
            return Ok(None);
        }
        let signed = self.signed.as_ref().ok_or(Unwritable)?;
        signed.value(session, audience).map(Some).ok_or(Unwritable)
    }

    /// Calls `each` with every header, and its value if it has one.
    // Not in the code for every request: most gateways have none of these headers.
    #[inline(never)]
    pub fn each<'a>(
        &'a self,
        identity: Option<&'a Identity>,
        jwt: Option<&'a HeaderValue>,
        mut each: impl FnMut(&'a HeaderName, Option<&'a [u8]>),
    ) {
        if let Some(name) = &self.user_id {
            let user_id = identity.and_then(|identity| identity.user_id.as_ref());
            each(name, user_id.map(UserId::as_str).map(str::as_bytes));
        }
        if let Some(name) = &self.jwt {
            each(name, jwt.map(HeaderValue::as_bytes));
        }
        if let Some(apps) = &self.cloud_run {
            let identity = identity.filter(|identity| apps.contains(&identity.app_id));
            let unionid = identity.and_then(|identity| identity.unionid.as_ref());
            for (name, value) in [
                (&CLOUD_RUN_OPENID, identity.map(|identity| identity.openid.as_str())),
                (&CLOUD_RUN_APP_ID, identity.map(|identity| identity.app_id.as_str())),
                (&CLOUD_RUN_UNIONID, unionid.map(UnionId::as_str)),
                (&CLOUD_RUN_SOURCE, identity.map(|_| FROM_MINI_PROGRAM)),
            ] {
                each(name, value.map(str::as_bytes));
            }
        }
    }
}
