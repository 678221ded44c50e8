//! The page of the demo: logins of a browser, and what a service with web pages gets.
//!
//! It is served by the demo's own service, behind the gateway, and trusts only the gateway's
//! headers. It has no external assets; its scripts are that of `deploy/web` and its own.

use std::fmt::Write as _;

use http::Method;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, VARY};

use crate::browser::page_request::Language;
use crate::listener::small_server::{Request, Response, response};
use crate::message::html::escaped;

/// The path of the page, and the prefix of all of its own paths.
pub const PATH: &str = "/demo/";

/// The prefix of what needs a session.
pub const PRIVATE: &str = "/demo/private";

const PICTURE: &str = "/demo/private/picture.svg";

const MEMBERS: &str = "/demo/private/";

const STYLE: &str = "\
    :root{color-scheme:light dark}[hidden]{display:none!important}\
    body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:40rem;padding:1rem;\
    overflow-wrap:anywhere}\
    h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:1.8rem}\
    .button,button{display:inline-block;margin:.2rem .4rem .2rem 0;padding:.5rem 1rem;\
    border:0;border-radius:.4rem;background:#06703f;color:#fff;font:inherit;\
    text-decoration:none;cursor:pointer}\
    table{border-collapse:collapse;width:100%;font-size:.85rem}\
    th,td{text-align:left;vertical-align:top;padding:.2rem .4rem;border-bottom:1px solid #8884}\
    th{width:35%}.own th,.own td{font-weight:bold}\
    img,svg{max-width:100%;height:auto}\
    code{font-size:.85rem}#failure{font-weight:bold}\
    .phone{border:1px solid #8888;border-radius:.8rem;padding:.8rem;margin-top:.8rem}";

/// The texts of the page.
struct Texts {
    lang: &'static str,
    title: &'static str,
    intro: &'static str,
    nobody: &'static str,
    log_in: &'static str,
    log_in_how: &'static str,
    members: &'static str,
    scan: &'static str,
    scan_how: &'static str,
    phone: &'static str,
    phone_scan: &'static str,
    phone_asks: &'static str,
    confirm: &'static str,
    deny: &'static str,
    user: &'static str,
    log_out: &'static str,
    picture: &'static str,
    picture_how: &'static str,
    load: &'static str,
    headers: &'static str,
    headers_how: &'static str,
    back: &'static str,
    members_only: &'static str,
}

const ENGLISH: Texts = Texts {
    lang: "en",
    title: "wxgate demo",
    intro: "This page is from a service behind the gateway. The service has no WeChat integration: \
            it reads the headers that the gateway writes.",
    nobody: "You are not logged in.",
    log_in: "Log in with WeChat",
    log_in_how: "The gateway redirects to a login page of WeChat, which is simulated here: that of \
                 websites, with a QR code, or, if the User-Agent is that of WeChat's own browser \
                 (MicroMessenger), that of official accounts.",
    members: "Open a page for members: the gateway redirects to the login",
    scan: "Log in by a scan with the Mini Program",
    scan_how: "A phone would scan this code. Here, the buttons below simulate the phone.",
    phone: "The phone of alice",
    phone_scan: "Scan the code",
    phone_asks: "Log this browser in?",
    confirm: "Confirm",
    deny: "Deny",
    user: "Logged in as",
    log_out: "Log out",
    picture: "A picture with a ticket",
    picture_how: "Requests for images in a Mini Program cannot have a session header. A ticket in the \
                  URL is valid for one request.",
    load: "Get a ticket and load the picture",
    headers: "What the service gets",
    headers_how: "The headers of your request as the gateway forwarded it: without its cookies, and \
                  with the identity that it has verified.",
    back: "Back",
    members_only: "A page for members. The gateway forwards only requests with a session to it.",
};

const CHINESE: Texts = Texts {
    lang: "zh",
    title: "wxgate 演示",
    intro: "本页面由网关后面的服务提供。服务没有对接微信，只读取网关写入的请求头。",
    nobody: "此浏览器尚未登录。",
    log_in: "微信登录",
    log_in_how: "网关会跳转到微信（此处为模拟）：普通浏览器打开网站应用的扫码页，微信内置浏览器\
                 （User-Agent 含 MicroMessenger）打开公众号的授权页。",
    members: "打开会员页面：网关会自动跳转到登录",
    scan: "用小程序扫码登录",
    scan_how: "正常情况下用手机扫描此码。这里由下面的按钮模拟手机。",
    phone: "alice 的手机",
    phone_scan: "扫码",
    phone_asks: "允许此浏览器登录？",
    confirm: "允许",
    deny: "拒绝",
    user: "已登录用户",
    log_out: "退出登录",
    picture: "用票据加载图片",
    picture_how: "小程序中的图片请求不能带会话请求头。URL 中的票据只能使用一次。",
    load: "获取票据并加载图片",
    headers: "服务收到的请求头",
    headers_how: "网关转发给服务的请求头：不含网关的 Cookie，并带有网关验证过的身份。",
    back: "返回",
    members_only: "会员页面。只有带有会话的请求才会被网关转发到这里。",
};

