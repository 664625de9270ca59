use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;
use time::macros::datetime;

use super::*;
use crate::base::durable;
use crate::id::TrustDomain;
use crate::registry::parse::parse_entry;

const NOW: OffsetDateTime = datetime!(2026-01-01 0:00 UTC);

fn rules() -> Rules {
    Rules::new(TrustDomain::parse("td").expect("valid"))
}

fn entry(id: &str) -> String {
    format!("[[entry]]\nid = '{id}'\nspiffe_id = 'spiffe://td/{id}'\nmatch = ['unix:uid:1']\nowner = 'o'\n")
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, content) in files {
        durable::replace(&dir.path().join(name), content.as_bytes(), 0o600).expect("written");
    }
    dir
}

fn load(dir: &TempDir) -> Loaded {
    Loader::new(dir.path().to_owned(), rules()).load(&[], NOW)
}

fn ids(loaded: &Loaded) -> Vec<&str> {
    loaded.entries.iter().map(|entry| entry.id().as_str()).collect()
}

/// The mistakes as a person reads them, with paths relative to the directory.
fn texts(dir: &TempDir, mistakes: &[Mistake]) -> Vec<String> {
    let prefix = dir.path().display().to_string();
    mistakes
        .iter()
        .map(|mistake| mistake.to_string().replace(&format!("{prefix}/"), "").replace(&prefix, "DIR"))
        .collect()
}

#[test]
fn files_are_read_in_the_order_of_their_names_and_others_are_left_alone() {
    let dir = directory(&[
        ("b.toml", &entry("b")),
        ("a.toml", &entry("a")),
        (".c.toml", "!"),
        ("README", "!"),
        ("d.toml~", "!"),
    ]);
    let loaded = load(&dir);
    assert_eq!(ids(&loaded), ["a", "b"]);
    assert_eq!((loaded.files, loaded.mistakes, loaded.warnings), (2, vec![], vec![]));
}

#[test]
fn mistakes_of_all_files_are_reported_at_once() {
    let dir = directory(&[
        ("a.toml", "[[entry]]\nhint = 1\n"),
        ("b.toml", &entry("b")),
        ("c.toml", "[[entry]\n"),
        ("d.toml", &entry("b")),
    ]);
    symlink("/nowhere", dir.path().join("e.toml")).expect("linked");
    std::fs::create_dir(dir.path().join("f.toml")).expect("made");
    durable::replace(&dir.path().join("g.toml"), b"# \xc3\xa9\n# a\xff", 0o600).expect("written");
    durable::replace(&dir.path().join("h.toml"), entry("h").as_bytes(), 0o606).expect("written");
    let found = texts(&dir, &load(&dir).mistakes);
    let expected = [
        "a.toml:1:1: `match` is missing: write the selectors that must all hold",
        "a.toml:1:1: `owner` is missing: name who answers for this entry",
        "a.toml:1:1: `spiffe_id` is missing: write the SPIFFE ID this entry gives",
        "a.toml:2:8: `hint` must be a text in quotes, not an integer",
        "c.toml:1:9: unclosed array table, expected `]`",
        "e.toml: cannot look at the file: No such file or directory (os error 2)",
        "f.toml: not a regular file: remove or rename it",
        "g.toml:2:4: not UTF-8 from here on: save the file as UTF-8",
        "h.toml: everyone may change this file: run chmod o-w on it",
        "d.toml:1:1: the id `b` is already used by the entry from file b.toml:1: choose another",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_file_that_cannot_be_read_or_is_too_large_is_a_mistake() {
    let dir = directory(&[]);
    let path = dir.path().join("a.toml");
    let file = std::fs::File::create(&path).expect("created");
    file.set_len(MAX_FILE_BYTES + 1).expect("grown");
    let found = texts(&dir, &load(&dir).mistakes);
    assert_eq!(found, ["a.toml: cannot read the file: it is larger than 16777216 bytes"]);

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("chmod");
    if nix::unistd::geteuid().is_root() {
        return; // root reads everything
    }
    let found = texts(&dir, &load(&dir).mistakes);
    assert_eq!(found, ["a.toml: cannot read the file: Permission denied (os error 13)"]);
}

#[test]
fn a_missing_directory_is_a_mistake_and_not_an_empty_one() {
    let dir = directory(&[]);
    let mut loader = Loader::new(dir.path().join("entries.d"), rules());
    let found = texts(&dir, &loader.load(&[], NOW).mistakes);
    assert_eq!(found, ["entries.d: cannot read the directory: No such file or directory (os error 2)"]);
}

#[test]
fn an_id_that_an_entry_from_elsewhere_has_is_a_mistake_that_names_both() {
    let dir = directory(&[("a.toml", &format!("\n{}", entry("a")))]);
    let source = Source::Store { revision: 1, created_at: NOW };
    let stored = Arc::new(parse_entry(&entry("a"), &source, &rules()).expect("no mistakes"));
    let loaded = Loader::new(dir.path().to_owned(), rules()).load(&[stored], NOW);
    let found = texts(&dir, &loaded.mistakes);
    assert_eq!(found, ["a.toml:2:1: the id `a` is already used by the entry from store: choose another"]);
}

#[test]
fn an_entry_that_is_over_is_a_warning_and_so_is_a_directory_open_to_everyone() {
    let over = format!("{}expires_at = 2025-12-31T23:59:59Z\n", entry("a"));
    let dir = directory(&[("a.toml", &over)]);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o707)).expect("chmod");
    let loaded = load(&dir);
    assert_eq!(loaded.mistakes, []);
    let expected = [
        "DIR: everyone may add files here: run chmod o-w on it",
        "a.toml:1:1: the entry `a` expired at 2025-12-31T23:59:59Z and matches nothing: remove it",
    ];
    assert_eq!(texts(&dir, &loaded.warnings), expected);
}

#[test]
fn a_file_that_has_not_changed_is_not_parsed_again() {
    let dir = directory(&[("a.toml", &entry("a")), ("b.toml", &entry("b"))]);
    let mut loader = Loader::new(dir.path().to_owned(), rules());
    let first = loader.load(&[], NOW);
    durable::replace(&dir.path().join("b.toml"), entry("c").as_bytes(), 0o600).expect("written");
    let second = loader.load(&[], NOW);
    assert_eq!(ids(&second), ["a", "c"]);
    assert!(Arc::ptr_eq(&first.entries[0], &second.entries[0]));
}
