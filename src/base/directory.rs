//! Notices changes of a directory of files that people edit: entries, policies.
//!
//! Watched are the directory, for its files, and the nearest ancestor that exists, for the directory itself: it may be
//! removed, come back, or be a link that is pointed elsewhere. After a change the directory is read once it has been
//! quiet for [`SETTLE`]; while somebody is still writing a file, reading waits for that, but never longer than
//! [`PATIENCE`], so that a writer who never closes cannot hold changes back for ever.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use thiserror::Error;

use super::drain;

/// How long the directory must be quiet before it is read: editors and deployment tools touch it several times.
const SETTLE: Duration = Duration::from_millis(20);
/// How long a file may be open for writing before it is read as it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// The kernel cannot watch a directory, so changes would go unnoticed.
#[derive(Debug, Error)]
#[error("cannot watch the directory `{}`", path.display())]
pub struct WatchError {
    path: PathBuf,
    #[source]
    source: notify::Error,
}

/// Watches a directory: what changes from its making on is told by [`Self::changed`]. So: watch, read, and
/// [`Self::read_again`].
#[derive(Debug)]
pub struct DirectoryWatch {
    directory: PathBuf,
    watcher: RecommendedWatcher,
    watched: Vec<PathBuf>,
    changes: UnboundedReceiver<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// A file in the directory is being written.
    Writing(PathBuf),
    /// A file in the directory was written, moved, removed, or its mode changed.
    Settled(PathBuf),
    /// The directory is not, or may not be, the one that was watched.
    Directory,
}

impl DirectoryWatch {
    /// Begins to watch.
    pub fn new(directory: PathBuf) -> Result<Self, WatchError> {
        let directory = std::path::absolute(&directory).unwrap_or(directory);
        let (sender, changes) = unbounded_channel();
        let error = |source| WatchError { path: directory.clone(), source };
        let handler = reporter(directory.clone(), sender);
        let watcher = notify::recommended_watcher(handler).map_err(error)?;
        let mut this = Self { directory: directory.clone(), watcher, watched: Vec::new(), changes };
        this.arm().map_err(error)?;
        Ok(this)
    }

    /// Waits for a change, and until the directory is quiet after it. `None` when no further change would be noticed:
    /// then it is to be read once more, and watched anew.
    ///
    /// Dropped before it is ready, it may have lost a change: for use until the end of the watch.
    pub async fn changed(&mut self) -> Option<()> {
        let first = self.changes.recv().await?;
        if self.settle(first).await
            && let Err(error) = self.arm()
        {
            tracing::warn!(%error, directory = %self.directory.display(), "a directory is no longer watched");
            return None;
        }
        Some(())
    }

    /// Has it read again after each change, until the drain begins or no further change would be noticed.
    pub async fn read_again<T, F: Future<Output = T>>(mut self, mut drain: drain::Watcher, read: impl Fn() -> F) {
        loop {
            tokio::select! {
                changed = self.changed() => if changed.is_none() { return },
                () = drain.draining() => return,
            }
            read().await;
        }
    }

    /// Waits until the directory is quiet. Whether the directory itself may have changed.
    async fn settle(&mut self, first: Change) -> bool {
        let mut writing = HashSet::new();
        let mut directory_changed = false;
        let mut note = |change: Change| {
            match change {
                Change::Writing(path) => drop(writing.insert(path)),
                Change::Settled(path) => drop(writing.remove(&path)),
                Change::Directory => directory_changed = true,
            }
            !writing.is_empty()
        };
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        let mut is_being_written = note(first);
        loop {
            tokio::select! {
                change = self.changes.recv() => match change {
                    Some(change) => is_being_written = note(change),
                    None => return directory_changed,
                },
                () = tokio::time::sleep(SETTLE), if !is_being_written => return directory_changed,
                () = &mut patience => return directory_changed,
            }
        }
    }

    /// Watches the directory and its nearest existing ancestor anew. Called before reading, so that whatever happens
    /// after what was read is noticed.
    fn arm(&mut self) -> notify::Result<()> {
        for path in self.watched.drain(..) {
            // Fails when what was watched is gone, and then there is nothing to undo.
            let _ = self.watcher.unwatch(&path);
        }
        loop {
            let ancestor = self.directory.ancestors().skip(1).find(|path| path.is_dir()).unwrap_or(Path::new("/"));
            let ancestor = ancestor.to_owned();
            match self.watcher.watch(&ancestor, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched.push(ancestor),
                Err(_) if !ancestor.is_dir() => continue, // it went away just now: the next one up
                Err(error) => return Err(error),
            }
            match self.watcher.watch(&self.directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.push(self.directory.clone());
                    return Ok(());
                }
                Err(error) if self.directory.is_dir() => return Err(error),
                // Not there: its nearest ancestor tells when it comes. If a nearer one has come meanwhile, that one.
                Err(_) => {
                    let nearest = self.directory.ancestors().skip(1).find(|path| path.is_dir());
                    if nearest == self.watched.last().map(PathBuf::as_path) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Runs on the watcher's thread.
fn reporter(directory: PathBuf, changes: UnboundedSender<Change>) -> impl Fn(notify::Result<Event>) + Send + 'static {
    move |event| {
        // Of an error we know only that something was missed.
        let found = event.map_or_else(|_| vec![Change::Directory], |event| changes_in(&event, &directory));
        for change in found {
            // The receiver is gone when the watch has ended.
            let _ = changes.send(change);
        }
    }
}

fn changes_in(event: &Event, directory: &Path) -> Vec<Change> {
    if event.need_rescan() {
        return vec![Change::Directory];
    }
    let writing = match event.kind {
        // Our own reading.
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => return Vec::new(),
        EventKind::Modify(ModifyKind::Data(_)) => true,
        _ => false,
    };
    let change = |path: &PathBuf| match path.parent() {
        _ if directory.starts_with(path) => Some(Change::Directory),
        Some(parent) if parent == directory && writing => Some(Change::Writing(path.clone())),
        Some(parent) if parent == directory => Some(Change::Settled(path.clone())),
        _ => None, // a neighbour of the directory or of its ancestor
    };
    event.paths.iter().filter_map(change).collect()
}
