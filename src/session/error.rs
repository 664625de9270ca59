//! Why something about a session is refused.

use thiserror::Error;
use time::OffsetDateTime;

use super::live::Unusable;
use super::model::EndReason;
use crate::attest::LaunchError;
use crate::audit::AuditError;
use crate::base::durable::DurableError;
use crate::base::quota::Full;
use crate::bond::{BondError, Unheld};
use crate::held::HeldError;
use crate::issue::Refusal;
use crate::ledger::LedgerError;
use crate::policy::Denial;
use crate::session::approvals::ApprovalError;
use crate::user::UserError;

/// Why something about a session is refused. `api::status` alone turns it into a gRPC status.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The caller, or the process it names, gets nothing at all.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no such session, or none for this caller.
    #[error("there is no such session for this caller")]
    NotFound,
    /// The caller is in no session.
    #[error("the calling process is in no session: start one, name one, or run it with `tether run`")]
    InNone,
    /// The caller is in several, none inside the other.
    #[error("the calling process is in several sessions ({0}): name one")]
    Ambiguous(String),
    /// Same user, other process.
    #[error("the calling process is no member of the session: only {0} may use it")]
    NotMember(String),
    /// The process to act for is not there, or is another user's.
    #[error("there is no such process of the calling user: {0}")]
    NoProcess(String),
    /// A field of the request cannot be.
    #[error("`{field}` {why}")]
    Field {
        /// Which.
        field: &'static str,
        /// Why.
        why: String,
    },
    /// A child wants more than its parent has.
    #[error("`{field}` is more than the session above has: {why}")]
    Exceeds {
        /// What.
        field: &'static str,
        /// How.
        why: String,
    },
    /// The target is not one of the session's.
    #[error("`{0}` is not a target of the session: a session reaches what it was started for, and nothing else")]
    Target(String),
    /// The scope is not one of the session's.
    #[error("`{0}` is not a scope of the session")]
    Scope(String),
    /// Policy says no, or not yet.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// An approver must agree first.
    #[error("{why}: an approver must agree with `tether approval approve {approval}`")]
    StepUp {
        /// What waits for a decision.
        approval: String,
        /// What policy says to whoever approves.
        why: String,
    },
    /// It waits for an approval as a whole.
    #[error("the session waits for an approval: `tether approval list` shows it")]
    Pending,
    /// An operator suspended it.
    #[error("the session is suspended: an operator can resume it")]
    Suspended,
    /// It has ended.
    #[error("the session has ended ({}): what goes on is a new session", .0.as_str())]
    Ended(EndReason),
    /// More was wanted than the budget had: that ends the session.
    #[error("the budget of the session is spent ({0}): the session has ended")]
    Budget(&'static str),
    /// The session has as many tokens as one may have.
    #[error("the session has too many tokens that have not expired: wait until some have, or use what is there")]
    TooManyTokens,
    /// The token to prove with is not there: it never was one of this session, it was used, or it ended.
    #[error("the session has no such token that could be proven with: it was used, it ended, or it is not its own")]
    NoToken,
    /// The approval was withdrawn or ended meanwhile.
    #[error("approval `{0}` was withdrawn, or its time is over")]
    Withdrawn(String),
    /// Too many sessions.
    #[error("too many sessions")]
    TooMany(Full),
    /// The user cannot be proven.
    #[error(transparent)]
    User(#[from] UserError),
    /// What is launched cannot be measured.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It cannot be said who acts.
    #[error(transparent)]
    Bond(#[from] BondError),
    /// Who acts cannot be watched.
    #[error("whoever acts in the session cannot be watched")]
    Unheld(#[source] Unheld),
    /// The key cannot be made or used.
    #[error(transparent)]
    Held(#[from] HeldError),
    /// The approval cannot be had.
    #[error(transparent)]
    Approval(#[from] ApprovalError),
    /// It could not be written down, so it does not happen.
    #[error("the sessions cannot be written down")]
    Journal(#[source] DurableError),
    /// It could not be audited, so it does not happen.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The clock stands before what was written down.
    #[error("the clock stands before {0}, when the session began")]
    Clock(OffsetDateTime),
}

impl SessionError {
    /// A stable name for metrics, audit and callers.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.as_str(),
            Self::NotFound | Self::InNone => "no_session",
            Self::Ambiguous(_) => "ambiguous",
            Self::NotMember(_) => "not_member",
            Self::NoProcess(_) => "target",
            Self::Field { .. } => "field",
            Self::Exceeds { .. } => "exceeds_parent",
            Self::Target(_) => "target_not_in_session",
            Self::Scope(_) => "scope_not_in_session",
            Self::Denied(denial) => denial.as_str(),
            Self::StepUp { .. } => "step_up",
            Self::Pending => "session_pending",
            Self::Suspended => "session_suspended",
            Self::Ended(_) => "session_ended",
            Self::Budget(_) => "budget_spent",
            Self::TooManyTokens => "too_many_tokens",
            Self::NoToken => "no_token",
            Self::Withdrawn(_) => "approval_withdrawn",
            Self::TooMany(_) => "too_many",
            Self::User(error) => error.as_str(),
            Self::Launch(_) => "launch",
            Self::Bond(_) | Self::Unheld(_) => "bond",
            Self::Held(_) => "held",
            Self::Approval(_) => "approval",
            Self::Journal(_) => "journal",
            Self::Audit(_) => "audit",
            Self::Clock(_) => "clock",
        }
    }
}

impl From<LedgerError> for SessionError {
    fn from(error: LedgerError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<Unusable> for SessionError {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::Pending => Self::Pending,
            Unusable::Suspended => Self::Suspended,
            Unusable::Ended(reason) | Unusable::MustEnd(reason) => Self::Ended(reason),
        }
    }
}
