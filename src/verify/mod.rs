//! Checking what a caller of a tool presents, for tools: on the socket, over HTTP, and of other nodes.
//!
//! Promises: who asks serves the URI; WIT and proof hold, what they stand on was looked at after they arrived, and
//! still stands; session, proof and asker agree on the call; policy was asked now; a proof is accepted once of each
//! asker, and a token for one call once of all. Nothing waits between the last look and the answer, and what cannot be
//! undone comes last.
//!
//! Does not: know what the tool does afterwards.

mod asker;
mod call;
pub mod form;
mod inactive;
pub mod introspection;
mod nodes;
mod seam;
pub mod tls;
#[cfg(test)]
mod vectors;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;

use crate::audit::Event;
use crate::id::{SpiffeId, TrustDomain};
use crate::issue::{Issuer, LEEWAY, Refusal};
use crate::ledger::{Credential, Kind, Standing};
use crate::peer::PeerConn;
use crate::policy::Decision;
use crate::proof::{CheckedProof, Expected, Presented, ReplayCache, ReplayLimits, SessionClaims, check_wpt};
use crate::session::State;
use crate::wit::WitSession;

pub use self::asker::{Asker, NotAsker};
pub use self::call::{Agreed, Call, SessionView};
pub use self::inactive::Inactive;
pub use self::nodes::{NodeUrls, Nodes};
pub use self::seam::{AskedFor, NoTasks, Tasks};

/// A request whose caller is who it says, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who.
    pub spiffe_id: SpiffeId,
    /// The binding level of the WIT.
    pub binding: u8,
    /// The WIT's own id.
    pub token_id: String,
    /// When the proof was made, as far as it says.
    pub made_at: OffsetDateTime,
    /// When the proof ends.
    pub expires_at: OffsetDateTime,
    /// The thumbprint of the key that signed.
    pub thumbprint: String,
    /// Of a request that was made in a session.
    pub session: Option<InSession>,
}

/// What is known of a call beyond who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InSession {
    /// The session.
    pub view: SessionView,
    /// What everybody says of the call.
    pub agreed: Agreed,
    /// The transaction it is part of.
    pub txn: String,
    /// The fields that policy wants left out of logs.
    pub redact: BTreeSet<String>,
    /// The policies that decided.
    pub policies: Arc<[String]>,
    /// Whether an approval was given for exactly this call.
    pub approved: bool,
}

/// Checks requests; every surface goes through it.
#[derive(Debug)]
pub struct Verifier {
    issuer: Arc<Issuer>,
    tasks: Arc<dyn Tasks>,
    /// The proofs this agent has seen since it was started.
    replays: Mutex<ReplayCache>,
    memory: asker::Memory,
    nodes: Nodes,
}

/// What was presented, once it holds.
struct Holding {
    checked: CheckedProof,
    /// Of the WIT, in the ledger.
    id: String,
    row: Credential,
    session: Option<(WitSession, SessionClaims)>,
}

impl Verifier {
    /// Remembers no proof yet: those from before `now` are refused.
    pub fn new(issuer: Arc<Issuer>, tasks: Arc<dyn Tasks>, nodes: Nodes, now: OffsetDateTime) -> Self {
        let replays = Mutex::new(ReplayCache::new(now, ReplayLimits::default()));
        Self { issuer, tasks, replays, memory: asker::Memory::default(), nodes }
    }

    /// Checks one request for a process on the workload socket that serves it. The outer refusal is the asker's own.
    pub async fn check(
        &self,
        peer: &PeerConn,
        call: &Call,
        presented: Option<Presented<'_>>,
    ) -> Result<Result<Verified, Inactive>, Refusal> {
        let asker = self.asker_on_socket(peer, &call.target.uri).await;
        let asker = self.issuer.recorded(peer, None, asker)?;
        let verdict = self.judge(&asker, call, presented).await;
        self.issuer.recorded(peer, None, verdict)
    }

    /// Checks one request for an asker that serves it. A refusal says that it cannot be told now.
    pub async fn judge(
        &self,
        asker: &Asker,
        call: &Call,
        presented: Option<Presented<'_>>,
    ) -> Result<Result<Verified, Inactive>, Refusal> {
        let elsewhere = presented.and_then(|presented| Some((presented, self.of_other_node(presented)?)));
        let verdict = match elsewhere {
            Some((presented, node)) => self.judge_elsewhere(asker, call, presented, &node).await,
            None => match self.holds(asker, call, presented) {
                Ok(holding) => self.stands(asker, call, &holding).await?,
                Err(inactive) => Err(inactive),
            },
        };
        self.record(asker, call, &verdict);
        Ok(verdict)
    }

