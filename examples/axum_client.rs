//! An agent that calls `axum_server` in a session of its own, and has nothing left to call with when that has ended:
//!
//! ```text
//! cargo run --example axum_client -- 127.0.0.1:8444 spiffe://dev.tether.internal/user/NAME
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to the person who runs it")]

mod mtls;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mtls::AnyError;
use tether::client::session::{Call, Digest, NewSession, SessionClient, SessionError};
use tether::client::tls::{Authorize, Custody, X509Source};
use tether::id::SpiffeId;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(server)) = (arguments.next(), arguments.next()) else {
        return Err("usage: axum_client ADDRESS:PORT SPIFFE_ID_OF_THE_SERVER".into());
    };
    let uri = format!("https://{address}/search");
    let source = X509Source::from_env(Custody::Tether).await?;
    let stream = mtls::connect(&source, Authorize::Id(SpiffeId::parse(&server)?), &address, "h2").await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);

    let sessions = SessionClient::from_env()?;
    let wish = NewSession { scopes: vec!["tool:search".to_owned()], ..NewSession::new("demo/search", uri.as_str()) };
    let session = sessions.start(&wish).await?;
    let query = Bytes::from_static(b"tether");
    let call = Call { tool: "search".to_owned(), body: Some(Digest::of(&query)), ..Call::new("POST", uri.as_str()) };
    // For this very request, good once; also a retry needs one of its own.
    let proof = sessions.prove(Some(&session.id), &call).await?;
    let mut request = Request::post(uri.as_str()).body(Full::new(query))?;
    request.headers_mut().extend(proof.headers);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    print!("{status}: {}", String::from_utf8_lossy(&body));

    sessions.end(Some(&session.id)).await?;
    match sessions.prove(Some(&session.id), &call).await {
        Err(SessionError::Ended { reason, .. }) => println!("nothing can be proven any more: {reason}"),
        other => return Err(format!("a proof after the end: {other:?}").into()),
    }
    Ok(())
}
