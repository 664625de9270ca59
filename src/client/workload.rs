//! The calls of the Workload API, with answers parsed.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use prost_types::value::Kind;
use time::OffsetDateTime;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::base::secret::Secret;
use crate::id::{SpiffeId, TrustDomain};
use crate::jwt::{Jwk, Jws, JwtAuthorities, JwtError, parse_strict};
use crate::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::proto::workload::{
    self as wire, JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest,
    X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use crate::x509::{Chain, Crl, PrivateKey, VerifiedSvid, X509Authorities, X509Error, verify};

use super::watch::{JwtBundleWatch, Watch, X509BundleWatch, X509Watch};
use super::{ClientError, Endpoint, channel};

/// The metadata every request carries (Workload Endpoint, section 3).
const SECURITY_HEADER: &str = "workload.spiffe.io";
/// The largest answer that is read: a bundle with thousands of authorities fits.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 20;

pub(super) type Client = SpiffeWorkloadApiClient<InterceptedService<Channel, SecurityHeader>>;

/// A client of one Workload API. Cheap to clone; all clones share a connection.
#[derive(Clone)]
pub struct WorkloadApi {
    pub(super) client: Client,
    endpoint: Endpoint,
}

/// Adds `workload.spiffe.io: true`, which tells the agent that the request was not forged by way of a browser or proxy.
#[derive(Clone)]
pub struct SecurityHeader;

impl Interceptor for SecurityHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
        Ok(request)
    }
}

/// `channel` with the metadata on every call, for other services on the same socket, such as health.
pub fn with_header(channel: Channel) -> InterceptedService<Channel, SecurityHeader> {
    InterceptedService::new(channel, SecurityHeader)
}

/// Everything X.509 that a workload is given to present, and the authorities that go with it.
///
/// It judges nobody: the revocation lists along with SVIDs are neither all there are nor the newest, and are not read.
/// Peers are judged by [`X509Bundles`], from [`WorkloadApi::watch_x509_bundles`].
#[derive(Debug)]
pub struct X509Context {
    /// The identities, the default one first; never empty.
    pub svids: Vec<X509Svid>,
    /// The authorities of other trust domains.
    pub federated: BTreeMap<TrustDomain, X509Authorities>,
}

/// What the X509-SVIDs of peers are judged by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct X509Bundles {
    /// The authorities of each trust domain that the workload may believe, its own among them.
    pub authorities: BTreeMap<TrustDomain, X509Authorities>,
    /// Revocation lists, of CAs in any of these trust domains: all that the agent has.
    pub crls: Vec<Crl>,
}

impl X509Bundles {
    /// Believes the chain a peer presented, or says why not: see [`verify`](crate::x509::verify).
    ///
    /// The lists are enforced: a certificate on one of them is refused, and so is every certificate whose issuer's list
    /// has become stale, which means that this workload has not heard from its agent for half a day. An issuer of whom
    /// there is no list revokes nothing: an agent has the lists of its own node's CAs, and not those of other nodes in
    /// the trust domain or of foreign ones. To be refused by those too, a peer must also be asked for at its agent.
    ///
    /// # Errors
    /// [`X509Error::NoBundle`] for a peer of a trust domain this workload does not know; otherwise the first rule that
    /// does not hold, [`X509Error::Revoked`] among them.
    pub fn verify_peer(&self, chain: &Chain, now: OffsetDateTime) -> Result<VerifiedSvid, X509Error> {
        let domain = chain.leaf().svid_id()?.trust_domain();
        let authorities = self.authorities.get(&domain).ok_or(X509Error::NoBundle(domain))?;
        verify(chain, authorities, now, &self.crls)
    }
}

/// An X509-SVID with its key.
#[derive(Debug)]
pub struct X509Svid {
    /// The SPIFFE ID, which is the one in the certificate.
    pub id: SpiffeId,
    /// What the operator says it is for.
    pub hint: Option<String>,
    /// The certificate and its intermediates.
    pub chain: Chain,
    /// The key that belongs to the certificate.
    pub key: PrivateKey,
    /// The authorities of the SVID's own trust domain.
    pub bundle: X509Authorities,
}

