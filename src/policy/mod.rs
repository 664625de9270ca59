//! Policy: the one place that says yes to issuing.
//!
//! A yes is a grant, a value with a private constructor that the authority consumes by signing: nothing can be
//! signed without one, and nothing else makes one. Deciding is pure: no I/O, no clock of its own.

mod question;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use time::OffsetDateTime;

use crate::attest::Attested;
use crate::id::{SpiffeId, TrustDomain};
use crate::proof::TargetUri;
use crate::registry::{EntryId, Identity};

pub use self::question::{
    Action, AgentFacts, Decision, Effect, IssueFacts, Obligations, Question, SessionFacts, ToolFacts,
};

/// Why an identity that matches is not issued.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denial {
    /// The entry has ended since it was matched.
    #[error("the registration entry `{0}` has expired")]
    EntryExpired(EntryId),
    /// The entry's list of audiences does not have this one.
    #[error("the registration entry `{entry}` does not allow the audience `{audience}`: add it to `audiences`")]
    Audience {
        /// The entry.
        entry: EntryId,
        /// The first audience that is not allowed.
        audience: String,
    },
    /// The entry matches on the executable, and the caller may have got its connection from somebody else.
    #[error("the registration entry `{entry}` matches on the executable, and {why}")]
    Executable {
        /// The entry.
        entry: EntryId,
        /// Why the executable is no evidence on this connection.
        why: String,
    },
    /// No entry of the asking process lets it act for the other.
    #[error("no registration entry of the calling process lets it act for that process: see `may_act_for`")]
    NotDelegate,
    /// No entry of the asking process lists the URI.
    #[error("no registration entry of the calling process lists `{0}` under `serves`")]
    NotServed(TargetUri),
}

impl Denial {
    /// A stable name for metrics and audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::EntryExpired(_) => "entry_expired",
            Self::Audience { .. } => "audience",
            Self::Executable { .. } => "executable",
            Self::NotDelegate => "not_delegate",
            Self::NotServed(_) => "not_served",
        }
    }
}

/// Permission to sign one X.509-SVID.
#[must_use = "a grant is permission to sign; drop it only to refuse"]
#[derive(Debug)]
pub struct X509Grant {
    spiffe_id: SpiffeId,
    dns_names: Vec<String>,
    ttl: Duration,
    ends: Option<OffsetDateTime>,
}

impl X509Grant {
    /// For whom.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// DNS names for the certificate.
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// How long the SVID may live, counted from `now`: never beyond the end of its entry.
    pub fn not_after(&self, now: OffsetDateTime) -> OffsetDateTime {
        not_after(now, self.ttl, self.ends)
    }
}

/// Permission to sign one JWT-SVID.
#[must_use = "a grant is permission to sign; drop it only to refuse"]
#[derive(Debug)]
pub struct JwtGrant {
    spiffe_id: SpiffeId,
    audience: Vec<String>,
    ttl: Duration,
    ends: Option<OffsetDateTime>,
}

impl JwtGrant {
    /// For whom.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// For which audiences, exactly.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// How long the SVID may live, counted from `now`: never beyond the end of its entry.
    pub fn not_after(&self, now: OffsetDateTime) -> OffsetDateTime {
        not_after(now, self.ttl, self.ends)
    }
}

/// Permission to sign one WIT-SVID.
#[must_use = "a grant is permission to sign; drop it only to refuse"]
#[derive(Debug)]
pub struct WitGrant {
    spiffe_id: SpiffeId,
    ttl: Duration,
    ends: Option<OffsetDateTime>,
}

impl WitGrant {
    /// For whom.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// How long the SVID may live, counted from `now`: never beyond the end of its entry.
    pub fn not_after(&self, now: OffsetDateTime) -> OffsetDateTime {
        not_after(now, self.ttl, self.ends)
    }
}

/// Permission to use one key that is held for an identity, once.
#[must_use = "a permit is permission to sign; drop it only to refuse"]
#[derive(Debug)]
pub struct KeyUse {
    spiffe_id: SpiffeId,
    entry: EntryId,
}

impl KeyUse {
    /// The identity whose key it is.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// The entry that gives it.
    pub fn entry(&self) -> &EntryId {
        &self.entry
    }
}

/// Permission to have proofs for one URI checked.
#[must_use = "without it nothing is checked"]
#[derive(Debug)]
pub struct Checks {
    asker: SpiffeId,
}

impl Checks {
    /// As whom the asker asks: replays are told apart by it.
    pub fn asker(&self) -> &SpiffeId {
        &self.asker
    }
}

