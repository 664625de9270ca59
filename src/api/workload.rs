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
use crate::issue::{Bundles, Issuer, Refusal, X509State};
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

/// The service.
#[derive(Clone, Debug)]
pub struct Workload {
    issuer: Arc<Issuer>,
    drain: drain::Watcher,
}

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Workload {
    /// Serves what `issuer` issues until `drain` begins.
    pub fn new(issuer: Arc<Issuer>, drain: drain::Watcher) -> Self {
        Self { issuer, drain }
    }

    fn open(&self, place: Option<CallPlace>, rpc: &'static str) -> Open {
        let gauge = self.issuer.metrics.workload_streams.get_or_create(&Rpc { rpc }).clone();
        gauge.inc();
        Open { gauge, _place: place }
    }
}

/// An open stream, counted until it is dropped.
struct Open {
    gauge: prometheus_client::metrics::gauge::Gauge,
    _place: Option<CallPlace>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// X.509-SVIDs with the revocation lists of the moment, which make no difference: they go along when something else
/// does.
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

/// JWT bundles.
#[derive(Clone)]
struct JwtBundles(Bundles);

impl PartialEq for JwtBundles {
    fn eq(&self, other: &Self) -> bool {
        self.0.same_jwt(&other.0)
    }
}

fn respond<S: Send + 'static, T: Send + 'static>(
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
fn caller<T>(request: &Request<T>) -> Result<(PeerConn, Option<CallPlace>), Status> {
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

fn x509_bundle(bundles: &Bundles) -> Result<Bytes, Status> {
    let own = bundles.own.x509();
    // A mandatory field must not be empty; a trust domain without a root cannot be spoken for.
    if own.is_empty() {
        return Err(Status::unavailable(format!("`{}` has no X.509 authority", own.trust_domain())));
    }
    Ok(own.to_der().into())
}

/// The X.509 bundles by the SPIFFE IDs of their trust domains.
fn x509_map(bundles: &Bundles) -> impl Iterator<Item = (String, Bytes)> {
    bundles.x509().map(|authorities| (authorities.trust_domain().id().to_string(), authorities.to_der().into()))
}

fn x509_bundles_response(X509Bundles { bundles, crls }: X509Bundles) -> Result<wire::X509BundlesResponse, Status> {
    x509_bundle(&bundles)?;
    Ok(wire::X509BundlesResponse { crl: crls.der().to_vec(), bundles: x509_map(&bundles).collect() })
}

fn jwt_bundles_response(JwtBundles(bundles): JwtBundles) -> Result<wire::JwtBundlesResponse, Status> {
    let bundles = bundles.all().map(|bundle| (bundle.trust_domain().id().to_string(), bundle.jwt_jwks().into()));
    Ok(wire::JwtBundlesResponse { bundles: bundles.collect() })
}

/// The audiences of a request: at least one, none of them empty (Workload API, section 6.2.1).
fn audiences(requested: Vec<String>) -> Result<Vec<String>, Status> {
    if requested.is_empty() {
        return Err(status::bad_field("audience", "is empty: name whom the token is for"));
    }
    if requested.len() > MAX_AUDIENCES {
        return Err(status::bad_field("audience", format!("has more than {MAX_AUDIENCES} values")));
    }
    for audience in &requested {
        check_audience(audience)?;
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
        let feed = Arc::new(self.issuer.crls.feed());
        let states = updates(self.issuer.clone(), peer, self.drain.clone(), move |issuer, peer| {
            let feed = feed.clone();
            async move {
                // First: nothing may be waited for between the last look at the process and its key.
                let crls = feed.lists().await;
                let state = issuer.x509(&peer).await?;
                let renew_at = Some(state.renew_at);
                let credentials = state.svids.iter().map(|(svid, _)| svid.svid.signed.serial.clone()).collect();
                Ok(Update { state: Svids { state, crls }, credentials, renew_at })
            }
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
                Ok(Update { state: X509Bundles { bundles, crls }, credentials: Vec::new(), renew_at })
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
        let wanted = match request.spiffe_id.as_str() {
            "" => None,
            id => Some(
                SpiffeId::parse(id)
                    .map_err(|error| status::bad_field("spiffe_id", format!("is not a SPIFFE ID: {error}")))?,
            ),
        };
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
        let (peer, place) = caller(&request)?;
        let open = self.open(place, "FetchJWTBundles");
        let states = updates(self.issuer.clone(), peer, self.drain.clone(), |issuer, peer| async move {
            let (bundles, renew_at) = issuer.bundles(&peer).await?;
            Ok(Update { state: JwtBundles(bundles), credentials: Vec::new(), renew_at })
        });
        Ok(respond(states, open, jwt_bundles_response))
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
        _: Request<wire::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(wit_profile_is_off())
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<wire::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(wit_profile_is_off())
    }
}

/// The WIT profile is incubating and off (Workload API, section 7).
fn wit_profile_is_off() -> Status {
    Status::unimplemented("the WIT profile of the Workload API is not offered by this agent")
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
