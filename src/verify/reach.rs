//! Calls outside any session, and what calls do by the word of policy.
//!
//! Who calls showed it by a WIT with a proof, or by TLS alone. Either way policy is asked (`reach`), and nothing is
//! permitted that no policy permits.

use time::OffsetDateTime;

use super::peer::Peer;
use super::{Asker, Call, Decided, Inactive, SessionView, Verified, Verifier};
use crate::id::SpiffeId;
use crate::ledger::Credential;
use crate::policy::{AgentFacts, Effect, Question, ReachFacts, ToolFacts};

/// What became of one call inside a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcVerdict {
    /// What it does.
    pub effect: Effect,
    /// Whether it may go on.
    pub outcome: Result<Decided, RpcRefused>,
    /// Whether an approval was given for exactly this call.
    pub approved: bool,
}

/// Why a call inside a request may not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcRefused {
    /// As [`Inactive::as_str`].
    pub reason: &'static str,
    /// What to approve, where that would help.
    pub approval: Option<String>,
    /// The policies that refused.
    pub policies: Vec<String>,
}

impl From<Inactive> for RpcRefused {
    fn from(inactive: Inactive) -> Self {
        let (reason, approval) = (inactive.as_str(), inactive.approval().map(str::to_owned));
        let policies = if let Inactive::Policy(policies) = inactive { policies } else { Vec::new() };
        Self { reason, approval, policies }
    }
}

/// Somebody who calls outside any session.
pub(super) struct Reaching<'a> {
    pub(super) spiffe_id: &'a SpiffeId,
    /// What the ledger has of what it showed; `None` where another node issued that.
    pub(super) row: Option<&'a Credential>,
    /// What that is worth.
    pub(super) binding: u8,
    /// Whether it proved this very request.
    pub(super) proof: bool,
}

/// Whether a WIT is of whoever called by TLS, if anybody did.
pub(super) fn is_of(peer: Option<&Peer>, spiffe_id: &SpiffeId) -> Result<(), Inactive> {
    match peer {
        Some(peer) if peer.spiffe_id != *spiffe_id => Err(Inactive::PeerOfAnother),
        _ => Ok(()),
    }
}

impl SessionView {
    /// Who acts in it, as policy sees it.
    pub(super) fn agent(&self) -> AgentFacts<'_> {
        AgentFacts { spiffe_id: &self.spiffe_id, entry: &self.entry, owner: &self.owner }
    }
}

/// The tool behind a request, or behind a call inside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    pub(super) tool: &'a str,
    pub(super) rpc: &'a str,
    /// In hex; empty when it is not known.
    pub(super) arguments_sha256: &'a str,
}

impl<'a> Named<'a> {
    fn facts(self, call: &'a Call) -> ToolFacts<'a> {
        ToolFacts {
            uri: call.target.uri.as_str(),
            method: call.target.method.as_str(),
            name: self.tool,
            rpc: self.rpc,
            arguments_sha256: self.arguments_sha256,
            kind: "wit",
        }
    }
}

impl Verifier {
    /// A request that came without a proof, from somebody whose certificate holds.
    pub(super) fn reached(&self, asker: &Asker, call: &Call, peer: &Peer) -> Result<Verified, Inactive> {
        let now = self.issuer.clock.now();
        call.is_bound(peer.binding)?;
        let caller =
            Reaching { spiffe_id: &peer.spiffe_id, row: peer.row.as_ref(), binding: peer.binding, proof: false };
        let (decided, rpcs) = self.reaches(asker, call, &caller, now)?;
        Ok(Verified {
            spiffe_id: peer.spiffe_id.clone(),
            binding: peer.binding,
            proven: false,
            token_id: peer.serial.clone(),
            proof_id: String::new(),
            made_at: now,
            expires_at: peer.not_after,
            thumbprint: peer.thumbprint.clone(),
            one_use: false,
            session: None,
            decided,
            rpcs,
        })
    }

    /// What policy says of a call outside any session.
    pub(super) fn reaches(
        &self,
        asker: &Asker,
        call: &Call,
        caller: &Reaching<'_>,
        now: OffsetDateTime,
    ) -> Result<(Option<Decided>, Vec<RpcVerdict>), Inactive> {
        call.without_session()?;
        // The node of the tool decides what reaches it.
        if asker.is_node {
            return Ok((None, Vec::new()));
        }
        let entry = caller.row.map(|row| row.entry.to_string()).unwrap_or_default();
        let index = self.issuer.registry.borrow().clone();
        let owner = caller.row.and_then(|row| index.entry(&row.entry)).and_then(|entry| entry.owner());
        let agent = AgentFacts { spiffe_id: caller.spiffe_id, entry: &entry, owner: owner.unwrap_or_default() };
        let ask = |named: Named<'_>, effect: Effect| {
            let facts = ReachFacts { proof: caller.proof, binding: caller.binding };
            let question = Question::reach(agent, named.facts(call), effect, facts, now);
            self.issuer.policy.reach(&question).map(|permit| Decided::of(effect, permit.into_decision()))
        };
        if call.rpcs.is_empty() {
            let arguments = call.arguments.map(|digest| digest.hex()).unwrap_or_default();
            let named = Named { tool: &call.tool, rpc: "", arguments_sha256: &arguments };
            let by_method = Effect::of_method(call.target.method.as_str());
            let said = call.effect.max(self.classified(agent, call, named, now));
            let effect = said.map_or(by_method, |said| said.max(by_method));
            return Ok((Some(ask(named, effect)?), Vec::new()));
        }
        let rpcs = call.rpcs.iter().map(|rpc| {
            let arguments = rpc.arguments.map(|digest| digest.hex()).unwrap_or_default();
            let named = Named { tool: &rpc.tool, rpc: &rpc.method, arguments_sha256: &arguments };
            let effect = rpc.effect(self.classified(agent, call, named, now));
            let outcome = ask(named, effect).map_err(|denial| Inactive::from(denial).into());
            RpcVerdict { effect, outcome, approved: false }
        });
        Ok((None, rpcs.collect()))
    }

    /// What policy says that a call of a tool does; nothing where no tool is named.
    pub(super) fn classified(
        &self,
        agent: AgentFacts<'_>,
        call: &Call,
        named: Named<'_>,
        now: OffsetDateTime,
    ) -> Option<Effect> {
        if named.tool.is_empty() {
            return None;
        }
        self.issuer.policy.effect_of(&Question::classify(agent, named.facts(call), now))
    }
}
