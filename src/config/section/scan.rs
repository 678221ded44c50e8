//! `[scan]`: login of a browser by a scan with the Mini Program.

use std::time::Duration;

use super::app::{App, AppKind};
use crate::config::document::table::{Located, Table};
use crate::identity::AppId;

/// The section `[scan]`, if it is enabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanSection {
    /// The Mini Program that scans.
    pub app_id: AppId,
    /// How long a scan may take.
    pub lifetime: Duration,
}

const LIFETIME: Duration = Duration::from_secs(120);

/// The longer a code is valid, the easier can an attacker show it to other users.
const LONGEST: Duration = Duration::from_secs(600);

/// Reads the section. `None`: it is off, or a problem was reported.
pub fn read(root: &Table<'_>, apps: Option<&[App]>, has_browsers: bool) -> Option<ScanSection> {
    let section = root.table("scan");
    let enabled = section.get::<bool>("enabled");
    let app_id = section.get::<AppId>("app_id");
    let lifetime = section.positive("lifetime", LIFETIME);
    if lifetime > LONGEST {
        let message = format!("must not be longer than {}", humantime::format_duration(LONGEST));
        section.problem_of("lifetime", message, "");
    }
    let Some(enabled) = enabled.filter(|enabled| enabled.value) else {
        warn_of_off(root, &section, lifetime);
        section.finish();
        return None;
    };
    if !has_browsers {
        let message = "no browser could log in: there is no [[browser]]";
        section.problem(&enabled, message, "add a [[browser]] with the URL of your pages");
    }
    let app_id = scanning_app(&section, &enabled, app_id, apps);
    section.finish();
    Some(ScanSection { app_id: app_id?, lifetime })
}

/// Warns of a section without effect.
fn warn_of_off(root: &Table<'_>, section: &Table<'_>, lifetime: Duration) {
    if root.has("scan") && !section.has("enabled") {
        section.warn_of("enabled", "scans are off: add enabled = true");
        return;
    }
    for (name, is_set) in [("app_id", section.has("app_id")), ("lifetime", lifetime != LIFETIME)] {
        if is_set {
            section.warn_of(name, "has no effect without enabled = true");
        }
    }
}

/// The Mini Program that scans: the one that is given, or the only one. `None`: a problem was
/// reported.
fn scanning_app(
    section: &Table<'_>,
    enabled: &Located<bool>,
    given: Option<Located<AppId>>,
    apps: Option<&[App]>,
) -> Option<AppId> {
    if let Some(given) = given {
        AppKind::MiniProgram.check(section, &given, apps);
        return Some(given.value);
    }
    let is_mini_program = |app: &&App| app.kind == AppKind::MiniProgram;
    let mut found = apps?.iter().filter(is_mini_program);
    match (found.next(), found.next()) {
        (Some(only), None) => return Some(only.app_id.clone()),
        (Some(_), Some(_)) => {
            let help = "there are several apps with kind = \"mini_program\": name one of them";
            section.report_missing("app_id", help);
        }
        (None, _) if !section.has("app_id") => {
            let message = "there is no app that could scan";
            section.problem(enabled, message, "add an [[app]] with kind = \"mini_program\"");
        }
        (None, _) => {}
    }
    None
}
