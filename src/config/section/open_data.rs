//! `[open_data]`: whether session keys are kept, to decrypt and verify what phones get from WeChat.

use super::app::{App, AppKind};
use crate::config::document::table::Table;

/// The section `[open_data]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDataSection {
    /// The newest three session keys of each user are kept as long as the user has a session. A
    /// shared store gets them sealed: it needs a seal key in any case.
    pub enabled: bool,
}

/// Reads the section. `apps` are `None` if a problem was reported.
pub fn read(section: Table<'_>, apps: Option<&[App]>) -> OpenDataSection {
    let enabled = section.get_or("enabled", false);
    let is_mini_program = |app: &App| app.kind == AppKind::MiniProgram;
    if enabled && apps.is_some_and(|apps| !apps.iter().any(is_mini_program)) {
        let message = "has no effect: only users of Mini Programs have session keys";
        section.warn_of("enabled", message);
    }
    section.finish();
    OpenDataSection { enabled }
}
