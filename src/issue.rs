//! Issuing, as one straight path: prove, attest, match, decide, sign, look again, record in the ledger, return.
//!
//! SVIDs are issued per instance and never shared between processes: own key, own serial, own `jti`. An X.509-SVID is
//! made when it is first asked for and kept with its instance until half of its life, so all connections and streams
//! of one process get the same one; it is wiped when the last connection of the process is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{Mutex, watch};

use crate::attest::{Attestation, AttestationError, Attested};
use crate::audit::{Audit, Caller, Event};
use crate::authority::{AuthorityError, SignedJwt, X509Svid};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::bond::{BondError, Bonds, Tie};
use crate::bundle::Bundle;
use crate::id::{SpiffeId, TrustDomain};
use crate::jwt::{JwtError, JwtSvid};
use crate::ledger::{self, Credential, Ledger, LedgerError, Reason, Standing};
use crate::metrics::{self, Issued, Kind, Metrics, Outcome};
use crate::peer::{Instance, LookError, PeerConn};
use crate::policy::{Denial, Policy};
use crate::registry::{Entry, EntryId, Identity, Index, Matched};
use crate::trust::{Snapshot, Trust};
use crate::x509::{KeyError, KeyType, PrivateKey, X509Authorities};

/// How far two hosts' clocks may differ when a token is validated.
const LEEWAY: Duration = Duration::from_secs(10);

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
    #[error("the ledger cannot be written: {0}")]
    Ledger(#[from] LedgerError),
    /// What an open stream had sent was revoked.
    #[error("the credential was revoked ({}): connect again", .0.as_str())]
    Revoked(Reason),
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
            Self::NotGranted(_) => "not_granted",
            Self::Denied(denial) => denial.as_str(),
            Self::Authority(_) => "authority",
            Self::Key(_) => "key",
            Self::Bond(_) => "bond",
            Self::Ledger(_) => "ledger",
            Self::Revoked(_) => "revoked",
            Self::Stopping => "stopping",
        }
    }
}

/// Why a token is not valid.
#[derive(Debug, Error)]
pub enum Invalid {
    /// By itself, or by the keys of its trust domain.
    #[error(transparent)]
    Token(#[from] JwtError),
    /// This node issued it, and it has ended before its time.
    #[error("it has been revoked ({})", .0.as_str())]
    Ended(Reason),
    /// Its entry allows one use, and that was before.
    #[error("it is good for one use and has been used")]
    Used,
    /// It bears the name of this node, whose ledger does not have it.
    #[error("this node has no record of it")]
    Unknown,
}

impl Invalid {
    /// A stable name for audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::Ended(reason) => reason.as_str(),
            Self::Used => "used",
            Self::Unknown => "unknown",
        }
    }
}

/// An X.509-SVID of one instance, and what it was made from.
#[derive(Debug)]
pub struct InstanceSvid {
    /// For whom.
    pub spiffe_id: SpiffeId,
    /// Certificates and key.
    pub svid: X509Svid,
    entry: Arc<Entry>,
    renew_at: OffsetDateTime,
}

/// Everything a caller is entitled to for X.509, as one complete state.
#[derive(Clone, Debug)]
pub struct X509State {
    /// One SVID and hint for each identity, the default one first.
    pub svids: Vec<(Arc<InstanceSvid>, Option<Arc<str>>)>,
    /// What the caller may judge peers with.
    pub bundles: Bundles,
    /// When this state must be made anew.
    pub renew_at: OffsetDateTime,
}

impl PartialEq for X509State {
    /// Whether a client would see no difference.
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&(Arc<InstanceSvid>, _), &(Arc<InstanceSvid>, _))| Arc::ptr_eq(&a.0, &b.0) && a.1 == b.1;
        self.svids.len() == other.svids.len()
            && self.svids.iter().zip(&other.svids).all(same)
            && self.bundles.same_x509(&other.bundles)
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
        self.all().map(|bundle| bundle.trust_domain()).eq(other.all().map(|bundle| bundle.trust_domain()))
            && self.all().zip(other.all()).all(|(a, b)| Arc::ptr_eq(a, b) || a.jwt() == b.jwt())
    }
}

