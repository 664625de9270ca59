//! `tether.session.v1.Verifier`: what tools ask.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::{WIT_HEADER, rfc3339, state_view, target};
use crate::api::status;
use crate::api::workload::{Open, Updates, caller};
use crate::base::drain;
use crate::issue::Refusal;
use crate::policy::Effect;
use crate::proof::{BodyDigest, Presented};
use crate::proto::session as wire;
use crate::proto::session::report_request::Outcome;
use crate::proto::session::verifier_server::Verifier as Service;
use crate::session::{EndReason, State};
use crate::verify::{Call, CheckedChange, Inactive, Report, ReportError, Rpc, RpcVerdict, Verified, Verifier};
use crate::x509::Chain;

/// The longest name of a tool or a scope, and the most scopes an asker may want.
const MAX_NAME_BYTES: usize = 256;
const MAX_SCOPES: usize = 64;
/// The most calls inside one request.
const MAX_RPCS: usize = 64;

/// The service.
#[derive(Clone, Debug)]
pub struct VerifierApi {
    verifier: Arc<Verifier>,
    drain: drain::Watcher,
}

impl VerifierApi {
    /// Answers from `verifier` until `drain` begins.
    pub fn new(verifier: Arc<Verifier>, drain: drain::Watcher) -> Self {
        Self { verifier, drain }
    }
}

#[tonic::async_trait]
impl Service for VerifierApi {
    type WatchStream = Updates<wire::StatusChange>;

    async fn check(&self, request: Request<wire::CheckRequest>) -> Result<Response<wire::CheckResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        let call = call(&request)?;
        let verdict = self.verifier.check(&peer, &call, presented(&request.headers)).await;
        let verdict = verdict.map_err(|refusal| status::refused(&refusal))?;
        Ok(Response::new(verdict.map_or_else(|inactive| refused(&inactive), |verified| accepted(&verified))))
    }

    async fn report(&self, request: Request<wire::ReportRequest>) -> Result<Response<wire::ReportResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        let outcome = match Outcome::try_from(request.outcome) {
            Ok(Outcome::Done) => "done",
            Ok(Outcome::Failed) => "failed",
            Ok(Outcome::Refused) => "refused",
            _ => return Err(status::bad_field("outcome", "is none of DONE, FAILED and REFUSED")),
        };
        let result = digest("result_sha256", &request.result_sha256)?;
        let report = Report { session: request.session, txn: request.txn, outcome, note: request.note, result };
        match self.verifier.report(&peer, &report).await {
            Ok(()) => Ok(Response::new(wire::ReportResponse {})),
            Err(ReportError::Refused(refusal)) => Err(status::refused(&refusal)),
            Err(error @ ReportError::NotChecked(_)) => Err(Status::not_found(error.to_string())),
            Err(error @ ReportError::Note) => Err(status::bad_field("note", format!("is refused: {error}"))),
        }
    }

    async fn watch(&self, request: Request<wire::WatchCheckedRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (peer, place) = caller(&request)?;
        let changes = self.verifier.watch(&peer).await.map_err(|refusal| status::refused(&refusal))?;
        let open = Open::new(self.verifier.issuer(), place, "WatchChecked");
        let watching = (changes, self.verifier.clone(), self.drain.clone(), open);
        Ok(Response::new(Box::pin(stream::unfold(Some(watching), |watching| async move {
            let (mut changes, verifier, mut drain, open) = watching?;
            let change = tokio::select! {
                () = drain.draining() => None,
                change = changes.next(&verifier) => change,
            };
            match change {
                Some(change) => Some((
                    Ok(change_view(&change, verifier.issuer().clock.now())),
                    Some((changes, verifier, drain, open)),
                )),
                None => Some((Err(status::refused(&Refusal::Stopping)), None)),
            }
        }))))
    }
}

fn change_view(change: &CheckedChange, now: OffsetDateTime) -> wire::StatusChange {
    wire::StatusChange {
        session: change.session.clone(),
        state: change.state.map_or(wire::State::Ended, state_view).into(),
        end_reason: change.state.and_then(State::end_reason).map(EndReason::as_str).unwrap_or_default().to_owned(),
        at: rfc3339(change.at.unwrap_or(now)),
    }
}

fn digest(field: &'static str, bytes: &[u8]) -> Result<Option<BodyDigest>, Status> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let wrong = || status::bad_field(field, format!("has {} bytes, not 32", bytes.len()));
    BodyDigest::from_slice(bytes).map(Some).ok_or_else(wrong)
}

fn call(request: &wire::CheckRequest) -> Result<Call, Status> {
    let target = target(&request.method, &request.uri, &request.body_sha256)?;
    if request.tool.len() > MAX_NAME_BYTES {
        return Err(status::bad_field("tool", format!("has more than {MAX_NAME_BYTES} bytes")));
    }
    if request.scopes.len() > MAX_SCOPES || request.scopes.iter().any(|scope| scope.len() > MAX_NAME_BYTES) {
        return Err(status::bad_field("scopes", format!("are more than {MAX_SCOPES}, or one is too long")));
    }
    Ok(Call {
        target,
        tool: request.tool.clone(),
        arguments: digest("arguments_sha256", &request.arguments_sha256)?,
        effect: effect(request.effect)?,
        scopes: request.scopes.clone(),
        min_binding: u8::try_from(request.min_binding).unwrap_or(u8::MAX),
        require_session: request.require_session,
        peer: peer(&request.peer_certificates)?,
        rpcs: rpcs(request)?,
    })
}

