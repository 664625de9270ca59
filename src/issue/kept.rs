//! Documents that are made for one instance and stay with it: own key, own serial number or `jti`.
//!
//! One way for all kinds of them. A document is made when it is first asked for and kept until half of its life, so all
//! connections and streams of one process get the same one. It is wiped when the last connection of the process is gone.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::Mutex;

use super::{Entitled, Issuer, KEY_IN_WORKLOAD, LEEWAY, Refusal};
use crate::attest::Attested;
use crate::authority::{SignedWit, Signers, X509Svid};
use crate::base::secret::Secret;
use crate::bond::Tie;
use crate::id::SpiffeId;
use crate::jwt::{Jwk, private_jwk};
use crate::ledger::{self, Standing};
use crate::peer::PeerConn;
use crate::policy::{Denial, Policy, WitGrant, X509Grant};
use crate::registry::{Entry, EntryId, Identity};
use crate::wit::Confirmation;
use crate::x509::{KeyError, PrivateKey};

/// A document of one instance with what it was made from, and the hint it goes by in this answer.
pub type Kept<D> = (Arc<InstanceSvid<D>>, Option<Arc<str>>);

/// A document of one instance, and what it was made from.
#[derive(Debug)]
pub struct InstanceSvid<D = X509Svid> {
    /// For whom.
    pub spiffe_id: SpiffeId,
    /// The document and its key.
    pub svid: D,
    entry: Arc<Entry>,
    /// When it was made, but for what clocks of verifiers may differ: they believe it from then on.
    begins: OffsetDateTime,
    renew_at: OffsetDateTime,
}

/// A WIT-SVID together with the private key it names, as one workload gets it.
#[derive(Debug)]
pub struct KeyedWit {
    /// The token.
    pub signed: SignedWit,
    /// Its private key as a JWK with `alg`, as the Workload API carries it.
    pub key: Secret<String>,
}

/// What differs between the kinds of documents that are kept.
pub trait Document: Sized + Send + Sync + 'static {
    /// The kind, in the ledger.
    const KIND: ledger::Kind;
    /// Permission to sign one.
    type Grant: Send;

    /// Asks policy.
    fn decide(
        policy: &Policy,
        attested: &Attested,
        identity: &Identity,
        now: OffsetDateTime,
    ) -> Result<Self::Grant, Denial>;

    /// Makes a key and has it signed for.
    fn make(
        issuer: &Issuer,
        signers: &Signers,
        grant: Self::Grant,
        now: OffsetDateTime,
    ) -> impl Future<Output = Result<Self, Refusal>> + Send;

    /// Its serial number or `jti`.
    fn id(&self) -> &str;

    /// Which authority signed.
    fn authority(&self) -> &str;

    /// End of its validity.
    fn not_after(&self) -> OffsetDateTime;

    /// Whether two versions of an entry ask for the same document.
    fn same_terms(a: &Entry, b: &Entry) -> bool;

    /// Whether an entry gives such documents at all.
    fn given_by(_entry: &Entry) -> bool {
        true
    }

    /// What such a document is tied to, where others of the same identity are tied to this.
    fn tied_to(tie: Tie) -> Tie {
        tie
    }
}

impl Document for X509Svid {
    const KIND: ledger::Kind = ledger::Kind::X509;
    type Grant = X509Grant;

    fn decide(policy: &Policy, attested: &Attested, of: &Identity, now: OffsetDateTime) -> Result<X509Grant, Denial> {
        policy.issue_x509(attested, of, KEY_IN_WORKLOAD, now)
    }

    async fn make(issuer: &Issuer, signers: &Signers, grant: X509Grant, now: OffsetDateTime) -> Result<Self, Refusal> {
        let private = PrivateKey::generate_aside(issuer.key_type).await?;
        let signed = signers.sign_x509(grant, private.public_key(), now).await?;
        Ok(Self { signed, key: private.to_pkcs8()? })
    }

    fn id(&self) -> &str {
        &self.signed.serial
    }

    fn authority(&self) -> &str {
        &self.signed.authority
    }

    fn not_after(&self) -> OffsetDateTime {
        self.signed.not_after
    }

    fn same_terms(a: &Entry, b: &Entry) -> bool {
        a.x509_ttl() == b.x509_ttl() && a.dns_names() == b.dns_names() && a.expires_at() == b.expires_at()
    }
}

impl Document for KeyedWit {
    const KIND: ledger::Kind = ledger::Kind::Wit;
    type Grant = WitGrant;

    fn decide(policy: &Policy, attested: &Attested, of: &Identity, now: OffsetDateTime) -> Result<WitGrant, Denial> {
        policy.issue_wit(attested, of, KEY_IN_WORKLOAD, now)
    }

    async fn make(issuer: &Issuer, signers: &Signers, grant: WitGrant, now: OffsetDateTime) -> Result<Self, Refusal> {
        let private = PrivateKey::generate_aside(issuer.key_type).await?;
        let public = Jwk::from_spki(private.public_key()).map_err(|_| KeyError::Unsupported)?;
        let signed = signers.sign_wit(grant, &Confirmation::of(public), None, now).await?;
        Ok(Self { signed, key: private_jwk(&private).map_err(|_| KeyError::Unsupported)? })
    }

