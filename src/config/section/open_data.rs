//! `[open_data]`: whether session keys are kept, to decrypt and verify what phones get from WeChat.

use crate::config::document::table::Table;

/// The section `[open_data]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDataSection {
    /// The newest three session keys of each user are kept as long as the user has a session. A
    /// shared store gets them sealed: it needs a seal key in any case.
    pub enabled: bool,
}

/// Reads the section.
pub fn read(section: Table<'_>) -> OpenDataSection {
    let enabled = section.get_or("enabled", false);
    section.finish();
    OpenDataSection { enabled }
}
