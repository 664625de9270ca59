//! For tools: whether what a caller presents is good, now. [`VerifyLayer`] asks for each request of an HTTP service;
//! [`VerifierClient`] is the same for everything else.
//!
//! Promises: a [`Verified`] exists only after the agent said so of this very request; every other answer, and none, is a
//! refusal. What is told to the caller is a coarse class ([`Class`]); the reason is for the tool's own log.
//!
//! Does not: decide what the tool itself must know, such as whether this user may see that record; or check anything without
//! the agent. The tool's registration entry must list what it serves under `serves`, or the agent answers nothing.

mod layer;
#[cfg(all(test, feature = "agent"))]
mod tests;

use std::collections::HashMap;

use http::{HeaderMap, HeaderName, header};
use thiserror::Error;
use time::OffsetDateTime;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

pub use layer::{Described, PublicBase, Verify, VerifyLayer};

use super::session::{Digest, Effect, SessionUser, State, time, unless_empty};
use super::tls::PeerCertificates;
use super::watch::Watch;
use super::workload::{SecurityHeader, malformed, read_id};
use super::{ClientError, Endpoint, channel, with_header};
use crate::id::SpiffeId;
use crate::proto::session as wire;
use crate::proto::session::verifier_client;

type Client = verifier_client::VerifierClient<InterceptedService<Channel, SecurityHeader>>;

/// Status changes of sessions whose calls this tool has checked.
pub type StatusWatch = Watch<wire::StatusChange, StatusChange>;

const WIT: HeaderName = HeaderName::from_static("workload-identity-token");
const TXN_TOKEN: HeaderName = HeaderName::from_static("txn-token");

/// Why a request is not to be served.
#[derive(Debug, Error)]
pub enum CheckError {
    /// The agent, or this library already, refuses the request.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is no answer about the request, so it is not served: the agent is away, or this tool may not ask
    /// ([`ClientError::Denied`]: its entry does not list the URI under `serves`).
    #[error("the request could not be checked")]
    Agent(#[from] ClientError),
}

/// A request that is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("refused: {reason}")]
pub struct Refused {
    /// What the caller may know.
    pub class: Class,
    /// For the tool's own log, never for the caller: one of the names in `proto/session.proto`, at `CheckResponse.reason`.
    pub reason: String,
    /// With [`Class::StepUp`]: what an approver has to agree to before the same call goes through.
    pub approval: Option<String>,
}

/// What a caller is told of a refusal: enough to do the right thing next, and nothing about what was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// There is no proof, or it does not hold, or what it stands on does not stand: present another.
    Unproven,
    /// The caller is who it says, and may not do this.
    Forbidden,
    /// A person has to agree first.
    StepUp,
    /// It cannot be told now: try again.
    Unavailable,
}

impl Class {
    /// The stable name that callers see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::Forbidden => "forbidden",
            Self::StepUp => "step_up",
            Self::Unavailable => "unavailable",
        }
    }

    /// The class of a reason. One that is not known here is of a newer agent: the proof did not hold.
    fn of(reason: &str) -> Self {
        match reason {
            "target" | "scope" | "binding" | "tool" | "arguments" | "effect" | "no_session" | "policy" => {
                Self::Forbidden
            }
            "step_up" => Self::StepUp,
            "unseen" | "busy" | "node_unreachable" => Self::Unavailable,
            _ => Self::Unproven,
        }
    }
}

/// A caller who is who it says, whose call is allowed now. Only [`VerifierClient::check`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// The agent that calls.
    pub spiffe_id: SpiffeId,
    /// The binding level of what it presented, 0 to 3.
    pub binding: u32,
    /// A proof came with this very request. Without one, TLS alone says who calls: whoever shares the connection may have sent it.
    pub proven: bool,
    /// The end of the proof; without one, of the certificate.
    pub expires_at: OffsetDateTime,
    /// The thumbprint (RFC 7638) of the key that signed.
    pub key_thumbprint: String,
    /// What the call does, as it was decided on; [`Effect::ByMethod`] when the agent did not say.
    pub effect: Effect,
    /// What may be done of the calls inside the request ([`Check::rpcs`]), in their order.
    pub rpcs: Vec<RpcVerdict>,
    /// The session it calls in; `None` outside of one, and then everything below is empty.
    pub session: Option<String>,
    /// The person it acts for.
    pub user: Option<SessionUser>,
    /// What for.
    pub purpose: Option<String>,
    /// What of.
    pub scopes: Vec<String>,
    /// The transaction, for [`VerifierClient::report`] and the tool's own log.
    pub txn: Option<String>,
    /// The agents that delegated to the one that calls, the nearest first.
    pub delegated_by: Vec<SpiffeId>,
    /// What policy wants left out of logs: names of fields, such as `user`.
    pub redact: Vec<String>,
}

