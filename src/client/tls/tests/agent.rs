//! The four calls a source makes, of an agent that says what a test tells it to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::client::fake::Documents;
use crate::proto::session::sessions_server::{Sessions, SessionsServer};
use crate::proto::session::*;
use crate::proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use crate::proto::workload::*;
use crate::x509::{KeyType, PrivateKey};

/// Of a process; `None` for nothing yet.
type Said = Option<Result<HoldX509Response, Status>>;
type Stream<T> = BoxStream<'static, Result<T, Status>>;

/// An agent that holds keys.
#[derive(Clone)]
pub(super) struct FakeAgent(Arc<Inner>);

struct Inner {
    hold: watch::Sender<Option<HoldX509Response>>,
    /// What it says of other processes, by their numbers.
    others: Mutex<HashMap<i32, watch::Sender<Said>>>,
    fetch: watch::Sender<Option<X509svidResponse>>,
    bundles: watch::Sender<Option<X509BundlesResponse>>,
    keys: Mutex<HashMap<String, PrivateKey>>,
    signed: Mutex<Vec<SignTlsRequest>>,
}

impl FakeAgent {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            hold: watch::Sender::new(None),
            others: Mutex::default(),
            fetch: watch::Sender::new(None),
            bundles: watch::Sender::new(None),
            keys: Mutex::default(),
            signed: Mutex::default(),
        }))
    }

    pub(super) fn routes(&self) -> Routes {
        Routes::new(SpiffeWorkloadApiServer::new(self.clone())).add_service(SessionsServer::new(self.clone()))
    }

    /// Gives, from now on, these identities with new held keys: path and serial number.
    pub(super) fn hold(&self, documents: &Documents, identities: &[(&str, u8)]) {
        self.hold_exactly(self.held_now(documents, identities));
    }

    /// The same to whoever acts for the process of this number.
    pub(super) fn hold_for(&self, pid: i32, documents: &Documents, identities: &[(&str, u8)]) {
        let svids = self.held_now(documents, identities);
        self.other(pid).send_replace(Some(Ok(HoldX509Response { svids, ..HoldX509Response::default() })));
    }

    /// Refuses, from now on, whoever acts for the process of this number.
    pub(super) fn refuse(&self, pid: i32, status: Status) {
        self.other(pid).send_replace(Some(Err(status)));
    }

    /// Returns when nobody asks for the process of this number.
    pub(super) async fn is_not_asked_for(&self, pid: i32) {
        self.other(pid).closed().await;
    }

    fn other(&self, pid: i32) -> watch::Sender<Said> {
        let mut others = self.0.others.lock().expect("no test panicked with the lock");
        others.entry(pid).or_insert_with(|| watch::Sender::new(None)).clone()
    }

    fn held_now(&self, documents: &Documents, identities: &[(&str, u8)]) -> Vec<HeldX509> {
        let svids = identities.iter().map(|(path, serial)| {
            let (name, key) = (format!("key-{serial}"), PrivateKey::generate(KeyType::EcP256).expect("a key"));
            let x509_svid = documents.leaf(path, &key, *serial).into();
            self.keys().insert(name.clone(), key);
            HeldX509 { spiffe_id: documents.id(path).to_string(), key: name, x509_svid, ..HeldX509::default() }
        });
        svids.collect()
    }

    pub(super) fn hold_exactly(&self, svids: Vec<HeldX509>) {
        self.0.hold.send_replace(Some(HoldX509Response { svids, ..HoldX509Response::default() }));
    }

    /// Gives, from now on, these identities together with their keys.
    pub(super) fn give(&self, documents: &Documents, identities: &[(&str, u8)]) {
        let svids = identities.iter().map(|(path, serial)| {
            let key = PrivateKey::generate(KeyType::EcP256).expect("a key");
            X509svid {
                spiffe_id: documents.id(path).to_string(),
                x509_svid: documents.leaf(path, &key, *serial).into(),
                x509_svid_key: key.to_pkcs8().expect("a key").expose().clone().into(),
                bundle: documents.bundle().into(),
                hint: String::new(),
            }
        });
        self.0.fetch.send_replace(Some(X509svidResponse { svids: svids.collect(), ..X509svidResponse::default() }));
    }

    /// Gives, from now on, these bundles and revocation lists.
    pub(super) fn believe(&self, domains: &[&Documents], crl: Vec<Vec<u8>>) {
        let bundles = domains.iter().map(|domain| (domain.domain_id(), domain.bundle().into())).collect();
        let crl = crl.into_iter().map(Bytes::from).collect();
        self.0.bundles.send_replace(Some(X509BundlesResponse { crl, bundles }));
    }

    /// Every key it ever held.
    pub(super) fn keys(&self) -> std::sync::MutexGuard<'_, HashMap<String, PrivateKey>> {
        self.0.keys.lock().expect("no test panicked with the lock")
    }

    /// What it was asked to sign.
    pub(super) fn signed(&self) -> std::sync::MutexGuard<'_, Vec<SignTlsRequest>> {
        self.0.signed.lock().expect("no test panicked with the lock")
    }

    /// What it says now to who asks for held identities.
    pub(super) fn held(&self) -> HoldX509Response {
        self.0.hold.borrow().clone().expect("it holds")
    }
}

