//! All that is in a store, as one run of bytes: the copy beside it, and what a backup carries.
//!
//! Records of [`crate::base::frames`]: one that begins it and says how many rows follow, the rows, and then the changes that
//! were made since, each with the next revision. Rows and changes are those of transactions that had returned.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Change, Space};
use crate::base::frames::{self, Unreadable};

const VERSION: u8 = 1;

/// Why bytes are no image of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ImageError {
    /// A newer agent wrote them.
    #[error("a newer agent wrote it (version {0}): upgrade this one")]
    Newer(u8),
    /// They are not what was written.
    #[error("it is damaged at byte {0}")]
    Damaged(usize),
}

#[derive(Debug, Serialize, Deserialize)]
enum Record<'a> {
    Begin {
        version: u8,
        revision: u64,
        rows: u64,
    },
    Row {
        space: u8,
        key: &'a str,
        revision: u64,
        value: &'a [u8],
    },
    Change {
        revision: u64,
        #[serde(borrow)]
        changes: Vec<(u8, &'a str, Option<&'a [u8]>)>,
    },
}

/// The rows of a store at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub(super) revision: u64,
    pub(super) rows: BTreeMap<(Space, String), (u64, Vec<u8>)>,
}

/// How far a run of bytes goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The revision of its last change.
    pub(super) revision: u64,
    /// How many bytes the first part has, before the changes.
    pub(super) begun: u64,
    /// How many bytes are whole.
    pub(super) whole: u64,
    /// Whether the last change was not written whole.
    pub(super) torn: bool,
}

impl Image {
    /// Reads an image that was written whole.
    pub fn read(bytes: &[u8]) -> Result<Self, ImageError> {
        let (image, extent) = Self::read_copy(bytes)?;
        if extent.torn { Err(ImageError::Damaged(bytes.len())) } else { Ok(image) }
    }

    /// Reads an image whose last change may not have been written whole.
    pub(super) fn read_copy(bytes: &[u8]) -> Result<(Self, Extent), ImageError> {
        let mut rows = BTreeMap::new();
        let extent = walk(bytes, |record| match record {
            Record::Begin { .. } => Some(()),
            Record::Row { space, key, revision, value } => {
                rows.insert((Space::numbered(space)?, key.to_owned()), (revision, value.to_vec()));
                Some(())
            }
            Record::Change { revision, changes } => {
                for (space, key, value) in changes {
                    let at = (Space::numbered(space)?, key.to_owned());
                    match value {
                        Some(value) => drop(rows.insert(at, (revision, value.to_vec()))),
                        None => drop(rows.remove(&at)),
                    }
                }
                Some(())
            }
        })?;
        Ok((Self { revision: extent.revision, rows }, extent))
    }

    /// The rows of a space, by key.
    pub fn rows(&self, of: Space) -> impl Iterator<Item = (&str, &[u8])> {
        let of_it = self.rows.iter().filter(move |((space, _), _)| *space == of);
        of_it.map(|((_, key), (_, value))| (key.as_str(), value.as_slice()))
    }

    /// Gives a key another value.
    pub fn set(&mut self, space: Space, key: &str, value: &impl Serialize) {
        let value = serde_json::to_vec(value).expect("plain data with string keys serialises");
        self.rows.insert((space, key.to_owned()), (self.revision, value));
    }

    /// Takes a key away.
    pub fn remove(&mut self, space: Space, key: &str) {
        self.rows.remove(&(space, key.to_owned()));
    }

    /// Takes all rows of a space away.
    pub fn clear(&mut self, of: Space) {
        self.rows.retain(|(space, _), _| *space != of);
    }

    /// The value of a key, as JSON.
    pub fn get(&self, space: Space, key: &str) -> Option<&[u8]> {
        self.rows.get(&(space, key.to_owned())).map(|(_, value)| value.as_slice())
    }

    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        begin(&mut bytes, self.revision, self.rows.len());
        for ((space, key), (revision, value)) in &self.rows {
            row(&mut bytes, *space, key, *revision, value);
        }
        bytes
    }
}

/// Begins an image of so many rows.
pub(super) fn begin(bytes: &mut Vec<u8>, revision: u64, rows: usize) {
    put(bytes, &Record::Begin { version: VERSION, revision, rows: rows as u64 });
}

/// One of its rows.
pub(super) fn row(bytes: &mut Vec<u8>, space: Space, key: &str, revision: u64, value: &[u8]) {
    put(bytes, &Record::Row { space: space.number(), key, revision, value });
}

/// A transaction that was made since.
pub(super) fn change(bytes: &mut Vec<u8>, revision: u64, changes: &[Change]) {
    let changes = changes.iter().map(|change| (change.space.number(), change.key.as_str(), change.value.as_deref()));
    put(bytes, &Record::Change { revision, changes: changes.collect() });
}

fn put(bytes: &mut Vec<u8>, record: &Record<'_>) {
    frames::write(bytes, |to| postcard::to_extend(record, to).expect("records have no unsized parts"));
}

/// How far an image goes; nothing of it is kept.
pub(super) fn extent(bytes: &[u8]) -> Result<Extent, ImageError> {
    walk(bytes, |_| Some(()))
}

/// The records of a run of bytes, one after the other.
struct Records<'a> {
    bytes: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// The next one and where it begins; none at the end, or where the last was not written whole.
    fn next(&mut self) -> Result<Option<(usize, Record<'a>)>, ImageError> {
        let at = self.bytes.len() - self.rest.len();
        match frames::read(self.rest) {
            Ok((payload, after)) => {
                self.rest = after;
                Ok(Some((at, postcard::from_bytes(payload).map_err(|_| ImageError::Damaged(at))?)))
            }
            // What follows a record that is cut off shows that it was not the last that was written.
            Err(Unreadable::Torn) if !frames::one_follows(self.rest) => Ok(None),
            Err(Unreadable::Torn | Unreadable::Damaged) => Err(ImageError::Damaged(at)),
        }
    }
}

/// Shows each record to `visit`, which says `None` to one that means nothing.
fn walk(bytes: &[u8], mut visit: impl FnMut(Record<'_>) -> Option<()>) -> Result<Extent, ImageError> {
    let mut records = Records { bytes, rest: bytes };
    let Some((_, Record::Begin { version, mut revision, rows })) = records.next()? else {
        return Err(ImageError::Damaged(0));
    };
    if version != VERSION {
        return Err(ImageError::Newer(version));
    }
    for _ in 0..rows {
        match records.next()? {
            Some((at, record @ Record::Row { .. })) => visit(record).ok_or(ImageError::Damaged(at))?,
            _ => return Err(ImageError::Damaged(bytes.len() - records.rest.len())),
        }
    }
    let begun = (bytes.len() - records.rest.len()) as u64;
    while let Some((at, record)) = records.next()? {
        match &record {
            Record::Change { revision: made, .. } if *made == revision + 1 => revision = *made,
            _ => return Err(ImageError::Damaged(at)),
        }
        visit(record).ok_or(ImageError::Damaged(at))?;
    }
    let whole = (bytes.len() - records.rest.len()) as u64;
    Ok(Extent { revision, begun, whole, torn: !records.rest.is_empty() })
}
