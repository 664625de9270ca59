//! Who called, as TLS showed it to the asker: the certificate is judged here once more, as everything is of that moment.
//!
//! Promises: a certificate of a trust domain that the asker may see, believed by that domain's bundle and our revocation
//! lists; where this node issued it, its row in the ledger stands and its process was looked at. Does not: know what other
//! nodes and trust domains revoked, beyond the lists that reach this one; or that the caller has the key: the asker saw
//! that in its handshake, and says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use time::{Duration, OffsetDateTime};

use super::{Asker, Inactive, Verifier};
use crate::base::entropy::hex;
use crate::id::SpiffeId;
use crate::issue::Refusal;
use crate::jwt::Jwk;
use crate::ledger::{Credential, Kind, Standing};
use crate::trust::{CrlSet, Snapshot};
use crate::x509::{Chain, X509Error, verify};

/// Binding level: whoever has the key, wherever that is, can use it.
const KEY_IN_WORKLOAD: u8 = 1;
/// Chains that are remembered as believed, and for how long at most: signatures do not change, lists run out.
const MAX_BELIEVED: usize = 4096;
const BELIEVED_FOR: Duration = Duration::seconds(30);

/// A caller whose certificate holds.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) spiffe_id: SpiffeId,
    /// In hex.
    pub(super) serial: String,
    pub(super) not_after: OffsetDateTime,
    /// RFC 7638, of its key.
    pub(super) thumbprint: String,
    pub(super) binding: u8,
    /// What the ledger has of it, where this node issued it.
    pub(super) row: Option<Credential>,
}

/// The chains that were believed by one set of authorities and lists.
#[derive(Debug, Default)]
pub(super) struct Believed(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    by: Option<(Arc<Snapshot>, Arc<CrlSet>)>,
    /// By the digest of all certificates; until when.
    chains: HashMap<[u8; 32], (Shown, OffsetDateTime)>,
}

/// What a chain says, once it is believed.
#[derive(Clone, Debug)]
struct Shown {
    spiffe_id: SpiffeId,
    serial: String,
    not_after: OffsetDateTime,
    thumbprint: String,
}

impl Verifier {
    /// The caller that these certificates identify, if they hold now.
    pub(super) async fn peer(&self, asker: &Asker, chain: &Chain) -> Result<Result<Peer, Inactive>, Refusal> {
        let shown = match self.shown(asker, chain) {
            Ok(shown) => shown,
            Err(inactive) => return Ok(Err(inactive)),
        };
        let row = self.issuer.issued_as(&shown.serial, Kind::X509, &shown.spiffe_id);
        // A serial of ours that is not in the ledger does not stand.
        if row.is_none() && self.is_signed_here(chain) {
            return Ok(Err(Inactive::PeerRevoked(None)));
        }
        if let Some(row) = row.as_ref().filter(|row| row.standing == Standing::Stands) {
            match self.issuer.look_at_holder(row).await {
                Err(Refusal::Holder(_)) => return Ok(Err(Inactive::Unseen)),
                looked => looked?,
            }
        }
        let binding = row.as_ref().map_or(KEY_IN_WORKLOAD, |row| row.binding);
        let Shown { spiffe_id, serial, not_after, thumbprint } = shown;
        let peer = Peer { spiffe_id, serial, not_after, thumbprint, binding, row };
        Ok(self.peer_stands(&peer).map(|()| peer))
    }

    /// Whether it still stands, by what is known without waiting.
    pub(super) fn peer_stands(&self, peer: &Peer) -> Result<(), Inactive> {
        if peer.row.is_none() {
            return Ok(());
        }
        match self.issuer.ledger.standing(&peer.serial) {
            Standing::Stands => Ok(()),
            Standing::Ended { reason, .. } => Err(Inactive::PeerRevoked(Some(reason))),
            Standing::Used | Standing::Unknown => Err(Inactive::PeerRevoked(None)),
        }
    }

    /// Whether a signing CA of this node signed the leaf: each node has its own, whoever shares the root.
    fn is_signed_here(&self, chain: &Chain) -> bool {
        let trust = self.issuer.trust.current();
        let is_ours = |id: String| trust.signers().slots().iter().any(|slot| slot.id == id);
        // Any of them: a certificate that has nothing to do with it may stand in front.
        chain.intermediates().iter().any(|certificate| is_ours(certificate.serial().to_string()))
    }

    fn shown(&self, asker: &Asker, chain: &Chain) -> Result<Shown, Inactive> {
        let (trust, lists, now) = (self.issuer.trust.current(), self.crls.latest(), self.issuer.clock.now());
        let digest = digest(chain);
        let known = self.believed.find(&digest, &trust, &lists, now);
        let shown = match known {
            Some(shown) => shown,
            None => {
                let (shown, until) = believe(chain, &trust, &lists, now)?;
                self.believed.note(digest, shown.clone(), until, trust.clone(), lists);
                shown
            }
        };
        // Who may see whom is the asker's, so it is asked each time.
        let domain = shown.spiffe_id.trust_domain();
        let may_see = domain == *trust.domain() || asker.federates_with.contains(&domain);
        if may_see { Ok(shown) } else { Err(X509Error::NoBundle(domain).into()) }
    }
}

/// What a chain says, and until when that need not be looked at again.
fn believe(
    chain: &Chain,
    trust: &Snapshot,
    lists: &CrlSet,
    now: OffsetDateTime,
) -> Result<(Shown, OffsetDateTime), X509Error> {
    let domain = chain.leaf().svid_id()?.trust_domain();
    let bundle = trust.bundle(&domain).ok_or(X509Error::NoBundle(domain))?;
    let verified = verify(chain, bundle.x509(), now, lists.parsed()?)?;
    let leaf = verified.leaf();
    let key = Jwk::from_spki(leaf.public_key()).map(|key| key.thumbprint()).unwrap_or_default();
    let ends = chain.certificates().iter().map(|certificate| certificate.not_after()).min().unwrap_or(now);
    let shown = Shown {
        spiffe_id: verified.spiffe_id().clone(),
        serial: hex(leaf.serial().as_bytes()),
        not_after: leaf.not_after(),
        thumbprint: key,
    };
    Ok((shown, ends.min(now + BELIEVED_FOR)))
}

fn digest(chain: &Chain) -> [u8; 32] {
    let mut sha256 = Context::new(&SHA256);
    for certificate in chain.certificates() {
        // DER has its length in it: no two chains read the same.
        sha256.update(certificate.der());
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(sha256.finish().as_ref());
    digest
}

impl Believed {
    fn find(
        &self,
        digest: &[u8; 32],
        trust: &Arc<Snapshot>,
        lists: &Arc<CrlSet>,
        now: OffsetDateTime,
    ) -> Option<Shown> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_trust, by_lists) = known.by.as_ref()?;
        if !Arc::ptr_eq(by_trust, trust) || !Arc::ptr_eq(by_lists, lists) {
            return None;
        }
        let (shown, until) = known.chains.get(digest)?;
        (now < *until).then(|| shown.clone())
    }

    fn note(&self, digest: [u8; 32], shown: Shown, until: OffsetDateTime, trust: Arc<Snapshot>, lists: Arc<CrlSet>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = known.by.as_ref().is_some_and(|(by, of)| Arc::ptr_eq(by, &trust) && Arc::ptr_eq(of, &lists));
        if !same || known.chains.len() >= MAX_BELIEVED {
            known.chains.clear();
            known.by = Some((trust, lists));
        }
        known.chains.insert(digest, (shown, until));
    }
}
