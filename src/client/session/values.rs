//! What is asked of the agent, and what it answers: typed, and read from the wire once.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::workload::{malformed, read_id};
use super::super::{ActFor, ClientError};
use crate::base::secret::Secret;
use crate::id::SpiffeId;
use crate::proto::session as wire;

/// A SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(in crate::client) fn to_wire(digest: Option<Self>) -> bytes::Bytes {
        digest.map(|digest| bytes::Bytes::copy_from_slice(&digest.0)).unwrap_or_default()
    }
}

/// What a session is limited to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Boundary {
    /// Every token is good for one call.
    ToolCall,
    /// One request of the user.
    Request,
    /// One task, of any number of calls within its budget.
    #[default]
    Task,
}

/// Who may act in a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// One program in one process.
    #[default]
    Process,
    /// Every process of its cgroup (version 2) and below.
    Cgroup,
    /// The process and all its descendants.
    Tree,
}

/// What a call does, for policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effect {
    /// Not said: of a request, GET, HEAD and OPTIONS read and everything else writes.
    #[default]
    ByMethod,
    /// Changes nothing.
    Read,
    /// Changes something that can be changed back.
    Write,
    /// Cannot be undone.
    Irreversible,
}

impl Effect {
    pub(in crate::client) fn to_wire(self) -> i32 {
        let effect = match self {
            Self::ByMethod => wire::Effect::Unspecified,
            Self::Read => wire::Effect::Read,
            Self::Write => wire::Effect::Write,
            Self::Irreversible => wire::Effect::Irreversible,
        };
        effect.into()
    }

    pub(in crate::client) fn read(effect: wire::Effect) -> Self {
        match effect {
            wire::Effect::Unspecified => Self::ByMethod,
            wire::Effect::Read => Self::Read,
            wire::Effect::Write => Self::Write,
            wire::Effect::Irreversible => Self::Irreversible,
        }
    }
}

/// How often; `None` is without limit, so none at all cannot be said by accident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Tokens that may be minted.
    pub tokens: Option<NonZeroU32>,
    /// Calls that may be proven.
    pub calls: Option<NonZeroU32>,
}

/// Another process to act, of the same user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acting {
    /// Its number.
    pub pid: i32,
    /// Its inode on pidfs. Without one, a number that was given to another process meanwhile is not noticed.
    pub pidfs_inode: Option<u64>,
}

/// What a session shall be.
#[derive(Debug, Default)]
pub struct NewSession {
    /// What for: a name that policy knows.
    pub purpose: String,
    /// Where to: URI prefixes, or audiences of bearer tokens; at least one.
    pub targets: Vec<String>,
    /// What of: names as in OAuth scopes.
    pub scopes: Vec<String>,
    /// The task in words, as a digest for the audit log.
    pub task: Option<Digest>,
    /// What it is limited to.
    pub boundary: Boundary,
    /// How often.
    pub budget: Budget,
    /// At most for so long; the configuration has a default and a limit.
    pub ttl: Option<Duration>,
    /// Without [`SessionClient::heartbeat`](super::SessionClient::heartbeat) for so long it ends.
    pub heartbeat: Option<Duration>,
    /// Who may act.
    pub scope: Scope,
    /// Who acts; `None` for this process.
    pub acting: Option<Acting>,
    /// The identity to act as; `None` for the default one.
    pub spiffe_id: Option<SpiffeId>,
    /// For the person who is logged in, as the kernel and logind know it for the process that acts.
    pub for_local_user: bool,
    /// For the subject of this token of a configured OpenID Connect issuer. Not with `for_local_user`.
    pub subject_token: Option<Secret<String>>,
    /// The ended session this goes on with, for the audit log: nothing of it is taken over.
    pub resumes: Option<String>,
}

impl NewSession {
    /// A session for `purpose` at one target; everything else as it is by default.
    pub fn new(purpose: impl Into<String>, target: impl Into<String>) -> Self {
        Self { purpose: purpose.into(), targets: vec![target.into()], ..Self::default() }
    }