/// A JWT-SVID.
#[derive(Debug)]
pub struct JwtSvid {
    /// The SPIFFE ID.
    pub id: SpiffeId,
    /// What the operator says it is for.
    pub hint: Option<String>,
    /// The token in compact form. Whoever has it can use it.
    pub token: Secret<String>,
    /// When it expires.
    pub expires_at: OffsetDateTime,
}

/// What the agent says about a JWT-SVID it found valid.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidatedJwt {
    /// Whose token it is.
    pub id: SpiffeId,
    /// Its claims: at least `sub`, `aud` and `exp`.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

impl WorkloadApi {
    /// A client of the API at `endpoint`. Connects at the first call.
    pub fn new(endpoint: Endpoint) -> Self {
        let channel = channel(&endpoint);
        Self::over(endpoint, channel)
    }

    /// A client of the API at `endpoint`, over a connection to it that other services use too.
    pub(super) fn over(endpoint: Endpoint, channel: Channel) -> Self {
        let client = SpiffeWorkloadApiClient::new(with_header(channel)).max_decoding_message_size(MAX_ANSWER_BYTES);
        Self { client, endpoint }
    }

    /// A client of the API that `SPIFFE_ENDPOINT_SOCKET` names in this process's environment.
    ///
    /// # Errors
    /// The variable is not set or is not an endpoint.
    pub fn from_env() -> Result<Self, ClientError> {
        Ok(Self::new(Endpoint::from_env(|name| std::env::var(name).ok())?))
    }

    /// Where the API is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// X509-SVIDs as they are now (Workload API, section 5.2.1).
    pub async fn fetch_x509(&self) -> Result<X509Context, ClientError> {
        self.watch_x509().next().await
    }

    /// X509-SVIDs as they change.
    pub fn watch_x509(&self) -> X509Watch {
        let open = |mut client: Client| Box::pin(async move { client.fetch_x509svid(X509svidRequest {}).await }) as _;
        Watch::new(self, open, read_x509)
    }

    /// X.509 bundles as they are now (Workload API, section 5.2.2).
    pub async fn fetch_x509_bundles(&self) -> Result<X509Bundles, ClientError> {
        self.watch_x509_bundles().next().await
    }

    /// X.509 bundles as they change, with all revocation lists: from tether, each change of a list within about a second.
    pub fn watch_x509_bundles(&self) -> X509BundleWatch {
        let open =
            |mut client: Client| Box::pin(async move { client.fetch_x509_bundles(X509BundlesRequest {}).await }) as _;
        Watch::new(self, open, |message: X509BundlesResponse| {
            let authorities = read_x509_bundles(message.bundles)?;
            let crls = read_crls(&message.crl)?;
            if authorities.is_empty() { Err(no_bundle()) } else { Ok(X509Bundles { authorities, crls }) }
        })
    }

    /// JWT bundles as they are now (Workload API, section 6.2.2).
    pub async fn fetch_jwt_bundles(&self) -> Result<BTreeMap<TrustDomain, JwtAuthorities>, ClientError> {
        self.watch_jwt_bundles().next().await
    }

    /// JWT bundles as they change.
    pub fn watch_jwt_bundles(&self) -> JwtBundleWatch {
        let open =
            |mut client: Client| Box::pin(async move { client.fetch_jwt_bundles(JwtBundlesRequest {}).await }) as _;
        Watch::new(self, open, |message: JwtBundlesResponse| read_jwt_bundles(message.bundles))
    }

