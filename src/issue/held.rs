//! Keys that tether holds: made for a process, used for it, each time on the same straight path as issuing.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{Bundles, Entitled, Issuer, Refusal, again, attestation_refused, bundles};
use crate::audit::{Caller, Event};
use crate::held::{HeldCredential, HeldError, Holds, NewKey, Shape};
use crate::id::SpiffeId;
use crate::jwt::Jwk;
use crate::ledger::{self, Reason, Standing};
use crate::metrics::{Issued, Kind, Outcome};
use crate::peer::{Facts, Instance, InstanceId, LookError, PeerConn};
use crate::policy::{Denial, KeyUse};
use crate::proof::{ProofTarget, SignedProof};
use crate::registry::{Bind, Entry, Identity};
use crate::wit::Confirmation;
use crate::x509::{KeyError, KeyType, PrivateKey};

/// Binding level: tether holds the key and checks the process at every signature.
const HELD: u8 = 3;
/// Binding level: tether holds the key, and the process can only be held weakly.
const HELD_WEAKLY: u8 = 2;

/// A process in whose name another asks (peer rule 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnBehalfOf {
    /// Its number.
    pub pid: i32,
    /// Its inode number on pidfs, which is never used twice: the number of a process is.
    pub pidfs_inode: u64,
    /// Whether the delegate knows it by less than a connection of its own: then what is made for it is worth less.
    pub weak: bool,
}

/// The X.509-SVIDs of a process whose keys are held, as one complete state.
#[derive(Clone, Debug)]
pub struct HeldX509State {
    /// One for each identity, with its hint, the default one first.
    pub svids: Vec<(Arc<HeldCredential>, Option<Arc<str>>)>,
    /// What the process may judge peers with.
    pub bundles: Bundles,
    /// When this state must be made anew.
    pub renew_at: OffsetDateTime,
}

impl PartialEq for HeldX509State {
    /// Whether a client would see no difference.
    fn eq(&self, other: &Self) -> bool {
        self.svids == other.svids && self.bundles.same_x509(&other.bundles)
    }
}

/// What to prove.
#[derive(Clone, Debug)]
pub struct ProofRequest<'a> {
    /// The handle of a key; `None` for that of the default identity's WIT, made when there is none.
    pub key: Option<&'a str>,
    /// The request.
    pub target: ProofTarget,
    /// How.
    pub scheme: ProofScheme<'a>,
}

/// How to prove it.
#[derive(Clone, Copy, Debug)]
pub enum ProofScheme<'a> {
    /// A WIT and a Workload Proof Token.
    Wpt,
    /// A DPoP proof.
    Dpop {
        /// The access token it goes with.
        access_token: Option<&'a str>,
        /// The server's nonce.
        nonce: Option<&'a str>,
    },
}

/// A call, and in whose name it is made: usually that of its caller.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// The connection it came on.
    pub peer: &'a PeerConn,
    /// The process in whose name, which must be one that the caller may act for.
    pub on_behalf_of: Option<OnBehalfOf>,
}

impl<'a> From<&'a PeerConn> for Asking<'a> {
    fn from(peer: &'a PeerConn) -> Self {
        Self { peer, on_behalf_of: None }
    }
}

/// Who asks, and for whom: usually for itself.
pub(crate) struct Acting {
    /// The process whose keys these are.
    pub(crate) instance: Arc<Instance>,
    /// The process that asks in its name.
    pub(crate) delegate: Option<Arc<Instance>>,
    /// Whether the delegate knows the process by less than a connection of its own.
    weakly: bool,
    /// What the first is entitled to; with a delegate, what that may ask for.
    pub(crate) entitled: Entitled,
}

impl Acting {
    /// The check to make after every wait and before every use: both are still who they were.
    pub(crate) fn look(&self) -> Result<Facts, LookError> {
        if let Some(delegate) = &self.delegate {
            delegate.look()?;
        }
        self.instance.look()
    }

    /// For the audit log: the process in whose name another asks.
    pub(crate) fn holder(&self) -> Option<Caller> {
        self.delegate.is_some().then(|| caller_of(&self.instance, self))
    }

