//! Exchanges of codes: which API each kind of app has, what is sent, and what a response contains.
//!
//! Mini Programs have code2Session (auth.code2Session, `GET /sns/jscode2session`), all others
//! `GET /sns/oauth2/access_token` (公众号网页授权, 网站应用微信登录, 移动应用微信登录). Both have the
//! same parameters, but for the name of the code, and report the same errcodes.

use http::Method;

use super::reply::Exchanged;
use super::transport::{Call, Response};
use super::{Code, WeChatError};
use crate::config::{App, AppKind};

/// Path, and name of the parameter with the code.
const fn api(kind: AppKind) -> (&'static str, &'static str) {
    match kind {
        AppKind::MiniProgram => ("/sns/jscode2session", "js_code"),
        AppKind::OfficialAccount | AppKind::Website | AppKind::Mobile => {
            ("/sns/oauth2/access_token", "code")
        }
    }
}

/// The query of an exchange. It contains the app secret.
pub fn query<'a>(app: &'a App, code: &'a Code) -> [(&'a str, &'a str); 4] {
    let (_, code_name) = api(app.kind);
    [
        ("appid", app.app_id.as_str()),
        ("secret", app.secret.expose()),
        (code_name, code.0.expose()),
        ("grant_type", "authorization_code"),
    ]
}

/// The call of an exchange with this query.
pub fn call<'a>(app: &App, query: &'a [(&'a str, &'a str)]) -> Call<'a> {
    let (path, _) = api(app.kind);
    Call { method: Method::GET, path, query, json: None }
}

/// What a response contains.
///
/// # Errors
/// The error that WeChat reports, or what is wrong with its response.
pub fn exchanged(app: &App, code: &Code, response: &Response) -> Result<Exchanged, WeChatError> {
    let reply = response.reply([app.secret.expose(), code.0.expose()])?;
    let exchanged = match app.kind {
        AppKind::MiniProgram => reply.into_exchanged(&app.app_id),
        AppKind::OfficialAccount | AppKind::Website | AppKind::Mobile => {
            reply.into_oauth_exchanged(&app.app_id)
        }
    };
    exchanged.map_err(|error| error.at(&response.destination))
}
