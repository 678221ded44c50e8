//! The name of a browser and its system for users, from its `User-Agent`.
//!
//! The words are from a fixed list: no text of a client is shown on a phone.

/// Bytes of a `User-Agent` that are read.
const MOST_READ: usize = 1024;

/// Browsers by parts of their `User-Agent`. It also contains those of the browsers that a browser
/// is based on, so the first one that is found counts.
const BROWSERS: [(&str, &str); 24] = [
    ("MicroMessenger", "WeChat"),
    ("wxwork", "WeCom"),
    ("Edg/", "Edge"),
    ("EdgA/", "Edge"),
    ("EdgiOS/", "Edge"),
    ("Edge/", "Edge"),
    ("OPR/", "Opera"),
    ("Opera", "Opera"),
    ("QQBrowser", "QQ Browser"),
    ("MetaSr", "Sogou Browser"),
    ("360SE", "360 Browser"),
    ("QHBrowser", "360 Browser"),
    ("UCBrowser", "UC Browser"),
    ("MiuiBrowser", "Xiaomi Browser"),
    ("HuaweiBrowser", "Huawei Browser"),
    ("VivoBrowser", "vivo Browser"),
    ("HeyTapBrowser", "OPPO Browser"),
    ("SamsungBrowser", "Samsung Internet"),
    ("FxiOS/", "Firefox"),
    ("Firefox/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
    ("Trident/", "Internet Explorer"),
];

/// Systems by parts of `User-Agent`; the first one that is found counts.
const SYSTEMS: [(&str, &str); 9] = [
    ("HarmonyOS", "HarmonyOS"),
    ("OpenHarmony", "HarmonyOS"),
    ("Windows", "Windows"),
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Macintosh", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
];

/// Such as `Chrome on Windows`.
pub fn describe(user_agent: Option<&[u8]>) -> String {
    let text = user_agent.unwrap_or_default();
    let text = text.get(..MOST_READ).unwrap_or(text);
    let find = |names: &[(&str, &'static str)]| {
        let is_in = |mark: &str| memchr::memmem::find(text, mark.as_bytes()).is_some();
        names.iter().find(|(mark, _)| is_in(mark)).map(|(_, name)| *name)
    };
    let browser = find(&BROWSERS).unwrap_or("A browser");
    match find(&SYSTEMS) {
        Some(system) => format!("{browser} on {system}"),
        None => browser.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_and_systems_are_named_in_words() {
        for (user_agent, words) in [
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
                "Chrome on Windows",
            ),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36 Edg/138.0.0.0",
                "Edge on Windows",
            ),
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15",
                "Safari on macOS",
            ),
            (
                "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
                "Firefox on Linux",
            ),
            (
                "Mozilla/5.0 (Linux; Android 15; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Mobile Safari/537.36",
                "Chrome on Android",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 MicroMessenger/8.0.60",
                "WeChat on iPhone",
            ),
            (
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 HeadlessChrome/138.0 Safari/537.36",
                "Chrome on Linux",
            ),
            ("curl/8.14", "A browser"),
            ("", "A browser"),
            ("\u{7}<script>alert(1)</script>\u{202e} on Mars", "A browser"),
        ] {
            assert_eq!(describe(Some(user_agent.as_bytes())), words);
        }
        assert_eq!(describe(None), "A browser");
        let late = [b"x".repeat(MOST_READ), b" Firefox/1".to_vec()].concat();
        assert_eq!(describe(Some(&late)), "A browser");
    }
}
