//! A Workload API that answers what a test tells it to, and writes down what it was asked.

use std::collections::VecDeque;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt as _};
use tether::client::{Endpoint, WorkloadApi};
use tether::proto::workload as wire;
use tether::proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One call as the server saw it: the method and every value of `workload.spiffe.io`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The method.
    pub method: &'static str,
    /// The values of the metadata.
    pub header: Vec<String>,
}

/// Messages, and then perhaps a status; unless that ended it, the stream stays open.
pub type Script = Vec<Result<wire::X509svidResponse, Status>>;

/// The server.
#[derive(Clone, Default)]
pub struct Mock {
    /// Each call to `FetchX509SVID` takes one script.
    pub x509: Arc<Mutex<VecDeque<Script>>>,
    /// What `FetchX509Bundles` answers.
    pub x509_bundles: Arc<Mutex<Option<wire::X509BundlesResponse>>>,
    /// What `FetchJWTSVID` answers.
    pub jwt: Arc<Mutex<Option<wire::JwtsvidResponse>>>,
    /// What `FetchJWTBundles` answers.
    pub jwt_bundles: Arc<Mutex<Option<wire::JwtBundlesResponse>>>,
    /// What `ValidateJWTSVID` answers.
    pub validated: Arc<Mutex<Option<wire::ValidateJwtsvidResponse>>>,
    /// What was called.
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl Mock {
    /// Serves at a socket in `dir` and returns a client of it.
    pub fn serve(&self, dir: &Path) -> WorkloadApi {
        let path = dir.join("mock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let incoming = futures_util::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let server = tonic::transport::Server::builder().add_service(SpiffeWorkloadApiServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        WorkloadApi::new(Endpoint::Unix(path))
    }

    fn see<T>(&self, method: &'static str, request: &Request<T>) {
        let values = request.metadata().get_all("workload.spiffe.io").iter();
        let header = values.map(|value| value.to_str().unwrap().to_owned()).collect();
        self.seen.lock().unwrap().push(Seen { method, header });
    }
}

fn one<T>(answer: &Mutex<Option<T>>) -> Result<T, Status>
where
    T: Clone,
{
    answer.lock().unwrap().clone().ok_or_else(|| Status::permission_denied("the test gave no answer"))
}

fn stream<T: Send + 'static>(answers: Vec<Result<T, Status>>) -> Answers<T> {
    let ends = answers.last().is_none_or(Result::is_err);
    let said = futures_util::stream::iter(answers);
    if ends { Box::pin(said) } else { Box::pin(said.chain(futures_util::stream::pending())) }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Mock {
    type FetchX509SVIDStream = Answers<wire::X509svidResponse>;
    type FetchX509BundlesStream = Answers<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<wire::JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<wire::WitsvidResponse>;
    type FetchWITBundlesStream = Answers<wire::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.see("FetchX509SVID", &request);
        let script = self.x509.lock().unwrap().pop_front();
        Ok(Response::new(stream(script.unwrap_or_else(|| vec![Err(Status::permission_denied("no script"))]))))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.see("FetchX509Bundles", &request);
        Ok(Response::new(stream(vec![one(&self.x509_bundles)])))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<wire::JwtsvidRequest>,
    ) -> Result<Response<wire::JwtsvidResponse>, Status> {
        self.see("FetchJWTSVID", &request);
        one(&self.jwt).map(Response::new)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.see("FetchJWTBundles", &request);
        Ok(Response::new(stream(vec![one(&self.jwt_bundles)])))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        self.see("ValidateJWTSVID", &request);
        one(&self.validated).map(Response::new)
    }

    async fn fetch_witsvid(
        &self,
        request: Request<wire::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        self.see("FetchWITSVID", &request);
        Err(Status::unimplemented("no WIT"))
    }

    async fn fetch_wit_bundles(
        &self,
        request: Request<wire::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        self.see("FetchWITBundles", &request);
        Err(Status::unimplemented("no WIT"))
    }
}
