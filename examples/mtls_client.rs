//! A client of `mtls_server`, which holds no private key either:
//!
//! ```text
//! cargo run --example mtls_client -- 127.0.0.1:8443 spiffe://dev.tether.internal/user/NAME
//! ```
#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;

use tether::client::tls::{Authorize, Custody, X509Source, client_config, unnamed};
use tether::id::SpiffeId;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(server)) = (arguments.next(), arguments.next()) else {
        return Err("usage: mtls_client ADDRESS:PORT SPIFFE_ID_OF_THE_SERVER".into());
    };
    let source = X509Source::from_env(Custody::Tether).await?;
    let connector = TlsConnector::from(Arc::new(client_config(&source, Authorize::Id(SpiffeId::parse(&server)?))));
    let mut stream = connector.connect(unnamed(), TcpStream::connect(&address).await?).await?;
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).await?;
    print!("{greeting}");
    Ok(())
}
