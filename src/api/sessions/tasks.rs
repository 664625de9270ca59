//! Sessions as tasks, on the wire: what was wanted becomes a wish, and a session becomes its view.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use time::OffsetDateTime;
use tokio::sync::broadcast;
use tonic::{Request, Response, Status};

use super::{SessionApi, asking, rfc3339, spiffe_id};
use crate::api::status;
use crate::api::workload::{Open, Updates, caller};
use crate::attest::LaunchRequest;
use crate::base::drain;
use crate::base::entropy::hex;
use crate::base::secret::Secret;
use crate::issue::Asking;
use crate::policy::Effect;
use crate::proto::session as wire;
use crate::session::{
    Boundary, Budget, Change, Disposed, MintWish, ProcessName, Receipt, Scope, Session, SessionError, SessionId, State,
    TokenKind, UserWish, Wish,
};

/// The largest subject token.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

impl SessionApi {
    pub(super) async fn start_task(
        &self,
        request: Request<wire::StartRequest>,
    ) -> Result<Response<wire::Session>, Status> {
        let (peer, _place) = caller(&request)?;
        let wish = wish(request.into_inner())?;
        shown(self.sessions.start(&peer, wish).await)
    }

    pub(super) async fn delegate_task(
        &self,
        request: Request<wire::DelegateRequest>,
    ) -> Result<Response<wire::Session>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        let wish = wish(request.child.ok_or_else(|| status::bad_field("child", "is missing"))?)?;
        let child = self.sessions.delegate(&peer, &request.session, wish).await;
        shown(child)
    }

    pub(super) async fn get_task(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::Session>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        shown(self.sessions.of(asking(&peer, request.on_behalf_of), &request.session).await)
    }

    pub(super) async fn list_tasks(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<wire::ListResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let all = request.into_inner().all;
        let sessions = self.sessions.of_caller(&peer).await.map_err(|error| status::session(&error))?;
        let wanted = sessions.iter().filter(|session| all || !matches!(session.state(), State::Ended(_)));
        Ok(Response::new(wire::ListResponse { sessions: wanted.map(|session| view(session)).collect() }))
    }

    pub(super) async fn beat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::Session>, Status> {
        let (peer, _place) = caller(&request)?;
        let session = self.sessions.heartbeat(&peer, &request.into_inner().session).await;
        shown(session)
    }

    pub(super) async fn mint_token(
        &self,
        request: Request<wire::MintRequest>,
    ) -> Result<Response<wire::MintResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        let kind = match wire::mint_request::Kind::try_from(request.kind) {
            Ok(wire::mint_request::Kind::Wit) => TokenKind::Wit,
            Ok(wire::mint_request::Kind::Jwt) => TokenKind::Jwt,
            Err(_) => return Err(status::bad_field("kind", format!("{} is neither WIT nor JWT", request.kind))),
        };
        let asking = asking(&peer, request.on_behalf_of);
        if request.without_session {
            return self.mint_without_session(asking, &request).await;
        }
        if !request.spiffe_id.is_empty() {
            return Err(status::bad_field("spiffe_id", "is for `without_session`: a session has an identity"));
        }
        let wanted = MintWish { target: request.target, scopes: request.scopes, kind };
        let minted = self.sessions.mint(asking, &request.session, &wanted).await;
        let minted = minted.map_err(|error| status::session(&error))?;
        Ok(Response::new(wire::MintResponse {
            session: minted.session.terms().id.to_string(),
            kind: request.kind,
            token: minted.token.to_string(),
            id: minted.id,
            target: minted.target,
            scopes: minted.scopes,
            expires_at: rfc3339(minted.expires_at),
            one_use: minted.one_use,
            binding: minted.binding.into(),
            binding_meaning: crate::api::admin::binding_meaning(minted.binding).to_owned(),
        }))
    }

    /// A bearer JWT-SVID of the process that a delegate asks for, so that the process itself never sees it.
    async fn mint_without_session(
        &self,
        asking: Asking<'_>,
        request: &wire::MintRequest,
    ) -> Result<Response<wire::MintResponse>, Status> {
        if asking.on_behalf_of.is_none() {
            let why = "is for delegates: a process that asks for itself has `FetchJWTSVID`";
            return Err(status::bad_field("without_session", why));
        }
        if request.kind() != wire::mint_request::Kind::Jwt {
            return Err(status::bad_field("kind", "is JWT without a session: `HoldWit` gives WITs"));
        }
        if !request.session.is_empty() || !request.scopes.is_empty() {
            return Err(status::bad_field("session", "and `scopes` are not for `without_session`"));
        }
        let wanted = spiffe_id(&request.spiffe_id)?;
        let minted = self.issuer.mint_jwt_for(asking, &request.target, wanted.as_ref()).await;
        let minted = minted.map_err(|refusal| status::refused(&refusal))?;
        Ok(Response::new(wire::MintResponse {
            kind: request.kind,
            token: minted.token,
            id: minted.id,
            target: request.target.clone(),
            expires_at: rfc3339(minted.expires_at),
            one_use: minted.one_use,
            binding_meaning: crate::api::admin::binding_meaning(0).to_owned(),
            ..wire::MintResponse::default()
        }))
    }

    pub(super) async fn end_task(
        &self,
        request: Request<wire::EndRequest>,
    ) -> Result<Response<wire::DisposalReceipt>, Status> {
        let (peer, _place) = caller(&request)?;
        let ended = self.sessions.end_for(&peer, &request.into_inner().session).await;
        let (receipt, had_ended) = ended.map_err(|error| status::session(&error))?;
        Ok(Response::new(receipt_view(&receipt, had_ended)))
    }

    pub(super) async fn watch_tasks(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Updates<wire::Session>>, Status> {
        let (peer, place) = caller(&request)?;
        let request = request.into_inner();
        let id = request.session;
        let asking = asking(&peer, request.on_behalf_of);
        // Before they are read: what changes meanwhile is told twice rather than never.
        let changes = self.sessions.changes();
        let (only, uid, first) = if id.is_empty() && asking.on_behalf_of.is_none() {
            let uid = self.sessions.caller_uid(&peer).await.map_err(|error| status::session(&error))?;
            (None, uid, self.sessions.of_caller(&peer).await.map_err(|error| status::session(&error))?)
        } else {
            let session = self.sessions.of(asking, &id).await.map_err(|error| status::session(&error))?;
            (Some(session.terms().id.clone()), session.terms().uid, vec![session])
        };
        let watching = Watching {
            ready: first.into_iter().rev().collect(),
            changes,
            only,
            uid,
            sessions: self.sessions.clone(),
            drain: self.drain.clone(),
            _open: Open::new(self.sessions.issuer(), place, "Watch"),
        };
        Ok(Response::new(Box::pin(stream::unfold(Some(watching), |watching| async move {
            let mut watching = watching?;
            match watching.next().await {
                Ok(Some(session)) => {
                    let over = watching.only.is_some() && matches!(session.state(), State::Ended(_));
                    Some((Ok(view(&session)), (!over).then_some(watching)))
                }
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        }))))
    }
}

/// A stream of sessions as they change.
struct Watching {
    ready: VecDeque<Arc<Session>>,
    changes: broadcast::Receiver<Change>,
    only: Option<SessionId>,
    uid: u32,
    sessions: crate::session::Sessions,
    drain: drain::Watcher,
    _open: Open,
}

impl Watching {
    async fn next(&mut self) -> Result<Option<Arc<Session>>, Status> {
        loop {
            if let Some(session) = self.ready.pop_front() {
                return Ok(Some(session));
            }
            let change = tokio::select! {
                () = self.drain.draining() => return Err(status::refused(&crate::issue::Refusal::Stopping)),
                change = self.changes.recv() => change,
            };
            match change {
                Ok(change) if self.is_wanted(&change.session) => return Ok(Some(change.session)),
                Ok(_) => {}
                // Some were missed: all of them as they are.
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    self.ready = self.sessions.all(|session| self.is_wanted(session)).into();
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(None),
            }
        }
    }

    fn is_wanted(&self, session: &Session) -> bool {
        let terms = session.terms();
        terms.uid == self.uid && self.only.as_ref().is_none_or(|only| *only == terms.id)
    }
}

fn shown(session: Result<Arc<Session>, SessionError>) -> Result<Response<wire::Session>, Status> {
    let session = session.map_err(|error| status::session(&error))?;
    Ok(Response::new(view(&session)))
}

/// What a request wants.
fn wish(request: wire::StartRequest) -> Result<Wish, Status> {
    let boundary = match wire::Boundary::try_from(request.boundary) {
        Ok(wire::Boundary::Unspecified) => None,
        Ok(wire::Boundary::ToolCall) => Some(Boundary::ToolCall),
        Ok(wire::Boundary::Request) => Some(Boundary::Request),
        Ok(wire::Boundary::Task) => Some(Boundary::Task),
        Err(_) => return Err(status::bad_field("boundary", format!("{} is none", request.boundary))),
    };
    let scope = match wire::Scope::try_from(request.scope) {
        Ok(wire::Scope::Unspecified | wire::Scope::Process) => Scope::Process,
        Ok(wire::Scope::Cgroup) => Scope::Cgroup,
        Ok(wire::Scope::Tree) => Scope::Tree,
        Err(_) => return Err(status::bad_field("scope", format!("{} is none", request.scope))),
    };
    let task_sha256 = match request.task_sha256.len() {
        0 => String::new(),
        32 => hex(&request.task_sha256),
        length => return Err(status::bad_field("task_sha256", format!("has {length} bytes, not 32"))),
    };
    let user = match request.user {
        None | Some(wire::start_request::User::LocalUser(false)) => UserWish::Nobody,
        Some(wire::start_request::User::LocalUser(true)) => UserWish::Local,
        Some(wire::start_request::User::SubjectToken(token)) if token.len() > MAX_TOKEN_BYTES => {
            return Err(status::bad_field("subject_token", format!("has more than {MAX_TOKEN_BYTES} bytes")));
        }
        Some(wire::start_request::User::SubjectToken(token)) => UserWish::Token(Secret::new(token)),
    };
    let seconds = |seconds: u32| (seconds > 0).then(|| Duration::from_secs(seconds.into()));
    let budget = request.budget.unwrap_or_default();
    let path = |text: String| (!text.is_empty()).then_some(text);
    Ok(Wish {
        purpose: request.purpose,
        task_sha256,
        targets: request.targets,
        scopes: request.scopes,
        boundary,
        budget: Budget { max_tokens: budget.max_tokens, max_calls: budget.max_calls },
        ttl: seconds(request.ttl_seconds),
        heartbeat: seconds(request.heartbeat_seconds),
        scope,
        process: request.process.map(|process| ProcessName {
            pid: process.pid,
            pidfs_inode: (process.pidfs_inode != 0).then_some(process.pidfs_inode),
        }),
        spiffe_id: spiffe_id(&request.spiffe_id)?,
        user,
        launch: request.launch.map(|launch| LaunchRequest {
            program: launch.program,
            script: path(launch.script),
            directory: path(launch.directory),
        }),
        resumes: Some(request.resumes).filter(|id| !id.is_empty()),
    })
}

/// An effect on the wire; `None` for the default.
pub(super) fn effect(effect: i32) -> Result<Option<Effect>, Status> {
    match wire::Effect::try_from(effect) {
        Ok(wire::Effect::Unspecified) => Ok(None),
        Ok(wire::Effect::Read) => Ok(Some(Effect::Read)),
        Ok(wire::Effect::Write) => Ok(Some(Effect::Write)),
        Ok(wire::Effect::Irreversible) => Ok(Some(Effect::Irreversible)),
        Err(_) => Err(status::bad_field("effect", format!("{effect} is none"))),
    }
}

/// A session as everybody who may see it sees it.
pub(crate) fn view(session: &Session) -> wire::Session {
    let (terms, used, state) = (session.terms(), session.used(), session.state());
    let time = |at: Option<OffsetDateTime>| at.map(rfc3339).unwrap_or_default();
    wire::Session {
        id: terms.id.to_string(),
        state: state_view(state).into(),
        end_reason: state.end_reason().map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        parent: terms.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        depth: terms.depth,
        spiffe_id: terms.spiffe_id.to_string(),
        entry: terms.entry.clone(),
        user: terms.user.as_ref().map(ToString::to_string).unwrap_or_default(),
        user_issuer: terms.user.as_ref().map(|user| user.issuer.clone()).unwrap_or_default(),
        user_subject: terms.user.as_ref().map(|user| user.subject.clone()).unwrap_or_default(),
        purpose: terms.purpose.clone(),
        task_sha256: digest(&terms.task_sha256).into(),
        targets: terms.targets.clone(),
        scopes: terms.scopes.clone(),
        boundary: match terms.boundary {
            Boundary::ToolCall => wire::Boundary::ToolCall,
            Boundary::Request => wire::Boundary::Request,
            Boundary::Task => wire::Boundary::Task,
        }
        .into(),
        scope: match terms.members {
            crate::session::Members::Process(_) => wire::Scope::Process,
            crate::session::Members::Cgroup(_) => wire::Scope::Cgroup,
            crate::session::Members::Tree(_) => wire::Scope::Tree,
        }
        .into(),
        tie: session.members_text(),
        pid: terms.pid,
        uid: terms.uid,
        binding: terms.binding.into(),
        budget: Some(wire::Budget { max_tokens: terms.budget.max_tokens, max_calls: terms.budget.max_calls }),
        tokens: used.tokens,
        calls: used.calls,
        started_at: rfc3339(terms.started_at),
        expires_at: rfc3339(session.ends_at()),
        ended_at: time(session.ended_at()),
        heartbeat_seconds: terms.heartbeat.and_then(|within| within.as_secs().try_into().ok()).unwrap_or_default(),
        heartbeat_due: time(session.heartbeat_due()),
        approval: session.approval().unwrap_or_default(),
        key_thumbprint: session.key_thumbprint().unwrap_or_default(),
        resumes: terms.resumes.clone().unwrap_or_default(),
        launched: terms.launched.clone(),
    }
}

/// A state on the wire.
pub(crate) fn state_view(state: State) -> wire::State {
    match state {
        State::PendingApproval => wire::State::PendingApproval,
        State::Active => wire::State::Active,
        State::Suspended => wire::State::Suspended,
        State::Ended(_) => wire::State::Ended,
    }
}

fn receipt_view(receipt: &Receipt, had_ended: bool) -> wire::DisposalReceipt {
    let disposed = |list: &[Disposed]| {
        let one = |of: &Disposed| wire::Disposed {
            kind: of.kind.to_owned(),
            id: of.id.clone(),
            target: of.target.clone(),
            until: rfc3339(of.until),
        };
        list.iter().map(one).collect()
    };
    let last = receipt.revoked.iter().map(|credential| credential.until).max();
    let kept = [
        // Until nobody could accept what it is about.
        last.map(|until| wire::Kept { what: "ledger".to_owned(), until: rfc3339(until) }),
        Some(wire::Kept { what: "audit".to_owned(), until: String::new() }),
    ];
    wire::DisposalReceipt {
        session: receipt.session.to_string(),
        end_reason: receipt.reason.as_str().to_owned(),
        ended_at: rfc3339(receipt.ended_at),
        had_ended,
        ended: receipt.ended.iter().map(ToString::to_string).collect(),
        keys_wiped: receipt.keys_wiped,
        revoked: disposed(&receipt.revoked),
        remaining: disposed(&receipt.remaining),
        kept: kept.into_iter().flatten().collect(),
    }
}

/// The bytes of a digest in hex.
fn digest(text: &str) -> Vec<u8> {
    let pair = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..text.len()).step_by(2).filter_map(pair).collect()
}
