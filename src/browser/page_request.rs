//! What kind of request a browser makes, by its headers.
//!
//! Only a request for a whole page may get a redirect to WeChat or one of the gateway's pages: a
//! script could not follow the redirect, and an image or a frame would begin a login that no user
//! sees. Browsers say what a request is for in Fetch Metadata headers, which pages cannot set; for
//! older browsers, `Accept` decides.

use http::header::{ACCEPT, ACCEPT_LANGUAGE, USER_AGENT};
use http::{HeaderName, Method};

use crate::access::cross_site::SEC_FETCH_SITE;
use crate::message::header::{Headers, elements, trim};

static SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
static SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
static SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");
static PURPOSE: HeaderName = HeaderName::from_static("purpose");

/// Whether a request is for a page that the user will see now: not for a part of a page, not by a
/// script, and not ahead of time.
pub fn is_page_request(method: &Method, headers: &impl Headers) -> bool {
    let has = |name| headers.first(name).is_some();
    if !matches!(*method, Method::GET | Method::HEAD) || has(&SEC_PURPOSE) || has(&PURPOSE) {
        return false;
    }
    let fetch_metadata = [&SEC_FETCH_MODE, &SEC_FETCH_DEST, &SEC_FETCH_SITE];
    if fetch_metadata.into_iter().any(has) {
        let is_navigation = headers.only(&SEC_FETCH_MODE) == Some(b"navigate");
        let is_document = match headers.first(&SEC_FETCH_DEST) {
            None => true,
            Some(_) => match headers.only(&SEC_FETCH_DEST) {
                Some(b"document") => true,
                // A navigation that the site's service worker forwards.
                Some(b"empty") => headers.only(&SEC_FETCH_SITE) == Some(b"same-origin"),
                _ => false,
            },
        };
        return is_navigation && is_document;
    }
    let mut types = headers.values_of(&ACCEPT).flat_map(elements);
    types.any(|element| {
        let media_type = element.split(|b| *b == b';').next().map(trim);
        media_type.is_some_and(|media_type| media_type.eq_ignore_ascii_case(b"text/html"))
    })
}

/// Whether the headers say that a request is not for a page that the user will see now. Those of an
/// old browser do not say it.
pub fn is_declared_hidden(method: &Method, headers: &impl Headers) -> bool {
    let names = [&SEC_FETCH_MODE, &SEC_FETCH_DEST, &SEC_FETCH_SITE, &SEC_PURPOSE, &PURPOSE];
    names.into_iter().any(|name| headers.first(name).is_some()) && !is_page_request(method, headers)
}

/// Whether the browser is WeChat's own, where official accounts log in. That of `WeCom` (企业微信) is
/// not, although its `User-Agent` also contains `MicroMessenger`.
pub fn is_wechat(headers: &impl Headers) -> bool {
    let agent = headers.first(&USER_AGENT).unwrap_or_default().to_ascii_lowercase();
    let names = |name: &[u8]| memchr::memmem::find(&agent, name).is_some();
    names(b"micromessenger") && !names(b"wxwork")
}

/// The languages of the gateway's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    English,
    Chinese,
}

impl Language {
    /// The preferred one of `Accept-Language` (RFC 9110, section 12.5.4). English if it has
    /// neither.
    pub fn of(headers: &impl Headers) -> Self {
        let mut best = (0, Self::English);
        for element in headers.values_of(&ACCEPT_LANGUAGE).flat_map(elements) {
            let mut parts = element.split(|b| *b == b';').map(trim);
            let tag = parts.next().unwrap_or_default().to_ascii_lowercase();
            let language = match tag.split(|b| *b == b'-').next() {
                Some(b"zh") => Self::Chinese,
                Some(b"en") => Self::English,
                _ => continue,
            };
            let weight = parts.find_map(weight).unwrap_or(1000);
            if weight > best.0 {
                best = (weight, language);
            }
        }
        best.1
    }
}

/// The weight `q=0.8`, in thousandths.
fn weight(parameter: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(parameter.strip_prefix(b"q=")?).ok()?;
    let weight: f32 = text.trim().parse().ok()?;
    // A cast of a float saturates, and makes zero of NaN.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    Some((weight.clamp(0.0, 1.0) * 1000.0) as u32)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_page_request_is_a_navigation_that_the_user_sees() {
        let is = |method: Method, lines: &[_]| is_page_request(&method, &headers(lines));
        let navigate = ("sec-fetch-mode", "navigate");
        let (document, html) = (("sec-fetch-dest", "document"), ("accept", "text/html,*/*;q=0.8"));
        assert!(is(Method::GET, &[navigate, document]) && is(Method::HEAD, &[navigate]));
        assert!(is(Method::GET, &[html]));
        let (empty, own) = (("sec-fetch-dest", "empty"), ("sec-fetch-site", "same-origin"));
        assert!(is(Method::GET, &[navigate, empty, own]), "a service worker");
        assert!(is(Method::GET, &[("accept", "application/xml, TEXT/HTML;level=1")]));
        for lines in [
            &[navigate, ("sec-fetch-dest", "iframe"), html][..],
            &[navigate, empty, ("sec-fetch-site", "cross-site"), html],
            &[("sec-fetch-mode", "cors"), empty, own, html],
            &[("sec-fetch-mode", "cors"), html],
            &[("sec-fetch-mode", "navigate"), ("sec-fetch-mode", "cors"), html],
            &[("sec-fetch-site", "none"), html],
            &[document, html],
            &[navigate, document, ("sec-purpose", "prefetch")],
            &[html, ("purpose", "prefetch")],
            &[("accept", "*/*")],
            &[("accept", "application/json; x=text/html")],
            &[],
        ] {
            assert!(!is(Method::GET, lines), "{lines:?}");
        }
        assert!(!is(Method::POST, &[navigate, document]));
        let hidden = |lines: &[_]| is_declared_hidden(&Method::GET, &headers(lines));
        assert!(hidden(&[navigate, ("sec-fetch-dest", "iframe")]));
        assert!(hidden(&[html, ("sec-purpose", "prefetch")]));
        assert!(!hidden(&[navigate, document]) && !hidden(&[("accept", "*/*")]));
    }

    #[test]
    fn wechat_and_languages_are_recognised() {
        let agent = |agent| is_wechat(&headers(&[("user-agent", agent)]));
        assert!(agent(
            "Mozilla/5.0 (Linux; Android 14) Mobile MicroMessenger/8.0.49(0x2800) NetType/WIFI"
        ));
        assert!(!agent("Mozilla/5.0 wxwork/4.1 MicroMessenger/7.0.1 Language/zh"));
        assert!(!agent("Mozilla/5.0 (Windows NT 10.0) Chrome/120") && !agent(""));
        for (given, expected) in [
            ("zh-CN,zh;q=0.9,en;q=0.8", Language::Chinese),
            ("en-GB, zh;q=0.5", Language::English),
            ("en;q=0.1, ZH-tw;q=0.2", Language::Chinese),
            ("fr, zh;q=0", Language::English),
            ("fr, de", Language::English),
            ("zh;q=x", Language::Chinese),
            ("", Language::English),
        ] {
            assert_eq!(Language::of(&headers(&[("accept-language", given)])), expected, "{given}");
        }
    }
}
