//! Rewrites the path of a request.
//!
//! The stripped prefix is a prefix of the route's own path, so every path of the route begins with
//! it. [`super::readings::is_rewritable`] has already made sure that the rest keeps its meaning for
//! every server.

use crate::config::Rewriting;

pub struct Rewrite {
    strip: Box<str>,
    add: Box<str>,
}

impl Rewrite {
    pub fn new(rewriting: &Rewriting) -> Self {
        Self { strip: rewriting.strip.as_str().into(), add: rewriting.add.as_str().into() }
    }

    /// The rewritten `path`.
    pub fn path(&self, path: &str) -> String {
        let rest = path.strip_prefix(&*self.strip).unwrap_or(path);
        let path = format!("{}{rest}", self.add);
        if path.is_empty() { "/".to_owned() } else { path }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::route::readings::{is_plain, is_rewritable, readings};

    fn rewrite(strip: &str, add: &str) -> Rewrite {
        Rewrite::new(&Rewriting { strip: strip.to_owned(), add: add.to_owned() })
    }

    /// A path under `/api`, from characters that servers read differently and many that they do
    /// not.
    fn path() -> impl Strategy<Value = String> {
        "/api(/([a-c.~:@!$&'()*+,=;\\\\]|%2e|%2f|%5c|%3b|%3f|%23|%25|%41|%E5%95%86|%2C|//|\\.\\.){0,4}){0,4}"
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// For every server, the rewritten path has the same meaning as the path.
        #[test]
        fn readings_of_the_rewritten_path_are_the_rewritten_readings(
            path in path(),
            (strip, add) in prop::sample::select(vec![
                ("/api", ""), ("/api", "/v2"), ("", "/v2"), ("/api", "/v2/x"),
            ]),
        ) {
            if !is_rewritable(&path) {
                return Ok(());
            }
            let rewrite = rewrite(strip, add);
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            let of_rewritten: BTreeSet<String> =
                readings(&rewrite.path(&path)).unwrap().into_iter().map(text).collect();
            let rewritten: BTreeSet<String> = readings(&path)
                .unwrap()
                .into_iter()
                .map(|reading| rewrite.path(&text(reading)))
                .collect();
            prop_assert_eq!(of_rewritten, rewritten);
        }

        #[test]
        fn a_plain_path_is_rewritable(path in "/[a-zA-Z0-9/._~!$&'()*+,=:@%;\\\\-]{0,24}") {
            prop_assert!(!is_plain(&path) || is_rewritable(&path));
        }
    }

    #[test]
    fn what_servers_read_in_one_way_is_rewritable() {
        for path in [
            "/api",
            "/api/",
            "/api/x",
            "/api/%E5%95%86%E5%93%81",
            "/api/.well-known/x",
            "/api/a%20b",
            "/api/%C4%E3",
            "/api/...",
            "/api/caf%C3%A9%2C",
        ] {
            assert!(is_rewritable(path), "{path}");
        }
        for path in [
            "/api/..",
            "/api/../x",
            "/api/./x",
            "/api//x",
            "//x",
            "/api/x;y",
            "/api\\x",
            "/api/%2fx",
            "/api/%2F",
            "/api/%5c",
            "/api/%2e%2e",
            "/api/%2E",
            "/api/%25",
            "/api/%252e",
            "/api/%3b",
            "/api/%3f",
            "/api/%23",
            "/api/%",
            "/api/%c0%af",
            "",
            "x",
        ] {
            assert!(!is_rewritable(path), "{path}");
        }
    }

    #[test]
    fn a_prefix_is_replaced() {
        for (strip, add, path, expected) in [
            ("/api", "", "/api", "/"),
            ("/api", "", "/api/", "/"),
            ("/api", "", "/api/x/", "/x/"),
            ("/api", "/v2", "/api", "/v2"),
            ("/api", "/v2", "/api/", "/v2/"),
            ("", "/v2", "/", "/v2/"),
            ("", "/v2", "/x", "/v2/x"),
        ] {
            assert_eq!(rewrite(strip, add).path(path), expected, "{path}");
        }
    }
}
