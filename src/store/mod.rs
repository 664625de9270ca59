//! Small durable state: registration entries, authorities, bundles, approvals.
//!
//! Keys and JSON values in named [`Space`]s. Every change is one atomic, synced transaction and gets the next
//! revision of the whole store; a change may name the revision it replaces (compare and swap). The interface is
//! asynchronous and knows nothing of files beyond [`Store::open`], so that an engine such as etcd can stand in its
//! place.
//!
//! After a crash the store holds exactly the transactions that had returned. One process at a time can open it.
//!
//! # Damage
//! Beside the store is a copy of it, to which each transaction is synced before it returns. A store that is damaged,
//! missing, or older than its copy is set aside when it is opened, and built anew from the copy ([`Recovered`]): nothing
//! that had returned is lost, and nothing comes back that was removed. Where the copy cannot be written there is none, and
//! that is said ([`Store::weaknesses`]); where it is damaged as well, the store is not opened.
//!
//! A failing disk is no damage: the operation fails, and the next one opens the file again.

mod copy;
mod engine;
mod image;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::sync::watch;

use self::copy::{Copy, Found};
use self::engine::{Engine, Raw};
pub use self::image::{Image, ImageError};
use crate::base::durable;
use crate::base::text::chain;

/// A group of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Registration entries made through the admin API, by entry id.
    Entries,
    /// Signing authorities, by authority id.
    Authorities,
    /// Bundles that an operator set, by trust domain.
    Bundles,
    /// What waits for a person's word or was decided by one, by approval id.
    Approvals,
    /// Single values: the node id, the bundle's sequence number.
    Node,
}

impl Space {
    const ALL: [Self; 5] = [Self::Entries, Self::Authorities, Self::Bundles, Self::Approvals, Self::Node];

    /// What stands for it in an image; never another one.
    fn number(self) -> u8 {
        match self {
            Self::Entries => 1,
            Self::Authorities => 2,
            Self::Bundles => 3,
            Self::Approvals => 4,
            Self::Node => 5,
        }
    }

    fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|space| space.number() == number)
    }
}

/// Why the store could not do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("another agent uses `{}`: stop it first, or give this one a directory of its own", .0.display())]
    InUse(PathBuf),
    /// The file is damaged, and there is no copy it could be built from.
    #[error(
        "the store `{}` is damaged: move the state directory away and restore it from a backup (`tether restore`)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file was written by a newer agent.
    #[error("the store `{}` was written by a newer agent (schema {found}, this one knows {known}): upgrade this agent", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: u64,
        /// The newest that this agent knows.
        known: u64,
    },
    /// The key exists although it must not, or its revision has moved on.
    #[error("`{key}` was changed meanwhile: read it again and repeat")]
    Conflict {
        /// The key in question.
        key: String,
    },
    /// The disk refused: it is full, read-only, or failing. Nothing was changed, unless it failed in the last step of all.
    #[error("the store could not be read or written; nothing was changed")]
    Io(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A value is not what this version writes.
    #[error("the value of `{key}` in the store cannot be read")]
    Value {
        /// The key in question.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl StoreError {
    fn io(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Io(Box::new(source))
    }

    /// Whether the file has to be opened again before anything else can be done with it.
    fn is_of_the_file(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Damaged { .. })
    }
}

/// What must hold for a change to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: the last writer wins.
    Any,
    /// There is no such key.
    Absent,
    /// The key has this revision.
    Revision(u64),
}

/// One change of a transaction.
#[derive(Debug)]
pub struct Change {
    space: Space,
    key: String,
    value: Option<Vec<u8>>,
    expect: Expect,
}

impl Change {
    /// Sets a key.
    pub fn put(space: Space, key: &str, value: &impl Serialize, expect: Expect) -> Self {
        let value = serde_json::to_vec(value).expect("plain data with string keys serialises");
        Self { space, key: key.to_owned(), value: Some(value), expect }
    }

    /// Removes a key; removing what is not there is fine with [`Expect::Any`].
    pub fn delete(space: Space, key: &str, expect: Expect) -> Self {
        Self { space, key: key.to_owned(), value: None, expect }
    }
}

/// A value and the revision at which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// The revision of the transaction that wrote it.
    pub revision: u64,
}

/// What was done about a store that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// What was wrong with it.
    pub why: String,
    /// Where it is now; `None` when there was none.
    pub aside: Option<PathBuf>,
    /// The revision of the copy it was built from.
    pub revision: u64,
    /// Whether the copy ended in a change that was not written whole. Nobody was told that it had been made, unless the copy
    /// was damaged too.
    pub torn: bool,
}

/// The store; clones share it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    recovered: Option<Recovered>,
    files: Mutex<Files>,
    health: watch::Sender<Result<(), String>>,
    /// Why there is no copy.
    uncopied: Mutex<Option<String>>,
}

