//! What the examples share, to be taken along: a server's loop over its connections, and a client's connection. Both
//! present the newest SVID, and let go of a peer that is revoked while the connection is open.
#![allow(dead_code, reason = "a server needs one half and a client the other")]

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tether::client::tls::{
    Authorize, Guard, Guarded, PeerCertificates, X509Source, client_config, server_config, unnamed,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};
use tower::{Service, ServiceExt};

pub type AnyError = Box<dyn Error + Send + Sync>;

/// Serves HTTP/1.1 and HTTP/2 to `clients`. Each request has the [`PeerCertificates`] of its caller among its extensions.
pub async fn serve<S, B>(
    listener: TcpListener,
    source: X509Source,
    clients: Authorize,
    service: S,
) -> std::io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<AnyError>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<AnyError>> + Send + 'static,
{
    let mut config = server_config(&source, clients.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (connection, from) = listener.accept().await?;
        let (acceptor, source, clients, service) = (acceptor.clone(), source.clone(), clients.clone(), service.clone());
        tokio::spawn(async move {
            if let Err(error) = serve_one(&acceptor, &source, &clients, service, connection).await {
                eprintln!("{from}: {error}");
            }
        });
    }
}

async fn serve_one<S, B>(
    acceptor: &TlsAcceptor,
    source: &X509Source,
    clients: &Authorize,
    service: S,
    connection: TcpStream,
) -> Result<(), AnyError>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<AnyError>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<AnyError>> + Send + 'static,
{
    let stream = tokio::time::timeout(Duration::from_secs(10), acceptor.accept(connection)).await??;
    let peer = PeerCertificates::of(stream.get_ref().1).ok_or("the handshake proved nobody")?;
    // Over the open connection: who is revoked now is cut off, whatever it was doing.
    let guard = Guard::new(source, clients, &peer)?;
    let service = service.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request
    });
    let builder = Builder::new(TokioExecutor::new());
    let mut serving = pin!(
        builder.serve_connection_with_upgrades(TokioIo::new(guard.over(stream)), TowerToHyperService::new(service))
    );
    tokio::select! {
        served = serving.as_mut() => return served,
        // What is open is finished, and the client comes again with its next certificate.
        () = guard.expired() => serving.as_mut().graceful_shutdown(),
    }
    serving.await
}

/// A connection to `server`, which is nobody else, and which is cut when it is revoked.
pub async fn connect(
    source: &X509Source,
    server: Authorize,
    address: &str,
    protocol: &str,
) -> Result<Guarded<client::TlsStream<TcpStream>>, AnyError> {
    let mut config = client_config(source, server.clone());
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(unnamed(), TcpStream::connect(address).await?).await?;
    let peer = PeerCertificates::of(stream.get_ref().1).ok_or("the handshake proved nobody")?;
    Ok(Guard::new(source, &server, &peer)?.over(stream))
}
