//! What a client is told when its request goes no further.

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde_json::json;

use super::super::body::{Body, full};
use super::super::mcp::{Answer, Message};
use super::super::upstream::UpstreamError;
use super::public::Misdirected;
use crate::client::verifier::{Class, Refused};

/// Reasons that would tell a thief whether what was stolen is known to be: they stay in the log here and in the agent's
/// audit, and the client is told `unproven`.
const KEPT: [&str; 11] = [
    "wit_invalid",
    "proof_invalid",
    "proof_of_another_token",
    "another_node",
    "node_unknown",
    "unknown",
    "revoked",
    "ended",
    "unseen",
    "peer",
    "peer_of_another",
];

/// Why a request goes no further.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is for nothing here.
    Misdirected(Misdirected),
    /// The agent says no.
    Refused(Refused),
    /// There is no word of the agent.
    Unchecked,
    /// The body is larger than the part of it that must be read.
    TooLarge,
    /// There is no room to read it.
    Busy,
    /// The client stopped sending, or took too long.
    Incomplete,
    /// The upstream gives no answer.
    Upstream(UpstreamError),
    /// In the words of MCP.
    Answered {
        /// Its stable name.
        outcome: &'static str,
        /// The answer.
        answer: Answer,
    },
}

impl Refusal {
    /// A refusal for `reason` that needs no agent.
    pub(super) fn unproven(reason: &str) -> Self {
        Self::Refused(Refused { class: Class::Unproven, reason: reason.to_owned(), approval: None })
    }

    /// The same, in the words of MCP, to who sent `message`.
    pub(super) fn to(self, message: &Message) -> Self {
        let told = match &self {
            Self::Refused(refused) => Refused { reason: self.told().to_owned(), ..refused.clone() },
            Self::Unchecked => Refused { class: Class::Unavailable, reason: self.reason().to_owned(), approval: None },
            _ => return self,
        };
        Self::Answered { outcome: self.as_str(), answer: message.refused(&told) }
    }

    /// The reason, as the client may know it.
    fn told(&self) -> &str {
        Some(self.reason()).filter(|reason| !KEPT.contains(reason)).unwrap_or("unproven")
    }

    /// Its stable name, in metrics and as `error`.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Misdirected(_) => "misdirected",
            Self::Refused(refused) => refused.class.as_str(),
            Self::Unchecked | Self::Busy => Class::Unavailable.as_str(),
            Self::TooLarge => "too_large",
            Self::Incomplete => "incomplete",
            Self::Upstream(error) => error.as_str(),
            Self::Answered { outcome, .. } => outcome,
        }
    }

    /// What the log has.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Misdirected(why) => why.as_str(),
            Self::Refused(refused) => &refused.reason,
            Self::Unchecked => "agent_away",
            Self::Busy => "busy",
            Self::TooLarge | Self::Incomplete | Self::Upstream(_) | Self::Answered { .. } => self.as_str(),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Misdirected(why) => why.status(),
            Self::Refused(refused) => match refused.class {
                Class::Unproven => StatusCode::UNAUTHORIZED,
                Class::Forbidden | Class::StepUp => StatusCode::FORBIDDEN,
                Class::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            },
            Self::Unchecked | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Incomplete => StatusCode::BAD_REQUEST,
            Self::Upstream(error) => error.status(),
            Self::Answered { answer, .. } => answer.status,
        }
    }

    /// The answer.
    pub(super) fn response(&self) -> Response<Body> {
        let mut body = json!({ "error": self.as_str(), "reason": self.told() });
        if let Self::Refused(Refused { approval: Some(approval), .. }) = self {
            body["approval"] = approval.as_str().into();
        }
        let mut response = Response::new(match self {
            Self::Answered { answer, .. } => full(answer.body.clone()),
            _ => full(body.to_string()),
        });
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self.status() {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("WPT"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_client_learns_what_to_do_next_and_a_thief_not_whether_the_theft_is_known() {
        let refused = |class, reason: &str| {
            let approval = (class == Class::StepUp).then(|| "a-1".to_owned());
            Refusal::Refused(Refused { class, reason: reason.to_owned(), approval })
        };
        let cases = [
            (refused(Class::Forbidden, "policy"), 403, r#"{"error":"forbidden","reason":"policy"}"#),
            (refused(Class::StepUp, "step_up"), 403, r#"{"error":"step_up","reason":"step_up","approval":"a-1"}"#),
            (refused(Class::Unproven, "replayed"), 401, r#"{"error":"unproven","reason":"replayed"}"#),
            (refused(Class::Unproven, "revoked"), 401, r#"{"error":"unproven","reason":"unproven"}"#),
            (Refusal::Unchecked, 503, r#"{"error":"unavailable","reason":"agent_away"}"#),
            (Refusal::Misdirected(Misdirected::AnotherHost), 421, r#"{"error":"misdirected","reason":"another_host"}"#),
            (Refusal::Upstream(UpstreamError::Slow), 504, r#"{"error":"upstream_slow","reason":"upstream_slow"}"#),
        ];
        for (refusal, status, expected) in cases {
            let response = refusal.response();
            assert_eq!(response.status(), status, "{refusal:?}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, expected);
        }
    }
}
