//! `tether.session.v1` over the real caller: translates, decides nothing.

mod tasks;
mod verifier;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Request, Response, Status};

use super::status;
use super::workload::{Open, Updates, caller, respond, x509_bundle, x509_map};
use crate::base::drain;
use crate::held::{HeldCredential, Holds};
use crate::id::SpiffeId;
use crate::issue::{Asking, HeldX509State, Issuer, OnBehalfOf, ProofRequest, ProofScheme, Refusal};
use crate::peer::PeerConn;
use crate::proof::{BodyDigest, Method, ProofTarget, TargetUri};
use crate::proto::session as wire;
use crate::proto::session::prove_request::Scheme;
use crate::proto::session::sessions_server::Sessions as Service;
use crate::session::{ProveWish, Sessions};
use crate::stream::{Update, updates};

pub(crate) use self::tasks::{state_view, view};
pub use self::verifier::VerifierApi;

/// The header that carries a WIT (draft-ietf-wimse-workload-creds).
const WIT_HEADER: &str = "Workload-Identity-Token";
/// The longest access token or nonce that a DPoP proof is made for.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// Sessions, and keys that never leave.
#[derive(Clone, Debug)]
pub struct SessionApi {
    sessions: Sessions,
    issuer: Arc<Issuer>,
    drain: drain::Watcher,
}

impl SessionApi {
    /// Serves `sessions`, and what their issuer holds, until `drain` begins.
    pub fn new(sessions: Sessions, drain: drain::Watcher) -> Self {
        Self { issuer: sessions.issuer().clone(), sessions, drain }
    }
}

#[tonic::async_trait]
impl Service for SessionApi {
    type HoldX509Stream = Updates<wire::HoldX509Response>;
    type WatchStream = Updates<wire::Session>;

    async fn start(&self, request: Request<wire::StartRequest>) -> Result<Response<wire::Session>, Status> {
        self.start_task(request).await
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::Session>, Status> {
        self.get_task(request).await
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Result<Response<wire::ListResponse>, Status> {
        self.list_tasks(request).await
    }

    async fn heartbeat(&self, request: Request<wire::HeartbeatRequest>) -> Result<Response<wire::Session>, Status> {
        self.beat(request).await
    }

    async fn mint(&self, request: Request<wire::MintRequest>) -> Result<Response<wire::MintResponse>, Status> {
        self.mint_token(request).await
    }

    async fn delegate(&self, request: Request<wire::DelegateRequest>) -> Result<Response<wire::Session>, Status> {
        self.delegate_task(request).await
    }

    async fn end(&self, request: Request<wire::EndRequest>) -> Result<Response<wire::DisposalReceipt>, Status> {
        self.end_task(request).await
    }

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.watch_tasks(request).await
    }

    async fn hold_x509(
        &self,
        request: Request<wire::HoldX509Request>,
    ) -> Result<Response<Self::HoldX509Stream>, Status> {
        let (peer, place) = caller(&request)?;
        let request = request.into_inner();
        let wanted = spiffe_id(&request.spiffe_id)?;
        let on_behalf_of = request.on_behalf_of.map(on_behalf_of);
        let open = Open::new(&self.issuer, place, "HoldX509");
        let states = updates(self.issuer.clone(), peer, self.drain.clone(), move |issuer, peer| {
            let wanted = wanted.clone();
            async move {
                // Before it is judged: then it is either the process that was judged, or one that has ended already.
                let target = on_behalf_of.map(|other| issuer.instances.of_pid(other.pid, Some(other.pidfs_inode)));
                let state = issuer.hold_x509(&peer, wanted.as_ref(), on_behalf_of).await?;
                // Whoever may not act for it has not come here, and does not learn whether it is there.
                let target = target.transpose().map_err(Refusal::Target)?;
                let renew_at = Some(state.renew_at);
                let credentials = state.svids.iter().map(|(held, _)| held.id().to_owned()).collect();
                Ok(Update { state, credentials, target, renew_at })
            }
        });
        Ok(respond(states, open, |state| hold_x509_response(&state)))
    }

    async fn sign_tls(
        &self,
        request: Request<wire::SignTlsRequest>,
    ) -> Result<Response<wire::SignTlsResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        let on_behalf_of = request.on_behalf_of.map(on_behalf_of);
        let signed = self.issuer.sign_tls(&peer, &request.key, request.scheme, &request.content, on_behalf_of).await;
        let signature = signed.map_err(|refusal| status::refused(&refusal))?;
        Ok(Response::new(wire::SignTlsResponse { signature: signature.into() }))
    }

