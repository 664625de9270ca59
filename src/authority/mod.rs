//! The authority: what signs SVIDs.
//!
//! Two kinds, one mechanism. `embedded` makes its own self-signed root (in the bundle) and under it short-lived
//! signing CAs; `disk` takes the root or an intermediate from files, so that several nodes share one trust domain,
//! and makes the signing CAs under that. JWT and WIT keys are this node's own in both.
//!
//! Every change goes one way. The next journal is computed in memory (`draft`), with the signers it describes; new
//! keys are written; the journal changes in one transaction of the store; memory follows; keys that no row names any
//! more are removed. A crash or a refusal before the transaction changed nothing and leaves at most keys without a
//! row; one after it leaves at most the same. The next start, or the next change, removes them. There is never a row
//! without its key. See [`slot`] for what may happen when.
//!
//! When `authority.kind` or the certificate in the files changes, signing CAs below another root are removed, rows
//! first. An embedded root is kept while the root comes from files, neither published nor used, so that switching back
//! finds it again; revoking it by its id destroys it.

mod crl;
mod disk;
mod draft;
pub mod keys;
mod signers;
pub mod slot;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

pub use self::crl::{CrlAuthority, SignedCrl};
use self::disk::{DiskAuthority, DiskError};
use self::draft::{Draft, Maker};
use self::keys::{KeyStore, KeyStoreError};
pub use self::signers::{Capabilities, DiskCertificate, SignedJwt, SignedWit, SignedX509, Signers, X509Svid};
use self::slot::{Kind, Slot};
use crate::audit::{Audit, Event};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::base::secret::Secret;
use crate::id::TrustDomain;
use crate::jwt::JwtError;
use crate::store::{Change, Expect, Space, Store, StoreError};
use crate::x509::{KeyError, KeyType, ProfileError, X509Error};

pub use self::disk::DiskFiles;

/// Where the root comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Made by this agent.
    Embedded,
    /// Read from files.
    Disk(DiskFiles),
}

/// How authorities are made and how long they live.
#[derive(Clone, Debug)]
pub struct Config {
    /// The trust domain they sign for.
    pub domain: TrustDomain,
    /// The id of this node, in front of every token's `jti`.
    pub node: String,
    /// Where the root comes from.
    pub source: Source,
    /// Key type of roots, signing CAs and X.509-SVIDs.
    pub key_type: KeyType,
    /// Key type of JWT and WIT keys.
    pub jwt_key_type: KeyType,
    /// The `iss` claim of JWT-SVIDs.
    pub jwt_issuer: Option<String>,
    /// Life of a root.
    pub root_ttl: Duration,
    /// Life of a signing CA.
    pub ca_ttl: Duration,
    /// Life of a JWT or WIT key.
    pub jwt_key_ttl: Duration,
    /// How long a new root, JWT or WIT key is published before an operator's rotation lets it sign.
    pub propagation: Duration,
    /// The same for a JWT key, which services outside keep for a while.
    pub jwt_propagation: Duration,
    /// The longest life of a JWT-SVID or WIT-SVID: a retired key stays published that long.
    pub longest_jwt: Duration,
}

impl Config {
    /// How long verifiers may take to learn a new authority of this kind.
    fn propagation_of(&self, kind: Kind) -> Duration {
        match kind {
            // It is in no bundle: nobody has to learn it.
            Kind::X509Signing => Duration::ZERO,
            Kind::Jwt => self.jwt_propagation,
            Kind::X509Root | Kind::Wit => self.propagation,
        }
    }
}

