//! Who may be at the other end.

use std::collections::BTreeSet;

use crate::id::{SpiffeId, TrustDomain};

/// Which proven identities a program talks to. The default is nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authorize {
    /// No peer at all.
    #[default]
    Nobody,
    /// This one.
    Id(SpiffeId),
    /// Any of these; of an empty set, nobody.
    OneOf(BTreeSet<SpiffeId>),
    /// Every identity of this trust domain.
    MemberOf(TrustDomain),
    /// Everyone who proves an identity: of the own trust domain, and of each one the program has a bundle of.
    Anyone,
}

impl Authorize {
    /// Whether a peer with this identity is one of them.
    pub fn allows(&self, peer: &SpiffeId) -> bool {
        match self {
            Self::Nobody => false,
            Self::Id(id) => peer == id,
            Self::OneOf(ids) => ids.contains(peer),
            Self::MemberOf(domain) => peer.is_member_of(domain),
            Self::Anyone => true,
        }
    }
}

impl From<SpiffeId> for Authorize {
    fn from(id: SpiffeId) -> Self {
        Self::Id(id)
    }
}

impl FromIterator<SpiffeId> for Authorize {
    fn from_iter<I: IntoIterator<Item = SpiffeId>>(ids: I) -> Self {
        Self::OneOf(ids.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_allowed_by_its_whole_id_or_its_trust_domain_and_by_default_nobody_is() {
        let id = |text: &str| SpiffeId::parse(text).expect("legal");
        let (a, b) = (id("spiffe://td/a"), id("spiffe://td/b"));
        let (below, foreign) = (id("spiffe://td/a/b"), id("spiffe://td2/a"));
        let domain = TrustDomain::parse("td").expect("legal");
        let everyone = [&a, &b, &below, &foreign];
        let cases: [(Authorize, &[&SpiffeId]); 6] = [
            (Authorize::default(), &[]),
            (a.clone().into(), &[&a]),
            ([a.clone(), foreign.clone()].into_iter().collect(), &[&a, &foreign]),
            (Authorize::OneOf(BTreeSet::new()), &[]),
            (Authorize::MemberOf(domain), &[&a, &b, &below]),
            (Authorize::Anyone, &everyone),
        ];
        for (authorize, allowed) in cases {
            for peer in everyone {
                assert_eq!(authorize.allows(peer), allowed.contains(&peer), "{authorize:?} and `{peer}`");
            }
        }
    }
}
