//! What is behind a proxy, spoken to over connections that are used again.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use thiserror::Error;
use tower::Service;

use super::address::Address;
use super::body::{Body, Progress, empty};
use super::limits::Limits;
use super::listener::{Io, Socket};
use crate::base::clock::Clock;

/// Idle connections that are kept.
const MAX_IDLE: usize = 256;

/// Why there is no answer from behind.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// There is no connection to be had.
    #[error("the upstream cannot be reached")]
    Unreachable(#[source] Error),
    /// The connection was lost before the answer began, or what came was no HTTP.
    #[error("the upstream gave no answer")]
    Broken(#[source] Error),
    /// It wants to speak another protocol, which nobody asked for.
    #[error("the upstream switches to a protocol that was not asked for")]
    Switched,
    /// The answer did not begin in time.
    #[error("the upstream did not answer in time")]
    Slow,
}

impl UpstreamError {
    /// 502 or 504.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unreachable(_) | Self::Broken(_) | Self::Switched => StatusCode::BAD_GATEWAY,
            Self::Slow => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Its stable name, for clients and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "upstream_unreachable",
            Self::Broken(_) | Self::Switched => "upstream_broken",
            Self::Slow => "upstream_slow",
        }
    }
}

/// A connection that HTTP is to be spoken on.
pub struct Link {
    /// The stream.
    pub io: Box<dyn Io>,
    /// Whether ALPN chose HTTP/2.
    pub http2: bool,
}

/// What making a connection is.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Link>> + Send>>;

/// Makes connections to what is behind, always the same.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn() -> Connecting + Send + Sync>);

impl Connector {
    /// Connects by `connect`.
    pub fn new<F>(connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Link>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(connect())))
    }

    /// Connects to `address`, without TLS.
    pub fn to(address: Address) -> Self {
        Self::new(move || {
            let address = address.clone();
            async move { Ok(Link { io: Box::new(Socket::connect(&address).await?), http2: false }) }
        })
    }
}

impl Service<Uri> for Connector {
    type Response = Linked;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Linked>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The URI is that of a request; where to go is known already.
    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = (self.0)();
        Box::pin(async move {
            let Link { io, http2 } = connecting.await?;
            Ok(Linked { io: TokioIo::new(io), http2 })
        })
    }
}

/// A [`Link`] as the client wants it.
pub struct Linked {
    io: TokioIo<Box<dyn Io>>,
    http2: bool,
}

impl Connection for Linked {
    fn connected(&self) -> Connected {
        if self.http2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Linked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Linked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
}

/// A client of what is behind. Clones share its connections.
#[derive(Clone)]
pub struct Upstream {
    client: Client<Connector, Body>,
    http2: bool,
    patience: Duration,
    clock: Clock,
    again: bool,
}

impl Upstream {
    /// A client that connects by `connector`; `http2` when HTTP/2 is spoken there without being asked for by ALPN.
    pub fn new(connector: Connector, http2: bool, limits: &Limits, clock: Clock) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits.upstream_idle)
            .pool_max_idle_per_host(MAX_IDLE)
            .set_host(false)
            .http2_only(http2)
            .build(connector);
        Self { client, http2, patience: limits.upstream, clock, again: true }
    }

    /// Sends nothing twice, for whoever makes each attempt anew.
    #[must_use]
    pub fn never_again(self) -> Self {
        Self { again: false, ..self }
    }

    /// Whether requests go out in HTTP/2, whatever ALPN says.
    pub fn is_http2(&self) -> bool {
        self.http2
    }

    /// Sends a request and waits until the answer begins, for as long as the request's body goes on and then no longer
    /// than the limit. `head` has an absolute URI, of which scheme and authority name the connections that may be used.
    ///
    /// A request that changes nothing and has no body is sent once more when a connection that was used before turns
    /// out to have been closed.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, head: Parts, body: Body) -> Result<Response<Incoming>, UpstreamError> {
        let is_safe = matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let again = (self.again && is_safe && body.is_end_stream()).then(|| Request::from_parts(head.clone(), empty()));
        match (self.once(Request::from_parts(head, body)).await, again) {
            (Err(UpstreamError::Broken(_)), Some(again)) => self.once(again).await,
            (answer, _) => answer,
        }
    }

    async fn once(&self, request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        let progress = Progress::default();
        let mut answer = std::pin::pin!(self.client.request(request.map(|body| progress.of(body))));
        loop {
            let before = progress.so_far();
            tokio::select! {
                answer = &mut answer => return answer.map_err(|error| {
                    if error.is_connect() { UpstreamError::Unreachable(error) } else { UpstreamError::Broken(error) }
                }),
                () = self.clock.pause(self.patience) => if progress.so_far() == before {
                    return Err(UpstreamError::Slow);
                },
            }
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("http2", &self.http2).finish_non_exhaustive()
    }
}
