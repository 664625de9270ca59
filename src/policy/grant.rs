//! What policy says yes with: values that only policy makes, and that signing consumes.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use time::OffsetDateTime;

use super::question::Decision;
use crate::id::SpiffeId;
use crate::registry::EntryId;

/// Permission to sign one X.509-SVID.
#[must_use = "a grant is permission to sign; drop it only to refuse"]
#[derive(Debug)]
pub struct X509Grant {
    pub(super) spiffe_id: SpiffeId,
    pub(super) dns_names: Vec<String>,
    pub(super) ttl: Duration,
    pub(super) ends: Option<OffsetDateTime>,
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
    pub(super) spiffe_id: SpiffeId,
    pub(super) audience: Vec<String>,
    pub(super) ttl: Duration,
    pub(super) ends: Option<OffsetDateTime>,
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
    pub(super) spiffe_id: SpiffeId,
    pub(super) ttl: Duration,
    pub(super) ends: Option<OffsetDateTime>,
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
    pub(super) spiffe_id: SpiffeId,
    pub(super) entry: EntryId,
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
    pub(super) asker: SpiffeId,
}

impl Checks {
    /// As whom the asker asks: replays are told apart by it.
    pub fn asker(&self) -> &SpiffeId {
        &self.asker
    }
}

/// Begins a session, or a child of one: see [`Permit`].
#[derive(Debug)]
pub struct Start;

/// Calls a tool: see [`Permit`].
#[derive(Debug)]
pub struct Call;

/// Calls a tool outside any session: see [`Permit`].
#[derive(Debug)]
pub struct Reach;

/// Permission to do something once.
#[must_use = "without it nothing is done"]
pub struct Permit<What> {
    asked: Permitted,
    what: PhantomData<What>,
}

/// What was permitted to whom.
#[derive(Debug)]
pub(super) struct Permitted {
    pub(super) spiffe_id: SpiffeId,
    pub(super) session: String,
    pub(super) decision: Decision,
}

impl<What> Permit<What> {
    pub(super) fn new(asked: Permitted) -> Self {
        Self { asked, what: PhantomData }
    }

    /// Who may.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.asked.spiffe_id
    }

    /// In which session: the id in the question.
    pub fn session(&self) -> &str {
        &self.asked.session
    }

    /// The decision, with what goes with it.
    pub fn decision(&self) -> &Decision {
        &self.asked.decision
    }

    /// The decision alone: the permission is used up.
    pub fn into_decision(self) -> Decision {
        self.asked.decision
    }
}

impl<What> fmt::Debug for Permit<What> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Permit").field(&self.asked).finish()
    }
}

/// Permission to sign one token of a session, for the target that policy was asked about.
#[must_use = "a grant is permission to sign; drop it only to refuse"]
#[derive(Debug)]
pub struct MintGrant {
    pub(super) asked: Permitted,
    pub(super) target: String,
    pub(super) is_bearer: bool,
}

impl MintGrant {
    /// For whom.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.asked.spiffe_id
    }

    /// In which session: the id in the question.
    pub fn session(&self) -> &str {
        &self.asked.session
    }

    /// Where to.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The decision, with what goes with it.
    pub fn decision(&self) -> &Decision {
        &self.asked.decision
    }

    /// Permission to sign it as a WIT, which is worth nothing without the session's key.
    pub fn into_wit(self, ttl: Duration, ends: Option<OffsetDateTime>) -> WitGrant {
        WitGrant { spiffe_id: self.asked.spiffe_id, ttl, ends }
    }

    /// Permission to sign it as a JWT-SVID for the target, which whoever has it can use; `None` unless policy was asked
    /// about a token of kind `jwt`.
    pub fn into_jwt(self, ttl: Duration, ends: Option<OffsetDateTime>) -> Option<JwtGrant> {
        let Self { asked, target, is_bearer } = self;
        is_bearer.then(|| JwtGrant { spiffe_id: asked.spiffe_id, audience: vec![target], ttl, ends })
    }
}

fn not_after(now: OffsetDateTime, ttl: Duration, ends: Option<OffsetDateTime>) -> OffsetDateTime {
    let by_ttl = now + ttl;
    ends.map_or(by_ttl, |ends| by_ttl.min(ends))
}