impl Verified {
    /// Whether `scope` is among its scopes.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.iter().any(|own| own == scope)
    }

    fn read(answer: wire::CheckResponse) -> Result<Self, ClientError> {
        let delegated_by = answer.delegated_by.iter().map(|id| read_id(id));
        Ok(Self {
            proven: answer.proven,
            effect: Effect::read(answer.effect()),
            rpcs: answer.rpcs.into_iter().map(RpcVerdict::read).collect(),
            spiffe_id: read_id(&answer.spiffe_id)?,
            binding: answer.binding,
            expires_at: time("the check", &answer.expires_at)?,
            delegated_by: delegated_by.collect::<Result<_, _>>()?,
            key_thumbprint: answer.key_thumbprint,
            user: (!answer.user.is_empty()).then_some(SessionUser {
                name: answer.user,
                issuer: answer.user_issuer,
                subject: answer.user_subject,
            }),
            session: unless_empty(answer.session),
            purpose: unless_empty(answer.purpose),
            txn: unless_empty(answer.txn),
            scopes: answer.scopes,
            redact: answer.redact,
        })
    }
}

/// One call inside a request, where requests carry calls of their own (JSON-RPC).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rpc {
    /// Its method, such as `tools/call`.
    pub method: String,
    /// The tool that is called; empty for none.
    pub tool: String,
    /// The tool's arguments, in the canonical form of RFC 8785.
    pub arguments: Option<Digest>,
    /// What it does, where this side knows. [`Effect::ByMethod`] leaves it to policy (`@effect`), which takes the call of a
    /// tool for irreversible where it says nothing.
    pub effect: Effect,
}

impl Rpc {
    fn to_wire(&self) -> wire::Rpc {
        wire::Rpc {
            method: self.method.clone(),
            tool: self.tool.clone(),
            arguments_sha256: Digest::to_wire(self.arguments),
            effect: self.effect.to_wire(),
        }
    }
}

/// Whether one call inside a request may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RpcVerdict {
    /// It may.
    pub allowed: bool,
    /// Why not, as [`Refused::reason`]: for the tool's own log. Empty when it may.
    pub reason: String,
    /// With the reason `step_up`: what an approver has to agree to before the same call goes through.
    pub approval: Option<String>,
    /// What it does, as it was decided on; [`Effect::ByMethod`] when the agent did not say.
    pub effect: Effect,
    /// What policy wants left out of logs: names of fields.
    pub redact: Vec<String>,
}

impl RpcVerdict {
    /// What the caller may know of a refusal; `None` when it is allowed.
    pub fn refused(&self) -> Option<Refused> {
        if self.allowed {
            return None;
        }
        let (reason, approval) = (self.reason.clone(), self.approval.clone());
        Some(Refused { class: Class::of(&reason), reason, approval })
    }

    fn read(verdict: wire::RpcVerdict) -> Self {
        Self {
            effect: Effect::read(verdict.effect()),
            allowed: verdict.allowed,
            reason: verdict.reason,
            approval: unless_empty(verdict.approval),
            redact: verdict.redact,
        }
    }
}

