//! The next journal, computed before anything of it is written.
//!
//! A draft begins as the present journal. Steps change it: keys are made and kept in memory, keys of former changes
//! are read, nothing is written. Dropping a draft undoes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::crl::CrlAuthority;
use super::disk::DiskAuthority;
use super::keys::KeyStore;
use super::signers::{BACKDATE, SigningCa, TokenAuthority};
use super::slot::{self, Kind, Plan, Slot, State, Step};
use super::{AuthorityError, Config, Signers};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::jwt::JwtSigner;
use crate::wit::{WitAuthorities, WitSigner};
use crate::x509::{Certificate, Issuer, PrivateKey, Serial, Validity, self_signed_root};

/// A plan that does not come to rest after this many steps is a bug, not work.
const MOST_STEPS: usize = 64;

/// What authorities are made with.
#[derive(Clone, Debug)]
pub(super) struct Maker {
    pub(super) config: Config,
    pub(super) clock: Clock,
    pub(super) entropy: Entropy,
    pub(super) keys: KeyStore,
}

impl Maker {
    /// How long something signed now by an authority of this kind can be out.
    fn longest(&self, kind: Kind) -> Duration {
        match kind {
            // A root signs signing CAs, and a signing CA leaves that live as long as itself.
            Kind::X509Root | Kind::X509Signing => self.config.ca_ttl,
            Kind::Jwt | Kind::Wit => self.config.longest_jwt,
        }
    }
}

/// A journal that is not in force yet.
#[derive(Debug)]
pub(super) struct Draft {
    /// The rows it would have.
    pub(super) slots: Vec<Slot>,
    /// The root or intermediate from files; `None` for an embedded root.
    pub(super) disk: Option<Arc<DiskAuthority>>,
    /// Keys that are not on disk yet, by authority.
    pub(super) fresh: BTreeMap<String, PrivateKey>,
    /// What became of whom, in order.
    pub(super) changes: Vec<(String, Kind, &'static str)>,
}

impl Draft {
    pub(super) fn new(slots: &[Slot], disk: Option<Arc<DiskAuthority>>) -> Self {
        Self { slots: slots.to_vec(), disk, fresh: BTreeMap::new(), changes: Vec::new() }
    }

    /// The kinds that this node makes itself.
    pub(super) fn managed(&self) -> &'static [Kind] {
        match self.disk {
            None => &[Kind::X509Root, Kind::X509Signing, Kind::Jwt, Kind::Wit],
            Some(_) => &[Kind::X509Signing, Kind::Jwt, Kind::Wit],
        }
    }

    /// Does everything that is due, and says when to come back.
    pub(super) fn settle(&mut self, maker: &Maker) -> Result<OffsetDateTime, AuthorityError> {
        self.leave_other_roots();
        for _ in 0..MOST_STEPS {
            let propagation = |kind| maker.config.propagation_of(kind);
            let (now, surely) = (maker.clock.now(), maker.clock.surely());
            match slot::plan(&self.slots, self.managed(), now, surely, propagation) {
                Plan::At(next) => return Ok(next),
                Plan::Now(Step::Prepare(kind, activates_at)) => self.succeed(maker, kind, activates_at)?,
                Plan::Now(Step::Activate(id)) => self.activate(maker, &id),
                Plan::Now(Step::Remove(id)) => self.forget(|slot| slot.id == id, "removed"),
            }
        }
        Err(AuthorityError::Inconsistent("the plan of authorities does not come to rest"))
    }

    /// Drops signing CAs that are not below the root in use: after a change of files or of `authority.kind`.
    fn leave_other_roots(&mut self) {
        let in_use: BTreeSet<String> = match &self.disk {
            Some(disk) => BTreeSet::from([disk.id().to_owned()]),
            None => self.slots.iter().filter(|slot| slot.kind == Kind::X509Root).map(|slot| slot.id.clone()).collect(),
        };
        let below = |slot: &Slot| slot.issuer.as_ref().is_some_and(|issuer| in_use.contains(issuer));
        self.forget(|slot| slot.kind == Kind::X509Signing && !below(slot), "removed");
    }

    /// Makes sure that a successor of this kind signs from `activates_at` on: the prepared one, or a new one.
    pub(super) fn succeed(
        &mut self,
        maker: &Maker,
        kind: Kind,
        activates_at: OffsetDateTime,
    ) -> Result<(), AuthorityError> {
        let is_prepared = |slot: &&Slot| slot.kind == kind && matches!(slot.state, State::Prepared { .. });
        if let Some(id) = self.slots.iter().find(is_prepared).map(|slot| slot.id.clone()) {
            slot::reschedule(&mut self.slots, &id, activates_at);
            return Ok(());
        }
        let (slot, key) = self.make(maker, kind, activates_at)?;
        self.changes.push((slot.id.clone(), kind, "prepared"));
        self.fresh.insert(slot.id.clone(), key);
        self.slots.push(slot);
        Ok(())
    }

