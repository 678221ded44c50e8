//! The HTML of the login pages: short, for phones and desktops, without scripts and other files.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY};
use qrcode::QrCode;

use super::super::mini_program_code::draw;
use super::super::{Response, response};
use super::{LoginLink, LoginPage};
use crate::message::html::escaped;

/// The users that have a link.
const USERS: [&str; 3] = ["alice", "bob", "carol"];

/// Side of the QR code, in pixels.
const QR_WIDTH: usize = 280;

const STYLE: &str = "\
    :root{color-scheme:light dark}\
    body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:22rem;padding:1.5rem 1rem;\
    overflow-wrap:anywhere}\
    h1{font-size:1.25rem}\
    a.choice{display:block;margin:.6rem 0;padding:.7rem;border-radius:.4rem;text-align:center;\
    text-decoration:none;background:#06703f;color:#fff}\
    a.other{background:none;color:inherit;border:1px solid #8888}\
    img{display:block;margin:1rem auto;width:14rem;image-rendering:pixelated}\
    small{opacity:.8}";

/// The page that lets a user choose.
pub fn choices(link: &LoginLink) -> Response {
    let mut body = String::new();
    let (title, how) = match link.page {
        LoginPage::OfficialAccount => (
            "WeChat login (simulated) 微信授权登录（模拟）",
            "Choose the user of this phone. 选择这台手机的用户。",
        ),
        LoginPage::Website => (
            "WeChat QR login (simulated) 微信扫码登录（模拟）",
            "A phone would scan this code. Choose its user. 选择扫码的用户。",
        ),
    };
    // Writing to a string cannot fail.
    let _ =
        write!(body, "<h1>{title}</h1><p>App <b>{}</b>, {}</p>", escaped(&link.app_id), link.scope);
    if link.page == LoginPage::Website
        && let Some(image) = qr_code()
    {
        let _ = write!(body, "<img alt=\"QR\" src=\"data:image/png;base64,{image}\">");
    }
    let _ = write!(body, "<p>{how}</p>");
    let mut add = |id: &str, class: &str, text: &str, user: &str, answer: &str| {
        let url = escaped(&link.with_choice(user, answer));
        let _ = write!(body, "<a class=\"choice {class}\" id=\"{id}\" href=\"{url}\">{text}</a>");
    };
    for user in USERS {
        add(user, "", &format!("Allow as {user} 允许"), user, "allow");
    }
    add("slow", "other", "alice, slowly 两秒后", "alice", "slow");
    if link.page == LoginPage::OfficialAccount {
        add("snapshot", "other", "Snapshot of the page 快照页", "snapshot", "snapshot");
    }
    add("deny", "other", "Deny 拒绝", "", "deny");
    add("close", "other", "Deny, without a redirect 拒绝并关闭", "", "close");
    page(title, &body)
}

/// The page after a denial without a redirect.
pub fn closed() -> Response {
    let title = "Denied 已拒绝";
    page(title, &format!("<h1>{title}</h1><p>WeChat has closed the page. 页面已关闭。</p>"))
}

/// The page of an error, with WeChat's number.
pub fn error(number: u32, what: &str) -> Response {
    let title = "The link is wrong 链接有误";
    page(title, &format!("<h1>{title}</h1><p>{}</p><p>错误码:{number}</p>", escaped(what)))
}

/// The page that says who uses this browser.
pub fn browser_user(name: &str) -> Response {
    let title = "The user of this browser 此浏览器的用户";
    let now = match name {
        "" => "Login pages ask who the user is. 登录时选择用户。".to_owned(),
        name => format!("snsapi_base logs in as {name} without asking. 静默登录。"),
    };
    let mut body = format!("<h1>{title}</h1><p>{now}</p>");
    for user in USERS {
        let _ = write!(body, "<a class=\"choice\" href=\"/sandbox/user?name={user}\">{user}</a>");
    }
    body.push_str("<a class=\"choice other\" href=\"/sandbox/user?name=\">Ask 每次选择</a>");
    page(title, &body)
}

fn page(title: &str, body: &str) -> Response {
    let html = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body>{body}\
         <p><small>wxgate sandbox</small></p></body></html>\n"
    );
    let mut response = response(200, "text/html; charset=utf-8", html);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'";
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

/// An image in place of WeChat's QR code, in base64.
fn qr_code() -> Option<String> {
    let code = QrCode::new("https://sandbox.invalid/connect/confirm").ok()?;
    draw(&code, QR_WIDTH).map(|image| STANDARD.encode(image))
}
