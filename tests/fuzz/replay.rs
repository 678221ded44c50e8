//! What the fuzz targets have found so far, once more: every seed is given to its target. A part
//! of the crate's own tests, so that it needs no other toolchain.

// Targets are programs of their own, and some share a file.
#![allow(clippy::duplicate_mod, clippy::enum_variant_names, clippy::pedantic)]

use std::fs;
use std::path::Path;

#[path = "targets/body.rs"]
mod body;
#[path = "targets/chunked.rs"]
mod chunked;
#[path = "targets/config.rs"]
mod config;
#[path = "targets/decrypt.rs"]
mod decrypt;
#[path = "targets/exchange.rs"]
mod exchange;
#[path = "targets/handover.rs"]
mod handover;
#[path = "targets/head.rs"]
mod head;
#[path = "targets/internal_api.rs"]
mod internal_api;
#[path = "targets/journal.rs"]
mod journal;
#[path = "targets/login.rs"]
mod login;
#[path = "targets/path.rs"]
mod path;
#[path = "targets/pingora.rs"]
mod pingora;
#[path = "targets/response_head.rs"]
mod response_head;
#[path = "targets/snapshot.rs"]
mod snapshot;
#[path = "targets/state.rs"]
mod state;
#[path = "targets/strip.rs"]
mod strip;
#[path = "targets/token.rs"]
mod token;
#[path = "targets/wechat.rs"]
mod wechat;

type Check = fn(&[u8]);

const TARGETS: [(&str, Check); 18] = [
    ("body", body::check),
    ("chunked", chunked::check),
    ("config", config::check),
    ("decrypt", decrypt::check),
    ("exchange", exchange::check),
    ("handover", handover::check),
    ("head", head::check),
    ("internal_api", internal_api::check),
    ("journal", journal::check),
    ("login", login::check),
    ("path", path::check),
    ("pingora", pingora::check),
    ("response_head", response_head::check),
    ("snapshot", snapshot::check),
    ("state", state::check),
    ("strip", strip::check),
    ("token", token::check),
    ("wechat", wechat::check),
];

#[test]
fn every_seed_of_every_fuzz_target_keeps_its_promise() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    for (name, check) in TARGETS {
        let mut seeds = 0;
        for seed in fs::read_dir(fuzz.join("seeds").join(name)).unwrap() {
            let seed = seed.unwrap().path();
            // Shown when it is the last.
            println!("{}", seed.display());
            check(&fs::read(&seed).unwrap());
            seeds += 1;
        }
        assert!(seeds > 10, "{name} has {seeds} seeds");
    }
    for directory in ["seeds", "dictionaries"] {
        let found = fs::read_dir(fuzz.join(directory)).unwrap().count();
        assert_eq!(found, TARGETS.len(), "{directory} of each target");
    }
    let targets = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    assert_eq!(targets.matches("[[bin]]").count(), TARGETS.len());
}
