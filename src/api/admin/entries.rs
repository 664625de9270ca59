//! Registration entries made through the admin API: kept in the store, judged by the same rules as files.
//!
//! The store holds the entry's text and when it was first made. A change is judged, written to the store, and then put
//! in force; a crash between the last two is made good by the next start, which reads the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::{Admin, Role, rfc3339};
use crate::api::status;
use crate::proto::admin as wire;
use crate::registry::{Entry, Mistake, Origin, Rules, Source, parse_entries, parse_entry};
use crate::store::{Change, Expect, Space, Store, StoreError, Versioned};

/// An entry as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    toml: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl Stored {
    fn entry(row: &Versioned<Self>, rules: &Rules) -> Result<Entry, Vec<Mistake>> {
        let source = Source::Store { revision: row.revision, created_at: row.value.created_at };
        parse_entry(&row.value.toml, &source, rules)
    }
}

/// What the store holds.
#[derive(Debug, Default)]
pub struct StoredEntries {
    /// The entries that can be used.
    pub usable: Vec<Arc<Entry>>,
    /// Those that obey other rules than today's, each named with its mistakes. They give nothing, and can be deleted.
    pub unusable: Vec<String>,
}

/// Every entry in the store.
pub async fn stored_entries(store: &Store, rules: &Rules) -> Result<StoredEntries, StoreError> {
    let mut stored = StoredEntries::default();
    for (id, row) in store.list::<Stored>(Space::Entries).await? {
        match Stored::entry(&row, rules) {
            Ok(entry) => stored.usable.push(Arc::new(entry)),
            Err(mistakes) => stored.unusable.push(format!("entry `{id}` in the store: {}", joined(&mistakes))),
        }
    }
    Ok(stored)
}

fn joined(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| mistake.to_string().trim().to_owned()).collect::<Vec<_>>().join("\n")
}

fn wrong(mistakes: &[Mistake]) -> Status {
    Status::invalid_argument(joined(mistakes))
}

/// What one request wants to happen to one entry.
struct Wish {
    entry: Entry,
    expect: Expect,
    created_at: OffsetDateTime,
}

impl Admin {
    fn now(&self) -> OffsetDateTime {
        self.parts.issuer.clock.now()
    }

    fn parse_one(&self, toml: &str) -> Result<Entry, Status> {
        let source = Source::Store { revision: 0, created_at: self.now() };
        parse_entry(toml, &source, &self.parts.rules).map_err(|mistakes| wrong(&mistakes))
    }

    async fn row(&self, id: &str) -> Result<Option<Versioned<Stored>>, Status> {
        self.parts.store.get::<Stored>(Space::Entries, id).await.map_err(|error| status::store(&error))
    }

    /// The entry in the store with this id; when there is one that cannot be changed here, says where it can.
    async fn changeable(&self, id: &str) -> Result<Versioned<Stored>, Status> {
        if let Some(row) = self.row(id).await? {
            return Ok(row);
        }
        match self.parts.registry.index().entry(id) {
            Some(entry) => {
                Err(Status::failed_precondition(format!("entry `{id}` comes from {}: change it there", entry.origin())))
            }
            None => Err(Status::not_found(format!("there is no entry `{id}`"))),
        }
    }

    /// An id that a file or a built-in entry has cannot be taken in the store.
    fn free_elsewhere(&self, id: &str) -> Result<(), Status> {
        match self.parts.registry.index().entry(id) {
            Some(entry) if !matches!(entry.origin(), Origin::Store { .. }) => {
                Err(Status::already_exists(format!("the id `{id}` is used by an entry from {}", entry.origin())))
            }
            _ => Ok(()),
        }
    }

    /// Stores all wishes in one transaction and puts them in force.
    async fn store_all(&self, wishes: Vec<Wish>) -> Result<(), Status> {
        let changes = wishes.iter().map(|wish| {
            let stored = Stored { toml: wish.entry.to_toml(), created_at: wish.created_at };
            Change::put(Space::Entries, wish.entry.id().as_str(), &stored, wish.expect)
        });
        self.parts.store.apply(changes.collect()).await.map_err(|error| status::store(&error))?;
        self.put_in_force().await
    }

    async fn put_in_force(&self) -> Result<(), Status> {
        let stored = stored_entries(&self.parts.store, &self.parts.rules).await;
        let stored = stored.map_err(|error| status::store(&error))?;
        self.parts.status.stored_entries(&stored.unusable);
        let set = self.parts.registry.set_store_entries(stored.usable).await;
        set.map_err(|error| Status::failed_precondition(error.to_string()))
    }

    fn view_of(&self, id: &str) -> Result<Response<wire::EntryView>, Status> {
        let index = self.parts.registry.index();
        let entry = index.entry(id).ok_or_else(|| Status::not_found(format!("there is no entry `{id}`")))?;
        Ok(Response::new(view(entry)))
    }
}

