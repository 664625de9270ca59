//! A set of policies in force: immutable, indexed, and quick to ask.
//!
//! Policies are found by their action, and below that by the one entity their scope names. An action for which all that
//! could apply is permitted or refused without looking at anything costs no evaluation at all: so issuing costs nothing
//! while nobody narrows it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use cedar_policy::{
    ActionConstraint, Authorizer, Decision as CedarDecision, EntityUid, PolicySet as CedarSet, PrincipalConstraint,
    ResourceConstraint,
};

use super::facts::{Asked, Mentioned};
use super::question::{Action, Decision, Obligations, Question};
use super::rule::Rule;
use super::words::{ACTION_COUNT, ACTION_WORDS, ActionWord, index_of};

static AUTHORIZER: LazyLock<Authorizer> = LazyLock::new(Authorizer::new);

/// Every policy in force, and the digest by which audit names them.
pub struct PolicySet {
    digest: Arc<str>,
    generation: u64,
    rules: Vec<Arc<Rule>>,
    by_id: HashMap<Arc<str>, usize>,
    actions: [Applicable; ACTION_COUNT],
    mentioned: Mentioned,
}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { digest, generation, rules, .. } = self;
        f.debug_struct("PolicySet")
            .field("digest", digest)
            .field("generation", generation)
            .field("rules", rules)
            .finish()
    }
}

/// What could apply to one action.
enum Applicable {
    /// The answer is always this one.
    Always(Judged),
    /// It depends.
    Depends {
        everywhere: Box<CedarSet>,
        /// Those whose scope names one entity: they apply where the principal or the resource is it or is in it.
        anchored: HashMap<EntityUid, CedarSet>,
    },
}

/// What the policies say, whether or not somebody agreed.
#[derive(Clone, Debug)]
struct Judged {
    permitted: bool,
    obligations: Obligations,
    policies: Arc<[String]>,
    errors: Vec<String>,
}

impl PolicySet {
    /// The set of these policies, whose ids are all different.
    pub(super) fn new(rules: Vec<Rule>, digest: String, generation: u64) -> Self {
        let rules: Vec<Arc<Rule>> = rules.into_iter().map(Arc::new).collect();
        let by_id = rules.iter().enumerate().map(|(at, rule)| (rule.id.clone(), at)).collect();
        let actions = std::array::from_fn(|index| Applicable::of(&rules, &ACTION_WORDS[index]));
        let mentioned = Mentioned::of(rules.iter().map(|rule| &rule.cedar));
        Self { digest: digest.into(), generation, rules, by_id, actions, mentioned }
    }

    /// SHA-256 over the schema and every policy, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Counts the sets of one run of the agent.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Every policy, the built-in ones first.
    pub fn policies(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// The policy with this id.
    pub fn policy(&self, id: &str) -> Option<&Arc<Rule>> {
        self.by_id.get(id).map(|at| &self.rules[*at])
    }

    /// Whether an action is permitted whatever the question is.
    pub fn always_permits(&self, action: Action) -> bool {
        match &self.actions[index_of(action)] {
            Applicable::Always(judged) => judged.permitted && judged.obligations.step_up.is_none(),
            Applicable::Depends { .. } => false,
        }
    }

    pub(super) fn with_generation(self, generation: u64) -> Self {
        Self { generation, ..self }
    }

    pub(super) fn mentioned(&self) -> &Mentioned {
        &self.mentioned
    }

    /// What the policies say to a question.
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        let judged = match &self.actions[index_of(question.action)] {
            Applicable::Always(judged) => judged.clone(),
            Applicable::Depends { everywhere, anchored } => match Asked::new(question, &self.mentioned) {
                Ok(asked) => self.judge(&asked, everywhere, anchored),
                Err(why) => Judged::refused(why),
            },
        };
        Decision {
            allowed: judged.permitted && (judged.obligations.step_up.is_none() || question.approved),
            obligations: judged.obligations,
            policies: judged.policies,
            errors: judged.errors,
            set: self.digest.clone(),
        }
    }

