//! Why policy says what it says: of each policy, whether it decided, and if not, which part of it does not hold.

use std::fmt;

use cedar_policy::{
    ActionConstraint, Authorizer, EntityUid, Policy as CedarPolicy, PolicySet as CedarSet, PrincipalConstraint,
    ResourceConstraint,
};
use serde::Serialize;

use super::case::Expect;
use super::compile::with_stack;
use super::facts::Asked;
use super::question::{Decision, Question};
use super::rule::Rule;
use super::scan::conditions;
use super::set::{PolicySet, names};
use super::words::{ACTION_WORDS, index_of};

/// The answer to a question, with the part of every policy in it.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The version of this document.
    version: u8,
    /// `issue`, `start`, `delegate`, `mint` or `call`.
    pub action: &'static str,
    /// Who.
    pub agent: String,
    /// `allow`, `deny` or `step_up`.
    pub decision: &'static str,
    /// Why, for a person.
    pub why: String,
    /// SHA-256 of the set that decided, in hex.
    pub set: String,
    /// The policies that decided, by id.
    pub decided_by: Vec<String>,
    /// What goes with the permission.
    pub obligations: ExplainedObligations,
    /// Policies that could not be evaluated, with why.
    pub errors: Vec<String>,
    /// Every policy.
    pub policies: Vec<ExplainedPolicy>,
}

/// See [`super::Obligations`].
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedObligations {
    step_up: Option<String>,
    one_use: bool,
    redact: Vec<String>,
    stale_seconds: Option<u64>,
}

/// One policy's part.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedPolicy {
    /// Its id.
    pub id: String,
    /// `built-in`, or `FILE:LINE`.
    pub origin: String,
    /// `permit` or `forbid`.
    pub effect: &'static str,
    /// `holds`; or the first part that does not: `action`, `principal`, `resource`, `condition`; or `error`.
    pub verdict: &'static str,
    /// What that part wants.
    pub detail: String,
}

/// Explains an answer. Takes its time on a thread of its own: not to be called on an async thread.
pub fn explain(set: &PolicySet, question: &Question<'_>) -> Explanation {
    let decision = set.decide(question);
    let policies = with_stack(|| each(set, question)).unwrap_or_default();
    let (action, agent) = (question.action.as_str(), question.agent.spiffe_id.to_string());
    let Decision { obligations, policies: decided_by, errors, set, .. } = &decision;
    Explanation {
        version: 1,
        action,
        agent,
        decision: Expect::of(&decision).as_str(),
        why: why(&decision),
        set: set.to_string(),
        decided_by: decided_by.to_vec(),
        obligations: ExplainedObligations {
            step_up: obligations.step_up.clone(),
            one_use: obligations.one_use,
            redact: obligations.redact.iter().cloned().collect(),
            stale_seconds: obligations.stale.map(|stale| stale.as_secs()),
        },
        errors: errors.clone(),
        policies,
    }
}

fn why(decision: &Decision) -> String {
    let by = || format!("`{}`", decision.policies.join("`, `"));
    match (decision.allowed, &decision.obligations.step_up) {
        (true, Some(_)) => format!("permitted by {}, and an approver agreed", by()),
        (true, None) => format!("permitted by {}", by()),
        (false, Some(why)) => format!("permitted by {} once an approver agrees: {why}", by()),
        (false, None) if !decision.policies.is_empty() => format!("forbidden by {}", by()),
        (false, None) if !decision.errors.is_empty() => "policies could not be evaluated".to_owned(),
        (false, None) => "no policy permits it".to_owned(),
    }
}

fn each(set: &PolicySet, question: &Question<'_>) -> Vec<ExplainedPolicy> {
    let asked = Asked::new(question, set.mentioned());
    let explained = set.policies().iter().map(|rule| {
        let (verdict, detail) = match &asked {
            Ok(asked) => verdict(rule, question, asked),
            Err(why) => ("error", why.clone()),
        };
        ExplainedPolicy {
            id: rule.id().to_owned(),
            origin: rule.origin().to_string(),
            effect: if rule.forbids() { "forbid" } else { "permit" },
            verdict,
            detail,
        }
    });
    explained.collect()
}