    fn activate(&mut self, maker: &Maker, id: &str) {
        let Some(kind) = self.slots.iter().find(|slot| slot.id == id).map(|slot| slot.kind) else { return };
        slot::activate(&mut self.slots, id, maker.clock.now(), maker.longest(kind));
        self.changes.push((id.to_owned(), kind, "activated"));
    }

    /// Ends an authority and everything below it; see [`super::Authority::revoke`].
    pub(super) fn revoke(&mut self, id: &str) -> Result<(), AuthorityError> {
        let revoked = self.slots.iter().find(|slot| slot.id == id);
        let revoked = revoked.ok_or_else(|| AuthorityError::Unknown(id.to_owned()))?;
        let mut gone = BTreeSet::from([revoked.id.clone()]);
        if let (Kind::X509Signing, Some(root), None) = (revoked.kind, &revoked.issuer, &self.disk) {
            gone.insert(root.clone());
        }
        let below = self.slots.iter().filter(|slot| slot.issuer.as_ref().is_some_and(|issuer| gone.contains(issuer)));
        let below: Vec<String> = below.map(|slot| slot.id.clone()).collect();
        gone.extend(below);
        self.forget(|slot| gone.contains(&slot.id), "revoked");
        Ok(())
    }

    fn forget(&mut self, doomed: impl Fn(&Slot) -> bool, change: &'static str) {
        for slot in self.slots.extract_if(.., |slot| doomed(slot)) {
            self.fresh.remove(&slot.id);
            self.changes.push((slot.id, slot.kind, change));
        }
    }

    /// Makes a key and, for X.509, its certificate.
    fn make(
        &self,
        maker: &Maker,
        kind: Kind,
        activates_at: OffsetDateTime,
    ) -> Result<(Slot, PrivateKey), AuthorityError> {
        let config = &maker.config;
        // Certificates have whole seconds; what the journal says must be what they say.
        let now = maker.clock.now().truncate_to_second();
        let not_before = now - BACKDATE;
        let serial = Serial::from_random(maker.entropy.bytes());
        let slot = |id: String, not_after| Slot {
            id,
            kind,
            state: State::Prepared { activates_at },
            not_before: now,
            not_after,
            certificate: Vec::new(),
            issuer: None,
        };
        match kind {
            Kind::Jwt => {
                let key = PrivateKey::generate(config.jwt_key_type)?;
                let id = JwtSigner::new(&key)?.key_id().to_owned();
                Ok((slot(id, now + config.jwt_key_ttl), key))
            }
            Kind::Wit => {
                let key = PrivateKey::generate(config.jwt_key_type)?;
                let id = WitSigner::new(&key)?.key_id().to_owned();
                Ok((slot(id, now + config.jwt_key_ttl), key))
            }
            Kind::X509Root => {
                let not_after = now + config.root_ttl;
                let key = PrivateKey::generate(config.key_type)?;
                let root = self_signed_root(config.domain.clone(), key, Validity { not_before, not_after }, &serial)?;
                let certificate = root.certificate().der().to_vec();
                Ok((Slot { certificate, ..slot(serial.to_string(), not_after) }, root.into_key()))
            }
            Kind::X509Signing => {
                let (above, root) = self.root(maker)?;
                let not_after = (now + config.ca_ttl).min(root.certificate().not_after());
                if not_after <= now {
                    return Err(AuthorityError::RootEnded(root.certificate().not_after()));
                }
                let key = PrivateKey::generate(config.key_type)?;
                let certificate = root.sign_ca(key.public_key(), Validity { not_before, not_after }, &serial)?;
                let certificate = certificate.der().to_vec();
                Ok((Slot { certificate, issuer: Some(above), ..slot(serial.to_string(), not_after) }, key))
            }
        }
    }

    /// The root that signs signing CAs, and its id.
    fn root(&self, maker: &Maker) -> Result<(String, Issuer), AuthorityError> {
        match &self.disk {
            Some(disk) => Ok((disk.id().to_owned(), disk.issuer(&maker.config.domain)?)),
            None => {
                let root = self.active(Kind::X509Root)?;
                Ok((root.id.clone(), self.issuer(maker, root)?))
            }
        }
    }

