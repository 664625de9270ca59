//! The entries directory is watched: real files and the real kernel. Every wait is for something to happen; what must
//! not happen is shown by what comes after it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use time::OffsetDateTime;

use super::super::*;
use crate::base::clock::Clock;
use crate::base::drain;
use crate::base::durable;
use crate::id::TrustDomain;
use crate::registry::{LoadState, Rules};

fn toml(id: &str) -> String {
    format!("[[entry]]\nid = '{id}'\nspiffe_id = 'spiffe://td/{id}'\nmatch = ['unix:uid:1']\nowner = 'o'\n")
}

fn write(path: &Path, content: &str) {
    durable::replace(path, content.as_bytes(), 0o600).expect("written");
}

/// Watches from now on, and reads again while it is polled.
fn watching(registry: &Registry, watcher: drain::Watcher) -> impl Future<Output = ()> + use<> {
    let watch = registry.watch_directory().expect("the kernel can watch").expect("there is a directory");
    let registry = registry.clone();
    async move { watch.read_again(watcher, || registry.reload()).await }
}

/// A registry over `DIR/entries.d`, watched by a task until it is dropped.
struct Watched {
    dir: TempDir,
    registry: Registry,
    _stop: drain::Trigger,
}

impl Watched {
    async fn new(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        prepare(dir.path());
        let (clock, _) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let rules = Rules::new(TrustDomain::parse("td").expect("valid"));
        let registry = Registry::new(Some(dir.path().join("entries.d")), rules, Vec::new(), clock);
        let (stop, watcher) = drain::channel();
        let watching = watching(&registry, watcher);
        registry.reload().await;
        tokio::spawn(watching);
        Self { dir, registry, _stop: stop }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits until exactly these entries are served.
    async fn serves(&self, expected: &[&str]) {
        let mut indexes = self.registry.subscribe();
        let is_there = |index: &Arc<crate::registry::Index>| {
            index.entries().iter().map(|entry| entry.id().as_str()).eq(expected.iter().copied())
        };
        indexes.wait_for(is_there).await.expect("the registry lives");
    }

    /// Waits for a load of which this holds.
    async fn loads(&self, like: impl Fn(&LoadState) -> bool) {
        self.registry.loads().wait_for(|state| like(state)).await.expect("the registry lives");
    }

    fn ids(&self) -> Vec<String> {
        self.registry.index().entries().iter().map(|entry| entry.id().to_string()).collect()
    }
}

fn empty_directory(dir: &Path) {
    fs::create_dir(dir.join("entries.d")).expect("made");
}

#[tokio::test]
async fn files_that_are_renamed_into_place_written_in_place_or_removed_are_noticed() {
    let watched = Watched::new(empty_directory).await;
    write(&watched.path("entries.d/a.toml"), &toml("a"));
    watched.serves(&["a"]).await;
    // In place: cut to nothing, then written.
    fs::File::create(watched.path("entries.d/a.toml"))
        .and_then(|mut f| f.write_all(toml("a2").as_bytes()))
        .expect("written");
    watched.serves(&["a2"]).await;
    write(&watched.path("entries.d/b.toml"), &toml("b"));
    watched.serves(&["a2", "b"]).await;
    fs::rename(watched.path("entries.d/a.toml"), watched.path("entries.d/c.toml")).expect("renamed");
    watched.serves(&["b", "a2"]).await;
    fs::remove_file(watched.path("entries.d/b.toml")).expect("removed");
    watched.serves(&["a2"]).await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_until_it_is_mended() {
    let watched = Watched::new(empty_directory).await;
    write(&watched.path("entries.d/a.toml"), &toml("a"));
    watched.serves(&["a"]).await;
    write(&watched.path("entries.d/b.toml"), "[[entry]]\nid = 'b'\n");
    watched.loads(|state| state.mistakes.len() == 3).await;
    assert_eq!(watched.ids(), ["a"]);
    write(&watched.path("entries.d/b.toml"), &toml("b"));
    watched.serves(&["a", "b"]).await;
    watched.loads(|state| state.ok).await;
}

#[tokio::test]
async fn a_file_is_not_read_while_somebody_is_writing_it() {
    let watched = Watched::new(empty_directory).await;
    write(&watched.path("entries.d/a.toml"), &toml("a"));
    watched.serves(&["a"]).await;
    let before = watched.registry.index().generation();
    let mut file = fs::File::create(watched.path("entries.d/a.toml")).expect("created");
    file.write_all(b"# nothing yet\n").expect("written");
    // A neighbour that is complete does not make the half of the other count.
    write(&watched.path("entries.d/b.toml"), &toml("b"));
    file.write_all(toml("a2").as_bytes()).expect("written");
    drop(file);
    watched.serves(&["a2", "b"]).await;
    assert_eq!(watched.registry.index().generation(), before + 1, "nothing else was served in between");
}

#[tokio::test]
async fn a_directory_that_disappears_keeps_its_entries_and_is_noticed_when_it_comes_back() {
    let watched = Watched::new(empty_directory).await;
    write(&watched.path("entries.d/a.toml"), &toml("a"));
    watched.serves(&["a"]).await;
    fs::rename(watched.path("entries.d"), watched.path("elsewhere")).expect("moved");
    watched.loads(|state| !state.ok).await;
    assert_eq!(watched.ids(), ["a"]);
    // It comes back empty, and is then filled.
    fs::create_dir(watched.path("entries.d")).expect("made");
    watched.serves(&[]).await;
    write(&watched.path("entries.d/b.toml"), &toml("b"));
    watched.serves(&["b"]).await;
    fs::remove_dir_all(watched.path("entries.d")).expect("removed");
    watched.loads(|state| !state.ok).await;
    fs::rename(watched.path("elsewhere"), watched.path("entries.d")).expect("moved back");
    watched.serves(&["a"]).await;
}

#[tokio::test]
async fn a_directory_whose_parents_do_not_exist_yet_is_noticed_when_it_comes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (clock, _) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    let rules = Rules::new(TrustDomain::parse("td").expect("valid"));
    let directory = dir.path().join("etc/tether/entries.d");
    let registry = Registry::new(Some(directory.clone()), rules, Vec::new(), clock);
    let (_stop, watcher) = drain::channel();
    let watching = watching(&registry, watcher);
    assert!(!registry.reload().await.ok);
    tokio::spawn(watching);
    fs::create_dir_all(&directory).expect("made");
    write(&directory.join("a.toml"), &toml("a"));
    let mut indexes = registry.subscribe();
    indexes.wait_for(|index| index.entry("a").is_some()).await.expect("the registry lives");
}

/// How mounted volumes are updated: the files are links through `..data`, which is swapped by one rename.
#[tokio::test]
async fn a_swapped_link_inside_the_directory_is_noticed() {
    let watched = Watched::new(|dir| {
        let entries = dir.join("entries.d");
        for (version, id) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir_all(entries.join(version)).expect("made");
            write(&entries.join(version).join("a.toml"), &toml(id));
        }
        symlink("..1", entries.join("..data")).expect("linked");
        symlink("..data/a.toml", entries.join("a.toml")).expect("linked");
    })
    .await;
    watched.serves(&["one"]).await;
    symlink("..2", watched.path("entries.d/..data_tmp")).expect("linked");
    fs::rename(watched.path("entries.d/..data_tmp"), watched.path("entries.d/..data")).expect("swapped");
    watched.serves(&["two"]).await;
}

#[tokio::test]
async fn a_directory_that_is_a_link_is_followed_to_where_it_is_pointed_next() {
    let watched = Watched::new(|dir| {
        for id in ["one", "two"] {
            fs::create_dir(dir.join(id)).expect("made");
            write(&dir.join(id).join("a.toml"), &toml(id));
        }
        symlink("one", dir.join("entries.d")).expect("linked");
    })
    .await;
    watched.serves(&["one"]).await;
    symlink("two", watched.path("next")).expect("linked");
    fs::rename(watched.path("next"), watched.path("entries.d")).expect("swapped");
    watched.serves(&["two"]).await;
    // And what happens there from now on is noticed.
    write(&watched.path("two/b.toml"), &toml("b"));
    watched.serves(&["two", "b"]).await;
}

#[tokio::test]
async fn the_watch_ends_with_the_drain() {
    let dir = tempfile::tempdir().expect("a directory");
    let (clock, _) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    let rules = Rules::new(TrustDomain::parse("td").expect("valid"));
    let registry = Registry::new(Some(dir.path().to_owned()), rules, Vec::new(), clock);
    let (stop, watcher) = drain::channel();
    let running = tokio::spawn(watching(&registry, watcher));
    stop.drain().await;
    running.await.expect("it ended");
}