/// What is asked about one request.
#[derive(Debug)]
pub struct Check {
    method: String,
    uri: String,
    headers: HashMap<String, String>,
    peer: Option<PeerCertificates>,
    /// The body, when the proof must cover it.
    pub body: Option<Digest>,
    /// The tool that is called, as this side sees it: what the agent said in the proof must be the same.
    pub tool: String,
    /// Its arguments.
    pub arguments: Option<Digest>,
    /// What it does.
    pub effect: Effect,
    /// Each must be among the token's scopes.
    pub scopes: Vec<String>,
    /// The least binding level that is taken.
    pub min_binding: u32,
    /// The request must be made in a session.
    pub require_session: bool,
    /// The calls it carries, each decided apart ([`Verified::rpcs`]): at most 64, and then `tool` and `arguments` are empty.
    pub rpcs: Vec<Rpc>,
}

impl Check {
    /// A question about a request by `method` to `uri`, which is where the tool serves it by its own configuration, never by
    /// the request's `Host`. Of the headers only those that carry identity are taken. In a session, unless changed.
    ///
    /// # Errors
    /// The headers that prove a request are not there, or one is there twice.
    pub fn new(method: &http::Method, uri: impl Into<String>, headers: &HeaderMap) -> Result<Self, Refused> {
        let check = Self::read(method, uri.into(), headers, None)?;
        if check.has_proof() { Ok(check) } else { Err(Self::no_proof()) }
    }

    /// As [`Self::new`], of a request on a connection whose peer proved `peer`: it is judged once more, and a proof that comes
    /// along must be of the same identity. The request may come without one, where the tool takes calls outside a session
    /// (`require_session`) and policy permits `reach`; [`Verified::proven`] says which it was.
    ///
    /// # Errors
    /// There is half a proof, or a header of it is there twice.
    pub fn from_peer(
        method: &http::Method,
        uri: impl Into<String>,
        headers: &HeaderMap,
        peer: &PeerCertificates,
    ) -> Result<Self, Refused> {
        Self::read(method, uri.into(), headers, Some(peer.clone()))
    }

    /// The headers of a proof are all there, or none of them is.
    fn read(
        method: &http::Method,
        uri: String,
        headers: &HeaderMap,
        peer: Option<PeerCertificates>,
    ) -> Result<Self, Refused> {
        let mut taken = HashMap::new();
        for name in [WIT, header::AUTHORIZATION, TXN_TOKEN] {
            let mut values = headers.get_all(&name).iter();
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                return Err(Self::no_proof());
            }
            let value = value.to_str().map_err(|_| Self::no_proof())?;
            taken.insert(name.as_str().to_owned(), value.to_owned());
        }
        // By another scheme it is for the tool itself, and none of the agent's business.
        let is_wpt =
            |value: &String| value.split_once(' ').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("WPT"));
        let proof = taken.get(header::AUTHORIZATION.as_str()).is_some_and(is_wpt);
        if !proof {
            taken.remove(header::AUTHORIZATION.as_str());
        }
        if proof != taken.contains_key(WIT.as_str()) {
            return Err(Self::no_proof());
        }
        Ok(Self {
            method: method.as_str().to_owned(),
            uri,
            headers: taken,
            peer,
            body: None,
            tool: String::new(),
            arguments: None,
            effect: Effect::ByMethod,
            scopes: Vec::new(),
            min_binding: 0,
            require_session: true,
            rpcs: Vec::new(),
        })
    }

    /// Whether a proof came with the request.
    pub fn has_proof(&self) -> bool {
        self.headers.contains_key(WIT.as_str())
    }

    pub(super) fn no_proof() -> Refused {
        Refused { class: Class::Unproven, reason: "no_proof".to_owned(), approval: None }
    }

    fn to_wire(&self) -> wire::CheckRequest {
        wire::CheckRequest {
            method: self.method.clone(),
            uri: self.uri.clone(),
            headers: self.headers.clone(),
            body_sha256: Digest::to_wire(self.body),
            tool: self.tool.clone(),
            arguments_sha256: Digest::to_wire(self.arguments),
            effect: self.effect.to_wire(),
            scopes: self.scopes.clone(),
            min_binding: self.min_binding,
            require_session: self.require_session,
            peer_certificates: self.peer.iter().flat_map(PeerCertificates::to_wire).collect(),
            rpcs: self.rpcs.iter().map(Rpc::to_wire).collect(),
        }
    }
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was tried and failed.
    Failed,
    /// The tool refused it by its own rules.
    Refused,
}

