//! Whether only the gateway can write in a directory.
//!
//! The rule is that of OpenSSH's `StrictModes`: a name can be trusted if nobody else can put
//! another file in its place, so the directory is checked, and all that lead to it, symbolic links
//! included. Unlike there, a directory with the sticky bit, as `/tmp`, may lead to it: what is in
//! it can only be replaced by its owner.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Symbolic links that are followed, as many as Linux does.
const MAX_LINKS: usize = 40;

/// Checks a directory for the user with this ID.
///
/// # Errors
/// What is wrong, and where.
pub fn check(directory: &Path, own: u32) -> Result<(), String> {
    let mut current = PathBuf::from("/");
    // The names that are left, the next one last.
    let mut left = names(directory);
    check_directory(&current, &read(&current)?, own, left.is_empty())?;
    let mut links = 0;
    while let Some(name) = left.pop() {
        let path = current.join(&name);
        if name == ".." {
            // It was checked on the way down.
            current.pop();
            if left.is_empty() {
                check_directory(&current, &read(&current)?, own, true)?;
            }
            continue;
        }
        let found = read(&path)?;
        if found.is_symlink() {
            check_owner(&path, &found, own)?;
            links += 1;
            if links > MAX_LINKS {
                return Err(format!("{} has too many symbolic links", directory.display()));
            }
            let target = fs::read_link(&path).map_err(|error| unreadable(&path, &error))?;
            if target.is_absolute() {
                current = PathBuf::from("/");
            }
            left.extend(names(&target));
            if left.is_empty() {
                check_directory(&current, &read(&current)?, own, true)?;
            }
        } else {
            check_directory(&path, &found, own, left.is_empty())?;
            current = path;
        }
    }
    Ok(())
}

/// The names of a path, in reverse.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().rev();
    let names = names.filter(|name| matches!(name, Component::Normal(_) | Component::ParentDir));
    names.map(|name| name.as_os_str().to_owned()).collect()
}

fn read(path: &Path) -> Result<fs::Metadata, String> {
    fs::symlink_metadata(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("{} does not exist", path.display()),
        _ => format!("{} cannot be checked: {error}", path.display()),
    }
}

fn check_owner(path: &Path, found: &fs::Metadata, own: u32) -> Result<(), String> {
    if found.uid() == 0 || found.uid() == own {
        return Ok(());
    }
    let (path, uid) = (path.display(), found.uid());
    Err(format!("{path} belongs to the user with ID {uid}, not to root or this user (ID {own})"))
}

fn check_directory(
    path: &Path,
    found: &fs::Metadata,
    own: u32,
    is_last: bool,
) -> Result<(), String> {
    const OTHERS_WRITE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    if !found.is_dir() {
        return Err(format!("{} is not a directory", path.display()));
    }
    check_owner(path, found, own)?;
    let mode = found.mode();
    if mode & OTHERS_WRITE != 0 && (is_last || mode & STICKY == 0) {
        let (path, mode) = (path.display(), mode & 0o7777);
        return Err(format!("{path} is writable by other users (its mode is {mode:o})"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn make(path: &Path, mode: u32) {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn own() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_directory_is_safe_if_nobody_else_can_write_in_it_or_replace_it() {
        let temp = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(temp.path()).unwrap();
        make(&root.join("safe"), 0o755);
        make(&root.join("group"), 0o775);
        make(&root.join("others"), 0o757);
        make(&root.join("sticky"), 0o1777);
        make(&root.join("group/safe"), 0o700);
        make(&root.join("sticky/safe"), 0o700);
        fs::write(root.join("safe/file"), "").unwrap();
        let checked = |name: &str| {
            let outcome = check(&root.join(name), own());
            outcome.map_err(|error| error.replace(root.to_str().unwrap(), "."))
        };
        assert_eq!(checked("safe"), Ok(()));
        assert_eq!(checked("safe/"), Ok(()));
        assert_eq!(checked("sticky/safe"), Ok(()));
        assert_eq!(checked("safe/../sticky/safe/."), Ok(()));
        let writable = |name: &str, mode: &str| {
            Err(format!("./{name} is writable by other users (its mode is {mode})"))
        };
        assert_eq!(checked("group"), writable("group", "775"));
        assert_eq!(checked("others"), writable("others", "757"));
        assert_eq!(checked("sticky"), writable("sticky", "1777"));
        assert_eq!(checked("sticky/safe/.."), writable("sticky", "1777"));
        assert_eq!(checked("group/safe"), writable("group", "775"));
        assert_eq!(checked("none"), Err("./none does not exist".to_owned()));
        assert_eq!(checked("safe/file"), Err("./safe/file is not a directory".to_owned()));
    }

    #[test]
    fn links_are_followed_and_every_directory_on_their_way_is_checked() {
        let temp = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(temp.path()).unwrap();
        make(&root.join("safe"), 0o755);
        make(&root.join("open"), 0o777);
        make(&root.join("safe/deep"), 0o700);
        symlink(root.join("safe"), root.join("absolute")).unwrap();
        symlink("safe/deep", root.join("relative")).unwrap();
        symlink("relative/..", root.join("up")).unwrap();
        symlink("endless", root.join("endless")).unwrap();
        // A link in a place where others can replace it, though it leads to a safe one.
        symlink(root.join("safe"), root.join("open/link")).unwrap();
        symlink("open/link/deep", root.join("through")).unwrap();
        for safe in ["absolute", "absolute/deep", "relative", "up", "up/deep"] {
            assert_eq!(check(&root.join(safe), own()), Ok(()), "{safe}");
        }
        for unsafe_ in ["open/link", "through"] {
            let error = check(&root.join(unsafe_), own()).unwrap_err();
            assert!(error.contains("/open is writable by other users"), "{error}");
        }
        let error = check(&root.join("endless"), own()).unwrap_err();
        assert!(error.ends_with("/endless has too many symbolic links"), "{error}");
    }

    #[test]
    fn a_directory_of_another_user_is_not_safe() {
        let temp = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(temp.path()).unwrap();
        make(&root.join("d"), 0o700);
        let owner = own();
        let other = owner + 1;
        // What belongs to root is safe for everybody.
        let checked = check(&root.join("d"), other);
        assert_eq!(checked.is_ok(), owner == 0, "{checked:?}");
        if owner == 0 {
            std::os::unix::fs::chown(root.join("d"), Some(7), None).unwrap();
            assert_eq!(check(&root.join("d"), 7), Ok(()));
            let error = check(&root.join("d"), 8).unwrap_err();
            let expected = "/d belongs to the user with ID 7, not to root or this user (ID 8)";
            assert!(error.ends_with(expected), "{error}");
        }
    }
}
