//! X.509-SVIDs by name, for clients that name what they want and make do with a part of it.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::{Bundles, Issuer, Kept, Refusal, again, bundles};
use crate::authority::X509Svid;
use crate::authority::slot::Kind as SlotKind;
use crate::id::SpiffeId;
use crate::metrics::Kind;
use crate::peer::PeerConn;
use crate::policy::Denial;
use crate::trust::Snapshot;

/// Which of a caller's X.509-SVIDs are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedSvids {
    /// Every one.
    pub all: bool,
    /// That of the first identity.
    pub first: bool,
    /// Those of these identities.
    pub ids: Vec<SpiffeId>,
}

impl WantedSvids {
    fn has(&self, place: usize, id: &SpiffeId) -> bool {
        self.all || (self.first && place == 0) || self.ids.contains(id)
    }
}

/// What a caller has of what it wanted, as one complete state.
#[derive(Clone, Debug)]
pub struct NamedX509 {
    /// Every identity of the caller, the default one first, whether its SVID was wanted or not.
    pub identities: Vec<SpiffeId>,
    /// The SVIDs that were wanted, as far as policy allows.
    pub svids: BTreeMap<SpiffeId, Kept<X509Svid>>,
    /// Why policy does not allow others.
    pub denied: BTreeMap<SpiffeId, Denial>,
    /// What the caller may judge peers with.
    pub bundles: Bundles,
    /// Whether every authority of our own trust domain is a root of this node, so that each of its paths has all of its
    /// revocation lists.
    pub only_our_roots: bool,
    /// When this state must be made anew; `None` for only on events.
    pub renew_at: Option<OffsetDateTime>,
}

impl Issuer {
    /// The X.509-SVIDs of a caller that it names, and its bundles. An identity that it does not have is no refusal, as
    /// long as it has any.
    pub async fn named_x509(&self, peer: &PeerConn, wanted: &WantedSvids) -> Result<NamedX509, Refusal> {
        let made = again(|| self.named_x509_inner(peer, wanted)).await;
        self.recorded(peer, Some(Kind::X509), made)
    }

    async fn named_x509_inner(&self, peer: &PeerConn, wanted: &WantedSvids) -> Result<NamedX509, Refusal> {
        let mut entitled = self.entitled(peer).await?;
        let matched = entitled.identities.clone();
        let mut identities: Vec<SpiffeId> = Vec::with_capacity(matched.len());
        for identity in &matched {
            if !identities.contains(&identity.spiffe_id) {
                identities.push(identity.spiffe_id.clone());
            }
        }
        let (mut svids, mut denied) = (BTreeMap::new(), BTreeMap::new());
        let mut renew_at = entitled.ends;
        for (_, id) in identities.iter().enumerate().filter(|(place, id)| wanted.has(*place, id)) {
            match self.kept::<X509Svid>(peer, &mut entitled, Some(id)).await {
                Ok((kept, again_at)) => {
                    renew_at = renew_at.into_iter().chain([again_at]).min();
                    svids.extend(kept.into_iter().next().map(|svid| (id.clone(), svid)));
                }
                Err(Refusal::Denied(denial)) => drop(denied.insert(id.clone(), denial)),
                Err(refusal) => return Err(refusal),
            }
            entitled.identities.clone_from(&matched);
        }
        Ok(NamedX509 {
            identities,
            svids,
            denied,
            only_our_roots: only_our_roots(&entitled.trust),
            bundles: bundles(&entitled),
            renew_at,
        })
    }
}

/// A root from files may have signed for other nodes, whose revocation lists nobody here has.
fn only_our_roots(trust: &Snapshot) -> bool {
    let roots = || trust.signers().slots().iter().filter(|slot| slot.kind == SlotKind::X509Root);
    let is_ours = |der: &[u8]| roots().any(|slot| slot.certificate == der);
    trust.own().x509().certificates().iter().all(|certificate| is_ours(certificate.der()))
}