/// The values so far and to come.
fn states<T: Clone + Send + Sync + 'static>(of: &watch::Sender<Option<T>>) -> Response<Stream<T>> {
    let states = WatchStream::new(of.subscribe()).filter_map(async |state| state.map(Ok));
    Response::new(states.boxed())
}

fn not_here() -> Status {
    Status::unimplemented("not here")
}

#[tonic::async_trait]
impl Sessions for FakeAgent {
    type HoldX509Stream = Stream<HoldX509Response>;
    type WatchStream = Stream<Session>;

    async fn hold_x509(&self, request: Request<HoldX509Request>) -> Result<Response<Self::HoldX509Stream>, Status> {
        let Some(other) = request.into_inner().on_behalf_of else { return Ok(states(&self.0.hold)) };
        let said = WatchStream::new(self.other(other.pid).subscribe()).filter_map(async |said| said);
        Ok(Response::new(said.boxed()))
    }

    async fn sign_tls(&self, request: Request<SignTlsRequest>) -> Result<Response<SignTlsResponse>, Status> {
        let request = request.into_inner();
        let keys = self.keys();
        let key = keys.get(&request.key).ok_or_else(|| Status::not_found("no such key"))?;
        let signature = key.sign(&request.content).expect("signed").into();
        self.signed().push(request);
        Ok(Response::new(SignTlsResponse { signature }))
    }

    async fn hold_wit(&self, _: Request<HoldWitRequest>) -> Result<Response<HoldWitResponse>, Status> {
        Err(not_here())
    }

    async fn prove(&self, _: Request<ProveRequest>) -> Result<Response<ProveResponse>, Status> {
        Err(not_here())
    }

    async fn start(&self, _: Request<StartRequest>) -> Result<Response<Session>, Status> {
        Err(not_here())
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<Session>, Status> {
        Err(not_here())
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Err(not_here())
    }

    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Result<Response<Session>, Status> {
        Err(not_here())
    }

    async fn mint(&self, _: Request<MintRequest>) -> Result<Response<MintResponse>, Status> {
        Err(not_here())
    }

    async fn delegate(&self, _: Request<DelegateRequest>) -> Result<Response<Session>, Status> {
        Err(not_here())
    }

    async fn end(&self, _: Request<EndRequest>) -> Result<Response<DisposalReceipt>, Status> {
        Err(not_here())
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(not_here())
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for FakeAgent {
    type FetchX509SVIDStream = Stream<X509svidResponse>;
    type FetchX509BundlesStream = Stream<X509BundlesResponse>;
    type FetchJWTBundlesStream = Stream<JwtBundlesResponse>;
    type FetchWITSVIDStream = Stream<WitsvidResponse>;
    type FetchWITBundlesStream = Stream<WitBundlesResponse>;

    async fn fetch_x509svid(&self, _: Request<X509svidRequest>) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        Ok(states(&self.0.fetch))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Ok(states(&self.0.bundles))
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(not_here())
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(not_here())
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(not_here())
    }

    async fn fetch_witsvid(&self, _: Request<WitsvidRequest>) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(not_here())
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(not_here())
    }
}
