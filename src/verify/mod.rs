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
mod peer;
mod reach;
mod record;
mod report;
#[cfg(test)]
mod tests;
pub mod tls;
mod told;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;

use crate::bond::Tie;
use crate::id::{SpiffeId, TrustDomain};
use crate::issue::{Issuer, LEEWAY, Refusal};
use crate::ledger::{Credential, Kind, Standing};
use crate::peer::PeerConn;
use crate::policy::{Action, Decision, Denial, Effect};
use crate::proof::{
    BodyDigest, CheckedProof, Expected, Presented, ReplayCache, ReplayError, ReplayLimits, SessionClaims, check_wpt,
};
use crate::session::approvals::{ApprovalError, Asked};
use crate::session::{Session, Sessions, State, Unusable};
use crate::trust::Crls;
use crate::wit::WitSession;

pub use self::asker::{Asker, NotAsker};
pub use self::call::{Agreed, Call, Rpc, SessionView};
pub use self::inactive::Inactive;
pub use self::nodes::follow::{Heard, HeardNodes};
pub use self::nodes::{NodeUrls, Nodes};
pub use self::reach::{RpcRefused, RpcVerdict};
pub use self::report::{CheckedChange, CheckedChanges, Report, ReportError};
pub use self::told::{Feed, Interest, MAX_INTEREST_BYTES};

use self::peer::Peer;
use self::reach::{Reaching, is_of};

/// A request whose caller is who it says, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who.
    pub spiffe_id: SpiffeId,
    /// The binding level of the WIT.
    pub binding: u8,
    /// Whether a proof came with this very request; else the certificate of the TLS connection alone says who it is.
    pub proven: bool,
    /// The WIT's own id, or the certificate's serial number.
    pub token_id: String,
    /// The proof's own id; empty without one.
    pub proof_id: String,
    /// When the proof was made, as far as it says; without one, when it was judged.
    pub made_at: OffsetDateTime,
    /// When the proof ends, or the certificate.
    pub expires_at: OffsetDateTime,
    /// The thumbprint of the key that signed.
    pub thumbprint: String,
    /// Whether the WIT is good for one call.
    pub one_use: bool,
    /// Of a request that was made in a session.
    pub session: Option<InSession>,
    /// What policy said of the request; `None` where its calls are decided apart, or by the node whose asker asked.
    pub decided: Option<Decided>,
    /// What policy said of each call inside it.
    pub rpcs: Vec<RpcVerdict>,
}

/// What policy permitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// What the call does.
    pub effect: Effect,
    /// The fields that policy wants left out of logs.
    pub redact: BTreeSet<String>,
    /// The policies that decided.
    pub policies: Arc<[String]>,
    /// The set of policies they are of.
    pub set: Arc<str>,
}

impl Decided {
    fn of(effect: Effect, decision: Decision) -> Self {
        let Decision { obligations, policies, set, .. } = decision;
        Self { effect, redact: obligations.redact, policies, set }
    }
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
    crls: Crls,
    believed: peer::Believed,
    told: told::Told,
}

/// What was presented, once it holds: a WIT that this node issued, and a proof by its key.
struct Holding {
    checked: CheckedProof,
    /// Of the WIT, in the ledger.
    id: String,
    row: Credential,
    session: Option<OfSession>,
    /// Who called by TLS: the same.
    peer: Option<Peer>,
}

/// What WIT and proof say of the session that both name.
struct OfSession {
    wit: WitSession,
    proof: SessionClaims,
    session: Arc<Session>,
}

impl Verifier {
    /// Remembers no proof yet: those from before `now` are refused.
    pub fn new(sessions: Sessions, nodes: Nodes, crls: Crls, now: OffsetDateTime) -> Self {
        let replays = Mutex::new(ReplayCache::new(now, ReplayLimits::default()));
        let (issuer, memory, told, believed) =
            (sessions.issuer().clone(), asker::Memory::default(), told::Told::default(), peer::Believed::default());
        Self { issuer, sessions, replays, memory, nodes, crls, believed, told }
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
        let peer = match &call.peer {
            None => None,
            Some(chain) => match self.peer(asker, chain).await? {
                Ok(peer) => Some(peer),
                Err(inactive) => return Ok(self.recorded(asker, call, None, Err(inactive))),
            },
        };
        let presented = match (presented, &peer) {
            (Some(presented), _) => presented,
            (None, Some(peer)) => return Ok(self.recorded(asker, call, None, self.reached(asker, call, peer))),
            (None, None) => return Ok(self.recorded(asker, call, None, Err(Inactive::NoProof))),
        };
        if let Some(node) = self.of_other_node(presented) {
            let verdict = self.judge_elsewhere(asker, call, peer.as_ref(), presented, &node).await;
            return Ok(self.recorded(asker, call, None, verdict));
        }
        let holding = match self.holds(asker, call, peer, presented) {
            Ok(holding) => holding,
            Err(inactive) => return Ok(self.recorded(asker, call, None, Err(inactive))),
        };
        // Before it is looked at: what changes afterwards is told.
        if let Some(of) = holding.session.as_ref().filter(|_| asker.is_node) {
            self.told.note(&asker.spiffe_id, &of.wit.sid);
        }
        if let Some(of) = &holding.session {
            self.let_hear(asker, of.session.terms().id.as_str());
        }
        let verdict = self.stands(asker, call, &holding).await?;
        Ok(self.recorded(asker, call, Some(&holding), verdict))
    }

