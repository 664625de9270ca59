//! What audit learns of each check, and who may speak of it later.

use super::{Asker, Call, Holding, Inactive, NotAsker, Verified, Verifier};
use crate::audit::{Caller, Event};
use crate::session::EndReason;

/// What became of the three questions; `None` where it was not asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Answers {
    user: Option<bool>,
    agent: Option<bool>,
    policy: Option<bool>,
}

impl Answers {
    /// Of a request that is not good: the question that said no, and those before it.
    fn of(inactive: &Inactive) -> Self {
        match inactive {
            Inactive::SessionEnded(Some(EndReason::UserSessionEnd)) => Self { user: Some(false), ..Self::default() },
            Inactive::Unknown
            | Inactive::Revoked(_)
            | Inactive::Wiped
            | Inactive::Unseen
            | Inactive::NotAtNode(_)
            | Inactive::SessionEnded(Some(
                EndReason::ProcessExit
                | EndReason::ProcessChanged
                | EndReason::CgroupEmpty
                | EndReason::IdentityDisabled
                | EndReason::TrustMoved,
            )) => Self { agent: Some(false), ..Self::default() },
            Inactive::Policy(_) | Inactive::StepUp(_) => {
                Self { agent: Some(true), policy: Some(false), ..Self::default() }
            }
            Inactive::Replay(_) | Inactive::Used | Inactive::Unrecorded => {
                Self { agent: Some(true), policy: Some(true), ..Self::default() }
            }
            _ => Self::default(),
        }
    }
}

impl Verifier {
    /// Writes down that somebody asked over HTTP who may not.
    pub fn record_not_asker(&self, refused: &NotAsker, uid: Option<u32>) {
        let caller = Caller { instance: String::new(), pid: 0, uid: uid.unwrap_or(u32::MAX) };
        self.issuer.audit.record(Event::Refused { caller, reason: "not_asker", detail: refused.to_string() });
    }

    /// Writes down what is answered. A yes that cannot be written down is none.
    pub(super) fn recorded(
        &self,
        asker: &Asker,
        call: &Call,
        holding: Option<&Holding>,
        verdict: Result<Verified, Inactive>,
    ) -> Result<Verified, Inactive> {
        let audit = &self.issuer.audit;
        let verified = match verdict {
            Ok(verified) => verified,
            Err(inactive) => {
                audit.record(refused(asker, call, holding, &inactive));
                return Err(inactive);
            }
        };
        let written = match &verified.session {
            Some(session) => audit.before(accepted(asker, call, &verified).redacted(&session.redact)),
            None => audit.before(accepted(asker, call, &verified)),
        };
        written.map_err(|_| Inactive::Unrecorded)?;
        if let Some(session) = &verified.session {
            self.memory.note(&asker.spiffe_id, &session.view.id, &session.txn);
        }
        Ok(verified)
    }
}

fn request(call: &Call) -> String {
    format!("{} {}", call.target.method.as_str(), call.target.uri)
}

fn accepted(asker: &Asker, call: &Call, verified: &Verified) -> Event {
    let Some(session) = &verified.session else {
        return Event::ProofAccepted {
            caller: asker.caller.clone(),
            spiffe_id: verified.spiffe_id.to_string(),
            request: request(call),
        };
    };
    Event::CallChecked {
        caller: asker.caller.clone(),
        session: Some(session.view.id.clone()),
        txn: session.txn.clone(),
        spiffe_id: verified.spiffe_id.to_string(),
        user: session.view.user.as_ref().map(ToString::to_string),
        tool: session.agreed.tool.clone(),
        request: request(call),
        serial: verified.token_id.clone(),
        proof: verified.proof_id.clone(),
        effect: Some(session.agreed.effect.as_str()),
        active: true,
        reason: String::new(),
        user_ok: session.view.user.is_some().then_some(true),
        agent_ok: Some(true),
        policy_ok: Some(true),
        policies: session.policies.to_vec(),
        set: session.set.to_string(),
    }
}

/// What is not good is named by what can be believed of it: nothing, unless WIT and proof held.
fn refused(asker: &Asker, call: &Call, holding: Option<&Holding>, inactive: &Inactive) -> Event {
    let of_session = holding.and_then(|holding| Some((holding, holding.session.as_ref()?)));
    let Some((holding, of)) = of_session else {
        return Event::ProofRefused {
            caller: asker.caller.clone(),
            reason: inactive.as_str(),
            detail: inactive.to_string(),
            request: request(call),
        };
    };
    let terms = of.session.terms();
    let answers = Answers::of(inactive);
    Event::CallChecked {
        caller: asker.caller.clone(),
        session: Some(terms.id.to_string()),
        txn: of.proof.txn.clone(),
        spiffe_id: terms.spiffe_id.to_string(),
        user: terms.user.as_ref().map(ToString::to_string),
        tool: call.tool.clone(),
        request: request(call),
        serial: holding.id.clone(),
        proof: holding.checked.jti.clone(),
        effect: call.effect.map(crate::policy::Effect::as_str),
        active: false,
        reason: inactive.as_str().to_owned(),
        user_ok: answers.user,
        agent_ok: answers.agent,
        policy_ok: answers.policy,
        policies: match inactive {
            Inactive::Policy(policies) => policies.clone(),
            _ => Vec::new(),
        },
        set: String::new(),
    }
}
