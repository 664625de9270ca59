//! The baseline: the Workload API on a plain tonic server that knows nobody and answers with nothing.
//!
//! Same protocol, same library, same runtime shape and same kind of socket as the agent, in a process of its own. What
//! the agent takes beyond it is the price of knowing the caller and of signing.

use std::path::Path;
use std::pin::Pin;

use futures_util::stream::{self, Stream, StreamExt};
use tether::proto::workload as wire;
use tether::proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::Result;

/// Serves on `path` for ever; prints `ready`. SIGUSR1 sends another message on every open X.509 stream.
pub fn serve(path: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = UnixListener::bind(path)?;
        let again = watch::Sender::new(());
        let service = Empty(again.subscribe());
        let mut usr1 = signal(SignalKind::user_defined1())?;
        tokio::spawn(async move {
            while usr1.recv().await.is_some() {
                again.send_replace(());
            }
        });
        println!("ready");
        let incoming = stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(socket, _)| socket);
            Some((accepted, listener))
        });
        Server::builder()
            .max_concurrent_streams(256)
            .add_service(SpiffeWorkloadApiServer::new(service))
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    })
}

struct Empty(watch::Receiver<()>);

type Answers<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

fn nothing<T: Send + 'static>() -> std::result::Result<Response<Answers<T>>, Status> {
    Err(Status::unimplemented("not measured"))
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Empty {
    type FetchX509SVIDStream = Answers<wire::X509svidResponse>;
    type FetchX509BundlesStream = Answers<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<wire::JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<wire::WitsvidResponse>;
    type FetchWITBundlesStream = Answers<wire::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _: Request<wire::X509svidRequest>,
    ) -> std::result::Result<Response<Self::FetchX509SVIDStream>, Status> {
        let first = stream::iter([Ok(wire::X509svidResponse::default())]);
        let more = stream::unfold(self.0.clone(), |mut again| async {
            again.changed().await.ok()?;
            Some((Ok(wire::X509svidResponse::default()), again))
        });
        Ok(Response::new(first.chain(more).boxed()))
    }

    async fn fetch_jwtsvid(
        &self,
        _: Request<wire::JwtsvidRequest>,
    ) -> std::result::Result<Response<wire::JwtsvidResponse>, Status> {
        Ok(Response::new(wire::JwtsvidResponse::default()))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<wire::X509BundlesRequest>,
    ) -> std::result::Result<Response<Self::FetchX509BundlesStream>, Status> {
        nothing()
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<wire::JwtBundlesRequest>,
    ) -> std::result::Result<Response<Self::FetchJWTBundlesStream>, Status> {
        nothing()
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<wire::ValidateJwtsvidRequest>,
    ) -> std::result::Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn fetch_witsvid(
        &self,
        _: Request<wire::WitsvidRequest>,
    ) -> std::result::Result<Response<Self::FetchWITSVIDStream>, Status> {
        nothing()
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<wire::WitBundlesRequest>,
    ) -> std::result::Result<Response<Self::FetchWITBundlesStream>, Status> {
        nothing()
    }
}