/// Why the authority could not do what was asked.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// What would be signed ends at once.
    #[error("the signing authority or the registration entry is about to end: try again after the rotation")]
    NoLifetime,
    /// The authority asked for does not exist.
    #[error("there is no authority `{0}`: `tether authority show` lists them")]
    Unknown(String),
    /// The certificate above the signing CAs has ended.
    #[error("the CA certificate ended at {0}: replace its files and run `tether agent reload`")]
    RootEnded(OffsetDateTime),
    /// The root is in files that somebody else keeps.
    #[error("the root comes from files: replace them and run `tether agent reload`")]
    RootOnDisk,
    /// The journal could not be read or written; nothing has changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A private key could not be kept or found.
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    /// A private key could not be made or used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The files of a `disk` authority are not usable.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A certificate could not be made.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A certificate in the journal cannot be read.
    #[error("a certificate in the store cannot be read")]
    Certificate(#[from] X509Error),
    /// A token could not be signed.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// The slots contradict themselves.
    #[error("BUG: {0}")]
    Inconsistent(&'static str),
}

/// Manages the authorities of this node. What signs is a [`Signers`] snapshot that each change returns. Clones are
/// the same authority.
#[derive(Clone, Debug)]
pub struct Authority {
    maker: Maker,
    store: Store,
    audit: Audit,
    /// Held from before a change is computed until it is in force, so changes happen one after the other.
    journal: Arc<Mutex<Journal>>,
    /// The generation of the newest signers.
    generation: watch::Sender<u64>,
}

/// What a backup takes from an authority.
#[derive(Debug)]
pub struct Custody {
    /// The store ([`Image`](crate::store::Image)).
    pub store: Vec<u8>,
    /// The keys by authority, as their files have them or as PKCS#8.
    pub keys: Vec<(String, Secret<Vec<u8>>)>,
}

/// What is in force.
#[derive(Debug)]
struct Journal {
    /// The rows of the store, in the order of `draft::in_order`.
    slots: Vec<Slot>,
    /// What the files of a `disk` authority held when they were last read.
    disk: Option<Arc<DiskAuthority>>,
    /// The snapshot of the two; absent while it is to be computed again.
    signers: Option<Arc<Signers>>,
    /// Whether the last change may have ended half way: rows are to be read again, and keys without a row removed.
    doubtful: bool,
    /// Revoked since the start: asking again, when the first answer was lost, is no mistake.
    revoked: BTreeSet<String>,
}

impl Journal {
    fn draft(&self) -> Draft {
        Draft::new(&self.slots, self.disk.clone())
    }
}

impl Authority {
    /// Reads the journal and the keys, makes what is missing, and returns what signs.
    pub async fn open(
        config: Config,
        clock: Clock,
        entropy: Entropy,
        store: Store,
        keys: KeyStore,
        audit: Audit,
    ) -> Result<(Self, Arc<Signers>), AuthorityError> {
        let maker = Maker { config, clock, entropy, keys };
        let disk = read_files(&maker)?.map(Arc::new);
        let journal = Journal { slots: Vec::new(), disk, signers: None, doubtful: true, revoked: BTreeSet::new() };
        let journal = Arc::new(Mutex::new(journal));
        let authority = Self { maker, store, audit, journal, generation: watch::Sender::new(0) };
        let (signers, _) = authority.advance().await?;
        authority.report_resting_roots().await;
        Ok((authority, signers))
    }

    /// The generation of the newest signers, and the event of the next: whoever publishes them waits for it.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Does everything that is due, and says when to come back.
    pub async fn advance(&self) -> Result<(Arc<Signers>, OffsetDateTime), AuthorityError> {
        let journal = self.lock().await?;
        let mut draft = journal.draft();
        let next = draft.settle(&self.maker)?;
        Ok((self.commit(journal, draft).await?, next))
    }

    /// Prepares a successor and lets it sign once verifiers had time to learn it; with `now`, at once.
    pub async fn rotate(&self, kind: Kind, now: bool) -> Result<Arc<Signers>, AuthorityError> {
        let journal = self.lock().await?;
        let mut draft = journal.draft();
        if !draft.managed().contains(&kind) {
            return Err(AuthorityError::RootOnDisk);
        }
        let wait = if now { Duration::ZERO } else { self.maker.config.propagation_of(kind) };
        draft.settle(&self.maker)?;
        draft.succeed(&self.maker, kind, self.maker.clock.now() + wait)?;
        draft.settle(&self.maker)?;
        self.commit(journal, draft).await
    }

    /// Ends an authority at once: out of the bundle, and what it signed no longer stands. Asking twice is fine.
    ///
    /// Verifiers believe the root and not the signing CA under it, so revoking a signing CA replaces its root as
    /// well. A root from files cannot be replaced here: then the signing CA is replaced, and chains it signed stay
    /// valid for whoever has them until it ends by itself.
    pub async fn revoke(&self, id: &str) -> Result<Arc<Signers>, AuthorityError> {
        let journal = self.lock().await?;
        let mut draft = journal.draft();
        match draft.revoke(id) {
            Err(AuthorityError::Unknown(_)) if journal.revoked.contains(id) => {}
            revoked => revoked?,
        }
        draft.settle(&self.maker)?;
        self.commit(journal, draft).await
    }

    /// Reads the files of a `disk` authority again. When they hold another certificate, signing CAs below it take over
    /// and what the former ones signed no longer stands; a file that is not usable changes nothing.
    pub async fn reload_files(&self) -> Result<Option<Arc<Signers>>, AuthorityError> {
        let journal = self.lock().await?;
        let Some(read) = read_files(&self.maker)? else { return Ok(None) };
        let mut draft = Draft { disk: Some(Arc::new(read)), ..journal.draft() };
        draft.settle(&self.maker)?;
        self.commit(journal, draft).await.map(Some)
    }

    /// The whole store and the keys of all authorities in it, as of one moment: for a backup. With `plain` the keys are
    /// PKCS#8 although their files are wrapped.
    pub async fn custody(&self, plain: bool) -> Result<Custody, AuthorityError> {
        // No authority changes meanwhile.
        let journal = self.lock().await?;
        let store = self.store.image().await?;
        let key = |slot: &Slot| Ok((slot.id.clone(), self.maker.keys.content(&slot.id, plain)?));
        let keys = journal.slots.iter().map(key).collect::<Result<_, KeyStoreError>>()?;
        Ok(Custody { store, keys })
    }

    /// The journal, locked. When the last change may have ended half way, it is first made good.
    async fn lock(&self) -> Result<OwnedMutexGuard<Journal>, AuthorityError> {
        let mut journal = self.journal.clone().lock_owned().await;
        if !journal.doubtful {
            return Ok(journal);
        }
        let rows = self.store.list::<Slot>(Space::Authorities).await?;
        let mut slots: Vec<Slot> = rows.into_iter().map(|(_, row)| row.value).collect();
        draft::in_order(&mut slots);
        if slots != journal.slots {
            journal.signers = None;
            journal.slots = slots;
        }
        match self.maker.keys.sweep(|id| journal.slots.iter().any(|slot| slot.id == id)) {
            Ok(()) => journal.doubtful = false,
            Err(error) => tracing::warn!(%error, "keys of former authorities cannot be removed, trying again later"),
        }
        Ok(journal)
    }

    /// Puts a draft into force, or nothing of it: the one way in which authorities change.
    ///
    /// Whoever asked may go away meanwhile: what was begun is ended regardless, and only then the lock.
    async fn commit(&self, journal: OwnedMutexGuard<Journal>, draft: Draft) -> Result<Arc<Signers>, AuthorityError> {
        let authority = self.clone();
        let committed = tokio::spawn(async move { authority.put_into_force(journal, draft).await }).await;
        committed.map_err(|_| AuthorityError::Inconsistent("a change of authorities did not end"))?
    }

    async fn put_into_force(
        &self,
        mut journal: OwnedMutexGuard<Journal>,
        mut draft: Draft,
    ) -> Result<Arc<Signers>, AuthorityError> {
        draft::in_order(&mut draft.slots);
        let same_files = journal.disk.as_ref().map(Arc::as_ptr) == draft.disk.as_ref().map(Arc::as_ptr);
        if let Some(signers) = journal.signers.as_ref().filter(|_| same_files && draft.slots == journal.slots) {
            return Ok(signers.clone());
        }
        // Whatever may fail is done before the journal changes.
        let signers = Arc::new(draft.signers(&self.maker, *self.generation.borrow() + 1)?);
        let was_doubtful = std::mem::replace(&mut journal.doubtful, true);
        for (id, key) in &draft.fresh {
            self.maker.keys.save(id, key)?;
        }
        let revoked = draft.changes.iter().filter(|(.., change)| *change == "revoked");
        journal.revoked.extend(revoked.map(|(id, ..)| id.clone()));
        let rows = row_changes(&journal.slots, &draft.slots);
        if !rows.is_empty() {
            self.store.apply(rows).await?;
        }

        // From here on it is in force, and nothing fails.
        let mut gone = std::mem::replace(&mut journal.slots, draft.slots);
        gone.retain(|slot| !journal.slots.iter().any(|kept| kept.id == slot.id));
        journal.disk = draft.disk;
        journal.signers = Some(signers.clone());
        journal.doubtful = was_doubtful;
        for (id, kind, change) in draft.changes {
            self.audit.record(Event::AuthorityChanged { id, kind: kind.as_str(), change });
        }
        for slot in gone {
            if let Err(error) = self.maker.keys.remove(&slot.id) {
                tracing::warn!(id = slot.id, %error, "the key of a former authority cannot be removed, trying again later");
                journal.doubtful = true;
            }
        }
        self.generation.send_replace(signers.generation());
        Ok(signers)
    }

    /// Tells of embedded roots that are kept while the root comes from files.
    async fn report_resting_roots(&self) {
        let journal = self.journal.lock().await;
        for root in journal.slots.iter().filter(|slot| journal.disk.is_some() && slot.kind == Kind::X509Root) {
            tracing::info!(
                id = root.id, until = %root.not_after,
                "the embedded root is kept, unused, for when authority.kind is \"embedded\" again; \
                 `tether authority revoke` destroys it"
            );
        }
    }
}

/// What turns the rows `before` into `after`.
fn row_changes(before: &[Slot], after: &[Slot]) -> Vec<Change> {
    let gone = before.iter().filter(|slot| !after.iter().any(|kept| kept.id == slot.id));
    let new = after.iter().filter(|slot| !before.contains(slot));
    gone.map(|slot| Change::delete(Space::Authorities, &slot.id, Expect::Any))
        .chain(new.map(|slot| Change::put(Space::Authorities, &slot.id, slot, Expect::Any)))
        .collect()
}

/// What the files of a `disk` authority hold now; `None` for the other kind.
fn read_files(maker: &Maker) -> Result<Option<DiskAuthority>, AuthorityError> {
    match &maker.config.source {
        Source::Embedded => Ok(None),
        Source::Disk(files) => {
            let now = maker.clock.now();
            Ok(Some(DiskAuthority::read(files, &maker.config.domain, now, &maker.entropy)?))
        }
    }
}

#[cfg(test)]
mod tests;
