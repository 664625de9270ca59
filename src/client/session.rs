//! Sessions, for an agent that acts in one: begin a task, prove its calls, end it.
//!
//! Promises: what the agent answers is parsed before it is handed out; every refusal is a value that says what to do next
//! ([`SessionError`]): wait for a person, begin anew, or ask for something else. No private key ever is in this program, and
//! a proof that was made outside a session is handed out only where that was asked for.
//!
//! Does not: keep a session alive, end one when a value is dropped, or retry. A session is not tied to this client: it
//! belongs to the process, which is what the agent checks at every call.

mod values;
#[cfg(all(test, feature = "agent"))]
mod tests;

use http::{HeaderMap, HeaderName, HeaderValue};
use thiserror::Error;
use time::OffsetDateTime;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

pub use values::{
    Acting, Boundary, Budget, Call, Digest, Disposed, Effect, Heartbeat, Kept, NewSession, NewToken, ProofScheme,
    Receipt, Scope, Session, SessionUser, State, Token, TokenKind, Within,
};

pub(super) use values::{time, unless_empty};

use super::watch::Watch;
use super::workload::{MAX_ANSWER_BYTES, SecurityHeader, malformed};
use super::{ActFor, ClientError, Endpoint, channel, with_header};
use crate::proto::session::sessions_client::SessionsClient;
use crate::proto::session::{self as wire};
use crate::proto::{APPROVAL_METADATA, DENIAL_METADATA, SESSION_END_METADATA};

type Client = SessionsClient<InterceptedService<Channel, SecurityHeader>>;

/// The value of [`DENIAL_METADATA`] for a process that is in no session.
const NO_SESSION: &str = "no_session";

/// Why a call about a session gave nothing.
#[derive(Debug, Error)]
pub enum SessionError {
    /// Policy wants a person to agree first (`FailedPrecondition`). The same call again, once it is approved, goes on; a
    /// [`SessionClient::watch`] tells when a session that waits to begin was.
    #[error("waiting for approval `{approval}`: {message}; try again when an approver has agreed")]
    WaitingForApproval {
        /// What the approver names: `tether approval approve ID`.
        approval: String,
        /// What the agent said.
        message: String,
    },
    /// The session is over for good (`FailedPrecondition`). What goes on is a new session.
    #[error("the session has ended (`{reason}`): {message}; start a new one to go on")]
    Ended {
        /// Why, as [`State::Ended`] has it.
        reason: String,
        /// What the agent said.
        message: String,
    },
    /// The session, or this process, is in no state to do this now: suspended by an operator, for one
    /// (`FailedPrecondition`).
    #[error("not now: {0}")]
    NotNow(String),
    /// This process may not do this: policy, the session's targets, scopes or budget, or the identity
    /// (`PermissionDenied`). The same call again is denied again until somebody changes what decides.
    #[error("denied (`{label}`): {message}")]
    Denied {
        /// Which rule, by its stable name.
        label: String,
        /// What the agent said.
        message: String,
    },
    /// There is no such session for this process: it is not a member, or never began one (`NotFound`).
    #[error("no such session for this process: {0}; start one first")]
    NotFound(String),
    /// There are too many sessions, of this user or at all (`ResourceExhausted`).
    #[error("too many sessions: {0}; end what is done, then try again")]
    Exhausted(String),
    /// Everything that is not about sessions: the agent is away, does not offer them, or finds the request wrong.
    #[error(transparent)]
    Agent(#[from] ClientError),
}

impl SessionError {
    /// What a status means.
    fn from_status(endpoint: &Endpoint, status: &Status) -> Self {
        let message = || status.message().to_owned();
        let metadata = |name| status.metadata().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        match status.code() {
            Code::FailedPrecondition => match (metadata(APPROVAL_METADATA), metadata(SESSION_END_METADATA)) {
                (Some(approval), _) => Self::WaitingForApproval { approval, message: message() },
                (None, Some(reason)) => Self::Ended { reason, message: message() },
                (None, None) => Self::NotNow(message()),
            },
            Code::PermissionDenied => {
                let label = metadata(DENIAL_METADATA).unwrap_or_else(|| "no_identity".to_owned());
                Self::Denied { label, message: message() }
            }
            Code::NotFound => Self::NotFound(message()),
            // Of a caller that named no session: there is none to be meant.
            Code::InvalidArgument if metadata(DENIAL_METADATA).as_deref() == Some(NO_SESSION) => {
                Self::NotFound(message())
            }
            Code::ResourceExhausted => Self::Exhausted(message()),
            _ => ClientError::from_status(endpoint, status).into(),
        }
    }
}

/// A client of `tether.session.v1.Sessions`. Cheap to clone; all clones share a connection.
///
/// Where a session is named by an `Option`, `None` is the one session that this process is a member of.
#[derive(Clone)]
pub struct SessionClient {
    client: Client,
    endpoint: Endpoint,
    /// The process whose sessions these are; `None` for this one.
    acts_for: Option<ActFor>,
}

/// The headers that prove one request. They are good once, for its method and URI, for 30 seconds.
#[derive(Debug)]
pub struct Proof {
    /// To be added to the request; marked as sensitive, so that HTTP libraries leave them out of their logs.
    pub headers: HeaderMap,
    /// When the proof ends.
    pub expires_at: OffsetDateTime,
    /// The session it was made in; `None` outside of any, which [`SessionClient::prove_any`] alone gives.
    pub session: Option<String>,
    /// The transaction, to find the call again in the audit log.
    pub txn: Option<String>,
}

impl SessionClient {
    /// A client of the agent at `endpoint`. Connects at the first call.
    pub fn new(endpoint: Endpoint) -> Self {
        let client = SessionsClient::new(with_header(channel(&endpoint))).max_decoding_message_size(MAX_ANSWER_BYTES);
        Self { client, endpoint, acts_for: None }
    }