    /// JWT-SVIDs for `audiences`: of one identity, or of all when `id` is `None` (Workload API, section 6.2.1).
    ///
    /// The first one is the default identity's; there is at least one.
    pub async fn fetch_jwt(&self, audiences: &[String], id: Option<&SpiffeId>) -> Result<Vec<JwtSvid>, ClientError> {
        let spiffe_id = id.map(ToString::to_string).unwrap_or_default();
        let request = JwtsvidRequest { audience: audiences.to_vec(), spiffe_id };
        let answer = self.client.clone().fetch_jwtsvid(request).await.map_err(|status| self.error(&status))?;
        let svids = without_repeated_hints(answer.into_inner().svids, |svid| &svid.hint);
        if svids.is_empty() {
            return Err(ClientError::Malformed("an answer without a JWT-SVID".to_owned()));
        }
        svids.into_iter().map(read_jwt).collect()
    }

    /// Asks the agent whether a JWT-SVID is valid for `audience` (Workload API, section 6.2.3).
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when it is not.
    pub async fn validate_jwt(&self, audience: &str, token: &str) -> Result<ValidatedJwt, ClientError> {
        let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() };
        let answer = self.client.clone().validate_jwtsvid(request).await.map_err(|status| self.error(&status))?;
        let answer = answer.into_inner();
        let claims = answer.claims.unwrap_or_default();
        Ok(ValidatedJwt { id: read_id(&answer.spiffe_id)?, claims: json_object(claims) })
    }

    fn error(&self, status: &Status) -> ClientError {
        ClientError::from_status(&self.endpoint, status)
    }
}

impl std::fmt::Debug for WorkloadApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkloadApi").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

pub(super) fn malformed(what: &str, error: impl std::fmt::Display) -> ClientError {
    ClientError::Malformed(format!("{what}: {error}"))
}

/// The agent's own trust domain is always among them (Workload API, sections 5.2.2 and 6.2.2).
pub(super) fn no_bundle() -> ClientError {
    ClientError::Malformed("an answer without a bundle".to_owned())
}

pub(super) fn read_x509(message: X509svidResponse) -> Result<X509Context, ClientError> {
    let svids = without_repeated_hints(message.svids, |svid| &svid.hint);
    if svids.is_empty() {
        return Err(ClientError::Malformed("an answer without an X509-SVID".to_owned()));
    }
    Ok(X509Context {
        svids: svids.into_iter().map(read_x509_svid).collect::<Result<_, _>>()?,
        federated: read_x509_bundles(message.federated_bundles)?,
    })
}

pub(super) fn read_crls(lists: &[Bytes]) -> Result<Vec<Crl>, ClientError> {
    lists.iter().map(|der| Crl::from_der(der).map_err(|error| malformed("a revocation list", error))).collect()
}

pub(super) fn read_x509_svid(svid: wire::X509svid) -> Result<X509Svid, ClientError> {
    let id = read_id(&svid.spiffe_id)?;
    let about = |error: &dyn std::fmt::Display| malformed(&format!("the X509-SVID of `{id}`"), error);
    let chain = Chain::from_der(&svid.x509_svid).map_err(|error| about(&error))?;
    let key = PrivateKey::from_pkcs8(&svid.x509_svid_key).map_err(|error| about(&error))?;
    let bundle = X509Authorities::from_der(id.trust_domain(), &svid.bundle).map_err(|error| about(&error))?;
    if chain.leaf().svid_id().map_err(|error| about(&error))? != id {
        return Err(about(&"its certificate is for another SPIFFE ID"));
    }
    if chain.leaf().public_key() != key.public_key() {
        return Err(about(&"its key belongs to another certificate"));
    }
    if bundle.is_empty() {
        return Err(about(&"its bundle is empty"));
    }
    Ok(X509Svid { id, hint: read_hint(svid.hint), chain, key, bundle })
}

pub(super) fn read_x509_bundles(
    bundles: HashMap<String, Bytes>,
) -> Result<BTreeMap<TrustDomain, X509Authorities>, ClientError> {
    bundles
        .iter()
        .map(|(id, der)| {
            let domain = read_domain(id)?;
            let authorities = X509Authorities::from_der(domain.clone(), der)
                .map_err(|error| malformed(&format!("the bundle of `{domain}`"), error))?;
            Ok((domain, authorities))
        })
        .collect()
}

