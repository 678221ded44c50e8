//! Which names upstreams and routes may have.

use crate::config::document::table::{Located, Table};

/// Reports a name that is not valid. Names become metric labels, and those of the gateway itself
/// begin with `@`.
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