    fn issuer(&self, maker: &Maker, slot: &Slot) -> Result<Issuer, AuthorityError> {
        let certificate = Certificate::from_der(&slot.certificate)?;
        Ok(Issuer::new(maker.config.domain.clone(), certificate, self.key(maker, &slot.id)?)?)
    }

    fn key(&self, maker: &Maker, id: &str) -> Result<PrivateKey, AuthorityError> {
        match self.fresh.get(id) {
            Some(key) => Ok(PrivateKey::from_pkcs8(key.to_pkcs8()?.expose())?),
            None => Ok(maker.keys.load(id)?),
        }
    }

    /// The one authority of this kind that signs.
    fn active(&self, kind: Kind) -> Result<&Slot, AuthorityError> {
        let mut active = self.slots.iter().filter(|slot| slot.kind == kind && slot.state == State::Active);
        match (active.next(), active.next()) {
            (Some(slot), None) => Ok(slot),
            (None, _) => Err(AuthorityError::Inconsistent("no authority of a kind signs")),
            (Some(_), Some(_)) => Err(AuthorityError::Inconsistent("two authorities of one kind sign")),
        }
    }

    /// The snapshot that this journal describes. Every key it needs is read here, so that a journal whose keys are
    /// not usable never comes into force.
    pub(super) fn signers(&self, maker: &Maker, generation: u64) -> Result<Signers, AuthorityError> {
        let signing = self.active(Kind::X509Signing)?;
        let (jwt, wit) = (self.active(Kind::Jwt)?, self.active(Kind::Wit)?);
        let in_use = |slot: &&Slot| slot.kind != Kind::X509Root || self.disk.is_none();
        let mut slots: Vec<Slot> = self.slots.iter().filter(in_use).cloned().collect();
        // The same order after a restart: otherwise it would look like a change of the bundle.
        in_order(&mut slots);
        let mut above_leaf = signing.certificate.clone();
        let above_signing = self.disk.as_ref().map(|disk| disk.intermediates()).unwrap_or_default();
        let mut roots = Vec::new();
        above_leaf.extend_from_slice(above_signing);
        if let Some(disk) = &self.disk {
            roots.extend(disk.roots().iter().cloned());
        }
        let (mut jwt_keys, mut wit_keys) = (Vec::new(), Vec::new());
        let mut crl_authorities = Vec::new();
        for slot in &slots {
            match slot.kind {
                Kind::X509Root | Kind::X509Signing => {
                    let issuer = Arc::new(self.issuer(maker, slot)?);
                    if slot.kind == Kind::X509Root {
                        roots.push(issuer.certificate().clone());
                    }
                    crl_authorities.push(CrlAuthority::new(slot, issuer, above_signing));
                }
                Kind::Jwt => {
                    let signer = JwtSigner::new(&self.key(maker, &slot.id)?)?;
                    jwt_keys.push((slot.id.clone(), signer.public_key().clone()));
                }
                Kind::Wit => {
                    let signer = WitSigner::new(&self.key(maker, &slot.id)?)?;
                    wit_keys.push((slot.id.clone(), signer.public_key().clone()));
                }
            }
        }
        let issuer = crl_authorities.iter().find(|authority| authority.id() == signing.id);
        let issuer = issuer.ok_or(AuthorityError::Inconsistent("the CA that signs is not in use"))?.issuer().clone();
        Ok(Signers {
            generation,
            x509: SigningCa { id: signing.id.as_str().into(), issuer, above_leaf, not_after: signing.not_after },
            crl_authorities,
            jwt: TokenAuthority {
                id: jwt.id.as_str().into(),
                signer: JwtSigner::new(&self.key(maker, &jwt.id)?)?,
                not_after: jwt.not_after,
            },
            wit: TokenAuthority {
                id: wit.id.as_str().into(),
                signer: WitSigner::new(&self.key(maker, &wit.id)?)?,
                not_after: wit.not_after,
            },
            node: maker.config.node.as_str().into(),
            jwt_issuer: maker.config.jwt_issuer.clone(),
            roots,
            jwt_keys,
            wit_keys: WitAuthorities::new(maker.config.domain.clone(), wit_keys),
            standing: slots.iter().map(|slot| slot.id.as_str().into()).collect(),
            slots,
            disk: self.disk.as_ref().map(|disk| disk.certificate()),
            entropy: maker.entropy.clone(),
        })
    }
}

/// By kind, the oldest first.
pub(super) fn in_order(slots: &mut [Slot]) {
    slots.sort_by(|a, b| (a.kind, a.not_before, &a.id).cmp(&(b.kind, b.not_before, &b.id)));
}
