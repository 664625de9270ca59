//! One HTTPS request at a time: for the keys of identity providers, and for what one node asks another.
//!
//! Promises: TLS 1.3 with a certificate for the very host of the URL, unless that host is a loopback address; no
//! redirect is followed, no cookie or proxy used; the whole exchange, with looking up the name, ends within one
//! deadline; an answer larger than the limit is refused and not read to its end.
//!
//! Does not: speak TLS 1.2 (this agent has no code for it, so a server must offer TLS 1.3), or keep connections: each
//! request has its own, and the roots are read again for each, so that a host's new root counts without a restart.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::base::durable;

/// How long one exchange may take unless [`Fetcher::within`] says otherwise.
const DEADLINE: Duration = Duration::from_secs(5);
/// The largest answer that is read unless [`Fetcher::at_most`] says otherwise, in bytes.
const LIMIT: usize = 1024 * 1024;
/// The longest URL.
const MAX_URL: usize = 2048;
/// The largest file of roots, in bytes.
const MAX_ROOTS: u64 = 4 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The roots the server's certificate is checked with cannot be read, or there are none.
    #[error("the roots for `{host}` cannot be read: {why}; install the host's CA certificates, or set `ca_file`")]
    Roots {
        /// Whose certificate was to be checked.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// The name of the host cannot be resolved, or nobody listens there.
    #[error("`{host}` cannot be reached")]
    Connect {
        /// The host and port.
        host: String,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// No TLS connection: another name or root, or no TLS 1.3.
    #[error("no TLS 1.3 connection to `{host}` with a certificate that can be trusted")]
    Tls {
        /// The host and port.
        host: String,
        /// What TLS answered.
        #[source]
        source: io::Error,
    },
    /// The other side does not speak HTTP, or ended the connection.
    #[error("`{host}` did not answer as HTTP")]
    Http {
        /// The host and port.
        host: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not answer in time.
    #[error("`{host}` did not answer within {after:?}")]
    Late {
        /// The host and port.
        host: String,
        /// The deadline.
        after: Duration,
    },
    /// The answer is larger than is read.
    #[error("the answer of `{host}` is larger than {limit} bytes")]
    TooLarge {
        /// The host and port.
        host: String,
        /// The limit.
        limit: usize,
    },
}

/// A URL that may be asked.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// As it was written.
    url: String,
    secure: bool,
    /// Without brackets.
    host: String,
    port: u16,
    /// `Host` and the host for people, with the port where it is not the usual one.
    authority: String,
    target: String,
}

/// Why a URL may not be asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// It is no absolute URL, or has user information or a fragment, or is too long.
    #[error("expected a URL such as `https://login.example.com/keys`")]
    Malformed,
    /// It is not `https`, and not on this host.
    #[error("the URL begins with `https://`; `http://` is for a loopback address such as 127.0.0.1 alone")]
    Insecure,
}

impl Endpoint {
    /// Reads a URL: `https`, or `http` with a loopback address.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        let uri: Uri = url.parse().map_err(|_| EndpointError::Malformed)?;
        let parts = (uri.scheme_str(), uri.authority(), uri.host());
        let (Some(scheme), Some(authority), Some(host)) = parts else { return Err(EndpointError::Malformed) };
        if url.len() > MAX_URL || url.contains('#') || authority.as_str().contains('@') || host.is_empty() {
            return Err(EndpointError::Malformed);
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let secure = match scheme {
            "https" => true,
            "http" if bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) => false,
            _ => return Err(EndpointError::Insecure),
        };
        // Not `uri.port()`, which has none for one that is no number.
        let rest = authority.as_str().strip_prefix(host).ok_or(EndpointError::Malformed)?;
        let port = match rest.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(EndpointError::Malformed)?,
            None if !rest.is_empty() => return Err(EndpointError::Malformed),
            None if secure => 443,
            None => 80,
        };
        if ServerName::try_from(bare).is_err() {
            return Err(EndpointError::Malformed);
        }
        let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
        let host = bare.to_owned();
        Ok(Self { url: url.to_owned(), secure, host, port, authority: authority.as_str().to_owned(), target })
    }

    /// Whether the connection is protected: it is not on loopback alone.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// The URL as it was written.
    pub fn as_str(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({})", self.url)
    }
}

