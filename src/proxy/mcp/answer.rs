//! What is answered instead of the server: JSON-RPC errors.
//!
//! A refused call is answered by HTTP 200 with an error in it, as the call failed and not the connection: with 403 the SDKs
//! show a broken transport, or an error without its code and data. Who is not known at all gets 401, and what is no
//! message 400. Codes are those of JSON-RPC and MCP where these have one; else the HTTP status that would say it, which
//! is outside of the range that JSON-RPC reserves (MCP 2026-07-28, "Error Codes").

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;
use thiserror::Error;

use super::json::JsonError;
use crate::client::verifier::{Class, Refused};

/// An answer that is made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// JSON.
    pub body: Bytes,
}

impl From<Answer> for Response<Bytes> {
    fn from(answer: Answer) -> Self {
        let mut response = Self::new(answer.body);
        *response.status_mut() = answer.status;
        response.headers_mut().insert(header::CONTENT_TYPE, JSON);
        response
    }
}

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A body that is no message, or none that can be judged.
#[derive(Debug, Error)]
#[error("{fault}")]
pub struct Malformed {
    /// Of the one request, as it was written, where it could be read.
    pub(super) id: Option<String>,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a request's body, or what its headers say of it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// It has more than [`MAX_BODY`](super::MAX_BODY) bytes.
    #[error("the body is larger than 4 MiB")]
    Large,
    /// `Content-Type` is another one, or there are several.
    #[error("the content type is not `application/json` in UTF-8")]
    MediaType,
    /// There is a `Content-Encoding`: what would be judged is not what the server reads.
    #[error("the body has a content encoding: send it as it is")]
    Encoded,
    /// It is not JSON that every reader reads alike.
    #[error("not JSON that every reader reads alike: {0}")]
    Json(#[source] JsonError),
    /// It is JSON, and not a message, or not a batch of messages.
    #[error("not a JSON-RPC 2.0 message of MCP: {0}")]
    Message(&'static str),
    /// A `tools/call` whose tool or arguments cannot be named to policy.
    #[error("`tools/call`: {0}")]
    Call(&'static str),
    /// A header that repeats what the body says is there twice, or says something else.
    #[error("the header `{0}` does not say what the body says")]
    Header(HeaderName),
}

impl Malformed {
    /// What is answered.
    pub fn answer(&self) -> Answer {
        let (status, code) = match self.fault {
            Fault::Large => (StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST),
            Fault::MediaType | Fault::Encoded => (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST),
            Fault::Json(_) => (StatusCode::BAD_REQUEST, PARSE_ERROR),
            Fault::Message(_) => (StatusCode::BAD_REQUEST, INVALID_REQUEST),
            Fault::Call(_) => (StatusCode::BAD_REQUEST, INVALID_PARAMS),
            Fault::Header(_) => (StatusCode::BAD_REQUEST, HEADER_MISMATCH),
        };
        let body = error(self.id.as_deref(), code, &self.to_string(), &json!({ "reason": "malformed" }));
        Answer { status, body: body.into() }
    }
}

/// The status of a refusal where nobody waits for an answer in JSON-RPC.
pub(super) fn status(refused: &Refused) -> StatusCode {
    match refused.class {
        Class::Unproven => StatusCode::UNAUTHORIZED,
        Class::Forbidden | Class::StepUp => StatusCode::FORBIDDEN,
        Class::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The error about `what`, such as "the tool `delete_note`", in answer to the request of this id.
pub(super) fn refusal(refused: &Refused, id: Option<&str>, what: &str) -> String {
    let code = match refused.class {
        Class::StepUp => PRECONDITION_REQUIRED,
        _ => i64::from(status(refused).as_u16()),
    };
    // The agent's side knows it in words of its own: why a person is asked.
    let reason = if refused.class == Class::StepUp { "step_up" } else { &refused.reason };
    let mut data = json!({ "reason": reason });
    if let Some(approval) = &refused.approval {
        data["approval"] = approval.as_str().into();
        data["how"] = format!("tether approval approve {approval}").into();
    }
    error(id, code, &format!("{what} was refused: {}", advice(refused)), &data)
}

/// For the model that reads it, or the person: whether another try helps, and after what.
fn advice(refused: &Refused) -> String {
    let reason = &refused.reason;
    match (refused.class, &refused.approval) {
        (Class::StepUp, Some(approval)) => {
            format!("a person has to approve it (`tether approval approve {approval}`); then make the same call again")
        }
        // Only what the agent's side says of a call is put before a person.
        (Class::StepUp, None) => {
            "a person has to approve it, who is asked when the proxy beside the agent reads MCP (`tether proxy outbound \
             --mcp`)"
                .to_owned()
        }
        (Class::Forbidden, _) if reason == "policy" || reason == "policy_denied" => {
            "policy does not allow it; another try changes nothing".to_owned()
        }
        (Class::Forbidden, _) if reason == "no_session" => {
            "it has to be made in a session, which `tether run` gives a program".to_owned()
        }
        (Class::Forbidden, _) => format!("this agent may not do it here (`{reason}`)"),
        (Class::Unproven, _) => format!("who calls is not proven (`{reason}`)"),
        (Class::Unavailable, _) => format!("it cannot be decided now (`{reason}`); try again"),
    }
}

/// A JSON-RPC error. `id` is written as it came; without one it is `null`.
fn error(id: Option<&str>, code: i64, message: &str, data: &serde_json::Value) -> String {
    let error = json!({ "code": code, "message": message, "data": data });
    format!(r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#, id.unwrap_or("null"))
}

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const INVALID_PARAMS: i64 = -32602;
const HEADER_MISMATCH: i64 = -32020;
const PRECONDITION_REQUIRED: i64 = 428;
