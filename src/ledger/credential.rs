//! What the ledger says of a credential.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::bond::{End, Tie};
use crate::id::SpiffeId;
use crate::peer::InstanceId;
use crate::registry::{Bind, Entry};

/// The kind of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// An X.509-SVID; its id is the serial number.
    X509,
    /// A JWT-SVID; its id is the `jti`.
    Jwt,
    /// A WIT-SVID; its id is the `jti`.
    Wit,
}

impl Kind {
    /// The name in the admin API and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
        }
    }

    /// The kind with this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::X509, Self::Jwt, Self::Wit].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Why a credential no longer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The process has exited.
    ProcessExited,
    /// The process runs another program.
    ExecutableChanged,
    /// The program of the process can no longer be seen.
    ExecutableHidden,
    /// The process changed, or its entry did, and the entry no longer matches it.
    NoLongerMatches,
    /// The systemd unit has stopped.
    UnitStopped,
    /// The cgroup has no process any more.
    CgroupEmpty,
    /// The entry was deleted.
    EntryGone,
    /// The entry was disabled.
    EntryDisabled,
    /// The entry has expired.
    EntryExpired,
    /// The authority that signed was revoked.
    AuthorityRevoked,
    /// An operator revoked it.
    Operator,
    /// The host was booted.
    Rebooted,
    /// The agent was restarted and the key it held is lost.
    AgentRestart,
    /// The session it belongs to has ended.
    SessionEnded,
    /// The approval it was minted by was withdrawn.
    ApprovalWithdrawn,
    /// Policy no longer permits it.
    PolicyDenied,
    /// It could not be recorded in the audit log, so it was not released.
    NotRecorded,
    /// The ledger was damaged or restored from a backup: whether it was revoked before is not known.
    LedgerRepaired,
}

impl From<End> for Reason {
    fn from(end: End) -> Self {
        match end {
            End::ProcessExited => Self::ProcessExited,
            End::ExecutableChanged => Self::ExecutableChanged,
            End::ExecutableHidden => Self::ExecutableHidden,
            End::CgroupEmpty => Self::CgroupEmpty,
            End::UnitStopped => Self::UnitStopped,
            End::Rebooted => Self::Rebooted,
        }
    }
}

impl Reason {
    pub(super) const ALL: [Self; 18] = [
        Self::ProcessExited,
        Self::ExecutableChanged,
        Self::ExecutableHidden,
        Self::NoLongerMatches,
        Self::UnitStopped,
        Self::CgroupEmpty,
        Self::EntryGone,
        Self::EntryDisabled,
        Self::EntryExpired,
        Self::AuthorityRevoked,
        Self::Operator,
        Self::Rebooted,
        Self::AgentRestart,
        Self::SessionEnded,
        Self::ApprovalWithdrawn,
        Self::PolicyDenied,
        Self::NotRecorded,
        Self::LedgerRepaired,
    ];

    /// The name in the admin API, the command line, metrics and audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProcessExited => "process_exited",
            Self::ExecutableChanged => "executable_changed",
            Self::ExecutableHidden => "executable_hidden",
            Self::NoLongerMatches => "no_longer_matches",
            Self::UnitStopped => "unit_stopped",
            Self::CgroupEmpty => "cgroup_empty",
            Self::EntryGone => "entry_gone",
            Self::EntryDisabled => "entry_disabled",
            Self::EntryExpired => "entry_expired",
            Self::AuthorityRevoked => "authority_revoked",
            Self::Operator => "operator",
            Self::Rebooted => "rebooted",
            Self::AgentRestart => "agent_restart",
            Self::SessionEnded => "session_ended",
            Self::ApprovalWithdrawn => "approval_withdrawn",
            Self::PolicyDenied => "policy_denied",
            Self::NotRecorded => "not_recorded",
            Self::LedgerRepaired => "ledger_repaired",
        }
    }

    /// The reason with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Whether the process that holds the credential may be alive and waiting for news.
    pub(super) fn may_meet_the_living(self) -> bool {
        !matches!(self, Self::ProcessExited | Self::ExecutableChanged | Self::ExecutableHidden | Self::Rebooted)
    }
}

/// Whether a credential is good as far as this node knows. Its own end in time is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Stands,
    /// It is good for one use and had it.
    Used,
    /// It ended.
    Ended {
        /// Why.
        reason: Reason,
        /// When.
        at: OffsetDateTime,
    },
    /// It was not issued by this node, or ended by itself a while ago.
    Unknown,
}

/// A credential that is about to be released.
#[derive(Clone, Debug)]
pub struct Issued<'a> {
    /// The serial number in lower-case hex, or the `jti`.
    pub id: &'a str,
    /// What it is.
    pub kind: Kind,
    /// For whom.
    pub spiffe_id: &'a SpiffeId,
    /// What it was issued by.
    pub entry: &'a Entry,
    /// Whom it is for; none for certificates and WITs.
    pub audience: &'a [String],
    /// Which authority signed.
    pub authority: &'a str,
    /// The binding level: 0 bearer, 1 key in the workload, 2 key held by tether, 3 also checked at each use.
    pub binding: u8,
    /// Whether tether holds the key: nobody can use it without tether.
    pub held: bool,
    /// Since when.
    pub issued_at: OffsetDateTime,
    /// Until when.
    pub not_after: OffsetDateTime,
    /// The holder's user id.
    pub uid: u32,
    /// Whether it is good for one use.
    pub single_use: bool,
    /// Who asked in the name of the instance.
    pub delegate: Option<InstanceId>,
}

/// A credential as the inventory shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The serial number in lower-case hex, or the `jti`.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// For whom.
    pub spiffe_id: String,
    /// The registration entry it was issued by.
    pub entry: String,
    /// The entry's owner; empty when it has none.
    pub owner: String,
    /// Whom it is for.
    pub audience: Vec<String>,
    /// Who holds it.
    pub instance: InstanceId,
    /// The holder's process number.
    pub pid: i32,
    /// The holder's user id when it was issued.
    pub uid: u32,
    /// The binding level.
    pub binding: u8,
    /// Whose end revokes it.
    pub bind: Bind,
    /// The same, precisely.
    pub tie: Tie,
    /// Whether tether holds the key.
    pub held: bool,
    /// Whether it is good for one use.
    pub single_use: bool,
    /// Which authority signed.
    pub authority: String,
    /// Since when.
    pub issued_at: OffsetDateTime,
    /// Until when.
    pub not_after: OffsetDateTime,
    /// Whether it is good.
    pub standing: Standing,
    /// When a verifier last asked about it, since the agent was started.
    pub last_asked: Option<OffsetDateTime>,
    /// Who asked for it in the name of the holder.
    pub delegate: Option<String>,
}

/// A line for a CRL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedCertificate {
    /// The serial number in lower-case hex.
    pub serial: String,
    /// Since when.
    pub at: OffsetDateTime,
    /// When it would have ended by itself.
    pub not_after: OffsetDateTime,
    /// Why.
    pub reason: Reason,
}
