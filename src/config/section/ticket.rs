//! `[ticket]`: tickets for requests that cannot have a session header.

use crate::config::document::table::Table;

/// The section `[ticket]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketSection {
    pub enabled: bool,
}

/// Reads the section.
pub fn read(root: &Table<'_>) -> TicketSection {
    let section = root.table("ticket");
    if root.has("ticket") && !section.has("enabled") {
        section.warn_of("enabled", "tickets are off: add enabled = true");
    }
    let enabled = section.get_or("enabled", false);
    section.finish();
    TicketSection { enabled }
}
