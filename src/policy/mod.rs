//! Policy: the one place that says yes to issuing.
//!
//! A yes is a grant, a value with a private constructor that the authority consumes by signing: nothing can be
//! signed without one, and nothing else makes one. Deciding is pure: no I/O, no clock of its own.

mod case;
mod compile;
mod explain;
mod facts;
mod grant;
mod live;
mod load;
mod question;
mod rule;
mod scan;
mod set;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::attest::Attested;
use crate::id::{SpiffeId, TrustDomain};
use crate::proof::TargetUri;
use crate::registry::{EntryId, Identity};

use self::grant::Permitted;

pub use self::case::{Case, Expect, read_cases};
pub use self::compile::{BuiltIn, Compiled, MAX_POLICIES, PolicyFile, compile};
pub use self::explain::{ExplainedPolicy, Explanation, explain};
pub use self::grant::{Call, Checks, JwtGrant, KeyUse, MintGrant, Permit, Reach, Start, WitGrant, X509Grant};
pub use self::live::{DEFAULT_DIRECTORY, Policies, PoliciesRefused, is_default};
pub use self::load::{MAX_BYTES, MAX_FILE_BYTES, MAX_FILES, read_paths};
pub use self::question::{
    Action, AgentFacts, Decision, Effect, IssueFacts, Obligations, Question, ReachFacts, SessionFacts, ToolFacts,
};
pub use self::rule::{PolicyOrigin, Rule};
pub use self::set::PolicySet;
pub use self::words::SCHEMA;

/// Why an identity that matches is not issued.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denial {
    /// The entry has ended since it was matched.
    #[error("the registration entry `{0}` has expired")]
    EntryExpired(EntryId),
    /// The entry's list of audiences does not have this one.
    #[error("the registration entry `{entry}` does not allow the audience `{audience}`: add it to `audiences`")]
    Audience {
        /// The entry.
        entry: EntryId,
        /// The first audience that is not allowed.
        audience: String,
    },
    /// The entry matches on the executable, and the caller may have got its connection from somebody else.
    #[error("the registration entry `{entry}` matches on the executable, and {why}")]
    Executable {
        /// The entry.
        entry: EntryId,
        /// Why the executable is no evidence on this connection.
        why: String,
    },
    /// The entry's keys and tokens may not be written to files.
    #[error("the registration entry `{0}` lets no key or token into files: it is not `exportable = true`")]
    NotExportable(EntryId),
    /// No entry of the asking process lets it act for the other.
    #[error("no registration entry of the calling process lets it act for that process: see `may_act_for`")]
    NotDelegate,
    /// No entry of the asking process lists the URI.
    #[error("no registration entry of the calling process lists `{0}` under `serves`")]
    NotServed(TargetUri),
    /// A policy forbids it, or none permits it.
    #[error("{}", refused(action, what, policies, errors))]
    Policy {
        /// What was to be done.
        action: Action,
        /// By whom, and where to.
        what: String,
        /// The policies that forbid it.
        policies: Arc<[String]>,
        /// Policies that could not be evaluated, with why.
        errors: Vec<String>,
    },
    /// Policy permits it once a person agreed.
    #[error("policy wants a person to agree to `{action}` first: {why} ({})", policies.join(", "))]
    StepUp {
        /// What is to be done.
        action: Action,
        /// What policy tells the person.
        why: String,
        /// The policies that permit it.
        policies: Arc<[String]>,
    },
}

/// Says what refused, and what to do about it.
fn refused(action: &Action, what: &str, policies: &[String], errors: &[String]) -> String {
    let see = "`tether policy explain` shows why";
    if !policies.is_empty() {
        return format!("policy `{}` forbids `{action}` for {what}: {see}", policies.join("`, `"));
    }
    if !errors.is_empty() {
        return format!(
            "`{action}` for {what} is refused because of policies that cannot be evaluated: {}",
            errors.join("; ")
        );
    }
    format!("no policy permits `{action}` for {what}: add a permit to a `.cedar` file in `policies_dir`; {see}")
}

impl Denial {
    /// A stable name for metrics and audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::EntryExpired(_) => "entry_expired",
            Self::Audience { .. } => "audience",
            Self::Executable { .. } => "executable",
            Self::NotExportable(_) => "not_exportable",
            Self::NotDelegate => "not_delegate",
            Self::NotServed(_) => "not_served",
            Self::Policy { .. } => "policy_denied",
            Self::StepUp { .. } => "step_up",
        }
    }
}

/// Kinds of credentials, as policies name them.
const X509: &str = "x509";
const JWT: &str = "jwt";
const WIT: &str = "wit";
/// Binding level: whoever has it can use it.
const BEARER: u8 = 0;

