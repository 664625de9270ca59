//! The SPIFFE Workload API over the real caller: translates, decides nothing.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use prost_types::value::Kind as ValueKind;
use prost_types::{ListValue, Struct, Value};
use tonic::{Request, Response, Status};

use super::gate::{CallPlace, peer};
use super::status;
use crate::base::drain;
use crate::id::SpiffeId;
use crate::issue::{Bundles, Issuer, Refusal, WitState, X509State};
use crate::metrics::Rpc;
use crate::peer::PeerConn;
use crate::proto::workload as wire;
use crate::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use crate::stream::{Update, updates, updates_and_crls};
use crate::trust::CrlSet;

/// The longest audience a token is made for.
const MAX_AUDIENCE_BYTES: usize = 2048;
/// The most audiences one token is made for.
const MAX_AUDIENCES: usize = 32;
/// What the audiences of one token may have together: the ledger keeps them for as long as the token lives.
const MAX_AUDIENCES_BYTES: usize = 4096;

/// The service.
#[derive(Clone, Debug)]
pub struct Workload {
    issuer: Arc<Issuer>,
    /// Whether the WIT profile is offered.
    wit: bool,
    drain: drain::Watcher,
}

/// A stream of answers.
pub(super) type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Workload {
    /// Serves what `issuer` issues until `drain` begins; WIT-SVIDs only when they are wanted.
    pub fn new(issuer: Arc<Issuer>, wit: bool, drain: drain::Watcher) -> Self {
        Self { issuer, wit, drain }
    }

    /// The WIT profile is incubating, and off unless it was chosen (Workload API, section 7).
    fn wit_profile(&self) -> Result<(), Status> {
        let off = || Status::unimplemented("the WIT profile of the Workload API is off: `wit.enabled` turns it on");
        self.wit.then_some(()).ok_or_else(off)
    }

    /// A stream of bundles, as `encode` shows them and `same` compares them.
    fn key_stream<T: Send + 'static>(
        &self,
        (peer, place): (PeerConn, Option<CallPlace>),
        rpc: &'static str,
        same: fn(&Bundles, &Bundles) -> bool,
        encode: fn(&Bundles) -> Result<T, Status>,
    ) -> Result<Response<Updates<T>>, Status> {
        let open = self.open(place, rpc);
        let states = updates(self.issuer.clone(), peer, self.drain.clone(), move |issuer, peer| async move {
            let (bundles, renew_at) = issuer.bundles(&peer).await?;
            Ok(Update { state: Keys { bundles, same }, credentials: Vec::new(), target: None, renew_at })
        });
        Ok(respond(states, open, move |keys| encode(&keys.bundles)))
    }

    fn open(&self, place: Option<CallPlace>, rpc: &'static str) -> Open {
        Open::new(&self.issuer, place, rpc)
    }
}

/// An open stream, counted until it is dropped.
pub(super) struct Open {
    gauge: prometheus_client::metrics::gauge::Gauge,
    _place: Option<CallPlace>,
}

