//! An agent that calls `tonic_server` in a session:
//!
//! ```text
//! cargo run --example tonic_client -- 127.0.0.1:8445 spiffe://dev.tether.internal/user/NAME
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to the person who runs it")]

mod mtls;

use hyper_util::rt::TokioIo;
use mtls::AnyError;
use tether::client::session::{Call, NewSession, SessionClient};
use tether::client::tls::{Authorize, Custody, X509Source};
use tether::id::SpiffeId;
use tonic::Request;
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(server)) = (arguments.next(), arguments.next()) else {
        return Err("usage: tonic_client ADDRESS:PORT SPIFFE_ID_OF_THE_SERVER".into());
    };
    let (base, server) = (format!("https://{address}"), Authorize::Id(SpiffeId::parse(&server)?));
    let source = X509Source::from_env(Custody::Tether).await?;
    // Connects again by itself, each time with the newest SVID. Plain `http` for tonic: the TLS is ours.
    let channel =
        Endpoint::from_shared(format!("http://{address}"))?.connect_with_connector_lazy(tower::service_fn(move |_| {
            let (source, server, address) = (source.clone(), server.clone(), address.clone());
            async move { mtls::connect(&source, server, &address, "h2").await.map(TokioIo::new) }
        }));
    let mut health = HealthClient::new(channel);

    let bare = health.check(HealthCheckRequest::default()).await;
    println!("without a proof: {:?}", bare.expect_err("the layer refuses it").code());

    let sessions = SessionClient::from_env()?;
    let session = sessions.start(&NewSession::new("demo/health", format!("{base}/"))).await?;
    let call = Call { tool: "Check".to_owned(), ..Call::new("POST", format!("{base}/grpc.health.v1.Health/Check")) };
    let proof = sessions.prove(Some(&session.id), &call).await?;
    let mut request = Request::new(HealthCheckRequest::default());
    *request.metadata_mut() = MetadataMap::from_headers(proof.headers);
    println!("with one: {:?}", health.check(request).await?.into_inner().status());
    sessions.end(Some(&session.id)).await?;
    Ok(())
}
