//! A tool that serves only requests which the agent finds good, and says who called:
//!
//! ```text
//! cargo run --example verifying_tool -- 127.0.0.1:8300
//! ```
//!
//! It asks the agent that `SPIFFE_ENDPOINT_SOCKET` names, whose registration entry for it must list `http://127.0.0.1:8300/`
//! under `serves`. Call it with `agent_session`. Stop it with Ctrl-C.
#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tether::client::verifier::{Described, PublicBase, Verified, VerifierClient, VerifyLayer};
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).ok_or("usage: verifying_tool ADDRESS:PORT")?;
    // From this tool's own configuration: what a request says of its host is not asked.
    let base = PublicBase::parse(&format!("http://{address}"))?;
    // Each path is a tool with a scope of its own.
    let layer = VerifyLayer::new(VerifierClient::from_env()?, base).cover_body(64 << 10).report().describe(|request| {
        let tool = request.uri.path().trim_matches('/').to_owned();
        Described { scopes: vec![format!("tool:{tool}")], tool, ..Described::default() }
    });
    let tool = layer.layer(tower::service_fn(answer));

    let listener = TcpListener::bind(&address).await?;
    println!("listening at {address}");
    loop {
        let (connection, _) = listener.accept().await?;
        let tool = tool.clone();
        let serve = http1::Builder::new()
            .serve_connection(TokioIo::new(connection), service_fn(move |request| tool.clone().oneshot(request)));
        tokio::spawn(async move {
            if let Err(error) = serve.await {
                println!("{error}");
            }
        });
    }
}

/// Only checked requests come here.
async fn answer<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let (parts, body) = request.into_parts();
    let Some(caller) = parts.extensions.get::<Verified>() else {
        return Ok(Response::new(Full::from("nobody checked this request")));
    };
    let user = caller.user.as_ref().map_or("nobody", |user| user.name.as_str());
    let purpose = caller.purpose.as_deref().unwrap_or("nothing in particular");
    let size = body.collect().await.map_or(0, |body| body.to_bytes().len());
    let said = format!("{} for {user}, {purpose}: {} with {size} bytes\n", caller.spiffe_id, parts.uri.path());
    print!("{said}");
    Ok(Response::new(Full::from(said)))
}