    /// Any `forbid` that holds, or cannot be evaluated, refuses, and so does a `permit` whose obligations would be lost
    /// because it cannot; else any `permit` that holds permits; else nothing does.
    fn judge(&self, asked: &Asked, everywhere: &CedarSet, anchored: &HashMap<EntityUid, CedarSet>) -> Judged {
        let mut forbidding: Vec<&Arc<Rule>> = Vec::new();
        let mut permitting: Vec<&Arc<Rule>> = Vec::new();
        let mut errors = Vec::new();
        let mut narrowing_failed = false;
        let sets = std::iter::once(everywhere).chain(asked.anchors().filter_map(|anchor| anchored.get(anchor)));
        for set in sets {
            let response = AUTHORIZER.is_authorized(asked.request(), set, asked.entities());
            let decided = match response.decision() {
                CedarDecision::Allow => &mut permitting,
                CedarDecision::Deny => &mut forbidding,
            };
            decided.extend(response.diagnostics().reason().filter_map(|id| self.policy(id.as_ref())));
            for error in response.diagnostics().errors() {
                let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
                let id = error.policy_id();
                let narrows = |rule: &Arc<Rule>| rule.forbids() || rule.obligations().narrow();
                narrowing_failed |= self.policy(id.as_ref()).is_none_or(narrows);
                errors.push(format!("policy `{id}`: {}", error.inner()));
            }
        }
        errors.sort_unstable();
        if !forbidding.is_empty() || narrowing_failed {
            return Judged { errors, ..Judged::by(false, forbidding) };
        }
        Judged { errors, ..Judged::by(!permitting.is_empty(), permitting) }
    }
}

impl Judged {
    fn refused(why: String) -> Self {
        Self { permitted: false, obligations: Obligations::default(), policies: Arc::new([]), errors: vec![why] }
    }

    fn by(permitted: bool, mut rules: Vec<&Arc<Rule>>) -> Self {
        rules.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        let mut obligations = Obligations::default();
        rules.iter().for_each(|rule| obligations.also(&rule.obligations));
        let policies = rules.iter().map(|rule| rule.id.to_string()).collect();
        Self { permitted, obligations, policies, errors: Vec::new() }
    }
}

impl Applicable {
    fn of(rules: &[Arc<Rule>], action: &ActionWord) -> Self {
        let rules: Vec<&Arc<Rule>> = rules.iter().filter(|rule| names(&rule.cedar, action)).collect();
        let is_unconditional = |rule: &&Arc<Rule>| {
            !rule.cedar.has_non_scope_constraint()
                && rule.cedar.principal_constraint() == PrincipalConstraint::Any
                && rule.cedar.resource_constraint() == ResourceConstraint::Any
        };
        if rules.iter().all(is_unconditional) {
            let (forbids, permits): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.forbids());
            let permitted = forbids.is_empty() && !permits.is_empty();
            return Self::Always(Judged::by(permitted, if forbids.is_empty() { permits } else { forbids }));
        }
        let (mut everywhere, mut anchored) = (CedarSet::new(), HashMap::<EntityUid, CedarSet>::new());
        for rule in rules {
            let set = match anchor(&rule.cedar) {
                Some(anchor) => anchored.entry(anchor).or_default(),
                None => &mut everywhere,
            };
            set.add(rule.cedar.clone()).expect("ids are unique and templates are refused");
        }
        Self::Depends { everywhere: Box::new(everywhere), anchored }
    }
}

/// Whether the scope of a policy has this action.
pub(super) fn names(policy: &cedar_policy::Policy, action: &ActionWord) -> bool {
    let is_it = |uid: &EntityUid| *uid == action.uid;
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => is_it(&uid),
        ActionConstraint::In(uids) => uids.iter().any(|uid| is_it(uid) || action.group.as_ref() == Some(uid)),
    }
}

/// The entity that the resource, or else the principal, must be or be in.
fn anchor(policy: &cedar_policy::Policy) -> Option<EntityUid> {
    match policy.resource_constraint() {
        ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => Some(uid),
        ResourceConstraint::Any | ResourceConstraint::Is(_) => match policy.principal_constraint() {
            PrincipalConstraint::Eq(uid) | PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid) => {
                Some(uid)
            }
            PrincipalConstraint::Any | PrincipalConstraint::Is(_) => None,
        },
    }
}
