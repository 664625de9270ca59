//! A Workload API that says what a test tells it to, on a real socket.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use time::OffsetDateTime;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::id::{SpiffeId, TrustDomain};
use crate::jwt::{Jwk, JwtAuthorities, JwtClaims, JwtSigner, private_jwk};
use crate::proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use crate::proto::workload::*;
use crate::wit::{Confirmation, WitAuthorities, WitClaims, WitSigner};
use crate::x509::{
    Issuer, KeyType, LeafParams, PrivateKey, RevocationReason, Revoked, Serial, Validity, X509Authorities,
    self_signed_root,
};

/// The time in all documents of [`Documents`]: they are valid for an hour from then.
pub(crate) const NOW: OffsetDateTime = time::macros::datetime!(2026-11-22 12:00 UTC);

/// The answers, each call taking the next one; without one left a call is denied.
#[derive(Clone, Default)]
pub(crate) struct FakeWorkloadApi(Arc<Mutex<Script>>);

#[derive(Default)]
pub(crate) struct Script {
    /// For each X.509 stream its messages, after which it ends.
    pub(crate) x509: VecDeque<Vec<Result<X509svidResponse, Status>>>,
    pub(crate) jwt: VecDeque<Result<JwtsvidResponse, Status>>,
    pub(crate) x509_bundles: VecDeque<X509BundlesResponse>,
    pub(crate) jwt_bundles: VecDeque<JwtBundlesResponse>,
    pub(crate) wit: VecDeque<WitsvidResponse>,
    pub(crate) wit_bundles: VecDeque<WitBundlesResponse>,
    pub(crate) validate: VecDeque<Result<ValidateJwtsvidResponse, Status>>,
    /// The `workload.spiffe.io` values of each call.
    pub(crate) headers: Vec<Vec<String>>,
}

impl FakeWorkloadApi {
    pub(crate) fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.0.lock().expect("no test panicked with the lock")
    }

    fn take<T, R>(&self, request: &Request<T>, next: impl FnOnce(&mut Script) -> Option<R>) -> Result<R, Status> {
        let values = request.metadata().get_all("workload.spiffe.io").iter();
        let values = values.map(|value| value.to_str().expect("text").to_owned()).collect();
        let mut script = self.script();
        script.headers.push(values);
        next(&mut script).ok_or_else(|| Status::permission_denied("no identity issued"))
    }

    fn once<T: Send + 'static>(answer: T) -> Response<BoxStream<'static, Result<T, Status>>> {
        Response::new(stream::iter([Ok(answer)]).chain(stream::pending()).boxed())
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for FakeWorkloadApi {
    type FetchX509SVIDStream = BoxStream<'static, Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = BoxStream<'static, Result<X509BundlesResponse, Status>>;
    type FetchJWTBundlesStream = BoxStream<'static, Result<JwtBundlesResponse, Status>>;
    type FetchWITSVIDStream = BoxStream<'static, Result<WitsvidResponse, Status>>;
    type FetchWITBundlesStream = BoxStream<'static, Result<WitBundlesResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let messages = self.take(&request, |script| script.x509.pop_front())?;
        Ok(Response::new(stream::iter(messages).boxed()))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Ok(Self::once(self.take(&request, |script| script.x509_bundles.pop_front())?))
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        self.take(&request, |script| script.jwt.pop_front())?.map(Response::new)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Ok(Self::once(self.take(&request, |script| script.jwt_bundles.pop_front())?))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        self.take(&request, |script| script.validate.pop_front())?.map(Response::new)
    }

    async fn fetch_witsvid(
        &self,
        request: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        let answer = self.take(&request, |script| Some(script.wit.pop_front()))?;
        answer.map(Self::once).ok_or_else(|| Status::unimplemented("not here"))
    }

    async fn fetch_wit_bundles(
        &self,
        request: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        let answer = self.take(&request, |script| Some(script.wit_bundles.pop_front()))?;
        answer.map(Self::once).ok_or_else(|| Status::unimplemented("not here"))
    }
}

/// Services on a socket in a directory of their own, served by a thread until this is dropped.
pub(crate) struct Served {
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    pub(crate) fn workload_api(api: FakeWorkloadApi) -> Self {
        Self::routes(Routes::new(SpiffeWorkloadApiServer::new(api)))
    }

