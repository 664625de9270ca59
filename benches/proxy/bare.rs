//! The baselines that are made here: what is behind every proxy, and a proxy that does nothing but mutual TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, server};
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_rustls::TlsAcceptor;

use crate::support::Result;

/// What is answered: as much as a small document has.
pub const BODY: [u8; 1024] = [b'x'; 1024];
/// Who asks for this host is refused, by every proxy on its own: for handshakes alone.
pub const NOBODY: &str = "nobody.invalid";

type Body = BoxBody<Bytes, hyper::Error>;

/// Listens somewhere, and says where before it says that it is ready.
async fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    println!("ready");
    Ok(listener)
}

/// Answers everything with the same.
pub fn upstream() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = listen().await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let answer = service_fn(|request: Request<Incoming>| async {
                    let _ = request.into_body().collect().await;
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(&BODY))))
                });
                let _ = server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    })
}

/// Mutual TLS in, plain HTTP out, on a connection of its own for each that comes in.
pub fn proxy(dir: &Path, upstream: SocketAddr) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(dir)?));
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = listen().await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let stream = acceptor.accept(stream).await?;
                let behind = Mutex::new(None);
                let forward = service_fn(|request| forward(request, &behind, upstream));
                let _ = server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), forward).await;
                Result::Ok(())
            });
        }
    })
}

async fn forward(
    request: Request<Incoming>,
    behind: &Mutex<Option<SendRequest<Incoming>>>,
    upstream: SocketAddr,
) -> Result<Response<Body>> {
    if request.headers().get(http::header::HOST).is_some_and(|host| host == NOBODY) {
        let nothing = Full::new(Bytes::new()).map_err(|never| match never {}).boxed();
        let mut refused = Response::new(nothing);
        *refused.status_mut() = StatusCode::MISDIRECTED_REQUEST;
        return Ok(refused);
    }
    let mut behind = behind.lock().await;
    let is_ready = match &mut *behind {
        Some(sender) => sender.ready().await.is_ok(),
        None => false,
    };
    if !is_ready {
        let stream = TcpStream::connect(upstream).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        *behind = Some(sender);
    }
    let sender = behind.as_mut().ok_or("there is no connection")?;
    Ok(sender.send_request(request).await?.map(|body| body.boxed()))
}

fn tls(dir: &Path) -> Result<ServerConfig> {
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519];
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(dir.join("bundle.pem"))? {
        roots.add(root?)?;
    }
    let chain = CertificateDer::pem_file_iter(dir.join("svid.pem"))?.collect::<std::result::Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(dir.join("svid_key.pem"))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
