//! A session as programs read it: the one definition of the JSON that the command line and the admin API give out.

use serde::Serialize;

use crate::base::entropy::hex;
use crate::proto::session as wire;

/// What `tether session show --output json` prints, but for its version.
#[derive(Debug, Serialize)]
pub struct SessionDocument<'a> {
    id: &'a str,
    state: String,
    end_reason: Option<&'a str>,
    parent: Option<&'a str>,
    depth: u32,
    spiffe_id: &'a str,
    entry: &'a str,
    user: Option<&'a str>,
    user_issuer: Option<&'a str>,
    user_subject: Option<&'a str>,
    purpose: &'a str,
    task_sha256: Option<String>,
    targets: &'a [String],
    scopes: &'a [String],
    boundary: String,
    scope: String,
    tie: &'a str,
    pid: i32,
    uid: u32,
    binding: u32,
    max_tokens: u32,
    max_calls: u32,
    tokens: u32,
    calls: u32,
    started_at: &'a str,
    expires_at: &'a str,
    ended_at: Option<&'a str>,
    heartbeat_seconds: Option<u32>,
    heartbeat_due: Option<&'a str>,
    approval: Option<&'a str>,
    key_thumbprint: &'a str,
    resumes: Option<&'a str>,
    launched: &'a [String],
}

impl<'a> From<&'a wire::Session> for SessionDocument<'a> {
    fn from(session: &'a wire::Session) -> Self {
        let unless_empty = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        let budget = session.budget.unwrap_or_default();
        Self {
            id: &session.id,
            state: session.state().as_str_name().to_lowercase(),
            end_reason: unless_empty(&session.end_reason),
            parent: unless_empty(&session.parent),
            depth: session.depth,
            spiffe_id: &session.spiffe_id,
            entry: &session.entry,
            user: unless_empty(&session.user),
            user_issuer: unless_empty(&session.user_issuer),
            user_subject: unless_empty(&session.user_subject),
            purpose: &session.purpose,
            task_sha256: Some(hex(&session.task_sha256)).filter(|digest| !digest.is_empty()),
            targets: &session.targets,
            scopes: &session.scopes,
            boundary: session.boundary().as_str_name().to_lowercase(),
            scope: session.scope().as_str_name().to_lowercase(),
            tie: &session.tie,
            pid: session.pid,
            uid: session.uid,
            binding: session.binding,
            max_tokens: budget.max_tokens,
            max_calls: budget.max_calls,
            tokens: session.tokens,
            calls: session.calls,
            started_at: &session.started_at,
            expires_at: &session.expires_at,
            ended_at: unless_empty(&session.ended_at),
            heartbeat_seconds: Some(session.heartbeat_seconds).filter(|seconds| *seconds > 0),
            heartbeat_due: unless_empty(&session.heartbeat_due),
            approval: unless_empty(&session.approval),
            key_thumbprint: &session.key_thumbprint,
            resumes: unless_empty(&session.resumes),
            launched: &session.launched,
        }
    }
}
