//! A server that greets one SPIFFE ID and holds no private key:
//!
//! ```text
//! cargo run --example mtls_server -- 127.0.0.1:8443 spiffe://dev.tether.internal/user/NAME
//! ```
//!
//! It is registered with the agent that `SPIFFE_ENDPOINT_SOCKET` names. Stop it with Ctrl-C.
#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;

use tether::client::tls::{Authorize, Custody, X509Source, peer_id, server_config};
use tether::id::SpiffeId;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(client)) = (arguments.next(), arguments.next()) else {
        return Err("usage: mtls_server ADDRESS:PORT SPIFFE_ID_OF_THE_CLIENT".into());
    };
    let source = X509Source::from_env(Custody::Tether).await?;
    for identity in source.state().identities() {
        println!("I am {} until {}", identity.id(), identity.not_after());
    }
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&source, Authorize::Id(SpiffeId::parse(&client)?))));
    let listener = TcpListener::bind(&address).await?;
    println!("listening at {address} for {client}");
    loop {
        let (connection, from) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            match greet(&acceptor, connection).await {
                Ok(peer) => println!("{from} is {peer}"),
                Err(error) => println!("{from}: {error}"),
            }
        });
    }
}

async fn greet(acceptor: &TlsAcceptor, connection: TcpStream) -> std::io::Result<SpiffeId> {
    let mut stream = acceptor.accept(connection).await?;
    let peer = peer_id(stream.get_ref().1).ok_or(std::io::ErrorKind::PermissionDenied)?;
    stream.write_all(format!("hello, {peer}\n").as_bytes()).await?;
    stream.shutdown().await?;
    Ok(peer)
}
