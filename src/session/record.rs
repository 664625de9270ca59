//! What the audit log has of sessions: each record made in one place.

use super::live::Token;
use super::model::Members;
use super::prove::Call;
use super::token::Member;
use super::{Minted, Receipt, Session, SessionError, SessionId, Sessions};
use crate::audit::{Event, Record};
use crate::base::entropy::hex;
use crate::issue::caller;
use crate::peer::PeerConn;
use crate::policy::{Action, Decision, Denial};
use crate::proof::{ProofTarget, SignedProof};

pub(super) fn started(peer: &PeerConn, session: &Session, decision: &Decision) -> Record {
    let terms = session.terms();
    Event::SessionStarted {
        caller: caller(peer),
        session: terms.id.to_string(),
        parent: terms.parent.as_ref().map(ToString::to_string),
        resumes: terms.resumes.clone(),
        spiffe_id: terms.spiffe_id.to_string(),
        entry: terms.entry.clone(),
        user: terms.user.as_ref().map(ToString::to_string),
        purpose: terms.purpose.clone(),
        task_sha256: terms.task_sha256.clone(),
        targets: terms.targets.clone(),
        scopes: terms.scopes.clone(),
        boundary: terms.boundary.as_str(),
        scope: terms.members.as_str(),
        tie: tie_text(session),
        binding: terms.binding,
        max_tokens: terms.budget.max_tokens,
        max_calls: terms.budget.max_calls,
        launched: terms.launched.clone(),
        delegated_by: terms.delegated_by.iter().map(ToString::to_string).collect(),
        not_after: terms.expires_at,
        approval: session.approval(),
        policies: decision.policies.to_vec(),
        set: decision.set.to_string(),
        state: session.state().as_str(),
    }
    .redacted(&decision.obligations.redact)
}

/// Who acts, as the ledger writes ties.
pub(super) fn tie_text(session: &Session) -> String {
    let terms = session.terms();
    match &terms.members {
        Members::Process(instance) => format!("process:{}:{instance}", terms.pid),
        Members::Tree(instance) => format!("tree:{}:{instance}", terms.pid),
        Members::Cgroup(tie) => tie.to_string(),
    }
}

pub(super) fn activated(session: &Session) -> Event {
    Event::SessionActivated { session: session.terms().id.to_string(), approval: session.approval() }
}

pub(super) fn suspended(id: &SessionId, by: &str) -> Event {
    Event::SessionSuspended { session: id.to_string(), by: by.to_owned() }
}

pub(super) fn resumed(id: &SessionId, by: &str) -> Event {
    Event::SessionResumed { session: id.to_string(), by: by.to_owned() }
}

pub(super) fn ended(receipt: &Receipt, by: &str) -> Event {
    Event::SessionEnded {
        session: receipt.session.to_string(),
        reason: receipt.reason.as_str(),
        by: (!by.is_empty()).then(|| by.to_owned()),
        ended: receipt.ended.iter().skip(1).map(ToString::to_string).collect(),
        keys_wiped: receipt.keys_wiped,
        revoked: receipt.revoked.iter().map(|credential| credential.id.clone()).collect(),
    }
}

/// A session that was written down, and then did not come to be.
pub(super) fn undone(id: &SessionId) -> Event {
    Event::SessionEnded {
        session: id.to_string(),
        reason: "never_begun",
        by: None,
        ended: Vec::new(),
        keys_wiped: 0,
        revoked: Vec::new(),
    }
}

pub(super) fn minted(member: &Member<'_>, minted: &Minted, approval: Option<&str>, decision: &Decision) -> Record {
    let terms = minted.session.terms();
    Event::TokenMinted {
        caller: caller(member.peer),
        on_behalf_of: member.acting.holder(),
        session: terms.id.to_string(),
        spiffe_id: terms.spiffe_id.to_string(),
        user: terms.user.as_ref().map(ToString::to_string),
        kind: minted.kind.as_str(),
        serial: minted.id.clone(),
        target: minted.target.clone(),
        scopes: minted.scopes.clone(),
        one_use: minted.one_use,
        binding: minted.binding,
        not_after: minted.expires_at,
        approval: approval.map(str::to_owned),
        policies: decision.policies.to_vec(),
        set: decision.set.to_string(),
    }
    .redacted(&decision.obligations.redact)
}

