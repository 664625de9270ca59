//! The sessions of all users, for operators.

use std::collections::BTreeSet;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{Admin, Role, one_line};
use crate::api::sessions::view;
use crate::api::status;
use crate::base::text::chain;
use crate::proto::admin as wire;
use crate::session::{EndReason, Session, SessionDocument, State};

/// So many are listed when the request does not say.
const DEFAULT_LIMIT: usize = 1000;
/// So many are listed at most.
const MAX_LIMIT: usize = 100_000;

/// Picks sessions: each field that is set must hold.
struct Wanted {
    session: String,
    spiffe_id: String,
    user: String,
}

impl Wanted {
    fn is_everything(&self) -> bool {
        self.session.is_empty() && self.spiffe_id.is_empty() && self.user.is_empty()
    }

    fn picks(&self, session: &Session) -> bool {
        let terms = session.terms();
        let is = |wanted: &str, value: &str| wanted.is_empty() || wanted == value;
        let user = terms.user.as_ref().map(ToString::to_string).unwrap_or_default();
        is(&self.session, terms.id.as_str()) && is(&self.spiffe_id, terms.spiffe_id.as_str()) && is(&self.user, &user)
    }

    /// As the caller wrote it, for the audit log.
    fn written(&self) -> String {
        let fields = [("session", &self.session), ("spiffe_id", &self.spiffe_id), ("user", &self.user)];
        let set = fields.iter().filter(|(_, value)| !value.is_empty());
        set.map(|(field, value)| format!("{field}={value:?}")).collect::<Vec<_>>().join(" ")
    }
}

#[tonic::async_trait]
impl wire::session_admin_server::SessionAdmin for Admin {
    async fn list(
        &self,
        request: Request<wire::ListSessionsRequest>,
    ) -> Result<Response<wire::ListSessionsResponse>, Status> {
        self.require(&request, Role::Viewer)?;
        let wire::ListSessionsRequest { all, session, spiffe_id, user, limit } = request.into_inner();
        let wanted = Wanted { session, spiffe_id, user };
        let lives = |session: &Session| !matches!(session.state(), State::Ended(_));
        let found = self.parts.sessions.all(|session| (all || lives(session)) && wanted.picks(session));
        let limit = match usize::try_from(limit) {
            Ok(0) => DEFAULT_LIMIT,
            Ok(limit) => limit.min(MAX_LIMIT),
            Err(_) => MAX_LIMIT,
        };
        let json = found.iter().take(limit).map(|session| json(session)).collect::<Result<_, _>>()?;
        let total = u64::try_from(found.len()).unwrap_or(u64::MAX);
        Ok(Response::new(wire::ListSessionsResponse { json, total }))
    }

    async fn end(
        &self,
        request: Request<wire::EndSessionsRequest>,
    ) -> Result<Response<wire::EndSessionsResponse>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let wire::EndSessionsRequest { session, spiffe_id, user, reason } = request.into_inner();
        let wanted = Wanted { session, spiffe_id, user };
        if wanted.is_everything() {
            return Err(Status::invalid_argument(
                "name a session, a spiffe_id or a user: this would end every session",
            ));
        }
        one_line("reason", &reason)?;
        let picked = self.parts.sessions.all(|session| wanted.picks(session));
        if picked.is_empty() {
            return Err(none());
        }
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        self.audit(&peer, "session.end", format!("{}{why}", wanted.written()));
        let by = format!("uid {}", peer.uid());
        let mut living = picked;
        living.retain(|session| !matches!(session.state(), State::Ended(_)));
        let ending = self.parts.sessions.end_each(living.clone(), EndReason::Operator, &by).await;
        ending.map_err(|error| status::session(&error))?;
        let receipts = living.iter().filter_map(|session| session.receipt());
        let ended: BTreeSet<String> =
            receipts.flat_map(|receipt| receipt.ended.clone()).map(|id| id.to_string()).collect();
        let ended = ended.into_iter().collect();
        Ok(Response::new(wire::EndSessionsResponse { ended }))
    }

    async fn suspend(
        &self,
        request: Request<wire::SuspendSessionRequest>,
    ) -> Result<Response<wire::SuspendSessionResponse>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let session = self.session(&request.get_ref().session)?;
        let by = format!("uid {}", peer.uid());
        let suspended = self.parts.sessions.suspend(&session.terms().id, &by);
        suspended.map_err(|error| status::session(&error))?;
        Ok(Response::new(wire::SuspendSessionResponse {}))
    }

    async fn resume(
        &self,
        request: Request<wire::ResumeSessionRequest>,
    ) -> Result<Response<wire::ResumeSessionResponse>, Status> {
        let peer = self.require(&request, Role::Operator)?;
        let session = self.session(&request.get_ref().session)?;
        let by = format!("uid {}", peer.uid());
        let resumed = self.parts.sessions.resume_suspended(&session.terms().id, &by);
        resumed.map_err(|error| status::session(&error))?;
        Ok(Response::new(wire::ResumeSessionResponse {}))
    }
}

impl Admin {
    fn session(&self, id: &str) -> Result<Arc<Session>, Status> {
        self.parts.sessions.find(id).ok_or_else(none)
    }
}

fn none() -> Status {
    Status::not_found("no session is like that: `tether session list --all --admin` shows what there is")
}

/// The document of a session.
pub(super) fn json(session: &Session) -> Result<String, Status> {
    let view = view(session);
    serde_json::to_string(&SessionDocument::from(&view)).map_err(|error| Status::internal(chain(&error)))
}
