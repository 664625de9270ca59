//! What can go wrong between a workload and its agent.

use std::error::Error as _;

use thiserror::Error;
use tonic::{Code, Status};

use super::{Endpoint, EndpointError};
use crate::proto::DENIAL_METADATA;

/// The values of [`DENIAL_METADATA`] for a caller without an identity, or without the one it asked for.
const NO_IDENTITY: [&str; 2] = ["no_identity", "not_granted"];

/// Why a call to the Workload API gave nothing.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The endpoint's address is wrong or missing.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Nobody answered at the endpoint, or the connection broke.
    #[error("cannot reach the agent at `{endpoint}`: {reason}; is it running?")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// The innermost cause.
        reason: String,
    },
    /// The agent answers but cannot serve now: it is starting, or sheds load (`Unavailable`).
    #[error("the agent is not ready: {0}")]
    NotReady(String),
    /// The caller has no identity, or not the one it asked for (`PermissionDenied`).
    #[error("no identity: {0}")]
    NoIdentity(String),
    /// The caller has an identity, but what it asked for is denied to it (`PermissionDenied`).
    #[error("denied: {0}")]
    Denied(String),
    /// The agent says that the request is wrong (`InvalidArgument`); for a validation, that the token is.
    #[error("refused: {0}")]
    Invalid(String),
    /// The agent does not offer the call (`Unimplemented`).
    #[error("the agent does not offer this: {0}")]
    NotOffered(String),
    /// Any other status.
    #[error("the agent failed ({code:?}): {message}")]
    Failed {
        /// The status.
        code: Code,
        /// What it said.
        message: String,
    },
    /// What the agent sent is not what the standard says; the whole message is dropped (Workload API, section 4.5).
    #[error("the agent sent something that cannot be used: {0}")]
    Malformed(String),
    /// The agent ended a stream before it sent anything.
    #[error("the agent ended the stream without an answer")]
    Ended,
}

impl ClientError {
    /// Whether trying again later can help (Workload Endpoint, section 6): not when the request itself is wrong.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Endpoint(_) | Self::Invalid(_) | Self::NotOffered(_))
    }

    /// What a status of a call to `endpoint` means.
    pub fn from_status(endpoint: &Endpoint, status: &Status) -> Self {
        let message = status.message().to_owned();
        // A status the agent sent has no source; one the transport made up has the reason.
        if let Some(source) = status.source() {
            return Self::Unreachable { endpoint: endpoint.to_string(), reason: innermost(source) };
        }
        match status.code() {
            Code::Unavailable => Self::NotReady(message),
            Code::PermissionDenied => match status.metadata().get(DENIAL_METADATA) {
                Some(reason) if !NO_IDENTITY.iter().any(|none| reason == none) => Self::Denied(message),
                _ => Self::NoIdentity(message),
            },
            Code::InvalidArgument => Self::Invalid(message),
            Code::Unimplemented => Self::NotOffered(message),
            code => Self::Failed { code, message },
        }
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
