//! Small durable state: registration entries, authorities, bundles, approvals.
//!
//! Keys and JSON values in named [`Space`]s. Every change is one atomic, synced transaction and gets the next
//! revision of the whole store; a change may name the revision it replaces (compare and swap). The interface is
//! asynchronous and knows nothing of files beyond [`Store::open`], so that an engine such as etcd can stand in its
//! place.
//!
//! After a crash the store holds exactly the transactions that had returned. One process at a time can open it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const SCHEMA: &str = "schema";
/// Raised when the layout of the values changes so that an older agent must not write them.
const SCHEMA_VERSION: u64 = 1;

/// A group of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

    fn table(self) -> TableDefinition<'static, &'static str, (u64, &'static [u8])> {
        TableDefinition::new(match self {
            Self::Entries => "entries",
            Self::Authorities => "authorities",
            Self::Bundles => "bundles",
            Self::Approvals => "approvals",
            Self::Node => "node",
        })
    }
}

/// Why the store could not do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("another agent uses `{}`: stop it first, or give this one a directory of its own", .0.display())]
    InUse(PathBuf),
    /// The file is damaged.
    #[error("the store `{}` is damaged: move it away and restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file was written by a newer agent.
    #[error("the store `{}` was written by a newer agent (schema {found}, this one knows {SCHEMA_VERSION}): upgrade this agent", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: u64,
    },
    /// The key exists although it must not, or its revision has moved on.
    #[error("`{key}` was changed meanwhile: read it again and repeat")]
    Conflict {
        /// The key in question.
        key: String,
    },
    /// The disk refused: it is full, read-only, or failing. Nothing was changed.
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

/// The store; clones share it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Database>);

impl Store {
    /// Opens the store in `path`, creating it when it is missing.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        blocking(move || Self::open_blocking(&path)).await
    }

    fn open_blocking(path: &Path) -> Result<Self, StoreError> {
        // redb notices most damage with an error, some of it with a panic: both mean the same to an operator.
        let opened = std::panic::catch_unwind(|| Database::create(path)).unwrap_or_else(|_| {
            Err(DatabaseError::Storage(redb::StorageError::Corrupted("its structure makes no sense".to_owned())))
        });
        let database = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
            DatabaseError::Storage(redb::StorageError::Io(error))
                if error.kind() != std::io::ErrorKind::InvalidData =>
            {
                StoreError::io(error)
            }
            error => StoreError::Damaged { path: path.to_owned(), source: Box::new(error) },
        })?;
        Self::prepare(&database, path)?;
        Ok(Self(Arc::new(database)))
    }

    /// Makes every table exist, so that readers need not ask, and refuses a newer schema.
    fn prepare(database: &Database, path: &Path) -> Result<(), StoreError> {
        let transaction = database.begin_write().map_err(StoreError::io)?;
        {
            let mut meta = transaction.open_table(META).map_err(StoreError::io)?;
            let found = meta.get(SCHEMA).map_err(StoreError::io)?.map(|v| v.value());
            match found {
                Some(found) if found > SCHEMA_VERSION => {
                    return Err(StoreError::Newer { path: path.to_owned(), found });
                }
                Some(_) => {}
                None => drop(meta.insert(SCHEMA, SCHEMA_VERSION).map_err(StoreError::io)?),
            }
            for space in Space::ALL {
                transaction.open_table(space.table()).map_err(StoreError::io)?;
            }
        }
        transaction.commit().map_err(StoreError::io)
    }

    /// The value of a key.
    pub async fn get<T: DeserializeOwned>(&self, space: Space, key: &str) -> Result<Option<Versioned<T>>, StoreError> {
        let (database, key) = (self.0.clone(), key.to_owned());
        let raw = blocking({
            let key = key.clone();
            move || {
                let transaction = database.begin_read().map_err(StoreError::io)?;
                let table = transaction.open_table(space.table()).map_err(StoreError::io)?;
                let found = table.get(key.as_str()).map_err(StoreError::io)?;
                Ok(found.map(|guard| {
                    let (revision, value) = guard.value();
                    (revision, value.to_vec())
                }))
            }
        })
        .await?;
        raw.map(|(revision, value)| decode(&key, revision, &value)).transpose()
    }

    /// All keys and values of a space, in the order of the keys.
    pub async fn list<T: DeserializeOwned>(&self, space: Space) -> Result<Vec<(String, Versioned<T>)>, StoreError> {
        let database = self.0.clone();
        let raw = blocking(move || {
            let transaction = database.begin_read().map_err(StoreError::io)?;
            let table = transaction.open_table(space.table()).map_err(StoreError::io)?;
            let mut rows = Vec::new();
            for row in table.iter().map_err(StoreError::io)? {
                let (key, value) = row.map_err(StoreError::io)?;
                let (revision, value) = value.value();
                rows.push((key.value().to_owned(), revision, value.to_vec()));
            }
            Ok(rows)
        })
        .await?;
        raw.into_iter().map(|(key, revision, value)| Ok((key.clone(), decode(&key, revision, &value)?))).collect()
    }

    /// Makes all changes in one transaction, or none. Returns the revision they have.
    pub async fn apply(&self, changes: Vec<Change>) -> Result<u64, StoreError> {
        let database = self.0.clone();
        blocking(move || {
            let transaction = database.begin_write().map_err(StoreError::io)?;
            let revision = {
                let mut meta = transaction.open_table(META).map_err(StoreError::io)?;
                let revision = meta.get(REVISION).map_err(StoreError::io)?.map_or(0, |v| v.value()) + 1;
                meta.insert(REVISION, revision).map_err(StoreError::io)?;
                revision
            };
            for change in &changes {
                let mut table = transaction.open_table(change.space.table()).map_err(StoreError::io)?;
                let present = table.get(change.key.as_str()).map_err(StoreError::io)?.map(|guard| guard.value().0);
                let holds = match change.expect {
                    Expect::Any => true,
                    Expect::Absent => present.is_none(),
                    Expect::Revision(wanted) => present == Some(wanted),
                };
                if !holds {
                    return Err(StoreError::Conflict { key: change.key.clone() });
                }
                match &change.value {
                    Some(value) => {
                        drop(table.insert(change.key.as_str(), (revision, value.as_slice())).map_err(StoreError::io)?)
                    }
                    None => drop(table.remove(change.key.as_str()).map_err(StoreError::io)?),
                }
            }
            transaction.commit().map_err(StoreError::io)?;
            Ok(revision)
        })
        .await
    }
}

