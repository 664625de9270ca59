//! Why a command failed: a message for a person and an exit code for a script.

use std::error::Error;
use std::io;

use tonic::{Code, Status};

use crate::base::durable::DurableError;
use crate::base::text::chain;
use crate::client::{ClientError, Endpoint};
use crate::config::Mistakes;
use crate::proto::{APPROVAL_METADATA, DENIAL_METADATA, SESSION_END_METADATA};

use super::output::identifier;

/// The exit codes scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok,
    /// Anything without a code of its own.
    Failure,
    /// The command line is wrong.
    Usage,
    /// The caller has no identity.
    NoIdentity,
    /// The agent cannot be reached or is not ready.
    Unreachable,
    /// Invalid or expired.
    Invalid,
    /// Denied.
    Denied,
    /// Waiting for an approval.
    Waiting,
    /// That of the command that was run.
    Command(u8),
}

impl Exit {
    /// The code.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NoIdentity => 3,
            Self::Unreachable => 4,
            Self::Invalid => 5,
            Self::Denied => 6,
            Self::Waiting => 7,
            Self::Command(code) => code,
        }
    }
}

/// A failed command.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the script learns.
    pub exit: Exit,
    /// What the person learns: what happened and what to do about it. Empty when everything was said already.
    pub message: String,
    /// Lines that follow the message: mistakes, what to type.
    pub more: Vec<String>,
}

impl Failure {
    /// A failure with an exit code and a message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), more: Vec::new() }
    }

    /// And these lines. A newline in the message itself is somebody else's, and does not begin a line.
    pub fn and(mut self, lines: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.more.extend(lines.into_iter().map(Into::into));
        self
    }

    /// All of it.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.message.as_str()).chain(self.more.iter().map(String::as_str))
    }

    /// An ending after which there is nothing left to say.
    pub fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// What the admin API answered instead of doing what it was asked.
    pub fn from_admin(endpoint: &Endpoint, status: &Status) -> Self {
        let message = status.message();
        if let Some(source) = status.source() {
            return Self::new(
                Exit::Unreachable,
                format!(
                    "cannot reach the agent at `{endpoint}`: {}; is it running, and may you open its socket?",
                    innermost(source)
                ),
            );
        }
        match status.code() {
            Code::Unavailable => Self::new(Exit::Unreachable, format!("the agent is not ready: {message}")),
            // It says why by itself: it is not for want of a role.
            Code::PermissionDenied if status.metadata().contains_key(DENIAL_METADATA) => {
                Self::new(Exit::Denied, format!("denied: {message}"))
            }
            Code::PermissionDenied | Code::Unauthenticated => Self::new(
                Exit::Denied,
                format!("denied: {message}; the groups under [admin] in the agent's configuration say who may do this"),
            ),
            // Mistakes in what was sent, one on each line.
            Code::InvalidArgument => {
                let mut mistakes = message.lines();
                Self::new(Exit::Invalid, mistakes.next().unwrap_or_default()).and(mistakes)
            }
            Code::Unimplemented => {
                Self::new(Exit::Failure, "the agent does not know this command; is it an older version?")
            }
            Code::NotFound | Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => {
                Self::new(Exit::Failure, message)
            }
            code => Self::new(Exit::Failure, format!("the agent failed ({code:?}): {message}")),
        }
    }
}

impl Failure {
    /// What the session services answered instead of doing what they were asked.
    pub fn from_session(endpoint: &Endpoint, status: &Status) -> Self {
        let message = status.message();
        let told = |name: &str| status.metadata().get(name).and_then(|value| value.to_str().ok());
        if status.source().is_none() {
            if let Some(approval) = told(APPROVAL_METADATA) {
                return Self::waiting(message, approval);
            }
            if told(SESSION_END_METADATA).is_some() {
                let advice = "begin one with `tether session start` or `tether run`";
                return Self::new(Exit::Invalid, format!("{message}; {advice}"));
            }
            match told(DENIAL_METADATA) {
                Some("session_pending") => return Self::new(Exit::Waiting, message),
                Some("no_session" | "ambiguous") => return Self::new(Exit::Failure, message),
                _ => {}
            }
            match status.code() {
                Code::NotFound | Code::FailedPrecondition | Code::ResourceExhausted => {
                    return Self::new(Exit::Failure, message);
                }
                Code::Unimplemented => {
                    let advice = "set `sessions.enabled` in its configuration";
                    return Self::new(Exit::Failure, format!("the agent does not offer sessions: {advice}"));
                }
                _ => {}
            }
        }
        ClientError::from_status(endpoint, status).into()
    }

    /// Somebody must agree first: what to do about it, to be copied.
    pub fn waiting(what: &str, approval: &str) -> Self {
        let approval = identifier(approval);
        let who = "somebody else must agree, as root or in a group under `approvers` of [admin]";
        Self::new(Exit::Waiting, what).and([format!("{who}:"), format!("  tether approval approve {approval}")])
    }
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Endpoint(_) => Exit::Usage,
            ClientError::Unreachable { .. } | ClientError::NotReady(_) => Exit::Unreachable,
            ClientError::NoIdentity(_) => Exit::NoIdentity,
            ClientError::Denied(_) => Exit::Denied,
            ClientError::Invalid(_) => Exit::Invalid,
            ClientError::NotOffered(_)
            | ClientError::Failed { .. }
            | ClientError::Malformed(_)
            | ClientError::Ended => Exit::Failure,
        };
        let advice = match exit {
            Exit::NoIdentity => "; `tether explain` shows which entries match a process and why the others do not",
            _ => "",
        };
        Self::new(exit, format!("{error}{advice}"))
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        Self::new(Exit::Invalid, "the configuration is wrong").and(mistakes.0.iter().map(ToString::to_string))
    }
}

impl From<DurableError> for Failure {
    fn from(error: DurableError) -> Self {
        Self::new(Exit::Failure, chain(&error))
    }
}

impl From<io::Error> for Failure {
    /// Of writing output. A reader that went away, as `head` does, has had what it wanted.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(Exit::Ok),
            _ => Self::new(Exit::Failure, format!("cannot write the output: {error}")),
        }
    }
}
