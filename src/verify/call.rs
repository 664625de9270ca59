//! What an asker says of a request, what the proof says of it, and whether the two and the session agree.

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Inactive;
use super::reach::Named;
use crate::id::SpiffeId;
use crate::policy::{Action, Effect, Question, SessionFacts, ToolFacts};
use crate::proof::{Actor, BodyDigest, ProofTarget, SessionClaims, TetherClaims, UriPrefix};
use crate::session::Terms;
use crate::user::User;
use crate::wit::WitSession;
use crate::x509::Chain;

/// A request, as the tool that got it sees it.
#[derive(Clone, Debug)]
pub struct Call {
    /// Method, URI and body.
    pub target: ProofTarget,
    /// The tool behind the URI; empty when the asker does not say.
    pub tool: String,
    /// The digest of its arguments.
    pub arguments: Option<BodyDigest>,
    /// What it does, where the asker knows better than the method.
    pub effect: Option<Effect>,
    /// Each must be among the token's scopes.
    pub scopes: Vec<String>,
    /// The least binding level that is taken.
    pub min_binding: u8,
    /// Whether it must be made in a session.
    pub require_session: bool,
    /// What the caller proved in TLS to the asker.
    pub peer: Option<Chain>,
    /// The calls inside the request, each decided apart; none where it is a call itself.
    pub rpcs: Vec<Rpc>,
}

/// One call inside a request (JSON-RPC).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rpc {
    /// Its method.
    pub method: String,
    /// The tool that is called; empty for none.
    pub tool: String,
    /// The digest of the tool's arguments.
    pub arguments: Option<BodyDigest>,
    /// What it does, where the asker knows.
    pub effect: Option<Effect>,
}

impl Rpc {
    /// What a call does of which only this is known: policy may say more (`said`), of a tool it must, or it cannot be
    /// undone.
    pub(super) fn effect(&self, said: Option<Effect>) -> Effect {
        let unsaid = if self.tool.is_empty() { Effect::Write } else { Effect::Irreversible };
        self.effect.max(said).unwrap_or(unsaid)
    }
}

impl Call {
    /// A request of which the asker says no more than what was asked for where.
    pub fn of(target: ProofTarget) -> Self {
        Self {
            target,
            tool: String::new(),
            arguments: None,
            effect: None,
            scopes: Vec::new(),
            min_binding: 0,
            require_session: false,
            peer: None,
            rpcs: Vec::new(),
        }
    }

    /// What may be said of a request that was made in no session.
    pub(super) fn without_session(&self) -> Result<(), Inactive> {
        if self.require_session {
            return Err(Inactive::NoSession);
        }
        match self.scopes.first() {
            Some(scope) => Err(Inactive::Scope(scope.clone())),
            None => Ok(()),
        }
    }

    /// Whether the credential is worth what the asker takes.
    pub(super) fn is_bound(&self, found: u8) -> Result<(), Inactive> {
        let wanted = self.min_binding;
        if found >= wanted { Ok(()) } else { Err(Inactive::Binding { found, wanted }) }
    }
}

/// A session as verifiers see it: of this node, or as another node answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its name.
    pub id: String,
    /// The session above.
    pub parent: Option<String>,
    /// How many are above it.
    pub depth: u32,
    /// The agent.
    pub spiffe_id: SpiffeId,
    /// The registration entry that gives the identity, at the node that issues it.
    pub entry: String,
    /// Who answers for that entry.
    pub owner: String,
    /// For whom.
    pub user: Option<User>,
    /// What for.
    pub purpose: String,
    /// Where to.
    pub targets: Vec<String>,
    /// What of.
    pub scopes: Vec<String>,
    /// `tool_call`, `request` or `task`.
    pub boundary: String,
    /// The binding level.
    pub binding: u8,
    /// How long it lasts in all, in seconds.
    pub lifetime: u64,
    /// When it ends at the latest.
    #[serde(with = "time::serde::timestamp")]
    pub expires_at: OffsetDateTime,
    /// Tokens minted so far.
    pub tokens: u32,
    /// Calls proven so far.
    pub calls: u32,
    /// The limits of both; 0 without limit.
    pub max_tokens: u32,
    /// See `max_tokens`.
    pub max_calls: u32,
    /// What was measured of what was launched.
    pub launched: Vec<String>,
    /// The agents behind it, the nearest first.
    pub delegated_by: Vec<SpiffeId>,
}