    /// A client of the agent that `SPIFFE_ENDPOINT_SOCKET` names in this process's environment.
    ///
    /// # Errors
    /// The variable is not set or is not an endpoint.
    pub fn from_env() -> Result<Self, ClientError> {
        Ok(Self::new(Endpoint::from_env(|name| std::env::var(name).ok())?))
    }

    /// The same client, acting for another process: in the sessions which that is a member of, and in no others. Beginning,
    /// listing and ending sessions stays with who is in them: here these calls are refused ([`ClientError::Invalid`]).
    #[must_use]
    pub fn on_behalf_of(&self, other: ActFor) -> Self {
        Self { acts_for: Some(other), ..self.clone() }
    }

    /// Begins a session. It is [`State::PendingApproval`] where policy wants a person's word first: nothing can be proven in it
    /// until then, and [`Self::until_active`] waits.
    ///
    /// # Errors
    /// [`SessionError::Denied`] when policy does not allow it.
    pub async fn start(&self, wish: &NewSession) -> Result<Session, SessionError> {
        let answer = self.itself()?.start(wish.to_wire()).await;
        Ok(Session::read(self.answered(answer)?)?)
    }

    /// Begins a child of `parent` for another process of this user: with less of everything, and never for longer.
    ///
    /// # Errors
    /// [`SessionError::Denied`] when the child would have more than its parent, or policy does not allow it.
    pub async fn delegate(&self, parent: Option<&str>, child: &NewSession) -> Result<Session, SessionError> {
        let request = wire::DelegateRequest { session: named(parent), child: Some(child.to_wire()) };
        let answer = self.itself()?.delegate(request).await;
        Ok(Session::read(self.answered(answer)?)?)
    }

    /// One session, as it is now.
    ///
    /// # Errors
    /// [`SessionError::NotFound`] when it is not one of this user's.
    pub async fn find(&self, session: Option<&str>) -> Result<Session, SessionError> {
        let request = wire::GetRequest { session: named(session), on_behalf_of: self.on_behalf() };
        let answer = self.client.clone().get(request).await;
        Ok(Session::read(self.answered(answer)?)?)
    }