/// What stays with an instance between calls.
#[derive(Debug, Default)]
struct InstanceCache {
    /// Locked while signing: callers that want the same SVID at once wait for one signature.
    svids: Mutex<BTreeMap<(EntryId, SpiffeId), Arc<InstanceSvid>>>,
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
struct Entitled {
    attested: Attested,
    identities: Vec<Identity>,
    trust: Arc<Snapshot>,
    now: OffsetDateTime,
    /// When an entry that takes part ends.
    ends: Option<OffsetDateTime>,
}

impl Entitled {
    /// The part of a ledger's row that does not depend on what is issued.
    fn issued<'a>(&'a self, identity: &'a Identity) -> ledger::Issued<'a> {
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
    /// Who decides.
    pub policy: Policy,
    /// Key type of X.509-SVIDs.
    pub key_type: KeyType,
    /// What was issued.
    pub ledger: Ledger,
    /// Whose end revokes it.
    pub bonds: Bonds,
    /// Where events go.
    pub audit: Audit,
    /// What is counted.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// For jitter.
    pub entropy: Entropy,
}

impl Issuer {
    /// The X.509-SVIDs and bundles of a caller.
    pub async fn x509(&self, peer: &PeerConn) -> Result<X509State, Refusal> {
        self.recorded(peer, Some(Kind::X509), self.x509_inner(peer).await)
    }

    async fn x509_inner(&self, peer: &PeerConn) -> Result<X509State, Refusal> {
        let entitled = self.entitled(peer).await?;
        let cache = peer.instance().attached::<InstanceCache>();
        let mut kept = match cache.svids.try_lock() {
            Ok(kept) => kept,
            Err(_) => {
                let kept = cache.svids.lock().await;
                // Signing for another caller took a while: look again.
                peer.instance().look()?;
                kept
            }
        };
        let mut svids = Vec::with_capacity(entitled.identities.len());
        let mut denied = None;
        for identity in &entitled.identities {
            let grant = match self.policy.issue_x509(&entitled.attested, identity, entitled.now) {
                Ok(grant) => grant,
                Err(denial) => {
                    denied.get_or_insert(denial);
                    continue;
                }
            };
            let key = (identity.entry.id().clone(), identity.spiffe_id.clone());
            let present = kept.get(&key).filter(|svid| self.still_good(svid, identity, &entitled)).cloned();
            let svid = match present {
                Some(svid) => svid,
                None => {
                    let private = PrivateKey::generate_aside(self.key_type).await?;
                    let signed = entitled.trust.signers().sign_x509(grant, private.public_key(), entitled.now).await?;
                    let tie = self.tie(peer, &entitled, identity).await?;
                    peer.instance().look()?;
                    let svid =
                        Arc::new(self.keep(identity, X509Svid { signed, key: private.to_pkcs8()? }, entitled.now));
                    self.record_x509(peer, &entitled, identity, &tie, &svid)?;
                    kept.insert(key, svid.clone());
                    svid
                }
            };
            svids.push((svid, identity.hint().map(Arc::from)));
        }
        if let (true, Some(denial)) = (svids.is_empty(), denied) {
            return Err(denial.into());
        }
        // What this connection is refused another connection of the same process may have.
        kept.retain(|(entry, id), _| entitled.identities.iter().any(|i| i.entry.id() == entry && i.spiffe_id == *id));
        drop(kept);

        let first_renewal = svids.iter().map(|(svid, _)| svid.renew_at).min();
        let renew_at = first_renewal.into_iter().chain(entitled.ends).min().unwrap_or(entitled.now);
        // The process was looked at by attesting, and again after every wait since: nothing has waited after that.
        Ok(X509State { svids, bundles: bundles(&entitled), renew_at })
    }

    /// JWT-SVIDs of a caller for exactly these audiences: for one identity, or for all of them.
    pub async fn jwt(
        &self,
        peer: &PeerConn,
        audience: &[String],
        wanted: Option<&SpiffeId>,
    ) -> Result<Vec<(Identity, SignedJwt)>, Refusal> {
        self.recorded(peer, Some(Kind::Jwt), self.jwt_inner(peer, audience, wanted).await)
    }

    async fn jwt_inner(
        &self,
        peer: &PeerConn,
        audience: &[String],
        wanted: Option<&SpiffeId>,
    ) -> Result<Vec<(Identity, SignedJwt)>, Refusal> {
        let mut entitled = self.entitled(peer).await?;
        if let Some(wanted) = wanted {
            entitled.identities.retain(|identity| identity.spiffe_id == *wanted);
            if entitled.identities.is_empty() {
                return Err(Refusal::NotGranted(wanted.clone()));
            }
        }
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
        peer.instance().look()?;
        for (identity, signed, tie) in &tokens {
            self.record_jwt(peer, &entitled, identity, tie, signed, audience)?;
        }
        Ok(tokens.into_iter().map(|(identity, signed, _)| (identity, signed)).collect())
    }