    /// Lets an asker hear of a session from now on.
    fn let_hear(&self, asker: &Asker, session: &str) {
        let is_over = |id: &str| match self.sessions.find(id) {
            Some(session) => matches!(session.state(), State::Ended(_)),
            // One of this node that is not known any more ended long ago; those of others are theirs to say.
            None => self.issuer.ledger.is_of_this_node(id) || self.nodes.unusable(id).is_some(),
        };
        self.memory.follow(&asker.spiffe_id, session, self.issuer.clock.now(), is_over);
    }

    /// Whether WIT and proof hold, and the WIT is one of this node.
    fn holds(
        &self,
        asker: &Asker,
        call: &Call,
        peer: Option<Peer>,
        presented: Presented<'_>,
    ) -> Result<Holding, Inactive> {
        let target = &call.target;
        let expected = Expected { method: &target.method, uri: &target.uri, body: target.body };
        let trust = self.issuer.trust.current();
        let seen = |domain: &TrustDomain| domain == trust.domain() || asker.federates_with.contains(domain);
        let keys = |domain: &TrustDomain| trust.wit(domain).filter(|_| seen(domain));
        let mut checked = check_wpt(presented, expected, keys, self.issuer.clock.now(), LEEWAY)?;
        is_of(peer.as_ref(), checked.wit.spiffe_id())?;
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
        Ok(Holding { checked, id, row, session, peer })
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
        let mut approvals = Approvals::new(call.rpcs.len());
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
            let waiting = match self.now(asker, call, holding, &approvals) {
                Ok(verified) => return Ok(Ok(verified)),
                Err(NotYet::No(inactive)) => return Ok(Err(inactive)),
                Err(NotYet::StepUp(waiting)) => waiting,
            };
            // Each is used up or asked for once. After that all else is looked at again.
            for waiting in waiting {
                let approval = self.approval(call, &waiting, holding).await;
                approvals.note(waiting.rpc, approval);
            }
        }
    }

    /// The answer of this moment. What cannot be undone comes last.
    fn now(&self, asker: &Asker, call: &Call, holding: &Holding, approvals: &Approvals) -> Result<Verified, NotYet> {
        let Holding { checked, id, row, session, peer } = holding;
        let now = self.issuer.clock.now();
        if let Some(of) = session {
            self.sessions.stands(&of.session).map_err(|(_, unusable)| Inactive::from(unusable))?;
        }
        peer.as_ref().map_or(Ok(()), |peer| self.peer_stands(peer))?;
        match self.issuer.ledger.asked(id) {
            Standing::Stands => {}
            Standing::Ended { reason, .. } => return Err(Inactive::Revoked(reason).into()),
            Standing::Used => return Err(Inactive::Used.into()),
            Standing::Unknown => return Err(Inactive::Unknown.into()),
        }
        if row.single_use && call.rpcs.len() > 1 {
            return Err(Inactive::Several.into());
        }
        call.is_bound(row.binding)?;
        let (in_session, decided, rpcs) = match session {
            Some(of) => {
                let (session, decided, rpcs) = self.permitted(call, of, holding, approvals, now)?;
                (Some(session), decided, rpcs)
            }
            None if row.held && !self.issuer.held.holds(id) => return Err(Inactive::Wiped.into()),
            None => {
                let (spiffe_id, binding) = (checked.wit.spiffe_id(), row.binding);
                let caller = Reaching { spiffe_id, row: Some(row), binding, proof: true };
                let (decided, rpcs) = self.reaches(asker, call, &caller, now)?;
                (None, decided, rpcs)
            }
        };
        self.first_time(asker, checked, now)?;
        self.used_up(id)?;
        Ok(Verified {
            spiffe_id: checked.wit.spiffe_id().clone(),
            binding: row.binding,
            proven: true,
            token_id: id.clone(),
            proof_id: checked.jti.clone(),
            made_at: checked.made_at,
            expires_at: checked.expires_at,
            thumbprint: checked.thumbprint.clone(),
            one_use: row.single_use,
            session: in_session,
            decided,
            rpcs,
        })
    }

    /// The three questions: does the user still hold, is the agent what it was, may this be called.
    fn permitted(
        &self,
        call: &Call,
        of: &OfSession,
        holding: &Holding,
        approvals: &Approvals,
        now: OffsetDateTime,
    ) -> Result<(InSession, Option<Decided>, Vec<RpcVerdict>), NotYet> {
        let OfSession { wit, proof, session } = of;
        let is_its = |tie: &Tie| matches!(tie, Tie::Session(id) if id == session.terms().id.as_str());
        if !is_its(&holding.row.tie) || session.key_thumbprint().as_ref() != Some(&holding.checked.thumbprint) {
            return Err(Inactive::Claim("sid").into());
        }
        let used = session.used();
        let mut view = SessionView::of(session.terms(), used.tokens, used.calls);
        // A token may be worth less than its session.
        view.binding = view.binding.min(holding.row.binding);
        if !view.lasts(now) {
            return Err(Inactive::SessionEnded(None).into());
        }
        let mut agreed = call::agree(&view, wit, holding.checked.wit.spiffe_id(), proof, call)?;
        let txn = proof.txn.clone();
        let ask = |agreed: &Agreed, rpc: Option<usize>| {
            let asked = asked(call, session, agreed, "", &[]);
            let known = [proof.tether.approval.as_deref(), approvals.used(rpc)];
            let approved = known.into_iter().flatten().any(|id| self.sessions.approvals().allowed(id, &asked));
            (self.issuer.policy.call(&agreed.question(call, &view, approved, now)), approved)
        };
        if call.rpcs.is_empty() {
            agreed.effect = agreed.graver(self.classified(view.agent(), call, agreed.named(), now));
            let (permit, approved) = ask(&agreed, None);
            let decided = match permit {
                Ok(permit) => Decided::of(agreed.effect, permit.into_decision()),
                Err(Denial::StepUp { why, policies, .. }) => {
                    approvals.not_tried(None)?;
                    return Err(NotYet::StepUp(vec![Waiting { rpc: None, agreed, why, policies }]));
                }
                Err(denial) => return Err(Inactive::from(denial).into()),
            };
            return Ok((InSession { view, agreed, txn, approved }, Some(decided), Vec::new()));
        }
        let (mut verdicts, mut waiting) = (Vec::with_capacity(call.rpcs.len()), Vec::new());
        for (index, rpc) in call.rpcs.iter().enumerate() {
            let of_rpc = self.of_rpc(call, &view, &agreed, rpc, now);
            let effect = of_rpc.effect;
            let (permit, approved) = ask(&of_rpc, Some(index));
            let outcome = match permit {
                Ok(permit) => Ok(Decided::of(effect, permit.into_decision())),
                Err(Denial::StepUp { why, policies, .. }) => match approvals.not_tried(Some(index)) {
                    Ok(()) => {
                        waiting.push(Waiting { rpc: Some(index), agreed: of_rpc, why, policies });
                        continue;
                    }
                    Err(inactive) => Err(inactive.into()),
                },
                Err(denial) => Err(Inactive::from(denial).into()),
            };
            verdicts.push(RpcVerdict { effect, outcome, approved });
        }
        if !waiting.is_empty() {
            return Err(NotYet::StepUp(waiting));
        }
        Ok((InSession { view, agreed, txn, approved: false }, None, verdicts))
    }

    /// What is agreed on of a call inside the request.
    fn of_rpc(&self, call: &Call, view: &SessionView, agreed: &Agreed, rpc: &Rpc, now: OffsetDateTime) -> Agreed {
        let of_rpc = agreed.of_rpc(rpc);
        let said = self.classified(view.agent(), call, of_rpc.named(), now);
        // What the method of the request does, POST for one, says nothing of the calls in it; but what the agent itself
        // called irreversible stays so.
        let of_proof = Some(agreed.effect).filter(|effect| *effect == Effect::Irreversible);
        Agreed { effect: rpc.effect(said.max(of_proof)), ..of_rpc }
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
    StepUp(Vec<Waiting>),
}