    fn id(&self) -> &str {
        &self.signed.jti
    }

    fn authority(&self) -> &str {
        &self.signed.authority
    }

    fn not_after(&self) -> OffsetDateTime {
        self.signed.expires_at
    }

    fn same_terms(a: &Entry, b: &Entry) -> bool {
        a.jwt_ttl() == b.jwt_ttl() && a.expires_at() == b.expires_at()
    }
}

/// Documents of one kind by what gave them and for whom they are.
type ByIdentity<D> = BTreeMap<(EntryId, SpiffeId), Arc<InstanceSvid<D>>>;

/// What of one kind stays with an instance between calls.
#[derive(Debug)]
struct InstanceCache<D> {
    /// Locked while signing: callers that want the same document at once wait for one signature.
    kept: Mutex<ByIdentity<D>>,
}

impl<D> Default for InstanceCache<D> {
    fn default() -> Self {
        Self { kept: Mutex::default() }
    }
}

impl Issuer {
    /// The documents of a caller, the default one first: for one identity, or for all of them. And when they must be
    /// looked at again.
    pub(super) async fn kept<D: Document>(
        &self,
        peer: &PeerConn,
        entitled: &mut Entitled,
        wanted: Option<&SpiffeId>,
    ) -> Result<(Vec<Kept<D>>, OffsetDateTime), Refusal> {
        let cache = peer.instance().attached::<InstanceCache<D>>();
        let mut kept = match cache.kept.try_lock() {
            Ok(kept) => kept,
            Err(_) => {
                let kept = cache.kept.lock().await;
                // Signing for another caller took a while: look again.
                peer.instance().look()?;
                kept
            }
        };
        // What policy refuses to this connection another connection of the same process may have.
        kept.retain(|(entry, id), _| entitled.identities.iter().any(|i| i.entry.id() == entry && i.spiffe_id == *id));
        entitled.narrow_to(wanted)?;
        entitled.identities.retain(|identity| D::given_by(&identity.entry));
        let mut svids = Vec::with_capacity(entitled.identities.len());
        let mut denied = None;
        for identity in &entitled.identities {
            let grant = match D::decide(&self.policy, &entitled.attested, identity, entitled.now) {
                Ok(grant) => grant,
                Err(denial) => {
                    denied.get_or_insert(denial);
                    continue;
                }
            };
            let key = (identity.entry.id().clone(), identity.spiffe_id.clone());
            let present = kept.get(&key).filter(|svid| self.still_good(svid, identity, entitled)).cloned();
            let svid = match present {
                Some(svid) => svid,
                None => {
                    let svid = D::make(self, entitled.trust.signers(), grant, entitled.now).await?;
                    let tie = D::tied_to(self.tie(peer, entitled, identity).await?);
                    let issued = ledger::Issued {
                        id: svid.id(),
                        kind: D::KIND,
                        authority: svid.authority(),
                        binding: KEY_IN_WORKLOAD,
                        not_after: svid.not_after(),
                        ..entitled.issued(identity)
                    };
                    self.record(peer, entitled, &tie, &issued)?;
                    let svid = Arc::new(self.with_renewal(identity, svid, entitled.now));
                    kept.insert(key, svid.clone());
                    svid
                }
            };
            svids.push((svid, identity.hint().map(Arc::from)));
        }
        if let (true, Some(denial)) = (svids.is_empty(), denied) {
            return Err(denial.into());
        }
        let first_renewal = svids.iter().map(|(svid, _)| svid.renew_at).min();
        let renew_at = first_renewal.into_iter().chain(entitled.ends).min().unwrap_or(entitled.now);
        // The process was looked at by attesting, and again after every wait since: nothing has waited after that.
        Ok((svids, renew_at))
    }

    /// Whether a kept document can still be handed out: begun, not half over, not revoked, from an authority that stands,
    /// and what the entry says about such documents today is what it was made from.
    fn still_good<D: Document>(&self, kept: &InstanceSvid<D>, identity: &Identity, entitled: &Entitled) -> bool {
        let same_terms = |a: &Entry, b: &Entry| D::same_terms(a, b) && a.bind() == b.bind();
        kept.begins <= entitled.now
            && kept.renew_at > entitled.now
            && entitled.trust.signers().stands(kept.svid.authority())
            && self.ledger.standing(kept.svid.id()) == Standing::Stands
            && (Arc::ptr_eq(&kept.entry, &identity.entry) || same_terms(&kept.entry, &identity.entry))
    }

    /// Half of its life, give or take a tenth, so that a fleet of processes does not renew in step.
    fn with_renewal<D: Document>(&self, identity: &Identity, svid: D, now: OffsetDateTime) -> InstanceSvid<D> {
        let life = svid.not_after() - now;
        let renew_at = now + life * (0.45 + self.entropy.fraction() / 10.0);
        InstanceSvid {
            spiffe_id: identity.spiffe_id.clone(),
            svid,
            entry: identity.entry.clone(),
            begins: now - LEEWAY,
            renew_at,
        }
    }
}

/// Whether a client would see no difference between two answers.
pub(super) fn same<D>(a: &[Kept<D>], b: &[Kept<D>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(&a.0, &b.0) && a.1 == b.1)
}
