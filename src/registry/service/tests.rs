mod watched;

use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::base::durable;
use crate::id::TrustDomain;
use crate::registry::parse::{Source, parse_entry};

fn rules() -> Rules {
    Rules::new(TrustDomain::parse("td").expect("valid"))
}

fn toml(id: &str) -> String {
    format!("[[entry]]\nid = '{id}'\nspiffe_id = 'spiffe://td/{id}'\nmatch = ['unix:uid:1']\nowner = 'o'\n")
}

fn write(dir: &Path, name: &str, content: &str) {
    durable::replace(&dir.join(name), content.as_bytes(), 0o600).expect("written");
}

fn stored(id: &str) -> Arc<Entry> {
    let source = Source::Store { revision: 1, created_at: OffsetDateTime::UNIX_EPOCH };
    Arc::new(parse_entry(&toml(id), &source, &rules()).expect("no mistakes"))
}

fn registry(dir: &TempDir) -> Registry {
    let built_in = parse_entry(&toml("built-in"), &Source::BuiltIn, &rules()).expect("no mistakes");
    let (clock, _) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    Registry::new(Some(dir.path().to_owned()), rules(), vec![built_in], clock)
}

fn ids(registry: &Registry) -> Vec<String> {
    registry.index().entries().iter().map(|entry| entry.id().to_string()).collect()
}

#[tokio::test]
async fn entries_of_all_sources_are_one_index() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "a.toml", &toml("file"));
    let registry = registry(&dir);
    assert!(!registry.last_load().ok, "nothing was loaded yet");
    assert!(registry.reload().await.ok);
    registry.set_store_entries(vec![stored("store")]).await.expect("no clash");
    assert_eq!(ids(&registry), ["file", "store", "built-in"]);
    assert_eq!(registry.index().generation(), 2);
}

#[tokio::test]
async fn a_mistake_in_any_file_changes_nothing_and_is_reported_until_it_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "a.toml", &toml("a"));
    let registry = registry(&dir);
    registry.reload().await;
    let before = registry.index();

    write(dir.path(), "a.toml", &toml("a2"));
    write(dir.path(), "b.toml", "nonsense = 1\n");
    let state = registry.reload().await;
    assert!(!state.ok);
    let expected = format!(
        "{}:1:1: unknown key `nonsense`: a file has only `[[entry]]` tables",
        dir.path().join("b.toml").display()
    );
    assert_eq!(state.mistakes.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
    assert_eq!(registry.last_load(), state);
    assert!(Arc::ptr_eq(&before, &registry.index()));

    write(dir.path(), "b.toml", &toml("b"));
    assert!(registry.reload().await.ok);
    assert_eq!(ids(&registry), ["a2", "b", "built-in"]);
}

#[tokio::test]
async fn nobody_is_woken_when_the_entries_are_the_same_as_before() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "a.toml", &toml("a"));
    let registry = registry(&dir);
    registry.reload().await;
    registry.set_store_entries(vec![stored("s")]).await.expect("no clash");
    let mut changes = registry.subscribe();
    changes.mark_unchanged();
    // Written again, read again, the same.
    write(dir.path(), "a.toml", &toml("a"));
    assert!(registry.reload().await.ok);
    registry.set_store_entries(vec![stored("s")]).await.expect("no clash");
    assert!(!changes.has_changed().expect("open"));
}

#[tokio::test]
async fn an_id_is_used_once_over_files_and_store() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "a.toml", &toml("a"));
    let registry = registry(&dir);
    registry.reload().await;
    let error = registry.set_store_entries(vec![stored("b"), stored("a")]).await.expect_err("a clash");
    let path = dir.path().join("a.toml");
    let expected = format!(
        "the id `a` is used by an entry from file {}:1 and by one from store: change one of them",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(ids(&registry), ["a", "built-in"], "nothing was changed");

    registry.set_store_entries(vec![stored("b")]).await.expect("no clash");
    write(dir.path(), "a.toml", &format!("{}{}", toml("a"), toml("b")));
    let state = registry.reload().await;
    assert!(state.mistakes[0].message.contains("already used by the entry from store"), "{:?}", state.mistakes);
}

#[tokio::test]
async fn a_start_with_a_mistake_in_the_files_serves_what_was_served_before() {
    let (dir, state) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let kept = state.path().join("entries.kept");
    write(dir.path(), "a.toml", &toml("a"));
    write(dir.path(), "b.toml", &toml("b"));
    let before = registry(&dir).keeping(kept.clone());
    assert_eq!(before.reload().await.kept_from, None);
    let served = before.index();

    write(dir.path(), "b.toml", "nonsense = 1\n");
    let after = registry(&dir).keeping(kept.clone());
    let load = after.reload().await;
    assert!(!load.ok, "the mistake is reported");
    assert_eq!(load.kept_from, Some(OffsetDateTime::UNIX_EPOCH));
    assert_eq!(after.index().entries(), served.entries(), "with their places in the files");
    assert_eq!(after.reload().await.kept_from, load.kept_from, "as long as the mistake is there");

    write(dir.path(), "b.toml", &toml("c"));
    let load = after.reload().await;
    assert!(load.ok && load.kept_from.is_none());
    assert_eq!(ids(&after), ["a", "c", "built-in"]);
}

#[tokio::test]
async fn a_set_that_may_not_be_used_any_more_is_not_served() {
    let (dir, state) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let kept = state.path().join("entries.kept");
    write(dir.path(), "a.toml", &toml("a"));
    registry(&dir).keeping(kept.clone()).reload().await;
    write(dir.path(), "a.toml", "nonsense = 1\n");

    let elsewhere = Rules::new(TrustDomain::parse("elsewhere").expect("valid"));
    let (clock, _) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    let registered = Registry::new(Some(dir.path().to_owned()), elsewhere, Vec::new(), clock).keeping(kept.clone());
    assert_eq!(registered.reload().await.kept_from, None);
    assert_eq!(ids(&registered), [""; 0], "its entries are of another trust domain");

    let clashing = registry(&dir).keeping(kept.clone());
    clashing.set_store_entries(vec![stored("a")]).await.expect("no clash");
    assert_eq!(clashing.reload().await.kept_from, None);
    assert_eq!(ids(&clashing), ["a", "built-in"], "the store uses its id");

    for content in ["", "{}", r#"{"version":2,"at":"1970-01-01T00:00:00Z","files":[]}"#] {
        write(state.path(), "entries.kept", content);
        let damaged = registry(&dir).keeping(kept.clone());
        assert_eq!(damaged.reload().await.kept_from, None, "{content:?}");
        assert_eq!(ids(&damaged), ["built-in"], "{content:?}");
    }
}
