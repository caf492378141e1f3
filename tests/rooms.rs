//! The rooms of the program: imports go down only, and some things are done in one place only.

use std::fs;
use std::path::{Path, PathBuf};

/// Each room with the rooms that it may use. Anything else of ours is above it or beside it.
const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("block", &["error"]),
    ("config", &["error", "block"]),
    ("local", &["error", "config"]),
    ("object", &["error"]),
    ("secret", &[]),
    ("codec", &["error", "block", "secret"]),
    ("cache", &["error", "block"]),
    (
        "store",
        &["error", "block", "cache", "codec", "object", "secret"],
    ),
    ("journal", &["error", "codec", "secret"]),
    ("disk", &["error", "block", "secret", "store", "journal"]),
    ("frontend", &["error", "block", "disk"]),
    ("control", &["error", "disk", "object"]),
    (
        "open",
        &[
            "error", "block", "cache", "config", "local", "object", "codec", "secret", "store",
            "journal", "disk",
        ],
    ),
    (
        "cli",
        &[
            "error", "block", "codec", "config", "local", "object", "secret", "store", "disk",
            "frontend", "control", "open",
        ],
    ),
];

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)
            .expect("src is readable")
            .map(|e| e.expect("an entry").path())
        {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                found.push(entry);
            }
        }
    }
    found
}

/// The room of a file: its first part below `src`.
fn room(path: &Path) -> String {
    let below = path
        .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
        .expect("below src");
    let first = below
        .components()
        .next()
        .expect("a name")
        .as_os_str()
        .to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// A file's text without its comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The rooms that a file names with `crate::`.
fn used(code: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let group = &group[..group.find("};").unwrap_or(group.len())];
            used.extend(group.split(',').map(|part| first_name(part.trim())));
        } else {
            used.push(first_name(rest));
        }
    }
    used.retain(|name| !name.is_empty());
    used
}

fn first_name(path: &str) -> String {
    path.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

#[test]
fn imports_go_down_only() {
    let mut wrong = Vec::new();
    for path in sources() {
        let room = room(&path);
        if room == "lib" || room == "main" {
            continue;
        }
        let (_, may) = ROOMS
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("src/{room} is not in this test's list of rooms"));
        for used in used(&code(&path)) {
            if used != room && !may.contains(&used.as_str()) {
                wrong.push(format!("{}: {room} may not use {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_exists() {
    for (room, _) in ROOMS {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        assert!(
            src.join(room).join("mod.rs").exists() || src.join(format!("{room}.rs")).exists(),
            "src/{room}"
        );
    }
}

/// A file's path below `src`.
fn below_src(path: &Path) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let below = path.strip_prefix(src).expect("below src");
    below.to_string_lossy().into_owned()
}

/// What a disk does to its store depends on its requests' answers, and on what was given to it: so a test repeats a run exactly.
#[test]
fn disk_and_store_take_time_and_randomness_by_parameter() {
    let own = [
        "SystemTime::now",
        "rand::random",
        "new_v4",
        "std::time::Instant",
    ];
    // Where the real ones come in, and what is done before there is a session.
    let doors =
        ["sources.rs", "create.rs", "record.rs"].map(|file| format!("store/versioned/{file}"));
    for path in sources() {
        let below = below_src(&path);
        if !(below.starts_with("disk/") || below.starts_with("store/")) || doors.contains(&below) {
            continue;
        }
        let code = code(&path);
        for name in own {
            assert!(
                !code.contains(name),
                "{below} holds {name:?}: take it as a parameter"
            );
        }
        for (_, arms) in code
            .match_indices("select! {")
            .map(|(at, found)| code[at..].split_at(found.len()))
        {
            let biased = arms.trim_start().starts_with("biased;");
            assert!(
                biased,
                "{below} has a select! that draws its order at random"
            );
        }
    }
}

#[test]
fn what_is_done_in_one_place_is_named_in_one_place() {
    // A name, and the only files (below src) that may hold it.
    let only: &[(&str, &[&str])] = &[
        ("object_store::", &["object/"]),
        ("fuser::", &["frontend/fuse/"]),
        ("unsafe ", &["secret.rs", "secret/wiping.rs"]),
        ("std::process::exit", &["main.rs"]),
        ("LocalFileSystem", &["object/"]),
        ("FileCache", &["cache/", "open/"]),
    ];
    for path in sources() {
        let below = below_src(&path);
        let code = code(&path);
        for (name, places) in only {
            assert!(
                !code.contains(name) || places.iter().any(|place| below.starts_with(place)),
                "{below} holds {name:?}, which belongs to {places:?}"
            );
        }
    }
}