    pub(super) fn to_wire(&self) -> wire::StartRequest {
        let boundary = match self.boundary {
            Boundary::ToolCall => wire::Boundary::ToolCall,
            Boundary::Request => wire::Boundary::Request,
            Boundary::Task => wire::Boundary::Task,
        };
        let scope = match self.scope {
            Scope::Process => wire::Scope::Process,
            Scope::Cgroup => wire::Scope::Cgroup,
            Scope::Tree => wire::Scope::Tree,
        };
        // A token beside the local user is for the agent to refuse, not to choose here: the token is what was proven.
        let user = match (&self.subject_token, self.for_local_user) {
            (Some(token), _) => Some(wire::start_request::User::SubjectToken(token.expose().clone())),
            (None, true) => Some(wire::start_request::User::LocalUser(true)),
            (None, false) => None,
        };
        wire::StartRequest {
            purpose: self.purpose.clone(),
            task_sha256: Digest::to_wire(self.task),
            targets: self.targets.clone(),
            scopes: self.scopes.clone(),
            boundary: boundary.into(),
            budget: Some(wire::Budget {
                max_tokens: self.budget.tokens.map_or(0, NonZeroU32::get),
                max_calls: self.budget.calls.map_or(0, NonZeroU32::get),
            }),
            ttl_seconds: seconds(self.ttl),
            heartbeat_seconds: seconds(self.heartbeat),
            scope: scope.into(),
            process: self
                .acting
                .map(|acting| wire::Process { pid: acting.pid, pidfs_inode: acting.pidfs_inode.unwrap_or_default() }),
            spiffe_id: self.spiffe_id.as_ref().map(SpiffeId::to_string).unwrap_or_default(),
            launch: None,
            resumes: self.resumes.clone().unwrap_or_default(),
            user,
        }
    }
}

/// Whole seconds, rounded up: a wish for half a second is not one for no limit.
fn seconds(duration: Option<Duration>) -> u32 {
    let duration = duration.unwrap_or_default();
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(whole).unwrap_or(u32::MAX)
}

/// One HTTP request to be proven.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// As in the request line, such as `POST`.
    pub method: String,
    /// The absolute URI. Query and fragment are not covered.
    pub uri: String,
    /// The body, when the proof shall cover it.
    pub body: Option<Digest>,
    /// The tool behind the URI, for policy and the audit log.
    pub tool: String,
    /// Its arguments, as a digest: an approval is for exactly these.
    pub arguments: Option<Digest>,
    /// What it does.
    pub effect: Effect,
    /// The method of the one JSON-RPC call inside, such as `tools/call`: then the effect is that call's, and not the request's.
    /// Empty for none, or several.
    pub rpc: String,
    /// The transaction it is part of; `None` for one of its own.
    pub txn: Option<String>,
    /// How it is proven.
    pub scheme: ProofScheme,
}

/// How a request is proven.
#[derive(Clone, Debug, Default)]
pub enum ProofScheme {
    /// A WIT and a Workload Proof Token (draft-ietf-wimse-wpt-02).
    #[default]
    Wpt,
    /// A DPoP proof (RFC 9449), for a server that bound an access token to the key.
    Dpop {
        /// The access token it goes with.
        access_token: Option<Arc<Secret<String>>>,
        /// The server's nonce.
        nonce: Option<String>,
    },
}

impl Call {
    /// A call of `uri` by `method`.
    pub fn new(method: impl Into<String>, uri: impl Into<String>) -> Self {
        Self { method: method.into(), uri: uri.into(), ..Self::default() }
    }

    pub(super) fn to_wire(&self, session: String, acts_for: Option<ActFor>) -> wire::ProveRequest {
        let (scheme, access_token, nonce) = match &self.scheme {
            ProofScheme::Wpt => (wire::prove_request::Scheme::Wpt, None, None),
            ProofScheme::Dpop { access_token, nonce } => {
                (wire::prove_request::Scheme::Dpop, access_token.as_ref(), nonce.clone())
            }
        };
        wire::ProveRequest {
            scheme: scheme.into(),
            access_token: access_token.map(|token| token.expose().clone()).unwrap_or_default(),
            nonce: nonce.unwrap_or_default(),
            on_behalf_of: acts_for.map(ActFor::to_wire),
            session,
            method: self.method.clone(),
            uri: self.uri.clone(),
            body_sha256: Digest::to_wire(self.body),
            tool: self.tool.clone(),
            arguments_sha256: Digest::to_wire(self.arguments),
            effect: self.effect.to_wire(),
            rpc: self.rpc.clone(),
            txn: self.txn.clone().unwrap_or_default(),
            ..wire::ProveRequest::default()
        }
    }
}

/// What a token is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenKind {
    /// A WIT-SVID: of use with proofs alone, which the agent makes.
    #[default]
    Wit,
    /// A bearer JWT-SVID, for a service that takes nothing better: whoever has it can use it until it expires.
    Jwt,
}

/// A token to be minted.
#[derive(Clone, Debug, Default)]
pub struct NewToken {
    /// One of the session's targets, or a URI below it.
    pub target: String,
    /// Of the session's scopes; none for all of them.
    pub scopes: Vec<String>,
    /// What it is.
    pub kind: TokenKind,
}

