//! The last set of entry files without a mistake, for an agent that starts while there is one: a typing error and a
//! restart together must not take every identity of the host away.
//!
//! What it does not keep: the entries of the store, which are durable by themselves. And a file that was removed while
//! the others had a mistake is still in the set, as it would be if the agent had gone on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;

use super::entry::Entry;
use super::load::{FileText, MAX_FILE_BYTES, MAX_FILES, clashes};
use super::parse::{Interner, Rules, Source, parse_interned};
use crate::base::durable::{self, DurableError};

/// The form of the file.
const VERSION: u32 = 1;
/// Owner identities and selectors may be confidential.
const PRIVATE: u32 = 0o600;

/// Why a kept set cannot be used.
#[derive(Debug, Error)]
pub(super) enum KeptError {
    /// It cannot be read, or there is none.
    #[error(transparent)]
    File(#[from] DurableError),
    /// Another program wrote it, or a later version of this one.
    #[error("it is not a set of entry files that this agent has kept")]
    Unreadable,
    /// The configuration, or the store, allows its entries no more.
    #[error("its entries may not be used any more: {0}")]
    Refused(String),
}

/// Where the set is kept.
#[derive(Debug)]
pub(super) struct Kept(PathBuf);

#[derive(Serialize, Deserialize)]
struct Document<'a> {
    version: u32,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    #[serde(borrow)]
    files: Vec<FileText<'a>>,
}

/// A set that can be used.
#[derive(Debug)]
pub(super) struct LastGood {
    /// The entries, each with the file it was in.
    pub entries: Vec<Arc<Entry>>,
    /// When it was read without a mistake.
    pub at: OffsetDateTime,
}

impl Kept {
    /// A set in the file at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Keeps this set in the place of the one before.
    pub fn save(&self, files: Vec<FileText<'_>>, at: OffsetDateTime) -> Result<(), DurableError> {
        let document = Document { version: VERSION, at, files };
        let content = serde_json::to_vec(&document).expect("texts and a time can be written as JSON");
        durable::replace(&self.0, &content, PRIVATE)
    }

    /// The set that was kept, if it can still be used beside `others`.
    pub fn load(&self, others: &[Arc<Entry>], rules: &Rules) -> Result<LastGood, KeptError> {
        // Each character takes at most six in JSON.
        let limit = MAX_FILE_BYTES.saturating_mul(6 * MAX_FILES as u64);
        let content = durable::read(&self.0, limit)?;
        let document: Document<'_> = serde_json::from_slice(&content).map_err(|_| KeptError::Unreadable)?;
        if document.version != VERSION {
            return Err(KeptError::Unreadable);
        }
        let refused = |mistakes: Vec<crate::base::mistake::Mistake>| {
            KeptError::Refused(mistakes.first().map(ToString::to_string).unwrap_or_default())
        };
        let (mut entries, mut interner) = (Vec::new(), Interner::default());
        for FileText { path, text } in &document.files {
            let source = Source::File(Path::new(path.as_ref()).into());
            entries.extend(
                parse_interned(text, &source, rules, &mut interner).map_err(refused)?.into_iter().map(Arc::new),
            );
        }
        match clashes(&entries, others) {
            none if none.is_empty() => Ok(LastGood { entries, at: document.at }),
            found => Err(refused(found)),
        }
    }
}
