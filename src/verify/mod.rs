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
mod record;
mod report;
#[cfg(test)]
mod tests;
pub mod tls;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;

use crate::bond::Tie;
use crate::id::{SpiffeId, TrustDomain};
use crate::issue::{Issuer, LEEWAY, Refusal};
use crate::ledger::{Credential, Kind, Standing};
use crate::peer::PeerConn;
use crate::policy::{Action, Decision, Denial};
use crate::proof::{
    BodyDigest, CheckedProof, Expected, Presented, ReplayCache, ReplayError, ReplayLimits, SessionClaims, check_wpt,
};
use crate::session::approvals::{ApprovalError, Asked};
use crate::session::{Session, Sessions, Unusable};
use crate::wit::WitSession;

pub use self::asker::{Asker, NotAsker};
pub use self::call::{Agreed, Call, SessionView};
pub use self::inactive::Inactive;
pub use self::nodes::{NodeUrls, Nodes};
pub use self::report::{CheckedChanges, Report, ReportError};

/// A request whose caller is who it says, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who.
    pub spiffe_id: SpiffeId,
    /// The binding level of the WIT.
    pub binding: u8,
    /// The WIT's own id.
    pub token_id: String,
    /// The proof's own id.
    pub proof_id: String,
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
    /// Whether an approval was given for exactly this call.
    pub approved: bool,
    /// The fields that policy wants left out of logs.
    pub redact: BTreeSet<String>,
    /// The policies that decided.
    pub policies: Arc<[String]>,
    /// The set of policies they are of.
    pub set: Arc<str>,
}

/// Checks requests; every surface goes through it.
#[derive(Debug)]
pub struct Verifier {
    issuer: Arc<Issuer>,
    sessions: Sessions,
    /// The proofs this agent has seen since it was started.
    replays: Mutex<ReplayCache>,
    memory: asker::Memory,
    nodes: Nodes,
}

/// What was presented, once it holds: a WIT that this node issued, and a proof by its key.
struct Holding {
    checked: CheckedProof,
    /// Of the WIT, in the ledger.
    id: String,
    row: Credential,
    session: Option<OfSession>,
}

/// What WIT and proof say of the session that both name.
struct OfSession {
    wit: WitSession,
    proof: SessionClaims,
    session: Arc<Session>,
}

impl Verifier {
    /// Remembers no proof yet: those from before `now` are refused.
    pub fn new(sessions: Sessions, nodes: Nodes, now: OffsetDateTime) -> Self {
        let replays = Mutex::new(ReplayCache::new(now, ReplayLimits::default()));
        Self { issuer: sessions.issuer().clone(), sessions, replays, memory: asker::Memory::default(), nodes }
    }