impl NewToken {
    pub(super) fn to_wire(&self, session: String, acts_for: Option<ActFor>) -> wire::MintRequest {
        let kind = match self.kind {
            TokenKind::Wit => wire::mint_request::Kind::Wit,
            TokenKind::Jwt => wire::mint_request::Kind::Jwt,
        };
        wire::MintRequest {
            session,
            target: self.target.clone(),
            scopes: self.scopes.clone(),
            kind: kind.into(),
            on_behalf_of: acts_for.map(ActFor::to_wire),
            ..wire::MintRequest::default()
        }
    }
}

/// Which session something is done in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within<'a> {
    /// This one; `None` for the one session that the process is a member of.
    Session(Option<&'a str>),
    /// The one session that the process is a member of, and none if it is in none.
    SessionIfAny,
    /// None, even if the process is a member of one.
    NoSession,
}

/// A token, of a session as a rule.
#[derive(Debug)]
pub struct Token {
    /// In compact form.
    pub token: Secret<String>,
    /// Its id in the ledger: its `jti`.
    pub id: String,
    /// The session it belongs to; `None` for a bearer token outside of any.
    pub session: Option<String>,
    /// Where it is good.
    pub target: String,
    /// What of.
    pub scopes: Vec<String>,
    /// When it ends, if nothing ends it before.
    pub expires_at: OffsetDateTime,
    /// Good for one call.
    pub one_use: bool,
    /// What a thief can do with it, 0 (bearer) to 3, and the same for a person.
    pub binding: (u32, String),
}

impl Token {
    pub(super) fn read(answer: wire::MintResponse) -> Result<Self, ClientError> {
        if answer.token.is_empty() {
            return Err(malformed("the token", "it is empty"));
        }
        Ok(Self {
            expires_at: time("the token", &answer.expires_at)?,
            token: Secret::new(answer.token),
            id: answer.id,
            session: unless_empty(answer.session),
            target: answer.target,
            scopes: answer.scopes,
            one_use: answer.one_use,
            binding: (answer.binding, answer.binding_meaning),
        })
    }
}

/// Where a session stands. There is no way back from the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is signed until an approver agreed.
    PendingApproval {
        /// To what: `tether approval approve ID`.
        approval: String,
    },
    /// It may be used.
    Active,
    /// Nothing is signed and nothing stands until an operator resumes it.
    Suspended,
    /// For good.
    Ended {
        /// Why: `completed`, `expired`, `process_exit` and so on.
        reason: String,
    },
}

/// The person a session is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionUser {
    /// For people: `alice@NODE`, or `ISSUER#SUBJECT`.
    pub name: String,
    /// Who vouches.
    pub issuer: String,
    /// For whom.
    pub subject: String,
}

/// Signs of life that a session wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// At the least so often.
    pub every: Duration,
    /// The next one; `None` while none is due.
    pub due: Option<OffsetDateTime>,
}

/// A session, as it was when the agent answered.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its name. It is no credential.
    pub id: String,
    /// Where it stands.
    pub state: State,
    /// The session above.
    pub parent: Option<String>,
    /// How many are above it.
    pub depth: u32,
    /// The agent.
    pub spiffe_id: SpiffeId,
    /// The registration entry that gives the identity.
    pub entry: String,
    /// The person it is for; `None` when the agent acts for nobody but itself.
    pub user: Option<SessionUser>,
    /// What for.
    pub purpose: String,
    /// Where to.
    pub targets: Vec<String>,
    /// What of.
    pub scopes: Vec<String>,
    /// What it is limited to.
    pub boundary: Boundary,
    /// Who may act.
    pub scope: Scope,
    /// What its proofs are worth, 0 to 3.
    pub binding: u32,
    /// How often.
    pub budget: Budget,
    /// Tokens minted so far.
    pub tokens: u32,
    /// Calls proven so far.
    pub calls: u32,
    /// When it began; `None` while it waits.
    pub started_at: Option<OffsetDateTime>,
    /// When it ends at the latest.
    pub expires_at: OffsetDateTime,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
    /// Signs of life it wants.
    pub heartbeat: Option<Heartbeat>,
    /// The approval it waits for, or was allowed by.
    pub approval: Option<String>,
    /// The thumbprint (RFC 7638) of its key, which never leaves tether.
    pub key_thumbprint: String,
    /// The ended session it goes on with.
    pub resumes: Option<String>,
}