fn decode<T: DeserializeOwned>(key: &str, revision: u64, value: &[u8]) -> Result<Versioned<T>, StoreError> {
    let value = serde_json::from_slice(value).map_err(|source| StoreError::Value { key: key.to_owned(), source })?;
    Ok(Versioned { value, revision })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(StoreError::io)?
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).await.unwrap();
        (dir, store)
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_restart_with_its_revision() {
        let (dir, store) = store().await;
        let put = |key: &str, value: &str| Change::put(Space::Entries, key, &value, Expect::Any);
        assert_eq!(store.apply(vec![put("a", "1"), put("b", "2")]).await.unwrap(), 1);
        assert_eq!(store.apply(vec![put("b", "3")]).await.unwrap(), 2);
        drop(store);
        let store = Store::open(&dir.path().join("store")).await.unwrap();
        let all: Vec<(String, Versioned<String>)> = store.list(Space::Entries).await.unwrap();
        let expected = [("a", "1", 1), ("b", "3", 2)]
            .map(|(key, value, revision)| (key.to_owned(), Versioned { value: value.to_owned(), revision }));
        assert_eq!(all, expected);
        assert_eq!(store.apply(vec![put("c", "4")]).await.unwrap(), 3, "revisions go on where they were");
    }

    #[tokio::test]
    async fn a_transaction_with_one_conflict_changes_nothing() {
        let (_dir, store) = store().await;
        let put = |key: &str, expect| Change::put(Space::Entries, key, &"x", expect);
        store.apply(vec![put("a", Expect::Absent)]).await.unwrap();
        for wrong in [Expect::Absent, Expect::Revision(7)] {
            let refused = store.apply(vec![put("b", Expect::Any), put("a", wrong)]).await;
            assert!(matches!(refused, Err(StoreError::Conflict { key }) if key == "a"));
        }
        assert_eq!(store.get::<String>(Space::Entries, "b").await.unwrap(), None);
        store.apply(vec![put("a", Expect::Revision(1))]).await.unwrap();
    }

    #[tokio::test]
    async fn a_second_agent_on_the_same_store_is_told_who_is_in_the_way() {
        let (dir, _store) = store().await;
        let refused = Store::open(&dir.path().join("store")).await;
        assert!(matches!(refused, Err(StoreError::InUse(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn a_damaged_store_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let rubbish = vec![0x5a; 8192];
        std::fs::write(&path, &rubbish).unwrap();
        let refused = Store::open(&path).await;
        assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
        assert_eq!(std::fs::read(&path).unwrap(), rubbish);
    }
}