/// The store and its copy, used by one at a time.
#[derive(Debug)]
struct Files {
    /// Closed after a failure: the next use opens it again.
    engine: Option<Engine>,
    /// Absent where it could not be written.
    copy: Option<Copy>,
}

impl Store {
    /// Opens the store in `path`, creating it when it is missing, and building it anew where its copy can tell what was in
    /// it.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(path));
        opened.await.map_err(StoreError::io)?
    }

    fn open_blocking(path: PathBuf) -> Result<Self, StoreError> {
        let was_there = has_content(&path);
        let found = Copy::find(&path)?;
        let (engine, recovered) = match open_checked(&path, was_there, &found) {
            Ok(engine) => (engine, None),
            Err(Unusable::Refused(error)) => return Err(error),
            Err(Unusable::Rebuild(why)) => {
                let (engine, recovered) = copy::rebuild(&path, why)?;
                (engine, Some(recovered))
            }
        };
        let (health, _) = watch::channel(Ok(()));
        let mut files = Files { engine: Some(engine), copy: None };
        let uncopied = Mutex::new(files.follow(&path).err());
        Ok(Self(Arc::new(Inner { path, recovered, files: Mutex::new(files), health, uncopied })))
    }

    /// Whether there is neither a store in `path` nor a copy that one could be built from.
    pub fn is_new(path: &Path) -> bool {
        !has_content(path) && !has_content(&copy::path(path))
    }

    /// What was done about the store when it was opened.
    pub fn recovered(&self) -> Option<&Recovered> {
        self.0.recovered.as_ref()
    }

    /// Whether changes can be written, and if not why not.
    pub fn healthy(&self) -> watch::Receiver<Result<(), String>> {
        self.0.health.subscribe()
    }

    /// What is weaker than it should be, and what to do about it.
    pub fn weaknesses(&self) -> Vec<String> {
        let aside = copy::set_aside(&self.0.path).into_iter().map(|path| {
            let path = path.display();
            format!("the store was damaged and was built anew from its copy: look into `{path}`, and remove it then")
        });
        let uncopied = self.0.uncopied.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let uncopied = uncopied.map(|why| format!("the store has no copy, so damage to it would need a backup: {why}"));
        aside.chain(uncopied).collect()
    }

    /// The value of a key.
    pub async fn get<T: DeserializeOwned>(&self, space: Space, key: &str) -> Result<Option<Versioned<T>>, StoreError> {
        let at = key.to_owned();
        let raw = self.with(move |files, path| files.engine(path)?.get(path, space, &at)).await?;
        raw.map(|raw| decode(key, raw)).transpose()
    }

    /// Whether anything can be read from it, by reading `key`. Blocks: for whoever must not wait for a thread of the pool.
    pub fn read_blocking(&self, space: Space, key: &str) -> Result<(), StoreError> {
        self.0.work(|files, path| files.engine(path)?.get(path, space, key)).map(drop)
    }

    /// All keys and values of a space, in the order of the keys.
    pub async fn list<T: DeserializeOwned>(&self, space: Space) -> Result<Vec<(String, Versioned<T>)>, StoreError> {
        let raw = self.with(move |files, path| files.engine(path)?.list(path, space)).await?;
        raw.into_iter().map(|(key, raw)| Ok((key.clone(), decode(&key, raw)?))).collect()
    }

    /// Makes all changes in one transaction, or none. Returns the revision they have.
    pub async fn apply(&self, changes: Vec<Change>) -> Result<u64, StoreError> {
        let store = self.clone();
        let applied = self.with(move |files, path| {
            let revision = files.engine(path)?.apply(path, &changes)?;
            store.copied(files.record(path, revision, &changes));
            Ok(revision)
        });
        self.reported(applied.await)
    }

    /// All of it, at one revision.
    pub async fn image(&self) -> Result<Vec<u8>, StoreError> {
        self.with(move |files, path| Ok(files.engine(path)?.image(path)?.1)).await
    }

    /// Tries whether it can be written to, after a failure, and makes the copy that could not be made.
    pub async fn try_again(&self) -> Result<(), StoreError> {
        let store = self.clone();
        let tried = self.with(move |files, path| {
            files.engine(path)?.probe(path)?;
            if files.copy.is_none() {
                store.copied(files.follow(path));
            }
            Ok(())
        });
        self.reported(tried.await)
    }

    /// Tells how it is, by what became of a change.
    fn reported<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let health = match &result {
            Err(error) if error.is_of_the_file() => Err(chain(error)),
            // What nobody could have done says nothing about the disk.
            Err(_) => return result,
            Ok(_) => Ok(()),
        };
        self.0.health.send_if_modified(|known| {
            let is_news = *known != health;
            *known = health;
            is_news
        });
        result
    }

    fn copied(&self, copied: Result<(), String>) {
        if let Err(why) = &copied {
            tracing::error!(%why, "the store has no copy for now");
        }
        *self.0.uncopied.lock().unwrap_or_else(PoisonError::into_inner) = copied.err();
    }

    /// Works on the files, where that holds up nobody, and closes them after a failure.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Files, &Path) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.0.clone();
        let worked = tokio::task::spawn_blocking(move || inner.work(work));
        worked.await.map_err(StoreError::io)?
    }
}