    /// What a key that is held for the process is worth.
    pub(crate) fn binding(&self) -> u8 {
        let is_weak = |instance: &Arc<Instance>| instance.weak().is_some();
        let weak = self.weakly || is_weak(&self.instance) || self.delegate.as_ref().is_some_and(is_weak);
        if weak { HELD_WEAKLY } else { HELD }
    }

    /// The process that calls.
    fn by(&self) -> &InstanceId {
        self.delegate.as_ref().unwrap_or(&self.instance).id()
    }

    /// The process that asks in the name of another.
    pub(crate) fn delegate(&self) -> Option<&InstanceId> {
        self.delegate.as_ref().map(|delegate| delegate.id())
    }
}

/// What an authority signed for a key.
struct Signed {
    holds: Holds,
    id: String,
    authority: Arc<str>,
    not_after: OffsetDateTime,
}

/// Locked while a key is made for an instance: callers that want the same one at once wait for one signature. Remembered
/// by the instance and not attached to it: one that others act for need have no connection of its own.
#[derive(Debug, Default)]
struct Making(tokio::sync::Mutex<()>);

impl Issuer {
    /// X.509-SVIDs whose keys are held, and bundles: for one identity, or for all of them.
    pub async fn hold_x509(
        &self,
        peer: &PeerConn,
        wanted: Option<&SpiffeId>,
        on_behalf_of: Option<OnBehalfOf>,
    ) -> Result<HeldX509State, Refusal> {
        let held = again(|| self.hold_x509_inner(peer, wanted, on_behalf_of)).await;
        self.recorded(peer, Some(Kind::X509), held)
    }

    async fn hold_x509_inner(
        &self,
        peer: &PeerConn,
        wanted: Option<&SpiffeId>,
        on_behalf_of: Option<OnBehalfOf>,
    ) -> Result<HeldX509State, Refusal> {
        let mut acting = self.acting(Asking { peer, on_behalf_of }).await?;
        acting.entitled.narrow_to(wanted)?;
        let mut svids = Vec::with_capacity(acting.entitled.identities.len());
        let mut denied = None;
        for identity in &acting.entitled.identities {
            match self.held_x509(peer, &acting, identity).await {
                Ok(held) => svids.push((held, identity.hint().map(Arc::from))),
                Err(Refusal::Denied(denial)) => drop(denied.get_or_insert(denial)),
                Err(other) => return Err(other),
            }
        }
        if let (true, Some(denial)) = (svids.is_empty(), denied) {
            return Err(denial.into());
        }
        acting.look()?;
        let first_renewal = svids.iter().map(|(svid, _)| svid.renew_at()).min();
        let renew_at = first_renewal.into_iter().chain(acting.entitled.ends).min().unwrap_or(acting.entitled.now);
        Ok(HeldX509State { svids, bundles: bundles(&acting.entitled), renew_at })
    }

    /// A WIT-SVID whose key is held, with its hint: the same one until half of its life.
    pub async fn hold_wit(
        &self,
        peer: &PeerConn,
        wanted: Option<&SpiffeId>,
        on_behalf_of: Option<OnBehalfOf>,
    ) -> Result<(Arc<HeldCredential>, Option<Arc<str>>), Refusal> {
        let held = again(|| async {
            let mut acting = self.acting(Asking { peer, on_behalf_of }).await?;
            acting.entitled.narrow_to(wanted)?;
            let (held, identity) = self.default_wit(peer, &acting).await?;
            acting.look()?;
            Ok((held, identity.hint().map(Arc::from)))
        })
        .await;
        self.recorded(peer, Some(Kind::Wit), held)
    }

    /// Signs one TLS 1.3 CertificateVerify with a key from [`Self::hold_x509`].
    pub async fn sign_tls(
        &self,
        peer: &PeerConn,
        key: &str,
        scheme: u32,
        content: &[u8],
        on_behalf_of: Option<OnBehalfOf>,
    ) -> Result<Vec<u8>, Refusal> {
        let signed = async {
            let acting = self.acting(Asking { peer, on_behalf_of }).await?;
            let key = self.held.find(key, acting.instance.id(), acting.by())?;
            let identity = self.identity_of(&acting, &key)?;
            let permit = self.may_use(&acting, identity, &key, acting.entitled.now)?;
            // Nothing waits after this.
            acting.look()?;
            let signature = self.held.sign_tls(permit, &key, scheme, content)?;
            self.record_use(&acting, &key, "tls", None)?;
            Ok(signature)
        };
        self.recorded(peer, None, signed.await)
    }

