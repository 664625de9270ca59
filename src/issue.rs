//! Issuing, as one straight path: prove, attest, match, decide, sign, look again, record in the ledger, return.
//!
//! SVIDs are issued per instance and never shared between processes: own key, own serial, own `jti`. Those that come
//! with a key are kept with their instance (`kept`); a JWT-SVID is made for each call.

mod bearer;
mod export;
mod held;
mod kept;
pub mod named;
mod recorded;
mod tries;
mod unit;
mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::attest::{Attestation, AttestationError, Attested};
use crate::audit::{Audit, AuditError, Caller, Event};
use crate::authority::{AuthorityError, SignedJwt, X509Svid};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::base::text::chain;
use crate::bond::{BondError, Bonds, Tie};
use crate::bundle::Bundle;
use crate::held::{Held, HeldError};
use crate::id::{SpiffeId, TrustDomain};
use crate::ledger::{self, Ledger, LedgerError, Reason};
use crate::metrics::{self, Issued, Kind, Metrics, Outcome};
use crate::peer::{Instance, InstanceError, Instances, LookError, PeerConn};
use crate::policy::{Denial, Policy};
use crate::registry::{EntryId, Identity, Index, Matched};
use crate::trust::{Crls, Snapshot, Trust};
use crate::x509::{KeyError, KeyType, X509Authorities};

pub use self::bearer::Bearer;
pub use self::export::{Choice, ExportState, ExportedX509};
pub(crate) use self::held::Acting;
pub use self::held::{Asking, HeldX509State, OnBehalfOf, ProofRequest, ProofScheme};
pub use self::kept::{Document, InstanceSvid, Kept, KeyedWit};
pub use self::tries::Missed;
use self::tries::{MayPass, again};
pub use self::unit::{UnitRefusal, UnitSvid, UnitToken};
pub use self::validate::{Invalid, LooksAtSessions};

/// How far two hosts' clocks may differ when a token is validated.
pub(crate) const LEEWAY: Duration = Duration::from_secs(10);

/// Binding level: whoever has it can use it.
const BEARER: u8 = 0;
/// Binding level: whoever has the key, which is in the workload, can use it.
const KEY_IN_WORKLOAD: u8 = 1;