impl Session {
    pub(super) fn read(answer: wire::Session) -> Result<Self, ClientError> {
        let about = |error: &dyn std::fmt::Display| malformed("the session", error);
        if answer.id.is_empty() {
            return Err(about(&"it has no id"));
        }
        let state = match answer.state() {
            wire::State::PendingApproval => State::PendingApproval { approval: answer.approval.clone() },
            wire::State::Active => State::Active,
            wire::State::Suspended => State::Suspended,
            wire::State::Ended => State::Ended { reason: answer.end_reason.clone() },
            wire::State::Unspecified => return Err(about(&"its state is unknown")),
        };
        let boundary = match answer.boundary() {
            wire::Boundary::ToolCall => Boundary::ToolCall,
            wire::Boundary::Request => Boundary::Request,
            wire::Boundary::Task | wire::Boundary::Unspecified => Boundary::Task,
        };
        let scope = match answer.scope() {
            wire::Scope::Process | wire::Scope::Unspecified => Scope::Process,
            wire::Scope::Cgroup => Scope::Cgroup,
            wire::Scope::Tree => Scope::Tree,
        };
        let every = Duration::from_secs(answer.heartbeat_seconds.into());
        let budget = answer.budget.unwrap_or_default();
        let what = "the session";
        Ok(Self {
            spiffe_id: read_id(&answer.spiffe_id)?,
            started_at: time_if_any(what, &answer.started_at)?,
            expires_at: time(what, &answer.expires_at)?,
            ended_at: time_if_any(what, &answer.ended_at)?,
            heartbeat: match answer.heartbeat_seconds {
                0 => None,
                _ => Some(Heartbeat { every, due: time_if_any(what, &answer.heartbeat_due)? }),
            },
            user: (!answer.user.is_empty()).then_some(SessionUser {
                name: answer.user,
                issuer: answer.user_issuer,
                subject: answer.user_subject,
            }),
            budget: Budget { tokens: NonZeroU32::new(budget.max_tokens), calls: NonZeroU32::new(budget.max_calls) },
            state,
            boundary,
            scope,
            parent: unless_empty(answer.parent),
            approval: unless_empty(answer.approval),
            resumes: unless_empty(answer.resumes),
            id: answer.id,
            depth: answer.depth,
            entry: answer.entry,
            purpose: answer.purpose,
            targets: answer.targets,
            scopes: answer.scopes,
            binding: answer.binding,
            tokens: answer.tokens,
            calls: answer.calls,
            key_thumbprint: answer.key_thumbprint,
        })
    }
}

/// What became of everything a session was given.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The session.
    pub session: String,
    /// Why it ended.
    pub reason: String,
    /// When.
    pub ended_at: OffsetDateTime,
    /// It had ended before this call.
    pub had_ended: bool,
    /// Every session that ended with it, itself first.
    pub ended: Vec<String>,
    /// Private keys that were wiped.
    pub keys_wiped: u32,
    /// Credentials that were revoked.
    pub revoked: Vec<Disposed>,
    /// What tether cannot take back: bearer tokens at services that do not ask, proofs on their way.
    pub remaining: Vec<Disposed>,
    /// What is kept of the session.
    pub kept: Vec<Kept>,
}

/// A credential that is gone, or will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disposed {
    /// `wit`, `jwt` or `proof`.
    pub kind: String,
    /// Its id, where it has one.
    pub id: Option<String>,
    /// Where it was good.
    pub target: String,
    /// Worthless everywhere from then on.
    pub until: Option<OffsetDateTime>,
}

/// A record that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Where: `ledger`, `audit`.
    pub what: String,
    /// Until when; `None` when size and not time limits it.
    pub until: Option<OffsetDateTime>,
}

impl Receipt {
    pub(super) fn read(answer: wire::DisposalReceipt) -> Result<Self, ClientError> {
        let what = "the receipt";
        let kept = |kept: wire::Kept| Ok(Kept { until: time_if_any(what, &kept.until)?, what: kept.what });
        let disposed = |row: wire::Disposed| {
            let until = time_if_any(what, &row.until)?;
            Ok(Disposed { kind: row.kind, id: unless_empty(row.id), target: row.target, until })
        };
        Ok(Self {
            ended_at: time(what, &answer.ended_at)?,
            revoked: answer.revoked.into_iter().map(disposed).collect::<Result<_, ClientError>>()?,
            remaining: answer.remaining.into_iter().map(disposed).collect::<Result<_, ClientError>>()?,
            kept: answer.kept.into_iter().map(kept).collect::<Result<_, ClientError>>()?,
            session: answer.session,
            reason: answer.end_reason,
            had_ended: answer.had_ended,
            ended: answer.ended,
            keys_wiped: answer.keys_wiped,
        })
    }
}

pub(in crate::client) fn unless_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

pub(in crate::client) fn time(what: &str, text: &str) -> Result<OffsetDateTime, ClientError> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|error| malformed(&format!("a time of {what}"), error))
}

fn time_if_any(what: &str, text: &str) -> Result<Option<OffsetDateTime>, ClientError> {
    if text.is_empty() { Ok(None) } else { time(what, text).map(Some) }
}
