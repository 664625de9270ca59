//! The registry of a running agent: entries from all sources, the index over them, and when it changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::entry::Entry;
use super::index::Index;
use super::kept::Kept;
use super::load::{FileText, Loader};
use super::parse::Rules;
use crate::base::clock::Clock;
use crate::base::directory::{DirectoryWatch, WatchError};
use crate::base::files::aside;
use crate::base::mistake::Mistake;

/// Why the registry refused something.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// Two entries have one id; nothing was changed.
    #[error("the id `{id}` is used by an entry from {first} and by one from {second}: change one of them")]
    Clash {
        /// The id.
        id: String,
        /// Where the one comes from.
        first: String,
        /// Where the other comes from.
        second: String,
    },
}

/// What became of the last look at the entries directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadState {
    /// Whether the entries that are served are those in the directory.
    pub ok: bool,
    /// Every mistake; the entries of the last good load are still served.
    pub mistakes: Arc<[Mistake]>,
    /// What is allowed but probably not meant.
    pub warnings: Arc<[Mistake]>,
    /// When it was.
    pub at: OffsetDateTime,
    /// How many files there were.
    pub files: usize,
    /// Where the entries that are served are older than this agent: when they were read without a mistake.
    pub kept_from: Option<OffsetDateTime>,
}

/// Entries from files, from the store and built-in ones, as one index that is replaced whole.
///
/// Cheap to clone; the clones are one registry.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    directory: Option<PathBuf>,
    /// Held while the next index is built, so that indexes follow one another in the order of their causes.
    sources: Mutex<Sources>,
    index: watch::Sender<Arc<Index>>,
    state: watch::Sender<Arc<LoadState>>,
}

#[derive(Debug)]
struct Sources {
    loader: Option<Loader>,
    files: Vec<Arc<Entry>>,
    kept: Option<Kept>,
    /// Whether what is kept is what `files` came from.
    is_kept: bool,
    /// Since when `files` are from before this agent.
    kept_from: Option<OffsetDateTime>,
    /// Whether files were loaded without a mistake.
    loaded: bool,
    store: Vec<Arc<Entry>>,
    built_in: Vec<Arc<Entry>>,
    generation: u64,
}

impl Registry {
    /// A registry with the built-in entries only. `directory` is read by the first [`Self::reload`].
    pub fn new(directory: Option<PathBuf>, rules: Rules, built_in: Vec<Entry>, clock: Clock) -> Self {
        let built_in: Vec<_> = built_in.into_iter().map(Arc::new).collect();
        let index = Index::build(0, built_in.clone());
        let loader = directory.clone().map(|directory| Loader::new(directory, rules));
        let state = LoadState {
            ok: directory.is_none(),
            mistakes: [].into(),
            warnings: [].into(),
            at: clock.now(),
            files: 0,
            kept_from: None,
        };
        let sources = Sources {
            loader,
            files: Vec::new(),
            kept: None,
            is_kept: false,
            kept_from: None,
            loaded: false,
            store: Vec::new(),
            built_in,
            generation: 0,
        };
        Self(Arc::new(Shared {
            clock,
            directory,
            sources: Mutex::new(sources),
            index: watch::Sender::new(Arc::new(index)),
            state: watch::Sender::new(Arc::new(state)),
        }))
    }

    /// Keeps the last set of files without a mistake in the file at `path`, and serves it after a start with a mistake
    /// in them. Call it before the first [`Self::reload`].
    #[must_use]
    pub fn keeping(self, path: PathBuf) -> Self {
        self.0.sources().kept = Some(Kept::at(path));
        self
    }

    /// The index now.
    pub fn index(&self) -> Arc<Index> {
        self.0.index.borrow().clone()
    }

