//! How a request's path is rewritten for the service.

use crate::config::document::table::{Located, Table};
use crate::config::value::path::RoutePath;

/// How a request's path is rewritten: the prefix `strip` is replaced by `add`. Both have no
/// trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewriting {
    pub strip: String,
    pub add: String,
}

/// Reads the rewriting of a route with this path. `None`: no rewriting.
pub fn read(section: &Table<'_>, path: Option<&Located<RoutePath>>) -> Option<Rewriting> {
    let strip = section.get::<RoutePath>("strip_prefix");
    let add = section.get::<RoutePath>("add_prefix");
    let trimmed = |path: &RoutePath| path.as_str().trim_end_matches('/').to_owned();
    if let (Some(strip), Some(path)) = (&strip, path) {
        let prefix = trimmed(&strip.value);
        let rest = path.value.as_str().strip_prefix(prefix.as_str());
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            let message = format!("is not a prefix of \"{}\"", path.value.as_str());
            section.problem(strip, message, "write whole segments from the beginning of path");
        }
    }
    if strip.is_none() && add.is_none() {
        return None;
    }
    let text = |path: Option<Located<RoutePath>>| {
        path.map_or_else(String::new, |path| trimmed(&path.value))
    };
    Some(Rewriting { strip: text(strip), add: text(add) })
}
