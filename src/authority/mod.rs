//! The authority: what signs SVIDs.
//!
//! Two kinds, one mechanism. `embedded` makes its own self-signed root (in the bundle) and under it short-lived
//! signing CAs; `disk` takes the root or an intermediate from files, so that several nodes share one trust domain,
//! and makes the signing CAs under that. JWT keys are this node's own in both.
//!
//! Every change goes the same way: new key on disk, then the journal (one transaction of the store), then the new
//! snapshot to whoever asked. A crash before the journal changed nothing; a crash after it is made good by the next
//! start. See [`slot`] for what may happen when.

mod disk;
pub mod keys;
mod signers;
pub mod slot;

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::Mutex;

use self::disk::{DiskAuthority, DiskError};
use self::keys::{KeyStore, KeyStoreError};
use self::signers::{BACKDATE, JwtAuthority, SigningCa};
pub use self::signers::{Capabilities, SignedJwt, SignedX509, Signers, X509Svid};
use self::slot::{Kind, Plan, Slot, State, Step};
use crate::audit::{Audit, Event};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::id::TrustDomain;
use crate::jwt::{JwtError, JwtSigner};
use crate::store::{Change, Expect, Space, Store, StoreError};
use crate::x509::{
    Certificate, Issuer, KeyError, KeyType, PrivateKey, ProfileError, Serial, Validity, X509Error, self_signed_root,
};

pub use self::disk::DiskFiles;

/// A plan that does not come to rest after this many steps is a bug, not work.
const MOST_STEPS: usize = 64;

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
    /// Where the root comes from.
    pub source: Source,
    /// Key type of roots, signing CAs and X.509-SVIDs.
    pub key_type: KeyType,
    /// Key type of JWT keys.
    pub jwt_key_type: KeyType,
    /// The `iss` claim of JWT-SVIDs.
    pub jwt_issuer: Option<String>,
    /// Life of a root.
    pub root_ttl: Duration,
    /// Life of a signing CA.
    pub ca_ttl: Duration,
    /// Life of a JWT key.
    pub jwt_key_ttl: Duration,
    /// How long a new root or JWT key is published before an operator's rotation lets it sign.
    pub propagation: Duration,
    /// The longest life of a JWT-SVID: a retired JWT key stays published that long.
    pub longest_jwt: Duration,
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