#[tonic::async_trait]
impl wire::entries_server::Entries for Admin {
    async fn list(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        self.require(&request, Role::Viewer)?;
        let index = self.parts.registry.index();
        let entries = index.entries().iter().map(|entry| view(entry)).collect();
        Ok(Response::new(wire::ListEntriesResponse { entries }))
    }

    async fn get(&self, request: Request<wire::GetEntryRequest>) -> Result<Response<wire::EntryView>, Status> {
        self.require(&request, Role::Viewer)?;
        self.view_of(&request.into_inner().id)
    }

    async fn create(&self, request: Request<wire::CreateEntryRequest>) -> Result<Response<wire::EntryView>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let entry = self.parse_one(&request.into_inner().toml)?;
        let id = entry.id().to_string();
        let _changing = self.entries.lock().await;
        self.free_elsewhere(&id)?;
        if self.row(&id).await?.is_some() {
            return Err(Status::already_exists(format!(
                "there is an entry `{id}` already: update it, or choose another id"
            )));
        }
        self.audit_gift(&peer, "entry.create", id.as_str())?;
        self.store_all(vec![Wish { entry, expect: Expect::Absent, created_at: self.now() }]).await?;
        self.view_of(&id)
    }

    async fn update(&self, request: Request<wire::UpdateEntryRequest>) -> Result<Response<wire::EntryView>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let request = request.into_inner();
        let entry = self.parse_one(&request.toml)?;
        let id = entry.id().to_string();
        let _changing = self.entries.lock().await;
        let present = self.changeable(&id).await?;
        let expect = if request.revision == 0 { Expect::Any } else { Expect::Revision(request.revision) };
        self.audit_gift(&peer, "entry.update", id.as_str())?;
        self.store_all(vec![Wish { entry, expect, created_at: present.value.created_at }]).await?;
        self.view_of(&id)
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteEntryRequest>,
    ) -> Result<Response<wire::DeleteEntryResponse>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let id = request.into_inner().id;
        let _changing = self.entries.lock().await;
        let present = self.changeable(&id).await?;
        self.audit(&peer, "entry.delete", id.as_str());
        let delete = Change::delete(Space::Entries, &id, Expect::Revision(present.revision));
        self.parts.store.apply(vec![delete]).await.map_err(|error| status::store(&error))?;
        self.put_in_force().await?;
        Ok(Response::new(wire::DeleteEntryResponse {}))
    }

    async fn apply(
        &self,
        request: Request<wire::ApplyEntriesRequest>,
    ) -> Result<Response<wire::ApplyEntriesResponse>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let request = request.into_inner();
        let now = self.now();
        let source = Source::Store { revision: 0, created_at: now };
        let entries = parse_entries(&request.toml, &source, &self.parts.rules).map_err(|mistakes| wrong(&mistakes))?;
        let _changing = self.entries.lock().await;
        let rows = self.parts.store.list::<Stored>(Space::Entries).await.map_err(|error| status::store(&error))?;
        let present: BTreeMap<String, Versioned<Stored>> = rows.into_iter().collect();

        let mut answer = wire::ApplyEntriesResponse::default();
        let mut wishes = Vec::new();
        for entry in entries {
            self.free_elsewhere(entry.id().as_str())?;
            let (expect, created_at) = match present.get(entry.id().as_str()) {
                Some(row) if row.value.toml == entry.to_toml() => {
                    answer.unchanged += 1;
                    continue;
                }
                Some(row) => {
                    answer.updated += 1;
                    (Expect::Revision(row.revision), row.value.created_at)
                }
                None => {
                    answer.created += 1;
                    (Expect::Absent, now)
                }
            };
            wishes.push(Wish { entry, expect, created_at });
        }
        if !request.dry_run && !wishes.is_empty() {
            let ids: Vec<&str> = wishes.iter().map(|wish| wish.entry.id().as_str()).collect();
            self.audit_gift(&peer, "entry.apply", ids.join(" "))?;
            self.store_all(wishes).await?;
        }
        Ok(Response::new(answer))
    }
}

fn view(entry: &Entry) -> wire::EntryView {
    let (revision, created_at) = match entry.origin() {
        Origin::Store { revision, created_at } => (*revision, rfc3339(*created_at)),
        _ => (0, String::new()),
    };
    wire::EntryView {
        id: entry.id().to_string(),
        spiffe_id: entry.spiffe_id().to_string(),
        r#match: entry.matches().iter().map(ToString::to_string).collect(),
        unless: entry.unless().iter().map(ToString::to_string).collect(),
        owner: entry.owner().unwrap_or_default().to_owned(),
        hint: entry.hint().unwrap_or_default().to_owned(),
        origin: entry.origin().to_string(),
        revision,
        created_at,
        toml: entry.to_toml(),
    }
}