    async fn hold_wit(
        &self,
        request: Request<wire::HoldWitRequest>,
    ) -> Result<Response<wire::HoldWitResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        let wanted = spiffe_id(&request.spiffe_id)?;
        let held = self.issuer.hold_wit(&peer, wanted.as_ref(), request.on_behalf_of.map(on_behalf_of)).await;
        let (held, hint) = held.map_err(|refusal| status::refused(&refusal))?;
        Ok(Response::new(wire::HoldWitResponse {
            spiffe_id: held.spiffe_id().to_string(),
            key: held.handle().to_owned(),
            wit_svid: wit(&held)?.to_owned(),
            hint: hint.as_deref().unwrap_or_default().to_owned(),
            expires_at: rfc3339(held.not_after()),
            binding: held.binding().into(),
        }))
    }

    async fn prove(&self, request: Request<wire::ProveRequest>) -> Result<Response<wire::ProveResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        let scheme = Scheme::try_from(request.scheme)
            .map_err(|_| status::bad_field("scheme", format!("{} is not one of WPT and DPOP", request.scheme)))?;
        let target = target(&request.method, &request.uri, &request.body_sha256)?;
        let scheme = match scheme {
            Scheme::Wpt => {
                let foreign = [("access_token", &request.access_token), ("nonce", &request.nonce)];
                if let Some((field, _)) = foreign.into_iter().find(|(_, value)| !value.is_empty()) {
                    return Err(status::bad_field(field, "is for DPOP alone"));
                }
                ProofScheme::Wpt
            }
            Scheme::Dpop => ProofScheme::Dpop {
                access_token: optional("access_token", &request.access_token)?,
                nonce: optional("nonce", &request.nonce)?,
            },
        };
        let key = Some(request.key.as_str()).filter(|key| !key.is_empty());
        let asking = asking(&peer, request.on_behalf_of);
        if let Some(session) = self.session_of(asking, &request).await? {
            return self.prove_in_session(asking, &session, &request, target, scheme).await;
        }
        let proving = ProofRequest { key, target, scheme };
        let proven = self.issuer.prove(&peer, &proving, asking.on_behalf_of).await;
        let (proof, key) = proven.map_err(|refusal| status::refused(&refusal))?;
        let headers = match scheme {
            ProofScheme::Wpt => HashMap::from([
                (WIT_HEADER.to_owned(), wit(&key)?.to_owned()),
                ("Authorization".to_owned(), format!("WPT {}", proof.token)),
            ]),
            ProofScheme::Dpop { .. } => HashMap::from([("DPoP".to_owned(), proof.token)]),
        };
        let expires_at = rfc3339(proof.expires_at);
        Ok(Response::new(wire::ProveResponse { headers, expires_at, ..wire::ProveResponse::default() }))
    }
}

impl SessionApi {
    /// The session a request is to be proven in: the one it names, or the one its caller is in.
    async fn session_of(&self, asking: Asking<'_>, request: &wire::ProveRequest) -> Result<Option<String>, Status> {
        if !request.session.is_empty() {
            return match request.without_session {
                true => Err(status::bad_field("session", "is there although `without_session` is set")),
                false => Ok(Some(request.session.clone())),
            };
        }
        // The names of tokens begin with the node, those of keys do not.
        let is_key = !request.key.is_empty() && !request.key.contains('.');
        if request.without_session || is_key {
            return Ok(None);
        }
        let session = self.sessions.innermost_for(asking).await.map_err(|error| status::session(&error))?;
        Ok(session.map(|session| session.terms().id.to_string()))
    }