impl Inner {
    /// Works on the files, and closes them after a failure. Blocks.
    fn work<T>(&self, work: impl FnOnce(&mut Files, &Path) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut files = self.lock();
        let result = work(&mut files, &self.path);
        if result.as_ref().is_err_and(StoreError::is_of_the_file) {
            files.engine = None;
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(|poisoned| {
            let mut files = poisoned.into_inner();
            // Whatever was going on, the file knows.
            files.engine = None;
            files
        })
    }
}

impl Files {
    /// The open file; after a failure it is opened anew.
    fn engine(&mut self, path: &Path) -> Result<&Engine, StoreError> {
        if self.engine.is_none() {
            if !has_content(path) {
                return Err(damaged(path, "it is missing or empty".to_owned()));
            }
            let engine = Engine::open(path)?;
            // The transaction that failed may be there or not: then the copy is not that of this store.
            let revision = engine.revision(path)?;
            if self.copy.as_ref().is_some_and(|copy| copy.revision() > revision) {
                return Err(damaged(path, "it lost changes; the next start builds it anew".to_owned()));
            }
            if self.copy.as_ref().is_some_and(|copy| copy.revision() != revision) {
                self.copy = None;
            }
            self.engine = Some(engine);
        }
        self.engine.as_ref().ok_or_else(|| damaged(path, "it was closed".to_owned()))
    }

    /// Writes a transaction to the copy. Where that is not possible there is none: an old one would bring back what was
    /// removed.
    fn record(&mut self, path: &Path, revision: u64, changes: &[Change]) -> Result<(), String> {
        let recorded = match &mut self.copy {
            Some(copy) if copy.is_due() || copy.revision() + 1 != revision => None,
            Some(copy) => Some(copy.record(revision, changes)),
            None => None,
        };
        match recorded {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => self.follow(path),
        }
    }

    /// Makes the copy what the store is.
    fn follow(&mut self, path: &Path) -> Result<(), String> {
        self.copy = None;
        let followed = self.engine(path).and_then(|engine| Copy::follow(path, engine));
        let copy = followed.map_err(|error| match Copy::remove(path) {
            Ok(()) => chain(&error),
            Err(stays) => format!("{}; and the old one is still there: {}", chain(&error), chain(&stays)),
        })?;
        self.copy = Some(copy);
        Ok(())
    }
}

/// Why a store that was found is not used.
enum Unusable {
    /// It is to be built anew from its copy.
    Rebuild(String),
    /// There is nothing to be done here.
    Refused(StoreError),
}

/// Opens a store, if it is what it was.
fn open_checked(path: &Path, was_there: bool, found: &Found) -> Result<Engine, Unusable> {
    let refused = |error| Unusable::Refused(error);
    match (was_there, found) {
        (false, Found::Whole { .. }) => return Err(Unusable::Rebuild("it was missing or empty".to_owned())),
        (false, Found::Unusable(why)) => {
            return Err(refused(damaged(path, format!("it is missing or empty, and its copy cannot be used: {why}"))));
        }
        (true, _) | (false, Found::Missing) => {}
    }
    let engine = match (Engine::open(path), found) {
        (Ok(engine), _) => engine,
        (Err(StoreError::Damaged { source, .. }), Found::Whole { .. }) => {
            return Err(Unusable::Rebuild(format!("it is damaged: {source}")));
        }
        (Err(StoreError::Damaged { source, .. }), Found::Unusable(why)) => {
            return Err(refused(damaged(path, format!("{source}; and its copy cannot be used: {why}"))));
        }
        (Err(error), _) => return Err(refused(error)),
    };
    let Found::Whole { revision, .. } = found else { return Ok(engine) };
    match engine.revision(path) {
        Ok(has) if has < *revision => {
            Err(Unusable::Rebuild(format!("it has changes up to {has} alone, and its copy those up to {revision}")))
        }
        Ok(_) => Ok(engine),
        Err(StoreError::Damaged { source, .. }) => Err(Unusable::Rebuild(format!("it is damaged: {source}"))),
        Err(error) => Err(refused(error)),
    }
}

fn has_content(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0)
}

fn damaged(path: &Path, why: String) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), source: why.into() }
}

fn decode<T: DeserializeOwned>(key: &str, (revision, value): Raw) -> Result<Versioned<T>, StoreError> {
    let value = serde_json::from_slice(&value).map_err(|source| StoreError::Value { key: key.to_owned(), source })?;
    Ok(Versioned { value, revision })
}

/// Makes a store of an image, where there is none. Blocks.
pub fn restore(path: &Path, image: &Image) -> Result<(), StoreError> {
    copy::build(path, image)?;
    let rename = durable::rename(&copy::unfinished(path), path);
    rename.map_err(StoreError::io)
}