    /// The sessions of this user, the newest first; with `ended` also those that have ended lately.
    ///
    /// # Errors
    /// The agent is away, or does not offer sessions.
    pub async fn list(&self, ended: bool) -> Result<Vec<Session>, SessionError> {
        let answer = self.itself()?.list(wire::ListRequest { all: ended }).await;
        let sessions = self.answered(answer)?.sessions.into_iter().map(Session::read);
        Ok(sessions.collect::<Result<_, _>>()?)
    }

    /// One session as its state changes: as it is now at once, and last as it ended.
    pub fn watch(&self, session: Option<&str>) -> SessionWatch {
        let (client, request) =
            (self.client.clone(), wire::WatchRequest { session: named(session), on_behalf_of: self.on_behalf() });
        let open = move || {
            let (mut client, request) = (client.clone(), request.clone());
            Box::pin(async move { client.watch(request).await }) as _
        };
        SessionWatch { watch: Watch::of(&self.endpoint, open, Session::read), ended: false }
    }

    /// Waits until the session may be used. There is no limit of time but the session's own.
    ///
    /// # Errors
    /// [`SessionError::Ended`] when it ended instead: denied by the approver, for one.
    pub async fn until_active(&self, session: &str) -> Result<Session, SessionError> {
        let mut watch = self.watch(Some(session));
        while let Some(now) = watch.next().await? {
            match now.state {
                State::Active => return Ok(now),
                State::Ended { reason } => {
                    let message = "it ended before it could be used".to_owned();
                    return Err(SessionError::Ended { reason, message });
                }
                State::PendingApproval { .. } | State::Suspended => {}
            }
        }
        Err(ClientError::Ended.into())
    }

    /// A sign of life, for a session that was started with [`NewSession::heartbeat`].
    ///
    /// # Errors
    /// [`SessionError::Ended`] when it came too late.
    pub async fn heartbeat(&self, session: Option<&str>) -> Result<Session, SessionError> {
        let answer = self.itself()?.heartbeat(wire::HeartbeatRequest { session: named(session) }).await;
        Ok(Session::read(self.answered(answer)?)?)
    }

    /// A token for one of the session's targets. Calls do not need it: [`Self::prove`] mints by itself.
    ///
    /// # Errors
    /// [`SessionError::Denied`] for another target or scope, and when the budget is spent;
    /// [`SessionError::WaitingForApproval`].
    pub async fn mint(&self, session: Option<&str>, wish: &NewToken) -> Result<Token, SessionError> {
        let answer = self.client.clone().mint(wish.to_wire(named(session), self.acts_for)).await;
        Ok(Token::read(self.answered(answer)?)?)
    }

    /// The headers that prove one request, to be made anew for each: also for a retry.
    ///
    /// # Errors
    /// [`SessionError::WaitingForApproval`] when a person must agree to this very call: the same one again then goes
    /// through. [`SessionError::NotFound`] when this process is in no session: a proof without one is not handed out.
    pub async fn prove(&self, session: Option<&str>, call: &Call) -> Result<Proof, SessionError> {
        let proof = self.proven(named(session), call).await?;
        if proof.session.is_none() {
            return Err(SessionError::NotFound("the proof was made outside any session".to_owned()));
        }
        Ok(proof)
    }

    /// As [`Self::prove`] in the session that the process is in, and outside of any when it is in none: with the WIT of its
    /// default identity. What such a proof may do is said by policy alone, which knows no purpose, user or target then.
    ///
    /// # Errors
    /// As [`Self::prove`], but for a process in no session.
    pub async fn prove_any(&self, call: &Call) -> Result<Proof, SessionError> {
        self.proven(String::new(), call).await
    }

