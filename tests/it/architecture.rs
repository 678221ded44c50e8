//! The code keeps to the layers in the table of `src/lib.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The table of the crate's documentation: folder and layer.
fn layers() -> BTreeMap<String, u32> {
    let map = fs::read_to_string(source().join("lib.rs")).unwrap();
    map.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("//! |")?.split('|').map(str::trim);
            let layer = cells.next()?.parse().ok()?;
            Some((cells.next()?.trim_matches('`').to_owned(), layer))
        })
        .collect()
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The folder that a file belongs to.
fn module(file: &Path) -> String {
    let relative = file.strip_prefix(source()).unwrap();
    let first = relative.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Folders that a text refers to, `crate::{a, b}` included.
fn named(text: &str) -> Vec<String> {
    let mut named = Vec::new();
    for rest in text.split("crate::").skip(1) {
        let list = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap(),
            None => rest,
        };
        let is_list = rest.starts_with('{');
        for item in list.split(',').take(if is_list { usize::MAX } else { 1 }) {
            let name: String =
                item.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            named.push(name);
        }
    }
    named
}

#[test]
fn every_folder_is_in_the_map_and_uses_only_lower_layers() {
    let layers = layers();
    let mut found = Vec::new();
    files(&source(), &mut found);
    let mut uses = 0;
    for file in &found {
        let user = module(file);
        if matches!(user.as_str(), "lib" | "main") {
            continue;
        }
        let layer = layers.get(&user).unwrap_or_else(|| panic!("`{user}` is not in the map"));
        for used in named(&fs::read_to_string(file).unwrap()) {
            if used == user {
                continue;
            }
            let below = layers.get(&used).unwrap_or_else(|| panic!("{user} uses {used}?"));
            assert!(below < layer, "`{user}` of layer {layer} uses `{used}` of layer {below}");
            uses += 1;
        }
    }
    for module in layers.keys() {
        assert!(found.contains(&source().join(module).join("mod.rs")), "`{module}` is no folder");
    }
    assert!(uses > 50, "only {uses} uses were found");
}