    /// The bundles of a caller, and when an entry that gives them ends.
    pub async fn bundles(&self, peer: &PeerConn) -> Result<(Bundles, Option<OffsetDateTime>), Refusal> {
        let entitled = self.entitled(peer).await;
        let entitled = self.recorded(peer, None, entitled)?;
        Ok((bundles(&entitled), entitled.ends))
    }

    /// Validates a token for one audience, with the bundles its caller may see. One that this node issued must also
    /// stand, and one for a single use is used by this.
    pub async fn validate(
        &self,
        peer: &PeerConn,
        token: &str,
        audience: &str,
    ) -> Result<Result<JwtSvid, Invalid>, Refusal> {
        let (bundles, _) = self.bundles(peer).await?;
        let find = |domain: &TrustDomain| bundles.all().find(|bundle| bundle.trust_domain() == domain);
        let valid = crate::jwt::validate(token, audience, |domain| Some(find(domain)?.jwt()), self.clock.now(), LEEWAY);
        let svid = match valid {
            Ok(svid) => svid,
            Err(error) => return Ok(Err(error.into())),
        };
        let Some(jti) = self.own_jti(&svid) else { return Ok(Ok(svid)) };
        let Err(invalid) = self.stands(&svid, jti).await? else { return Ok(Ok(svid)) };
        self.audit.record(Event::TokenRefused {
            caller: caller(peer),
            spiffe_id: svid.spiffe_id().to_string(),
            serial: jti.to_owned(),
            reason: invalid.as_str(),
        });
        Ok(Err(invalid))
    }

    /// The `jti` of a token that this node issued, going by its name. What others issue is theirs to judge.
    fn own_jti<'a>(&self, svid: &'a JwtSvid) -> Option<&'a str> {
        let own_domain = svid.spiffe_id().trust_domain() == *self.trust.current().domain();
        svid.token_id().filter(|jti| own_domain && self.ledger.is_of_this_node(jti))
    }

    /// Whether a token of this node stands; if it is for one use, that was it.
    async fn stands(&self, svid: &JwtSvid, jti: &str) -> Result<Result<(), Invalid>, Refusal> {
        let recorded = self.ledger.credential(jti);
        let the_same =
            |known: &Credential| known.kind == ledger::Kind::Jwt && known.spiffe_id == svid.spiffe_id().as_str();
        let Some(recorded) = recorded.filter(the_same) else { return Ok(Err(Invalid::Unknown)) };
        // A new program in a process is no event: whoever asks must look.
        if let (Standing::Stands, Tie::Process { .. }) = (recorded.standing, &recorded.tie)
            && let Err(end) = self.bonds.hold(&recorded.tie).await
        {
            self.ledger.tie_ended(&recorded.tie, end.into())?;
        }
        Ok(match self.ledger.use_once(jti)? {
            Standing::Stands => Ok(()),
            Standing::Used => Err(Invalid::Used),
            Standing::Ended { reason, .. } => Err(Invalid::Ended(reason)),
            Standing::Unknown => Err(Invalid::Unknown),
        })
    }

