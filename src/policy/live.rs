//! The policies of a running agent, and when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::watch;

use super::compile::{BuiltIn, PolicyFile, built_in, compile};
use super::load::{self, Files};
use super::set::PolicySet;
use crate::base::clock::Clock;
use crate::base::directory::{DirectoryWatch, WatchError};
use crate::base::files::aside;
use crate::base::mistake::Mistake;
use crate::registry::LoadState;

/// Why an agent cannot begin with the policies that there are.
#[derive(Debug, Error)]
#[error("the policies have mistakes, and without them the agent does not start:{}", lines(.0))]
pub struct PoliciesRefused(Arc<[Mistake]>);

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("\n  {mistake}")).collect()
}

/// The policies in force, replaced as a whole. Cheap to clone; the clones are one.
#[derive(Clone, Debug)]
pub struct Policies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    built_in: BuiltIn,
    clock: Clock,
    /// Held while a set is made, so that sets follow one another in the order of their causes.
    source: Mutex<Source>,
    set: watch::Sender<Arc<PolicySet>>,
    state: watch::Sender<Arc<LoadState>>,
}

#[derive(Debug)]
struct Source {
    directory: Option<PathBuf>,
    /// Until it has been there once.
    may_be_absent: bool,
    files: Vec<PolicyFile>,
}

impl Policies {
    /// The built-in policies alone, for good.
    pub fn built_in(which: BuiltIn) -> Self {
        Self::with(which, None, false, Clock::system())
    }

    /// The built-in policies and those of a directory, which may be missing at first only if `may_be_absent`. An agent
    /// must not begin with others than its operator wrote, so here a mistake is an error.
    pub async fn open(
        which: BuiltIn,
        directory: PathBuf,
        may_be_absent: bool,
        clock: Clock,
    ) -> Result<Self, PoliciesRefused> {
        let policies = Self::with(which, Some(directory), may_be_absent, clock);
        let loaded = policies.reload().await;
        if loaded.ok { Ok(policies) } else { Err(PoliciesRefused(loaded.mistakes.clone())) }
    }

    fn with(which: BuiltIn, directory: Option<PathBuf>, may_be_absent: bool, clock: Clock) -> Self {
        let state = LoadState {
            ok: directory.is_none(),
            mistakes: [].into(),
            warnings: [].into(),
            at: clock.now(),
            files: 0,
            kept_from: None,
        };
        Self(Arc::new(Shared {
            built_in: which,
            clock,
            source: Mutex::new(Source { directory, may_be_absent, files: Vec::new() }),
            set: watch::Sender::new(Arc::new(built_in(which))),
            state: watch::Sender::new(Arc::new(state)),
        }))
    }

    /// This set, for good.
    #[cfg(test)]
    pub(super) fn of(set: PolicySet) -> Self {
        let policies = Self::built_in(BuiltIn::Issue);
        policies.0.set.send_replace(Arc::new(set));
        policies
    }

    /// The policies in force.
    pub fn set(&self) -> Arc<PolicySet> {
        self.0.set.borrow().clone()
    }

    /// The policies in force, and every later set.
    pub fn watch(&self) -> watch::Receiver<Arc<PolicySet>> {
        self.0.set.subscribe()
    }

    /// What became of the last look at the directory.
    pub fn last_load(&self) -> Arc<LoadState> {
        self.0.state.borrow().clone()
    }

    /// What became of the last look and of every later one.
    pub fn loads(&self) -> watch::Receiver<Arc<LoadState>> {
        self.0.state.subscribe()
    }

    /// Reads the directory. If it is without mistakes and its files are others than before, the set is replaced; with any
    /// mistake the set before stays. Either way the answer is also [`Self::last_load`].
    pub async fn reload(&self) -> Arc<LoadState> {
        let shared = self.0.clone();
        aside(move || shared.reload()).await
    }

    /// Begins to watch the directory, see [`DirectoryWatch`]. `None` where there is no directory.
    pub fn watch_directory(&self) -> Result<Option<DirectoryWatch>, WatchError> {
        self.0.source().directory.clone().map(DirectoryWatch::new).transpose()
    }
}

impl Shared {
    /// The lock is held by plain code that replaces its fields last, so what a panic left behind is whole.
    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload(&self) -> Arc<LoadState> {
        let mut source = self.source();
        let (files, mistakes, warnings) = match self.read(&mut source) {
            Ok((files, warnings)) => (files, Vec::new(), warnings),
            Err(mistakes) => (source.files.len(), mistakes, Vec::new()),
        };
        let state = Arc::new(LoadState {
            ok: mistakes.is_empty(),
            mistakes: mistakes.into(),
            warnings: warnings.into(),
            at: self.clock.now(),
            files,
            kept_from: None,
        });
        self.state.send_replace(state.clone());
        state
    }

    /// How many files there are, and what is unusual in them.
    fn read(&self, source: &mut Source) -> Result<(usize, Vec<Mistake>), Vec<Mistake>> {
        let Files { files, mut warnings } = source.look()?;
        if files != source.files {
            let compiled = compile(self.built_in, &files)?;
            warnings.extend(compiled.warnings);
            let generation = self.set.borrow().generation() + 1;
            source.files = files;
            self.set.send_replace(Arc::new(compiled.set.with_generation(generation)));
        }
        Ok((source.files.len(), warnings))
    }
}

impl Source {
    fn look(&mut self) -> Result<Files, Vec<Mistake>> {
        let Some(directory) = &self.directory else { return Ok(Files::default()) };
        if self.may_be_absent && load::is_absent(directory) {
            let text = "there is no such directory: nothing but the built-in policies is in force";
            return Ok(Files { files: Vec::new(), warnings: vec![Mistake::whole(directory, text)] });
        }
        let found = load::directory(directory)?;
        self.may_be_absent = false;
        Ok(found)
    }
}

/// Whether a directory that nobody named may be missing: it is the default one.
pub fn is_default(directory: &Path) -> bool {
    directory == Path::new(DEFAULT_DIRECTORY)
}

/// Where the policies of an installed agent are.
pub const DEFAULT_DIRECTORY: &str = "/etc/tether/policies";

#[cfg(test)]
mod tests;