impl Open {
    /// Counts a stream of `rpc`, which takes the place of its call.
    pub(super) fn new(issuer: &Issuer, place: Option<CallPlace>, rpc: &'static str) -> Self {
        let gauge = issuer.metrics.workload_streams.get_or_create(&Rpc { rpc }).clone();
        gauge.inc();
        Self { gauge, _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// X.509-SVIDs with the revocation lists that were signed last, which make no difference: they go along when something
/// else does.
#[derive(Clone)]
struct Svids {
    state: X509State,
    crls: Arc<CrlSet>,
}

impl PartialEq for Svids {
    fn eq(&self, other: &Self) -> bool {
        self.state == other.state
    }
}

/// X.509 bundles and revocation lists.
#[derive(Clone)]
struct X509Bundles {
    bundles: Bundles,
    crls: Arc<CrlSet>,
}

impl PartialEq for X509Bundles {
    fn eq(&self, other: &Self) -> bool {
        let same_crls = Arc::ptr_eq(&self.crls, &other.crls) || self.crls.der() == other.crls.der();
        same_crls && self.bundles.same_x509(&other.bundles)
    }
}

/// Bundles that are compared by one kind of key only.
#[derive(Clone)]
struct Keys {
    bundles: Bundles,
    same: fn(&Bundles, &Bundles) -> bool,
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        (self.same)(&self.bundles, &other.bundles)
    }
}

pub(super) fn respond<S: Send + 'static, T: Send + 'static>(
    states: impl Stream<Item = Result<S, Refusal>> + Send + 'static,
    open: Open,
    encode: impl Fn(S) -> Result<T, Status> + Send + 'static,
) -> Response<Updates<T>> {
    let messages = states.map(move |state| {
        let _counted = &open;
        state.map_err(|refusal| status::refused(&refusal)).and_then(&encode)
    });
    Response::new(Box::pin(messages))
}

/// Who calls, and the place of its call.
pub(super) fn caller<T>(request: &Request<T>) -> Result<(PeerConn, Option<CallPlace>), Status> {
    let extensions = request.extensions();
    Ok((peer(extensions)?.clone(), extensions.get::<CallPlace>().cloned()))
}

fn x509_response(Svids { state, crls }: Svids) -> Result<wire::X509svidResponse, Status> {
    let bundle = x509_bundle(&state.bundles)?;
    let own = state.bundles.own.trust_domain().id().to_string();
    let svids = state.svids.iter().map(|(svid, hint)| wire::X509svid {
        spiffe_id: svid.spiffe_id.to_string(),
        x509_svid: Bytes::copy_from_slice(&svid.svid.signed.chain),
        x509_svid_key: Bytes::copy_from_slice(svid.svid.key.expose()),
        bundle: bundle.clone(),
        hint: hint.as_deref().unwrap_or_default().to_owned(),
    });
    Ok(wire::X509svidResponse {
        svids: svids.collect(),
        crl: crls.beside_svids().to_vec(),
        federated_bundles: x509_map(&state.bundles).filter(|(id, _)| *id != own).collect(),
    })
}

pub(super) fn x509_bundle(bundles: &Bundles) -> Result<Bytes, Status> {
    let own = bundles.own.x509();
    // A mandatory field must not be empty; a trust domain without a root cannot be spoken for.
    if own.is_empty() {
        return Err(Status::unavailable(format!("`{}` has no X.509 authority", own.trust_domain())));
    }
    Ok(own.to_der().into())
}

/// The X.509 bundles by the SPIFFE IDs of their trust domains.
pub(super) fn x509_map(bundles: &Bundles) -> impl Iterator<Item = (String, Bytes)> {
    bundles.x509().map(|authorities| (authorities.trust_domain().id().to_string(), authorities.to_der().into()))
}

fn x509_bundles_response(X509Bundles { bundles, crls }: X509Bundles) -> Result<wire::X509BundlesResponse, Status> {
    x509_bundle(&bundles)?;
    Ok(wire::X509BundlesResponse { crl: crls.der().to_vec(), bundles: x509_map(&bundles).collect() })
}

fn jwt_bundles_response(bundles: &Bundles) -> Result<wire::JwtBundlesResponse, Status> {
    let bundles = bundles.all().map(|bundle| (bundle.trust_domain().id().to_string(), bundle.jwt_jwks().into()));
    Ok(wire::JwtBundlesResponse { bundles: bundles.collect() })
}

fn wit_response(state: WitState) -> Result<wire::WitsvidResponse, Status> {
    let svids = state.svids.iter().map(|(svid, hint)| wire::Witsvid {
        spiffe_id: svid.spiffe_id.to_string(),
        wit_svid: svid.svid.signed.token.clone(),
        wit_svid_key: svid.svid.key.expose().clone(),
        hint: hint.as_deref().unwrap_or_default().to_owned(),
    });
    Ok(wire::WitsvidResponse { svids: svids.collect() })
}

fn wit_bundles_response(bundles: &Bundles) -> Result<wire::WitBundlesResponse, Status> {
    let bundles = bundles.all().map(|bundle| (bundle.trust_domain().id().to_string(), bundle.wit_jwks()));
    Ok(wire::WitBundlesResponse { bundles: bundles.collect() })
}

/// The identity a request is for; all of the caller's when it names none.
pub(super) fn wanted(spiffe_id: &str) -> Result<Option<SpiffeId>, Status> {
    if spiffe_id.is_empty() {
        return Ok(None);
    }
    let not_one = |error| status::bad_field("spiffe_id", format!("is not a SPIFFE ID: {error}"));
    SpiffeId::parse(spiffe_id).map(Some).map_err(not_one)
}

/// The audiences of a request: at least one, none of them empty (Workload API, section 6.2.1).
pub(super) fn audiences(requested: Vec<String>) -> Result<Vec<String>, Status> {
    if requested.is_empty() {
        return Err(status::bad_field("audience", "is empty: name whom the token is for"));
    }
    if requested.len() > MAX_AUDIENCES {
        return Err(status::bad_field("audience", format!("has more than {MAX_AUDIENCES} values")));
    }
    for audience in &requested {
        check_audience(audience)?;
    }
    if requested.iter().map(String::len).sum::<usize>() > MAX_AUDIENCES_BYTES {
        return Err(status::bad_field("audience", format!("has more than {MAX_AUDIENCES_BYTES} bytes in all")));
    }
    Ok(requested)
}

fn check_audience(audience: &str) -> Result<(), Status> {
    match audience.len() {
        0 => Err(status::bad_field("audience", "has an empty value")),
        1..=MAX_AUDIENCE_BYTES => Ok(()),
        _ => Err(status::bad_field("audience", format!("has a value of more than {MAX_AUDIENCE_BYTES} bytes"))),
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Workload {
    type FetchX509SVIDStream = Updates<wire::X509svidResponse>;
    type FetchX509BundlesStream = Updates<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Updates<wire::JwtBundlesResponse>;
    type FetchWITSVIDStream = Updates<wire::WitsvidResponse>;
    type FetchWITBundlesStream = Updates<wire::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let (peer, place) = caller(&request)?;
        let open = self.open(place, "FetchX509SVID");
        let states = updates(self.issuer.clone(), peer, self.drain.clone(), |issuer, peer| async move {
            let state = issuer.x509(&peer).await?;
            // None are signed for this message: who judges peers takes the lists from FetchX509Bundles.
            let crls = issuer.crls.latest();
            let renew_at = Some(state.renew_at);
            let credentials = state.svids.iter().map(|(svid, _)| svid.svid.signed.serial.clone()).collect();
            Ok(Update { state: Svids { state, crls }, credentials, target: None, renew_at })
        });
        Ok(respond(states, open, x509_response))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let (peer, place) = caller(&request)?;
        let open = self.open(place, "FetchX509Bundles");
        let feed = Arc::new(self.issuer.crls.feed());
        let states = updates_and_crls(self.issuer.clone(), peer, self.drain.clone(), move |issuer, peer| {
            let feed = feed.clone();
            async move {
                let (bundles, renew_at) = issuer.bundles(&peer).await?;
                let crls = feed.lists().await;
                Ok(Update { state: X509Bundles { bundles, crls }, credentials: Vec::new(), target: None, renew_at })
            }
        });
        Ok(respond(states, open, x509_bundles_response))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<wire::JwtsvidRequest>,
    ) -> Result<Response<wire::JwtsvidResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        let audience = audiences(request.audience)?;
        let wanted = wanted(&request.spiffe_id)?;
        let tokens = self.issuer.jwt(&peer, &audience, wanted.as_ref()).await;
        let tokens = tokens.map_err(|refusal| status::refused(&refusal))?;
        let svids = tokens.into_iter().map(|(identity, signed)| wire::Jwtsvid {
            spiffe_id: identity.spiffe_id.to_string(),
            svid: signed.token,
            hint: identity.hint().unwrap_or_default().to_owned(),
        });
        Ok(Response::new(wire::JwtsvidResponse { svids: svids.collect() }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.key_stream(caller(&request)?, "FetchJWTBundles", Bundles::same_jwt, jwt_bundles_response)
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        check_audience(&request.audience)?;
        if request.svid.is_empty() {
            return Err(status::bad_field("svid", "is empty"));
        }
        let validated = self.issuer.validate(&peer, &request.svid, &request.audience).await;
        let validated = validated.map_err(|refusal| status::refused(&refusal))?;
        let svid = validated.map_err(|error| status::invalid_token(&error))?;
        let spiffe_id = svid.spiffe_id().to_string();
        let fields = svid.into_claims().into_iter().map(|(name, value)| (name, to_proto(value)));
        Ok(Response::new(wire::ValidateJwtsvidResponse {
            spiffe_id,
            claims: Some(Struct { fields: fields.collect() }),
        }))
    }

    async fn fetch_witsvid(
        &self,
        request: Request<wire::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        self.wit_profile()?;
        let (peer, place) = caller(&request)?;
        let wanted = wanted(&request.into_inner().spiffe_id)?;
        let open = self.open(place, "FetchWITSVID");
        let states = updates(self.issuer.clone(), peer, self.drain.clone(), move |issuer, peer| {
            let wanted = wanted.clone();
            async move {
                let state = issuer.wit(&peer, wanted.as_ref()).await?;
                let credentials = state.svids.iter().map(|(svid, _)| svid.svid.signed.jti.clone()).collect();
                let renew_at = Some(state.renew_at);
                Ok(Update { state, credentials, target: None, renew_at })
            }
        });
        Ok(respond(states, open, wit_response))
    }

    async fn fetch_wit_bundles(
        &self,
        request: Request<wire::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        self.wit_profile()?;
        self.key_stream(caller(&request)?, "FetchWITBundles", Bundles::same_wit, wit_bundles_response)
    }
}

/// A claim as protobuf's `Value`, which has no integers.
fn to_proto(value: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => ValueKind::NullValue(0),
        Json::Bool(value) => ValueKind::BoolValue(value),
        Json::Number(value) => ValueKind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => ValueKind::StringValue(value),
        Json::Array(values) => ValueKind::ListValue(ListValue { values: values.into_iter().map(to_proto).collect() }),
        Json::Object(fields) => {
            let fields: HashMap<_, _> = fields.into_iter().map(|(name, value)| (name, to_proto(value))).collect();
            ValueKind::StructValue(Struct { fields: fields.into_iter().collect() })
        }
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_list_of_audiences_is_refused_that_is_empty_or_too_long_in_any_way() {
        let of = |count: usize, bytes: usize| vec!["a".repeat(bytes); count];
        let two = || of(2, MAX_AUDIENCE_BYTES);
        for good in [of(1, 1), of(32, 128), two()] {
            assert_eq!(audiences(good.clone()).unwrap(), good);
        }
        for (bad, because) in [
            (of(0, 0), "is empty"),
            (of(33, 1), "more than 32 values"),
            (of(1, 0), "an empty value"),
            (of(1, 2049), "a value of more than 2048 bytes"),
            ([two(), of(1, 1)].concat(), "more than 4096 bytes in all"),
            (of(32, 129), "more than 4096 bytes in all"),
        ] {
            let refused = audiences(bad).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains(because), "{}", refused.message());
        }
    }
}
