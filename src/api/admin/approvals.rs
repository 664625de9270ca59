//! What waits for a person's word, for whoever gives it.
//!
//! The role decides who may speak at all; that nobody speaks for themselves is a rule of the approvals
//! ([`Approvals::decide`](crate::session::approvals::Approvals::decide)), by the kernel's word on who asks.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::sessions::json as session_json;
use super::{Admin, Role, administrator, one_line, rfc3339};
use crate::api::status;
use crate::proto::admin as wire;
use crate::session::approvals::{Approval, ApprovalState, DEFAULT_TTL, Verdict};

#[tonic::async_trait]
impl wire::approvals_server::Approvals for Admin {
    async fn list(
        &self,
        request: Request<wire::ListApprovalsRequest>,
    ) -> Result<Response<wire::ListApprovalsResponse>, Status> {
        self.require(&request, Role::Viewer)?;
        let all = request.into_inner().all;
        let listed = self.parts.sessions.approvals().list();
        let wanted = listed.iter().filter(|approval| all || approval.state == ApprovalState::Pending);
        Ok(Response::new(wire::ListApprovalsResponse {
            approvals: wanted.map(|approval| self.approval(approval)).collect(),
        }))
    }

    async fn approve(&self, request: Request<wire::ApproveRequest>) -> Result<Response<wire::ApprovalView>, Status> {
        self.require(&request, Role::Approver)?;
        let by = administrator(&request)?.uid;
        let wire::ApproveRequest { id, ttl_seconds, uses, note } = request.into_inner();
        one_line("note", &note)?;
        let ttl = if ttl_seconds == 0 { DEFAULT_TTL } else { Duration::from_secs(ttl_seconds.into()) };
        let verdict = Verdict::Approve { ttl, uses: uses.max(1) };
        let decided = self.parts.sessions.approvals().decide(&id, by, verdict, &note).await;
        let decided = decided.map_err(|error| status::approval(&error))?;
        // What waited for it goes on before whoever approved looks at it.
        self.parts.sessions.settle_approvals().await;
        Ok(Response::new(self.approval(&decided)))
    }

    async fn deny(&self, request: Request<wire::DenyRequest>) -> Result<Response<wire::ApprovalView>, Status> {
        self.require(&request, Role::Approver)?;
        let by = administrator(&request)?.uid;
        let wire::DenyRequest { id, note } = request.into_inner();
        one_line("note", &note)?;
        let decided = self.parts.sessions.approvals().decide(&id, by, Verdict::Deny, &note).await;
        let decided = decided.map_err(|error| status::approval(&error))?;
        // What it allowed has ended when this returns.
        self.parts.sessions.settle_approvals().await;
        Ok(Response::new(self.approval(&decided)))
    }
}

impl Admin {
    /// An approval with all that there is to decide by.
    fn approval(&self, approval: &Approval) -> wire::ApprovalView {
        let session = self.parts.sessions.find(approval.matter.session.as_str());
        let session_json = session.and_then(|session| session_json(&session).ok()).unwrap_or_default();
        wire::ApprovalView { session_json, ..view(approval) }
    }
}

fn view(approval: &Approval) -> wire::ApprovalView {
    let matter = &approval.matter;
    wire::ApprovalView {
        id: approval.id.to_string(),
        state: approval.state.as_str().to_owned(),
        session: matter.session.to_string(),
        spiffe_id: approval.spiffe_id.to_string(),
        user: approval.user.as_ref().map(ToString::to_string).unwrap_or_default(),
        purpose: approval.purpose.clone(),
        action: matter.action.clone(),
        target: matter.target.clone(),
        method: matter.method.clone(),
        tool: matter.tool.clone(),
        arguments_sha256: matter.arguments_sha256.clone(),
        effect: matter.effect.map(|effect| effect.as_str().to_owned()).unwrap_or_default(),
        why: approval.why.clone(),
        policies: approval.policies.clone(),
        requested_at: rfc3339(approval.requested_at),
        decided_at: approval.decided_at.map(rfc3339).unwrap_or_default(),
        expires_at: rfc3339(approval.expires_at),
        uses_left: approval.uses_left,
        decided_by: approval.decided_by.map(|uid| uid.to_string()).unwrap_or_default(),
        note: approval.note.clone(),
        kind: matter.kind.clone(),
        scopes: matter.scopes.clone(),
        session_json: String::new(),
    }
}