    pub(crate) fn routes(routes: Routes) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut served = Self { dir, stop: None, thread: None };
        served.start(routes);
        served
    }

    /// Serves at the same place again, after [`Self::stop`].
    pub(crate) fn start(&mut self, routes: Routes) {
        let listener = std::os::unix::net::UnixListener::bind(self.path()).expect("bound");
        listener.set_nonblocking(true).expect("not blocking");
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = UnixListener::from_std(listener).expect("registered");
                let incoming = stream::unfold(listener, async |listener| {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    Some((accepted, listener))
                });
                let server = tonic::transport::Server::builder().add_routes(routes);
                tokio::select! {
                    served = server.serve_with_incoming(incoming.boxed()) => served.expect("serves"),
                    _ = stopped => {}
                }
            });
        });
        (self.stop, self.thread) = (Some(stop), Some(thread));
    }

    /// Cuts all connections; then nobody is there.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(self.path());
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn uri(&self) -> String {
        format!("unix://{}", self.path().display())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Documents of one trust domain, made by its root.
pub(crate) struct Documents {
    issuer: Issuer,
    jwt: JwtSigner,
}

impl Documents {
    pub(crate) fn of(domain: &str) -> Self {
        // A name of its own for each root, as real ones have.
        let serial = Serial::from_random(std::array::from_fn(|i| domain.as_bytes()[i % domain.len()]));
        let domain = TrustDomain::parse(domain).expect("legal");
        let key = PrivateKey::generate(KeyType::EcP256).expect("a key");
        let issuer = self_signed_root(domain, key, validity(), &serial).expect("a root");
        let jwt = JwtSigner::new(&PrivateKey::generate(KeyType::EcP256).expect("a key")).expect("a signer");
        Self { issuer, jwt }
    }

    pub(crate) fn x509(&self, path: &str, hint: &str) -> X509svid {
        let (id, key) = (self.id(path), PrivateKey::generate(KeyType::EcP256).expect("a key"));
        X509svid {
            spiffe_id: id.to_string(),
            x509_svid: self.leaf(path, &key, 2).into(),
            x509_svid_key: key.to_pkcs8().expect("a key").expose().clone().into(),
            bundle: self.bundle().into(),
            hint: hint.to_owned(),
        }
    }

    /// A certificate in DER, whose serial number consists of `serial`.
    pub(crate) fn leaf(&self, path: &str, key: &PrivateKey, serial: u8) -> Vec<u8> {
        let leaf = LeafParams {
            spiffe_id: &self.id(path),
            public_key: key.public_key(),
            dns_names: &[],
            validity: validity(),
            serial: &Serial::from_random([serial; 16]),
        };
        self.issuer.sign_leaf(&leaf).expect("signed").to_vec()
    }

    /// The list, in DER, of the certificates with these serial numbers, good for half an hour.
    pub(crate) fn crl(&self, serials: &[u8]) -> Vec<u8> {
        let revoked = serials.iter().map(|serial| Revoked {
            serial: Serial::from_random([*serial; 16]),
            at: NOW,
            reason: RevocationReason::CessationOfOperation,
        });
        let validity = Validity { not_before: NOW, not_after: NOW + Duration::from_secs(1800) };
        let crl = self.issuer.sign_crl(&revoked.collect::<Vec<_>>(), validity, 1).expect("signed");
        crl.to_vec()
    }

    pub(crate) fn jwt(&self, path: &str, audience: &str) -> Jwtsvid {
        let id = self.id(path);
        let claims = JwtClaims {
            sub: &id,
            aud: &[audience.to_owned()],
            exp: NOW + Duration::from_secs(300),
            iat: NOW,
            jti: "1",
            iss: None,
        };
        let svid = self.jwt.sign(&claims).expect("signed");
        Jwtsvid { spiffe_id: id.to_string(), svid, hint: String::new() }
    }

    pub(crate) fn wit(&self, path: &str, hint: &str) -> Witsvid {
        let id = self.id(path);
        let key = PrivateKey::generate(KeyType::EcP256).expect("a key");
        let confirmation = Confirmation::of(Jwk::from_spki(key.public_key()).expect("a key"));
        let signer = WitSigner::new(self.issuer.key()).expect("a signer");
        let claims = WitClaims {
            sub: &id,
            exp: NOW + Duration::from_secs(300),
            iat: NOW,
            jti: "1",
            cnf: &confirmation,
            session: None,
        };
        Witsvid {
            spiffe_id: id.to_string(),
            wit_svid: signer.sign(&claims).expect("signed"),
            wit_svid_key: private_jwk(&key).expect("a key").expose().clone(),
            hint: hint.to_owned(),
        }
    }

    /// Concatenated DER.
    pub(crate) fn bundle(&self) -> Vec<u8> {
        X509Authorities::new(self.domain(), [self.issuer.certificate().clone()]).expect("an authority").to_der()
    }

    /// A JWK Set as the Workload API has it.
    pub(crate) fn jwks(&self) -> String {
        let keys = JwtAuthorities::new(self.domain(), [(self.jwt.key_id().to_owned(), self.jwt.public_key().clone())]);
        let none = X509Authorities::new(self.domain(), []).expect("empty");
        crate::bundle::Bundle::new(none, keys).jwt_jwks()
    }

    /// The same for WITs.
    pub(crate) fn wit_jwks(&self) -> String {
        let signer = WitSigner::new(self.issuer.key()).expect("a signer");
        let keys = WitAuthorities::new(self.domain(), [(signer.key_id().to_owned(), signer.public_key().clone())]);
        let none = X509Authorities::new(self.domain(), []).expect("empty");
        crate::bundle::Bundle::new(none, JwtAuthorities::new(self.domain(), [])).with_wit(keys).wit_jwks()
    }

    pub(crate) fn domain_id(&self) -> String {
        self.domain().id().to_string()
    }

    fn domain(&self) -> TrustDomain {
        self.issuer.trust_domain().clone()
    }

    pub(crate) fn id(&self, path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("{}{path}", self.domain_id())).expect("legal")
    }
}

fn validity() -> Validity {
    Validity { not_before: NOW, not_after: NOW + Duration::from_secs(3600) }
}

/// Where the socket of nobody would be.
pub(crate) fn nowhere() -> &'static Path {
    Path::new("/nonexistent/socket")
}
