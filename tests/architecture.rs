//! The rules of the code map, checked on the text: who may import whom, and what occurs in one file only.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(under: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut open = vec![root.join(under)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path.strip_prefix(&root).unwrap().to_owned(), text));
        }
    }
    assert!(!found.is_empty(), "nothing under src/{under}");
    found
}

/// The code of a file without its tests, which may reach further.
fn code<'a>(path: &Path, text: &'a str) -> &'a str {
    if path.ends_with("tests.rs") { "" } else { text.split("#[cfg(test)]").next().unwrap() }
}

/// The first line of code with that word.
fn using<'a>(word: &str, path: &Path, text: &'a str) -> Option<&'a str> {
    code(path, text).lines().find(|line| line.contains(word) && !line.trim_start().starts_with("//"))
}

fn nobody_under(folder: &str, forbidden: &[&str]) {
    for (path, text) in sources(folder) {
        for word in forbidden {
            assert_eq!(using(word, &path, &text), None, "{} must not use {word}", path.display());
        }
    }
}

#[test]
fn decisions_are_pure() {
    nobody_under(
        "proto",
        &[
            "tokio",
            "ractor",
            "iroh",
            "Instant",
            "SystemTime",
            "Timestamp::now",
            "rand::rng(",
            "SysRng",
            "now_v7",
            "crate::actors",
            "crate::transport",
            "crate::node",
            "crate::sim",
            "crate::config",
            "crate::storage",
            "crate::messages",
            "crate::admin",
            "println!",
            "async fn",
        ],
    );
}

#[test]
fn imports_point_downwards() {
    nobody_under("messages", &["crate::actors", "crate::node", "crate::admin", "crate::sim", "crate::storage"]);
    nobody_under("transport", &["crate::actors", "crate::node", "crate::admin", "crate::sim", "crate::storage"]);
    nobody_under("storage", &["crate::actors", "crate::node", "crate::admin", "crate::sim", "crate::transport"]);
    nobody_under("actors", &["crate::node::", "crate::admin", "crate::sim"]);
    nobody_under("sim", &["crate::actors", "crate::transport", "crate::node::", "crate::admin", "tokio"]);
    nobody_under("admin", &["crate::sim", "crate::storage"]);
}

#[test]
fn some_things_are_known_in_one_file_only() {
    let only = [
        ("bincode::", "codec.rs"),
        ("DashMap", "transport/index.rs"),
        (".cast(Envelope", "actors/address.rs"),
        ("unbounded", ""),
    ];
    for (word, home) in only {
        for (path, text) in sources("") {
            let line = using(word, &path, &text);
            assert!(line.is_none() || path == Path::new(home), "{word} in {}: {line:?}", path.display());
        }
    }
}

#[test]
fn what_is_dropped_is_counted_by_why() {
    let counters = &sources("actors/counters.rs")[0].1;
    for (path, text) in sources("") {
        for (at, drop) in code(&path, &text).match_indices("Dropped(\"") {
            let why = text[at + drop.len()..].split('"').next().unwrap();
            assert!(counters.contains(&format!("\"{why}\",")), "{}: `{why}` is not in DROPS", path.display());
        }
    }
}

#[test]
fn files_can_be_held_in_mind() {
    for (path, text) in sources("") {
        let lines = code(&path, &text).lines().count();
        assert!(lines <= 680, "{} has {lines} lines: split it", path.display());
    }
}