pub(super) fn proven(
    member: &Member<'_>,
    call: &Call<'_>,
    target: &ProofTarget,
    token: Option<&Token>,
    proof: &SignedProof,
    decision: &Decision,
) -> Record {
    let terms = member.session.terms();
    Event::ProofMade {
        caller: caller(member.peer),
        on_behalf_of: member.acting.holder(),
        session: terms.id.to_string(),
        txn: call.txn.to_owned(),
        spiffe_id: terms.spiffe_id.to_string(),
        user: terms.user.as_ref().map(ToString::to_string),
        serial: token.map(|token| token.id.clone()).unwrap_or_default(),
        proof: proof.jti.clone(),
        method: target.method.as_str().to_owned(),
        uri: target.uri.as_str().to_owned(),
        tool: call.tool.name.to_owned(),
        arguments_sha256: call.arguments.map(|digest| hex(&digest)).unwrap_or_default(),
        effect: call.effect.as_str(),
        approval: call.approval.map(str::to_owned),
        policies: decision.policies.to_vec(),
        set: decision.set.to_string(),
    }
    .redacted(&decision.obligations.redact)
}

/// What was asked of policy, for the record of a refusal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) action: Action,
    pub(super) session: &'a str,
    pub(super) txn: &'a str,
    pub(super) target: &'a str,
    pub(super) tool: &'a str,
    pub(super) arguments: Option<[u8; 32]>,
}

impl<'a> Wanted<'a> {
    /// Of a session as a whole.
    pub(super) fn session(action: Action, session: &'a str) -> Self {
        Self { action, session, txn: "", target: "", tool: "", arguments: None }
    }
}

impl Sessions {
    /// Counts and audits a refusal on its way out.
    pub(super) fn recorded<T>(
        &self,
        peer: &PeerConn,
        wanted: Wanted<'_>,
        result: Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let Err(error) = &result else { return result };
        let issuer = self.issuer();
        issuer.metrics.refused.get_or_create(&crate::metrics::Reason { reason: error.as_str() }).inc();
        let session = self.find(wanted.session);
        let terms = session.as_deref().map(Session::terms);
        let decided = matches!(error, SessionError::Denied(_) | SessionError::StepUp { .. });
        let suspicious = match error {
            SessionError::NotMember(_) => Some("use by a process that is no member"),
            SessionError::Exceeds { .. } => Some("a child asked for more than its parent has"),
            SessionError::Target(_) => Some("a target outside the session"),
            SessionError::Scope(_) => Some("a scope outside the session"),
            _ => None,
        };
        if let Some(what) = suspicious {
            issuer.audit.record(Event::SuspiciousUse {
                caller: caller(peer),
                session: terms.map(|terms| terms.id.to_string()),
                txn: wanted.txn.to_owned(),
                what,
                detail: error.to_string(),
            });
        } else if decided || terms.is_some() {
            let (policies, errors) = match error {
                SessionError::Denied(Denial::Policy { policies, errors, .. }) => (policies.to_vec(), errors.clone()),
                _ => (Vec::new(), Vec::new()),
            };
            issuer.audit.record(Event::Decided {
                caller: Some(caller(peer)),
                session: terms.map(|terms| terms.id.to_string()),
                txn: wanted.txn.to_owned(),
                action: wanted.action.as_str(),
                spiffe_id: terms.map(|terms| terms.spiffe_id.to_string()).unwrap_or_default(),
                user: terms.and_then(|terms| terms.user.as_ref()).map(ToString::to_string),
                target: wanted.target.to_owned(),
                tool: wanted.tool.to_owned(),
                arguments_sha256: wanted.arguments.map(|digest| hex(&digest)).unwrap_or_default(),
                effect: match wanted.action {
                    Action::Call(effect) => Some(effect.as_str()),
                    _ => None,
                },
                allowed: false,
                reason: error.as_str().to_owned(),
                user_ok: None,
                agent_ok: decided.then_some(true),
                policy_ok: decided.then_some(false),
                approval: match error {
                    SessionError::StepUp { approval, .. } => Some(approval.clone()),
                    _ => None,
                },
                policies,
                errors,
                set: issuer.policy.set().digest().to_owned(),
            });
        } else {
            issuer.audit.record(Event::Refused {
                caller: caller(peer),
                reason: error.as_str(),
                detail: error.to_string(),
            });
        }
        result
    }
}
