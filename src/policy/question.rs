//! What policy is asked, and what it says: plain values, so that every surface asks in the same words.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use crate::id::SpiffeId;
use crate::user::User;

/// What a call does. Ordered: a call is as grave as the gravest that anybody says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Changes nothing.
    Read,
    /// Changes something that can be changed back.
    Write,
    /// Cannot be undone.
    Irreversible,
}

impl Effect {
    /// What a method does at least, by HTTP (RFC 9110, section 9.2.1): safe methods read.
    pub fn of_method(method: &str) -> Self {
        match method {
            "GET" | "HEAD" | "OPTIONS" | "TRACE" => Self::Read,
            _ => Self::Write,
        }
    }

    /// The name in policies, tokens and audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Irreversible => "irreversible",
        }
    }

    /// The effect with this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Read, Self::Write, Self::Irreversible].into_iter().find(|effect| effect.as_str() == name)
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Issue a credential to an instance.
    Issue,
    /// Begin a session.
    Start,
    /// Begin a child session.
    Delegate,
    /// Mint a token of a session for a target.
    Mint,
    /// Call a tool: decided when the request is proven, and again when the tool asks.
    Call(Effect),
    /// Call a tool outside any session: decided when the tool asks.
    Reach(Effect),
    /// Say what a call of a tool does: no permission, but an effect.
    Classify,
}

impl Action {
    /// The name in approvals and audit: `issue`, `start`, `delegate`, `mint`, `call`, `reach`, `classify`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Issue => "issue",
            Self::Start => "start",
            Self::Delegate => "delegate",
            Self::Mint => "mint",
            Self::Call(_) => "call",
            Self::Reach(_) => "reach",
            Self::Classify => "classify",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The agent that acts: Cedar's principal.
#[derive(Clone, Copy, Debug)]
pub struct AgentFacts<'a> {
    /// Its identity.
    pub spiffe_id: &'a SpiffeId,
    /// The registration entry; empty where another node vouches for it.
    pub entry: &'a str,
    /// Who answers for that entry; empty for nobody.
    pub owner: &'a str,
}

/// What is to be issued.
#[derive(Clone, Copy, Debug)]
pub struct IssueFacts<'a> {
    /// `x509`, `jwt` or `wit`.
    pub kind: &'a str,
    /// The audiences of a JWT-SVID.
    pub audience: &'a [String],
    /// The binding level.
    pub binding: u8,
}

/// The session it happens in: the one that is to begin, or the one that stands.
#[derive(Clone, Copy, Debug)]
pub struct SessionFacts<'a> {
    /// Its id.
    pub id: &'a str,
    /// The session above.
    pub parent: Option<&'a str>,
    /// How many are above it.
    pub depth: u32,
    /// What for.
    pub purpose: &'a str,
    /// Where to.
    pub targets: &'a [String],
    /// What of.
    pub scopes: &'a [String],
    /// `tool_call`, `request` or `task`.
    pub boundary: &'a str,
    /// The binding level.
    pub binding: u8,
    /// How long it lasts in all.
    pub lifetime: Duration,
    /// Tokens minted so far, and calls proven.
    pub tokens: u32,
    /// Calls proven so far.
    pub calls: u32,
    /// The limits of both; 0 without limit.
    pub max_tokens: u32,
    /// See `max_tokens`.
    pub max_calls: u32,
    /// `launch:*` selectors of what was launched, whole (`launch:sha256:...`).
    pub launched: &'a [String],
}

/// How a caller outside any session showed who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReachFacts {
    /// Whether a proof came with this very request; else TLS alone says who it is.
    pub proof: bool,
    /// The binding level of what it showed.
    pub binding: u8,
}

/// Where to: Cedar's resource of `mint`, `call`, `reach` and `classify`.
#[derive(Clone, Copy, Debug)]
pub struct ToolFacts<'a> {
    /// The URI, or the audience of a bearer token.
    pub uri: &'a str,
    /// The request's method; empty for `mint`.
    pub method: &'a str,
    /// The tool's name behind the URI; empty when there is none.
    pub name: &'a str,
    /// The method of the call inside the request (JSON-RPC), such as `tools/call`; empty when there is none.
    pub rpc: &'a str,
    /// SHA-256 of its arguments in hex; empty when it is not known.
    pub arguments_sha256: &'a str,
    /// What a token that is minted is: `wit` or `jwt`; `wit` for calls.
    pub kind: &'a str,
}

/// One question. What an action has no use for is `None`.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// What is to be done.
    pub action: Action,
    /// By whom.
    pub agent: AgentFacts<'a>,
    /// For whom.
    pub user: Option<&'a User>,
    /// In which session; `None` for what is done outside any.
    pub session: Option<SessionFacts<'a>>,
    /// `Issue`: what.
    pub issue: Option<IssueFacts<'a>>,
    /// `Mint`, `Call`, `Reach` and `Classify`: where to.
    pub tool: Option<ToolFacts<'a>>,
    /// `Reach`: how the caller showed who it is.
    pub reach: Option<ReachFacts>,
    /// Whether an approver agreed to exactly this.
    pub approved: bool,
    /// When.
    pub now: OffsetDateTime,
}

impl<'a> Question<'a> {
    /// Whether to issue a credential outside sessions, or to go on with it.
    pub fn issue(agent: AgentFacts<'a>, issue: IssueFacts<'a>, now: OffsetDateTime) -> Self {
        Self { issue: Some(issue), ..Self::of(Action::Issue, agent, now) }
    }

    /// Whether a tool may be called outside any session.
    pub fn reach(
        agent: AgentFacts<'a>,
        tool: ToolFacts<'a>,
        effect: Effect,
        reach: ReachFacts,
        now: OffsetDateTime,
    ) -> Self {
        Self { tool: Some(tool), reach: Some(reach), ..Self::of(Action::Reach(effect), agent, now) }
    }

    /// What a call of a tool does.
    pub fn classify(agent: AgentFacts<'a>, tool: ToolFacts<'a>, now: OffsetDateTime) -> Self {
        Self { tool: Some(tool), ..Self::of(Action::Classify, agent, now) }
    }

    fn of(action: Action, agent: AgentFacts<'a>, now: OffsetDateTime) -> Self {
        Self { action, agent, user: None, session: None, issue: None, tool: None, reach: None, approved: false, now }
    }
}

/// What goes with a permission: the union over all policies that permitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Obligations {
    /// A person must agree first (`@step_up("why")`), with the reasons given.
    pub step_up: Option<String>,
    /// The token is good for one call (`@one_use`).
    pub one_use: bool,
    /// Fields to leave out of logs (`@redact("purpose,user")`).
    pub redact: BTreeSet<String>,
    /// How old the last word of an unreachable node may be (`@stale("30s")`), for reads alone; the shortest named.
    pub stale: Option<Duration>,
    /// `Classify`: what the call does (`@effect("read")`); the gravest named.
    pub effect: Option<Effect>,
}

/// What policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is permitted. With `obligations.step_up` and without approval it is not, yet.
    pub allowed: bool,
    /// What goes with it.
    pub obligations: Obligations,
    /// The policies that decided, by id.
    pub policies: Arc<[String]>,
    /// Policies that could not be evaluated, with why. A `forbid` among them makes it a refusal.
    pub errors: Vec<String>,
    /// SHA-256 of the set that decided, in hex.
    pub set: Arc<str>,
}
