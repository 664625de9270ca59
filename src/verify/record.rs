//! What audit learns of each check, and who may speak of it later.

use std::collections::BTreeSet;

use super::{Asker, Call, Decided, Holding, Inactive, NotAsker, RpcRefused, Verified, Verifier};
use crate::audit::{Caller, Event, Record};
use crate::policy::Effect;
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
        for record in accepted(asker, call, &verified) {
            audit.before(record).map_err(|_| Inactive::Unrecorded)?;
        }
        if let Some(session) = &verified.session {
            self.memory.note(&asker.spiffe_id, &session.view.id, &session.txn);
        }
        Ok(verified)
    }
}

fn request(call: &Call) -> String {
    format!("{} {}", call.target.method.as_str(), call.target.uri)
}

/// One record of the request and, where it carries calls of its own, one of each of them instead.
fn accepted(asker: &Asker, call: &Call, verified: &Verified) -> Vec<Record> {
    let none = BTreeSet::new();
    // Another node decides on the calls for its own asker, and writes them down there.
    if verified.rpcs.is_empty() {
        let named = verified.session.as_ref().map_or(call.tool.as_str(), |session| session.agreed.tool.as_str());
        let effect = verified.decided.as_ref().map(|decided| decided.effect);
        let redact = verified.decided.as_ref().map_or(&none, |decided| &decided.redact);
        let event = checked(asker, call, verified, (named, ""), effect, Ok(verified.decided.as_ref()));
        return vec![event.redacted(redact)];
    }
    let of_each = call.rpcs.iter().zip(&verified.rpcs).map(|(rpc, verdict)| {
        let outcome = verdict.outcome.as_ref().map(Some);
        let redact = verdict.outcome.as_ref().map_or(&none, |decided| &decided.redact);
        checked(asker, call, verified, (&rpc.tool, &rpc.method), Some(verdict.effect), outcome).redacted(redact)
    });
    of_each.collect()
}

fn checked(
    asker: &Asker,
    call: &Call,
    verified: &Verified,
    (tool, rpc): (&str, &str),
    effect: Option<Effect>,
    outcome: Result<Option<&Decided>, &RpcRefused>,
) -> Event {
    let session = verified.session.as_ref();
    let user = session.and_then(|session| session.view.user.as_ref());
    let answers = match outcome {
        Ok(decided) => Answers {
            user: user.is_some().then_some(true),
            agent: Some(true),
            policy: decided.is_some().then_some(true),
        },
        // Who calls was settled before: what is left is what policy says.
        Err(_) => Answers { user: None, agent: Some(true), policy: Some(false) },
    };
    let by = outcome.as_ref().ok().copied().flatten();
    Event::CallChecked {
        caller: asker.caller.clone(),
        session: session.map(|session| session.view.id.clone()),
        txn: session.map(|session| session.txn.clone()).unwrap_or_default(),
        spiffe_id: verified.spiffe_id.to_string(),
        user: user.map(ToString::to_string),
        tool: tool.to_owned(),
        rpc: rpc.to_owned(),
        request: request(call),
        serial: verified.token_id.clone(),
        proof: verified.proof_id.clone(),
        effect: effect.map(Effect::as_str),
        active: outcome.is_ok(),
        reason: outcome.err().map(|refused| refused.reason.to_owned()).unwrap_or_default(),
        user_ok: answers.user,
        agent_ok: answers.agent,
        policy_ok: answers.policy,
        policies: match outcome {
            Err(refused) => refused.policies.clone(),
            Ok(_) => by.map(|decided| decided.policies.to_vec()).unwrap_or_default(),
        },
        set: by.map(|decided| decided.set.to_string()).unwrap_or_default(),
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
        rpc: String::new(),
        request: request(call),
        serial: holding.id.clone(),
        proof: holding.checked.jti.clone(),
        effect: call.effect.map(Effect::as_str),
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