/// A call that waits for a person.
struct Waiting {
    /// Which of the calls inside the request; `None` for the request itself.
    rpc: Option<usize>,
    agreed: Agreed,
    why: String,
    policies: Arc<[String]>,
}

/// What became of each call that waited: the approval that was used up, or the one to ask for.
struct Approvals {
    whole: Option<Result<String, Option<String>>>,
    rpcs: Vec<Option<Result<String, Option<String>>>>,
}

impl Approvals {
    fn new(rpcs: usize) -> Self {
        Self { whole: None, rpcs: vec![None; rpcs] }
    }

    fn of(&self, rpc: Option<usize>) -> Option<&Result<String, Option<String>>> {
        match rpc {
            None => self.whole.as_ref(),
            Some(index) => self.rpcs.get(index)?.as_ref(),
        }
    }

    fn note(&mut self, rpc: Option<usize>, approval: Result<String, Option<String>>) {
        match rpc {
            None => self.whole = Some(approval),
            Some(index) => self.rpcs[index] = Some(approval),
        }
    }

    fn used(&self, rpc: Option<usize>) -> Option<&str> {
        self.of(rpc)?.as_deref().ok()
    }

    /// Whether it is worth asking a person. Otherwise what is waited for: where an approval was used up, it was one of
    /// another call.
    fn not_tried(&self, rpc: Option<usize>) -> Result<(), Inactive> {
        match self.of(rpc) {
            None => Ok(()),
            Some(Ok(_)) => Err(Inactive::StepUp(None)),
            Some(Err(pending)) => Err(Inactive::StepUp(pending.clone())),
        }
    }
}

impl From<Denial> for Inactive {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Policy { policies, .. } => Self::Policy(policies.to_vec()),
            Denial::StepUp { .. } => Self::StepUp(None),
            _ => Self::Policy(Vec::new()),
        }
    }
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