/// Why a caller gets nothing. `api::status` alone turns it into a gRPC status.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The connection's other end did not prove to be who the kernel says it is.
    #[error("the connection is refused: {0}")]
    Connection(#[source] crate::peer::Refusal),
    /// The process is gone, became another program, or cannot be seen.
    #[error("the calling process is no longer what was attested: {0}")]
    Look(#[from] LookError),
    /// Attestation did not come to a result.
    #[error("the calling process could not be attested: {0}")]
    Attestation(#[source] AttestationError),
    /// No registration entry matches.
    #[error("no registration entry matches process {pid} (uid {uid}): `tether explain --pid {pid}` says why")]
    NoIdentity {
        /// The caller's process id.
        pid: i32,
        /// Its user id.
        uid: u32,
    },
    /// Entries might match, but something about the process could not be found out.
    #[error("registration entry `{entry}` cannot be judged: {why}")]
    Unavailable {
        /// The first such entry.
        entry: EntryId,
        /// What is missing.
        why: String,
    },
    /// The identity that was asked for is not one of the caller's.
    #[error("`{0}` is not an identity of the calling process")]
    NotGranted(SpiffeId),
    /// None of the caller's identities has the hint that was asked for.
    #[error("no identity of the calling process has the hint `{0}`")]
    NoSuchHint(String),
    /// What was to be written to files is of an entry that gives nothing to files.
    #[error("registration entry `{entry}` gives nothing to files: {remedy}")]
    NotExportable {
        /// The entry.
        entry: EntryId,
        /// What to change, and where.
        remedy: String,
    },
    /// Policy said no to every identity of the caller.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// The authority could not sign.
    #[error("the authority could not sign: {0}")]
    Authority(#[from] AuthorityError),
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It cannot be said whose end would revoke it.
    #[error(transparent)]
    Bond(#[from] BondError),
    /// It could not be written down, so it is not released.
    #[error("the ledger cannot be written: {}", chain(.0))]
    Ledger(#[from] LedgerError),
    /// It could not be recorded, so it is not released.
    #[error("the audit log cannot be written: {}", .0.with_causes())]
    Audit(#[from] AuditError),
    /// Entries, trust or the process changed while a credential was made.
    #[error("what the credential was to be issued by changed meanwhile: try again")]
    Changed,
    /// What an open stream had sent was revoked.
    #[error("the credential was revoked ({}): connect again", .0.as_str())]
    Revoked(Reason),
    /// A key cannot be held, or the caller's is not.
    #[error(transparent)]
    Held(#[from] HeldError),
    /// A delegate named another process by its number alone.
    #[error(
        "the process to act for is named by its number alone, which may be given to another: send `pidfs_inode` too"
    )]
    NoTargetInode,
    /// The process that a delegate named is not there, or is another.
    #[error("the process to act for cannot be found: {0}")]
    Target(#[source] InstanceError),
    /// It cannot be told now whether the process that holds a token is still the one it was issued to.
    #[error("the process the token was issued to cannot be looked at: {0}")]
    Holder(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The agent is stopping.
    #[error("the agent is stopping: connect again")]
    Stopping,
}

impl Refusal {
    /// A stable name for metrics and audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connection(refusal) => refusal.as_str(),
            Self::Look(_) => "ended",
            Self::Attestation(_) => "attestation",
            Self::NoIdentity { .. } => "no_identity",
            Self::Unavailable { .. } => "unavailable",
            Self::NotGranted(_) | Self::NoSuchHint(_) => "not_granted",
            Self::NotExportable { .. } => "not_exportable",
            Self::Denied(denial) => denial.as_str(),
            Self::Authority(_) => "authority",
            Self::Key(_) => "key",
            Self::Bond(_) => "bond",
            Self::Ledger(_) => "ledger",
            Self::Audit(_) => "audit",
            Self::Changed => "changed",
            Self::Revoked(_) => "revoked",
            Self::Held(_) => "held",
            Self::NoTargetInode | Self::Target(_) => "target",
            Self::Holder(_) => "holder",
            Self::Stopping => "stopping",
        }
    }
}

/// Everything a caller is entitled to for X.509, as one complete state.
#[derive(Clone, Debug)]
pub struct X509State {
    /// One SVID and hint for each identity, the default one first.
    pub svids: Vec<Kept<X509Svid>>,
    /// What the caller may judge peers with.
    pub bundles: Bundles,
    /// When this state must be made anew.
    pub renew_at: OffsetDateTime,
}

impl PartialEq for X509State {
    /// Whether a client would see no difference.
    fn eq(&self, other: &Self) -> bool {
        kept::same(&self.svids, &other.svids) && self.bundles.same_x509(&other.bundles)
    }
}

/// Every WIT-SVID a caller asked for, as one complete state.
#[derive(Clone, Debug)]
pub struct WitState {
    /// One SVID and hint for each identity, the default one first.
    pub svids: Vec<Kept<KeyedWit>>,
    /// When this state must be made anew.
    pub renew_at: OffsetDateTime,
}

impl PartialEq for WitState {
    /// Whether a client would see no difference.
    fn eq(&self, other: &Self) -> bool {
        kept::same(&self.svids, &other.svids)
    }
}

/// The bundles one caller may see: ours, and those its entries federate with.
#[derive(Clone, Debug)]
pub struct Bundles {
    /// Of our own trust domain.
    pub own: Arc<Bundle>,
    /// Of foreign trust domains.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl Bundles {
    /// All of them, ours first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        std::iter::once(&self.own).chain(self.federated.values())
    }

    /// The X.509 authorities of each trust domain that has any: one without has no X.509 bundle (X509-SVID, 6.2).
    pub fn x509(&self) -> impl Iterator<Item = &X509Authorities> {
        self.all().map(|bundle| bundle.x509()).filter(|authorities| !authorities.is_empty())
    }

    /// Whether the X.509 authorities are the same.
    pub fn same_x509(&self, other: &Self) -> bool {
        self.x509().eq(other.x509())
    }

    /// Whether the JWT authorities are the same.
    pub fn same_jwt(&self, other: &Self) -> bool {
        self.same(other, |a, b| a.jwt() == b.jwt())
    }

    /// Whether the WIT authorities are the same.
    pub fn same_wit(&self, other: &Self) -> bool {
        self.same(other, |a, b| a.wit() == b.wit())
    }

    fn same(&self, other: &Self, same: fn(&Bundle, &Bundle) -> bool) -> bool {
        self.all().map(|bundle| bundle.trust_domain()).eq(other.all().map(|bundle| bundle.trust_domain()))
            && self.all().zip(other.all()).all(|(a, b)| Arc::ptr_eq(a, b) || same(a, b))
    }
}

/// For which facts and which entries it was last checked that an instance holds nothing it is not entitled to.
#[derive(Debug, Default)]
struct Checked(std::sync::Mutex<Option<(u64, Attested)>>);

impl Checked {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(u64, Attested)>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A caller that was proven, attested and matched, at one moment.
#[derive(Debug)]
pub(crate) struct Entitled {
    pub(crate) attested: Attested,
    pub(crate) identities: Vec<Identity>,
    pub(crate) trust: Arc<Snapshot>,
    pub(crate) now: OffsetDateTime,
    /// When an entry that takes part ends.
    ends: Option<OffsetDateTime>,
    /// Of the entries it was matched with.
    pub(crate) generation: u64,
    /// Of the policies it is decided by.
    policy: u64,
}

impl Entitled {
    /// Leaves only the identity that was asked for, if one was.
    fn narrow_to(&mut self, wanted: Option<&SpiffeId>) -> Result<(), Refusal> {
        let Some(wanted) = wanted else { return Ok(()) };
        self.identities.retain(|identity| identity.spiffe_id == *wanted);
        if self.identities.is_empty() { Err(Refusal::NotGranted(wanted.clone())) } else { Ok(()) }
    }

    /// The part of a ledger's row that does not depend on what is issued.
    pub(crate) fn issued<'a>(&'a self, identity: &'a Identity) -> ledger::Issued<'a> {
        ledger::Issued {
            id: "",
            kind: ledger::Kind::Jwt,
            spiffe_id: &identity.spiffe_id,
            entry: &identity.entry,
            audience: &[],
            authority: "",
            binding: BEARER,
            held: false,
            issued_at: self.now,
            not_after: self.now,
            uid: self.attested.uid(),
            single_use: false,
            delegate: None,
        }
    }
}

/// Issues; every surface goes through it.
#[derive(Debug)]
pub struct Issuer {
    /// Who attests.
    pub attestation: Attestation,
    /// The registration entries.
    pub registry: watch::Receiver<Arc<Index>>,
    /// Bundles and signers.
    pub trust: Arc<Trust>,
    /// The revocation lists.
    pub crls: Crls,
    /// Who decides.
    pub policy: Policy,
    /// Key type of what comes with a key.
    pub key_type: KeyType,
    /// What was issued.
    pub ledger: Ledger,
    /// Whose end revokes it.
    pub bonds: Bonds,
    /// Keys that never leave.
    pub held: Held,
    /// From when on proofs count with verifiers that ask this agent: those of the second it began in do not.
    pub proofs_count_from: OffsetDateTime,
    /// Processes, for delegates that name one.
    pub instances: Instances,
    /// The sessions, once they are there: before the first question.
    pub sessions: std::sync::OnceLock<Arc<dyn LooksAtSessions>>,
    /// Where events go.
    pub audit: Audit,
    /// What is counted.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// For jitter.
    pub entropy: Entropy,
    /// A rotation that did not come.
    pub missed_rotation: Missed,
}

impl Issuer {
    /// The X.509-SVIDs and bundles of a caller.
    pub async fn x509(&self, peer: &PeerConn) -> Result<X509State, Refusal> {
        let made = again(|| self.x509_inner(peer)).await;
        self.recorded(peer, Some(Kind::X509), made)
    }

    async fn x509_inner(&self, peer: &PeerConn) -> Result<X509State, Refusal> {
        let mut entitled = self.entitled(peer).await?;
        let (svids, renew_at) = self.kept(peer, &mut entitled, None).await?;
        Ok(X509State { svids, bundles: bundles(&entitled), renew_at })
    }

    /// WIT-SVIDs of a caller: for one identity, or for all of them.
    pub async fn wit(&self, peer: &PeerConn, wanted: Option<&SpiffeId>) -> Result<WitState, Refusal> {
        let made = again(|| self.wit_inner(peer, wanted)).await;
        self.recorded(peer, Some(Kind::Wit), made)
    }

    async fn wit_inner(&self, peer: &PeerConn, wanted: Option<&SpiffeId>) -> Result<WitState, Refusal> {
        let mut entitled = self.entitled(peer).await?;
        let (svids, renew_at) = self.kept(peer, &mut entitled, wanted).await?;
        Ok(WitState { svids, renew_at })
    }

    /// JWT-SVIDs of a caller for exactly these audiences: for one identity, or for all of them.
    pub async fn jwt(
        &self,
        peer: &PeerConn,
        audience: &[String],
        wanted: Option<&SpiffeId>,
    ) -> Result<Vec<(Identity, SignedJwt)>, Refusal> {
        let made = again(|| self.jwt_inner(peer, audience, wanted)).await;
        self.recorded(peer, Some(Kind::Jwt), made)
    }

    async fn jwt_inner(
        &self,
        peer: &PeerConn,
        audience: &[String],
        wanted: Option<&SpiffeId>,
    ) -> Result<Vec<(Identity, SignedJwt)>, Refusal> {
        let mut entitled = self.entitled(peer).await?;
        entitled.narrow_to(wanted)?;
        let mut tokens = Vec::with_capacity(entitled.identities.len());
        let mut denied = None;
        for identity in std::mem::take(&mut entitled.identities) {
            match self.policy.issue_jwt(&entitled.attested, &identity, audience, entitled.now) {
                Ok(grant) => {
                    let signed = entitled.trust.signers().sign_jwt(grant, entitled.now).await?;
                    let tie = self.tie(peer, &entitled, &identity).await?;
                    tokens.push((identity, signed, tie));
                }
                Err(denial) => drop(denied.get_or_insert(denial)),
            }
        }
        if let (true, Some(denial)) = (tokens.is_empty(), denied) {
            return Err(denial.into());
        }
        for (identity, signed, tie) in &tokens {
            let issued = ledger::Issued {
                id: &signed.jti,
                kind: ledger::Kind::Jwt,
                audience,
                authority: &signed.authority,
                binding: BEARER,
                not_after: signed.expires_at,
                single_use: identity.entry.is_single_use(),
                ..entitled.issued(identity)
            };
            self.record(peer, &entitled, tie, &issued)?;
        }
        Ok(tokens.into_iter().map(|(identity, signed, _)| (identity, signed)).collect())
    }

    /// The bundles of a caller, and when an entry that gives them ends.
    pub async fn bundles(&self, peer: &PeerConn) -> Result<(Bundles, Option<OffsetDateTime>), Refusal> {
        let entitled = self.entitled(peer).await;
        let entitled = self.recorded(peer, None, entitled)?;
        Ok((bundles(&entitled), entitled.ends))
    }

    /// Waits out the second the agent began in, so that the first proof after a restart is as good as any other.
    pub(crate) async fn proofs_count(&self) {
        let began = self.clock.sleep_until(self.proofs_count_from);
        // Not longer than that second, however the clock was set meanwhile.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), began).await;
    }

    /// Proves, attests and matches a caller. Every call comes through here.
    pub(crate) async fn entitled(&self, peer: &PeerConn) -> Result<Entitled, Refusal> {
        peer.proven().await.map_err(Refusal::Connection)?;
        self.authorities_of_now().await;
        let index = self.registry.borrow().clone();
        let mut attested = self.attest(peer, &index).await?;
        let now = self.clock.now();
        let mut matched = index.matching(attested.evidence(), now);
        self.revoke_what_no_longer_matches(peer.instance(), &attested, &index, &matched).await?;
        if matched.identities.is_empty() && matched.unavailable.is_empty() {
            // Before it is asked who opened the connection, which may take a search: whoever did gets nothing.
            return Err(Refusal::NoIdentity { pid: peer.instance().pid(), uid: attested.uid() });
        }
        peer.opened_by(attested.uid(), attested.gid()).await.map_err(Refusal::Connection)?;
        if let (true, Some(first)) = (matched.identities.is_empty(), matched.unavailable.first()) {
            return Err(Refusal::Unavailable { entry: first.entry.id().clone(), why: first.reasons.join("; ") });
        }
        if matched.identities.iter().any(|identity| identity.entry.depends_on_executable()) {
            let held = peer.holds_cloexec().await;
            if held.is_err() {
                matched = index.matching_executable_last(attested.evidence(), now);
            }
            attested.require_executable(held);
        }
        let ends = index.next_expiry(now);
        let (generation, policy, trust) = (index.generation(), self.policy.set().generation(), self.trust.current());
        Ok(Entitled { attested, identities: matched.identities, trust, now, ends, generation, policy })
    }

    async fn attest(&self, peer: &PeerConn, index: &Index) -> Result<Attested, Refusal> {
        self.attestation.attest(peer.instance(), index.wanted()).await.map_err(attestation_refused)
    }

    /// Ends what an instance holds although nothing entitles it any more: its credentials, its cgroup or the entries are
    /// not what they were (peer rule 4). What cannot be judged now is left alone.
    async fn revoke_what_no_longer_matches(
        &self,
        instance: &Instance,
        attested: &Attested,
        index: &Index,
        matched: &Matched,
    ) -> Result<(), Refusal> {
        let checked = instance.remembered::<Checked>();
        let moment = (index.generation(), attested.clone());
        let same = |(generation, known): &(u64, Attested)| *generation == moment.0 && known.same_facts(&moment.1);
        if checked.lock().as_ref().is_some_and(same) || matched.more_unavailable {
            return Ok(());
        }
        let kept = |entry: &str, id: &str| {
            matched.identities.iter().any(|identity| identity.spiffe_id.as_str() == id)
                || matched.unavailable.iter().any(|unavailable| unavailable.entry.id().as_str() == entry)
        };
        let ended = self.ledger.keep_only(instance.id(), kept, Reason::NoLongerMatches).await?;
        self.record_ended(instance.id().to_string(), Reason::NoLongerMatches, ended);
        *checked.lock() = Some(moment);
        Ok(())
    }

    /// Judges an instance that has not asked: entries changed, and what it holds may be no longer its own.
    pub async fn judge_again(&self, instance: &Arc<Instance>) -> Result<(), Refusal> {
        let index = self.registry.borrow().clone();
        let attested = self.attestation.attest(instance, index.wanted()).await.map_err(attestation_refused)?;
        let matched = index.matching(attested.evidence(), self.clock.now());
        self.revoke_what_no_longer_matches(instance, &attested, &index, &matched).await
    }

    /// What a credential of this identity is tied to.
    async fn tie(&self, peer: &PeerConn, entitled: &Entitled, identity: &Identity) -> Result<Tie, Refusal> {
        Ok(self.bonds.tie(peer.instance(), &entitled.attested, identity.entry.bind()).await?)
    }

    /// Writes a credential down, before it is released.
    fn record(
        &self,
        peer: &PeerConn,
        entitled: &Entitled,
        tie: &Tie,
        issued: &ledger::Issued<'_>,
    ) -> Result<(), Refusal> {
        self.write_down(peer.instance(), entitled, tie, issued)?;
        self.before(
            issued.id,
            Event::SvidIssued {
                caller: caller(peer),
                on_behalf_of: None,
                kind: issued.kind.as_str(),
                binding: issued.binding,
                spiffe_id: issued.spiffe_id.to_string(),
                entry: issued.entry.id().to_string(),
                serial: issued.id.to_owned(),
                audience: issued.audience.to_vec(),
                not_after: issued.not_after,
            },
        )?;
        self.metrics.svid_issued.get_or_create(&Issued { r#type: issued.kind.into(), result: Outcome::Ok }).inc();
        Ok(())
    }

    /// The last step before a credential is released: it is in the ledger, and what it was judged by still holds.
    ///
    /// In this order: whoever ends what former entries, policies, authorities or credentials gave searches the ledger after
    /// the change is visible. Either that search finds this row, or this sees the change.
    pub(crate) fn write_down(
        &self,
        instance: &Instance,
        entitled: &Entitled,
        tie: &Tie,
        issued: &ledger::Issued<'_>,
    ) -> Result<(), Refusal> {
        self.ledger.record(instance, tie, issued)?;
        let looked = instance.look();
        let holds = looked.as_ref().is_ok_and(|facts| entitled.attested.is_of(facts))
            && self.registry.borrow().generation() == entitled.generation
            && self.policy.set().generation() == entitled.policy
            && self.trust.current().signers().stands(issued.authority);
        if holds {
            return Ok(());
        }
        self.ledger.withdraw(issued.id, Reason::NoLongerMatches)?;
        looked?;
        Err(Refusal::Changed)
    }

    /// Counts and audits a refusal on its way out.
    pub(crate) fn recorded<T>(
        &self,
        peer: &PeerConn,
        kind: Option<Kind>,
        result: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        if let Err(refusal) = &result {
            if let Some(kind) = kind {
                self.metrics.svid_issued.get_or_create(&Issued { r#type: kind, result: Outcome::Error }).inc();
            }
            self.metrics.refused.get_or_create(&metrics::Reason { reason: refusal.as_str() }).inc();
            let (reason, detail) = (refusal.as_str(), refusal.to_string());
            self.audit.record(Event::Refused { caller: caller(peer), reason, detail });
        }
        result
    }
}

fn attestation_refused(error: AttestationError) -> Refusal {
    match error {
        AttestationError::Look(error) => Refusal::Look(error),
        error => Refusal::Attestation(error),
    }
}

fn bundles(entitled: &Entitled) -> Bundles {
    let trust = &entitled.trust;
    let wanted = |domain: &TrustDomain| entitled.identities.iter().any(|i| i.entry.federates_with().contains(domain));
    let federated = trust.foreign().filter(|(domain, _)| wanted(domain));
    Bundles { own: trust.own().clone(), federated: federated.map(|(d, b)| (d.clone(), b.clone())).collect() }
}

/// The caller as audit names it.
pub fn caller(peer: &PeerConn) -> Caller {
    Caller { instance: peer.instance().id().to_string(), pid: peer.instance().pid(), uid: peer.uid() }
}