/// Lifetimes for entries that name none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of an X.509-SVID.
    pub x509: Duration,
    /// Of a JWT-SVID and of a WIT-SVID.
    pub jwt: Duration,
}

/// How long JWT-SVIDs for some audiences may live at most, whatever their entry says: whoever holds such a token can
/// use it at its audience until it expires, so the audience decides what that is worth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AudienceCaps(BTreeMap<String, Duration>);

impl AudienceCaps {
    /// Stands for every audience that has no cap of its own.
    pub const OTHERS: &str = "*";

    /// The cap of each audience, in the order of the audiences.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.0.iter().map(|(audience, cap)| (audience.as_str(), *cap))
    }

    /// Whether no audience has a cap.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest cap among these audiences; `None` when none of them has one.
    pub fn of(&self, audience: &[String]) -> Option<Duration> {
        let others = self.0.get(Self::OTHERS);
        audience.iter().filter_map(|audience| self.0.get(audience).or(others)).min().copied()
    }
}

impl FromIterator<(String, Duration)> for AudienceCaps {
    fn from_iter<I: IntoIterator<Item = (String, Duration)>>(caps: I) -> Self {
        Self(caps.into_iter().collect())
    }
}

/// Decides, by the policies in force at that moment. Cheap to clone; the clones see the same policies.
#[derive(Clone, Debug)]
pub struct Policy {
    lifetimes: Lifetimes,
    jwt_caps: Arc<AudienceCaps>,
    credential_ttl: Duration,
    policies: Policies,
}

impl Policy {
    /// The policy that permits issuing what a registration entry gives, and nothing else.
    pub fn new(lifetimes: Lifetimes) -> Self {
        let policies = Policies::built_in(BuiltIn::Issue);
        Self { lifetimes, jwt_caps: Arc::default(), credential_ttl: lifetimes.x509, policies }
    }

    /// The same, with these policies.
    pub fn with_policies(self, policies: Policies) -> Self {
        Self { policies, ..self }
    }

    /// The policies in force.
    pub fn set(&self) -> Arc<PolicySet> {
        self.policies.set()
    }

    /// The policies in force, and every later set: what was decided by another may be decided otherwise.
    pub fn watch(&self) -> watch::Receiver<Arc<PolicySet>> {
        self.policies.watch()
    }