fn not_after(now: OffsetDateTime, ttl: Duration, ends: Option<OffsetDateTime>) -> OffsetDateTime {
    let by_ttl = now + ttl;
    ends.map_or(by_ttl, |ends| by_ttl.min(ends))
}

/// Lifetimes for entries that name none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of an X.509-SVID.
    pub x509: Duration,
    /// Of a JWT-SVID and of a WIT-SVID.
    pub jwt: Duration,
}

/// How long JWT-SVIDs for some audiences may live at most, whatever their entry says: whoever holds such a token can
/// use it at its audience until it expires, so the audience decides what that is worth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AudienceCaps(BTreeMap<String, Duration>);

impl AudienceCaps {
    /// Stands for every audience that has no cap of its own.
    pub const OTHERS: &str = "*";

    /// The cap of each audience, in the order of the audiences.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.0.iter().map(|(audience, cap)| (audience.as_str(), *cap))
    }

    /// Whether no audience has a cap.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest cap among these audiences; `None` when none of them has one.
    pub fn of(&self, audience: &[String]) -> Option<Duration> {
        let others = self.0.get(Self::OTHERS);
        audience.iter().filter_map(|audience| self.0.get(audience).or(others)).min().copied()
    }
}

impl FromIterator<(String, Duration)> for AudienceCaps {
    fn from_iter<I: IntoIterator<Item = (String, Duration)>>(caps: I) -> Self {
        Self(caps.into_iter().collect())
    }
}

/// Decides about issuing; an immutable snapshot like the entries and the bundles.
#[derive(Clone, Debug)]
pub struct Policy {
    lifetimes: Lifetimes,
    jwt_caps: Arc<AudienceCaps>,
}

impl Policy {
    /// The policy that permits issuing what a registration entry gives.
    pub fn new(lifetimes: Lifetimes) -> Self {
        Self { lifetimes, jwt_caps: Arc::default() }
    }

    /// The same, with JWT-SVIDs for some audiences living no longer than these caps.
    pub fn with_jwt_caps(self, caps: AudienceCaps) -> Self {
        Self { jwt_caps: Arc::new(caps), ..self }
    }

    /// Whether the attested process may have an X.509-SVID for an identity that matched it.
    pub fn issue_x509(
        &self,
        attested: &Attested,
        identity: &Identity,
        now: OffsetDateTime,
    ) -> Result<X509Grant, Denial> {
        standing(attested, identity, now)?;
        Ok(X509Grant {
            spiffe_id: identity.spiffe_id.clone(),
            dns_names: identity.entry.dns_names().iter().map(ToString::to_string).collect(),
            ttl: identity.entry.x509_ttl().unwrap_or(self.lifetimes.x509),
            ends: identity.entry.expires_at(),
        })
    }

    /// Whether the attested process may have a JWT-SVID for exactly these audiences. It lives no longer than the smallest
    /// cap among them.
    pub fn issue_jwt(
        &self,
        attested: &Attested,
        identity: &Identity,
        audience: &[String],
        now: OffsetDateTime,
    ) -> Result<JwtGrant, Denial> {
        standing(attested, identity, now)?;
        if let Some(other) = audience.iter().find(|audience| !identity.entry.allows_audience(audience)) {
            return Err(Denial::Audience { entry: identity.entry.id().clone(), audience: other.clone() });
        }
        let ttl = identity.entry.jwt_ttl().unwrap_or(self.lifetimes.jwt);
        Ok(JwtGrant {
            spiffe_id: identity.spiffe_id.clone(),
            audience: audience.to_vec(),
            ttl: self.jwt_caps.of(audience).map_or(ttl, |cap| ttl.min(cap)),
            ends: identity.entry.expires_at(),
        })
    }

    /// Whether the attested process may have a WIT-SVID. It lives as long as a JWT-SVID of the same entry.
    pub fn issue_wit(&self, attested: &Attested, identity: &Identity, now: OffsetDateTime) -> Result<WitGrant, Denial> {
        standing(attested, identity, now)?;
        Ok(WitGrant {
            spiffe_id: identity.spiffe_id.clone(),
            ttl: identity.entry.jwt_ttl().unwrap_or(self.lifetimes.jwt),
            ends: identity.entry.expires_at(),
        })
    }