fn verdict(rule: &Rule, question: &Question<'_>, asked: &Asked) -> (&'static str, String) {
    let policy = &rule.cedar;
    if !names(policy, &ACTION_WORDS[index_of(question.action)]) {
        return ("action", format!("it wants {}", wanted_action(policy)));
    }
    let (principal, resource) = (asked.request().principal(), asked.request().resource());
    let wanted = Wanted::of_principal(policy.principal_constraint());
    if !wanted.is_met(principal, asked) {
        return ("principal", format!("it wants principal{wanted}"));
    }
    let wanted = Wanted::of_resource(policy.resource_constraint());
    if !wanted.is_met(resource, asked) {
        return ("resource", format!("it wants resource{wanted}"));
    }
    match holds(policy, asked) {
        Ok(true) => ("holds", String::new()),
        Ok(false) => ("condition", failing(rule.text(), asked)),
        Err(why) => ("error", why),
    }
}

fn wanted_action(policy: &CedarPolicy) -> String {
    match policy.action_constraint() {
        ActionConstraint::Any => "any action".to_owned(),
        ActionConstraint::Eq(uid) => format!("action == {uid}"),
        ActionConstraint::In(uids) => {
            let uids: Vec<_> = uids.iter().map(ToString::to_string).collect();
            format!("action in [{}]", uids.join(", "))
        }
    }
}

/// What a scope wants of the principal or the resource.
#[derive(Default)]
struct Wanted {
    kind: Option<String>,
    /// It must be this, or be in it unless `exactly`.
    entity: Option<EntityUid>,
    exactly: bool,
}

impl Wanted {
    fn of_principal(constraint: PrincipalConstraint) -> Self {
        match constraint {
            PrincipalConstraint::Any => Self::default(),
            PrincipalConstraint::Eq(uid) => Self { entity: Some(uid), exactly: true, kind: None },
            PrincipalConstraint::In(uid) => Self { entity: Some(uid), ..Self::default() },
            PrincipalConstraint::Is(kind) => Self { kind: Some(kind.to_string()), ..Self::default() },
            PrincipalConstraint::IsIn(kind, uid) => {
                Self { kind: Some(kind.to_string()), entity: Some(uid), exactly: false }
            }
        }
    }

    fn of_resource(constraint: ResourceConstraint) -> Self {
        Self::of_principal(match constraint {
            ResourceConstraint::Any => PrincipalConstraint::Any,
            ResourceConstraint::Eq(uid) => PrincipalConstraint::Eq(uid),
            ResourceConstraint::In(uid) => PrincipalConstraint::In(uid),
            ResourceConstraint::Is(kind) => PrincipalConstraint::Is(kind),
            ResourceConstraint::IsIn(kind, uid) => PrincipalConstraint::IsIn(kind, uid),
        })
    }

    fn is_met(&self, entity: Option<&EntityUid>, asked: &Asked) -> bool {
        let Some(entity) = entity else { return false };
        let is_of_kind = self.kind.as_ref().is_none_or(|kind| entity.type_name().to_string() == *kind);
        let is_in =
            |wanted: &EntityUid| entity == wanted || (!self.exactly && asked.entities().is_ancestor_of(wanted, entity));
        is_of_kind && self.entity.as_ref().is_none_or(is_in)
    }
}

/// As a scope is written: `is Tool in Host::"h"`.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kind) = &self.kind {
            write!(f, " is {kind}")?;
        }
        match &self.entity {
            Some(entity) if self.exactly => write!(f, " == {entity}"),
            Some(entity) => write!(f, " in {entity}"),
            None => Ok(()),
        }
    }
}

/// Whether a policy holds as a whole.
fn holds(policy: &CedarPolicy, asked: &Asked) -> Result<bool, String> {
    let set = CedarSet::from_policies([policy.clone()]).map_err(|error| error.to_string())?;
    let response = Authorizer::new().is_authorized(asked.request(), &set, asked.entities());
    if let Some(cedar_policy::AuthorizationError::PolicyEvaluationError(error)) = response.diagnostics().errors().next()
    {
        return Err(error.inner().to_string());
    }
    Ok(response.diagnostics().reason().next().is_some())
}

/// The first part of the conditions of a policy that does not hold, as it is written.
fn failing(text: &str, asked: &Asked) -> String {
    let whole = || "its condition does not hold".to_owned();
    for condition in conditions(text) {
        let alone = format!("permit (principal, action, resource) {condition};");
        let Ok(alone) = CedarPolicy::parse(None, &alone) else { return whole() };
        if holds(&alone, asked) != Ok(true) {
            let condition: Vec<_> = condition.split_whitespace().collect();
            return format!("this does not hold: {}", condition.join(" "));
        }
    }
    whole()
}

#[cfg(test)]
mod tests;