impl SessionView {
    /// A session of this node, with what is used of its budget.
    pub fn of(terms: &Terms, tokens: u32, calls: u32) -> Self {
        let lifetime = (terms.expires_at - terms.started_at).whole_seconds();
        Self {
            id: terms.id.to_string(),
            parent: terms.parent.as_ref().map(ToString::to_string),
            depth: terms.depth,
            spiffe_id: terms.spiffe_id.clone(),
            entry: terms.entry.clone(),
            owner: terms.owner.clone(),
            user: terms.user.clone(),
            purpose: terms.purpose.clone(),
            targets: terms.targets.clone(),
            scopes: terms.scopes.clone(),
            boundary: terms.boundary.as_str().to_owned(),
            binding: terms.binding,
            lifetime: u64::try_from(lifetime).unwrap_or_default(),
            expires_at: terms.expires_at,
            tokens,
            calls,
            max_tokens: terms.budget.max_tokens,
            max_calls: terms.budget.max_calls,
            launched: terms.launched.clone(),
            delegated_by: terms.delegated_by.clone(),
        }
    }

    /// Whether it, and the proof of its user, has not ended by the clock.
    pub(super) fn lasts(&self, now: OffsetDateTime) -> bool {
        let user = self.user.as_ref().and_then(User::expires_at);
        now < self.expires_at && user.is_none_or(|end| now < end)
    }

    /// For whom, and who acts for it, the one that calls first. Without a user it is the agent that delegated first for
    /// whom the others act.
    pub(super) fn parties(&self) -> (&str, Vec<&str>) {
        let acting = std::iter::once(&self.spiffe_id).chain(&self.delegated_by).map(SpiffeId::as_str);
        let mut acting: Vec<&str> = acting.collect();
        let sub = match &self.user {
            Some(user) => user.subject.as_str(),
            None => acting.pop().unwrap_or(self.spiffe_id.as_str()),
        };
        (sub, acting)
    }

    /// As policy sees it.
    fn facts(&self) -> SessionFacts<'_> {
        SessionFacts {
            id: &self.id,
            parent: self.parent.as_deref(),
            depth: self.depth,
            purpose: &self.purpose,
            targets: &self.targets,
            scopes: &self.scopes,
            boundary: &self.boundary,
            binding: self.binding,
            lifetime: Duration::from_secs(self.lifetime),
            tokens: self.tokens,
            calls: self.calls,
            max_tokens: self.max_tokens,
            max_calls: self.max_calls,
            launched: &self.launched,
        }
    }
}

/// A call on which asker, proof, WIT and session agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The tool; empty when nobody names one.
    pub tool: String,
    /// The method of a call inside the request; empty for the request itself.
    pub rpc: String,
    /// The digest of its arguments in hex; empty when nobody knows it.
    pub arguments_sha256: String,
    /// The gravest that anybody says of it.
    pub effect: Effect,
    /// The scopes of the token.
    pub scopes: Vec<String>,
}

impl Agreed {
    /// The same of a call inside the request.
    pub(super) fn of_rpc(&self, rpc: &Rpc) -> Self {
        Self {
            tool: rpc.tool.clone(),
            rpc: rpc.method.clone(),
            arguments_sha256: rpc.arguments.map(|digest| digest.hex()).unwrap_or_default(),
            effect: self.effect,
            scopes: self.scopes.clone(),
        }
    }

    /// What it does where policy says something of its tool.
    pub(super) fn graver(&self, said: Option<Effect>) -> Effect {
        said.map_or(self.effect, |said| said.max(self.effect))
    }

    pub(super) fn named(&self) -> Named<'_> {
        Named { tool: &self.tool, rpc: &self.rpc, arguments_sha256: &self.arguments_sha256 }
    }

    /// What policy is asked.
    pub(super) fn question<'a>(
        &'a self,
        call: &'a Call,
        session: &'a SessionView,
        approved: bool,
        now: OffsetDateTime,
    ) -> Question<'a> {
        Question {
            action: Action::Call(self.effect),
            agent: session.agent(),
            user: session.user.as_ref(),
            session: Some(session.facts()),
            issue: None,
            reach: None,
            tool: Some(ToolFacts {
                uri: call.target.uri.as_str(),
                method: call.target.method.as_str(),
                name: &self.tool,
                rpc: &self.rpc,
                arguments_sha256: &self.arguments_sha256,
                kind: "wit",
            }),
            approved,
            now,
        }
    }
}

/// Whether the proof says of the session what the session is, and all agree on the call.
pub(super) fn agree(
    session: &SessionView,
    wit: &WitSession,
    of_wit: &SpiffeId,
    proof: &SessionClaims,
    call: &Call,
) -> Result<Agreed, Inactive> {
    same_session(session, wit, of_wit, proof)?;
    let agreed = agree_offline(wit, of_wit, proof, call)?;
    if !session.targets.iter().any(|target| covers(target, call)) {
        return Err(Inactive::Target);
    }
    within(&agreed.scopes, &session.scopes)?;
    Ok(agreed)
}