    async fn prove_in_session(
        &self,
        asking: Asking<'_>,
        session: &str,
        request: &wire::ProveRequest,
        target: ProofTarget,
        scheme: ProofScheme<'_>,
    ) -> Result<Response<wire::ProveResponse>, Status> {
        let arguments_sha256 = match request.arguments_sha256.len() {
            0 => None,
            _ => Some(<[u8; 32]>::try_from(&request.arguments_sha256[..]).map_err(|_| {
                let length = request.arguments_sha256.len();
                status::bad_field("arguments_sha256", format!("has {length} bytes, not 32"))
            })?),
        };
        let wish = ProveWish {
            target,
            scheme,
            tool: request.tool.clone(),
            rpc: request.rpc.clone(),
            arguments_sha256,
            token: Some(request.key.as_str()).filter(|token| !token.is_empty()),
            effect: tasks::effect(request.effect)?,
            txn: request.txn.clone(),
        };
        let proven = self.sessions.prove(asking, session, &wish).await.map_err(|error| status::session(&error))?;
        let headers = match &proven.wit {
            Some(wit) => HashMap::from([
                (WIT_HEADER.to_owned(), wit.to_string()),
                ("Authorization".to_owned(), format!("WPT {}", proven.proof.token)),
            ]),
            None => HashMap::from([("DPoP".to_owned(), proven.proof.token)]),
        };
        Ok(Response::new(wire::ProveResponse {
            headers,
            expires_at: rfc3339(proven.proof.expires_at),
            session: proven.session.terms().id.to_string(),
            txn: proven.txn,
        }))
    }
}

fn hold_x509_response(state: &HeldX509State) -> Result<wire::HoldX509Response, Status> {
    x509_bundle(&state.bundles)?;
    let svids = state.svids.iter().map(|(held, hint)| {
        let Holds::X509(chain) = held.holds() else {
            return Err(Status::internal("BUG: a key for proofs among those for TLS"));
        };
        Ok(wire::HeldX509 {
            spiffe_id: held.spiffe_id().to_string(),
            key: held.handle().to_owned(),
            x509_svid: Bytes::copy_from_slice(chain),
            hint: hint.as_deref().unwrap_or_default().to_owned(),
            expires_at: rfc3339(held.not_after()),
        })
    });
    Ok(wire::HoldX509Response {
        svids: svids.collect::<Result<_, Status>>()?,
        bundles: x509_map(&state.bundles).collect(),
    })
}

fn wit(held: &HeldCredential) -> Result<&str, Status> {
    match held.holds() {
        Holds::Wit(token) => Ok(token),
        Holds::X509(_) => Err(status::bad_field("key", "is for TLS: `HoldWit` gives keys for proofs")),
    }
}

fn target(method: &str, uri: &str, body_sha256: &[u8]) -> Result<ProofTarget, Status> {
    let body = match body_sha256 {
        [] => None,
        digest => Some(
            BodyDigest::from_slice(digest)
                .ok_or_else(|| status::bad_field("body_sha256", format!("has {} bytes, not 32", digest.len())))?,
        ),
    };
    Ok(ProofTarget {
        method: Method::parse(method).map_err(|error| status::bad_field("method", format!("is refused: {error}")))?,
        uri: TargetUri::parse(uri).map_err(|error| status::bad_field("uri", format!("is refused: {error}")))?,
        body,
    })
}

fn optional<'a>(field: &str, value: &'a str) -> Result<Option<&'a str>, Status> {
    match value.len() {
        0 => Ok(None),
        1..=MAX_TEXT_BYTES => Ok(Some(value)),
        _ => Err(status::bad_field(field, format!("has more than {MAX_TEXT_BYTES} bytes"))),
    }
}

fn spiffe_id(text: &str) -> Result<Option<SpiffeId>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = SpiffeId::parse(text);
    parsed.map(Some).map_err(|error| status::bad_field("spiffe_id", format!("is not a SPIFFE ID: {error}")))
}

/// Who asks, and for whom.
fn asking(peer: &PeerConn, other: Option<wire::OnBehalfOf>) -> Asking<'_> {
    Asking { peer, on_behalf_of: other.map(on_behalf_of) }
}

fn on_behalf_of(other: wire::OnBehalfOf) -> OnBehalfOf {
    OnBehalfOf { pid: other.pid, pidfs_inode: other.pidfs_inode, weak: other.weak }
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.truncate_to_second().format(&Rfc3339).unwrap_or_default()
}