    /// What the policies say.
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        self.set().decide(question)
    }

    /// Whether a session may begin: [`Action::Start`] or [`Action::Delegate`].
    pub fn start_session(&self, question: &Question<'_>) -> Result<Permit<Start>, Denial> {
        let fits = matches!(question.action, Action::Start | Action::Delegate);
        self.permitted(question, fits).map(Permit::new)
    }

    /// Whether a session's token may be minted: [`Action::Mint`].
    pub fn mint_token(&self, question: &Question<'_>) -> Result<MintGrant, Denial> {
        let asked = self.permitted(question, question.action == Action::Mint)?;
        let tool = question.tool.as_ref();
        Ok(MintGrant {
            asked,
            target: tool.map(|tool| tool.uri.to_owned()).unwrap_or_default(),
            is_bearer: tool.is_some_and(|tool| tool.kind == "jwt"),
        })
    }

    /// Whether a tool may be called: [`Action::Call`].
    pub fn call(&self, question: &Question<'_>) -> Result<Permit<Call>, Denial> {
        let fits = matches!(question.action, Action::Call(_));
        self.permitted(question, fits).map(Permit::new)
    }

    /// Whether a tool may be called outside any session: [`Action::Reach`].
    pub fn reach(&self, question: &Question<'_>) -> Result<Permit<Reach>, Denial> {
        let fits = matches!(question.action, Action::Reach(_));
        self.permitted(question, fits).map(Permit::new)
    }

    /// What a call does by the word of the policies ([`Action::Classify`]); `None` where they say nothing of it. What
    /// could not be evaluated may have been graver than all that was said.
    pub fn effect_of(&self, question: &Question<'_>) -> Option<Effect> {
        let decision = self.decide(question);
        if decision.errors.is_empty() { decision.obligations.effect } else { Some(Effect::Irreversible) }
    }

    /// What is permitted where the decision is a yes. `fits` is whether the question is one of those the permission is for.
    fn permitted(&self, question: &Question<'_>, fits: bool) -> Result<Permitted, Denial> {
        let decision = self.decide(question);
        if fits && decision.allowed {
            let session = question.session.as_ref().map(|session| session.id.to_owned()).unwrap_or_default();
            return Ok(Permitted { spiffe_id: question.agent.spiffe_id.clone(), session, decision });
        }
        let action = question.action;
        match decision.obligations.step_up {
            Some(why) if fits => Err(Denial::StepUp { action, why, policies: decision.policies }),
            _ => {
                let Decision { policies, errors, .. } = decision;
                Err(Denial::Policy { action, what: subject(question), policies, errors })
            }
        }
    }

    /// The same, with JWT-SVIDs for some audiences living no longer than these caps.
    pub fn with_jwt_caps(self, caps: AudienceCaps) -> Self {
        Self { jwt_caps: Arc::new(caps), ..self }
    }

    /// The same, with this lifetime for X.509-SVIDs that are credentials of systemd units, for entries that name none.
    pub fn with_credential_ttl(self, credential_ttl: Duration) -> Self {
        Self { credential_ttl, ..self }
    }

    /// Whether the attested process may have an X.509-SVID of this binding level for an identity that matched it.
    pub fn issue_x509(
        &self,
        attested: &Attested,
        identity: &Identity,
        binding: u8,
        now: OffsetDateTime,
    ) -> Result<X509Grant, Denial> {
        standing(attested, identity, now)?;
        self.may_issue(agent(identity), IssueFacts { kind: X509, audience: &[], binding }, now)?;
        Ok(X509Grant {
            spiffe_id: identity.spiffe_id.clone(),
            dns_names: identity.entry.dns_names().iter().map(ToString::to_string).collect(),
            ttl: identity.entry.x509_ttl().unwrap_or(self.lifetimes.x509),
            ends: identity.entry.expires_at(),
        })
    }

    /// Whether a unit that systemd starts may have an X.509-SVID and its key as credentials, which are files.
    pub fn issue_credential(
        &self,
        attested: &Attested,
        identity: &Identity,
        binding: u8,
        now: OffsetDateTime,
    ) -> Result<X509Grant, Denial> {
        exportable(identity)?;
        let ttl = identity.entry.credential_ttl().unwrap_or(self.credential_ttl);
        Ok(X509Grant { ttl, ..self.issue_x509(attested, identity, binding, now)? })
    }

    /// Whether a unit that systemd starts may have a JWT-SVID for exactly this audience as a credential, which is a file.
    /// It lives no longer than any other of its entry: whoever reads it can use it.
    pub fn issue_credential_jwt(
        &self,
        attested: &Attested,
        identity: &Identity,
        audience: &[String],
        now: OffsetDateTime,
    ) -> Result<JwtGrant, Denial> {
        exportable(identity)?;
        self.issue_jwt(attested, identity, audience, now)
    }

    /// Whether the attested process may have a JWT-SVID for exactly these audiences. It lives no longer than the smallest
    /// cap among them.
    pub fn issue_jwt(
        &self,
        attested: &Attested,
        identity: &Identity,
        audience: &[String],
        now: OffsetDateTime,
    ) -> Result<JwtGrant, Denial> {
        standing(attested, identity, now)?;
        if let Some(other) = audience.iter().find(|audience| !identity.entry.allows_audience(audience)) {
            return Err(Denial::Audience { entry: identity.entry.id().clone(), audience: other.clone() });
        }
        self.may_issue(agent(identity), IssueFacts { kind: JWT, audience, binding: BEARER }, now)?;
        let ttl = identity.entry.jwt_ttl().unwrap_or(self.lifetimes.jwt);
        Ok(JwtGrant {
            spiffe_id: identity.spiffe_id.clone(),
            audience: audience.to_vec(),
            ttl: self.jwt_caps.of(audience).map_or(ttl, |cap| ttl.min(cap)),
            ends: identity.entry.expires_at(),
        })
    }

    /// Whether the attested process may have a WIT-SVID of this binding level. It lives as long as a JWT-SVID of the same
    /// entry.
    pub fn issue_wit(
        &self,
        attested: &Attested,
        identity: &Identity,
        binding: u8,
        now: OffsetDateTime,
    ) -> Result<WitGrant, Denial> {
        standing(attested, identity, now)?;
        self.may_issue(agent(identity), IssueFacts { kind: WIT, audience: &[], binding }, now)?;
        Ok(WitGrant {
            spiffe_id: identity.spiffe_id.clone(),
            ttl: identity.entry.jwt_ttl().unwrap_or(self.lifetimes.jwt),
            ends: identity.entry.expires_at(),
        })
    }

    /// Whether the attested process may use a key that is held for an identity that matched it, now: what could not be
    /// issued any more cannot be used either. `kind` is that of the credential it is the key of, `x509` or `wit`.
    pub fn use_key(
        &self,
        attested: &Attested,
        identity: &Identity,
        kind: &str,
        binding: u8,
        now: OffsetDateTime,
    ) -> Result<KeyUse, Denial> {
        standing(attested, identity, now)?;
        self.may_issue(agent(identity), IssueFacts { kind, audience: &[], binding }, now)?;
        Ok(KeyUse { spiffe_id: identity.spiffe_id.clone(), entry: identity.entry.id().clone() })
    }

    /// Whether the policies permit to issue a credential, or to go on with it: asked at each issue, and of everything that
    /// stands when the policies change.
    pub fn may_issue(&self, agent: AgentFacts<'_>, issue: IssueFacts<'_>, now: OffsetDateTime) -> Result<(), Denial> {
        self.permitted(&Question::issue(agent, issue, now), true).map(drop)
    }

    /// Whether the attested process may ask in the name of any other at all.
    pub fn is_delegate(&self, attested: &Attested, identities: &[Identity], now: OffsetDateTime) -> Result<(), Denial> {
        let delegates = identities.iter().filter(|identity| !identity.entry.may_act_for().is_empty());
        first_standing(attested, delegates, now, || Denial::NotDelegate).map(drop)
    }

    /// Whether the attested process may ask in the name of a process that is `other`: one of its own entries, as they
    /// stand now, says so.
    pub fn act_for(
        &self,
        attested: &Attested,
        identities: &[Identity],
        other: &SpiffeId,
        now: OffsetDateTime,
    ) -> Result<(), Denial> {
        let says_so = identities.iter().filter(|identity| identity.entry.acts_for(other));
        first_standing(attested, says_so, now, || Denial::NotDelegate).map(drop)
    }

    /// Whether the attested process may have proofs for `uri` checked: one of its own entries, as they stand now, lists
    /// it under `serves`.
    pub fn check_proof(
        &self,
        attested: &Attested,
        identities: &[Identity],
        uri: &TargetUri,
        now: OffsetDateTime,
    ) -> Result<Checks, Denial> {
        let lists_it = identities.iter().filter(|identity| identity.entry.serves_uri(uri));
        let asker = first_standing(attested, lists_it, now, || Denial::NotServed(uri.clone()))?;
        Ok(Checks { asker: asker.spiffe_id.clone() })
    }

    /// The agent's own identity, `spiffe://TD/tether/agent/NODE`: the one grant below the reserved path.
    pub fn own_x509(&self, domain: &TrustDomain, node: &str) -> X509Grant {
        let id = SpiffeId::parse(&format!("spiffe://{domain}/tether/agent/{node}"));
        X509Grant {
            spiffe_id: id.expect("a node id is made of hex digits"),
            dns_names: Vec::new(),
            ttl: self.lifetimes.x509,
            ends: None,
        }
    }
}