/// The part of it that takes nobody but those who are there: the token is for this call, and proof and asker speak of the
/// same one.
pub(super) fn agree_offline(
    wit: &WitSession,
    of_wit: &SpiffeId,
    proof: &SessionClaims,
    call: &Call,
) -> Result<Agreed, Inactive> {
    let claims = &proof.tether;
    if claims.sid != wit.sid {
        return Err(Inactive::Claim("sid"));
    }
    // Whoever calls is the outermost of those who act, or acts for nobody.
    let acting = proof.act.as_ref().map_or(proof.sub.as_str(), |actor| actor.sub.as_str());
    if acting != of_wit.as_str() {
        return Err(Inactive::Claim("act"));
    }
    if !covers(&wit.target, call) {
        return Err(Inactive::Target);
    }
    let scopes = within(&words(proof.scope.as_deref().unwrap_or_default()), &words(&wit.scope))?;
    within(&call.scopes, &scopes)?;
    let tool = same(claims.tool.as_deref(), Some(call.tool.as_str()).filter(|tool| !tool.is_empty()));
    let said = claims.arguments_sha256.as_deref().map(|digest| BodyDigest::parse(digest).ok_or(Inactive::Arguments));
    let arguments = same(said.transpose()?, call.arguments);
    let by_method = Effect::of_method(call.target.method.as_str());
    let effect = Effect::parse(&claims.effect).filter(|effect| *effect >= by_method).ok_or(Inactive::Effect)?;
    is_of_one_rpc(claims, call)?;
    Ok(Agreed {
        tool: tool.ok_or(Inactive::Tool)?.unwrap_or_default().to_owned(),
        rpc: String::new(),
        arguments_sha256: arguments.ok_or(Inactive::Arguments)?.map(|digest| digest.hex()).unwrap_or_default(),
        effect: call.effect.map_or(effect, |asker| asker.max(effect)),
        scopes,
    })
}

/// A proof that names a tool is for one call of that tool: the request carries that one and no other.
fn is_of_one_rpc(claims: &TetherClaims, call: &Call) -> Result<(), Inactive> {
    let Some(tool) = claims.tool.as_deref().filter(|_| !call.rpcs.is_empty()) else { return Ok(()) };
    let [rpc] = call.rpcs.as_slice() else { return Err(Inactive::Tool) };
    if rpc.tool != tool {
        return Err(Inactive::Tool);
    }
    let said = claims.arguments_sha256.as_deref().map(|digest| BodyDigest::parse(digest).ok_or(Inactive::Arguments));
    match same(said.transpose()?, rpc.arguments) {
        Some(_) => Ok(()),
        None => Err(Inactive::Arguments),
    }
}

/// Whether the proof names the session, its agents, its user and what they are limited to.
fn same_session(
    session: &SessionView,
    wit: &WitSession,
    of_wit: &SpiffeId,
    proof: &SessionClaims,
) -> Result<(), Inactive> {
    let claim = |name, holds| if holds { Ok(()) } else { Err(Inactive::Claim(name)) };
    claim("sid", proof.tether.sid == session.id && wit.sid == session.id)?;
    claim("act", *of_wit == session.spiffe_id)?;
    claim("purpose", proof.tether.purpose == session.purpose)?;
    claim("boundary", proof.tether.boundary == session.boundary)?;
    match (&session.user, &proof.sub_id) {
        (Some(user), Some(said)) => {
            claim("sub_id", said.format == "iss_sub" && said.iss == user.issuer && said.sub == user.subject)?;
        }
        (None, None) => {}
        _ => return Err(Inactive::Claim("sub_id")),
    }
    let (sub, acting) = session.parties();
    claim("sub", proof.sub == sub)?;
    claim("act", proof.act.iter().flat_map(Actor::chain).eq(acting))
}

fn covers(target: &str, call: &Call) -> bool {
    UriPrefix::parse(target).is_ok_and(|prefix| prefix.covers(&call.target.uri))
}

fn words(scope: &str) -> Vec<String> {
    scope.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn within(wanted: &[String], given: &[String]) -> Result<Vec<String>, Inactive> {
    match wanted.iter().find(|scope| !given.contains(scope)) {
        Some(missing) => Err(Inactive::Scope(missing.clone())),
        None => Ok(wanted.to_vec()),
    }
}

/// What both say, or the one that says anything; nothing where they differ.
fn same<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<Option<T>> {
    match (&one, &other) {
        (Some(a), Some(b)) if a != b => None,
        _ => Some(one.or(other)),
    }
}
