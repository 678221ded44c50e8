//! The gateway's own pages for users: why a login did not succeed, and what to do.
//!
//! A page is one HTML file in English or Chinese without scripts and external assets. It may not be
//! framed by any site, and its links send no `Referer`, because the URL of a callback contains a
//! code.

use std::fmt::Write as _;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, RETRY_AFTER, VARY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use sha2::{Digest, Sha256};

use super::page_request::Language;
use crate::message::html::escaped;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::{ERROR_HEADER, Rejection};

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{margin:0;min-height:100vh;display:flex;align-items:center;justify-content:center;\
font:16px/1.6 system-ui,-apple-system,\"PingFang SC\",\"Microsoft YaHei\",sans-serif;\
background:#f5f5f5;color:#1a1a1a}\
main{box-sizing:border-box;width:100%;max-width:28rem;padding:2rem 1.5rem}\
h1{font-size:1.375rem;line-height:1.3;margin:0 0 .75rem}\
p{margin:0 0 1.25rem}\
a{display:inline-block;padding:.75rem 1.5rem;border-radius:.5rem;background:#06703f;color:#fff;\
text-decoration:none}\
small{font-size:.875rem;color:#595959;overflow-wrap:anywhere}\
@media(prefers-color-scheme:dark){body{background:#141414;color:#ececec}small{color:#a6a6a6}}";

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// Why a page is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This site's login works only in WeChat.
    OnlyInWeChat,
    /// This site's login works only outside of WeChat.
    OnlyOutside,
    /// The user declined.
    Denied,
    /// This browser has not begun the login, or too long ago, or the request is malformed.
    NotBegun,
    /// The login failed.
    Failed(Rejection),
}

impl Reason {
    /// The rejection whose status and `error` word the page has.
    pub fn rejection(&self) -> Rejection {
        match self {
            Self::OnlyInWeChat => Rejection::NotAllowed("open this page in WeChat"),
            Self::OnlyOutside => Rejection::NotAllowed("open this page outside of WeChat"),
            Self::Denied => Rejection::NotAllowed("the user declined the login"),
            Self::NotBegun => {
                Rejection::BadRequest("this browser has not begun this login, or too long ago")
            }
            Self::Failed(rejection) => rejection.clone(),
        }
    }

    /// Title and text.
    fn texts(&self, language: Language) -> (&'static str, &'static str) {
        use Rejection::{
            InvalidCode, LoginRefused, LoginUnavailable, Overloaded, RateLimited, SnapshotUser,
            StoreUnavailable, UserBlocked, WeChatBusy, WeChatTimeout,
        };

        let (english, chinese) = match self {
            Self::OnlyInWeChat => (
                (
                    "Open this page in WeChat",
                    "You can log in to this page only in WeChat. Send its link to yourself in WeChat, and open it there.",
                ),
                (
                    "请在微信中打开",
                    "此页面只能在微信中登录。请将链接发送到微信，然后在微信中打开。",
                ),
            ),
            Self::OnlyOutside => (
                (
                    "Open this page in a browser",
                    "You cannot log in to this page in WeChat. Open the menu at the top right, and choose “Open in browser”.",
                ),
                (
                    "请在浏览器中打开",
                    "此页面不支持在微信中登录。请点击右上角菜单，选择在浏览器中打开。",
                ),
            ),
            Self::Denied => (
                ("You are not logged in", "You declined the login. You can try again."),
                ("尚未登录", "您已取消授权，可以重新登录。"),
            ),
            Self::NotBegun => (
                (
                    "This login is no longer valid",
                    "It took too long, or you began it in another browser. Log in again. If this page appears again, allow cookies for this site.",
                ),
                (
                    "登录已失效",
                    "登录超时，或不是在当前浏览器中发起的。请重新登录。如果仍然失败，请允许本网站使用 Cookie。",
                ),
            ),
            Self::Failed(InvalidCode) => (
                (
                    "This login is no longer valid",
                    "It was used before, or it has expired. Log in again.",
                ),
                ("登录已失效", "登录凭证已使用或已过期，请重新登录。"),
            ),
            Self::Failed(SnapshotUser) => (
                (
                    "Open the full page",
                    "WeChat shows a preview of this page, in which you cannot log in. Tap “使用完整服务” (use full service) at the bottom of the screen.",
                ),
                (
                    "请使用完整服务",
                    "当前是微信的快照页，无法登录。请点击屏幕底部的“使用完整服务”。",
                ),
            ),
            Self::Failed(UserBlocked | LoginRefused(_)) => (
                ("You cannot log in", "Logins of this account are not allowed."),
                ("无法登录", "此账号已被限制登录。"),
            ),
            Self::Failed(
                RateLimited { .. }
                | WeChatBusy { .. }
                | WeChatTimeout { .. }
                | StoreUnavailable
                | LoginUnavailable { .. }
                | Overloaded,
            ) => (
                (
                    "Please try again",
                    "The login is not available at the moment. Try again in a few seconds.",
                ),
                ("请稍后重试", "登录服务暂时不可用，请几秒后重试。"),
            ),
            Self::Failed(_) => (
                (
                    "The login failed",
                    "There is a problem with the login of this site. If it happens again, contact the site, and give the request number below.",
                ),
                (
                    "登录失败",
                    "本网站的登录服务出现问题。如果再次出现，请将下方的请求编号告知网站管理员。",
                ),
            ),
        };
        match language {
            Language::English => english,
            Language::Chinese => chinese,
        }
    }