    /// A bearer JWT-SVID for a service that takes nothing better: whoever has it can use it until it expires. Outside a session
    /// for a process that this client acts for alone: of its own, a program gets them from
    /// [`WorkloadApi::fetch_jwt`](super::WorkloadApi::fetch_jwt).
    ///
    /// # Errors
    /// [`SessionError::Denied`] for an audience that is not one of the session's targets, or of the registration entry.
    pub async fn bearer(&self, within: Within<'_>, audience: &str) -> Result<Token, SessionError> {
        match within {
            Within::Session(session) => self.bearer_by(named(session), false, audience).await,
            Within::NoSession => self.bearer_by(String::new(), true, audience).await,
            Within::SessionIfAny => match self.bearer_by(String::new(), false, audience).await {
                Err(SessionError::NotFound(_)) => self.bearer_by(String::new(), true, audience).await,
                answered => answered,
            },
        }
    }

    async fn bearer_by(&self, session: String, without_session: bool, audience: &str) -> Result<Token, SessionError> {
        let wish = NewToken { target: audience.to_owned(), kind: TokenKind::Jwt, ..NewToken::default() };
        let request = wire::MintRequest { without_session, ..wish.to_wire(session, self.acts_for) };
        let answer = self.client.clone().mint(request).await;
        Ok(Token::read(self.answered(answer)?)?)
    }

    async fn proven(&self, session: String, call: &Call) -> Result<Proof, SessionError> {
        let answer = self.client.clone().prove(call.to_wire(session, self.acts_for)).await;
        Ok(read_proof(self.answered(answer)?)?)
    }

    /// Ends a session and everything below it. When this returns nothing of them stands; the receipt says what became of
    /// everything. Ending again gives the same receipt.
    ///
    /// # Errors
    /// [`SessionError::NotFound`] when it is not one of this user's.
    pub async fn end(&self, session: Option<&str>) -> Result<Receipt, SessionError> {
        let answer = self.itself()?.end(wire::EndRequest { session: named(session) }).await;
        Ok(Receipt::read(self.answered(answer)?)?)
    }

    /// For calls that a process makes for itself alone.
    fn itself(&self) -> Result<Client, SessionError> {
        match self.acts_for {
            None => Ok(self.client.clone()),
            Some(_) => {
                Err(ClientError::Invalid("this is done by the process itself, and not for it".to_owned()).into())
            }
        }
    }

    fn on_behalf(&self) -> Option<wire::OnBehalfOf> {
        self.acts_for.map(ActFor::to_wire)
    }

    fn answered<T>(&self, answer: Result<Response<T>, Status>) -> Result<T, SessionError> {
        answer.map(Response::into_inner).map_err(|status| SessionError::from_status(&self.endpoint, &status))
    }
}

/// A session as it changes. Reconnects by itself, as a [`Watch`] does.
pub struct SessionWatch {
    watch: Watch<wire::Session, Session>,
    ended: bool,
}

impl SessionWatch {
    /// The next state; `None` after the session was given as ended.
    ///
    /// # Errors
    /// What went wrong this time; after one with [`ClientError::is_retryable`] it is worth calling again.
    pub async fn next(&mut self) -> Result<Option<Session>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        let session = self.watch.next().await?;
        self.ended = matches!(session.state, State::Ended { .. });
        Ok(Some(session))
    }
}

fn named(session: Option<&str>) -> String {
    session.unwrap_or_default().to_owned()
}

fn read_proof(answer: wire::ProveResponse) -> Result<Proof, ClientError> {
    let about = |error: &dyn std::fmt::Display| malformed("the proof", error);
    let mut headers = HeaderMap::with_capacity(answer.headers.len());
    for (name, value) in &answer.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| about(&error))?;
        let mut value = HeaderValue::from_str(value).map_err(|error| about(&error))?;
        value.set_sensitive(true);
        if headers.insert(name, value).is_some() {
            return Err(about(&"a header is there twice"));
        }
    }
    if headers.is_empty() {
        return Err(about(&"it has no headers"));
    }
    let expires_at = time("the proof", &answer.expires_at)?;
    Ok(Proof { headers, expires_at, session: unless_empty(answer.session), txn: unless_empty(answer.txn) })
}