    /// Who issues.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
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
        if let Some((presented, node)) = elsewhere {
            let verdict = self.judge_elsewhere(asker, call, presented, &node).await;
            return Ok(self.recorded(asker, call, None, verdict));
        }
        let holding = match self.holds(asker, call, presented) {
            Ok(holding) => holding,
            Err(inactive) => return Ok(self.recorded(asker, call, None, Err(inactive))),
        };
        let verdict = self.stands(asker, call, &holding).await?;
        Ok(self.recorded(asker, call, Some(&holding), verdict))
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
        let session = match of_wit.zip(checked.session.take()) {
            None => None,
            Some((wit, proof)) => {
                let session = self.sessions.find(&wit.sid).ok_or(Inactive::SessionEnded(None))?;
                Some(OfSession { wit, proof, session })
            }
        };
        Ok(Holding { checked, id, row, session })
    }

    /// Whether what a sound proof stands on still stands, what is asked for is permitted, and this is its first time.
    async fn stands(
        &self,
        asker: &Asker,
        call: &Call,
        holding: &Holding,
    ) -> Result<Result<Verified, Inactive>, Refusal> {
        // Noted at the end; but a replay is to use nothing up on the way there.
        if let Err(replayed) = self.not_seen(asker, &holding.checked) {
            return Ok(Err(replayed));
        }
        let mut approval = holding.session.as_ref().and_then(|of| of.proof.tether.approval.clone());
        let mut one_was_used = false;
        loop {
            if holding.row.standing == Standing::Stands {
                match self.issuer.look_at_holder(&holding.row).await {
                    Err(Refusal::Holder(_)) => return Ok(Err(Inactive::Unseen)),
                    looked => looked?,
                }
            }
            if let Some(of) = &holding.session
                && let Err(unusable) = self.sessions.look(&of.session).await
            {
                return Ok(Err(unusable.into()));
            }
            // Nothing waits after this.
            let waiting = match self.now(asker, call, holding, approval.as_deref()) {
                Ok(verified) => return Ok(Ok(verified)),
                Err(NotYet::No(inactive)) => return Ok(Err(inactive)),
                Err(NotYet::StepUp(waiting)) => waiting,
            };
            // What was approved was approved of another call.
            if one_was_used {
                return Ok(Err(Inactive::StepUp(None)));
            }
            one_was_used = true;
            match self.approval(call, &waiting, holding).await {
                // It was used up for this one call: all else is looked at again.
                Ok(used) => approval = Some(used),
                Err(pending) => return Ok(Err(Inactive::StepUp(pending))),
            }
        }
    }

    /// The answer of this moment. What cannot be undone comes last.
    fn now(&self, asker: &Asker, call: &Call, holding: &Holding, approval: Option<&str>) -> Result<Verified, NotYet> {
        let Holding { checked, id, row, session } = holding;
        let now = self.issuer.clock.now();
        if let Some(of) = session {
            self.sessions.stands(&of.session).map_err(|(_, unusable)| Inactive::from(unusable))?;
        }
        match self.issuer.ledger.asked(id) {
            Standing::Stands => {}
            Standing::Ended { reason, .. } => return Err(Inactive::Revoked(reason).into()),
            Standing::Used => return Err(Inactive::Used.into()),
            Standing::Unknown => return Err(Inactive::Unknown.into()),
        }
        let in_session = match session {
            Some(of) => Some(self.permitted(call, of, holding, approval, now)?),
            None if row.held && !self.issuer.held.holds(id) => return Err(Inactive::Wiped.into()),
            None => {
                call.without_session()?;
                None
            }
        };
        call.is_bound(row.binding)?;
        self.first_time(asker, checked, now)?;
        self.used_up(id)?;
        Ok(Verified {
            spiffe_id: checked.wit.spiffe_id().clone(),
            binding: row.binding,
            token_id: id.clone(),
            proof_id: checked.jti.clone(),
            made_at: checked.made_at,
            expires_at: checked.expires_at,
            thumbprint: checked.thumbprint.clone(),
            session: in_session,
        })
    }

    /// The three questions: does the user still hold, is the agent what it was, may this be called.
    fn permitted(
        &self,
        call: &Call,
        of: &OfSession,
        holding: &Holding,
        approval: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<InSession, NotYet> {
        let OfSession { wit, proof, session } = of;
        let is_its = |tie: &Tie| matches!(tie, Tie::Session(id) if id == session.terms().id.as_str());
        if !is_its(&holding.row.tie) || session.key_thumbprint().as_ref() != Some(&holding.checked.thumbprint) {
            return Err(Inactive::Claim("sid").into());
        }
        let used = session.used();
        let view = SessionView::of(session.terms(), used.tokens, used.calls);
        if !view.lasts(now) {
            return Err(Inactive::SessionEnded(None).into());
        }
        let agreed = call::agree(&view, wit, holding.checked.wit.spiffe_id(), proof, call)?;
        let asked = asked(call, session, &agreed, "", &[]);
        let approved = approval.is_some_and(|id| self.sessions.approvals().allowed(id, &asked));
        match self.issuer.policy.call(&agreed.question(call, &view, approved, now)) {
            Ok(permit) => {
                let Decision { obligations, policies, set, .. } = permit.into_decision();
                let (txn, redact) = (proof.txn.clone(), obligations.redact);
                Ok(InSession { view, agreed, txn, approved, redact, policies, set })
            }
            Err(Denial::StepUp { why, policies, .. }) => Err(NotYet::StepUp(Waiting { agreed, why, policies })),
            Err(Denial::Policy { policies, .. }) => Err(Inactive::Policy(policies.to_vec()).into()),
            Err(_) => Err(Inactive::Policy(Vec::new()).into()),
        }
    }

    /// Uses up an approval of exactly this call, or asks for one. `Err`: what to approve.
    ///
    /// A person is asked about what the agent says it does. What the asker alone says of tool and arguments is not put
    /// before anybody: with one proof it could ask as often as it can think of other words.
    async fn approval(&self, call: &Call, waiting: &Waiting, holding: &Holding) -> Result<String, Option<String>> {
        let OfSession { session, proof, .. } = holding.session.as_ref().ok_or(None)?;
        if !is_said_by(proof, &waiting.agreed) {
            return Err(None);
        }
        let asked = asked(call, session, &waiting.agreed, &waiting.why, &waiting.policies);
        let approvals = self.sessions.approvals();
        if let Some(covering) = approvals.covering(&asked) {
            return approvals.use_up(&covering).await.map(|()| covering.to_string()).map_err(|_| None);
        }
        match approvals.request(&asked).await {
            Ok(approval) => Err(Some(approval.id.to_string())),
            Err(ApprovalError::Refused(id)) => Err(Some(id.to_string())),
            Err(_) => Err(None),
        }
    }

    /// Whether the proof is not known to have been presented to this asker before.
    fn not_seen(&self, asker: &Asker, checked: &CheckedProof) -> Result<(), Inactive> {
        let seen = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
        let replayed = !asker.is_node && seen.has(asker.spiffe_id.as_str(), &checked.thumbprint, &checked.jti);
        if replayed { Err(ReplayError::Replayed.into()) } else { Ok(()) }
    }

    fn first_time(&self, asker: &Asker, checked: &CheckedProof, now: OffsetDateTime) -> Result<(), Inactive> {
        // Another node remembers for its askers, each apart.
        if asker.is_node {
            return Ok(());
        }
        let forget_at = checked.expires_at + LEEWAY;
        let mut seen = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
        let asked_by = asker.spiffe_id.as_str();
        Ok(seen.note(asked_by, &checked.thumbprint, &checked.jti, checked.made_at, forget_at, now)?)
    }

    /// Uses up a token that is good for one call; others stay as they are.
    fn used_up(&self, id: &str) -> Result<(), Inactive> {
        match self.issuer.ledger.use_once(id) {
            Ok(Standing::Stands) => Ok(()),
            Ok(Standing::Used) => Err(Inactive::Used),
            Ok(Standing::Ended { reason, .. }) => Err(Inactive::Revoked(reason)),
            Ok(Standing::Unknown) => Err(Inactive::Unknown),
            // What is not written down has not been used.
            Err(_) => Err(Inactive::Unrecorded),
        }
    }
}

