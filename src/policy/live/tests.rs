use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;
use time::OffsetDateTime;

use super::*;
use crate::base::{drain, durable};
use crate::policy::{Action, MAX_BYTES, MAX_FILE_BYTES, tests::Case};

const PERMIT: &str = "@id(\"p\") permit(principal, action == Action::\"start\", resource);";

fn write(path: &Path, content: &str) {
    durable::replace(path, content.as_bytes(), 0o600).expect("written");
}

async fn open(dir: &TempDir, may_be_absent: bool) -> Result<Policies, PoliciesRefused> {
    let (clock, _) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    Policies::open(BuiltIn::Issue, dir.path().join("policies"), may_be_absent, clock).await
}

fn directory() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("policies")).expect("made");
    dir
}

fn starts(policies: &Policies) -> bool {
    Case::default().ask(Action::Start, |question| policies.set().decide(question).allowed)
}

fn ids(set: &PolicySet) -> Vec<&str> {
    set.policies().iter().map(|rule| rule.id()).collect()
}

#[tokio::test]
async fn an_agent_does_not_begin_with_policies_that_have_a_mistake() {
    let dir = directory();
    write(&dir.path().join("policies/a.cedar"), "permit(principal, action, resource)");
    let refused = open(&dir, true).await.unwrap_err().to_string();
    assert!(refused.contains("\n  ") && refused.contains("policies/a.cedar:1:"), "{refused}");
}

#[tokio::test]
async fn only_a_directory_that_nobody_named_may_be_missing_and_only_until_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    assert!(open(&dir, false).await.is_err());
    let policies = open(&dir, true).await.unwrap();
    assert!(!starts(&policies) && policies.last_load().warnings.len() == 1);
    fs::create_dir(dir.path().join("policies")).unwrap();
    write(&dir.path().join("policies/a.cedar"), PERMIT);
    assert!(policies.reload().await.ok && starts(&policies));
    fs::remove_dir_all(dir.path().join("policies")).unwrap();
    assert!(!policies.reload().await.ok);
    assert!(starts(&policies), "the policies from before stay");
    // A link that leads nowhere is not nothing.
    let dir = tempfile::tempdir().unwrap();
    symlink("/nowhere/at/all", dir.path().join("policies")).unwrap();
    assert!(open(&dir, true).await.is_err());
}

#[tokio::test]
async fn a_bad_set_changes_nothing_and_a_mended_one_is_in_force() {
    let dir = directory();
    let path = dir.path().join("policies/a.cedar");
    write(&path, PERMIT);
    let policies = open(&dir, false).await.unwrap();
    let mut sets = policies.watch();
    assert!(starts(&policies) && sets.borrow_and_update().generation() == 1);
    write(&path, "permit(principal, action, resource);;");
    let load = policies.reload().await;
    assert!(!load.ok && load.mistakes.len() == 1 && policies.last_load() == load);
    assert!(starts(&policies) && !sets.has_changed().unwrap());
    write(&path, "");
    assert!(policies.reload().await.ok && !starts(&policies));
    assert_eq!(sets.borrow_and_update().generation(), 2);
    assert_eq!(ids(&policies.set()), ["00-issue"]);
    // The same files again are the same set.
    assert!(policies.reload().await.ok && !sets.has_changed().unwrap());
}

#[tokio::test]
async fn files_that_cannot_be_read_are_named_and_none_counts() {
    let dir = directory();
    let at = |name: &str| dir.path().join("policies").join(name);
    write(&at("good.cedar"), PERMIT);
    write(&at(".hidden.cedar"), "!");
    write(&at("README"), "!");
    symlink("loop.cedar", at("loop.cedar")).unwrap();
    fs::create_dir(at("dir.cedar")).unwrap();
    durable::replace(&at("bytes.cedar"), b"// \xff", 0o600).unwrap();
    durable::replace(&at("open.cedar"), b"", 0o602).unwrap();
    fs::File::create(at("large.cedar")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
    let refused = open(&dir, false).await.unwrap_err().to_string();
    let prefix = format!("{}/", dir.path().join("policies").display());
    let lines: Vec<_> = refused.lines().skip(1).map(|line| line.trim().replace(&prefix, "")).collect();
    assert_eq!(
        lines,
        [
            "bytes.cedar:1:4: not UTF-8 from here on: save the file as UTF-8",
            "dir.cedar: not a regular file: remove or rename it",
            "large.cedar: cannot read the file: it is larger than 1048576 bytes",
            "loop.cedar: cannot look at the file: Too many levels of symbolic links (os error 40)",
            "open.cedar: everyone may change this file: run chmod o-w on it",
        ]
    );
}

#[tokio::test]
async fn all_files_together_are_limited() {
    let dir = directory();
    let comment = format!("//{}\n", "x".repeat(MAX_BYTES / 4 - 3));
    for name in ["a", "b", "c", "d"] {
        write(&dir.path().join(format!("policies/{name}.cedar")), &comment);
    }
    assert!(open(&dir, false).await.is_ok());
    write(&dir.path().join("policies/e.cedar"), "//\n");
    let refused = open(&dir, false).await.unwrap_err().to_string();
    assert!(refused.contains("e.cedar: with this file there are more than 4194304 bytes"), "{refused}");
}

#[tokio::test]
async fn what_is_saved_while_it_is_watched_is_in_force() {
    let dir = directory();
    let policies = open(&dir, false).await.unwrap();
    let watch = policies.watch_directory().unwrap().expect("there is a directory");
    let (_stop, watcher) = drain::channel();
    tokio::spawn({
        let policies = policies.clone();
        async move { watch.read_again(watcher, || policies.reload()).await }
    });
    let mut sets = policies.watch();
    write(&dir.path().join("policies/a.cedar"), PERMIT);
    sets.wait_for(|set| ids(set) == ["00-issue", "p"]).await.unwrap();
    fs::remove_file(dir.path().join("policies/a.cedar")).unwrap();
    sets.wait_for(|set| ids(set) == ["00-issue"]).await.unwrap();
    assert!(Policies::built_in(BuiltIn::Dev).watch_directory().unwrap().is_none());
}