    /// Whether WIT and proof hold, and the WIT is one of this node.
    fn holds(&self, asker: &Asker, call: &Call, presented: Option<Presented<'_>>) -> Result<Holding, Inactive> {
        let presented = presented.ok_or(Inactive::NoProof)?;
        let target = &call.target;
        let expected = Expected { method: &target.method, uri: &target.uri, body: target.body };
        let trust = self.issuer.trust.current();
        let seen = |domain: &TrustDomain| domain == trust.domain() || asker.federates_with.contains(domain);
        let keys = |domain: &TrustDomain| trust.wit(domain).filter(|_| seen(domain));
        let mut checked = check_wpt(presented, expected, keys, self.issuer.clock.now(), LEEWAY)?;
        let of_this_node = checked.wit.token_id().filter(|id| self.issuer.ledger.is_of_this_node(id));
        let id = of_this_node.ok_or(Inactive::AnotherNode)?.to_owned();
        let row = self.issuer.issued_as(&id, Kind::Wit, checked.wit.spiffe_id()).ok_or(Inactive::Unknown)?;
        let of_wit = WitSession::of(checked.wit.claims()).map_err(|_| Inactive::Claim("tether"))?;
        let session = of_wit.zip(checked.session.take());
        Ok(Holding { checked, id, row, session })
    }

    /// Whether what a sound proof stands on still stands, what is asked for is permitted, and this is its first time.
    async fn stands(
        &self,
        asker: &Asker,
        call: &Call,
        holding: &Holding,
    ) -> Result<Result<Verified, Inactive>, Refusal> {
        let mut approval = holding.session.as_ref().and_then(|(_, proof)| proof.tether.approval.clone());
        let mut asked_for_approval = false;
        loop {
            if holding.row.standing == Standing::Stands {
                match self.issuer.look_at_holder(&holding.row).await {
                    Err(Refusal::Holder(_)) => return Ok(Err(Inactive::Unseen)),
                    looked => looked?,
                }
            }
            if let Some((wit, _)) = &holding.session {
                self.tasks.look(&wit.sid).await;
            }
            // Nothing waits after this.
            let verdict = self.now(asker, call, holding, approval.as_deref());
            let Err(Waiting::ForApproval { view, agreed, decision }) = verdict else {
                return Ok(verdict.map_err(Waiting::into_inactive));
            };
            if asked_for_approval {
                return Ok(Err(Inactive::StepUp(None)));
            }
            asked_for_approval = true;
            let why = decision.obligations.step_up.as_deref().unwrap_or_default();
            let policies = &decision.policies;
            match self.tasks.approval(&AskedFor { session: &view, call, agreed: &agreed, why, policies }).await {
                // It was used up for this one call: all else is looked at again.
                Ok(used) => approval = Some(used),
                Err(pending) => return Ok(Err(Inactive::StepUp(pending))),
            }
        }
    }

    /// The answer of this moment. What cannot be undone comes last.
    fn now(&self, asker: &Asker, call: &Call, holding: &Holding, approval: Option<&str>) -> Result<Verified, Waiting> {
        let Holding { checked, id, row, session } = holding;
        let now = self.issuer.clock.now();
        let view = match session {
            None => None,
            Some((wit, proof)) => Some((self.live(&wit.sid, now)?, wit, proof)),
        };
        match self.issuer.ledger.asked(id) {
            Standing::Stands => {}
            Standing::Ended { reason, .. } => return Err(Inactive::Revoked(reason).into()),
            Standing::Used => return Err(Inactive::Used.into()),
            Standing::Unknown => return Err(Inactive::Unknown.into()),
        }
        let in_session = match view {
            None => {
                if row.held && !self.issuer.held.holds(id) {
                    return Err(Inactive::Wiped.into());
                }
                call.without_session()?;
                None
            }
            Some((view, wit, proof)) => {
                let agreed = call::agree(&view, wit, checked.wit.spiffe_id(), proof, call)?;
                Some(self.permitted(call, view, agreed, approval, proof, now)?)
            }
        };
        call.is_bound(row.binding)?;
        self.first_time(asker, checked, now)?;
        self.used_up(id)?;
        Ok(Verified {
            spiffe_id: checked.wit.spiffe_id().clone(),
            binding: row.binding,
            token_id: id.clone(),
            made_at: checked.made_at,
            expires_at: checked.expires_at,
            thumbprint: checked.thumbprint.clone(),
            session: in_session,
        })
    }

