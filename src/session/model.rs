//! What a session is: values, without behaviour.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::bond::Tie;
use crate::id::SpiffeId;
use crate::peer::InstanceId;
use crate::user::User;

/// A session's name: `NODE.RANDOM`, 128 random bits in hex. It is no credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// The session `random` of `node`.
    pub(super) fn new(node: &str, random: &str) -> Self {
        Self(format!("{node}.{random}").into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for SessionId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a session stands. There is no way back from the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing is signed until an approver agreed.
    PendingApproval,
    /// It may be used.
    Active,
    /// Nothing is signed and nothing stands until an operator resumes it.
    Suspended,
    /// For good, and why.
    Ended(EndReason),
}

impl State {
    /// `pending_approval`, `active`, `suspended` or `ended`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PendingApproval => "pending_approval",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Ended(_) => "ended",
        }
    }

    /// Why it ended.
    pub fn end_reason(self) -> Option<EndReason> {
        if let Self::Ended(reason) = self { Some(reason) } else { None }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its user id ended it: the task is done.
    Completed,
    /// Its time is over.
    Expired,
    /// The process, or the launcher above it, has exited.
    ProcessExit,
    /// The process runs another program.
    ProcessChanged,
    /// Its cgroup has no process any more.
    CgroupEmpty,
    /// The user has logged out, or the user's token has ended.
    UserSessionEnd,
    /// No sign of life in time.
    HeartbeatLost,
    /// The approval that allowed it was withdrawn or has expired.
    ApprovalRevoked,
    /// The registration entry is gone, or no longer matches.
    IdentityDisabled,
    /// The authority that signed for it was revoked.
    TrustMoved,
    /// Policy no longer allows it, or an approver said no.
    PolicyDenied,
    /// More was wanted than the budget had.
    BudgetSpent,
    /// The session above ended.
    ParentEnded,
    /// An operator ended it.
    Operator,
    /// The agent was restarted, and its key could not be kept.
    AgentRestart,
    /// The clock was set back: what lasts until a time would last longer.
    ClockSetBack,
}

impl EndReason {
    /// Whether a restart would find it out again: whoever is dead stays dead, so nothing has to be synced for that.
    pub(super) fn is_seen_again(self) -> bool {
        matches!(self, Self::ProcessExit | Self::ProcessChanged | Self::CgroupEmpty)
    }

    /// The name in the API, the command line, metrics and audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::ProcessExit => "process_exit",
            Self::ProcessChanged => "process_changed",
            Self::CgroupEmpty => "cgroup_empty",
            Self::UserSessionEnd => "user_session_end",
            Self::HeartbeatLost => "heartbeat_lost",
            Self::ApprovalRevoked => "approval_revoked",
            Self::IdentityDisabled => "identity_disabled",
            Self::TrustMoved => "trust_moved",
            Self::PolicyDenied => "policy_denied",
            Self::BudgetSpent => "budget_spent",
            Self::ParentEnded => "parent_ended",
            Self::Operator => "operator",
            Self::AgentRestart => "agent_restart",
            Self::ClockSetBack => "clock_set_back",
        }
    }
}

/// What a session is limited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boundary {
    /// Every token is good for one call.
    ToolCall,
    /// One request of the user.
    Request,
    /// One task.
    Task,
}

impl Boundary {
    /// The name in policies, tokens and audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ToolCall => "tool_call",
            Self::Request => "request",
            Self::Task => "task",
        }
    }
}

/// Who may act in a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Members {
    /// One program in one process.
    Process(InstanceId),
    /// Every process in a cgroup and below.
    Cgroup(Tie),
    /// A process and its descendants.
    Tree(InstanceId),
}

/// How often; 0 is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Tokens that may be minted.
    pub max_tokens: u32,
    /// Requests that may be proven.
    pub max_calls: u32,
}

/// What a session was begun with: it never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Its name.
    pub id: SessionId,
    /// The session above.
    pub parent: Option<SessionId>,
    /// How many are above it.
    pub depth: u32,
    /// The agent.
    pub spiffe_id: SpiffeId,
    /// The registration entry that gives the identity.
    pub entry: String,
    /// Who answers for that entry.
    pub owner: String,
    /// Who may act.
    pub members: Members,
    /// The process it was started for.
    pub pid: i32,
    /// The user id of whoever acts. The same user may look and end.
    pub uid: u32,
    /// The launcher or supervisor whose exit ends it too.
    pub supervisor: Option<(InstanceId, i32)>,
    /// The person it acts for.
    pub user: Option<User>,
    /// What for.
    pub purpose: String,
    /// SHA-256 of the task in words, in hex; empty when unknown.
    pub task_sha256: String,
    /// Where to: URI prefixes, or audiences of bearer tokens.
    pub targets: Vec<String>,
    /// What of.
    pub scopes: Vec<String>,
    /// What it is limited to.
    pub boundary: Boundary,
    /// How often.
    pub budget: Budget,
    /// Without a sign of life for so long it ends.
    pub heartbeat: Option<Duration>,
    /// 2 or 3: what its proofs are worth.
    pub binding: u8,
    /// `launch:*` selectors of what was launched.
    pub launched: Vec<String>,
    /// When it began.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub started_at: OffsetDateTime,
    /// When it ends at the latest: never after its parent, its user's token, its entry or its approval.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub expires_at: OffsetDateTime,
    /// The ended session it goes on with.
    pub resumes: Option<String>,
    /// The agents behind it, the nearest first: of sessions that were delegated.
    pub delegated_by: Vec<SpiffeId>,
}