    /// Whether the attested process may use a key that is held for an identity that matched it, now.
    pub fn use_key(&self, attested: &Attested, identity: &Identity, now: OffsetDateTime) -> Result<KeyUse, Denial> {
        standing(attested, identity, now)?;
        Ok(KeyUse { spiffe_id: identity.spiffe_id.clone(), entry: identity.entry.id().clone() })
    }

    /// Whether the attested process may ask in the name of any other at all.
    pub fn is_delegate(&self, attested: &Attested, identities: &[Identity], now: OffsetDateTime) -> Result<(), Denial> {
        let delegates = identities.iter().filter(|identity| !identity.entry.may_act_for().is_empty());
        first_standing(attested, delegates, now, || Denial::NotDelegate).map(drop)
    }

    /// Whether the attested process may ask in the name of a process that is `other`: one of its own entries, as they
    /// stand now, says so.
    pub fn act_for(
        &self,
        attested: &Attested,
        identities: &[Identity],
        other: &SpiffeId,
        now: OffsetDateTime,
    ) -> Result<(), Denial> {
        let says_so = identities.iter().filter(|identity| identity.entry.acts_for(other));
        first_standing(attested, says_so, now, || Denial::NotDelegate).map(drop)
    }

    /// Whether the attested process may have proofs for `uri` checked: one of its own entries, as they stand now, lists
    /// it under `serves`.
    pub fn check_proof(
        &self,
        attested: &Attested,
        identities: &[Identity],
        uri: &TargetUri,
        now: OffsetDateTime,
    ) -> Result<Checks, Denial> {
        let lists_it = identities.iter().filter(|identity| identity.entry.serves_uri(uri));
        let asker = first_standing(attested, lists_it, now, || Denial::NotServed(uri.clone()))?;
        Ok(Checks { asker: asker.spiffe_id.clone() })
    }

    /// The agent's own identity, `spiffe://TD/tether/agent/NODE`: the one grant below the reserved path.
    pub fn own_x509(&self, domain: &TrustDomain, node: &str) -> X509Grant {
        let id = SpiffeId::parse(&format!("spiffe://{domain}/tether/agent/{node}"));
        X509Grant {
            spiffe_id: id.expect("a node id is made of hex digits"),
            dns_names: Vec::new(),
            ttl: self.lifetimes.x509,
            ends: None,
        }
    }
}

/// The first identity that stands; what the last one lacks, or `none`.
fn first_standing<'a>(
    attested: &Attested,
    mut identities: impl Iterator<Item = &'a Identity>,
    now: OffsetDateTime,
    none: impl FnOnce() -> Denial,
) -> Result<&'a Identity, Denial> {
    let mut denial = None;
    let found = identities.find(|identity| standing(attested, identity, now).map_err(|why| denial = Some(why)).is_ok());
    found.ok_or_else(|| denial.unwrap_or_else(none))
}

/// What must hold for every kind of SVID, at the moment of signing and not only when the entry was matched.
fn standing(attested: &Attested, identity: &Identity, now: OffsetDateTime) -> Result<(), Denial> {
    let entry = &identity.entry;
    if entry.expires_at().is_some_and(|ends| ends <= now) {
        return Err(Denial::EntryExpired(entry.id().clone()));
    }
    if entry.depends_on_executable() {
        let why = || entry.id().clone();
        attested.executable_holds().map_err(|because| Denial::Executable { entry: why(), why: because })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_cap_of_a_tokens_audiences_counts_and_the_star_stands_for_those_without_one() {
        type Caps<'a> = &'a [(&'a str, u64)];
        let seconds = |caps: Caps<'_>| -> AudienceCaps {
            caps.iter().map(|(audience, seconds)| ((*audience).to_owned(), Duration::from_secs(*seconds))).collect()
        };
        let some = [("pay", 30), ("mail", 120)];
        let table: &[(Caps<'_>, &[&str], Option<u64>)] = &[
            (&[], &["pay"], None),
            (&some, &["other"], None),
            (&some, &["pay"], Some(30)),
            (&some, &["pay/"], None),
            (&some, &["mail", "pay"], Some(30)),
            (&some, &["mail", "other"], Some(120)),
            (&[("*", 60), ("mail", 120)], &["other"], Some(60)),
            (&[("*", 60), ("mail", 120)], &["mail"], Some(120)),
            (&[("*", 60), ("mail", 120)], &["mail", "other"], Some(60)),
        ];
        for (caps, audience, expected) in table {
            let audience: Vec<String> = audience.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(seconds(caps).of(&audience), expected.map(Duration::from_secs), "{caps:?} {audience:?}");
        }
    }
}