/// Who would act with an identity.
fn agent(identity: &Identity) -> AgentFacts<'_> {
    let (entry, owner) = (identity.entry.id().as_str(), identity.entry.owner().unwrap_or_default());
    AgentFacts { spiffe_id: &identity.spiffe_id, entry, owner }
}

/// By whom and where to, for a refusal.
fn subject(question: &Question<'_>) -> String {
    let agent = question.agent.spiffe_id;
    match (&question.tool, &question.issue, &question.session) {
        (Some(tool), ..) if tool.method.is_empty() => format!("`{agent}` at `{}`", tool.uri),
        (Some(tool), ..) => format!("`{agent}` at `{} {}`", tool.method, tool.uri),
        (None, Some(issue), _) => format!("`{agent}` and `{}`", issue.kind),
        (None, None, Some(session)) => format!("`{agent}` and the purpose `{}`", session.purpose),
        (None, None, None) => format!("`{agent}`"),
    }
}

/// The first identity that stands; what the last one lacks, or `none`.
fn first_standing<'a>(
    attested: &Attested,
    mut identities: impl Iterator<Item = &'a Identity>,
    now: OffsetDateTime,
    none: impl FnOnce() -> Denial,
) -> Result<&'a Identity, Denial> {
    let mut denial = None;
    let found = identities.find(|identity| standing(attested, identity, now).map_err(|why| denial = Some(why)).is_ok());
    found.ok_or_else(|| denial.unwrap_or_else(none))
}

/// Whether the entry lets keys and tokens into files.
fn exportable(identity: &Identity) -> Result<(), Denial> {
    let entry = &identity.entry;
    if entry.is_exportable() { Ok(()) } else { Err(Denial::NotExportable(entry.id().clone())) }
}

/// What must hold for every kind of SVID, at the moment of signing and not only when the entry was matched.
fn standing(attested: &Attested, identity: &Identity, now: OffsetDateTime) -> Result<(), Denial> {
    let entry = &identity.entry;
    if entry.expires_at().is_some_and(|ends| ends <= now) {
        return Err(Denial::EntryExpired(entry.id().clone()));
    }
    if entry.depends_on_executable() {
        let why = || entry.id().clone();
        attested.executable_holds().map_err(|because| Denial::Executable { entry: why(), why: because })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
