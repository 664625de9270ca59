//! What a unit that systemd starts gets as credentials: the same path as for a process that asks for itself, with what
//! systemd says in the place of what is seen of a process. Everything is tied to this start of the unit, whatever the
//! entry binds to, and nothing is given that the entry does not let into files.

use std::sync::Arc;

use thiserror::Error;
use time::OffsetDateTime;

use super::export::exportable;
use super::{BEARER, Bundles, Entitled, Issuer, KEY_IN_WORKLOAD, MayPass, Refusal, again, bundles};
use crate::attest::StartingUnit;
use crate::audit::{Caller, Event};
use crate::authority::{SignedJwt, X509Svid};
use crate::bond::Tie;
use crate::id::SpiffeId;
use crate::ledger::{self, LedgerError, Reason, Standing};
use crate::metrics::{Issued, Outcome};
use crate::registry::{Entry, Identity};
use crate::x509::PrivateKey;

/// Why a unit gets nothing.
#[derive(Debug, Error)]
pub enum UnitRefusal {
    /// No registration entry matches.
    #[error("no registration entry matches the unit `{0}` by what systemd says of it")]
    NoIdentity(String),
    /// The token may be for several audiences, or for none, and the credential's name says none.
    #[error("the registration entry `{0}` does not name exactly one audience: ask for `jwt-AUDIENCE`")]
    Audience(String),
    /// As a process would be refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl UnitRefusal {
    /// A stable name for metrics and audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoIdentity(_) => "no_identity",
            Self::Audience(_) => "audience",
            Self::Refused(refusal) => refusal.as_str(),
        }
    }
}

impl MayPass for UnitRefusal {
    fn is_for_a_change(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is_for_a_change())
    }
}

/// An X.509-SVID that was issued for one start of a unit, with everything that goes with it.
#[derive(Debug)]
pub struct UnitSvid {
    /// For whom.
    pub spiffe_id: SpiffeId,
    /// The certificate and its key.
    pub svid: X509Svid,
    /// What its peers are judged with.
    pub bundles: Bundles,
    /// What it was issued by.
    entry: Arc<Entry>,
    /// What systemd said of the unit.
    unit: StartingUnit,
    renew_at: OffsetDateTime,
}

impl UnitSvid {
    /// The registration entry it was issued by.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Half of its life: from then on a new one is better.
    pub fn renew_at(&self) -> OffsetDateTime {
        self.renew_at
    }
}

/// A JWT-SVID that was issued for one start of a unit. Whoever has it can use it until it ends.
#[derive(Debug)]
pub struct UnitToken {
    /// For whom.
    pub spiffe_id: SpiffeId,
    /// The token.
    pub signed: SignedJwt,
    /// What it was issued by.
    pub entry: Arc<Entry>,
}

impl Issuer {
    /// The X.509-SVID of a unit: `kept`, if it may still be handed out and is of the same start, or a new one.
    pub(crate) async fn unit_svid(
        &self,
        unit: &StartingUnit,
        kept: Option<&Arc<UnitSvid>>,
    ) -> Result<Arc<UnitSvid>, UnitRefusal> {
        again(|| self.unit_svid_inner(unit, kept)).await
    }

