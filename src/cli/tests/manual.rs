//! Manual pages and completions, read by the programs they are for, where this host has them.

use std::path::Path;
use std::process::{Command, Stdio};

use super::*;

/// What `program` says of a file; `None` where there is no such program.
fn said(program: &str, arguments: &[&str], file: &Path) -> Option<String> {
    let done = Command::new(program).args(arguments).arg(file).stdin(Stdio::null()).output().ok()?;
    let mut said = String::from_utf8_lossy(&done.stderr).into_owned();
    if !done.status.success() {
        said.push_str(&done.status.to_string());
    }
    Some(said)
}

fn pages() -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(tether_with(&format!("man --write {}", dir.path().display()), &[], "").exit, Exit::Ok);
    let pages = std::fs::read_dir(dir.path()).expect("listed").map(|page| page.expect("listed").path()).collect();
    (dir, pages)
}

#[test]
fn formatters_of_manual_pages_have_nothing_to_say_about_them() {
    let (_dir, pages) = pages();
    assert!(pages.len() > 50, "{}", pages.len());
    for page in &pages {
        for (program, arguments) in
            [("groff", &["-k", "-man", "-Tutf8", "-ww", "-z"][..]), ("mandoc", &["-T", "lint", "-W", "warning"])]
        {
            if let Some(said) = said(program, arguments, page) {
                let is_undated = |line: &&str| env!("TETHER_DATE").is_empty() && line.contains("missing date");
                let said: Vec<_> = said.lines().filter(|line| !is_undated(line)).collect();
                assert_eq!(said, [""; 0], "{program} {}", page.display());
            }
        }
    }
}

#[test]
fn the_pages_of_section_5_name_every_setting_field_and_selector() {
    let (dir, _) = pages();
    // As it is read: hyphens and dots at the begin of a line are written otherwise.
    let text = |name: &str| {
        std::fs::read_to_string(dir.path().join(name)).expect("there").replace("\\-", "-").replace("\\&", "")
    };
    let (configuration, entries) = (text("tether.toml.5"), text("tether-entries.5"));
    for section in crate::config::reference() {
        for setting in section.settings {
            let key = setting.name.rsplit('.').next().expect("a name");
            assert!(configuration.contains(&format!("\\fB{key}\\fR")), "{}", setting.name);
        }
    }
    for field in crate::registry::FIELDS {
        assert!(entries.contains(&format!("\\fB{}\\fR = ", field.name)), "{}", field.name);
    }
    for (kind, key) in crate::selector::KINDS {
        assert!(entries.contains(&format!("\\fB{kind}:{key}:")), "{kind}:{key}");
    }
}

#[test]
fn completions_are_scripts_of_their_shells() {
    let dir = tempfile::tempdir().expect("a directory");
    for (shell, arguments) in [("bash", &["-n"][..]), ("zsh", &["-n"]), ("fish", &["--no-execute"])] {
        let script = dir.path().join(shell);
        std::fs::write(&script, tether_with(&format!("completion {shell}"), &[], "").data).expect("written");
        if let Some(said) = said(shell, arguments, &script) {
            assert_eq!(said, "", "{shell}");
        }
    }
}
