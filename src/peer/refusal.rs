//! Why a connection is not served, as one closed list for logs, metrics, audit and tests.

use std::sync::Arc;

use thiserror::Error;

use super::conn::ConnId;
use super::id::InstanceId;
use super::instance::{InstanceEnd, LookError};
use super::instances::InstanceError;
use super::wire::{ErrorCode, WireError};

/// Why a connection was refused or cut. The text is fit for the client: it is the debug text of the GOAWAY frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The caller's user, or all users together, have as many connections open as the limits allow.
    #[error("too many connections are open{}; close some, or raise `{limit}` in [limits]", of_whom(*.of_user))]
    TooManyConnections {
        /// Whether it is the user's limit and not the one of all users together.
        of_user: bool,
        /// The name of the limit.
        limit: &'static str,
    },
    /// As many processes of the caller's user, or of all users together, are held as the limits allow: those with open
    /// connections, and those that hold credentials.
    #[error(
        "too many processes{} hold connections or credentials; end some, or raise `{limit}` in [limits]",
        if *.of_user { " of this user" } else { "" }
    )]
    TooManyProcesses {
        /// Whether it is the user's limit and not the one of all users together.
        of_user: bool,
        /// The name of the limit.
        limit: &'static str,
    },
    /// The caller is in a pid namespace that ours does not contain: the kernel cannot name it to us.
    #[error("the calling process is not visible in the agent's pid namespace; run the agent in the host's")]
    OutsidePidNamespace,
    /// What has to be known of the caller could not be found out.
    #[error("the calling process could not be identified: {0}")]
    Unidentified(String),
    /// Bytes came from another process than the one that connected, or from one that the kernel cannot name.
    #[error("bytes came from another process than the one that connected; connect anew in each process, after fork")]
    SenderChanged {
        /// Who sent them; not part of the text.
        sender: Option<i32>,
    },
    /// Descriptors or other control data were sent along.
    #[error("descriptors cannot be sent on this socket")]
    DescriptorsPassed,
    /// The process that connected runs another program now.
    #[error("the calling process has executed another program since it connected; connect anew")]
    ExecutableChanged,
    /// The process that connected has exited, and somebody else still holds its end of the connection.
    #[error("the process that connected has exited")]
    CallerGone,
    /// The caller did not open this connection itself, as far as can be told. Only entries that match on the
    /// executable mind, so this refuses an entry and not the connection.
    #[error("the connection is not held close-on-exec by the calling process alone: {0}")]
    NotCloseOnExec(String),
    /// The caller did not answer the challenge in time, or sent nothing at all.
    #[error("the HTTP/2 PING that proves who is calling was not answered in time")]
    ChallengeTimeout,
    /// The bytes are not HTTP/2 that this agent accepts.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The connection was closed before it was proven who is calling. The ordinary end of a short connection: it is
    /// not reported to the observer.
    #[error("the connection was closed before it was proven who is calling")]
    Closed,
}

fn of_whom(of_user: bool) -> &'static str {
    if of_user { " by this user" } else { "" }
}

impl Refusal {
    /// A label of a small fixed set, for metrics and audit.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::TooManyConnections { .. } => "too_many_connections",
            Self::TooManyProcesses { .. } => "too_many_processes",
            Self::OutsidePidNamespace => "outside_pid_namespace",
            Self::Unidentified(_) => "unidentified",
            Self::SenderChanged { .. } => "sender_changed",
            Self::DescriptorsPassed => "descriptors_passed",
            Self::ExecutableChanged => "executable_changed",
            Self::CallerGone => "caller_gone",
            Self::NotCloseOnExec(_) => "not_close_on_exec",
            Self::ChallengeTimeout => "challenge_timeout",
            Self::Wire(_) => "wire",
            Self::Closed => "closed",
        }
    }

    /// The error code to send with GOAWAY (RFC 9113 section 7).
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::TooManyConnections { .. } | Self::TooManyProcesses { .. } | Self::ChallengeTimeout => {
                ErrorCode::EnhanceYourCalm
            }
            Self::Wire(error) => error.code(),
            Self::Closed => ErrorCode::NoError,
            Self::Unidentified(_) => ErrorCode::InternalError,
            Self::OutsidePidNamespace
            | Self::SenderChanged { .. }
            | Self::DescriptorsPassed
            | Self::ExecutableChanged
            | Self::CallerGone
            | Self::NotCloseOnExec(_) => ErrorCode::InadequateSecurity,
        }
    }
}

impl From<LookError> for Refusal {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Ended(end) => end.into(),
            LookError::Unseen(source) => Self::Unidentified(source.to_string()),
        }
    }
}

impl From<InstanceEnd> for Refusal {
    fn from(end: InstanceEnd) -> Self {
        match end {
            InstanceEnd::Exited => Self::CallerGone,
            InstanceEnd::ExecutableChanged | InstanceEnd::ExecutableHidden => Self::ExecutableChanged,
        }
    }
}

impl From<InstanceError> for Refusal {
    fn from(error: InstanceError) -> Self {
        match error {
            InstanceError::Gone => Self::CallerGone,
            InstanceError::OutsidePidNamespace => Self::OutsidePidNamespace,
            InstanceError::Io { ref source, .. } => Self::Unidentified(format!("{error}: {source}")),
            InstanceError::AnotherProcess { .. } | InstanceError::NoInodes => Self::Unidentified(error.to_string()),
        }
    }
}

/// Whom a refusal is about, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// The connection.
    pub connection: ConnId,
    /// The process that connected, at that time.
    pub pid: i32,
    /// Its effective user id, at that time.
    pub uid: u32,
    /// Its effective group id, at that time.
    pub gid: u32,
    /// Its instance, once that was established.
    pub instance: Option<InstanceId>,
}

/// Told of every refusal, once: log, metric and audit are made from it. It is called in the middle of I/O and must not
/// block.
pub type Observer = Arc<dyn Fn(&Refusal, &PeerInfo) + Send + Sync>;
