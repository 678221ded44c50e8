//! Names of upstreams and routes.

use crate::config::document::table::{Located, Table};

/// Names become metric labels; `@` marks the gateway's own.
pub fn report_invalid_name(section: &Table<'_>, name: &Located<String>) {
    let legal = |c: char| !c.is_control() && c != '"' && c != '\\';
    if name.value.is_empty()
        || name.value.chars().count() > 64
        || name.value.starts_with('@')
        || !name.value.chars().all(legal)
    {
        section.problem(
            name,
            "is not a valid name",
            "1 to 64 characters, without quotes and backslashes, not starting with \"@\"",
        );
    }
}