    /// Proves, attests and matches a caller. Every call comes through here.
    async fn entitled(&self, peer: &PeerConn) -> Result<Entitled, Refusal> {
        peer.proven().await.map_err(Refusal::Connection)?;
        let index = self.registry.borrow().clone();
        let mut attested = self.attest(peer, &index).await?;
        peer.opened_by(attested.uid(), attested.gid()).await.map_err(Refusal::Connection)?;
        let now = self.clock.now();
        let mut matched = index.matching(attested.evidence(), now);
        self.revoke_what_no_longer_matches(peer.instance(), &attested, &index, &matched).await?;
        if matched.identities.is_empty() {
            return Err(match matched.unavailable.into_iter().next() {
                Some(unavailable) => {
                    Refusal::Unavailable { entry: unavailable.entry.id().clone(), why: unavailable.reasons.join("; ") }
                }
                None => Refusal::NoIdentity { pid: peer.instance().pid(), uid: attested.uid() },
            });
        }
        if matched.identities.iter().any(|identity| identity.entry.depends_on_executable()) {
            let held = peer.holds_cloexec().await;
            if held.is_err() {
                matched = index.matching_executable_last(attested.evidence(), now);
            }
            attested.require_executable(held);
        }
        let ends = index.next_expiry(now);
        Ok(Entitled { attested, identities: matched.identities, trust: self.trust.current(), now, ends })
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
        let checked = instance.attached::<Checked>();
        let moment = (index.generation(), attested.clone());
        let same = |(generation, known): &(u64, Attested)| *generation == moment.0 && known.same_facts(&moment.1);
        if checked.lock().as_ref().is_some_and(same) || matched.more_unavailable {
            return Ok(());
        }
        let kept = |entry: &str, id: &str| {
            matched.identities.iter().any(|identity| identity.spiffe_id.as_str() == id)
                || matched.unavailable.iter().any(|unavailable| unavailable.entry.id().as_str() == entry)
        };
        self.ledger.keep_only(instance.id(), kept, Reason::NoLongerMatches).await?;
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

    /// Whether a kept SVID can still be handed out: not half over, not revoked, from an authority that stands, and what
    /// the entry says about certificates today is what it was made from.
    fn still_good(&self, svid: &InstanceSvid, identity: &Identity, entitled: &Entitled) -> bool {
        svid.renew_at > entitled.now
            && entitled.trust.signers().stands(&svid.svid.signed.authority)
            && self.ledger.standing(&svid.svid.signed.serial) == Standing::Stands
            && (Arc::ptr_eq(&svid.entry, &identity.entry) || same_certificate(&svid.entry, &identity.entry))
    }

    /// Half of its life, give or take a tenth, so that a fleet of processes does not renew in step.
    fn keep(&self, identity: &Identity, svid: X509Svid, now: OffsetDateTime) -> InstanceSvid {
        let life = svid.signed.not_after - now;
        let renew_at = now + life * (0.45 + self.entropy.fraction() / 10.0);
        InstanceSvid { spiffe_id: identity.spiffe_id.clone(), svid, entry: identity.entry.clone(), renew_at }
    }

    fn record_x509(
        &self,
        peer: &PeerConn,
        entitled: &Entitled,
        identity: &Identity,
        tie: &Tie,
        svid: &InstanceSvid,
    ) -> Result<(), Refusal> {
        let signed = &svid.svid.signed;
        let issued = ledger::Issued {
            id: &signed.serial,
            kind: ledger::Kind::X509,
            audience: &[],
            authority: &signed.authority,
            binding: KEY_IN_WORKLOAD,
            not_after: signed.not_after,
            ..entitled.issued(identity)
        };
        self.ledger.record(peer.instance(), tie, &issued)?;
        self.metrics.svid_issued.get_or_create(&Issued { r#type: Kind::X509, result: Outcome::Ok }).inc();
        self.audit.record(Event::SvidIssued {
            caller: caller(peer),
            kind: "x509",
            binding: KEY_IN_WORKLOAD,
            spiffe_id: svid.spiffe_id.to_string(),
            entry: svid.entry.id().to_string(),
            serial: svid.svid.signed.serial.clone(),
            audience: Vec::new(),
            not_after: svid.svid.signed.not_after,
        });
        Ok(())
    }

    fn record_jwt(
        &self,
        peer: &PeerConn,
        entitled: &Entitled,
        identity: &Identity,
        tie: &Tie,
        signed: &SignedJwt,
        audience: &[String],
    ) -> Result<(), Refusal> {
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
        self.ledger.record(peer.instance(), tie, &issued)?;
        self.metrics.svid_issued.get_or_create(&Issued { r#type: Kind::Jwt, result: Outcome::Ok }).inc();
        self.audit.record_frequent(|| Event::SvidIssued {
            caller: caller(peer),
            kind: "jwt",
            binding: BEARER,
            spiffe_id: identity.spiffe_id.to_string(),
            entry: identity.entry.id().to_string(),
            serial: signed.jti.clone(),
            audience: audience.to_vec(),
            not_after: signed.expires_at,
        });
        Ok(())
    }

    /// Counts and audits a refusal on its way out.
    fn recorded<T>(&self, peer: &PeerConn, kind: Option<Kind>, result: Result<T, Refusal>) -> Result<T, Refusal> {
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

/// Whether two versions of an entry ask for the same certificate.
fn same_certificate(a: &Entry, b: &Entry) -> bool {
    a.x509_ttl() == b.x509_ttl()
        && a.dns_names() == b.dns_names()
        && a.expires_at() == b.expires_at()
        && a.bind() == b.bind()
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
