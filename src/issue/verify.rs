//! Checking what a caller of a tool presents: its WIT and proof, and whether what they stand on still stands.

use std::sync::{Mutex, PoisonError};

use thiserror::Error;
use time::OffsetDateTime;

use super::{Issuer, LEEWAY, Refusal};
use crate::audit::Event;
use crate::id::{SpiffeId, TrustDomain};
use crate::ledger::{Kind, Reason, Standing};
use crate::peer::PeerConn;
use crate::proof::{
    CheckedProof, Expected, Presented, ProofError, ProofTarget, ReplayCache, ReplayError, ReplayLimits, check_wpt,
};

/// Why a request is not what its caller says. For the log of who asked, and for audit; never for who presented it.
#[derive(Debug, Error)]
pub enum Inactive {
    /// There is no WIT with a proof in the headers: a WIT alone proves nothing.
    #[error("the request carries no `Workload-Identity-Token` with one `Authorization: WPT`")]
    NoProof,
    /// The WIT or the proof does not hold.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The WIT was issued by another node, which alone knows whether it stands.
    #[error("the WIT was issued by another node, which this agent does not ask")]
    AnotherNode,
    /// The WIT is of this node, and not in its ledger.
    #[error("the WIT is not in the ledger of this node")]
    Unknown,
    /// The WIT was revoked.
    #[error("the WIT was revoked: {}", .0.as_str())]
    Revoked(Reason),
    /// This agent held its key, and does not any more.
    #[error("the key of the WIT was wiped: its process is over, or the WIT")]
    Wiped,
    /// The process could not be looked at.
    #[error("the process that the WIT was issued to cannot be looked at now")]
    Unseen,
    /// The proof was presented before, or it cannot be told.
    #[error(transparent)]
    Replay(#[from] ReplayError),
}

impl Inactive {
    /// One of a small fixed set: `no_proof`, `another_node`, `unknown`, `revoked`, `ended`, `unseen`, and those of
    /// [`ProofError::as_str`] and [`ReplayError::as_str`].
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoProof => "no_proof",
            Self::Proof(error) => error.as_str(),
            Self::AnotherNode => "another_node",
            Self::Unknown => "unknown",
            Self::Revoked(_) => "revoked",
            Self::Wiped => "ended",
            Self::Unseen => "unseen",
            Self::Replay(error) => error.as_str(),
        }
    }
}

/// A request whose caller is who it says, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who.
    pub spiffe_id: SpiffeId,
    /// The binding level of the WIT.
    pub binding: u8,
    /// When the proof ends.
    pub expires_at: OffsetDateTime,
    /// The thumbprint of the key that signed.
    pub thumbprint: String,
}

/// The proofs this agent has seen since it was started.
#[derive(Debug)]
pub struct Replays(Mutex<ReplayCache>);

impl Replays {
    /// None yet: proofs from before `now` are refused.
    pub fn new(now: OffsetDateTime) -> Self {
        Self(Mutex::new(ReplayCache::new(now, ReplayLimits::default())))
    }
}

impl Issuer {
    /// Checks one request for a tool that serves it. The outer refusal is the asker's own.
    pub async fn check(
        &self,
        asker: &PeerConn,
        target: &ProofTarget,
        presented: Option<Presented<'_>>,
    ) -> Result<Result<Verified, Inactive>, Refusal> {
        let judged = async {
            let entitled = self.entitled(asker).await?;
            let permit =
                self.policy.check_proof(&entitled.attested, &entitled.identities, &target.uri, entitled.now)?;
            let own = entitled.trust.domain();
            let federated = |domain: &TrustDomain| {
                domain == own || entitled.identities.iter().any(|i| i.entry.federates_with().contains(domain))
            };
            let now = self.clock.now();
            let expected = Expected { method: &target.method, uri: &target.uri, body: target.body };
            let keys = |domain: &TrustDomain| entitled.trust.wit(domain).filter(|_| federated(domain));
            let checked = presented
                .ok_or(Inactive::NoProof)
                .and_then(|presented| Ok(check_wpt(presented, expected, keys, now, LEEWAY)?));
            let checked = match checked {
                Ok(checked) => checked,
                Err(inactive) => return Ok(Err(inactive)),
            };
            self.still_true(permit.asker(), checked, now).await
        };
        let verdict: Result<Verified, Inactive> = self.recorded(asker, None, judged.await)?;
        self.record_check(asker, target, &verdict);
        Ok(verdict)
    }

    /// Whether what a sound proof stands on still stands, and this is its first time.
    async fn still_true(
        &self,
        asker: &SpiffeId,
        checked: CheckedProof,
        now: OffsetDateTime,
    ) -> Result<Result<Verified, Inactive>, Refusal> {
        let of_this_node = checked.wit.token_id().filter(|id| self.ledger.is_of_this_node(id));
        let Some(id) = of_this_node else { return Ok(Err(Inactive::AnotherNode)) };
        let recorded = self.issued_as(id, Kind::Wit, checked.wit.spiffe_id());
        let Some(wit) = recorded else { return Ok(Err(Inactive::Unknown)) };
        if wit.standing == Standing::Stands {
            match self.look_at_holder(&wit).await {
                Err(Refusal::Holder(_)) => return Ok(Err(Inactive::Unseen)),
                looked => looked?,
            }
        }
        // Nothing waits after this.
        match self.ledger.asked(id) {
            Standing::Stands => {}
            Standing::Ended { reason, .. } => return Ok(Err(Inactive::Revoked(reason))),
            Standing::Used | Standing::Unknown => return Ok(Err(Inactive::Unknown)),
        }
        if wit.held && !self.held.holds(id) {
            return Ok(Err(Inactive::Wiped));
        }
        // Of this node, so by its own clock: no leeway.
        let forget_at = checked.expires_at + LEEWAY;
        let mut seen = self.replays.0.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = seen.note(asker.as_str(), &checked.thumbprint, &checked.jti, checked.made_at, forget_at, now);
        Ok(noted.map_err(Inactive::from).map(|()| Verified {
            spiffe_id: checked.wit.spiffe_id().clone(),
            binding: wit.binding,
            expires_at: checked.expires_at,
            thumbprint: checked.thumbprint,
        }))
    }

    fn record_check(&self, asker: &PeerConn, target: &ProofTarget, verdict: &Result<Verified, Inactive>) {
        let request = format!("{} {}", target.method.as_str(), target.uri);
        match verdict {
            Ok(verified) => self.audit.record(Event::ProofAccepted {
                caller: super::caller(asker),
                spiffe_id: verified.spiffe_id.to_string(),
                request,
            }),
            Err(inactive) => self.audit.record(Event::ProofRefused {
                caller: super::caller(asker),
                reason: inactive.as_str(),
                detail: inactive.to_string(),
                request,
            }),
        }
    }
}
