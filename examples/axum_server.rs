//! A tool on axum: mutual TLS, and behind it a layer that asks the agent about each request, so that a tool knows which
//! agent calls, in which session, for whom and for what:
//!
//! ```text
//! cargo run --example axum_server -- 127.0.0.1:8444
//! ```
//!
//! It is registered with the agent that `SPIFFE_ENDPOINT_SOCKET` names, with `https://127.0.0.1:8444/` among what it `serves`. Call it
//! with `axum_client`. Stop it with Ctrl-C.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to the person who runs it")]

mod mtls;

use axum::Router;
use axum::extract::Extension;
use axum::routing::post;
use mtls::AnyError;
use tether::client::tls::{Authorize, Custody, X509Source};
use tether::client::verifier::{Described, PublicBase, Verified, VerifierClient, VerifyLayer};
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let address = std::env::args().nth(1).ok_or("usage: axum_server ADDRESS:PORT")?;
    let source = X509Source::from_env(Custody::Tether).await?;
    // Whoever proves an identity may connect; the layer decides about each request.
    let tool = tool(VerifierClient::from_env()?, &format!("https://{address}"))?;
    let listener = TcpListener::bind(&address).await?;
    println!("listening at https://{address}");
    Ok(mtls::serve(listener, source, Authorize::Anyone, tool).await?)
}

/// The routes, each with a scope of its own.
pub fn tool(verifier: VerifierClient, base: &str) -> Result<Router, AnyError> {
    let layer =
        VerifyLayer::new(verifier, PublicBase::parse(base)?).cover_body(64 << 10).report().describe(|request| {
            let tool = request.uri.path().trim_matches('/').to_owned();
            Described { scopes: vec![format!("tool:{tool}")], tool, ..Described::default() }
        });
    Ok(Router::new().route("/search", post(search)).layer(layer))
}

/// Only checked requests come here.
async fn search(Extension(caller): Extension<Verified>, query: String) -> String {
    let user = caller.user.as_ref().map_or("nobody", |user| user.name.as_str());
    let purpose = caller.purpose.as_deref().unwrap_or("nothing in particular");
    format!("nothing found for {query:?}, asked by {} for {user}, {purpose}\n", caller.spiffe_id)
}