    /// The session, if it is active and its time is not over.
    fn live(&self, id: &str, now: OffsetDateTime) -> Result<SessionView, Inactive> {
        let (view, state) = self.tasks.view(id).ok_or(Inactive::SessionEnded)?;
        match state {
            State::Active if view.lasts(now) => Ok(view),
            State::Active | State::Ended(_) => Err(Inactive::SessionEnded),
            State::Suspended => Err(Inactive::SessionSuspended),
            State::PendingApproval => Err(Inactive::SessionPending),
        }
    }

    /// Asks policy: does the user still hold, is the agent still entitled, may this be called.
    fn permitted(
        &self,
        call: &Call,
        view: SessionView,
        agreed: Agreed,
        approval: Option<&str>,
        proof: &SessionClaims,
        now: OffsetDateTime,
    ) -> Result<InSession, Waiting> {
        let asked = AskedFor { session: &view, call, agreed: &agreed, why: "", policies: &[] };
        let approved = approval.is_some_and(|id| self.tasks.is_approved(id, &asked));
        let decision = self.tasks.decide(&agreed.question(call, &view, approved, now));
        if decision.obligations.step_up.is_some() && !approved {
            return Err(Waiting::ForApproval { view, agreed, decision });
        }
        if !decision.allowed {
            return Err(Inactive::Policy(decision.policies.to_vec()).into());
        }
        let Decision { obligations, policies, .. } = decision;
        Ok(InSession { view, agreed, txn: proof.txn.clone(), redact: obligations.redact, policies, approved })
    }

    fn first_time(&self, asker: &Asker, checked: &CheckedProof, now: OffsetDateTime) -> Result<(), Inactive> {
        // Another node remembers for its askers, each apart.
        if asker.is_node {
            return Ok(());
        }
        // Of this node, so by its own clock: no leeway.
        let forget_at = checked.expires_at + LEEWAY;
        let mut seen = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
        let asked_by = asker.spiffe_id.as_str();
        Ok(seen.note(asked_by, &checked.thumbprint, &checked.jti, checked.made_at, forget_at, now)?)
    }

    /// Uses up a token that is good for one call; others stay as they are.
    fn used_up(&self, id: &str) -> Result<(), Waiting> {
        match self.issuer.ledger.use_once(id) {
            Ok(Standing::Stands) => Ok(()),
            Ok(Standing::Used) => Err(Inactive::Used.into()),
            Ok(Standing::Ended { reason, .. }) => Err(Inactive::Revoked(reason).into()),
            Ok(Standing::Unknown) => Err(Inactive::Unknown.into()),
            // It cannot be written down that it was used: then it was not.
            Err(_) => Err(Inactive::Unseen.into()),
        }
    }

    fn record(&self, asker: &Asker, call: &Call, verdict: &Result<Verified, Inactive>) {
        let request = format!("{} {}", call.target.method.as_str(), call.target.uri);
        match verdict {
            Ok(verified) => {
                if let Some(session) = &verified.session {
                    self.memory.note(&asker.spiffe_id, &session.view.id, &session.txn);
                }
                self.issuer.audit.record(Event::ProofAccepted {
                    caller: asker.caller.clone(),
                    spiffe_id: verified.spiffe_id.to_string(),
                    request,
                });
            }
            Err(inactive) => self.issuer.audit.record(Event::ProofRefused {
                caller: asker.caller.clone(),
                reason: inactive.as_str(),
                detail: inactive.to_string(),
                request,
            }),
        }
    }
}

/// Why there is no yes yet.
enum Waiting {
    No(Inactive),
    ForApproval { view: SessionView, agreed: Agreed, decision: Decision },
}

impl From<Inactive> for Waiting {
    fn from(inactive: Inactive) -> Self {
        Self::No(inactive)
    }
}

impl Waiting {
    fn into_inactive(self) -> Inactive {
        match self {
            Self::No(inactive) => inactive,
            Self::ForApproval { .. } => Inactive::StepUp(None),
        }
    }
}