/// Manages the authorities of this node. What signs is a [`Signers`] snapshot that each change returns.
#[derive(Debug)]
pub struct Authority {
    config: Config,
    /// What the files held when they were last read; changed only while `slots` is locked.
    disk: Option<RwLock<Arc<DiskAuthority>>>,
    clock: Clock,
    entropy: Entropy,
    store: Store,
    keys: KeyStore,
    audit: Audit,
    /// The journal as it is on disk. Held across every change, so changes happen one after the other.
    slots: Mutex<Vec<Slot>>,
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
        let disk = read_files(&config, &clock)?;
        let rows = store.list::<Slot>(Space::Authorities).await?;
        let mut slots: Vec<Slot> = rows.into_iter().map(|(_, row)| row.value).collect();
        if let Some(disk) = &disk {
            // Signing CAs under another root or intermediate than the files have now must not sign any more.
            slots.retain(|slot| slot.kind == Kind::Jwt || slot.issuer.as_deref() == Some(disk.id()));
        }
        keys.remove_unknown(|id| slots.iter().any(|slot| slot.id == id))?;
        let disk = disk.map(|disk| RwLock::new(Arc::new(disk)));
        let authority = Self { config, disk, clock, entropy, store, keys, audit, slots: Mutex::new(slots) };
        let (signers, _) = authority.advance().await?;
        Ok((authority, signers))
    }

    /// Does everything that is due, and says when to come back.
    pub async fn advance(&self) -> Result<(Arc<Signers>, OffsetDateTime), AuthorityError> {
        let mut slots = self.slots.lock().await;
        let next = self.carry_out(&mut slots).await?;
        Ok((self.signers(&slots)?, next))
    }

    /// Prepares a successor and lets it sign once verifiers had time to learn it; with `now`, at once.
    pub async fn rotate(&self, kind: Kind, now: bool) -> Result<Arc<Signers>, AuthorityError> {
        self.check_ours(kind)?;
        let mut slots = self.slots.lock().await;
        // A signing CA is not in any bundle: nobody has to learn it first.
        let wait = if now || kind == Kind::X509Signing { Duration::ZERO } else { self.config.propagation };
        self.succeed(&mut slots, kind, self.clock.now() + wait).await?;
        self.carry_out(&mut slots).await?;
        self.signers(&slots)
    }

    /// Ends an authority at once: out of the bundle, and what it signed no longer stands.
    ///
    /// Verifiers believe the root and not the signing CA under it, so revoking a signing CA replaces its root as
    /// well. A root from files cannot be replaced here: then the signing CA is replaced, and chains it signed stay
    /// valid for whoever has them until it ends by itself.
    pub async fn revoke(&self, id: &str) -> Result<Arc<Signers>, AuthorityError> {
        let mut slots = self.slots.lock().await;
        let revoked = slots.iter().find(|slot| slot.id == id).ok_or_else(|| AuthorityError::Unknown(id.to_owned()))?;
        let mut gone = BTreeSet::from([revoked.id.clone()]);
        if let (Kind::X509Signing, Some(root), None) = (revoked.kind, &revoked.issuer, &self.disk) {
            gone.insert(root.clone());
        }
        let below = slots.iter().filter(|slot| slot.issuer.as_ref().is_some_and(|issuer| gone.contains(issuer)));
        let below: Vec<String> = below.map(|slot| slot.id.clone()).collect();
        gone.extend(below);

        // Successors sign first, so that there is no moment, and no failure, in which nothing does.
        for &kind in self.managed() {
            if slots.iter().any(|slot| slot.kind == kind && slot.state == State::Active && gone.contains(&slot.id)) {
                self.drop_prepared(&mut slots, kind, &gone).await?;
                self.succeed(&mut slots, kind, self.clock.now()).await?;
                self.carry_out(&mut slots).await?;
            }
        }
        self.forget(&mut slots, |slot| gone.contains(&slot.id), "revoked").await?;
        self.carry_out(&mut slots).await?;
        self.signers(&slots)
    }

    /// Reads the files of a `disk` authority again. When they hold another certificate, signing CAs below it take over
    /// and what the former ones signed no longer stands; a file that is not usable changes nothing.
    pub async fn reload_files(&self) -> Result<Option<Arc<Signers>>, AuthorityError> {
        let (Some(current), Some(read)) = (&self.disk, read_files(&self.config, &self.clock)?) else { return Ok(None) };
        let mut slots = self.slots.lock().await;
        let before = std::mem::replace(&mut *current.write().unwrap_or_else(PoisonError::into_inner), Arc::new(read));
        match self.follow_files(&mut slots).await {
            Ok(signers) => Ok(Some(signers)),
            Err(error) => {
                *current.write().unwrap_or_else(PoisonError::into_inner) = before;
                Err(error)
            }
        }
    }

    async fn follow_files(&self, slots: &mut Vec<Slot>) -> Result<Arc<Signers>, AuthorityError> {
        let issuer = self.disk().map(|disk| disk.id().to_owned());
        let stale = |slot: &Slot| slot.kind == Kind::X509Signing && slot.issuer != issuer;
        if slots.iter().any(stale) {
            self.forget(slots, |slot| stale(slot) && slot.state != State::Active, "removed").await?;
            self.succeed(slots, Kind::X509Signing, self.clock.now()).await?;
            self.carry_out(slots).await?;
            self.forget(slots, stale, "removed").await?;
        }
        self.signers(slots)
    }

    fn disk(&self) -> Option<Arc<DiskAuthority>> {
        self.disk.as_ref().map(|disk| disk.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn check_ours(&self, kind: Kind) -> Result<(), AuthorityError> {
        if self.managed().contains(&kind) { Ok(()) } else { Err(AuthorityError::RootOnDisk) }
    }

    fn managed(&self) -> &'static [Kind] {
        match self.disk {
            None => &[Kind::X509Root, Kind::X509Signing, Kind::Jwt],
            Some(_) => &[Kind::X509Signing, Kind::Jwt],
        }
    }

    /// How long something signed now by an authority of this kind can be out.
    fn longest(&self, kind: Kind) -> Duration {
        match kind {
            // A root signs signing CAs, and a signing CA leaves that live as long as itself.
            Kind::X509Root | Kind::X509Signing => self.config.ca_ttl,
            Kind::Jwt => self.config.longest_jwt,
        }
    }

    /// Carries out whatever the plan says is due; returns when it wants to be asked again.
    async fn carry_out(&self, slots: &mut Vec<Slot>) -> Result<OffsetDateTime, AuthorityError> {
        for _ in 0..MOST_STEPS {
            match slot::plan(slots, self.managed(), self.clock.now()) {
                Plan::At(next) => return Ok(next),
                Plan::Now(Step::Prepare(kind, activates_at)) => self.succeed(slots, kind, activates_at).await?,
                Plan::Now(Step::Activate(id)) => self.activate(slots, &id).await?,
                Plan::Now(Step::Remove(id)) => self.forget(slots, |slot| slot.id == id, "removed").await?,
            }
        }
        Err(AuthorityError::Inconsistent("the plan of authorities does not come to rest"))
    }

    /// Makes sure that a successor of this kind signs from `activates_at` on: the prepared one, or a new one.
    async fn succeed(
        &self,
        slots: &mut Vec<Slot>,
        kind: Kind,
        activates_at: OffsetDateTime,
    ) -> Result<(), AuthorityError> {
        let mut next = slots.clone();
        let prepared = next.iter().find(|slot| slot.kind == kind && matches!(slot.state, State::Prepared { .. }));
        let id = match prepared.map(|slot| slot.id.clone()) {
            Some(id) => {
                slot::reschedule(&mut next, &id, activates_at);
                id
            }
            None => {
                let slot = self.make(slots, kind, activates_at)?;
                self.record(&slot, "prepared");
                next.push(slot);
                next[next.len() - 1].id.clone()
            }
        };
        self.journal(slots, next, |slot| slot.id == id).await
    }

    async fn drop_prepared(
        &self,
        slots: &mut Vec<Slot>,
        kind: Kind,
        gone: &BTreeSet<String>,
    ) -> Result<(), AuthorityError> {
        let doomed =
            |slot: &Slot| slot.kind == kind && matches!(slot.state, State::Prepared { .. }) && gone.contains(&slot.id);
        self.forget(slots, doomed, "revoked").await
    }

    async fn activate(&self, slots: &mut Vec<Slot>, id: &str) -> Result<(), AuthorityError> {
        let Some(slot) = slots.iter().find(|slot| slot.id == id).cloned() else {
            return Err(AuthorityError::Inconsistent("the authority to activate is gone"));
        };
        let mut next = slots.clone();
        slot::activate(&mut next, id, self.clock.now(), self.longest(slot.kind));
        self.journal(slots, next, |changed| changed.kind == slot.kind).await?;
        self.record(&slot, "activated");
        Ok(())
    }

    /// Takes authorities out of the journal and then destroys their keys.
    async fn forget(
        &self,
        slots: &mut Vec<Slot>,
        doomed: impl Fn(&Slot) -> bool,
        change: &'static str,
    ) -> Result<(), AuthorityError> {
        let (removed, kept): (Vec<_>, Vec<_>) = slots.iter().cloned().partition(&doomed);
        if removed.is_empty() {
            return Ok(());
        }
        let deletes = removed.iter().map(|slot| Change::delete(Space::Authorities, &slot.id, Expect::Any));
        self.store.apply(deletes.collect()).await?;
        *slots = kept;
        for slot in &removed {
            self.record(slot, change);
            self.keys.remove(&slot.id)?;
        }
        Ok(())
    }

    /// Makes `next` the journal: the changed slots on disk first, in one transaction, then in memory.
    async fn journal(
        &self,
        slots: &mut Vec<Slot>,
        next: Vec<Slot>,
        changed: impl Fn(&Slot) -> bool,
    ) -> Result<(), AuthorityError> {
        let puts = next.iter().filter(|slot| changed(slot));
        let puts = puts.map(|slot| Change::put(Space::Authorities, &slot.id, slot, Expect::Any));
        self.store.apply(puts.collect()).await?;
        *slots = next;
        Ok(())
    }

    /// Makes a key and, for X.509, its certificate. The key is on disk when this returns.
    fn make(&self, slots: &[Slot], kind: Kind, activates_at: OffsetDateTime) -> Result<Slot, AuthorityError> {
        // Certificates have whole seconds; what the journal says must be what they say.
        let now = self.clock.now().truncate_to_second();
        let not_before = now - BACKDATE;
        let domain = &self.config.domain;
        let serial = Serial::from_random(self.entropy.bytes());
        let state = State::Prepared { activates_at };
        let (key, slot) = match kind {
            Kind::Jwt => {
                let key = PrivateKey::generate(self.config.jwt_key_type)?;
                let id = JwtSigner::new(&key)?.key_id().to_owned();
                let not_after = now + self.config.jwt_key_ttl;
                (key, Slot { id, kind, state, not_before: now, not_after, certificate: Vec::new(), issuer: None })
            }
            Kind::X509Root => {
                let not_after = now + self.config.root_ttl;
                let key = PrivateKey::generate(self.config.key_type)?;
                let root = self_signed_root(domain.clone(), key, Validity { not_before, not_after }, &serial)?;
                let certificate = root.certificate().der().to_vec();
                let slot =
                    Slot { id: serial.to_string(), kind, state, not_before: now, not_after, certificate, issuer: None };
                (root.into_key(), slot)
            }
            Kind::X509Signing => {
                let (issuer_id, issuer) = self.root(slots)?;
                let not_after = (now + self.config.ca_ttl).min(issuer.certificate().not_after());
                let key = PrivateKey::generate(self.config.key_type)?;
                let certificate = issuer.sign_ca(key.public_key(), Validity { not_before, not_after }, &serial)?;
                let certificate = certificate.der().to_vec();
                let issuer = Some(issuer_id);
                (key, Slot { id: serial.to_string(), kind, state, not_before: now, not_after, certificate, issuer })
            }
        };
        self.keys.save(&slot.id, &key)?;
        Ok(slot)
    }

    /// The root that signs signing CAs, and its id.
    fn root(&self, slots: &[Slot]) -> Result<(String, Issuer), AuthorityError> {
        if let Some(disk) = self.disk() {
            return Ok((disk.id().to_owned(), disk.issuer(&self.config.domain)?));
        }
        let root = slots
            .iter()
            .find(|slot| slot.kind == Kind::X509Root && slot.state == State::Active)
            .ok_or(AuthorityError::Inconsistent("a signing CA is wanted before there is a root"))?;
        Ok((root.id.clone(), self.issuer(root)?))
    }

    fn issuer(&self, slot: &Slot) -> Result<Issuer, AuthorityError> {
        let certificate = Certificate::from_der(&slot.certificate)?;
        Ok(Issuer::new(self.config.domain.clone(), certificate, self.keys.load(&slot.id)?)?)
    }

    fn record(&self, slot: &Slot, change: &'static str) {
        self.audit.record(Event::AuthorityChanged { id: slot.id.clone(), kind: slot.kind.as_str(), change });
    }

    /// The snapshot that the slots describe.
    fn signers(&self, slots: &[Slot]) -> Result<Arc<Signers>, AuthorityError> {
        let active = |kind| {
            slots
                .iter()
                .find(|slot| slot.kind == kind && slot.state == State::Active)
                .ok_or(AuthorityError::Inconsistent("no authority signs"))
        };
        let (signing, jwt) = (active(Kind::X509Signing)?, active(Kind::Jwt)?);
        let mut above_leaf = signing.certificate.clone();
        let mut roots = Vec::new();
        match self.disk() {
            Some(disk) => {
                above_leaf.extend_from_slice(disk.intermediates());
                roots.extend(disk.roots().iter().cloned());
            }
            None => {
                let mut slots: Vec<&Slot> = slots.iter().filter(|slot| slot.kind == Kind::X509Root).collect();
                // The same order after a restart: otherwise it would look like a change of the bundle.
                slots.sort_by(|a, b| (a.not_before, &a.id).cmp(&(b.not_before, &b.id)));
                for root in slots {
                    roots.push(Certificate::from_der(&root.certificate)?);
                }
            }
        }
        let mut jwt_keys = Vec::new();
        for slot in slots.iter().filter(|slot| slot.kind == Kind::Jwt) {
            let signer = JwtSigner::new(&self.keys.load(&slot.id)?)?;
            jwt_keys.push((slot.id.clone(), signer.public_key().clone()));
        }
        Ok(Arc::new(Signers {
            x509: SigningCa {
                id: signing.id.as_str().into(),
                issuer: self.issuer(signing)?,
                above_leaf,
                not_after: signing.not_after,
            },
            jwt: JwtAuthority {
                id: jwt.id.as_str().into(),
                signer: JwtSigner::new(&self.keys.load(&jwt.id)?)?,
                not_after: jwt.not_after,
            },
            jwt_issuer: self.config.jwt_issuer.clone(),
            roots,
            jwt_keys,
            standing: slots.iter().map(|slot| slot.id.as_str().into()).collect(),
            slots: in_order(slots),
            entropy: self.entropy.clone(),
        }))
    }
}

/// The order in which people see them: by kind, the oldest first.
fn in_order(slots: &[Slot]) -> Vec<Slot> {
    let mut slots = slots.to_vec();
    slots.sort_by(|a, b| (a.kind, a.not_before, &a.id).cmp(&(b.kind, b.not_before, &b.id)));
    slots
}

/// What the files of a `disk` authority hold now; `None` for the other kind.
fn read_files(config: &Config, clock: &Clock) -> Result<Option<DiskAuthority>, AuthorityError> {
    match &config.source {
        Source::Embedded => Ok(None),
        Source::Disk(files) => Ok(Some(DiskAuthority::read(files, &config.domain, clock.now())?)),
    }
}

#[cfg(test)]
mod tests;