/// What a server's certificate is checked with.
#[derive(Clone)]
pub enum Roots {
    /// The host's own store of CA certificates.
    Host,
    /// The certificates in a PEM file, and no others.
    File(PathBuf),
    /// Whatever this configuration says: for other roots than those of the web, and for a certificate of our own.
    Tls(Arc<ClientConfig>),
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("Host"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Tls(_) => f.write_str("Tls"),
        }
    }
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The status, whichever it is: what counts as an answer is the caller's business.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Asks over HTTP/1.1. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    roots: Roots,
    deadline: Duration,
    limit: usize,
}

impl Fetcher {
    /// Asks servers whose certificates hold by `roots`.
    pub fn new(roots: Roots) -> Self {
        Self { roots, deadline: DEADLINE, limit: LIMIT }
    }

    /// With another deadline for the whole exchange than 5 s.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// With another limit for the body of an answer than 1 MiB.
    #[must_use]
    pub fn at_most(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// `GET`, with what is wanted in `Accept`.
    ///
    /// # Errors
    /// There is no whole answer in time. An answer that says no is an answer.
    pub async fn get(&self, endpoint: &Endpoint, accept: &str) -> Result<Fetched, FetchError> {
        let request = Request::builder().method(Method::GET).header(header::ACCEPT, accept);
        self.send(endpoint, request, Bytes::new()).await
    }

    /// `POST` of a body of this kind; JSON is accepted as the answer.
    ///
    /// # Errors
    /// There is no whole answer in time. An answer that says no is an answer.
    pub async fn post(&self, endpoint: &Endpoint, content_type: &str, body: Bytes) -> Result<Fetched, FetchError> {
        let request = Request::builder().method(Method::POST).header(header::CONTENT_TYPE, content_type);
        self.send(endpoint, request.header(header::ACCEPT, "application/json"), body).await
    }

    /// `POST` of a body of this kind, for an answer that goes on: only its beginning has to be there in time.
    ///
    /// # Errors
    /// The answer does not begin in time.
    pub async fn open(&self, endpoint: &Endpoint, content_type: &str, body: Bytes) -> Result<Opened, FetchError> {
        let host = || endpoint.authority.clone();
        let request = Request::builder().method(Method::POST).header(header::CONTENT_TYPE, content_type);
        let request = whole(endpoint, request, body)?;
        let exchange = async {
            let stream = connect(endpoint).await.map_err(|source| FetchError::Connect { host: host(), source })?;
            let stream = self.secured(endpoint, stream).await?;
            let peer = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| FetchError::Http { host: host(), source: error.into() })?;
            let mut connection: Connection = Some(Box::pin(async move {
                // How it ends is seen by whoever reads the answer.
                let _ = connection.await;
            }));
            let answering = sender.send_request(request);
            tokio::pin!(answering);
            let answer = tokio::select! {
                answer = &mut answering => answer,
                () = over(&mut connection) => answering.await,
            };
            let answer = answer.map_err(|error| FetchError::Http { host: host(), source: error.into() })?;
            let status = answer.status();
            Ok(Opened { status, peer, host: host(), body: answer.into_body(), connection, _sender: sender })
        };
        let late = FetchError::Late { host: host(), after: self.deadline };
        tokio::time::timeout(self.deadline, exchange).await.unwrap_or(Err(late))
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Fetched, FetchError> {
        let host = || endpoint.authority.clone();
        let request = whole(endpoint, request, body)?;
        let exchange = async {
            let stream = connect(endpoint).await.map_err(|source| FetchError::Connect { host: host(), source })?;
            if !endpoint.secure {
                return self.exchange(endpoint, stream, request).await;
            }
            let stream = self.secured(endpoint, stream).await?;
            self.exchange(endpoint, stream, request).await
        };
        let late = FetchError::Late { host: host(), after: self.deadline };
        tokio::time::timeout(self.deadline, exchange).await.unwrap_or(Err(late))
    }

    async fn secured(&self, endpoint: &Endpoint, stream: TcpStream) -> Result<TlsStream<TcpStream>, FetchError> {
        let host = || endpoint.authority.clone();
        let config = tls(self.roots.clone()).await.map_err(|why| FetchError::Roots { host: host(), why })?;
        let wrong = |error: &str| FetchError::Tls { host: host(), source: io::Error::other(error.to_owned()) };
        let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| wrong(&error.to_string()))?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        stream.map_err(|source| FetchError::Tls { host: host(), source })
    }

