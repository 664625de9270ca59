//! The file of the store: what of redb is used, and what its errors mean.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use super::image::{self, Image};
use super::{Change, Expect, Space, StoreError};
use crate::base::durable;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const SCHEMA: &str = "schema";
/// Raised when the layout of the values changes so that an older agent must not write them.
const SCHEMA_VERSION: u64 = 1;

type Rows = TableDefinition<'static, &'static str, (u64, &'static [u8])>;

fn table(space: Space) -> Rows {
    TableDefinition::new(match space {
        Space::Entries => "entries",
        Space::Authorities => "authorities",
        Space::Bundles => "bundles",
        Space::Approvals => "approvals",
        Space::Node => "node",
    })
}

/// A value with its revision, as it is stored.
pub(super) type Raw = (u64, Vec<u8>);

/// The open file.
#[derive(Debug)]
pub(super) struct Engine(Database);

/// A failure of redb: of the disk, or of what is on it.
fn failed(path: &Path) -> impl Fn(redb::Error) -> StoreError + '_ {
    move |error| match error {
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) | redb::Error::RepairAborted => {
            StoreError::Damaged { path: path.to_owned(), source: Box::new(error) }
        }
        // Another type or another layout of a table than ours.
        redb::Error::TableTypeMismatch { .. } | redb::Error::TypeDefinitionChanged { .. } => {
            StoreError::Damaged { path: path.to_owned(), source: Box::new(error) }
        }
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            StoreError::Damaged { path: path.to_owned(), source: Box::new(error) }
        }
        error => StoreError::Io(Box::new(error)),
    }
}

/// Makes the errors of redb those of the store, and of a panic about what is on the disk an error.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(Failure::Redb(error))) => Err(failed(path)(*error)),
        Ok(Err(Failure::Store(error))) => Err(error),
        // redb notices most damage with an error, some of it with a panic: both mean the same to an operator.
        Err(_) => Err(StoreError::Damaged {
            path: path.to_owned(),
            source: Box::new(StorageError::Corrupted("its structure makes no sense".to_owned())),
        }),
    }
}

enum Failure {
    Redb(Box<redb::Error>),
    Store(StoreError),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

impl Engine {
    /// Opens the file, creating it when it is missing, and checks all of it.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        durable::make_private(path).map_err(|error| StoreError::Io(Box::new(error)))?;
        let open = || match Builder::new().set_check_integrity_on_open(true).create(path) {
            Ok(database) => Ok(Self(database)),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(Failure::Store(StoreError::InUse(path.to_owned()))),
            Err(error) => Err(error.into()),
        };
        let engine = guarded(path, open)?;
        engine.prepare(path)?;
        Ok(engine)
    }

    /// Makes every table exist, so that readers need not ask, and refuses a newer schema.
    fn prepare(&self, path: &Path) -> Result<(), StoreError> {
        guarded(path, || {
            let transaction = self.0.begin_write()?;
            {
                let mut meta = transaction.open_table(META)?;
                let found = meta.get(SCHEMA)?.map(|value| value.value());
                match found {
                    Some(found) if found > SCHEMA_VERSION => {
                        let newer = StoreError::Newer { path: path.to_owned(), found, known: SCHEMA_VERSION };
                        return Err(Failure::Store(newer));
                    }
                    Some(_) => {}
                    None => drop(meta.insert(SCHEMA, SCHEMA_VERSION)?),
                }
                for space in Space::ALL {
                    transaction.open_table(table(space))?;
                }
            }
            Ok(transaction.commit()?)
        })
    }

    /// The revision of the last transaction.
    pub(super) fn revision(&self, path: &Path) -> Result<u64, StoreError> {
        guarded(path, || {
            let meta = self.0.begin_read()?.open_table(META)?;
            Ok(meta.get(REVISION)?.map_or(0, |value| value.value()))
        })
    }

    pub(super) fn get(&self, path: &Path, space: Space, key: &str) -> Result<Option<Raw>, StoreError> {
        guarded(path, || {
            let rows = self.0.begin_read()?.open_table(table(space))?;
            let found = rows.get(key)?;
            Ok(found.map(|guard| {
                let (revision, value) = guard.value();
                (revision, value.to_vec())
            }))
        })
    }

    pub(super) fn list(&self, path: &Path, space: Space) -> Result<Vec<(String, Raw)>, StoreError> {
        guarded(path, || {
            let mut listed = Vec::new();
            for row in self.0.begin_read()?.open_table(table(space))?.iter()? {
                let (key, value) = row?;
                let (revision, value) = value.value();
                listed.push((key.value().to_owned(), (revision, value.to_vec())));
            }
            Ok(listed)
        })
    }

    /// Makes all changes in one transaction, or none. Returns the revision they have.
    pub(super) fn apply(&self, path: &Path, changes: &[Change]) -> Result<u64, StoreError> {
        guarded(path, || {
            let transaction = self.0.begin_write()?;
            let revision = {
                let mut meta = transaction.open_table(META)?;
                let revision = meta.get(REVISION)?.map_or(0, |value| value.value()) + 1;
                meta.insert(REVISION, revision)?;
                revision
            };
            for change in changes {
                let mut rows = transaction.open_table(table(change.space))?;
                let present = rows.get(change.key.as_str())?.map(|guard| guard.value().0);
                let holds = match change.expect {
                    Expect::Any => true,
                    Expect::Absent => present.is_none(),
                    Expect::Revision(wanted) => present == Some(wanted),
                };
                if !holds {
                    return Err(Failure::Store(StoreError::Conflict { key: change.key.clone() }));
                }
                match &change.value {
                    Some(value) => drop(rows.insert(change.key.as_str(), (revision, value.as_slice()))?),
                    None => drop(rows.remove(change.key.as_str())?),
                }
            }
            transaction.commit()?;
            Ok(revision)
        })
    }

    /// Writes something that changes nothing: whether that is possible.
    pub(super) fn probe(&self, path: &Path) -> Result<(), StoreError> {
        guarded(path, || {
            let transaction = self.0.begin_write()?;
            transaction.open_table(META)?.insert(SCHEMA, SCHEMA_VERSION)?;
            Ok(transaction.commit()?)
        })
    }

    /// All of it, at one revision.
    pub(super) fn image(&self, path: &Path) -> Result<(u64, Vec<u8>), StoreError> {
        guarded(path, || {
            let transaction = self.0.begin_read()?;
            let revision = transaction.open_table(META)?.get(REVISION)?.map_or(0, |value| value.value());
            let (mut count, mut rows) = (0, Vec::new());
            for space in Space::ALL {
                for row in transaction.open_table(table(space))?.iter()? {
                    let (key, value) = row?;
                    let (revision, value) = value.value();
                    image::row(&mut rows, space, key.value(), revision, value);
                    count += 1;
                }
            }
            let mut bytes = Vec::with_capacity(rows.len() + 64);
            image::begin(&mut bytes, revision, count);
            bytes.append(&mut rows);
            Ok((revision, bytes))
        })
    }

    /// Makes an empty store be what an image says.
    pub(super) fn fill(&self, path: &Path, image: &Image) -> Result<(), StoreError> {
        guarded(path, || {
            let transaction = self.0.begin_write()?;
            transaction.open_table(META)?.insert(REVISION, image.revision)?;
            for ((space, key), (revision, value)) in &image.rows {
                transaction.open_table(table(*space))?.insert(key.as_str(), (*revision, value.as_slice()))?;
            }
            Ok(transaction.commit()?)
        })
    }
}