pub(super) fn read_jwt_bundles(
    bundles: HashMap<String, Bytes>,
) -> Result<BTreeMap<TrustDomain, JwtAuthorities>, ClientError> {
    if bundles.is_empty() {
        return Err(no_bundle());
    }
    bundles
        .iter()
        .map(|(id, json)| {
            let domain = read_domain(id)?;
            let keys = read_jwks(json).map_err(|error| malformed(&format!("the JWT bundle of `{domain}`"), error))?;
            Ok((domain.clone(), JwtAuthorities::new(domain, keys)))
        })
        .collect()
}

/// The keys of a plain JWK Set. One that is unknown or has no ID is skipped (Trust Domain and Bundle, section 4.2).
pub(super) fn read_jwks(json: &[u8]) -> Result<Vec<(String, Jwk)>, &'static str> {
    let document = parse_strict(json).map_err(|_| "it is not a JSON object")?;
    let keys = document.get("keys").and_then(|keys| keys.as_array()).ok_or("it has no array `keys`")?;
    let usable = keys.iter().filter_map(|key| {
        let members = key.as_object()?;
        let id = members.get("kid")?.as_str().filter(|id| !id.is_empty())?;
        Some((id.to_owned(), Jwk::from_json(members).ok()?))
    });
    Ok(usable.collect())
}

fn read_jwt(svid: wire::Jwtsvid) -> Result<JwtSvid, ClientError> {
    let id = read_id(&svid.spiffe_id)?;
    let about = |error: &dyn std::fmt::Display| malformed(&format!("the JWT-SVID of `{id}`"), error);
    let expires_at = expiry(&svid.svid).map_err(|error| about(&error))?;
    Ok(JwtSvid { id, hint: read_hint(svid.hint), token: Secret::new(svid.svid), expires_at })
}

/// When a token expires by its own word: it comes from the agent, which is trusted, and a verifier checks it anyway.
fn expiry(token: &str) -> Result<OffsetDateTime, JwtError> {
    let claims = Jws::parse(token)?.claims()?;
    let seconds = claims.get("exp").and_then(|exp| exp.as_f64()).ok_or(JwtError::Member("exp"))?;
    OffsetDateTime::from_unix_timestamp(seconds as i64).map_err(|_| JwtError::Member("exp"))
}

pub(super) fn read_id(text: &str) -> Result<SpiffeId, ClientError> {
    SpiffeId::parse(text).map_err(|error| malformed(&format!("the SPIFFE ID `{text}`"), error))
}

/// Bundles are keyed by the SPIFFE ID of their trust domain.
pub(super) fn read_domain(id: &str) -> Result<TrustDomain, ClientError> {
    let id = read_id(id)?;
    if !id.path().is_empty() {
        return Err(ClientError::Malformed(format!("a bundle for `{id}`, which is no trust domain")));
    }
    Ok(id.trust_domain())
}

pub(super) fn read_hint(hint: String) -> Option<String> {
    (!hint.is_empty()).then_some(hint)
}

/// Of several SVIDs with one hint the first counts (Workload API, sections 5.2.1 and 6.2.1).
pub(super) fn without_repeated_hints<S>(svids: Vec<S>, hint: impl Fn(&S) -> &String) -> Vec<S> {
    let mut seen = HashSet::new();
    svids.into_iter().filter(|svid| hint(svid).is_empty() || seen.insert(hint(svid).clone())).collect()
}

fn json_object(object: prost_types::Struct) -> serde_json::Map<String, serde_json::Value> {
    object.fields.into_iter().map(|(key, value)| (key, json_value(value))).collect()
}

fn json_value(value: prost_types::Value) -> serde_json::Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        // The wire has only fractions; times and counters are whole.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 2f64.powi(53) => (value as i64).into(),
        Some(Kind::NumberValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json_value).collect(),
        Some(Kind::StructValue(object)) => json_object(object).into(),
    }
}