/// A session that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusChange {
    /// Which.
    pub session: String,
    /// How it stands now.
    pub state: State,
    /// Since when.
    pub at: OffsetDateTime,
}

/// A client of `tether.session.v1.Verifier`. Cheap to clone; all clones share a connection.
#[derive(Clone)]
pub struct VerifierClient {
    client: Client,
    endpoint: Endpoint,
}

impl VerifierClient {
    /// A client of the agent at `endpoint`. Connects at the first call.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { client: Client::new(with_header(channel(&endpoint))), endpoint }
    }

    /// A client of the agent that `SPIFFE_ENDPOINT_SOCKET` names in this process's environment.
    ///
    /// # Errors
    /// The variable is not set or is not an endpoint.
    pub fn from_env() -> Result<Self, ClientError> {
        Ok(Self::new(Endpoint::from_env(|name| std::env::var(name).ok())?))
    }

    /// Asks about one request. A proof is good once: ask once for each request.
    ///
    /// # Errors
    /// Everything but the agent's word that the request is to be served.
    pub async fn check(&self, check: &Check) -> Result<Verified, CheckError> {
        let answer = self.client.clone().check(check.to_wire()).await;
        let answer = answer.map_err(|status| self.failed(&status))?.into_inner();
        if !answer.active {
            let class = Class::of(&answer.reason);
            return Err(Refused { class, reason: answer.reason, approval: unless_empty(answer.approval) }.into());
        }
        let verified = Verified::read(answer)?;
        if verified.rpcs.len() != check.rpcs.len() {
            return Err(malformed("the check", "it does not answer for each call inside the request").into());
        }
        // The agent has checked it; an agent too old to know the question has not.
        if check.require_session && verified.session.is_none() {
            return Err(Refused { class: Class::Forbidden, reason: "no_session".to_owned(), approval: None }.into());
        }
        Ok(verified)
    }

    /// Says what became of a call, to be joined with it in the audit log. `note` is one line; never prompts, arguments or
    /// results.
    ///
    /// # Errors
    /// The call was made outside a session and has no transaction; or the agent is away.
    pub async fn report(
        &self,
        call: &Verified,
        outcome: Outcome,
        note: &str,
        result: Option<Digest>,
    ) -> Result<(), ClientError> {
        let (Some(session), Some(txn)) = (&call.session, &call.txn) else {
            return Err(ClientError::Invalid("a call outside a session has no transaction to report on".to_owned()));
        };
        let outcome = match outcome {
            Outcome::Done => wire::report_request::Outcome::Done,
            Outcome::Failed => wire::report_request::Outcome::Failed,
            Outcome::Refused => wire::report_request::Outcome::Refused,
        };
        let request = wire::ReportRequest {
            session: session.clone(),
            txn: txn.clone(),
            outcome: outcome.into(),
            note: note.to_owned(),
            result_sha256: Digest::to_wire(result),
        };
        self.client.clone().report(request).await.map_err(|status| self.failed(&status))?;
        Ok(())
    }

    /// The sessions whose calls this tool has checked, as they suspend, resume and end: to drop what was begun for them.
    pub fn watch(&self) -> StatusWatch {
        let client = self.client.clone();
        let open = move || {
            let mut client = client.clone();
            Box::pin(async move { client.watch(wire::WatchCheckedRequest {}).await }) as _
        };
        Watch::of(&self.endpoint, open, read_change)
    }

    fn failed(&self, status: &tonic::Status) -> ClientError {
        ClientError::from_status(&self.endpoint, status)
    }
}

fn read_change(change: wire::StatusChange) -> Result<StatusChange, ClientError> {
    let state = match change.state() {
        wire::State::Active => State::Active,
        wire::State::Suspended => State::Suspended,
        wire::State::Ended => State::Ended { reason: change.end_reason.clone() },
        // A session whose call was checked does not wait to begin.
        wire::State::PendingApproval | wire::State::Unspecified => {
            return Err(malformed("a status change", "its state is unknown"));
        }
    };
    Ok(StatusChange { at: time("a status change", &change.at)?, session: change.session, state })
}