    /// Proves one request with a key from [`Self::hold_wit`], and says which.
    pub async fn prove(
        &self,
        peer: &PeerConn,
        request: &ProofRequest<'_>,
        on_behalf_of: Option<OnBehalfOf>,
    ) -> Result<(SignedProof, Arc<HeldCredential>), Refusal> {
        self.proofs_count().await;
        let proven = again(|| async {
            let acting = self.acting(Asking { peer, on_behalf_of }).await?;
            let key = match request.key {
                Some(handle) => self.held.find(handle, acting.instance.id(), acting.by())?,
                None => self.default_wit(peer, &acting).await?.0,
            };
            let identity = self.identity_of(&acting, &key)?;
            let now = self.clock.now();
            let permit = self.may_use(&acting, identity, &key, now)?;
            // Nothing waits after this.
            acting.look()?;
            let target = &request.target;
            let (proof, kind) = match request.scheme {
                ProofScheme::Wpt => (self.held.wpt(permit, &key, target, now)?, "wpt"),
                ProofScheme::Dpop { access_token, nonce } => {
                    (self.held.dpop(permit, &key, target, access_token, nonce, now)?, "dpop")
                }
            };
            self.record_use(&acting, &key, kind, Some(target))?;
            Ok((proof, key))
        })
        .await;
        self.recorded(peer, None, proven)
    }

    /// Proves, attests and matches who asks and, where it names another process, whether it may and what that is.
    pub(crate) async fn acting(&self, asking: Asking<'_>) -> Result<Acting, Refusal> {
        let peer = asking.peer;
        let entitled = self.entitled(peer).await?;
        let Some(other) = asking.on_behalf_of else {
            return Ok(Acting { instance: peer.instance().clone(), delegate: None, weakly: false, entitled });
        };
        if other.pidfs_inode == 0 {
            return Err(Refusal::NoTargetInode);
        }
        // Who may act for nobody learns nothing of others.
        self.policy.is_delegate(&entitled.attested, &entitled.identities, entitled.now)?;
        let instance = self.instances.of_pid(other.pid, Some(other.pidfs_inode)).map_err(Refusal::Target)?;
        let mut target = self.entitled_of(&instance).await?;
        let delegate = std::mem::take(&mut target.identities);
        let may = |identity: &Identity| {
            // Which executable is on the other end is known by a connection alone.
            !(other.weak && identity.entry.depends_on_executable())
                && self
                    .policy
                    .act_for(&entitled.attested, &entitled.identities, &identity.spiffe_id, target.now)
                    .is_ok()
        };
        target.identities = delegate.into_iter().filter(may).collect();
        if target.identities.is_empty() {
            return Err(Denial::NotDelegate.into());
        }
        let delegate = Some(peer.instance().clone());
        let acting = Acting { instance, delegate, weakly: other.weak, entitled: target };
        acting.look()?;
        Ok(acting)
    }

    /// Attests and matches a process that has not asked itself: as itself, by what the kernel says of it.
    pub(crate) async fn entitled_of(&self, instance: &Arc<Instance>) -> Result<Entitled, Refusal> {
        self.authorities_of_now().await;
        let index = self.registry.borrow().clone();
        let attested = self.attestation.attest(instance, index.wanted()).await.map_err(attestation_refused)?;
        let now = self.clock.now();
        let matched = index.matching(attested.evidence(), now);
        self.revoke_what_no_longer_matches(instance, &attested, &index, &matched).await?;
        if matched.identities.is_empty() {
            return Err(Refusal::NoIdentity { pid: instance.pid(), uid: attested.uid() });
        }
        let ends = index.next_expiry(now);
        let (generation, policy, trust) = (index.generation(), self.policy.set().generation(), self.trust.current());
        Ok(Entitled { attested, identities: matched.identities, trust, now, ends, generation, policy })
    }

    /// Asks policy about one use of a key.
    fn may_use(
        &self,
        acting: &Acting,
        identity: &Identity,
        key: &HeldCredential,
        now: OffsetDateTime,
    ) -> Result<KeyUse, Denial> {
        self.policy.use_key(&acting.entitled.attested, identity, key.kind().as_str(), key.binding(), now)
    }