/// The response to a request for the page or a part of it. `None`: it is for something else.
///
/// `mini_program` is the app of the simulated phone.
pub fn respond(request: &Request, mini_program: &str) -> Option<Response> {
    let path = request.uri().path();
    if !path.starts_with(PATH) || request.method() != Method::GET {
        return None;
    }
    let script = |text: &'static str| response(200, "text/javascript; charset=utf-8", text);
    let mut response = match path {
        PATH => html(request, |body, texts| main(body, texts, request, mini_program)),
        MEMBERS => html(request, |body, texts| {
            let _ = write!(body, "<p>{}</p>", texts.members_only);
            user(body, texts, request);
            let _ = write!(body, "<p><a class=\"button\" href=\"{PATH}\">{}</a></p>", texts.back);
        }),
        "/demo/demo.js" => script(include_str!("demo.js")),
        "/demo/wxgate-scan.js" => script(include_str!("../../../deploy/web/wxgate-scan.js")),
        PICTURE => response(200, "image/svg+xml", picture(request)),
        _ => response(404, "text/plain", "not found\n"),
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}

fn html(request: &Request, write_body: impl FnOnce(&mut String, &Texts)) -> Response {
    let texts = match Language::of(request.headers()) {
        Language::English => &ENGLISH,
        Language::Chinese => &CHINESE,
    };
    let Texts { lang, title, .. } = texts;
    let mut page = format!(
        "<!DOCTYPE html><html lang=\"{lang}\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
    );
    write_body(&mut page, texts);
    page.push_str("</body></html>\n");
    let mut response = response(200, "text/html; charset=utf-8", page);
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept-Language"));
    let policy = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'; \
                  style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; \
                  frame-ancestors 'none'";
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

/// The body of the page.
fn main(body: &mut String, texts: &Texts, request: &Request, mini_program: &str) {
    // Writing to a string cannot fail.
    let _ = write!(body, "<p>{}</p><p id=\"failure\" role=\"alert\"></p>", texts.intro);
    if openid(request).is_some() {
        user(body, texts, request);
        let _ = write!(
            body,
            "<form method=\"post\" action=\"/logout\"><button id=\"logout\">{}</button></form>\
             <h2>{}</h2><p>{}</p><button id=\"load-picture\">{}</button>\
             <p><img id=\"picture\" alt=\"\" data-path=\"{PICTURE}\" hidden></p>\
             <p><code id=\"picture-url\"></code></p>",
            texts.log_out, texts.picture, texts.picture_how, texts.load,
        );
    } else {
        let _ = write!(
            body,
            "<p id=\"user\">{}</p>\
             <a class=\"button\" id=\"login\" href=\"/login/start?return={PATH}\">{}</a>\
             <p>{}</p><p><a id=\"members\" href=\"{MEMBERS}\">{}</a></p>\
             <h2>{}</h2><p>{}</p><div id=\"scan\" data-app=\"{}\"></div>\
             <div class=\"phone\"><p>{}</p><button id=\"phone-scan\">{}</button>\
             <div id=\"phone-steps\" hidden><p>{} <code id=\"phone-shows\"></code></p>\
             <button id=\"phone-confirm\">{}</button><button id=\"phone-deny\">{}</button></div>\
             </div>",
            texts.nobody,
            texts.log_in,
            texts.log_in_how,
            texts.members,
            texts.scan,
            texts.scan_how,
            escaped(mini_program),
            texts.phone,
            texts.phone_scan,
            texts.phone_asks,
            texts.confirm,
            texts.deny,
        );
    }
    headers(body, texts, request);
    body.push_str(
        "<script src=\"/demo/wxgate-scan.js\" defer></script>\
         <script src=\"/demo/demo.js\" defer></script>",
    );
}

/// Who is logged in, as the gateway says.
fn user(body: &mut String, texts: &Texts, request: &Request) {
    let openid = escaped(openid(request).unwrap_or_default());
    let _ = write!(body, "<p id=\"user\">{} <b>{openid}</b></p>", texts.user);
}

/// The headers of the request, those that the gateway has written first.
fn headers(body: &mut String, texts: &Texts, request: &Request) {
    let _ = write!(body, "<h2>{}</h2><p>{}</p><table>", texts.headers, texts.headers_how);
    let is_own = |name: &str| matches!(name, "x-openid" | "x-appid" | "x-unionid");
    for own in [true, false] {
        for (name, value) in request.headers() {
            if is_own(name.as_str()) != own {
                continue;
            }
            let class = if own { " class=\"own\"" } else { "" };
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let _ = write!(body, "<tr{class}><th>{name}</th><td>{}</td></tr>", escaped(&value));
        }
    }
    body.push_str("</table>");
}

/// A picture for one user.
fn picture(request: &Request) -> String {
    let openid = escaped(openid(request).unwrap_or_default());
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"360\" height=\"80\">\
         <rect width=\"360\" height=\"80\" rx=\"12\" fill=\"#06703f\"/>\
         <text x=\"180\" y=\"46\" fill=\"#fff\" font-family=\"monospace\" font-size=\"16\" \
         text-anchor=\"middle\">{openid}</text></svg>\n"
    )
}

/// The user, as the gateway says.
fn openid(request: &Request) -> Option<&str> {
    request.headers().get("x-openid")?.to_str().ok()
}