    async fn exchange(
        &self,
        endpoint: &Endpoint,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<Fetched, FetchError> {
        let host = || endpoint.authority.clone();
        let http = |source| FetchError::Http { host: host(), source };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| http(error.into()))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|error| http(error.into()))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, self.limit).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    return FetchError::TooLarge { host: host(), limit: self.limit };
                }
                http(error)
            })?;
            Ok(Fetched { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        tokio::pin!(answer, connection);
        // The connection lives as long as this does: nothing goes on once nobody waits. With its end the answer is
        // either there or fails.
        tokio::select! {
            answered = &mut answer => answered,
            _ = &mut connection => answer.await,
        }
    }
}

/// The request with what every one of them has.
fn whole(
    endpoint: &Endpoint,
    request: http::request::Builder,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, FetchError> {
    request
        .uri(&endpoint.target)
        .header(header::HOST, &endpoint.authority)
        .header(header::USER_AGENT, concat!("tether/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Full::new(body))
        .map_err(|error| FetchError::Http { host: endpoint.authority.clone(), source: error.into() })
}

/// What drives a connection, until it is over.
type Connection = Option<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// Drives a connection to its end, once.
async fn over(connection: &mut Connection) {
    match connection {
        Some(driving) => driving.await,
        None => return std::future::pending().await,
    }
    *connection = None;
}

/// An answer that is read as it comes. The connection lives as long as this does.
pub struct Opened {
    /// The status, whichever it is: what counts as an answer is the caller's business.
    pub status: StatusCode,
    /// What the server proved in TLS, leaf first.
    pub peer: Vec<CertificateDer<'static>>,
    host: String,
    body: Incoming,
    connection: Connection,
    _sender: http1::SendRequest<Full<Bytes>>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("status", &self.status).field("host", &self.host).finish_non_exhaustive()
    }
}

impl Opened {
    /// The next piece, as it came; `None` at the end. Nothing is lost when this is dropped while it waits.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, FetchError> {
        let Self { body, connection, host, .. } = self;
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = over(connection) => continue,
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(FetchError::Http { host: host.clone(), source: error.into() }),
            }
        }
    }
}

/// A connection to the endpoint; without TLS to nobody but ourselves.
async fn connect(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let addresses = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await?;
    let allowed = |address: &SocketAddr| endpoint.secure || address.ip().is_loopback();
    let addresses: Vec<SocketAddr> = addresses.filter(allowed).collect();
    TcpStream::connect(addresses.as_slice()).await
}

/// The TLS that trusts these roots, for HTTP/1.1 and without a certificate of ours. Files are read off the async threads.
///
/// # Errors
/// The roots cannot be read, or there are none.
pub async fn tls(roots: Roots) -> Result<Arc<ClientConfig>, String> {
    let load: Box<dyn FnOnce() -> Result<RootCertStore, String> + Send> = match roots {
        Roots::Tls(config) => return Ok(config),
        Roots::Host => Box::new(host_roots),
        Roots::File(path) => Box::new(move || file_roots(&path)),
    };
    let loaded = tokio::task::spawn_blocking(load).await.map_err(|_| "the agent is stopping".to_owned())??;
    Ok(Arc::new(client_config(loaded)?))
}

fn client_config(roots: RootCertStore) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn host_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A host's store may hold a certificate that is odd; the others are no worse for it.
    roots.add_parsable_certificates(found.certs);
    match (roots.is_empty(), found.errors.first()) {
        (false, _) => Ok(roots),
        (true, Some(error)) => Err(error.to_string()),
        (true, None) => Err("the host has no CA certificates".to_owned()),
    }
}

fn file_roots(path: &Path) -> Result<RootCertStore, String> {
    let pem = durable::read(path, MAX_ROOTS).map_err(|error| words(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        added.map_err(|error| format!("`{}`: {error}", path.display()))?;
    }
    if roots.is_empty() { Err(format!("`{}` holds no certificate in PEM", path.display())) } else { Ok(roots) }
}

/// An error with its causes, for a person.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words = format!("{words}: {cause}");
        next = cause.source();
    }
    words
}

#[cfg(test)]
mod tests;