    /// The text of the operator's login hook, which is shown instead of the gateway's.
    fn given_text(&self) -> Option<&str> {
        match self {
            Self::Failed(Rejection::LoginRefused(message)) => message.as_deref(),
            _ => None,
        }
    }

    /// Whether another attempt may succeed.
    fn may_retry(&self) -> bool {
        let is_final = |rejection: &Rejection| {
            matches!(
                rejection,
                Rejection::SnapshotUser | Rejection::UserBlocked | Rejection::LoginRefused(_)
            )
        };
        match self {
            Self::OnlyInWeChat | Self::OnlyOutside => false,
            Self::Denied | Self::NotBegun => true,
            Self::Failed(rejection) => !is_final(rejection),
        }
    }
}

/// A page. `again` is the URL at which the login can be begun again.
pub fn page(reason: &Reason, language: Language, again: &str, request_id: &str) -> OwnResponse {
    let rejection = reason.rejection();
    let (title, text) = reason.texts(language);
    let text = escaped(reason.given_text().unwrap_or(text));
    let (lang, button, number) = match language {
        Language::English => ("en", "Log in again", "Request number"),
        Language::Chinese => ("zh-CN", "重新登录", "请求编号"),
    };
    let mut html = format!(
        "<!doctype html>\n<html lang=\"{lang}\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<main>\n<h1>{title}</h1>\n<p>{text}</p>\n"
    );
    if reason.may_retry() {
        // Writing to a string cannot fail.
        let _ = writeln!(html, "<p><a href=\"{}\">{button}</a></p>", escaped(again));
    }
    let _ = writeln!(html, "<small>{number}: {}</small>\n</main>\n</html>", escaped(request_id));

    let mut response = OwnResponse::empty(rejection.status());
    response.header(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response.body = html.into_bytes();
    response.header(ERROR_HEADER.clone(), HeaderValue::from_static(rejection.error()));
    response.header(VARY, HeaderValue::from_static("Accept-Language"));
    response.header(CONTENT_SECURITY_POLICY, POLICY.clone());
    response.header(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response.header(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(seconds) = rejection.retry_after() {
        response.header(RETRY_AFTER, seconds.into());
    }
    without_referrer(&mut response);
    response
}

/// A redirect. Neither its URL nor that of the request appears in a `Referer`.
pub fn redirect(location: &str) -> OwnResponse {
    let mut response = OwnResponse::empty(302);
    // The caller has checked it, so that it is a legal value.
    let location = HeaderValue::try_from(location).unwrap_or(HeaderValue::from_static("/"));
    response.header(LOCATION, location);
    response.header(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    without_referrer(&mut response);
    response
}

fn without_referrer(response: &mut OwnResponse) {
    response.header(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_escaped() {
        let again = "/login/start?return=%2F\"'><script>&";
        let response = page(&Reason::Denied, Language::English, again, "<id>");
        let html = String::from_utf8(response.body).unwrap();
        assert!(html.contains("return=%2F&quot;&#39;&gt;&lt;script&gt;&amp;\""), "{html}");
        assert!(html.contains("&lt;id&gt;") && !html.contains("<script") && !html.contains("<id>"));
        assert_eq!(response.status, 403);
        let refused = Rejection::LoginRefused(Some("<b>\"ask\" us & wait</b>".into()));
        for (language, title) in [
            (Language::English, "<h1>You cannot log in</h1>"),
            (Language::Chinese, "<h1>无法登录</h1>"),
        ] {
            let response = page(&Reason::Failed(refused.clone()), language, again, "id");
            let html = String::from_utf8(response.body).unwrap();
            let text = "<p>&lt;b&gt;&quot;ask&quot; us &amp; wait&lt;/b&gt;</p>";
            assert!(html.contains(title) && html.contains(text), "{html}");
            assert!(!html.contains("<a "), "{html}");
        }
    }
}