/// What the caller proved in TLS.
fn peer(certificates: &[Bytes]) -> Result<Option<Chain>, Status> {
    if certificates.is_empty() {
        return Ok(None);
    }
    let certificates: Vec<CertificateDer<'_>> =
        certificates.iter().map(|certificate| CertificateDer::from(certificate.as_ref())).collect();
    let chain = Chain::from_certificates(&certificates);
    chain.map(Some).map_err(|error| status::bad_field("peer_certificates", format!("are refused: {error}")))
}

fn rpcs(request: &wire::CheckRequest) -> Result<Vec<Rpc>, Status> {
    if request.rpcs.is_empty() {
        return Ok(Vec::new());
    }
    if request.rpcs.len() > MAX_RPCS {
        return Err(status::bad_field("rpcs", format!("are more than {MAX_RPCS}")));
    }
    if !request.tool.is_empty() || !request.arguments_sha256.is_empty() || request.effect != 0 {
        return Err(status::bad_field(
            "tool",
            "and what else is said of a call are said of each of `rpcs`, or of none",
        ));
    }
    let rpc = |rpc: &wire::Rpc| {
        if rpc.method.is_empty() || rpc.method.len().max(rpc.tool.len()) > MAX_NAME_BYTES {
            return Err(status::bad_field("rpcs", format!("have names of 1 to {MAX_NAME_BYTES} bytes")));
        }
        Ok(Rpc {
            method: rpc.method.clone(),
            tool: rpc.tool.clone(),
            arguments: digest("rpcs.arguments_sha256", &rpc.arguments_sha256)?,
            effect: effect(rpc.effect)?,
        })
    };
    request.rpcs.iter().map(rpc).collect()
}

/// What a call does, where the field says it.
fn effect(effect: i32) -> Result<Option<Effect>, Status> {
    match wire::Effect::try_from(effect) {
        Ok(wire::Effect::Unspecified) => Ok(None),
        Ok(wire::Effect::Read) => Ok(Some(Effect::Read)),
        Ok(wire::Effect::Write) => Ok(Some(Effect::Write)),
        Ok(wire::Effect::Irreversible) => Ok(Some(Effect::Irreversible)),
        Err(_) => Err(status::bad_field("effect", format!("{effect} is none of READ, WRITE and IRREVERSIBLE"))),
    }
}

fn accepted(verified: &Verified) -> wire::CheckResponse {
    let of_proof = wire::CheckResponse {
        active: true,
        spiffe_id: verified.spiffe_id.to_string(),
        binding: verified.binding.into(),
        expires_at: rfc3339(verified.expires_at),
        key_thumbprint: verified.thumbprint.clone(),
        proven: verified.proven,
        rpcs: verified.rpcs.iter().map(rpc_view).collect(),
        effect: verified
            .decided
            .as_ref()
            .map_or(wire::Effect::Unspecified, |decided| effect_view(decided.effect))
            .into(),
        redact: verified.decided.iter().flat_map(|decided| decided.redact.iter().cloned()).collect(),
        policies: verified.decided.iter().flat_map(|decided| decided.policies.iter().cloned()).collect(),
        ..wire::CheckResponse::default()
    };
    let Some(session) = &verified.session else { return of_proof };
    let view = &session.view;
    wire::CheckResponse {
        session: view.id.clone(),
        user: view.user.as_ref().map(ToString::to_string).unwrap_or_default(),
        user_issuer: view.user.as_ref().map(|user| user.issuer.clone()).unwrap_or_default(),
        user_subject: view.user.as_ref().map(|user| user.subject.clone()).unwrap_or_default(),
        purpose: view.purpose.clone(),
        scopes: session.agreed.scopes.clone(),
        txn: session.txn.clone(),
        delegated_by: view.delegated_by.iter().map(ToString::to_string).collect(),
        ..of_proof
    }
}

fn rpc_view(verdict: &RpcVerdict) -> wire::RpcVerdict {
    let effect = effect_view(verdict.effect).into();
    match &verdict.outcome {
        Ok(decided) => wire::RpcVerdict {
            allowed: true,
            effect,
            policies: decided.policies.to_vec(),
            redact: decided.redact.iter().cloned().collect(),
            ..wire::RpcVerdict::default()
        },
        Err(refused) => wire::RpcVerdict {
            reason: refused.reason.to_owned(),
            approval: refused.approval.clone().unwrap_or_default(),
            effect,
            policies: refused.policies.clone(),
            ..wire::RpcVerdict::default()
        },
    }
}

fn effect_view(effect: Effect) -> wire::Effect {
    match effect {
        Effect::Read => wire::Effect::Read,
        Effect::Write => wire::Effect::Write,
        Effect::Irreversible => wire::Effect::Irreversible,
    }
}

fn refused(inactive: &Inactive) -> wire::CheckResponse {
    wire::CheckResponse {
        reason: inactive.as_str().to_owned(),
        approval: inactive.approval().unwrap_or_default().to_owned(),
        ..wire::CheckResponse::default()
    }
}

/// The WIT and proof among the headers, if each is there once. A header that is there twice, in two spellings of its
/// name, is one that two readers could read in two ways.
fn presented(headers: &HashMap<String, String>) -> Option<Presented<'_>> {
    let wit = once(headers, WIT_HEADER)?.filter(|wit| !wit.is_empty())?;
    let (scheme, proof) = once(headers, "Authorization")??.split_once(' ')?;
    let txn_token = once(headers, "Txn-Token")?;
    scheme.eq_ignore_ascii_case("WPT").then_some(Presented { wit, proof: proof.trim(), txn_token })
}

/// The value of a header; `None` when it is there more than once.
fn once<'a>(headers: &'a HashMap<String, String>, name: &str) -> Option<Option<&'a str>> {
    let mut values = headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
    let first = values.next();
    values.next().is_none().then_some(first)
}
