//! A client of `hyper_server`, which holds no private key either:
//!
//! ```text
//! cargo run --example hyper_client -- 127.0.0.1:8443 spiffe://dev.tether.internal/user/NAME
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to the person who runs it")]

mod mtls;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mtls::AnyError;
use tether::client::tls::{Authorize, Custody, X509Source};
use tether::id::SpiffeId;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(server)) = (arguments.next(), arguments.next()) else {
        return Err("usage: hyper_client ADDRESS:PORT SPIFFE_ID_OF_THE_SERVER".into());
    };
    let source = X509Source::from_env(Custody::Tether).await?;
    let stream = mtls::connect(&source, Authorize::Id(SpiffeId::parse(&server)?), &address, "h2").await?;
    println!("{} is {}", address, stream.guard().peer());

    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(format!("https://{address}/")).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    print!("{}", String::from_utf8_lossy(&body));
    Ok(())
}