    /// The identity that a key was made for, if it is still one of the process, and what it was signed as still stands.
    fn identity_of<'a>(&self, acting: &'a Acting, key: &HeldCredential) -> Result<&'a Identity, Refusal> {
        let mut identities = acting.entitled.identities.iter();
        let identity = identities.find(|identity| key.is_for(identity.entry.id(), &identity.spiffe_id));
        let identity = identity.ok_or_else(|| Refusal::NotGranted(key.spiffe_id().clone()))?;
        // The ledger is told of a revoked authority a moment later.
        if !acting.entitled.trust.signers().stands(key.authority()) {
            return Err(Refusal::Revoked(Reason::AuthorityRevoked));
        }
        match self.ledger.standing(key.id()) {
            Standing::Stands => Ok(identity),
            Standing::Ended { reason, .. } => Err(Refusal::Revoked(reason)),
            _ => Err(HeldError::NotHeld.into()),
        }
    }

    /// The WIT of the first identity that policy allows one.
    async fn default_wit<'a>(
        &self,
        peer: &PeerConn,
        acting: &'a Acting,
    ) -> Result<(Arc<HeldCredential>, &'a Identity), Refusal> {
        let mut denied = None;
        for identity in &acting.entitled.identities {
            match self.held_wit(peer, acting, identity).await {
                Ok(held) => return Ok((held, identity)),
                Err(Refusal::Denied(denial)) => drop(denied.get_or_insert(denial)),
                Err(other) => return Err(other),
            }
        }
        // There is at least one identity, and it was denied.
        Err(denied.map_or(Refusal::Stopping, Refusal::Denied))
    }

    async fn held_wit(
        &self,
        peer: &PeerConn,
        acting: &Acting,
        identity: &Identity,
    ) -> Result<Arc<HeldCredential>, Refusal> {
        let entitled = &acting.entitled;
        let grant = self.policy.issue_wit(&entitled.attested, identity, acting.binding(), entitled.now)?;
        let shape = Shape { ttl: identity.entry.jwt_ttl(), dns_names: Vec::new(), ends: identity.entry.expires_at() };
        if let Some(present) = self.present(acting, identity, ledger::Kind::Wit, &shape) {
            return Ok(present);
        }
        let making = acting.instance.remembered::<Making>();
        let _turn = making.0.lock().await;
        if let Some(present) = self.present(acting, identity, ledger::Kind::Wit, &shape) {
            return Ok(present);
        }
        let key = PrivateKey::generate_aside(KeyType::EcP256).await?;
        let public = Jwk::from_spki(key.public_key()).map_err(|_| KeyError::Unsupported)?;
        let signed = entitled.trust.signers().sign_wit(grant, &Confirmation::of(public), None, entitled.now).await?;
        let signed = Signed {
            holds: Holds::Wit(signed.token),
            id: signed.jti,
            authority: signed.authority,
            not_after: signed.expires_at,
        };
        self.keep_held(peer, acting, identity, self.new_key(acting, identity, key, shape, signed)).await
    }

    async fn held_x509(
        &self,
        peer: &PeerConn,
        acting: &Acting,
        identity: &Identity,
    ) -> Result<Arc<HeldCredential>, Refusal> {
        let entitled = &acting.entitled;
        let grant = self.policy.issue_x509(&entitled.attested, identity, acting.binding(), entitled.now)?;
        let shape = x509_shape(&identity.entry);
        if let Some(present) = self.present(acting, identity, ledger::Kind::X509, &shape) {
            return Ok(present);
        }
        let making = acting.instance.remembered::<Making>();
        let _turn = making.0.lock().await;
        if let Some(present) = self.present(acting, identity, ledger::Kind::X509, &shape) {
            return Ok(present);
        }
        let key = PrivateKey::generate_aside(self.key_type).await?;
        let signed = entitled.trust.signers().sign_x509(grant, key.public_key(), entitled.now).await?;
        let signed = Signed {
            holds: Holds::X509(signed.chain),
            id: signed.serial,
            authority: signed.authority,
            not_after: signed.not_after,
        };
        self.keep_held(peer, acting, identity, self.new_key(acting, identity, key, shape, signed)).await
    }

    /// The newest credential that can still be handed out: not half over, not revoked, from an authority that stands, and
    /// what the entry says today is what it was made from.
    fn present(
        &self,
        acting: &Acting,
        identity: &Identity,
        kind: ledger::Kind,
        shape: &Shape,
    ) -> Option<Arc<HeldCredential>> {
        self.held.newest(acting.instance.id(), acting.delegate(), |key| {
            key.kind() == kind
                && key.is_for(identity.entry.id(), &identity.spiffe_id)
                && key.shape() == shape
                && key.binding() == acting.binding()
                && key.renew_at() > acting.entitled.now
                && acting.entitled.trust.signers().stands(key.authority())
                && self.ledger.standing(key.id()) == Standing::Stands
        })
    }

    fn new_key(&self, acting: &Acting, identity: &Identity, key: PrivateKey, shape: Shape, signed: Signed) -> NewKey {
        let issued_at = acting.entitled.now;
        NewKey {
            key,
            spiffe_id: identity.spiffe_id.clone(),
            entry: identity.entry.id().clone(),
            shape,
            holds: signed.holds,
            id: signed.id,
            authority: signed.authority,
            delegate: acting.delegate().copied(),
            binding: acting.binding(),
            issued_at,
            // As other documents are renewed: at half of its life, give or take.
            renew_at: issued_at + (signed.not_after - issued_at) * (0.45 + self.entropy.fraction() / 10.0),
            not_after: signed.not_after,
        }
    }

    /// Looks again, writes down, and only then holds the key. Its process is what it is tied to, whatever the entry binds
    /// to: nothing is left of the key after it.
    async fn keep_held(
        &self,
        peer: &PeerConn,
        acting: &Acting,
        identity: &Identity,
        new: NewKey,
    ) -> Result<Arc<HeldCredential>, Refusal> {
        let kind = new.holds.kind();
        let entitled = &acting.entitled;
        let tie = self.bonds.tie(&acting.instance, &entitled.attested, Bind::Process).await?;
        acting.look()?;
        let issued = ledger::Issued {
            id: &new.id,
            kind,
            authority: &new.authority,
            binding: new.binding,
            held: true,
            not_after: new.not_after,
            delegate: new.delegate,
            ..entitled.issued(identity)
        };
        self.write_down(&acting.instance, entitled, &tie, &issued)?;
        let event = Event::KeyHeld {
            caller: super::caller(peer),
            on_behalf_of: acting.holder(),
            kind: kind.as_str(),
            spiffe_id: identity.spiffe_id.to_string(),
            entry: identity.entry.id().to_string(),
            serial: new.id.clone(),
            binding: new.binding,
            not_after: new.not_after,
        };
        self.before(&new.id, event)?;
        let held = self.held.keep(&acting.instance, entitled.attested.uid(), new)?;
        self.metrics.svid_issued.get_or_create(&Issued { r#type: kind.into(), result: Outcome::Ok }).inc();
        Ok(held)
    }

    /// Records what a key has signed, before that leaves.
    fn record_use(
        &self,
        acting: &Acting,
        key: &HeldCredential,
        kind: &'static str,
        target: Option<&ProofTarget>,
    ) -> Result<(), Refusal> {
        let event = Event::KeyUsed {
            caller: caller_of(acting.delegate.as_ref().unwrap_or(&acting.instance), acting),
            on_behalf_of: acting.holder(),
            kind,
            spiffe_id: key.spiffe_id().to_string(),
            serial: key.id().to_owned(),
            request: target.map(|target| format!("{} {}", target.method.as_str(), target.uri)),
        };
        Ok(self.audit.before(event)?)
    }
}

fn caller_of(instance: &Instance, acting: &Acting) -> Caller {
    let uid = if instance.id() == acting.instance.id() {
        acting.entitled.attested.uid()
    } else {
        instance.look().map_or(u32::MAX, |facts| facts.uid)
    };
    Caller { instance: instance.id().to_string(), pid: instance.pid(), uid }
}

/// What an entry says of certificates; see `same_certificate`.
fn x509_shape(entry: &Entry) -> Shape {
    let dns_names = entry.dns_names().iter().map(ToString::to_string).collect();
    Shape { ttl: entry.x509_ttl(), dns_names, ends: entry.expires_at() }
}