    async fn unit_svid_inner(
        &self,
        unit: &StartingUnit,
        kept: Option<&Arc<UnitSvid>>,
    ) -> Result<Arc<UnitSvid>, UnitRefusal> {
        let entitled = self.entitled_unit(unit)?;
        let identity = identity_of(&entitled)?;
        let now = entitled.now;
        let grant = self.policy.issue_credential(&entitled.attested, identity, KEY_IN_WORKLOAD, now);
        let grant = grant.map_err(Refusal::from)?;
        if let Some(kept) = kept.filter(|kept| self.is_good_for(kept, unit, identity, &entitled)) {
            return Ok(kept.clone());
        }
        let key = PrivateKey::generate_aside(self.key_type).await.map_err(Refusal::from)?;
        let signed = entitled.trust.signers().sign_x509(grant, key.public_key(), now).await.map_err(Refusal::from)?;
        let issued = ledger::Issued {
            id: &signed.serial,
            kind: ledger::Kind::X509,
            authority: &signed.authority,
            binding: KEY_IN_WORKLOAD,
            not_after: signed.not_after,
            uid: unit.uid().unwrap_or_default(),
            ..entitled.issued(identity)
        };
        self.record_for_unit(unit, &entitled, &issued)?;
        let renew_at = now + (signed.not_after - now) / 2;
        Ok(Arc::new(UnitSvid {
            spiffe_id: identity.spiffe_id.clone(),
            svid: X509Svid { signed, key: key.to_pkcs8().map_err(Refusal::from)? },
            bundles: bundles(&entitled),
            entry: identity.entry.clone(),
            unit: unit.clone(),
            renew_at,
        }))
    }

    /// A JWT-SVID of a unit, for one audience: the only one of its entry where none is named.
    pub(crate) async fn unit_jwt(&self, unit: &StartingUnit, audience: Option<&str>) -> Result<UnitToken, UnitRefusal> {
        let entitled = self.entitled_unit(unit)?;
        let identity = identity_of(&entitled)?;
        let audience = match (audience, identity.entry.audiences()) {
            (Some(audience), _) => [audience.to_owned()],
            (None, [only]) if **only != *"*" => [only.to_string()],
            (None, _) => return Err(UnitRefusal::Audience(identity.entry.id().to_string())),
        };
        let grant = self.policy.issue_credential_jwt(&entitled.attested, identity, &audience, entitled.now);
        let grant = grant.map_err(Refusal::from)?;
        let signed = entitled.trust.signers().sign_jwt(grant, entitled.now).await.map_err(Refusal::from)?;
        let issued = ledger::Issued {
            id: &signed.jti,
            kind: ledger::Kind::Jwt,
            audience: &audience,
            authority: &signed.authority,
            binding: BEARER,
            not_after: signed.expires_at,
            single_use: identity.entry.is_single_use(),
            uid: unit.uid().unwrap_or_default(),
            ..entitled.issued(identity)
        };
        self.record_for_unit(unit, &entitled, &issued)?;
        Ok(UnitToken { spiffe_id: identity.spiffe_id.clone(), signed, entry: identity.entry.clone() })
    }

    /// Records that a credential leaves the agent; what cannot be recorded does not.
    pub(crate) fn before_given(
        &self,
        unit: &StartingUnit,
        credential: &str,
        (spiffe_id, entry): (&SpiffeId, &Entry),
        serial: &str,
    ) -> Result<(), UnitRefusal> {
        let event = Event::CredentialGiven {
            caller: caller_of(unit),
            unit: unit.name().as_str().to_owned(),
            invocation: unit.invocation().to_owned(),
            credential: credential.to_owned(),
            spiffe_id: spiffe_id.to_string(),
            entry: entry.id().to_string(),
            serial: serial.to_owned(),
        };
        Ok(self.before(serial, event)?)
    }

    /// Whether what was given to a unit still stands; what its entry no longer gives is revoked here.
    pub(crate) async fn judge_unit_again(&self, given: &UnitSvid) -> Result<bool, LedgerError> {
        let serial = &given.svid.signed.serial;
        if self.ledger.standing(serial) != Standing::Stands {
            return Ok(false);
        }
        let matched = self.registry.borrow().matching(given.unit.attested().evidence(), self.clock.now());
        let still = matched.identities.iter().any(|identity| identity.spiffe_id == given.spiffe_id)
            || matched.unavailable.iter().any(|unavailable| unavailable.entry.id() == given.entry.id());
        if still || matched.more_unavailable {
            return Ok(true);
        }
        let reason = Reason::NoLongerMatches;
        let revoked = self.ledger.revoke(|credential| credential.id == *serial, reason).await?;
        self.record_ended(tie_of(self, &given.unit).to_string(), reason, revoked.len());
        Ok(false)
    }

