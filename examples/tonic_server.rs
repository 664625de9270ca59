//! A gRPC service on tonic: mutual TLS, and the same layer in front of it as on axum. The service is the standard health
//! check, so that there is no proto to compile:
//!
//! ```text
//! cargo run --example tonic_server -- 127.0.0.1:8445
//! ```
//!
//! It is registered with the agent that `SPIFFE_ENDPOINT_SOCKET` names, with `https://127.0.0.1:8445/` among what it `serves`. Call it
//! with `tonic_client`. Stop it with Ctrl-C.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to the person who runs it")]

mod mtls;

use mtls::AnyError;
use tether::client::tls::{Authorize, Custody, X509Source};
use tether::client::verifier::{Described, PublicBase, VerifierClient, Verify, VerifyLayer};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tower::Layer;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let address = std::env::args().nth(1).ok_or("usage: tonic_server ADDRESS:PORT")?;
    let source = X509Source::from_env(Custody::Tether).await?;
    let service = service(VerifierClient::from_env()?, &format!("https://{address}"))?;
    let listener = TcpListener::bind(&address).await?;
    println!("listening at https://{address}");
    Ok(mtls::serve(listener, source, Authorize::Anyone, service).await?)
}

/// The tool of a gRPC call is its method.
pub fn service(verifier: VerifierClient, base: &str) -> Result<Verify<Routes>, AnyError> {
    let (_, health) = tonic_health::server::health_reporter();
    let layer = VerifyLayer::new(verifier, PublicBase::parse(base)?).describe(|request| {
        let method = request.uri.path().rsplit('/').next().unwrap_or_default();
        Described { tool: method.to_owned(), ..Described::default() }
    });
    Ok(layer.layer(Routes::new(health)))
}