    /// The index now and every later one.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Index>> {
        self.0.index.subscribe()
    }

    /// What became of the last load. Not `ok` before the first.
    pub fn last_load(&self) -> Arc<LoadState> {
        self.0.state.borrow().clone()
    }

    /// What became of the last load and of every later one.
    pub fn loads(&self) -> watch::Receiver<Arc<LoadState>> {
        self.0.state.subscribe()
    }

    /// Reads the entries directory. If it is without mistakes and its entries are others than before, the index is
    /// replaced; with any mistake nothing changes. Either way the answer is also [`Self::last_load`].
    pub async fn reload(&self) -> Arc<LoadState> {
        let shared = self.0.clone();
        aside(move || shared.reload()).await
    }

    /// Replaces the entries from the store. With an id that a file or a built-in entry has, nothing changes.
    pub async fn set_store_entries(&self, entries: Vec<Arc<Entry>>) -> Result<(), RegistryError> {
        let shared = self.0.clone();
        aside(move || shared.set_store_entries(entries)).await
    }

    /// Begins to watch the entries directory, see [`DirectoryWatch`]. `None` where there is no directory.
    pub fn watch_directory(&self) -> Result<Option<DirectoryWatch>, WatchError> {
        self.0.directory.clone().map(DirectoryWatch::new).transpose()
    }
}

impl Shared {
    /// The lock is held by plain code that replaces its fields last, so what a panic left behind is whole.
    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload(&self) -> Arc<LoadState> {
        let mut sources = self.sources();
        let now = self.clock.now();
        let others: Vec<_> = sources.store.iter().chain(&sources.built_in).cloned().collect();
        let loaded = sources.loader.as_mut().map(|loader| loader.load(&others, now)).unwrap_or_default();
        let ok = loaded.mistakes.is_empty();
        if ok {
            sources.loaded = true;
            sources.kept_from = None;
            if !same(&sources.files, &loaded.entries) {
                sources.files = loaded.entries;
                sources.is_kept = false;
                self.flip(&mut sources);
            }
            sources.keep(&loaded.texts, now);
        } else if !sources.loaded && sources.kept_from.is_none() {
            self.take_kept(&mut sources, &others);
        }
        let state = Arc::new(LoadState {
            ok,
            mistakes: loaded.mistakes.into(),
            warnings: loaded.warnings.into(),
            at: now,
            files: loaded.files,
            kept_from: sources.kept_from,
        });
        self.state.send_replace(state.clone());
        state
    }

    /// Serves what the agent before this one served.
    fn take_kept(&self, sources: &mut Sources, others: &[Arc<Entry>]) {
        let (Some(kept), Some(loader)) = (&sources.kept, &sources.loader) else { return };
        match kept.load(others, loader.rules()) {
            Ok(last) => {
                sources.files = last.entries;
                sources.kept_from = Some(last.at);
                self.flip(sources);
            }
            Err(error) => {
                let path = kept.path().display();
                tracing::error!(%path, %error, "no entry file is in force: those of before the start cannot be used");
            }
        }
    }

    fn set_store_entries(&self, entries: Vec<Arc<Entry>>) -> Result<(), RegistryError> {
        let mut sources = self.sources();
        let mut first: std::collections::HashMap<&str, &Entry> = std::collections::HashMap::new();
        for entry in sources.files.iter().chain(&sources.built_in).chain(&entries) {
            if let Some(earlier) = first.insert(entry.id().as_str(), entry) {
                return Err(RegistryError::Clash {
                    id: entry.id().to_string(),
                    first: earlier.origin().to_string(),
                    second: entry.origin().to_string(),
                });
            }
        }
        drop(first);
        if !same(&sources.store, &entries) {
            sources.store = entries;
            self.flip(&mut sources);
        }
        Ok(())
    }

    fn flip(&self, sources: &mut Sources) {
        sources.generation += 1;
        let all = sources.files.iter().chain(&sources.store).chain(&sources.built_in).cloned();
        self.index.send_replace(Arc::new(Index::build(sources.generation, all.collect())));
    }
}

impl Sources {
    /// Keeps the files that were just loaded, after what they say is in force.
    fn keep(&mut self, texts: &[(Arc<Path>, String)], now: OffsetDateTime) {
        let Some(kept) = self.kept.as_ref().filter(|_| !self.is_kept) else { return };
        let files = texts.iter().map(|(path, text)| FileText { path: path.to_string_lossy(), text: text.into() });
        match kept.save(files.collect(), now) {
            Ok(()) => self.is_kept = true,
            Err(error) => {
                tracing::warn!(%error, "a start with a mistake in the entry files would find no entries: they cannot be kept");
            }
        }
    }
}

/// Whether two lists hold the same entries. Those of files that were not parsed again are the same allocation.
fn same(a: &[Arc<Entry>], b: &[Arc<Entry>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
}

#[cfg(test)]
mod tests;
