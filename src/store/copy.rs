//! The copy beside the store, and building the store anew from it.
//!
//! An [`Image`] to which transactions are appended. It is written anew when what was appended outgrows it.

use std::path::{Path, PathBuf};

use super::engine::Engine;
use super::image::{self, Extent, Image, ImageError};
use super::{Change, Recovered, StoreError, damaged};
use crate::base::durable::{self, Appender, DurableError};
use crate::base::text::chain;

/// What is appended may have so many bytes, and twice what it is appended to.
const SLACK: u64 = 256 * 1024;
/// No copy is larger, by far.
const LARGEST: u64 = 4 << 30;
/// So many damaged stores are told apart.
const MOST_ASIDE: usize = 32;

/// The copy of an open store.
#[derive(Debug)]
pub(super) struct Copy {
    file: Appender,
    revision: u64,
    /// How many bytes it had without what was appended.
    begun: u64,
}

/// What is there in its place when the store is opened.
#[derive(Debug)]
pub(super) enum Found {
    Missing,
    /// It ends in this revision.
    Whole {
        revision: u64,
    },
    Unusable(ImageError),
}

impl Copy {
    /// Looks at what is there. Nothing is changed.
    pub(super) fn find(store: &Path) -> Result<Found, StoreError> {
        let Some(bytes) = read(store)? else { return Ok(Found::Missing) };
        Ok(match image::extent(&bytes) {
            Ok(extent) => Found::Whole { revision: extent.revision },
            Err(error) => Found::Unusable(error),
        })
    }

    /// The copy of this store: the one that is there when it is that, and else a new one.
    pub(super) fn follow(store: &Path, engine: &Engine) -> Result<Self, StoreError> {
        let revision = engine.revision(store)?;
        if let Some(extent) = extent(store)?.filter(|extent| extent.revision == revision) {
            let Extent { revision, begun, whole, .. } = extent;
            let file = Appender::resume(&path(store), whole).map_err(StoreError::io)?;
            return Ok(Self { file, revision, begun });
        }
        let (revision, bytes) = engine.image(store)?;
        durable::replace(&path(store), &bytes, 0o600).map_err(StoreError::io)?;
        let begun = bytes.len() as u64;
        let file = Appender::resume(&path(store), begun).map_err(StoreError::io)?;
        Ok(Self { file, revision, begun })
    }

    /// The revision it ends in.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether it should be written anew.
    pub(super) fn is_due(&self) -> bool {
        self.file.length() - self.begun > SLACK + 2 * self.begun
    }

    /// Appends a transaction. On disk when this returns.
    pub(super) fn record(&mut self, revision: u64, changes: &[Change]) -> Result<(), DurableError> {
        let mut bytes = Vec::new();
        image::change(&mut bytes, revision, changes);
        self.file.append(&bytes)?;
        self.file.syncer().sync()?;
        self.revision = revision;
        Ok(())
    }

    /// Removes it: it is no copy any more.
    pub(super) fn remove(store: &Path) -> Result<(), DurableError> {
        durable::remove(&path(store))
    }
}

fn extent(store: &Path) -> Result<Option<Extent>, StoreError> {
    Ok(read(store)?.and_then(|bytes| image::extent(&bytes).ok()))
}

fn read(store: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match durable::read(&path(store), LARGEST) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(DurableError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io(error)),
    }
}

/// Builds the store from its copy, and sets what there was in its place aside. A crash at any point leaves a store that is
/// built anew at the next start.
pub(super) fn rebuild(store: &Path, why: String) -> Result<(Engine, Recovered), StoreError> {
    let bytes = read(store)?.ok_or_else(|| damaged(store, why.clone()))?;
    let (image, extent) = Image::read_copy(&bytes).map_err(|error| damaged(store, chain(&error)))?;
    build(store, &image)?;
    let aside = match std::fs::symlink_metadata(store) {
        Ok(_) => Some(free_name(store)),
        Err(_) => None,
    };
    if let Some(aside) = &aside {
        durable::rename(store, aside).map_err(StoreError::io)?;
    }
    durable::rename(&unfinished(store), store).map_err(StoreError::io)?;
    let engine = Engine::open(store)?;
    Ok((engine, Recovered { why, aside, revision: extent.revision, torn: extent.torn }))
}

/// Builds a store with what an image says, under the name [`unfinished`].
pub(super) fn build(store: &Path, image: &Image) -> Result<(), StoreError> {
    let path = unfinished(store);
    // What a crash left behind.
    durable::remove(&path).map_err(StoreError::io)?;
    let engine = Engine::open(&path)?;
    engine.fill(&path, image)
}

/// The store while it is built.
pub(super) fn unfinished(store: &Path) -> PathBuf {
    store.with_extension("unfinished")
}

/// Where the copy of a store is.
pub(super) fn path(store: &Path) -> PathBuf {
    store.with_extension("copy")
}

/// The damaged stores that were set aside and are still there.
pub(super) fn set_aside(store: &Path) -> Vec<PathBuf> {
    (1..=MOST_ASIDE).map(|number| aside(store, number)).filter(|path| path.exists()).collect()
}

/// Where the next one goes; the last takes the place of another when there are far too many.
fn free_name(store: &Path) -> PathBuf {
    let free = (1..MOST_ASIDE).map(|number| aside(store, number)).find(|path| !path.exists());
    free.unwrap_or_else(|| aside(store, MOST_ASIDE))
}

fn aside(store: &Path, number: usize) -> PathBuf {
    let name = store.file_name().unwrap_or_default().to_string_lossy();
    store.with_file_name(format!("{name}.damaged-{number}"))
}
