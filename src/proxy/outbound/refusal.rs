//! What a program is told when its request goes nowhere.
//!
//! Never a status that asks it for credentials (401, 407): it has none, and is not to have any.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use thiserror::Error;

use super::super::mcp::{Answer, Malformed};
use super::super::{Body, UpstreamError, full};
use super::caller::NotCaller;
use super::target::Misdirected;
use crate::client::ClientError;
use crate::client::session::SessionError;
use crate::client::tls::SourceError;
use crate::client::verifier::{Class, Refused};

/// Why a request is answered by the proxy itself.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    /// It is for another place.
    #[error(transparent)]
    Misdirected(#[from] Misdirected),
    /// `TRACE` would send back what the program is not to see; `CONNECT` would go through unseen.
    #[error("the method is not passed on")]
    Method,
    /// It is not known any more who is asking.
    #[error("the program on the other end is not, or not any more, the one that connected")]
    Caller(#[from] NotCaller),
    /// The body is to be read whole, and is longer than what is.
    #[error("the body is longer than {0} bytes, which is as much as is covered by a proof")]
    TooLarge(usize),
    /// The body is no message that an MCP server and this proxy read alike.
    #[error("the body is no message of MCP")]
    Message(#[from] Malformed),
    /// The program stopped sending.
    #[error("the body of the request is incomplete")]
    Incomplete,
    /// The agent says no.
    #[error("{message}")]
    Denied {
        /// Which rule, by its stable name.
        label: String,
        /// What the agent said.
        message: String,
    },
    /// A person has to agree first.
    #[error("{message}")]
    StepUp {
        /// What to approve.
        approval: String,
        /// What the agent said.
        message: String,
    },
    /// The program's session has ended, and its connections with it.
    #[error("the session has ended: {0}")]
    SessionEnded(String),
    /// Not in the state the session is in.
    #[error("{0}")]
    NotNow(String),
    /// The agent is away, and stayed away.
    #[error("the agent cannot be reached")]
    AgentAway(#[source] Option<ClientError>),
    /// The agent answered in a way that trying again does not change, and that says nothing about the program.
    #[error("the agent cannot do this")]
    Agent(#[source] ClientError),
    /// What the target answered says that it does not take what was presented for the program.
    #[error("the target does not take the credential it was shown for this program (it answered 401)")]
    NotTaken,
    /// There is no answer from the target.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

impl Refusal {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Misdirected(Misdirected::Elsewhere { .. }) => StatusCode::MISDIRECTED_REQUEST,
            Self::Misdirected(_) | Self::Incomplete | Self::Message(_) => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Caller(_)
            | Self::Denied { .. }
            | Self::StepUp { .. }
            | Self::SessionEnded(_)
            | Self::NotNow(_)
            | Self::NotTaken => StatusCode::FORBIDDEN,
            Self::AgentAway(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Agent(_) => StatusCode::BAD_GATEWAY,
            Self::Upstream(error) => error.status(),
        }
    }

    /// Its stable name.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Misdirected(Misdirected::Elsewhere { .. }) => "misdirected",
            Self::Misdirected(Misdirected::Unclear) => "host",
            Self::Misdirected(Misdirected::Path(_)) => "path",
            Self::Method => "method",
            Self::Caller(_) => "caller",
            Self::TooLarge(_) => "too_large",
            Self::Message(_) => "message",
            Self::Incomplete => "incomplete",
            Self::Denied { .. } => "denied",
            Self::StepUp { .. } => "step_up",
            Self::SessionEnded(_) => "session_ended",
            Self::NotNow(_) => "not_now",
            Self::AgentAway(_) => "unavailable",
            Self::Agent(_) => "agent",
            Self::NotTaken => "not_taken",
            Self::Upstream(error) => error.as_str(),
        }
    }

    /// More exactly: which rule, or what went wrong, in words.
    fn reason(&self) -> String {
        match self {
            Self::Denied { label, .. } => label.clone(),
            Self::SessionEnded(reason) => reason.clone(),
            // Causes may name what is inside this host, and are for the log.
            other => other.to_string(),
        }
    }

    /// What an MCP server would say, where it would have decided the same.
    pub(super) fn of_call(&self) -> Option<Refused> {
        let class = match self {
            Self::StepUp { .. } => Class::StepUp,
            Self::Caller(_) | Self::Denied { .. } | Self::SessionEnded(_) | Self::NotNow(_) => Class::Forbidden,
            Self::AgentAway(_) => Class::Unavailable,
            _ => return None,
        };
        Some(Refused { class, reason: self.reason(), approval: self.approval().map(str::to_owned) })
    }

    fn approval(&self) -> Option<&str> {
        match self {
            Self::StepUp { approval, .. } => Some(approval),
            _ => None,
        }
    }

    /// `{"error","reason"}`, and `approval` where there is one to ask for.
    pub(super) fn response(&self) -> Response<Body> {
        if let Self::Message(malformed) = self {
            return answered(malformed.answer());
        }
        let mut body = serde_json::json!({ "error": self.as_str(), "reason": self.reason() });
        if let Some(approval) = self.approval() {
            body["approval"] = approval.into();
        }
        let mut response = Response::new(full(format!("{body}\n")));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// What is answered in place of an MCP server.
pub(super) fn answered(answer: Answer) -> Response<Body> {
    Response::<Bytes>::from(answer).map(full)
}

impl From<SessionError> for Refusal {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::WaitingForApproval { approval, message } => Self::StepUp { approval, message },
            SessionError::Ended { reason, .. } => Self::SessionEnded(reason),
            SessionError::NotNow(message) => Self::NotNow(message),
            SessionError::Denied { label, message } => Self::Denied { label, message },
            SessionError::NotFound(message) => Self::Denied { label: "not_found".to_owned(), message },
            SessionError::Exhausted(message) => Self::Denied { label: "exhausted".to_owned(), message },
            SessionError::Agent(error) => error.into(),
        }
    }
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NoIdentity(message) => Self::Denied { label: "no_identity".to_owned(), message },
            ClientError::Denied(message) => Self::Denied { label: "denied".to_owned(), message },
            away if is_away(&away) => Self::AgentAway(Some(away)),
            other => Self::Agent(other),
        }
    }
}

impl From<SourceError> for Refusal {
    fn from(error: SourceError) -> Self {
        let SourceError::Refused(error) = error else { return Self::AgentAway(None) };
        match &*error {
            ClientError::NoIdentity(message) => {
                Self::Denied { label: "no_identity".to_owned(), message: message.clone() }
            }
            refused => Self::Denied { label: "denied".to_owned(), message: refused.to_string() },
        }
    }
}

/// Whether the agent may answer when it is asked again.
pub(super) fn is_away(error: &ClientError) -> bool {
    matches!(error, ClientError::Unreachable { .. } | ClientError::NotReady(_) | ClientError::Ended)
}