/// Whether the proof itself names the tool and the arguments that were agreed on.
fn is_said_by(proof: &SessionClaims, agreed: &Agreed) -> bool {
    let claims = &proof.tether;
    let arguments = claims.arguments_sha256.as_deref().and_then(BodyDigest::parse).map(|digest| digest.hex());
    claims.tool.as_deref().unwrap_or_default() == agreed.tool
        && arguments.unwrap_or_default() == agreed.arguments_sha256
}

/// What an approver is asked.
fn asked<'a>(
    call: &'a Call,
    session: &'a Session,
    agreed: &'a Agreed,
    why: &'a str,
    policies: &'a [String],
) -> Asked<'a> {
    let terms = session.terms();
    Asked {
        session: &terms.id,
        spiffe_id: &terms.spiffe_id,
        user: terms.user.as_ref(),
        uid: terms.uid,
        purpose: &terms.purpose,
        action: Action::Call(agreed.effect),
        target: call.target.uri.as_str(),
        method: call.target.method.as_str(),
        tool: &agreed.tool,
        arguments_sha256: &agreed.arguments_sha256,
        kind: "",
        scopes: &[],
        why,
        policies,
    }
}

/// Why there is no yes, yet.
enum NotYet {
    No(Inactive),
    StepUp(Waiting),
}

/// A call that waits for a person.
struct Waiting {
    agreed: Agreed,
    why: String,
    policies: Arc<[String]>,
}

impl From<Inactive> for NotYet {
    fn from(inactive: Inactive) -> Self {
        Self::No(inactive)
    }
}

impl From<Unusable> for Inactive {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::Pending => Self::SessionPending,
            Unusable::Suspended => Self::SessionSuspended,
            Unusable::Ended(reason) | Unusable::MustEnd(reason) => Self::SessionEnded(Some(reason)),
        }
    }
}
