//! An HTTP server on hyper that greets one SPIFFE ID, and holds no private key:
//!
//! ```text
//! cargo run --example hyper_server -- 127.0.0.1:8443 spiffe://dev.tether.internal/user/NAME
//! ```
//!
//! It is registered with the agent that `SPIFFE_ENDPOINT_SOCKET` names. Stop it with Ctrl-C.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to the person who runs it")]

mod mtls;

use std::convert::Infallible;

use http::{Request, Response};
use mtls::AnyError;
use tether::client::tls::{Authorize, Custody, PeerCertificates, X509Source};
use tether::id::SpiffeId;
use tether::x509::Certificate;
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(client)) = (arguments.next(), arguments.next()) else {
        return Err("usage: hyper_server ADDRESS:PORT SPIFFE_ID_OF_THE_CLIENT".into());
    };
    let source = X509Source::from_env(Custody::Tether).await?;
    let client = Authorize::Id(SpiffeId::parse(&client)?);
    let listener = TcpListener::bind(&address).await?;
    println!("listening at https://{address}");
    Ok(mtls::serve(listener, source, client, tower::service_fn(greet)).await?)
}

/// Says who called, as TLS showed it.
pub async fn greet<B>(request: Request<B>) -> Result<Response<String>, Infallible> {
    let leaf = request.extensions().get::<PeerCertificates>().and_then(|peer| peer.as_slice().first());
    let caller = leaf.and_then(|leaf| Certificate::from_der(leaf).ok()?.svid_id().ok());
    Ok(match caller {
        Some(caller) => Response::new(format!("hello, {caller}\n")),
        None => Response::new("hello, whoever you are\n".to_owned()),
    })
}
