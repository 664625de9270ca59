//! HTTP on one connection.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

use super::body::{Body, BoxError, guarded};
use super::cut::{Cut, CutReason, Lifeline};
use super::gate::{Gate, Rewound};
use super::limits::Limits;
use super::listener::Io;
use crate::base::clock::Clock;
use crate::base::drain;

/// How every connection in HTTP/2 begins (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a client may begin and take back at once before the connection is closed (CVE-2023-44487).
const MAX_RESETS: usize = 64;
/// A peer that does not answer a PING for so long is gone.
const PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, and 1.0.
    Http1,
    /// HTTP/2.
    Http2,
    /// What the first bytes say.
    Either,
}

impl Protocol {
    /// Names for ALPN, the preferred one first.
    pub const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

    /// What ALPN chose; HTTP/1.1 for a client that knows no ALPN.
    pub fn of_alpn(chosen: Option<&[u8]>) -> Self {
        if chosen == Some(b"h2") { Self::Http2 } else { Self::Http1 }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// In order, or because the peer went away.
    Closed,
    /// It spoke no HTTP, or not in time.
    Failed,
    /// From outside.
    Cut(CutReason),
}

/// Serves the requests of one connection by `handle`, until the peer is done, the drain begins and what is open is
/// finished, it was idle for too long, or `lifeline` ends it. Streams that outlive it (WebSockets) are not waited for.
pub async fn serve<H, F>(
    io: impl Io,
    protocol: Protocol,
    limits: &Limits,
    clock: &Clock,
    lifeline: &Lifeline,
    drain: drain::Watcher,
    handle: H,
) -> Ended
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut cut = lifeline.watch();
    let opening = begin(io, protocol);
    let (protocol, io) = tokio::select! {
        begun = opening => match begun {
            Ok(begun) => begun,
            Err(_) => return Ended::Closed,
        },
        () = clock.pause(limits.handshake) => return Ended::Failed,
        reason = cut.cut() => return Ended::Cut(reason),
    };
    let busy = Busy::default();
    let counted = busy.clone();
    let handle = move |request: Request<Incoming>| {
        let place = counted.enter();
        // What comes after it is not read by the gate: so nobody reads it as HTTP, whether the other protocol begins or not.
        let last = ends_http1(&request);
        let answer = handle(request);
        async move {
            let mut answer = answer.await.map(|body| guarded(body, None, place));
            if last && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        }
    };
    let watched = Watched { limits, clock, busy, cut, drain };
    let connection = match protocol {
        Protocol::Http2 => http2(io, limits, handle),
        Protocol::Http1 | Protocol::Either => http1(Gate::new(io, limits, clock.clone()), limits, handle),
    };
    watched.run(connection).await
}

/// Whether the gate lets everything through after `request`.
fn ends_http1<B>(request: &Request<B>) -> bool {
    match request.version() {
        Version::HTTP_2 => false,
        _ if request.method() == Method::CONNECT => true,
        version => version == Version::HTTP_11 && request.headers().contains_key(header::UPGRADE),
    }
}

fn http2<H, F>(io: impl Io, limits: &Limits, handle: H) -> Pin<Box<dyn Finish + Send>>
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .keep_alive_interval(limits.idle)
        .keep_alive_timeout(PING_TIMEOUT);
    Box::pin(builder.serve_connection(TokioIo::new(io), service(handle)))
}

fn http1<H, F>(io: impl Io, limits: &Limits, handle: H) -> Pin<Box<dyn Finish + Send>>
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // The gate counts from the first byte of a head; before that the connection is idle.
        .header_read_timeout(None)
        .max_headers(limits.headers)
        .max_header_size(limits.head_bytes);
    Box::pin(builder.serve_connection(TokioIo::new(io), service(handle)).with_upgrades())
}

/// `handle` as hyper wants it.
fn service<H, F>(
    handle: H,
) -> impl HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send + 'static> + Send + 'static
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    service_fn(move |request| {
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    })
}

/// Finds out which HTTP it is, reading no more than it takes.
async fn begin<I: Io>(mut io: I, protocol: Protocol) -> std::io::Result<(Protocol, Rewound<I>)> {
    if protocol != Protocol::Either {
        return Ok((protocol, Rewound::new(io, &[])));
    }
    let mut read = [0; PREFACE.len()];
    let mut length = 0;
    while length < PREFACE.len() && read[..length] == PREFACE[..length] {
        match io.read(&mut read[length..]).await? {
            0 => break,
            more => length += more,
        }
    }
    let protocol = if read == *PREFACE { Protocol::Http2 } else { Protocol::Http1 };
    Ok((protocol, Rewound::new(io, &read[..length])))
}

/// How many requests are open on a connection.
#[derive(Clone, Default)]
struct Busy(Arc<watch::Sender<usize>>);

struct Place(Busy);

impl Busy {
    fn enter(&self) -> Place {
        self.0.send_modify(|open| *open += 1);
        Place(self.clone())
    }

    /// Returns when there was nothing open for as long as `patience`.
    async fn idle(&self, clock: &Clock, patience: std::time::Duration) {
        let mut open = self.0.subscribe();
        loop {
            if open.wait_for(|open| *open == 0).await.is_err() {
                return;
            }
            tokio::select! {
                () = clock.pause(patience) => return,
                _ = open.changed() => {}
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open -= 1);
    }
}

/// A connection of either version.
trait Finish: Future<Output = hyper::Result<()>> {
    /// Lets no new request begin.
    fn finish(self: Pin<&mut Self>);
}

impl<I, S, B> Finish for http1::UpgradeableConnection<I, S>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    I: Read + Write + Unpin + Send + 'static,
    B: http_body::Body + 'static,
    B::Error: Into<BoxError>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, B, E> Finish for http2::Connection<I, S, E>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    I: Read + Write + Unpin,
    B: http_body::Body + 'static,
    B::Error: Into<BoxError>,
    E: Http2ServerConnExec<S::Future, B>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// What a connection is ended by.
struct Watched<'a> {
    limits: &'a Limits,
    clock: &'a Clock,
    busy: Busy,
    cut: Cut,
    drain: drain::Watcher,
}

impl Watched<'_> {
    async fn run(mut self, mut connection: Pin<Box<dyn Finish + Send>>) -> Ended {
        let mut finish = self.cut.clone();
        let mut finishing = false;
        loop {
            // One that was told to finish and has nothing open has no reason to stay.
            let patience = if finishing { self.limits.head } else { self.limits.idle };
            let told = async {
                tokio::select! {
                    () = finish.finishing() => {}
                    () = self.drain.draining() => {}
                }
            };
            tokio::select! {
                biased;
                reason = self.cut.cut() => return Ended::Cut(reason),
                () = told, if !finishing => {}
                ended = connection.as_mut() => return if ended.is_ok() { Ended::Closed } else { Ended::Failed },
                () = self.busy.idle(self.clock, patience) => if finishing { return Ended::Closed },
            }
            finishing = true;
            connection.as_mut().finish();
        }
    }
}