    /// Matches a unit with the entries, as systemd's word lets it be known.
    fn entitled_unit(&self, unit: &StartingUnit) -> Result<Entitled, UnitRefusal> {
        let index = self.registry.borrow().clone();
        let now = self.clock.now();
        let attested = unit.attested().clone();
        let matched = index.matching(attested.evidence(), now);
        if matched.identities.is_empty() {
            return Err(match matched.unavailable.into_iter().next() {
                Some(unavailable) => {
                    let (entry, why) = (unavailable.entry.id().clone(), unavailable.reasons.join("; "));
                    Refusal::Unavailable { entry, why }.into()
                }
                None => UnitRefusal::NoIdentity(unit.name().as_str().to_owned()),
            });
        }
        let ends = index.next_expiry(now);
        let (generation, policy, trust) = (index.generation(), self.policy.set().generation(), self.trust.current());
        Ok(Entitled { attested, identities: matched.identities, trust, now, ends, generation, policy })
    }

    /// Whether a set can be handed out once more: of the same start of the unit, not revoked, and on today's terms.
    fn is_good_for(&self, kept: &UnitSvid, unit: &StartingUnit, identity: &Identity, entitled: &Entitled) -> bool {
        let terms = |entry: &Entry| (entry.credential_ttl(), entry.expires_at(), entry.dns_names().to_vec());
        kept.unit.name() == unit.name()
            && kept.unit.invocation() == unit.invocation()
            && kept.spiffe_id == identity.spiffe_id
            && kept.entry.id() == identity.entry.id()
            && terms(&kept.entry) == terms(&identity.entry)
            && kept.svid.signed.not_after > entitled.now
            && entitled.trust.signers().stands(&kept.svid.signed.authority)
            && self.ledger.standing(&kept.svid.signed.serial) == Standing::Stands
    }

    fn record_for_unit(
        &self,
        unit: &StartingUnit,
        entitled: &Entitled,
        issued: &ledger::Issued<'_>,
    ) -> Result<(), Refusal> {
        self.write_down(unit.caller().instance(), entitled, &tie_of(self, unit), issued)?;
        let event = Event::SvidIssued {
            caller: caller_of(unit),
            on_behalf_of: None,
            kind: issued.kind.as_str(),
            binding: issued.binding,
            spiffe_id: issued.spiffe_id.to_string(),
            entry: issued.entry.id().to_string(),
            serial: issued.id.to_owned(),
            audience: issued.audience.to_vec(),
            not_after: issued.not_after,
        };
        self.before(issued.id, event)?;
        self.metrics.svid_issued.get_or_create(&Issued { r#type: issued.kind.into(), result: Outcome::Ok }).inc();
        Ok(())
    }
}

/// The first identity that may be in files: the same one for every credential of a unit.
fn identity_of(entitled: &Entitled) -> Result<&Identity, Refusal> {
    let mut refused = None;
    for identity in &entitled.identities {
        match exportable(&identity.entry) {
            Ok(()) => return Ok(identity),
            Err(refusal) => drop(refused.get_or_insert(refusal)),
        }
    }
    // There is at least one.
    Err(refused.unwrap_or(Refusal::Stopping))
}

/// This start of the unit, by systemd's word.
fn tie_of(issuer: &Issuer, unit: &StartingUnit) -> Tie {
    let (name, invocation) = (unit.name().as_str().to_owned(), unit.invocation().to_owned());
    Tie::Unit { boot: issuer.instances.boot(), name, invocation }
}

/// The process of systemd's that asks, as audit names it.
pub(crate) fn caller_of(unit: &StartingUnit) -> Caller {
    let instance = unit.caller().instance();
    Caller { instance: instance.id().to_string(), pid: instance.pid(), uid: unit.attested().uid() }
}
