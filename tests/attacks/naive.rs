//! What every attack must succeed against: a Workload API server that believes `SO_PEERCRED`. When a request comes in
//! it looks up the process that once connected, by number, and decides by what it finds.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream::{self, StreamExt};
use tether::proto::admin;
use tether::proto::admin::entries_server::{Entries, EntriesServer};
use tether::proto::workload as wire;
use tether::proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use tokio::net::unix::UCred;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::engine;
use crate::http2::PRIZE;
use crate::target::Rule;

/// The server.
#[derive(Clone)]
pub struct Naive {
    rule: Rule,
    again: watch::Sender<()>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Naive {
    pub fn new(rule: &Rule) -> Self {
        Self { rule: rule.clone(), again: watch::Sender::new(()) }
    }

    /// Sends a new secret on open streams.
    pub fn rotate(&self) {
        self.again.send_replace(());
    }

    /// Serves for good.
    pub async fn serve(self, listener: UnixListener) {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let connections = stream::unfold(listener, |listener| async move {
            let connection = listener.accept().await.map(|(connection, _)| connection);
            Some((connection, listener))
        });
        let (workload, admin) = (SpiffeWorkloadApiServer::new(self.clone()), EntriesServer::new(self));
        let served = Server::builder().add_service(workload).add_service(admin).serve_with_incoming(connections);
        served.await.unwrap();
    }

    fn admits<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let admitted = caller.is_some_and(|caller| self.attests(caller));
        if admitted { Ok(()) } else { Err(Status::permission_denied("no identity")) }
    }

    /// Who has this number now is who connected, and says what is sent: that is what is naive.
    fn attests(&self, caller: UCred) -> bool {
        let Some(pid) = caller.pid() else { return false };
        match &self.rule {
            Rule::Uid(uid) => caller.uid() == *uid,
            Rule::UidNow(uid) => std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|found| found.uid() == *uid),
            Rule::Group(_) => false,
            Rule::Path(path) => executable_path(pid).is_some_and(|found| found == *path),
            Rule::Program { path, .. } => executable_path(pid).is_some_and(|found| found == *path),
            Rule::Container { socket, .. } => {
                engine::naively_found(pid).is_some_and(|id| engine::says_trusted(socket, &id))
            }
            Rule::Unit(name) => innermost_cgroup(pid).is_some_and(|found| found == *name),
        }
    }
}

fn executable_path(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

fn innermost_cgroup(pid: i32) -> Option<String> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.rsplit('/').next().map(str::to_owned)
}

fn secret() -> wire::X509svidResponse {
    let svid = wire::X509svid {
        spiffe_id: PRIZE.to_owned(),
        x509_svid_key: b"a fake secret".as_slice().into(),
        ..wire::X509svid::default()
    };
    wire::X509svidResponse { svids: vec![svid], ..wire::X509svidResponse::default() }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Naive {
    type FetchX509SVIDStream = Answers<wire::X509svidResponse>;
    type FetchX509BundlesStream = Answers<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<wire::JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<wire::WitsvidResponse>;
    type FetchWITBundlesStream = Answers<wire::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.admits(&request)?;
        let rotations = tokio_stream::wrappers::WatchStream::new(self.again.subscribe());
        Ok(Response::new(rotations.map(|_| Ok(secret())).boxed()))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(not_here())
    }

    async fn fetch_jwtsvid(&self, _: Request<wire::JwtsvidRequest>) -> Result<Response<wire::JwtsvidResponse>, Status> {
        Err(not_here())
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(not_here())
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        Err(not_here())
    }

    async fn fetch_witsvid(
        &self,
        _: Request<wire::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(not_here())
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<wire::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(not_here())
    }
}

/// The prize is in the list. Roles are the same question here as identities.
#[tonic::async_trait]
impl Entries for Naive {
    async fn list(
        &self,
        request: Request<admin::ListEntriesRequest>,
    ) -> Result<Response<admin::ListEntriesResponse>, Status> {
        self.admits(&request)?;
        let entry = admin::EntryView { spiffe_id: PRIZE.to_owned(), ..admin::EntryView::default() };
        Ok(Response::new(admin::ListEntriesResponse { entries: vec![entry] }))
    }

    async fn get(&self, _: Request<admin::GetEntryRequest>) -> Result<Response<admin::EntryView>, Status> {
        Err(not_here())
    }

    async fn create(&self, _: Request<admin::CreateEntryRequest>) -> Result<Response<admin::EntryView>, Status> {
        Err(not_here())
    }

    async fn update(&self, _: Request<admin::UpdateEntryRequest>) -> Result<Response<admin::EntryView>, Status> {
        Err(not_here())
    }

    async fn delete(
        &self,
        _: Request<admin::DeleteEntryRequest>,
    ) -> Result<Response<admin::DeleteEntryResponse>, Status> {
        Err(not_here())
    }

    async fn apply(
        &self,
        _: Request<admin::ApplyEntriesRequest>,
    ) -> Result<Response<admin::ApplyEntriesResponse>, Status> {
        Err(not_here())
    }
}

fn not_here() -> Status {
    Status::unimplemented("attacks ask for X.509-SVIDs and for entries")
}
